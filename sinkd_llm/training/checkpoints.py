"""The checkpoints of a run: which are whole, which one goes on, and what a failed write leaves."""

import errno
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.integrity import MANIFEST_FILE, changed_files, check_manifest, write_manifest
from sinkd_llm.models.placing import give_ordinary_modes
from sinkd_llm.terminal import say

# Written last, when every process has written its part: a folder without it is half written.
STATE = "trainer_state.json"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_YES = ("true", "yes", "last", "1")
_NO = ("false", "no", "none", "0", "")

# Of the fields of trainer_state.json: what training reckons with.
_STATE_COUNTS = ("global_step", "max_steps")
_STATE_TYPES: dict[str, Any] = {
    "epoch": (int, float, type(None)),
    "total_flos": (int, float),
    "num_train_epochs": (int, float),
    "train_batch_size": (int, type(None)),
    "log_history": list,
    "stateful_callbacks": (dict, type(None)),
    "best_metric": (int, float, type(None)),
    "best_model_checkpoint": (str, type(None)),
    "trial_name": (str, type(None)),
    "trial_params": (dict, type(None)),
}

# The disk's own errors. Others (a missing file, a permission) are about one path and say so themselves.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, earliest step first."""
    found = [
        (int(match.group(1)), folder)
        for folder in Path(output_dir).glob("checkpoint-*")
        if folder.is_dir() and (match := CHECKPOINT.fullmatch(folder.name))
    ]
    return [folder for _, folder in sorted(found)]


def last_whole(output_dir: str | Path) -> Path | None:
    """The last checkpoint of a run that training can go on from."""
    return next((c for c in reversed(checkpoints(output_dir)) if checkpoint_problem(c) is None), None)


def find_checkpoint(value: str | bool | None, output_dir: str | Path) -> Path | None:
    """
    The checkpoint that `resume_from_checkpoint` means: a folder, or `true` for the last whole one of the run.

    Later checkpoints that are half written or damaged are skipped, with a message.

    Raises:
        InputError: if there is none, or the folder that was given is not whole; names the last whole one, if any.
    """
    text = str(value).strip() if value is not None else ""
    if text.lower() in _NO:
        return None
    if text.lower() in _YES:
        return _last_of_run(output_dir)
    checkpoint = Path(text).expanduser()
    found = checkpoints(checkpoint) if checkpoint.is_dir() else []
    if found and not (checkpoint / STATE).exists():
        raise InputError(f"{checkpoint} is a run folder; give one of its checkpoints: {found[-1]}.")
    problem = checkpoint_problem(checkpoint)
    if problem is None:
        return checkpoint
    whole = last_whole(checkpoint.parent)
    advice = f"resume from {whole}, the last whole one" if whole else "start at the beginning"
    raise InputError(f"cannot resume from {checkpoint}: {problem}; {advice}.")


def _last_of_run(output_dir: str | Path) -> Path:
    found = checkpoints(output_dir)
    if not found:
        raise InputError(
            f"there is no checkpoint in {output_dir} to resume from; leave out "
            "--resume_from_checkpoint to start at the beginning, or give the folder of a checkpoint."
        )
    whole = last_whole(output_dir)
    if whole is None:
        raise InputError(
            f"no checkpoint in {output_dir} is whole ({found[-1].name}: {checkpoint_problem(found[-1])}); start at "
            "the beginning: leave out --resume_from_checkpoint and give --overwrite_output_dir."
        )
    for later in found[found.index(whole) + 1 :]:
        problem = checkpoint_problem(later)
        say(f"{later.name} is skipped: {problem}. Going on from {whole.name}, the last whole one.")
    return whole


