"""Rows of a user's table as a stream: read from the file at every pass, so that memory holds few of them.

Readers exist beside the loaders of `datasets` because they name the line that is wrong, read GLUE's unquoted TSV
literally, take no word for a missing value, and leave no cache.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.text_lines import text_lines
from sinkd_llm.values import listed, shown

logger = logging.getLogger(__name__)

# Deeper than any row, and not so deep that a library fails.
MAX_DEPTH = 50
INDEX_COLUMN = "Unnamed: 0"
# Rows of a Parquet file that are held at a time.
_AT_ONCE = 1_000
# The line on which a record begins, from 1, and its fields.
_Record = tuple[int, list[str]]
_Records = Callable[[], Iterator[_Record]]


@dataclass(frozen=True)
class RowStream:
    """
    The rows of a file, in their order. Every pass over it reads the file.

    Args:
        source (`str`): the file, for messages.
        read (`Callable`): begins a pass over the place of each row, for messages, and the row, column name to value.

    Raises:
        InputError: in a pass, at what is wrong with the file; and if there is no row.
    """

    source: str
    read: Callable[[], Iterator[tuple[str, Mapping[str, Any]]]]

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        empty = True
        for placed in self.read():
            empty = False
            yield placed
        if empty:
            raise InputError(f"The file {self.source} has no rows; give a file with at least one.")

    def changed(self, change: Callable[[Mapping[str, Any], str], Mapping[str, Any]]) -> "RowStream":
        """The stream of what `change` makes of each row and its place."""
        return RowStream(self.source, lambda: ((place, change(row, place)) for place, row in self.read()))


def tsv_rows(path: Path, column_names: list[str] | None = None, skip_incomplete: bool = False) -> RowStream:
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
    return _table(path, partial(_literal, path, "\t"), column_names, skip_incomplete)


def csv_rows(
    path: Path, column_names: list[str] | None = None, delimiter: str | None = None, quoting: int | None = None
) -> RowStream:
    """
    A CSV file. Its fields are quoted as spreadsheets do it, and a quoted field may span lines.

    Args:
        path (`Path`): the file.
        column_names (`list[str]`, *optional*): the columns of a file without a header line.
        delimiter (`str`, *optional*): one character. By default what Excel's line `sep=;` before the header says, or
            what parts the names of the header line: a comma, a tab, a semicolon or a vertical bar. Where several of
            these stand between the names, it is the first one that parts the first rows into as many fields.
        quoting (`int`, *optional*): 3 if quotes are text, as in Python's `csv` and in pandas; 0 if they are not. By
            default 0, but a file that can be read both ways, with other rows, is refused, and one with tabs whose
            quotes are not used as in a CSV file is read as text.

    Raises:
        InputError: as in [`tsv_rows`], and for quotes that can be read in two ways.
    """
    said = _SAYS_DELIMITER.fullmatch(next(text_lines(path), "").rstrip("\r\n"))
    before = 1 if said else 0
    mark = delimiter or (said[1] if said else _delimiter_of(path))
    literal, quoted = partial(_literal, path, mark, before), partial(_quoted, path, mark, before)
    if quoting == csv.QUOTE_NONE:
        return _table(path, literal, column_names)
    count, whole = _counted(literal)
    try:
        quoted_count = sum(1 for _ in quoted())
    except csv.Error as error:
        if quoting is None and mark == "\t" and whole:
            return _table(path, literal, column_names)
        line = int(str(error.__notes__[0]))
        raise InputError(
            f"Line {line} of {path} is not valid CSV ({error}); the file may be cut off, or a quote may be left open. "
            "Where quotes are text, say so in the task file with dataset_kwargs: {quoting: 3}, or write JSON lines."
        ) from error
    if whole and quoted_count > count:
        raise InputError(
            f"The file {path} has carriage returns within its lines, which end a row of CSV but no line of text; "
            "put the fields that hold them in quotes, or drop them."
        )
    if quoting is None and whole and quoted_count != count:
        raise InputError(
            f"A quote on line {_line_of_quote(literal, quoted)} of {path} opens a field that goes on over the next "
            "line, but as text every line is a row of its own; say in the task file which is meant, with "
            "dataset_kwargs: {quoting: 3} where quotes are text, or {quoting: 0}, or write JSON lines."
        )
    return _table(path, quoted, column_names)


def _counted(records: _Records) -> tuple[int, bool]:
    """How many records there are, and whether all have equally many fields."""
    widths, count = set(), 0
    for _, fields in records():
        widths.add(len(fields))
        count += 1
    return count, len(widths) == 1


def _line_of_quote(literal: _Records, quoted: _Records) -> int:
    """The line before the first that is a row of its own as text alone."""
    last = 1
    theirs = quoted()
    for mine, _ in literal():
        record = next(theirs, None)
        if record is None:
            return last
        if record[0] != mine:
            return mine - 1
        last = record[0]
    return last


def _literal(path: Path, delimiter: str, before: int = 0) -> Iterator[_Record]:
    """Records where quotes are text; `before`: lines before the header."""
    for number, line in enumerate(text_lines(path), 1):
        if number > before and line.strip():
            yield number, line.removesuffix("\n").removesuffix("\r").split(delimiter)


def _quoted(path: Path, delimiter: str, before: int = 0) -> Iterator[_Record]:
    """Records where quotes are not; a `csv.Error` has the line on which a record begins as its note."""
    limit = csv.field_size_limit(path.stat().st_size + 1)  # by default 131,072 characters
    line = 1 + before
    try:
        reader = csv.reader(islice(_csv_lines(path), before, None), delimiter=delimiter, strict=True)
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1 + before
    except csv.Error as error:
        error.add_note(str(line))
        raise
    finally:
        csv.field_size_limit(limit)


def _csv_lines(path: Path) -> Iterator[str]:
    """Lines as the `csv` module takes them: a carriage return ends one, too."""
    for line in text_lines(path):
        if "\r" in line:
            yield from io.StringIO(line, newline="")
        else:
            yield line


# What Excel writes before the header, for itself.
_SAYS_DELIMITER = re.compile(r'"?sep=([^"\w])"?', re.IGNORECASE)
_DELIMITERS = (",", "\t", ";", "|")
# Records that tell which of several marks parts fields, and which is a part of a name.
_TELLING = 20


def _delimiter_of(path: Path) -> str:
    """What parts the names of the header line; a comma where nothing does, for then there is one column."""
    bare = re.sub(r'"[^"]*"', "", next(text_lines(path), ""))
    marks = [mark for mark in _DELIMITERS if mark in bare]
    if len(marks) < 2:
        return marks[0] if marks else ","
    for mark in marks:
        with suppress(csv.Error):
            if len({len(fields) for _, fields in islice(_quoted(path, mark), _TELLING)}) == 1:
                return mark
    return marks[0]


def _table(path: Path, records: _Records, names: list[str] | None, skip_incomplete: bool = False) -> RowStream:
    """Rows of records, of which the first one holds the names of the columns unless they are given."""
    has_header = names is None
    if names is None:
        first = next(records(), None)
        if first is None:
            raise InputError(f"The file {path} is empty; it should start with a line of column names.")
        names = first[1]
        if names[0] == "" and len(names) > 1:
            names = [INDEX_COLUMN, *names[1:]]  # where pandas writes its index, and under the name that it reads
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise InputError(
                f"The first line of {path} should name the columns, each once, but it is: "
                f"{', '.join(map(repr, names))}."
            )
    return RowStream(str(path), partial(_table_rows, path, records, names, has_header, skip_incomplete))


def _table_rows(
    path: Path, records: _Records, names: list[str], has_header: bool, skip_incomplete: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    found = records()
    if has_header:
        next(found)
    kept, broken = 0, []
    for line, fields in found:
        if len(fields) == len(names):
            kept += 1
            yield f"line {line} of {path}", dict(zip(names, fields, strict=True))
        elif skip_incomplete:
            broken.append(line)
        else:
            raise InputError(
                f"Line {line} of {path} has {len(fields)} fields, but {len(names)} are expected "
                f"({', '.join(names)}); the file may be cut off, or be in another format."
            )
    if broken:
        logger.warning(
            "Left out %d incomplete rows of %s, the first on line %d; %d rows remain.",
            len(broken),
            path,
            broken[0],
            kept,
        )


def json_rows(path: Path) -> RowStream:
    """
    A file of JSON objects: one a line, or one array of them. An array is held as a whole, lines are not.

    Raises:
        InputError: if the file is missing, empty, not UTF-8, or a row is broken JSON, no object, nested too deep or
            has a key twice.
    """
    first = next((line for line in text_lines(path) if line.strip()), "").strip()
    if first in ("{", '{"data": [', '{"rows": ['):
        raise InputError(
            f"The file {path} is one JSON object over several lines; write one object a line for each row, or one "
            "array of them."
        )
    return RowStream(str(path), partial(_array_rows if first.startswith("[") else _json_lines, path))


def _array_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, record in enumerate(parse_json("".join(text_lines(path)), 1, path)):
        place = f"row {index} of {path}"
        yield place, _object_of(record, place)


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text_lines(path), 1):
        if line.strip():
            place = f"line {number} of {path}"
            yield place, _object_of(parse_json(line, number, path), place)


def _object_of(record: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise InputError(
            f"{place[0].upper()}{place[1:]} is {type(record).__name__}, not a JSON object; a row looks "
            'like {"text": "…", "label": 0}.'
        )
    return record


class _DoubleKeyError(Exception):
    """A JSON object has a key twice."""


def parse_json(text: str, line: int, path: Path, advice: str = "the file may be cut off") -> Any:
    """
    What a JSON text of a file says.

    Args:
        text (`str`): the text.
        line (`int`): the line of the file on which it begins, for messages.
        path (`Path`): the file, for messages.
        advice (`str`, *optional*): what is said of a text that is broken.

    Raises:
        InputError: if it is broken, nested too deep, or has a key twice.
    """
    place = f"Line {line} of {path}"
    try:
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(text)
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        # What is missing at the end is missing on the last line with anything on it.
        line += text.count("\n", 0, min(error.pos, len(text.rstrip())))
        raise InputError(f"Line {line} of {path} is not valid JSON ({error.msg}); {advice}.") from error
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


def parquet_rows(path: Path) -> RowStream:
    """
    A Parquet file; values are as their types say, and what is missing is `None`.

    Raises:
        InputError: if the file is missing, empty, damaged or no Parquet file, or names a column twice.
    """
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path.")
    with _parquet_errors(path):
        names = pyarrow.parquet.read_schema(path).names
    if len(set(names)) < len(names):
        raise InputError(f"The file {path} should name its columns, each once, but they are: {listed(names)}.")
    return RowStream(str(path), partial(_parquet_records, path))


def _parquet_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    import pyarrow.parquet

    index = 0
    with _parquet_errors(path):
        batches = pyarrow.parquet.ParquetFile(path, pre_buffer=False).iter_batches(batch_size=_AT_ONCE)
    while True:
        with _parquet_errors(path):
            batch = next(batches, None)
            records = [] if batch is None else batch.to_pylist(maps_as_pydicts="strict")
        if batch is None:
            return
        for record in records:
            yield f"row {index} of {path}", record
            index += 1


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise InputError(
            f"The file {path} cannot be read as Parquet ({first_line(error)}); it may be cut off, or be in another "
            "format: name it by what it holds."
        ) from error


# A user's files, by the ends of their names. What spreadsheets and pandas write as .tsv has quotes, as a CSV file.
STREAMS: dict[str, Callable[[Path], RowStream]] = {
    ".csv": csv_rows,
    ".tsv": partial(csv_rows, delimiter="\t"),
    ".jsonl": json_rows,
    ".json": json_rows,
    ".parquet": parquet_rows,
}
