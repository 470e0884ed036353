"""Files of rows: tab-separated, CSV, JSON, JSON lines and Parquet.

They exist beside the loaders of `datasets` because they name the line that is wrong, read GLUE's
unquoted TSV literally, take no word for a missing value, and leave no cache.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.values import listed, shown

logger = logging.getLogger(__name__)

# Deeper than any row, and not so deep that a library fails.
MAX_DEPTH = 50
INDEX_COLUMN = "Unnamed: 0"
_UNPACK = "unpack it first, and name the file inside"
_CONVERT = (
    "write it as JSON lines, for example with pandas: pandas.{}(…).to_json('rows.jsonl', orient='records', lines=True)"
)
# What other files begin with, what they are, and what to do.
_OTHER_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack the archive, or save the spreadsheet as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet or document", "save it as CSV in UTF-8"),
    (b"PAR1", "a Parquet file", _CONVERT.format("read_parquet")),
    (b"ARROW1", "an Arrow file", _CONVERT.format("read_feather")),
    (b"SQLite format 3", "a database", _CONVERT.format("read_sql")),
    (b"%PDF", "a PDF", "give a table of rows"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with 'git lfs pull'"),
    (b"<!DOCTYPE html", "a web page", "download the file itself (the page's raw or download link)"),
    (b"<!doctype html", "a web page", "download the file itself (the page's raw or download link)"),
    (b"<html", "a web page", "download the file itself (the page's raw or download link)"),
    # Before UTF-16, whose mark begins the same way.
    *((mark, "UTF-32", "convert it with iconv -f utf-32 -t utf-8") for mark in (b"\xff\xfe\0\0", b"\0\0\xfe\xff")),
    *((mark, "UTF-16", "convert it with iconv -f utf-16 -t utf-8") for mark in (b"\xff\xfe", b"\xfe\xff")),
)


@dataclass(frozen=True)
class Rows:
    """
    The rows of one split and where each of them stands.

    Args:
        rows (`Sequence[dict]`): column name to value.
        source (`str`): the file or the data set, for messages.
        places (`list[str]`, *optional*): the place of each row. By default a row is named by its index.
        index_columns (`frozenset[str]`, *optional*): columns whose numbers are known to be indices of classes.
    """

    rows: Sequence[Mapping[str, Any]]
    source: str
    places: list[str] | None = None
    index_columns: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return self.places[index] if self.places else f"row {index} of {self.source}"


def read_tsv(path: Path, column_names: list[str] | None = None, skip_incomplete: bool = False) -> Rows:
    """
    A tab-separated file as GLUE ships it: quotes are text, one line is one row.

    Args:
        path (`Path`): the file.
        column_names (`list[str]`, *optional*): the columns of a file without a header line.
        skip_incomplete (`bool`, *optional*, defaults to `False`): leave out rows with too few or too many fields,
            with a warning that counts them, instead of refusing the file.

    Raises:
        InputError: if the file is missing, empty, not UTF-8, or a row has too few or too many fields.
    """
    return _table(path, _lines(read_text(path), "\t"), column_names, skip_incomplete)


def read_csv(
    path: Path, column_names: list[str] | None = None, delimiter: str | None = None, quoting: int | None = None
) -> Rows:
    """
    A CSV file. Its fields are quoted as spreadsheets do it, and a quoted field may span lines.

    Args:
        path (`Path`): the file.
        column_names (`list[str]`, *optional*): the columns of a file without a header line.
        delimiter (`str`, *optional*): one character. By default a comma, or what parts the names of the header line: a
            tab, a semicolon or a vertical bar.
        quoting (`int`, *optional*): 3 if quotes are text, as in Python's `csv` and in pandas; 0 if they are not. By
            default 0, but a file that can be read both ways, with other rows, is refused, and one with tabs whose
            quotes are not used as in a CSV file is read as text.

    Raises:
        InputError: as in `read_tsv`, and for quotes that can be read in two ways.
    """
    text = read_text(path)
    mark = delimiter or _delimiter_of(text.split("\n", 1)[0])
    literal = _lines(text, mark)
    if quoting == csv.QUOTE_NONE:
        return _table(path, literal, column_names)
    whole = bool(literal) and len({len(fields) for _, fields in literal}) == 1
    try:
        records = _quoted(text, mark)
    except csv.Error as error:
        if quoting is None and mark == "\t" and whole:
            return _table(path, literal, column_names)
        line = int(str(error.__notes__[0]))
        raise InputError(
            f"Line {line} of {path} is not valid CSV ({error}); the file may be cut off, or a quote may be left open. "
            "Where quotes are text, say so in the task file with dataset_kwargs: {quoting: 3}, or write JSON lines."
        ) from error
    if whole and len(records) > len(literal):
        raise InputError(
            f"The file {path} has carriage returns within its lines, which end a row of CSV but no line of text; "
            "put the fields that hold them in quotes, or drop them."
        )
    if quoting is None and whole and len(records) != len(literal):
        pairs = zip(literal, records, strict=False)
        line = next((mine for (mine, _), (theirs, _) in pairs if mine != theirs), records[-1][0] + 1) - 1
        raise InputError(
            f"A quote on line {line} of {path} opens a field that goes on over the next line, but as text every line "
            "is a row of its own; say in the task file which is meant, with dataset_kwargs: {quoting: 3} where quotes "
            "are text, or {quoting: 0}, or write JSON lines."
        )
    return _table(path, records, column_names)


def _lines(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Line numbers and fields, where quotes are text."""
    # Only "\n" ends a line: a sentence may contain "\r" or Unicode's other line ends.
    return [
        (n, line.removesuffix("\r").split(delimiter)) for n, line in enumerate(text.split("\n"), 1) if line.strip()
    ]


