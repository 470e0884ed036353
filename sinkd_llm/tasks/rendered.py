"""Rendered rows of large splits on disk, for the next run and for the other processes of this one."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sinkd_llm.environment import package_version
from sinkd_llm.files import cache_dir

if TYPE_CHECKING:
    import datasets
    import numpy as np

logger = logging.getLogger(__name__)

# Fewer rows are read and rendered in a second.
CACHED_FROM = 5_000
# Of all that is kept; the files that were used longest ago go first.
MOST_BYTES = 2 << 30
_TEMPORARY: list[TemporaryDirectory[str]] = []  # until the process ends
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
    path = _path(key, files)
    if (found := _read(path)) is not None:
        return found
    with _alone(path) as may_keep:
        if (found := _read(path)) is not None:
            return found
        rows = render()
        if len(rows) < CACHED_FROM or not may_keep:
            return rows
        try:
            with _whole(path) as temporary:
                _write(rows, temporary)
        except OSError as error:
            logger.info("The rendered rows are not kept in %s: %s", path, error)
        return _read(path) or rows


def streamed_rows(
    key: Mapping[str, Any],
    files: Iterable[Path],
    render: "Callable[[], tuple[Iterator[dict[str, list[Any]]], np.ndarray[Any, Any] | None]]",
    features: "datasets.Features",
) -> "datasets.Dataset":
    """
    As [`rendered_rows`], for rows that memory need not have room for: they are written as they come.

    Where the user's cache cannot be written to, they are in a temporary folder until this process ends.

    Args:
        key, files: as in [`rendered_rows`].
        render (`Callable`): gives columns of some rows at a time, and which of all these rows is the first, second, …
            of the data set; `None` for their own order.
        features ([`~datasets.Features`]): of the rows.

    Raises:
        InputError: of `render`.
        OSError: if the disk is full.
    """
    path = _path(key, files)
    if (found := _read(path)) is not None:
        return found
    with _alone(path) as may_keep:
        if not may_keep:
            _TEMPORARY.append(TemporaryDirectory(prefix="sinkd-rows-"))
            path = Path(_TEMPORARY[-1].name) / path.name
        elif (found := _read(path)) is not None:
            return found
        with _whole(path) as temporary:
            _stream(*render(), features, temporary)
        rows = _read(path)
    if rows is None:
        raise OSError(f"The rows in {path} cannot be read again; check the disk.")
    return rows


def _stream(
    parts: "Iterator[dict[str, list[Any]]]",
    order: "np.ndarray[Any, Any] | None",
    features: "datasets.Features",
    to: Path,
) -> None:
    import datasets
    from datasets.arrow_writer import ArrowWriter

    in_order = to if order is None else to.with_name(f"{to.name}-unordered")
    try:
        with ArrowWriter(path=str(in_order), features=features) as writer:
            for columns in parts:
                writer.write_batch(columns)
            writer.finalize()
        if order is not None:
            _write(datasets.Dataset.from_file(str(in_order)).select(order), to)
    finally:
        if order is not None:
            in_order.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """The first process of a launch renders, the others wait for its file; whether there may be one."""
    from filelock import FileLock

    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        logger.info("The rendered rows are not kept in %s: %s", path.parent, error)
        yield False
        return
    try:
        yield True
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


def _write(rows: "datasets.Dataset", file: Path) -> None:
    import pyarrow as pa

    schema = rows.features.arrow_schema
    with pa.OSFile(str(file), "wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for table in rows.with_format("arrow").iter(batch_size=CACHED_FROM):
            writer.write_table(table.cast(schema))


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """What is written inside gets its name and its checksum when it is whole."""
    for left in path.parent.glob(f"{path.name}.[0-9]*"):  # of a process that was killed
        left.unlink(missing_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        yield temporary
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
    for number, (state, file) in enumerate(states):
        kept += state.st_size
        if kept > MOST_BYTES and number:  # not what is being used now
            file.unlink(missing_ok=True)
            _sum_of(file).unlink(missing_ok=True)


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sum_of(file: Path) -> Path:
    return file.with_suffix(".sha256")
