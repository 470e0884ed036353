"""Where the rows of a task come from: a local benchmark folder, the user's own files, or the hub."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError, first_line, nearest
from sinkd_llm.row_files import READERS, Rows, read_csv, read_json
from sinkd_llm.row_splits import Part, indices_of, is_part, names_in, parts_of, rows_in_both
from sinkd_llm.tasks.formats import BENCHMARK_READERS
from sinkd_llm.tasks.labels import says_no_label
from sinkd_llm.tasks.schema import as_written
from sinkd_llm.values import listed, shown

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_KEYS = {"train": "training_split", "validation": "validation_split", "test": "test_split"}


def load_rows(config: Mapping[str, Any], path: Path, split: str, data_dir: Path | None) -> Rows:
    """
    The rows of one split, with the column names and integer labels of the hub's data set.

    Args:
        config (`Mapping[str, Any]`): the keys of the task file.
        path (`Path`): the task file; relative `data_files` are looked up beside it.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        data_dir (`Path`, *optional*): a folder in the benchmark's original format, or its parent. It needs
            `metadata.local` in the task file. For a task with `data_files` it is where these are looked
            up first.

    Raises:
        InputError: if the task has no such split, or its data cannot be found or read.
    """
    if not isinstance(split, str) or split not in SPLIT_KEYS:
        raise InputError(
            f"Unknown split {shown(split)}.{nearest(str(split)[:100], list(SPLIT_KEYS))} Known splits: "
            f"{', '.join(SPLIT_KEYS)}."
        )
    split_name = config.get(SPLIT_KEYS[split])
    if split_name is None:
        declared = [name for name, key in SPLIT_KEYS.items() if config.get(key)]
        raise InputError(
            f"The task {config['task']!r} has no {split} split: {SPLIT_KEYS[split]} is not set in {path}. "
            f"It has {' and '.join(declared) or 'none at all'}."
        )
    if data_dir is not None and not data_dir.is_dir():
        raise InputError(f"The data folder {data_dir} does not exist; check data_dir.")
    if config["dataset_path"] in ("csv", "json"):
        return _own_files(config, path, split_name, data_dir)
    if data_dir is not None:
        return _benchmark_folder(config, path, split, data_dir)
    return _hub(config, split_name)


def local_files(config: Mapping[str, Any], path: Path, split: str, data_dir: Path | None) -> list[Path]:
    """
    The files that [`load_rows`] reads for a split; none where they come from the hub, or cannot be told.

    Args:
        config, path, split, data_dir: as for [`load_rows`], which refuses what is wrong with them.
    """
    if config["dataset_path"] in ("csv", "json"):
        files = config.get("dataset_kwargs", {}).get("data_files")
        if not isinstance(files, dict):
            found = [files]
        else:
            spec = str(config.get(SPLIT_KEYS[split]))
            found = [files.get(name) for name in (names_in(spec) if is_part(spec) and spec not in files else (spec,))]
        listed = [name for names in found if isinstance(names, str | list) for name in _listed(names)]
        return [_find(str(name), path, data_dir) for name in listed]
    local = config.get("metadata", {}).get("local")
    if data_dir is None or local is None or split not in local["files"]:
        return []
    return [file for file in _candidates(local, split, data_dir) if file.is_file()][:1]


def _candidates(local: Mapping[str, Any], split: str, data_dir: Path) -> list[Path]:
    """Where a benchmark's file may be, in the order in which it is looked for."""
    folders, names = _listed(local["folder"]), _listed(local["files"][split])
    return [data_dir / folder / name for folder in folders for name in names] + [data_dir / name for name in names]


