"""Rows without labels: a raw file as rows of a task, and which of the scored rows stand among them."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.row_files import BY_SUFFIX, Rows, not_empty, read_csv, read_text, read_tsv
from sinkd_llm.tasks.loading import SPLIT_KEYS, csv_options, with_columns, with_types
from sinkd_llm.values import listed, plain, shown, without_text

if TYPE_CHECKING:
    import datasets

_TABLES = (".csv", ".tsv")
_SUFFIXES = (".txt", *BY_SUFFIX)
# Of the rows that are compared at a time.
_AT_ONCE = 10_000
_NAMED = 5
# Stands for the label in a column of labels.
NO_LABEL = -1


def find_file(path: str | Path, task_file: Path) -> Path:
    """
    The file of rows without labels: where its path says, or else beside the task file, as the task's own data.

    Args:
        path (`str` or `Path`): as the user gave it.
        task_file (`Path`): of the task.

    Raises:
        InputError: if there is no such file, or its name does not end as one that can be read.
    """
    if not isinstance(path, str | Path) or not str(path):
        raise InputError(f"The file of rows without labels is {shown(path)}, which is no path; give the file's path.")
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"The file {path} of rows without labels ends in {shown(Path(path).suffix)}; name it by what it holds, "
            f"{', '.join(_SUFFIXES)} (one text a line in .txt)."
        )
    given = Path(os.path.expanduser(path))  # unlike `Path.expanduser`, also for a user that is not there
    for file in (given, task_file.parent / given):
        try:
            if file.is_file():
                return file
        except (OSError, ValueError):  # a name that is too long, or holds a NUL character, names no file
            continue
    raise InputError(
        f"There is no file {path} of rows without labels, neither in {given.parent.absolute()} nor beside "
        f"the task in {task_file.parent}; check the path."
    )


def read_unlabelled(file: Path, config: Mapping[str, Any], task_file: Path, columns: AbstractSet[str]) -> Rows:
    """
    The rows of a raw file, with the columns of the task's rows as far as they can be told.

    Args:
        file (`Path`): of [`find_file`].
        config (`Mapping[str, Any]`): the keys of the task file. A `.tsv` file for a benchmark whose own files are tsv
            is read as these, where quotes are text; columns are made of others as in these files; CSV files are read
            with the options of the task's own.
        task_file (`Path`): for messages.
        columns (`set[str]`): what the task reads of a row. A `.txt` file needs a task that reads one.

    Raises:
        InputError: see [`~sinkd_llm.row_files`]; for a `.txt` file with an empty line, or of a task that reads other
            than one column.
    """
    suffix = file.suffix.lower()
    local = config.get("metadata", {}).get("local", {})
    if suffix == ".txt":
        return _read_texts(file, config["task"], columns)
    if suffix == ".tsv" and local.get("format") == "tsv":
        rows = read_tsv(file)
    elif suffix == ".csv":
        rows = read_csv(file, **csv_options(config, task_file))
    else:
        rows = BY_SUFFIX[suffix](file)
    if suffix in _TABLES and config["dataset_path"] == "csv":
        rows = with_types(rows)
    made = {name: source for name, source in local.get("columns", {}).items() if name in columns}
    return Rows([_completed(row, made, rows.where(i)) for i, row in enumerate(rows.rows)], rows.source, rows.places)


def _completed(row: Mapping[str, Any], made: Mapping[str, str | list[str]], where: str) -> Mapping[str, Any]:
    """The row with the columns that a benchmark's own file calls otherwise, where it has these and not the columns."""
    possible = {
        name: sources
        for name, sources in made.items()
        if name not in row
        and all(source.split(".")[0] in row for source in ([sources] if isinstance(sources, str) else sources))
    }
    return with_columns(row, possible, where) if possible else row