def _quoted(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The line on which each record begins, and its fields; a `csv.Error` has the line as its note."""
    before = csv.field_size_limit(len(text) + 1)  # by default 131,072 characters
    records, line = [], 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for fields in reader:
            if fields:
                records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        error.add_note(str(line))
        raise
    finally:
        csv.field_size_limit(before)
    return records


def _delimiter_of(header: str) -> str:
    """A comma, unless the header line has none and another mark parts its names."""
    if "," in header:
        return ","
    return next((mark for mark in ("\t", ";", "|") if mark in header), ",")


def read_json(path: Path) -> Rows:
    """
    A file of JSON objects: one a line, or one array of them.

    Raises:
        InputError: if the file is missing, empty, not UTF-8, or a row is broken JSON, no object, nested too deep or
            has a key twice.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        records = _parse(text, 1, path)
        places = [f"row {index} of {path}" for index in range(len(records))]
    else:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if lines and lines[0][1].strip() in ("{", '{"data": [', '{"rows": ['):
            raise InputError(
                f"The file {path} is one JSON object over several lines; write one object a line for each row, or one "
                "array of them."
            )
        records = [_parse(line, n, path) for n, line in lines]
        places = [f"line {n} of {path}" for n, _ in lines]
    for place, record in zip(places, records, strict=True):
        if not isinstance(record, dict):
            raise InputError(
                f"{place[0].upper()}{place[1:]} is {type(record).__name__}, not a JSON object; a row looks "
                'like {"text": "…", "label": 0}.'
            )
    return not_empty(Rows(records, str(path), places))


class _DoubleKeyError(Exception):
    """A JSON object has a key twice."""


def _parse(text: str, line: int, path: Path) -> Any:
    place = f"Line {line} of {path}"
    try:
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(text)
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise InputError(
            f"Line {line + error.lineno - 1} of {path} is not valid JSON ({error.msg}); the file may be cut off."
        ) from error
    except _DoubleKeyError as error:
        where = place if "\n" not in text.strip() else f"An object of {path}"
        raise InputError(f"{where} has the key {shown(error.args[0])} twice; keep one of both.") from error
    except RecursionError as error:
        raise InputError(f"{place} nests more than {MAX_DEPTH} lists and objects in each other.") from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise InputError(f"{place} holds a number of thousands of digits; put it in quotes if it is text.") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise _DoubleKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
    return found


def _check_depth(text: str) -> None:
    """Raises `RecursionError` for brackets nested deeper than Arrow and the templates follow them."""
    depth, bare = 0, re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    for mark in re.findall(r"[\[{\]}]", bare):
        depth += 1 if mark in "[{" else -1
        if depth > MAX_DEPTH:
            raise RecursionError


def read_parquet(path: Path) -> Rows:
    """
    A Parquet file; values are as their types say, and what is missing is `None`.

    Raises:
        InputError: if the file is missing, empty, damaged or no Parquet file, or names a column twice.
    """
    import pyarrow as pa
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path.")
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        names = table.column_names
        records = table.to_pylist(maps_as_pydicts="strict") if len(set(names)) == len(names) else []
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise InputError(
            f"The file {path} cannot be read as Parquet ({first_line(error)}); it may be cut off, or be in another "
            "format: name it by what it holds."
        ) from error
    if len(set(names)) < len(names):
        raise InputError(f"The file {path} should name its columns, each once, but they are: {listed(names)}.")
    return not_empty(Rows(records, str(path)))


# The formats of benchmarks' own files, as task files name them.
READERS: dict[str, Callable[..., Rows]] = {"tsv": read_tsv, "csv": read_csv, "jsonl": read_json}
# A user's files, by the ends of their names. What spreadsheets and pandas write as .tsv has quotes, as a CSV file.
BY_SUFFIX: dict[str, Callable[[Path], Rows]] = {
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".jsonl": read_json,
    ".json": read_json,
    ".parquet": read_parquet,
}


def _table(
    path: Path, records: list[tuple[int, list[str]]], names: list[str] | None, skip_incomplete: bool = False
) -> Rows:
    if names is None:
        if not records:
            raise InputError(f"The file {path} is empty; it should start with a line of column names.")
        names = records.pop(0)[1]
        if names[0] == "" and len(names) > 1:
            names = [INDEX_COLUMN, *names[1:]]  # where pandas writes its index, and under the name that it reads
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise InputError(
                f"The first line of {path} should name the columns, each once, but it is: "
                f"{', '.join(map(repr, names))}."
            )
    broken = [(line, len(fields)) for line, fields in records if len(fields) != len(names)]
    if broken:
        line, count = broken[0]
        if not skip_incomplete:
            raise InputError(
                f"Line {line} of {path} has {count} fields, but {len(names)} are expected "
                f"({', '.join(names)}); the file may be cut off, or be in another format."
            )
        records = [(line, fields) for line, fields in records if len(fields) == len(names)]
        logger.warning(
            "Left out %d incomplete rows of %s, the first on line %d; %d rows remain.",
            len(broken),
            path,
            line,
            len(records),
        )
    rows = [dict(zip(names, fields, strict=True)) for _, fields in records]
    return not_empty(Rows(rows, str(path), [f"line {line} of {path}" for line, _ in records]))


def not_empty(rows: Rows) -> Rows:
    """Raises `InputError` for a file without a row."""
    if not len(rows):
        raise InputError(f"The file {rows.source} has no rows; give a file with at least one.")
    return rows


def read_text(path: Path, fallback: str | None = None) -> str:
    """
    The text of a UTF-8 file, without a byte order mark.

    Args:
        path (`Path`): the file.
        fallback (`str`, *optional*): the encoding of a file that is not UTF-8.

    Raises:
        InputError: if the file is missing, or not UTF-8 and there is no `fallback`.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"The file {path} cannot be read ({error.strerror or error}); check its permissions."
        ) from error
    for beginning, kind, advice in _OTHER_FORMATS:
        if content.startswith(beginning):
            raise InputError(f"The file {path} is {kind}, not text; {advice}.")
    if b"\0" in content:
        line = content.count(b"\n", 0, content.index(b"\0")) + 1
        raise InputError(
            f"Line {line} of {path} holds NUL bytes, so the file is no text, is UTF-16 without its mark, or was "
            "damaged; write it again as UTF-8."
        )
    try:
        text = content.decode("utf-8-sig")  # spreadsheet programs put a byte order mark in front
        return text if "\n" in text else text.replace("\r", "\n")  # some end lines as an old Mac did
    except UnicodeDecodeError as error:
        if fallback is not None:
            return content.decode(fallback)
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"Line {line} of {path} is not UTF-8 (byte {content[error.start]:#04x}); convert the file, "
            "for example with iconv -f latin1 -t utf-8."
        ) from error
