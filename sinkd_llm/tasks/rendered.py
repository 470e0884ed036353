"""Rendered rows of large splits on disk, for the next run and for the other processes of this one."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.environment import package_version
from sinkd_llm.files import cache_dir

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# Fewer rows are read and rendered in a second.
CACHED_FROM = 5_000
# Of all that is kept; the files that were used longest ago go first.
MOST_BYTES = 2 << 30
_CODE = (Path(__file__).parent, Path(__file__).parents[1])


def rendered_rows(
    key: Mapping[str, Any], files: Iterable[Path], render: Callable[[], "datasets.Dataset"]
) -> "datasets.Dataset":
    """
    The rows that `render` gives, from an earlier run where one kept them.

    They are kept in the user's cache under a name of everything that they depend on: the key, the files' paths, sizes
    and times (of the last change of the content, and of the file), the code of this folder, and the versions of the
    libraries that render. A file gets its name when it is whole, and has a checksum beside it: a run that is killed
    leaves nothing that is read, and what is damaged later is made again.

    Args:
        key (`Mapping[str, Any]`): what was asked for, in values that JSON takes or that are written as text.
        files (`Iterable[Path]`): what the rows are read from.
        render (`Callable`): reads and renders them.

    Raises:
        InputError: of `render`.
    """
    from filelock import FileLock

    path = _path(key, files)
    if (found := _read(path)) is not None:
        return found
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # the first process of a launch renders, the others wait for its file
    except OSError as error:
        logger.info("The rendered rows are not kept in %s: %s", path.parent, error)
        return render()
    try:
        if (found := _read(path)) is not None:
            return found
        rows = render()
        if len(rows) < CACHED_FROM:
            return rows
        try:
            _keep(rows, path)
        except OSError as error:
            logger.info("The rendered rows are not kept in %s: %s", path, error)
        return _read(path) or rows
    finally:
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink(missing_ok=True)


def _read(path: Path) -> "datasets.Dataset | None":
    """The rows of a file; `None` if it is not there, or damaged."""
    import datasets
    import pyarrow as pa

    try:
        if _checksum(path) != _sum_of(path).read_text(encoding="ascii"):
            return None
        found = datasets.Dataset.from_file(str(path))
        found.data.validate(full=True)
        os.utime(path)
    except (OSError, pa.ArrowException, ValueError):
        return None
    # Its own fingerprint goes by the file's time, and the names of cached token ids by the fingerprint.
    return datasets.Dataset(found.data, info=found.info, fingerprint=path.stem)


def _path(key: Mapping[str, Any], files: Iterable[Path]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode())
    for file in files:
        state = file.stat()
        digest.update(f"|{file.resolve()}|{state.st_size}|{state.st_mtime_ns}|{state.st_ctime_ns}".encode())
    for code in sorted(path for folder in _CODE for path in folder.glob("*.py")):
        digest.update(code.read_bytes())
    digest.update("|".join(str(package_version(name)) for name in ("datasets", "jinja2", "pyarrow")).encode())
    return cache_dir() / "rows" / f"{digest.hexdigest()[:32]}.arrow"


def _keep(rows: "datasets.Dataset", path: Path) -> None:
    import pyarrow as pa

    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        table = rows.data.table
        with pa.OSFile(str(temporary), "wb") as stream, pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
        checksum = _checksum(temporary)
        temporary.replace(path)
        _sum_of(path).write_text(checksum, encoding="ascii")
    finally:
        temporary.unlink(missing_ok=True)
    _bound(path.parent)


def _bound(folder: Path) -> None:
    """Remove the files that were used longest ago, beyond what may be kept."""
    states = sorted(((file.stat(), file) for file in folder.glob("*.arrow")), key=lambda one: -one[0].st_mtime_ns)
    kept = 0
    for state, file in states:
        kept += state.st_size
        if kept > MOST_BYTES:
            file.unlink(missing_ok=True)
            _sum_of(file).unlink(missing_ok=True)


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sum_of(file: Path) -> Path:
    return file.with_suffix(".sha256")
