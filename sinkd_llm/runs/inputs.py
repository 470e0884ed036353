"""What a command reads, and that it does not write there."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError

if TYPE_CHECKING:
    from trl import ModelConfig

    from sinkd_llm.runs.arguments import TaskArguments
    from sinkd_llm.tasks import Task
    from sinkd_llm.training.config import SinKDConfig

# Of the words of a command line, those that name a file that is read.
_FILE_FLAGS = ("--config", "--accelerate_config", "--accelerate-config")
# Files of a model or cache by the names that Transformers, PEFT and this package know.
_MODEL_ENDINGS = ("config.json", ".index.json", "tokenizer.json", "vocab.json", "manifest.json", "tokens_map.json")


@dataclass(frozen=True)
class Input:
    """
    A file or folder that a command reads.

    Args:
        what (`str`): what it is, in words: `"the teacher"`.
        path (`Path`): where it is.
        closed (`bool`, *optional*, defaults to `True`): of a folder, whether nothing else may lie in it.
    """

    what: str
    path: Path
    closed: bool = True


def model_inputs(what: str, name: str | None, _depth: int = 0) -> list[Input]:
    """
    Where a model is read from, and, if it is an adapter, where its base is; nothing for the hub.

    Raises:
        InputError: as [`~sinkd_llm.models.resolve_model_source`], which says that a local model is whole.
    """
    if name is None:
        return []
    from sinkd_llm.models import resolve_model_source
    from sinkd_llm.models.names import ADAPTER_CONFIG, BASE_REFERENCE

    source = resolve_model_source(name)
    if source.kind == "hub":
        return []
    path = Path(source.path)
    found = [Input(what, path / source.gguf_file if source.gguf_file else path)]
    if source.kind != "adapter" or _depth > 3:
        return found
    try:
        base = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return found  # loading says what is wrong with it
    if isinstance(base, str) and base not in ("", BASE_REFERENCE) and Path(base).expanduser().exists():
        found += model_inputs(f"the base of {what}", base, _depth + 1)
    return found


def task_inputs(task: "Task", data_dir: str | None) -> list[Input]:
    """The files of a task, its rows where they are the user's own files, and the folder of its data."""
    files = {Path(origin) for origin in task.origins.values()} | {task.path}
    found = [Input("the task file", file) for file in sorted(files)]
    folder = Path(data_dir).expanduser() if data_dir is not None else None
    if folder is not None:
        # Somebody who works in the folder of the data writes beside it.
        found.append(Input("data_dir", folder, closed=not _is_or_holds(folder, Path.cwd())))
    kwargs = task.config.get("dataset_kwargs")
    names = kwargs.get("data_files") if isinstance(kwargs, dict) else None
    for name in _texts(names):
        for place in [*([folder] if folder is not None else []), task.path.parent, Path.cwd()]:
            if (place / name).is_file():
                found.append(Input("a data file", place / name))
                break
    return found


def run_inputs(
    task_args: "TaskArguments",
    training_args: "SinKDConfig",
    model_args: "ModelConfig",
    *,
    checkpoint: Path | None = None,
    argv: Sequence[str] | None = None,
) -> list[Input]:
    """
    Everything that a training run or `sinkd cache` reads from local files.

    Args:
        task_args, training_args, model_args: the recipe.
        checkpoint (`Path`, *optional*): what the run goes on from.
        argv (`Sequence[str]`, *optional*): the flags, which name the recipe's file.

    Raises:
        InputError: for a model or task that is not there.
    """
    found = model_inputs("the model", model_args.model_name_or_path)
    try:
        found += model_inputs("the teacher", training_args.teacher_model_name_or_path)
    except InputError:
        # Beside its cache a teacher need not be here, unless the student is cut from it.
        if training_args.teacher_cache is None or model_args.model_name_or_path is None:
            raise
    if training_args.teacher_cache is not None:
        found.append(Input("the teacher cache", Path(training_args.teacher_cache).expanduser()))
    if task_args.task is not None:
        from sinkd_llm.tasks import load_task

        found += task_inputs(load_task(task_args.task), task_args.data_dir)
    elif task_args.dataset_name is not None:
        # A folder of data files is read file by file.
        found.append(Input("the data set", Path(task_args.dataset_name).expanduser(), closed=False))
    if checkpoint is not None:
        found.append(Input("the checkpoint", checkpoint))
    for name in ("deepspeed", "fsdp_config", "accelerator_config"):
        value = getattr(training_args, name, None)
        if isinstance(value, str):
            found.append(Input(f"the file of {name}", Path(value)))
    found += [Input("the recipe", Path(file).expanduser()) for file in _named_files(argv or ())]
    return [given for given in found if given.path.exists()]


