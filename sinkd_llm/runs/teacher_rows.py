"""What a teacher reads of a run's rows, where that is not what the student reads: another prompt, and examples."""

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.models.kinds import TEACHER
from sinkd_llm.runs.task_rows import training_rows, validation_rows
from sinkd_llm.tasks.loading import load_rows
from sinkd_llm.teachers.questions import place_of

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.tasks import Task

# Between examples, as lm-evaluation-harness has it.
_BETWEEN = "\n\n"
_READ = ("prompt", "choices", "text", "text_pair")


def rows_for_teacher(
    task: "Task", train: "Dataset", evaluation: "Dataset", arguments: "TaskArguments", seed: int
) -> "tuple[Dataset, Dataset]":
    """
    The rows with a column `teacher`: what the teacher reads of each.

    Args:
        task ([`Task`]): the student's.
        train, evaluation ([`~datasets.Dataset`]): its rows.
        arguments ([`TaskArguments`]): `teacher_task` and `teacher_num_fewshot`.
        seed (`int`): draws the examples.

    Raises:
        InputError: for a task over other rows or with other numbers of choices, for rows that cannot be told apart by
            their ids, and for too few labelled rows.
    """
    from sinkd_llm.tasks import load_task

    theirs = task
    rows, scored = train, evaluation
    if arguments.teacher_task is not None:
        theirs = load_task(arguments.teacher_task)
        if _have_ids(theirs, arguments):
            theirs = load_task(arguments.teacher_task, id_column=arguments.id_column)
        rows, scored = _rows_of(theirs, train, evaluation, arguments, seed, task.name)
    between = str(theirs.config.get("fewshot_delimiter", _BETWEEN))
    count = arguments.teacher_num_fewshot
    shots = _shots(rows, train["label"][:], count + 1, seed) if count else []
    names = task.name, theirs.name
    joined = [_joined(*both, shots, count, between, names) for both in ((train, rows), (evaluation, scored))]
    return joined[0], joined[1]


def as_teacher_reads(rows: Any) -> Any:
    """A data set with what its column `teacher` says, in place of everything that the student reads."""
    if rows is None or TEACHER not in rows.column_names:
        return rows
    theirs = rows[TEACHER][:]
    kept = rows.remove_columns([TEACHER, *(name for name in _READ if name in rows.column_names)])
    for name in _READ:
        if theirs[0].get(name) is not None:
            kept = kept.add_column(name, [row[name] for row in theirs])
    return kept


def _have_ids(theirs: "Task", arguments: "TaskArguments") -> bool:
    """Whether the rows of a teacher's task have the column of ids: a file that says the same rows may lack it."""
    if arguments.id_column is None:
        return False
    folder = None if arguments.data_dir is None else Path(arguments.data_dir).expanduser()
    rows = load_rows(theirs.config, theirs.path, "train", folder)
    return any(arguments.id_column in row for row in rows.rows)


def _rows_of(
    theirs: "Task", train: "Dataset", evaluation: "Dataset", arguments: "TaskArguments", seed: int, name: str
) -> "tuple[Dataset, Dataset]":
    """The rows of the teacher's task that are those of the student's, in the same order."""
    by_share = arguments.validation_share > 0
    # Which rows are kept apart follows from what the student's task calls the text: here they are all read.
    every = replace(arguments, heldout_share=0.0, validation_share=0.0, labels_per_class=None)
    rows = training_rows(theirs, replace(every, max_train_samples=None) if by_share else every, seed)
    scored = rows if by_share else validation_rows(theirs, arguments)
    some = by_share or arguments.heldout_share > 0 or arguments.labels_per_class is not None
    names = name, theirs.name
    return _same_rows(train, rows, names, some=some), _same_rows(evaluation, scored, names, some=by_share)


def _same_rows(own: "Dataset", other: "Dataset", names: tuple[str, str], *, some: bool) -> "Dataset":
    """
    The rows of another task that are these, all or some of them: known by their places, or by ids of the data. All of
    them, in the same order, may also repeat an id, or lack those of the data.
    """
    if len(own) != len(other) and not some:
        raise InputError(
            f"The teacher's task {names[1]!r} has {len(other)} rows and the task {names[0]!r} {len(own)}: both have "
            "to read the same data files."
        )
    ids, others = own["id"][:], other["id"][:]
    if not some and all(map(_in_one_place, ids, others)):
        return other
    places: dict[Any, int] = {}
    for index, id_ in enumerate(others):
        if places.setdefault(place_of(id_) or id_, index) != index:
            raise InputError(
                f"Two training rows of the teacher's task {names[1]!r} have the id {id_!r}, so that it is not known "
                f"which of them is the one of the task {names[0]!r}; give each row its own, also where they are of "
                "two files."
            )
    found = [places.get(place_of(id_) or id_) for id_ in ids]
    if None in found:
        raise InputError(
            f"The row {ids[found.index(None)]} of the task {names[0]!r} is none of the {len(other)} rows of the "
            f"teacher's task {names[1]!r}: both have to read the same data files."
        )
    return other.select(found)


def _in_one_place(mine: str, its: str) -> bool:
    """Whether two rows at the same place are one, as far as their ids say: one of them may lack the data's id."""
    place, other = place_of(mine), place_of(its)
    if place is None and other is None:
        return mine == its
    return None in (place, other) or place == other


def _shots(rows: "Dataset", labels: list[int], count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with a label that the student knows, one more than needed, in case the row itself is among them."""
    labelled = [i for i, label in enumerate(labels) if label != NO_LABEL]
    if len(labelled) < count:
        raise InputError(
            f"teacher_num_fewshot is {count - 1}, and there are {len(labelled)} labelled training rows, of which one "
            f"may be the row itself; give at most {max(len(labelled) - 1, 0)}."
        )
    return [rows[i] for i in random.Random(seed).sample(labelled, count)]


def _joined(
    own: "Dataset", other: "Dataset", shots: list[dict[str, Any]], count: int, between: str, names: tuple[str, str]
) -> "Dataset":
    read = []
    for mine, theirs in zip(own, other, strict=True):
        # A label may be one that the student has to forget.
        if len(mine["choices"]) != len(theirs["choices"]) or mine["label"] not in (NO_LABEL, theirs["label"]):
            raise InputError(
                f"The row {theirs['id']} of the teacher's task has {len(theirs['choices'])} choices and label "
                f"{theirs['label']}, and {mine['id']} of the student's {len(mine['choices'])} and label "
                f"{mine['label']}; both need the same choices in the same order, over the same rows."
            )
        kept = {name: theirs[name] for name in _READ if theirs.get(name) is not None}
        examples = [shot for shot in shots if shot["id"] != theirs["id"]][:count]
        texts = [shot["prompt"] + shot["completion"] + between for shot in examples]
        read.append({**kept, "prompt": "".join(texts) + kept["prompt"]})
    return own.add_column(TEACHER, read)
