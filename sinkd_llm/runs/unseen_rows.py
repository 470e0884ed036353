"""Labelled rows that a student has not seen: how a run's are found again, and rows of a file in their place."""

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.answering.facts import HeldOut, StudentFacts
from sinkd_llm.errors import InputError
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.row_streams import STREAMS
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.held_out import without_texts_of
from sinkd_llm.runs.task_rows import held_out_rows, training_rows, validation_rows
from sinkd_llm.tasks.rendering import Example
from sinkd_llm.tasks.task import Task
from sinkd_llm.tasks.unlabelled import find_file, repeated_rows
from sinkd_llm.terminal import say

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.training.config import SinKDConfig

_HOW_TO = (
    "Give --rows FILE with labelled rows that the student has not seen, or train it with --heldout_share 0.1, which "
    "keeps a tenth of the training rows for this."
)
# From where on the path of a file is kept.
_TASK, _START = "task", "start"
# Characters of the hash of a row: 48 bits, by which two rows of 10,000 and a million are one in 1 of 28,000 cases.
_PRINT = 8
# More rows hardly tell a vector of at most 40 numbers anything of one of them, and the file is read with each student.
_MOST_PRINTS = 10_000


def write_facts(output_dir: Path, data: RunData, args: "SinKDConfig") -> None:
    """
    Write what a student that a run has saved needs to answer rows; nothing for rows without a task.

    Args:
        output_dir (`Path`): the folder of the run.
        data ([`RunData`]): its rows.
        args ([`SinKDConfig`]): how it read them.
    """
    if data.task is None:
        return
    settings, held_out = data.arguments, None
    if settings is not None and (settings.heldout_share or settings.validation_share or _unlabelled(settings)):
        file, base = _place_to_keep(settings.unlabelled_file, data.task)
        held_out = HeldOut(
            heldout_share=settings.heldout_share,
            max_train_samples=settings.max_train_samples,
            allow_unlabelled=settings.allow_unlabelled,
            id_column=settings.id_column,
            seed=args.sample_seed,
            validation_share=settings.validation_share,
            unlabelled_file=file,
            dataset_unlabelled_split=settings.dataset_unlabelled_split,
            max_unlabelled_samples=settings.max_unlabelled_samples,
            unlabelled_from=base,
        )
    StudentFacts.of_run(data.task, Reading.of(args), held_out, output_dir).write(output_dir)


def _place_to_keep(given: str | None, task: Task) -> tuple[str | None, str | None]:
    """The path of a file of rows without labels that says nothing of the machine, and from where on it is one."""
    if given is None:
        return None, None
    try:
        file = Path(os.path.abspath(find_file(given, task.path)))
    except InputError:  # it was there when the run read it
        return Path(given).name, None
    for base, folder in ((_TASK, task.path.parent), (_START, Path())):
        if file.is_relative_to(start := os.path.abspath(folder)):
            return file.relative_to(start).as_posix(), base
    return file.name, None


@dataclass(frozen=True)
class Unseen:
    """
    Labelled rows that a student has not seen, and the rows that it is scored on, with its task's columns.

    Attributes:
        rows ([`~datasets.Dataset`]): to calibrate and to choose a threshold on; none of them is an evaluation row.
        evaluation ([`~datasets.Dataset`], *optional*): the validation rows of the task, where it has them.
        split (`str`, *optional*): of which `rows` are: `"train"`, or `None` for those of a file.
        source (`str`): what `rows` are, in words.
    """

    rows: "Dataset"
    evaluation: "Dataset | None"
    split: str | None
    source: str

    @cached_property
    def _prints(self) -> list[str]:
        """A hash of each row's prompt: a row has the same one in another place and under another id."""
        return [
            base64.b64encode(hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=6).digest()).decode()
            for prompt in self.rows["prompt"][:]
        ]

    def prints_to_keep(self) -> str:
        """By what [`known`] knows rows again: hashes of the rows, of 8 characters each, of at most 10,000 of them."""
        return "".join(sorted({*self._prints})[:_MOST_PRINTS])

    def known(self, kept: str) -> list[int]:
        """The indices of the rows that are among those of which [`prints_to_keep`] was kept."""
        among = {kept[start : start + _PRINT] for start in range(0, len(kept), _PRINT)}
        return [index for index, one in enumerate(self._prints) if one in among]


