"""The rows of a run: a task's, or a data set of prompt-completion rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.inputs.row_checks import READ_COLUMNS, checked_row
from sinkd_llm.row_files import BY_SUFFIX, Rows, read_text
from sinkd_llm.row_splits import Part, is_part, keeps_places, names_in, parts_of, rows_in_both
from sinkd_llm.runs.task_rows import (
    EVALUATION_SAMPLE_SEED,
    held_out_rows,
    split_by_hash,
    training_rows,
    validation_rows,
)
from sinkd_llm.runs.teacher_rows import rows_for_teacher
from sinkd_llm.tasks.loading import SPLIT_KEYS, shared_rows
from sinkd_llm.terminal import say

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.tasks import Task


@dataclass
class RunData:
    """
    A task, if there is one, and the rows to train and to evaluate on.

    `asked`: the settings by which a teacher reads something else than the student, where they are set. `held_out`:
    training rows that are not trained on, to choose settings by. `arguments`: what they were loaded by.
    """

    name: str
    task: "Task | None"
    train: "Dataset"
    evaluation: "Dataset | None"
    asked: dict[str, str] = field(default_factory=dict)
    held_out: "Dataset | None" = None
    arguments: "TaskArguments | None" = None

    @property
    def places_known(self) -> bool:
        """Whether a row's place in its split can be told: from its id, or because all rows are here."""
        if self.arguments is None:
            return True
        if self.arguments.id_column is not None:
            return False
        if self.task is not None:  # an id says the place within what the task calls its training split
            return keeps_places(str(self.task.config.get(SPLIT_KEYS["train"], "")))
        chosen = self.arguments.max_train_samples is not None or self.arguments.validation_share > 0
        return not chosen and keeps_places(self.arguments.dataset_train_split)


def load_run_data(arguments: "TaskArguments", seed: int, keep: Sequence[str] = ()) -> RunData:
    """
    The rows that the arguments name.

    Args:
        arguments ([`TaskArguments`]): which rows.
        seed (`int`): draws the training sample, if `max_train_samples` asks for one.
        keep (sequence of `str`, *optional*): columns of the data that rows keep as text.

    Raises:
        InputError: if the task or a file is unknown, missing or malformed, or rows lack `prompt` and
            `completion`.
    """
    if arguments.task is not None:
        from sinkd_llm.tasks import load_task

        task = load_task(arguments.task, keep=keep, id_column=arguments.id_column)
        folder = None if arguments.data_dir is None else Path(arguments.data_dir).expanduser()
        specs = [task.config.get(SPLIT_KEYS[split]) for split in ("train", "validation")]
        _refuse_shared(
            shared_rows(task.config, task.path, folder),
            f"training_split of {task.path} is {specs[0]} and validation_split is {specs[1]}",
        )
        train = training_rows(task, arguments, seed)
        evaluation = validation_rows(task, arguments)
        _say_leak(train, evaluation)
        if arguments.teacher_task is not None or arguments.teacher_num_fewshot:
            train, evaluation = rows_for_teacher(task, train, evaluation, arguments, seed)
        asked = {name: getattr(arguments, name) for name in ("teacher_task", "teacher_num_fewshot")}
        asked_with = {name: str(value) for name, value in asked.items() if value}
        held_out = held_out_rows(task, arguments, seed)
        return RunData(task.name, task, train, evaluation, asked_with, held_out, arguments)
    name = str(arguments.dataset_name)
    loaded = _load_splits(name, arguments, keep)
    train, evaluation = (
        _part(loaded, split) for split in (arguments.dataset_train_split, arguments.dataset_test_split)
    )
    if train is None:
        raise InputError(
            f"the data set {name} has no split {arguments.dataset_train_split!r}; it has {', '.join(loaded)}: choose "
            "one with --dataset_train_split."
        )
    if arguments.validation_share and evaluation is not None:
        raise InputError(
            f"validation_share is {arguments.validation_share:g}, and {name} has the split "
            f"{arguments.dataset_test_split!r} to evaluate on; leave validation_share out."
        )
    _check_columns(name, train, evaluation)
    _check_apart(loaded, arguments.dataset_train_split, arguments.dataset_test_split)
    if arguments.validation_share:
        train, evaluation = split_by_hash(train, arguments.validation_share)
    train = _sample(train, arguments.max_train_samples, seed)
    if evaluation is not None:
        evaluation = _sample(evaluation, arguments.max_eval_samples, EVALUATION_SAMPLE_SEED)
    return RunData(Path(name).name, None, train, evaluation, arguments=arguments)


def _part(loaded: "Mapping[str, Dataset]", spec: str) -> "Dataset | None":
    """A split of a data set, or what a text such as `train[:80%]` names of it; `None` where there is no such split."""
    import datasets

    if spec in loaded:
        return loaded[spec]
    parts = _parts(loaded, spec)
    if not parts:
        return None
    return datasets.concatenate_datasets([loaded[part.split].select(range(part.start, part.stop)) for part in parts])


