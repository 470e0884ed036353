"""The tasks that come with the package, found by name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.metrics.averages import BENCHMARKS, tasks_of
from sinkd_llm.tasks.task import Task
from sinkd_llm.values import shown

_FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class TaskInfo:
    """
    What `list_tasks` says about a task.

    Args:
        name (`str`): name of the task and of its main prompt.
        description (`str`): what is asked, in one line.
        prompts (`tuple[str, ...]`): names of all its prompts, the main one first. Each loads by itself.
        choices (`tuple[str, ...]` or `None`): the main prompt's answer choices, `None` if rows differ.
        metrics (`tuple[str, ...]`): names of its metrics.
        dataset (`str`): where the hub has its data.
        output_type (`str`): `"multiple_choice"` or `"generate_until"`.
    """

    name: str
    description: str
    prompts: tuple[str, ...]
    choices: tuple[str, ...] | None
    metrics: tuple[str, ...]
    dataset: str
    output_type: str


def load_task(name_or_path: str | Path, *, keep: Sequence[str] = (), id_column: str | None = None) -> Task:
    """
    A task by name, or from the user's own file.

    Args:
        name_or_path (`str` or `Path`): a built-in name as in [`list_tasks`], or the path of a `.yaml` file, in which
            `~` is the home folder.
        keep, id_column: see [`Task`].

    Raises:
        InputError: for what is neither a name nor such a path, an unknown name, or anything wrong in the file.
    """
    if not isinstance(name_or_path, str | Path):
        hint = " Write the keys of a task into such a file." if isinstance(name_or_path, Mapping) else ""
        raise InputError(
            f"The task is {shown(name_or_path)}; give the name of a built-in task, or the path of a .yaml file.{hint}"
        )
    text = str(name_or_path)
    if "\0" in text:
        raise InputError(f"The task {shown(text)} holds a NUL character, which no file name has; check the name.")
    if text.endswith((".yaml", ".yml")):
        return Task(os.path.expanduser(text), keep=keep, id_column=id_column)
    files = _files()
    if text not in files:
        what = f"Unknown task {shown(text)}.{nearest(text[:100].lower(), list(files), cutoff=0.6)}"
        if text and os.path.exists(path := os.path.expanduser(text)):
            is_folder = os.path.isdir(path)
            what = f"{shown(text)} is {'a folder' if is_folder else 'a file of another kind'}, and no task."
        raise InputError(
            f"{what} 'sinkd tasks' lists the {len(files)} that are built in; for your own task give the path of its "
            ".yaml file."
        )
    return Task(files[text], keep=keep, id_column=id_column)


def task_names() -> list[str]:
    """The names of all built-in tasks and prompts. No file is read."""
    return list(_files())


def expand_tasks(text: str) -> list[str]:
    """
    The tasks that a user names together, each once, in their order. No task file is read.

    Args:
        text (`str`): names and paths with commas between them. `glue` and `superglue` stand for the tasks of the
            benchmark, a folder for its `.yaml` files but those whose name begins with `_`.

    Raises:
        InputError: if there is nothing beside a comma, and for a folder without a task file.
    """
    found: list[str] = []
    for part in [text] if text.endswith((".yaml", ".yml")) and Path(text).is_file() else text.split(","):
        name = part.strip()
        if not name:
            raise InputError(f"The tasks {shown(text)} hold an empty name; write the names with commas between them.")
        if name in BENCHMARKS:
            found += tasks_of(name)
        elif "\0" not in name and os.path.isdir(os.path.expanduser(name)):
            folder = Path(os.path.expanduser(name))
            files = sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
            files = [file for file in files if not file.name.startswith("_")]
            if not files:
                raise InputError(f"The folder {name} has no task file (.yaml); give a folder with one, or a task.")
            found += map(str, files)
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def list_tasks() -> list[TaskInfo]:
    """The built-in tasks in the order of their names, each with all its prompts."""
    tasks = {name: Task(path) for name, path in _files().items()}
    # A prompt variant is a file that includes the main one beside it, so it shares the data declaration.
    mains = {name: task for name, task in tasks.items() if not _included(task)}
    return [
        TaskInfo(
            name=name,
            description=task.description,
            prompts=(name, *(v for v, variant in tasks.items() if _included(variant) == task.path)),
            choices=task.choices,
            metrics=task.metric_names,
            dataset=task.config["dataset_path"],
            output_type=task.output_type,
        )
        for name, task in mains.items()
    ]


def _files() -> dict[str, Path]:
    """Name to file; a built-in file is named after its task."""
    return {path.stem: path for path in sorted(_FOLDER.rglob("*.yaml"), key=lambda path: path.stem)}


def _included(task: Task) -> Path | None:
    # A file with a validation split of its own (MNLI's mismatched one) is a task of its own, whatever it includes.
    origin = task.origins["validation_split"]
    return None if origin == task.path else origin
