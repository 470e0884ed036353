"""Files: written whole or not at all, the user's cache folder, and how large things are on disk."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sinkd_llm.errors import InputError

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # a system without these locks
    flock = None  # type: ignore[assignment]


def cache_dir() -> Path:
    """
    Where converted models, rendered rows, token ids and servers' answers are kept: `$SINKD_CACHE_DIR`, else the user's
    cache folder.

    All of it can be deleted at any time, and is made again from its source; for `answers` the server is asked again.
    """
    if chosen := os.environ.get("SINKD_CACHE_DIR"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sinkd_llm"


def bytes_under(folder: Path, pattern: str = "*", keep: Callable[[Path], bool] = lambda path: True) -> int:
    """
    Bytes of the files under a folder, at any depth.

    Args:
        folder (`Path`): the folder.
        pattern (`str`, *optional*, defaults to `"*"`): of the files' names.
        keep (`Callable[[Path], bool]`, *optional*): which files to count, by their path from the folder on.
    """
    files = (file for file in folder.rglob(pattern) if file.is_file() and keep(file.relative_to(folder)))
    return sum(file.stat().st_size for file in files)


def write_whole(path: Path, content: str | bytes) -> None:
    """
    Write a file so that it holds either what it held before or all of `content`, as [`whole_file`] does.

    Args:
        path (`Path`): the file; its folder exists.
        content (`str` or `bytes`): what it shall hold; text as UTF-8.

    Raises:
        OSError: naming `path`, if it is a folder or cannot be written.
    """
    with whole_file(path) as stream:
        stream.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """
    A stream into a file that holds what it held before until the block ends without an error, and then all of it,
    whenever the process or machine dies.

    The file keeps its permissions, and a symbolic link stays one: what it points to is written. A device or a pipe,
    which has nothing to lose, is written to as it is.

    Args:
        path (`Path`): the file; its folder exists.

    Raises:
        InputError: if another process writes the file in this moment.
        OSError: naming `path`, if it is a folder or cannot be written.
    """
    target = Path(os.path.realpath(path))
    mode = target.stat().st_mode if target.exists() else None
    if mode is not None and not stat.S_ISREG(mode):
        try:
            with target.open("wb") as stream:  # raises IsADirectoryError for a folder
                yield stream
        except OSError as error:
            raise _named(error, path) from error
        return
    part = target.with_name(f".{target.name}.part")
    try:
        with _own_part(part, path) as stream:
            try:
                yield stream
                stream.flush()
                if mode is not None:
                    part.chmod(stat.S_IMODE(mode))
                os.fsync(stream.fileno())
                os.replace(part, target)
            except BaseException:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise _named(error, path) from error
    _sync_folder(target.parent)


def _own_part(part: Path, path: Path) -> IO[bytes]:
    """The empty part file, held against other writers of `path` until it is closed; one that is left over is used."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if flock is not None:
                with suppress(OSError):  # a file system without locks
                    _lock(descriptor, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), part.stat()):
                    os.ftruncate(descriptor, 0)
                    return os.fdopen(descriptor, "wb")
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process has just finished with it: it is the file itself now


def _lock(descriptor: int, path: Path) -> None:
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"Another process is writing {path} in this moment; wait for it, or give another file."
        ) from error


def _named(error: OSError, path: Path) -> OSError:
    """The same error, of the file that was asked for: the name of a part file would tell the user nothing."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power failure, where the system lets a folder be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