def _benchmark_folder(config: Mapping[str, Any], path: Path, split: str, data_dir: Path) -> Rows:
    local = config.get("metadata", {}).get("local")
    if local is None:
        raise InputError(
            f"The task {config['task']!r} does not say how its files look (metadata.local in {path}), so "
            "data_dir cannot be used; leave it out to read the hub, or add metadata.local."
        )
    if split not in local["files"]:
        raise InputError(
            f"The task {config['task']!r} has no local file for its {split} split; its files are "
            f"{', '.join(_listed(names)[0] for names in local['files'].values())}."
        )
    folders, names = _listed(local["folder"]), _listed(local["files"][split])
    candidates = _candidates(local, split, data_dir)
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise InputError(
            f"The task {config['task']!r} needs the file {folders[0]}/{names[0]} in the data folder "
            f"{data_dir}, but there is none of {', '.join(map(str, candidates))}."
        )
    arguments: dict[str, Any] = {"column_names": local["column_names"]} if "column_names" in local else {}
    if "incomplete_rows" in local:
        arguments["skip_incomplete"] = True
    if "members" in local:
        arguments["member"] = local["members"][split]
    rows = _as_on_hub((READERS | BENCHMARK_READERS)[local["format"]](file, **arguments), local)
    spec = str(config[SPLIT_KEYS[split]])
    return _part_of(rows, spec) if is_part(spec) else rows


def _part_of(rows: Rows, spec: str) -> Rows:
    """The part of a file's rows that a split names."""
    names = names_in(spec)
    if len(names) > 1:
        raise InputError(
            f"The split {shown(spec)} is made of several, and with data_dir a split is one file; name one of them."
        )
    kept = indices_of(parts_of(spec, {names[0]: len(rows)}))
    return replace(rows, rows=[rows.rows[i] for i in kept], places=[rows.where(i) for i in kept])


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _as_on_hub(rows: Rows, local: Mapping[str, Any]) -> Rows:
    """The rows with the hub's column names (`columns`) and label indices (`labels`)."""
    labels = {as_written(raw): index for raw, index in local.get("labels", {}).items()}
    label_column = local.get("label_column", "label")
    converted = []
    for index, row in enumerate(rows.rows):
        row = with_columns(row, local.get("columns", {}), rows.where(index))
        if labels and label_column in row:
            raw = as_written(row[label_column])
            if raw not in labels and not says_no_label(row[label_column]):
                raise InputError(
                    f"The label {row[label_column]!r} of {rows.where(index)} is none of {listed(list(labels))}; "
                    "correct the row, or check that data_dir holds this task's files."
                )
            row[label_column] = labels.get(raw)
        converted.append(row)
    return Rows(converted, rows.source, rows.places, frozenset({label_column} if labels else ()))


def with_columns(row: Mapping[str, Any], columns: Mapping[str, str | list[str]], where: str) -> dict[str, Any]:
    """
    The row with columns that are made of others.

    Args:
        row (`Mapping[str, Any]`): as a benchmark's file has it.
        columns (`Mapping`): the name of a column to the one or several that it is made of (`metadata.local.columns`).
        where (`str`): which row it is, for messages.

    Raises:
        InputError: if the row lacks one of these.
    """
    made = dict(row)
    for target, sources in columns.items():
        values = [_field(made, source, where) for source in _listed(sources)]
        # Several columns become one text; an empty one, such as a missing title, leaves no gap.
        made[target] = (
            values[0] if len(values) == 1 else " ".join(str(value).strip() for value in values if str(value).strip())
        )
    return made


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    """A column, or, for a name such as `target.span1_text`, what stands in a JSON object under it."""
    if name in row:
        return row[name]
    value: Any = row
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise InputError(
                f"The column {name!r} is not in {where}.{nearest(name, list(row))} Its columns are {', '.join(row)}; "
                "check that data_dir holds this task's files and that they name these columns."
            )
        value = value[key]
    return value


