"""One process writes to a folder at a time."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sinkd_llm.errors import InputError

LOCK_FILE = ".lock"
_HOLDER_FILE = ".lock.holder"
# Not what a folder holds, but that it is written to.
LOCK_FILES = (LOCK_FILE, _HOLDER_FILE)


@contextmanager
def folder_lock(folder: Path, advice: str) -> Iterator[None]:
    """
    Hold a folder against other processes while it is written to; the folder is made.

    The system lets go of the lock when its process ends, however it ends, so one of a dead process is taken over.

    Args:
        folder (`Path`): the folder.
        advice (`str`): what a second writer is told to do.

    Raises:
        InputError: if another process holds it, naming that process.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another process is writing to {folder}{_holder(folder)}; {advice}.") from None
    try:
        with suppress(OSError):  # it only serves the other one's message
            content = {"pid": os.getpid(), "host": socket.gethostname()}
            (folder / _HOLDER_FILE).write_text(json.dumps(content), encoding="utf-8")
        yield
    finally:
        for name in LOCK_FILES:
            # While it is held: a process that waits for the removed file notices that, and makes a new one.
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        lock.release()


def refuse_if_locked(folder: Path, advice: str) -> None:
    """As [`folder_lock`] refuses, without taking the lock or writing anything."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK_FILE).is_file():
        return
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another process is writing to {folder}{_holder(folder)}; {advice}.") from None
    except OSError:
        return  # one that cannot be opened here is found when it is taken
    lock.release()


def _holder(folder: Path) -> str:
    """` (process 12 on host)`, if it has said so."""
    try:
        content = json.loads((folder / _HOLDER_FILE).read_text(encoding="utf-8"))
        return f" (process {int(content['pid'])} on {content['host']!s})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
