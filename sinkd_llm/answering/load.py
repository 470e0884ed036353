"""A student from its folder: what runs it follows from the files there."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sinkd_llm.answering.facts import StudentFacts, kept_keys
from sinkd_llm.answering.onnx_student import ONNX_FILE, OnnxStudent
from sinkd_llm.answering.student import Student
from sinkd_llm.errors import InputError
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.integrity import check_manifest
from sinkd_llm.tasks.registry import load_task
from sinkd_llm.tasks.task import Task
from sinkd_llm.values import shown

_TOKENIZER_SETTINGS = ("revision", "trust_remote_code")


def load_student(
    path: str | Path, task: str | Path | Task | None = None, *, reading: Reading | None = None, **loading: Any
) -> Student:
    """
    A student that answers rows.

    Args:
        path (`str` or `Path`): the folder of a run, or one that `sinkd export` wrote; with a task, any model that
            [`load_model`] takes.
        task (`str`, `Path` or [`Task`], *optional*): a task, its name or its YAML file, for a model without one.
            Beside the task that a student was trained on, one with the same choices.
        reading ([`Reading`], *optional*): how rows become tokens. Default: as in training; of a model that no run
            wrote, at most 1,024 tokens.
        loading: more keyword arguments of [`load_model`]; of no use to a folder with `model.onnx`.

    Returns:
        [`Student`]: with the calibration and the route of its folder, if it has them.

    Raises:
        InputError: for what names no folder and no model, a folder without a task where none is given, a task that is
            another one than the student's, a model that cannot be loaded, or cannot answer the task.
    """
    answered, facts = facts_of(path, task)
    folder = _folder(path)
    if reading is not None:
        facts = replace(facts, reading=reading)
    if (folder / ONNX_FILE).is_file():
        check_manifest(folder)
        return OnnxStudent(folder, answered, facts)
    from sinkd_llm.answering.torch_student import TorchStudent
    from sinkd_llm.environment import default_device
    from sinkd_llm.models import load_model, load_tokenizer

    of_tokenizer = {name: loading[name] for name in _TOKENIZER_SETTINGS if name in loading}
    tokenizer = load_tokenizer(str(path), **of_tokenizer)
    model = load_model(path, **loading)
    if loading.get("quantization_config") is None and loading.get("device_map") is None:
        model.to(default_device())
    return TorchStudent(model, tokenizer, answered, facts)


def facts_of(path: str | Path, task: str | Path | Task | None = None) -> tuple[Task, StudentFacts]:
    """
    What a student answers and what its folder says of it, before it is loaded; arguments and errors are those of
    [`load_student`].
    """
    folder = _folder(path)
    facts = StudentFacts.load(folder)
    answered = _task_of(folder, facts, task, str(path))
    return answered, facts or StudentFacts(kept_keys(answered), Reading(max_length=1024))


def _folder(path: str | Path) -> Path:
    if not isinstance(path, str | Path) or not str(path).strip():
        raise InputError(
            f"The student is {shown(path)}, which is no folder; give the folder of a run or of an export, or with a "
            "task the name of a model."
        )
    return Path(os.path.expanduser(path))  # unlike `Path.expanduser`, also for a user that is not there


def _task_of(folder: Path, facts: StudentFacts | None, given: str | Path | Task | None, name: str) -> Task:
    if facts is None:
        if given is None and not folder.is_dir():
            raise InputError(
                f"There is no folder {name}; give the folder of a run or of an export. A model of the hub, or one "
                "with a name of its own, needs a task (--task, in Python task=), its name or YAML file."
            )
        if given is None:
            raise InputError(
                f"{name} does not say what task it answers: it has no sinkd_answers.json, which a run with a task "
                "leaves there. Give a task (--task, in Python task=), its name or YAML file."
            )
        return _loaded(given)
    if given is None:
        return facts.load_task(folder)
    task = _loaded(given)
    if not facts.answers(task, folder):
        own = facts.load_task(folder)
        raise InputError(
            f"The student in {folder} was trained on the task {own.name!r}, and {task.path} has other answers"
            f"{_first_difference(own.choices, task.choices)}; leave the task (--task, in Python task=) out, or give "
            "the task of the student."
        )
    return task


def _first_difference(own: Sequence[str] | None, other: Sequence[str] | None) -> str:
    """` (the first: …)`, where both tasks list their choices."""
    if own is None or other is None:
        return ""
    for mine, theirs in zip(own, other, strict=False):
        if mine != theirs:
            return f" (the first: {theirs.strip()!r} in place of {mine.strip()!r})"
    return "" if len(own) == len(other) else f" ({len(other)} of them, and the student has {len(own)})"


def _loaded(task: str | Path | Task) -> Task:
    return task if isinstance(task, Task) else load_task(task)