def unseen_rows(task: Task, facts: StudentFacts, rows: str | None, data_dir: str | None, name: str) -> Unseen:
    """
    The training rows that a student's run held out, or the labelled rows of a file.

    Args:
        task ([`Task`]): the student's.
        facts ([`StudentFacts`]): say which rows were held out.
        rows (`str`, *optional*): a file of labelled rows, in a format and with the columns of the task's own.
        data_dir (`str`, *optional*): the folder of the task's data.
        name (`str`): of the student, for messages.

    Raises:
        InputError: for a task without answer choices; if nothing was held out and no file is given, with how to get
            such rows; for a file with rows for evaluation, or with rows that the student was trained on; and if no
            row is left.
    """
    if task.output_type != "multiple_choice":
        raise InputError(
            f"The answers of the task {task.name!r} are written, and what is written has no probability among choices "
            "that could be calibrated; this is for tasks with answer choices."
        )
    refuse_no_place_of_data(task, name)
    held_out = facts.held_out
    if held_out is not None and held_out.id_column is not None:
        task = Task(task.path, keys=task.config, id_column=held_out.id_column)
    arguments = TaskArguments(task=str(task.path), data_dir=data_dir)
    if held_out is not None:
        file, split = _kept_place(held_out, task), held_out.dataset_unlabelled_split
        arguments = replace(
            arguments,
            heldout_share=held_out.heldout_share,
            max_train_samples=held_out.max_train_samples,
            allow_unlabelled=held_out.allow_unlabelled,
            validation_share=held_out.validation_share,
            unlabelled_file=file,
            dataset_unlabelled_split=split,
            max_unlabelled_samples=held_out.max_unlabelled_samples if file or split else None,
        )
    scored = task.config.get("validation_split") is not None or arguments.validation_share
    evaluation = validation_rows(task, arguments) if scored else None
    if rows is not None:
        found = _rows_of_file(task, Path(os.path.expanduser(rows)))
        if evaluation is not None and (repeated := repeated_rows(evaluation, found)).total:
            raise InputError(
                f"{repeated.total:,} of the {len(evaluation):,} rows for evaluation also stand in {rows} (the first: "
                f"{', '.join(repeated.ids)}): what is fitted on them cannot be scored on them. Take them out of the "
                "file."
            )
        _refuse_trained_rows(task, arguments, held_out, found, rows)
        return Unseen(found, evaluation, None, f"rows of {rows}")
    if held_out is None or not held_out.heldout_share:
        raise InputError(f"No training rows were held out when {name} was trained: it has seen them all. {_HOW_TO}")
    kept = held_out_rows(task, arguments, held_out.seed)
    assert kept is not None
    if evaluation is not None and len(other := without_texts_of(kept, evaluation)) < len(kept):
        say(f"Left out {len(kept) - len(other):,} held-out training rows that are rows for evaluation as well.")
        kept = other
    if not len(kept):
        raise InputError(f"No held-out training row is left that is no row for evaluation. {_HOW_TO}")
    return Unseen(kept, evaluation, "train", "held-out training rows")


def _kept_place(held_out: HeldOut, task: Task) -> str | None:
    """Where the file of rows without labels lies, if that is known."""
    if held_out.unlabelled_file is None or held_out.unlabelled_from is None:
        return None
    base = task.path.parent if held_out.unlabelled_from == _TASK else Path()
    return os.path.abspath(base / held_out.unlabelled_file)