def _read_texts(file: Path, task: str, columns: AbstractSet[str]) -> Rows:
    if len(columns) != 1:
        what = f"the columns {', '.join(sorted(columns))}" if columns else "no column"
        raise InputError(
            f"The file {file} holds one text a line, but the task {task!r} reads {what} of a row; give rows with "
            f"these columns, in a file that ends in {', '.join(BY_SUFFIX)}."
        )
    (column,) = columns
    lines = [line.removesuffix("\r") for line in read_text(file).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    places = [f"line {n} of {file}" for n in range(1, len(lines) + 1)]
    for line, place in zip(lines, places, strict=True):
        if not line.strip():
            raise InputError(f"There is no text on {place}; drop the line, for every line is a row.")
    return not_empty(Rows([{column: line} for line in lines], str(file), places))


def check_texts(rows: Rows, indices: Sequence[int], columns: AbstractSet[str], texts: Iterable[str | None]) -> None:
    """
    Refuses a row that says nothing.

    Args:
        rows ([`~sinkd_llm.row_files.Rows`]): the file's.
        indices (sequence of `int`): of the rows that are kept.
        columns (`set[str]`): what the task reads of a row.
        texts (iterable): the text that an encoder reads of each of them, `None` where the task does not name it.

    Raises:
        InputError: by its place.
    """
    for index, text in zip(indices, texts, strict=True):
        row = rows.rows[index]
        read = [text] if text is not None else [row[name] for name in columns if name in row]
        if read and all(isinstance(value, str) and not value.strip() for value in read):
            raise InputError(
                f"There is no text on {rows.where(index)}: {listed(sorted(columns))} is empty; correct the row, or "
                "drop it."
            )


def own_ids(rows: Rows, task: str) -> list[str | None]:
    """
    The ids that rows have in a column `id`; `None` for a row without.

    Args:
        rows ([`~sinkd_llm.row_files.Rows`]): the file's.
        task (`str`): the task's name, with which the ids of its other rows begin.

    Raises:
        InputError: for an id that two rows have, or that is a name of the rows of the task's splits.
    """
    ids: list[str | None] = []
    first: dict[str, int] = {}
    reserved = tuple(f"{task}-{split}-" for split in SPLIT_KEYS)
    for index, row in enumerate(rows.rows):
        value = plain(row.get("id"))
        name = None if without_text(value) else str(value).strip()
        ids.append(name or None)
        if not name:
            continue
        if first.setdefault(name, index) != index:
            raise InputError(
                f"The id {shown(name)} of {rows.where(index)} is also the id of {rows.where(first[name])}; give each "
                "row its own, or call the column otherwise."
            )
        if name.startswith(reserved):
            raise InputError(
                f"The id {shown(name)} of {rows.where(index)} is that of a row of the task's splits; give the row "
                "another, or call the column otherwise."
            )
    return ids


def without_label(rows: "datasets.Dataset") -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """
    Which rows have no label.

    Args:
        rows (`datasets.Dataset`): of a task; of one without choices no row has a label to lack.
    """
    if "label" not in rows.column_names:
        return np.zeros(len(rows), bool)
    mask: np.ndarray[Any, np.dtype[np.bool_]] = np.asarray(rows.with_format("numpy")["label"][:]) == NO_LABEL
    return mask


class Repeated(NamedTuple):
    """
    What [`repeated_rows`] finds.

    Args:
        total (`int`): rows of the evaluation split.
        ids (`tuple[str, ...]`): of the first five of these, in the order of the split.
    """

    total: int
    ids: tuple[str, ...]


def repeated_rows(
    evaluation: "datasets.Dataset", unlabelled: "datasets.Dataset | datasets.IterableDataset"
) -> Repeated:
    """
    The evaluation rows that also stand among rows without labels: what a student scores on these is no test of it.

    Two rows are the same if their texts (`text` and `text_pair`; where not both data sets have a `text`, the prompts)
    are, whatever their white space and case. It keeps the texts of `evaluation` in memory, not those of `unlabelled`.

    Args:
        evaluation (`datasets.Dataset`): the rows that are scored.
        unlabelled (`datasets.Dataset` or `datasets.IterableDataset`): the others.
    """
    columns = ["prompt"]
    if "text" in (evaluation.column_names or []) and "text" in (unlabelled.column_names or []):
        shared = {*(evaluation.column_names or [])} & {*(unlabelled.column_names or [])}
        columns = [name for name in ("text", "text_pair") if name in shared]
    rows: dict[str, list[int]] = {}
    for index, text in enumerate(_texts(evaluation, columns)):
        rows.setdefault(text, []).append(index)
    found: set[int] = set()
    for text in _texts(unlabelled, columns):
        found.update(rows.pop(text, ()))
        if not rows:
            break
    first = sorted(found)[:_NAMED]
    names = evaluation.select(first)["id"] if "id" in evaluation.column_names else [f"row {i}" for i in first]
    return Repeated(len(found), tuple(names))


def _texts(data: "datasets.Dataset | datasets.IterableDataset", columns: list[str]) -> Iterator[str]:
    """What a row says, in a form in which white space and case make no difference."""
    for batch in data.select_columns(columns).iter(batch_size=_AT_ONCE):
        for values in zip(*(batch[name] for name in columns), strict=True):
            # A conversation is a list of messages.
            yield "\0".join(" ".join(str(value).split()).casefold() for value in values)
