"""Readers for the file formats of the benchmarks: tab-separated, CSV, JSON and JSON lines.

They exist beside the loaders of `datasets` because they name the line that is wrong, read GLUE's
unquoted TSV literally, and leave no cache behind.
"""

import csv
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """
    The rows of one split and where each of them stands.

    Args:
        rows (`Sequence[dict]`): column name to value.
        source (`str`): the file or the data set, for messages.
        places (`list[str]`, *optional*): the place of each row. By default a row is named by its index.
    """

    rows: Sequence[dict[str, Any]]
    source: str
    places: list[str] | None = None

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
    lines = read_text(path).split("\n")
    # Only "\n" ends a line: a sentence may contain "\r" or Unicode's other line ends.
    records = [(n, line.removesuffix("\r").split("\t")) for n, line in enumerate(lines, 1) if line.strip()]
    return _table(path, records, column_names, skip_incomplete)


def read_csv(path: Path, column_names: list[str] | None = None, delimiter: str = ",") -> Rows:
    """A quoted CSV file; a field may span lines. Arguments and errors as in `read_tsv`."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    records, line = [], 1
    try:
        for fields in reader:
            if fields:
                records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"Line {line} of {path} is not valid CSV ({error}); the file may be cut off, or a quote may be left open."
        ) from error
    return _table(path, records, column_names)


def read_json(path: Path) -> Rows:
    """
    A file of JSON objects: one a line, or one array of them.

    Raises:
        InputError: if the file is missing, empty, not UTF-8, or a row is broken JSON or no object.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        records = _parse(text, 1, path)
        places = [f"row {index} of {path}" for index in range(len(records))]
    else:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        records = [_parse(line, n, path) for n, line in lines]
        places = [f"line {n} of {path}" for n, _ in lines]
    for place, record in zip(places, records, strict=True):
        if not isinstance(record, dict):
            raise InputError(
                f"{place[0].upper()}{place[1:]} is {type(record).__name__}, not a JSON object; a row looks "
                'like {"text": "…", "label": 0}.'
            )
    return not_empty(Rows(records, str(path), places))


def _parse(text: str, line: int, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"Line {line + error.lineno - 1} of {path} is not valid JSON ({error.msg}); the file may be cut off."
        ) from error


READERS: dict[str, Callable[..., Rows]] = {"tsv": read_tsv, "csv": read_csv, "jsonl": read_json}


def _table(
    path: Path, records: list[tuple[int, list[str]]], names: list[str] | None, skip_incomplete: bool = False
) -> Rows:
    if names is None:
        if not records:
            raise InputError(f"The file {path} is empty; it should start with a line of column names.")
        names = records.pop(0)[1]
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
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")  # spreadsheet programs put a byte order mark in front
    except UnicodeDecodeError as error:
        if fallback is not None:
            return content.decode(fallback)
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"Line {line} of {path} is not UTF-8 (byte {content[error.start]:#04x}); convert the file, "
            "for example with iconv -f latin1 -t utf-8."
        ) from error