def _refuse_trained_rows(
    task: Task, arguments: TaskArguments, held_out: HeldOut | None, rows: "Dataset", name: str
) -> None:
    """Refuses training rows of the student's task, but those that its run held out."""
    seed = 0 if held_out is None else held_out.seed
    if held_out is not None and held_out.unlabelled_file is not None and arguments.unlabelled_file is None:
        say(
            f"Note: it cannot be checked whether rows of {name} were trained on without labels: where the file "
            f"{held_out.unlabelled_file} of these lies is not known, for it lay neither below the folder of the task "
            "file nor below the one where the training was started."
        )
    labelled = replace(arguments, unlabelled_file=None, dataset_unlabelled_split=None, max_unlabelled_samples=None)
    for among, one in (("", labelled), (" without labels", arguments))[: 2 if _unlabelled(arguments) else 1]:
        try:
            trained = training_rows(task, one, seed)
        except InputError as error:
            say(f"Note: it cannot be checked whether rows of {name} were trained on{among}: {error}")
            continue
        if (repeated := repeated_rows(rows, trained)).total:
            raise InputError(
                f"{repeated.total:,} of the {len(rows):,} rows of {name} are training rows{among} of {task.name!r} "
                f"that the run did not hold out (the first: {', '.join(repeated.ids)}): a student is surer of what it "
                "was trained on. Take them out of the file."
            )


def _unlabelled(arguments: TaskArguments) -> bool:
    """Whether a run trained on rows without labels beside those of the training split."""
    return arguments.unlabelled_file is not None or arguments.dataset_unlabelled_split is not None


def refuse_no_place_of_data(task: Task, name: str) -> None:
    """
    Refuses a task of which only a student's folder is known, which keeps no places of data.

    Args:
        task ([`Task`]): the student's, from its folder or as it was given.
        name (`str`): of the student, for the message.

    Raises:
        InputError: saying how to name the data.
    """
    if task.config["dataset_path"] in ("csv", "json") and "data_files" not in task.config.get("dataset_kwargs", {}):
        raise InputError(
            f"The folder of {name} does not say where the data of its task lie, for it may be used elsewhere; give "
            f"--task, a name or a YAML file: of {task.name!r}, on which it was trained."
        )


def _rows_of_file(task: Task, file: Path) -> "Dataset":
    """The labelled rows of a file that is as the task's own files are, or has the columns that the task names."""
    suffix = file.suffix.lower()
    if not file.is_file():
        raise InputError(f"There is no file {file} of labelled rows; check --rows.")
    if suffix not in STREAMS:
        raise InputError(
            f"The file {file} ends in {suffix or 'nothing'}; name it by what it holds, {', '.join(STREAMS)}."
        )
    local = task.config.get("metadata", {}).get("local")
    changes: dict[str, Any]
    if local is not None and suffix[1:] == local["format"]:
        mine = {**local, "folder": ".", "files": {"train": file.name}}
        changes = {"metadata": {**task.config["metadata"], "local": mine}}
    else:
        form = "csv" if suffix in (".csv", ".tsv") else "json"
        options = task.config.get("dataset_kwargs", {}) if task.config["dataset_path"] == form else {}
        changes = {"dataset_path": form, "dataset_kwargs": {**options, "data_files": {"train": str(file.absolute())}}}
    own = Task(task.path, keys={**task.config, **changes, "training_split": "train"})
    return own.load("train", file.parent, labelled=True)


def examples_of(rows: "Dataset") -> list[Example]:
    """The rows of a data set as a [`~sinkd_llm.answering.student.Student`] reads them."""
    return [_example(row) for row in rows]


def _example(row: Mapping[str, Any]) -> Example:
    texts = {name: row[name] for name in ("text", "text_pair") if row.get(name) is not None}
    choices = tuple(row.get("choices", ()))
    return Example(row["id"], row["prompt"], choices, row.get("label"), row["completion"], **texts)
