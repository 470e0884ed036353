"""What a teacher reads of a run's rows, where that is not what the student reads: another prompt, and examples."""

import random
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.models.kinds import TEACHER
from sinkd_llm.runs.task_rows import training_rows, validation_rows

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
        InputError: for a task over other rows or with other numbers of choices, and for too few labelled rows.
    """
    from sinkd_llm.tasks import load_task

    theirs = task
    rows, scored = train, evaluation
    if arguments.teacher_task is not None:
        theirs = load_task(arguments.teacher_task)
        rows = training_rows(theirs, arguments, seed)
        scored = validation_rows(theirs, arguments)
    between = str(theirs.config.get("fewshot_delimiter", _BETWEEN))
    count = arguments.teacher_num_fewshot
    shots = _shots(rows, count + 1, seed) if count else []
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


def _shots(rows: "Dataset", count: int, seed: int) -> list[dict[str, Any]]:
    """Labelled rows, one more than needed, in case the row itself is among them."""
    labelled = [i for i, label in enumerate(rows["label"][:]) if label != NO_LABEL]
    if len(labelled) < count:
        raise InputError(
            f"teacher_num_fewshot is {count - 1}, and there are {len(labelled)} labelled training rows, of which one "
            f"may be the row itself; give at most {max(len(labelled) - 1, 0)}."
        )
    return [rows[i] for i in random.Random(seed).sample(labelled, count)]


def _joined(
    own: "Dataset", other: "Dataset", shots: list[dict[str, Any]], count: int, between: str, names: tuple[str, str]
) -> "Dataset":
    if len(own) != len(other):
        raise InputError(
            f"The teacher's task {names[1]!r} has {len(other)} rows and the task {names[0]!r} {len(own)}: both have "
            "to read the same data files."
        )
    read = []
    for mine, theirs in zip(own, other, strict=True):
        if len(mine["choices"]) != len(theirs["choices"]) or mine["label"] != theirs["label"]:
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