def _parts(loaded: "Mapping[str, Dataset]", spec: str) -> list[Part]:
    """What a text names of a data set; nothing where it names a split that is not there."""
    if spec in loaded:
        return [Part(spec, 0, len(loaded[spec]))]
    if not is_part(spec) or any(split not in loaded for split in names_in(spec)):
        return []
    return parts_of(spec, {split: len(rows) for split, rows in loaded.items()})


def _check_apart(loaded: "Mapping[str, Dataset]", train: str, test: str) -> None:
    """Refuses rows to evaluate on that are trained on, unless both texts say the same: nobody does so by mistake."""
    shared = 0 if train == test else rows_in_both(_parts(loaded, train), _parts(loaded, test))
    _refuse_shared(shared, f"dataset_train_split is {train} and dataset_test_split is {test}")


def _refuse_shared(shared: int, splits: str) -> None:
    if shared:
        raise InputError(
            f"{splits}: {shared:,} rows are in both, and scores on rows that are trained on are no test of the "
            "student. Name parts without a row in common, such as train[:80%] and train[80%:]."
        )


def _check_columns(name: str, *splits: "Dataset | None") -> None:
    for dataset in splits:
        if dataset is None:
            continue
        if missing := {"prompt", "completion"} - set(dataset.column_names):
            raise InputError(
                f"the rows of {name} have no column {sorted(missing)[0]!r}, only "
                f"{', '.join(dataset.column_names)}; prompt-completion rows have 'prompt' and "
                "'completion'. For a classification data set write a task file and give --task."
            )


def _say_leak(train: "Dataset", evaluation: "Dataset") -> None:
    """Says how many rows for evaluation also stand among the rows without labels, where scores would be no test."""
    from sinkd_llm.tasks.unlabelled import repeated_rows, without_label

    rows = np.flatnonzero(without_label(train))
    if not len(rows):
        return
    # Rows in one piece are read as they lie, others one by one.
    together = int(rows[-1] - rows[0]) + 1 == len(rows)
    unlabelled = train.select(range(int(rows[0]), int(rows[-1]) + 1) if together else rows)
    found = repeated_rows(evaluation, unlabelled)
    if found.total:
        say(
            f"{found.total:,} of {len(evaluation):,} rows for evaluation also stand among the rows without labels "
            f"(the first: {', '.join(found.ids)}): scores on them are no test of the student. Take them out of one of "
            "both."
        )


def _load_splits(name: str, arguments: "TaskArguments", keep: Sequence[str]) -> dict[str, Any]:
    import datasets

    path = Path(name).expanduser()
    if path.suffix.lower() in BY_SUFFIX:
        # A file is one split, whatever it is called.
        spec = arguments.dataset_train_split
        return {
            names_in(spec)[0] if is_part(spec) else spec: _rows_of_file(BY_SUFFIX[path.suffix.lower()](path), keep)
        }
    if path.is_file():
        read_text(path)  # says what a packed or binary file is, and what to do
        raise InputError(
            f"the file {path} ends in {path.suffix or 'nothing'}; name it by what it holds, {', '.join(BY_SUFFIX)}."
        )
    try:
        loaded = datasets.load_dataset(name, arguments.dataset_config)
    except Exception as error:  # network, name, configuration: the hub fails in many ways
        raise InputError(
            f"the data set {name!r} could not be loaded ({first_line(error)}). Check the name and the network, or "
            "give a local .jsonl or .csv file."
        ) from error
    return dict(loaded)


def _rows_of_file(rows: Rows, keep: Sequence[str] = ()) -> "Dataset":
    """The rows of a file as a data set of the columns that are read, each row checked by its place."""
    import datasets
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows.rows for name in row))
    missing = [name for name in ("prompt", "completion") if name not in names]
    if missing:  # refused by the caller, who knows what the columns are for
        return datasets.Dataset.from_dict({name: [] for name in names})
    # Without choices, a label and texts beside prompt and completion are the user's own.
    kept = READ_COLUMNS if "choices" in names else ("id", "prompt", "completion")
    checked = []
    for index, row in enumerate(rows.rows):
        place = rows.where(index)
        for name in ("prompt", "completion", "choices", "label"):
            if name in kept and name in names and name not in row:
                raise InputError(f"there is no {name!r} on {place}, as on other rows; correct the row, or drop it.")
        read = checked_row({name: row[name] for name in kept if name in row}, place)
        if row.get("id") is not None:
            read["id"] = str(row["id"])
        read |= {name: None if row.get(name) is None else str(row[name]) for name in keep if name in names}
        checked.append(read)
    try:
        return datasets.Dataset.from_list(checked)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"the rows of {rows.source} do not fit into one table ({first_line(error)}); give each column one type in "
            "all rows."
        ) from error


def _sample(dataset: "Dataset", limit: int | None, seed: int) -> "Dataset":
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=seed).select(range(limit))
