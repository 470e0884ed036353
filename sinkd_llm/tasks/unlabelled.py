"""Rows without labels: a raw file as rows of a task, and which of the scored rows stand among them.

A raw file may have millions of rows: it is read as a stream, pass by pass.
"""

import hashlib
import os
from array import array
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.row_streams import STREAMS, RowStream, csv_rows, tsv_rows
from sinkd_llm.tasks.loading import SPLIT_KEYS, column_types, csv_options, with_columns, with_types_of
from sinkd_llm.tasks.rendering import UNLABELLED, Example, RowRenderer
from sinkd_llm.text_lines import text_lines
from sinkd_llm.values import listed, plain, shown, without_text

if TYPE_CHECKING:
    import datasets

_TABLES = (".csv", ".tsv")
SUFFIXES = (".txt", *STREAMS)
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
    if os.path.isdir(os.path.expanduser(path)):
        raise InputError(f"unlabelled_file is the folder {path}; give a file of rows in it.")
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(
            f"The file {path} of rows without labels ends in {shown(Path(path).suffix)}; name it by what it holds, "
            f"{', '.join(SUFFIXES)} (one text a line in .txt)."
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


def unlabelled_rows(
    file: Path, config: Mapping[str, Any], task_file: Path, columns: AbstractSet[str], suffix: str | None = None
) -> RowStream:
    """
    The rows of a raw file, with the columns of the task's rows as far as they can be told.

    Args:
        file (`Path`): of [`find_file`].
        config (`Mapping[str, Any]`): the keys of the task file. A `.tsv` file for a benchmark whose own files are tsv
            is read as these, where quotes are text; columns are made of others as in these files; CSV files are read
            with the options of the task's own.
        task_file (`Path`): for messages.
        columns (`set[str]`): what the task reads of a row. A `.txt` file needs a task that reads one.
        suffix (`str`, *optional*): the end of a name that says what the file holds. Default: the end of its own.

    Raises:
        InputError: see [`~sinkd_llm.row_streams`]; for a `.txt` file of a task that reads other than one column, and
            in a pass for an empty line.
    """
    suffix = suffix or file.suffix.lower()
    local = config.get("metadata", {}).get("local", {})
    if suffix == ".txt":
        return _texts_of(file, config["task"], columns)
    if suffix == ".tsv" and local.get("format") == "tsv":
        rows = tsv_rows(file)
    elif suffix == ".csv":
        rows = csv_rows(file, **csv_options(config, task_file))
    else:
        rows = STREAMS[suffix](file)
    if suffix in _TABLES and config["dataset_path"] == "csv":
        types = column_types(row for _, row in rows)
        rows = rows.changed(lambda row, _: with_types_of(row, types))
    made = {name: source for name, source in local.get("columns", {}).items() if name in columns}
    return rows.changed(lambda row, where: _completed(row, made, where))


def _completed(row: Mapping[str, Any], made: Mapping[str, str | list[str]], where: str) -> Mapping[str, Any]:
    """The row with the columns that a benchmark's own file calls otherwise, where it has these and not the columns."""
    possible = {
        name: sources
        for name, sources in made.items()
        if name not in row
        and all(source.split(".")[0] in row for source in ([sources] if isinstance(sources, str) else sources))
    }
    return with_columns(row, possible, where) if possible else row


def _texts_of(file: Path, task: str, columns: AbstractSet[str]) -> RowStream:
    if len(columns) != 1:
        what = f"the columns {', '.join(sorted(columns))}" if columns else "no column"
        raise InputError(
            f"The file {file} holds one text a line, but the task {task!r} reads {what} of a row; give rows with "
            f"these columns, in a file that ends in {', '.join(STREAMS)}."
        )
    (column,) = columns
    return RowStream(str(file), partial(_lines, file, column))


def _lines(file: Path, column: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    empty = 0  # the first line without a text after those that have one: at the end there may be some
    for number, line in enumerate(text_lines(file), 1):
        if not line.strip():
            empty = empty or number
            continue
        if empty:
            raise InputError(f"There is no text on line {empty} of {file}; drop the line, for every line is a row.")
        yield f"line {number} of {file}", {column: line.removesuffix("\n").removesuffix("\r")}


def unlabelled_examples(
    rows: RowStream, renderer: RowRenderer, task: str, kept: "np.ndarray[Any, np.dtype[np.int64]] | None"
) -> Iterator[tuple[Example, str]]:
    """
    The examples of rows without labels, in the order of the file, each with its place.

    Args:
        rows ([`~sinkd_llm.row_streams.RowStream`]): the file's.
        renderer ([`RowRenderer`]): of the task.
        task (`str`): the task's name.
        kept (`np.ndarray`, *optional*): the numbers of the rows that are wanted, in increasing order. Default: all.

    Raises:
        InputError: as [`RowRenderer`], and for a row without text, by its place.
    """
    columns = renderer.columns_read()
    numbers = count() if kept is None else iter(kept.tolist())
    wanted = next(numbers)
    for index, (where, row) in enumerate(rows):
        if index != wanted:
            continue
        yield unlabelled_example(row, where, index, renderer, task, columns), where
        wanted = next(numbers, None)
        if wanted is None:
            return


def unlabelled_example(
    row: Mapping[str, Any], where: str, index: int, renderer: RowRenderer, task: str, columns: AbstractSet[str]
) -> Example:
    """
    The example of a row without a label.

    Args:
        row (`Mapping[str, Any]`): column name to value; a label that it has is not looked at.
        where (`str`): its place, for messages.
        index (`int`): its number, for the id of a row that has none of its own.
        renderer ([`RowRenderer`]): of the task.
        task (`str`): the task's name.
        columns (`set[str]`): what the renderer reads of a row.

    Raises:
        InputError: as [`RowRenderer`], and for a row without text, by its place.
    """
    example = renderer.example(renderer.draft(row, index, UNLABELLED, where), task, UNLABELLED, None)
    _refuse_empty(row, where, columns, example.text)
    own = own_id(row)
    return example if own is None else replace(example, id=own)


def _refuse_empty(row: Mapping[str, Any], where: str, columns: AbstractSet[str], text: str | None) -> None:
    """Refuses a row that says nothing, neither in these columns nor in the text that an encoder reads."""
    read = [text] if text is not None else [row[name] for name in columns if name in row]
    if read and all(isinstance(value, str) and not value.strip() for value in read):
        raise InputError(
            f"There is no text on {where}: {listed(sorted(columns))} is empty; correct the row, or drop it."
        )


def own_id(row: Mapping[str, Any]) -> str | None:
    """The id that a row has in a column `id`; `None` for a row without."""
    value = plain(row.get("id"))
    return None if without_text(value) else str(value).strip() or None


def counted_rows(rows: RowStream, task: str) -> int:
    """
    How many rows there are, after a pass over all of them that looks at their ids.

    Args:
        rows ([`~sinkd_llm.row_streams.RowStream`]): the file's.
        task (`str`): the task's name, with which the ids of its other rows begin.

    Raises:
        InputError: for an id that two rows have, or that is a name of the rows of the task's splits.
    """
    total, hashes = 0, array("Q")  # 8 bytes a row, where the ids themselves would not fit into memory
    reserved = tuple(f"{task}-{split}-" for split in SPLIT_KEYS)
    for where, row in rows:
        total += 1
        name = own_id(row)
        if name is None:
            continue
        if name.startswith(reserved):
            raise InputError(
                f"The id {shown(name)} of {where} is that of a row of the task's splits; give the row another, or "
                "call the column otherwise."
            )
        hashes.append(_hash(name))
    distinct, times = np.unique(np.asarray(hashes), return_counts=True)
    if len(distinct) < len(hashes):
        _refuse_repeated(rows, {*distinct[times > 1].tolist()})
    return total


def _refuse_repeated(rows: RowStream, hashes: AbstractSet[int]) -> None:
    """Names two rows with one id, among those whose ids have these hashes; different ids may share one."""
    first: dict[str, str] = {}
    for where, row in rows:
        name = own_id(row)
        if name is not None and _hash(name) in hashes and first.setdefault(name, where) != where:
            raise InputError(
                f"The id {shown(name)} of {where} is also the id of {first[name]}; give each row its own, or call the "
                "column otherwise."
            )


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


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
