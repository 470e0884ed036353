"""The rows of a user's table, all of them: tab-separated, CSV, JSON, JSON lines and Parquet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.row_streams import STREAMS, RowStream, csv_rows, json_rows, parquet_rows, tsv_rows
from sinkd_llm.text_lines import NotUtf8Error, text_lines


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


def collected(stream: RowStream) -> Rows:
    """All rows of a stream, with its errors."""
    placed = list(stream)
    return Rows([row for _, row in placed], stream.source, [place for place, _ in placed])


def read_tsv(path: Path, column_names: list[str] | None = None, skip_incomplete: bool = False) -> Rows:
    """All rows of [`~sinkd_llm.row_streams.tsv_rows`]."""
    return collected(tsv_rows(path, column_names, skip_incomplete))


def read_csv(
    path: Path, column_names: list[str] | None = None, delimiter: str | None = None, quoting: int | None = None
) -> Rows:
    """All rows of [`~sinkd_llm.row_streams.csv_rows`]."""
    return collected(csv_rows(path, column_names, delimiter, quoting))


def read_json(path: Path) -> Rows:
    """All rows of [`~sinkd_llm.row_streams.json_rows`]."""
    return collected(json_rows(path))


def read_parquet(path: Path) -> Rows:
    """All rows of [`~sinkd_llm.row_streams.parquet_rows`]."""
    return collected(parquet_rows(path))


# The formats of benchmarks' own files, as task files name them.
READERS: dict[str, Callable[..., Rows]] = {"tsv": read_tsv, "csv": read_csv, "jsonl": read_json}


def _reader(stream: Callable[[Path], RowStream]) -> Callable[[Path], Rows]:
    return lambda path: collected(stream(path))


# A user's files, by the ends of their names.
BY_SUFFIX: dict[str, Callable[[Path], Rows]] = {suffix: _reader(stream) for suffix, stream in STREAMS.items()}


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
    try:
        return "".join(text_lines(path))
    except NotUtf8Error:
        if fallback is None:
            raise
        return path.read_bytes().decode(fallback)