def checkpoint_problem(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint folder, or `None` if it can."""
    if not checkpoint.is_dir():
        return "it is a file" if checkpoint.is_file() else "it does not exist"
    state = checkpoint / STATE
    if not state.is_file():
        return f"it is half written ({state.name} is missing)"
    problem = _state_problem(state) or _pickle_problem(checkpoint) or _parts_problem(checkpoint)
    if problem is not None:
        return problem
    try:
        check_manifest(checkpoint)
    except InputError as error:
        return str(error).rstrip(".")
    return None


def _state_problem(state: Path) -> str | None:
    """What is wrong with `trainer_state.json`: Transformers takes whatever stands in it."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return f"{state.name} is damaged"
    if not isinstance(content, dict):
        return f"{state.name} is damaged (it holds no mapping)"
    if "global_step" not in content:
        return f"{state.name} is damaged (it names no global_step)"
    for name, value in content.items():
        if name in _STATE_TYPES and not isinstance(value, _STATE_TYPES[name]):
            return f"{state.name} is damaged ({name} is {str(value)[:40]!r})"
        if name in _STATE_COUNTS and (type(value) is not int or value < 0):
            return f"{state.name} is damaged ({name} is {str(value)[:40]!r})"
    number = CHECKPOINT.fullmatch(state.parent.name)
    if number is not None and int(number.group(1)) != content["global_step"]:
        return f"{state.name} is damaged (global_step is {content['global_step']} in {state.parent.name})"
    callbacks = (content.get("stateful_callbacks") or {}).values()
    for each in [one for value in callbacks for one in (value if isinstance(value, list) else [value])]:
        if not (isinstance(each, dict) and all(isinstance(each.get(k, {}), dict) for k in ("args", "attributes"))):
            return f"{state.name} is damaged (stateful_callbacks)"
    if not all(isinstance(record, dict) for record in content.get("log_history", ())):
        return f"{state.name} is damaged (log_history)"
    return None


def _pickle_problem(checkpoint: Path) -> str | None:
    """A file that would run code; looked at without opening it, and only where its bytes are not those written."""
    try:
        names = [name for name in changed_files(checkpoint) if name.endswith((".pt", ".pth"))]
    except InputError:
        return None  # the manifest itself, which is said below
    if not names:
        return None
    from torch.serialization import get_unsafe_globals_in_checkpoint
    from transformers.trainer_pt_utils import safe_globals

    for name in names:
        try:
            with safe_globals():  # what a state of random numbers consists of
                strange = get_unsafe_globals_in_checkpoint(checkpoint / name)
        except Exception:  # one that is damaged or missing, which is said below
            continue
        if strange:
            return (
                f"{name} holds something else than tensors and numbers ({strange[0]}), which could run code when it "
                "is opened, so it was not"
            )
    return None


def _parts_problem(checkpoint: Path) -> str | None:
    random_states = sorted(file.name for file in checkpoint.glob("rng_state*.pth"))
    if not random_states:
        return "rng_state.pth is missing (half written, or saved with save_only_model)"
    for name in random_states:
        if not zipfile.is_zipfile(checkpoint / name):
            return f"{name} is damaged or half written"
    if any(checkpoint.glob("global_step*")) or any(checkpoint.glob("*_fsdp*")):
        return None  # DeepSpeed and FSDP keep their own layout; the manifest has the sums of their files
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        return "it is half written (it holds no *.safetensors file)"
    for weight in weights:
        if not _is_whole_safetensors(weight):
            return f"{weight.name} is damaged or half written"
    for name in ("optimizer.pt", "scheduler.pt"):
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing (half written, or saved with save_only_model)"
        if not zipfile.is_zipfile(file):
            return f"{name} is damaged or half written"
    return None


def _is_whole_safetensors(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):  # reads the header and checks the file's length
            return True
    except (SafetensorError, OSError):
        return False


class NotSavedError(InputError):
    """
    Something of a run could not be written, mostly because the disk is full. Says which checkpoint is whole.

    Args:
        path (`Path`): what could not be written: a checkpoint, or the run's folder.
        reason (`str`): why.
        resume_command (`str`, *optional*): the command line that goes on from the last whole checkpoint.
    """

    def __init__(self, path: Path, reason: str, resume_command: str | None = None) -> None:
        self.path, self.reason = path, reason
        run = path.parent if CHECKPOINT.fullmatch(path.name) else path
        whole = last_whole(run)
        if whole is None:
            advice = "No checkpoint of this run is whole: free some space and start it again"
        else:
            advice = f"{whole} is whole: free some space and go on" + (
                f" with: {resume_command}" if resume_command else " from there"
            )
        super().__init__(f"{path} could not be written ({reason}). {advice}")


def write_failure(error: BaseException) -> str | None:
    """The reason in words if `error` says that the disk took no more; `None` if it says something else."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _DISK_ERRORS else None
    text = str(error)
    # Libraries in Rust (safetensors, tokenizers) give the system's number, and torch the place in its zip writer.
    if (number := re.search(r"os error (\d+)", text)) is not None:
        return os.strerror(int(number.group(1))) if int(number.group(1)) in _DISK_ERRORS else None
    if "PytorchStreamReader" in text:
        return None  # a file that cannot be read comes from the same place of torch
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter" in text or "inline_container" in text):
        return "the disk is full, or the file too large"
    return None


@contextmanager
def saving_checkpoint(folder: Path, *, writes_state: bool, facts: dict[str, Any] | None = None) -> Iterator[None]:
    """
    Around the writing of a checkpoint: it ends up whole, or counts as half written at any moment before.

    Args:
        folder (`Path`): the checkpoint.
        writes_state (`bool`): whether this process is the one that writes `trainer_state.json`, and the manifest.
        facts (`dict`, *optional*): what the manifest says of the run.

    Raises:
        NotSavedError: if the disk takes no more. What was written of the checkpoint is removed: it is of no use,
            and takes the space.
    """
    if writes_state:  # of a checkpoint of the same step, which is about to be written over
        for name in (STATE, MANIFEST_FILE):
            (folder / name).unlink(missing_ok=True)
    try:
        yield
        if writes_state:
            give_ordinary_modes(folder)
            write_manifest(folder, facts)
    except Exception as error:
        reason = write_failure(error)
        if reason is None:
            raise
        if writes_state:
            shutil.rmtree(folder, ignore_errors=True)
        raise NotSavedError(folder, reason) from error