def _own_files(config: Mapping[str, Any], path: Path, split_name: str, data_dir: Path | None) -> Rows:
    kind, kwargs = config["dataset_path"], dict(config.get("dataset_kwargs", {}))
    data_files = kwargs.pop("data_files", None)
    options = csv_options(config, path)
    kwargs = {key: value for key, value in kwargs.items() if key not in options}
    if kwargs:
        known = "data_files, delimiter and quoting" if kind == "csv" else "data_files"
        raise InputError(
            f"dataset_kwargs.{next(iter(kwargs))} in {path} is not supported; for dataset_path {kind}, "
            f"dataset_kwargs may hold {known}."
        )
    if not isinstance(data_files, dict):
        # As in `datasets`, files without a split name are the train split.
        data_files = {"train": data_files} if data_files else {}
    whole = split_name in data_files or not is_part(split_name)  # a split may have any name
    names = (split_name,) if whole else names_in(split_name)
    splits = {name: _split_of_files(name, data_files, kind, options, path, data_dir) for name in names}
    if whole:
        return splits[split_name]
    parts = parts_of(split_name, {name: len(rows) for name, rows in splits.items()})
    placed = [(splits[part.split], index) for part in parts for index in range(part.start, part.stop)]
    source = next(iter(splits.values())).source
    return Rows([rows.rows[i] for rows, i in placed], source, [rows.where(i) for rows, i in placed])


def _split_of_files(
    split_name: str,
    data_files: Mapping[str, Any],
    kind: str,
    options: Mapping[str, Any],
    path: Path,
    data_dir: Path | None,
) -> Rows:
    """All rows of the files of one split."""
    if split_name not in data_files:
        raise InputError(
            f"dataset_kwargs.data_files in {path} has no files for the split {split_name!r}; write "
            f"data_files: {{{split_name}: file.{'csv' if kind == 'csv' else 'jsonl'}}}."
        )
    names = data_files[split_name]
    if not names or not isinstance(names, str | list):
        raise InputError(
            f"dataset_kwargs.data_files.{split_name} in {path} is {names!r}; give a file name or a list of them."
        )
    tables = []
    for name in [names] if isinstance(names, str) else names:
        file = _find(str(name), path, data_dir)
        if kind == "json":
            tables.append(read_json(file))
        else:
            tables.append(with_types(read_csv(file, **options)))
    return Rows(
        [row for table in tables for row in table.rows],
        tables[0].source,
        [table.where(index) for table in tables for index in range(len(table))],
    )


def _find(name: str, path: Path, data_dir: Path | None) -> Path:
    # lm-evaluation-harness looks in the working directory; a task that ships beside its data should
    # not depend on it, so the task file's own folder comes first.
    folders = [*([data_dir] if data_dir else []), path.parent, Path.cwd()]
    for folder in folders:
        with contextlib.suppress(OSError):  # a name that is too long names no file
            if (file := folder / os.path.expanduser(name)).is_file():
                return file
    raise InputError(
        f"The data file {shown(name)} of {path} does not exist; looked in "
        f"{', '.join(str(folder) for folder in dict.fromkeys(folders))}. Give the folder that holds it as data_dir."
    )


def csv_options(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """
    How a task's own CSV files are read (`dataset_kwargs`): their `delimiter` and `quoting`, if the task says so.

    Raises:
        InputError: for another value than one character, and 0 or 3.
    """
    kwargs = config.get("dataset_kwargs", {}) if config["dataset_path"] == "csv" else {}
    options = {key: kwargs[key] for key in ("delimiter", "quoting") if key in kwargs}
    delimiter, quoting = options.get("delimiter", ","), options.get("quoting", 0)
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        raise InputError(
            f"dataset_kwargs.delimiter in {path} is {shown(delimiter)}; it is the one character that parts the "
            'fields, such as ";" or "\\t".'
        )
    if quoting not in (0, 3) or isinstance(quoting, bool):
        raise InputError(
            f"dataset_kwargs.quoting in {path} is {shown(quoting)}; it is 0 (quotes as spreadsheets write them) or 3 "
            "(quotes are text)."
        )
    return options


def with_types(rows: Rows) -> Rows:
    """Columns of whole numbers as integers and of true and false as booleans, as `datasets` reads a CSV file."""
    types = column_types(rows.rows)
    return Rows([with_types_of(row, types) for row in rows.rows], rows.source, rows.places)


def column_types(rows: Iterable[Mapping[str, str]]) -> dict[str, Callable[[str], Any]]:
    """What makes numbers and truth values of the columns of a CSV file that hold nothing else, in one pass."""
    whole: set[str] | None = None
    truth: set[str] = set()
    for row in rows:
        if whole is None:
            whole, truth = {*row}, {*row}
        if whole:
            whole -= {column for column in whole if not _WHOLE.fullmatch(row[column])}
        if truth:
            truth -= {column for column in truth if row[column] not in _TRUTH}
    return {**dict.fromkeys(whole or (), int), **dict.fromkeys(truth, _TRUTH.__getitem__)}


def with_types_of(row: Mapping[str, str], types: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """A row with the columns that [`column_types`] names as what they are."""
    return {**row, **{column: kind(row[column]) for column, kind in types.items()}}


# Without leading zeros, which belong to names such as 007, and no longer than a number of 64 bits.
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})", flags=re.ASCII)
_TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