def refuse_inputs(flag: str, folder: Path, inputs: Iterable[Input]) -> None:
    """
    Refuse a folder to write to that is, lies in, or holds something that is read.

    Files are compared as the system knows them: through symbolic links, hard links, `..`, and other spellings.

    Args:
        flag (`str`): what names the folder, for the message.
        folder (`Path`): the folder; it need not exist.
        inputs (`Iterable[Input]`): what is read.

    Raises:
        InputError: for the first that is in the way.
    """
    above = _identities(folder)
    here = above[0]
    inside = _entries(folder) if here is not None else set()
    for given in inputs:
        identity = _identity(given.path)
        if identity is None:
            continue
        if identity == here:
            relation = "is"
        elif given.closed and identity in above[1:] and given.path.is_dir():
            relation = "lies in"
        elif here is not None and here in (*_identities(given.path), *_identities(given.path, resolved=False)):
            relation = "holds"
        elif inside and inside & ({identity} | (_entries(given.path) if given.path.is_dir() else set())):
            relation = "holds a link to"
        else:
            continue
        raise InputError(
            f"{flag} {folder} {relation} {given.what} ({given.path}), which this command reads and would write over; "
            "give another folder."
        )


def check_scores_file(path: Path, inputs: Iterable[Input]) -> None:
    """
    Refuse a file for scores that cannot be written, or that something else is kept in: scores take the place of
    scores, of an empty file, or of none.

    Raises:
        InputError: saying what is in the way. Nothing is written.
    """
    flag = f"--output {path}"
    check_path(flag, path)
    if path.is_dir():
        raise InputError(f"{flag} is a folder; give a file name, such as {path}/scores.json.")
    identity = _identity(path)
    above = _identities(path)[1:]
    for given in inputs:
        one = _identity(given.path)
        if identity is not None and (
            one == identity or (given.path.is_dir() and given.closed and identity in _entries(given.path))
        ):
            if is_scores_file(path):
                continue
            part = "" if one == identity else "a file of "
            raise InputError(f"{flag} is {part}{given.what} ({given.path}), which is read; give another file.")
        if given.closed and one in above and given.path.is_dir():
            known = path.name.lower().endswith(_MODEL_ENDINGS) or path.suffix.lower() not in (".json", ".jsonl")
            if known or (identity is not None and not is_scores_file(path)):
                raise InputError(
                    f"{flag} lies in {given.what} ({given.path}), and might be taken for a part of it; give a file "
                    "elsewhere."
                )
    if path.is_file() and path.stat().st_size and not is_scores_file(path):
        raise InputError(
            f"{flag} is there already, and holds something else than the scores of an earlier 'sinkd evaluate'; give "
            "another file, or move it away."
        )


def is_scores_file(path: Path) -> bool:
    """Whether a file holds what `sinkd evaluate --output` writes: scores of tasks, or answers, a row a line."""
    lines = path.suffix.lower() == ".jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.readline() if lines else file.read())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, dict):
        return False
    known = [{"task", "id", "gold", "choice"}] if lines else [{"metrics", "predictions", "num_examples"}]
    return any(names <= content.keys() for names in [*known, *([] if lines else [{"results", "averages"}])])


def user_path(flag: str, name: str | Path) -> Path:
    """The path that was given, `~` put in.

    Raises:
        InputError: if there is no such user.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{flag} {name} names no user's home folder ({error}); give another path.") from error


def check_path(flag: str, path: Path) -> None:
    """
    Refuse a path at which nothing can be made: below a file, not permitted, or no path at all.

    Raises:
        InputError: naming what is in the way.
    """
    try:
        if path.is_symlink() and not path.exists():
            raise InputError(f"{flag} is a link to {os.readlink(path)}, which is not there; give another place.")
        place = path.resolve().parent
        if path.exists() and not os.access(path, os.W_OK):
            raise InputError(f"{flag} may not be written to; check its permissions, or give another place.")
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise InputError(f"{flag} lies below {place}, which is a file; give another place.")
        if not path.exists() and not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"{flag} cannot be made: {place} may not be written to; give another place.")
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{flag} is no path that can be written to ({reason}); give another.") from error


def _named_files(argv: Sequence[str]) -> list[str]:
    files = []
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name in _FILE_FLAGS:
            files += [value] if equals else list(argv[index + 1 : index + 2])
    return [file for file in files if file]


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in _texts(part)]


def _identity(path: Path) -> tuple[int, int] | None:
    """What the system calls the file or folder, whatever it is called here; `None` where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _identities(path: Path, resolved: bool = True) -> list[tuple[int, int] | None]:
    """Of a path and of all folders above it; unresolved, of those above the link and not of what it points to."""
    whole = path.resolve() if resolved else Path(os.path.abspath(path))
    return [_identity(place) for place in (whole, *whole.parents)]


def _entries(folder: Path) -> set[tuple[int, int]]:
    """Of the files in a folder, and in the folder of a base beside an adapter."""
    found = set()
    for place in (folder, folder / "base"):
        try:
            for entry in os.scandir(place):
                if entry.is_file() or entry.is_symlink():
                    found.add(_identity(Path(entry.path)))
        except OSError:
            continue
    return {identity for identity in found if identity is not None}


def _is_or_holds(folder: Path, place: Path) -> bool:
    identity = _identity(folder)
    return identity is not None and identity in _identities(place)
