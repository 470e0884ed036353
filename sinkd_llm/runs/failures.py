"""What stops a run from outside, told in one line with the command that goes on: a full disk, a lost process."""

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.training.checkpoints import NotSavedError, last_whole, write_failure
from sinkd_llm.training.processes import launched_processes

# What gloo and NCCL say when another process is gone, or did not come to a collective operation in time.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "collective operation timeout")


@contextmanager
def explained(output_dir: Path, resume_command: str, *, saving: bool = False) -> Iterator[None]:
    """
    Turns what the machine does to a run into an error that names the last whole checkpoint and how to go on.

    Args:
        output_dir (`Path`): the run's folder.
        resume_command (`str`): the command line that goes on from its last checkpoint.
        saving (`bool`, *optional*, defaults to `False`): whether the finished model is being saved, so that a refusal
            names what is whole, too.

    Raises:
        InputError: if the disk took no more, another process of the launch is gone, or a file of the checkpoint that
            training resumes from holds more than tensors. Everything else passes as it is.
    """
    try:
        yield
    except NotSavedError as error:
        raise NotSavedError(error.path, error.reason, resume_command) from error
    except InputError as error:
        whole = last_whole(output_dir) if saving else None
        if whole is None:
            raise
        raise InputError(f"{error} {whole} is whole: once this is repaired, go on with: {resume_command}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported [^.\n]*", str(error))
        raise InputError(
            "a file of the checkpoint holds something else than tensors and numbers"
            + (f" ({found.group(0).strip()})" if found else "")
            + ", which could run code when it is opened, so it was not; resume from a checkpoint that your own run "
            "wrote."
        ) from error
    except Exception as error:
        reason = write_failure(error)
        if reason is not None:
            raise NotSavedError(output_dir, reason, resume_command) from error
        if not _is_lost_process(error):
            raise
        whole = last_whole(output_dir)
        advice = f"go on from {whole.name} with: {resume_command}" if whole else "start again"
        raise InputError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} lost contact with another one, which died "
            f"or did not answer in time ({first_line(error)}). The last lines of that process say why; then {advice}"
        ) from error


def _is_lost_process(error: Exception) -> bool:
    if not isinstance(error, RuntimeError):
        return False
    if launched_processes() < 2 or "RANK" not in os.environ:
        return False
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST)