def shared_rows(config: Mapping[str, Any], path: Path, data_dir: Path | None) -> int:
    """
    How many rows a task's training split and its validation split have in common, where these are parts of splits.

    Args:
        config, path, data_dir: as for [`load_rows`].

    Returns:
        `int`: 0 where both are the same text, which nobody writes by mistake.

    Raises:
        InputError: as [`load_rows`].
    """
    specs = [str(config[key]) for key in (SPLIT_KEYS["train"], SPLIT_KEYS["validation"]) if config.get(key)]
    own_files = config["dataset_path"] in ("csv", "json")
    # In a benchmark's folder each split is a file of its own.
    if len({*specs}) < 2 or not any(map(is_part, specs)) or (data_dir is not None and not own_files):
        return 0
    files = config.get("dataset_kwargs", {}).get("data_files") if own_files else None
    whole = {*files} if isinstance(files, dict) else set()  # a split may have any name
    names = [{spec} if spec in whole or not is_part(spec) else {*names_in(spec)} for spec in specs]
    if not names[0] & names[1]:
        return 0

    def length(name: str) -> int:
        return len(_own_files(config, path, name, data_dir)) if own_files else len(_hub_split(config, name))

    lengths = {name: length(name) for name in names[0] | names[1]}
    parts = [
        [Part(spec, 0, lengths[spec])] if spec in lengths else parts_of(spec, {name: lengths[name] for name in its})
        for spec, its in zip(specs, names, strict=True)
    ]
    return rows_in_both(*parts)


def _hub(config: Mapping[str, Any], split_name: str) -> Rows:
    import datasets

    data = _hub_split(config, split_name)
    classes = {column for column, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)}
    return Rows(data.to_list(), f"{_hub_name(config)}, split {split_name}", index_columns=frozenset(classes))


def _hub_name(config: Mapping[str, Any]) -> str:
    return str(config["dataset_path"]) + (f" ({config['dataset_name']})" if "dataset_name" in config else "")


def _hub_split(config: Mapping[str, Any], split_name: str) -> "Dataset":
    import datasets

    name = _hub_name(config)
    kwargs = dict(config.get("dataset_kwargs", {}))
    kwargs.pop("trust_remote_code", None)  # `datasets` runs no scripts any more and refuses the word
    try:
        data = datasets.load_dataset(config["dataset_path"], config.get("dataset_name"), split=split_name, **kwargs)
    except Exception as error:  # the hub fails in many ways: network, name, configuration, split
        raise InputError(
            f"The data set {name}, split {split_name!r}, of the task {config['task']!r} could not be "
            f"loaded ({first_line(error)}). {_local_advice(config)}"
        ) from error
    if not isinstance(data, datasets.Dataset):
        raise InputError(
            f"The data set {name} came as {type(data).__name__}, which has no length; drop streaming from "
            "dataset_kwargs."
        )
    return data


def _local_advice(config: Mapping[str, Any]) -> str:
    local = config.get("metadata", {}).get("local")
    if local is None:
        return "Check the name and the network."
    files = ", ".join(_listed(names)[0] for names in local["files"].values())
    folder = _listed(local["folder"])[0]
    return f"Check the network, or pass --data_dir with the folder that holds {folder} ({files})."


def without_gaps(rows: Rows, column: str | None) -> Rows:
    """The rows with null where some lack a column that others have."""
    if column is None or not any(column in row for row in rows.rows):
        return rows
    return replace(rows, rows=[row if column in row else {**row, column: None} for row in rows.rows])
