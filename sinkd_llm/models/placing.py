"""A model's files in a folder: all of a save or none of it, and nothing that somebody else put there."""

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.integrity import MANIFEST_FILE, write_manifest
from sinkd_llm.models.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_FOLDER,
    CONFIG,
    STUDENT_RECORD,
    WEIGHTS,
    WEIGHTS_INDEX,
)

# What makes a folder a model, for Transformers or PEFT.
_MODEL_FILES = (
    *(CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, WEIGHTS, WEIGHTS_INDEX, f"{BASE_FOLDER}/{CONFIG}"),
    *("pytorch_model.bin", "adapter_model.bin", "pytorch_model.bin.index.json"),
)
_STAGING, _ASIDE = ".sinkd-saving-", ".sinkd-replaced-"
# A page that people write on; it is written once and left alone then.
README = "README.md"


def check_place(folder: Path) -> None:
    """
    Refuses a folder into which a student cannot be saved.

    Raises:
        InputError: if it is a file, or holds a model that no earlier save of a student wrote.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"Cannot save to {folder}: it is a file. Give a folder.")
    claimed = set(saved_files(folder))
    shards = (file.name for file in folder.glob("model-*-of-*.safetensors"))
    for name in (*_MODEL_FILES, *shards):
        if (folder / name).is_file() and name not in claimed:
            raise InputError(
                f"Cannot save to {folder}: it holds a model already ({name}), which no earlier save of a student "
                "wrote and which would be lost. Give another folder, or move that model away."
            )


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """
    An empty folder beside the files of `folder`, whose content goes there when the block ends without an error.

    Until then `folder` holds what it held, and after an error again. What earlier saves wrote is taken away.

    Args:
        folder (`Path`): made if it does not exist; see [`check_place`].
    """
    check_place(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_STAGING}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder))
    try:
        yield staging
        give_ordinary_modes(staging)
        _publish(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # it is not empty: the save succeeded
                folder.rmdir()


def is_staging(file: Path) -> bool:
    """Whether a file, by its path from a folder on, is of a save into that folder that was stopped, or goes on."""
    return file.parts[0].startswith((_STAGING, _ASIDE))


def give_ordinary_modes(folder: Path) -> None:
    """
    Gives every file under `folder` the permissions of a new file, which the umask says: safetensors (0.8) writes files
    that their owner alone can read, and copies keep the permissions of what they were made from.
    """
    with tempfile.TemporaryDirectory(dir=folder) as probes:
        probe = Path(probes) / "probe"
        probe.touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
    for name in _files_of(folder):
        file = folder / name
        if not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            with contextlib.suppress(OSError):  # a file system without permissions
                file.chmod(mode)


def write_record(staging: Path, facts: dict[str, Any]) -> None:
    """Writes what a save knows of its student, which files belong to it, and their checksums, into a staged folder."""
    files = sorted(name for name in _files_of(staging) if name != README)
    record = {**facts, "files": [*files, STUDENT_RECORD, MANIFEST_FILE]}
    (staging / STUDENT_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_manifest(staging, facts)


def _files_of(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def saved_files(folder: Path) -> list[str]:
    """The files in `folder` that an earlier save of a student wrote, relative to it."""
    try:
        record = json.loads((folder / STUDENT_RECORD).read_text(encoding="utf-8"))
        names = [name for name in record["files"] if isinstance(name, str)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    inside = (
        name for name in names if not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    )
    return [name for name in inside if (folder / name).is_file()]


def _publish(staging: Path, folder: Path) -> None:
    new = _files_of(staging)
    if (folder / README).exists() and README in new:
        new.remove(README)
    # Weights first and the manifest last: a folder that is half done is one without a configuration, or one whose
    # earlier manifest names files that are not there.
    new.sort(key=lambda name: (name == MANIFEST_FILE, name == STUDENT_RECORD, name.endswith(CONFIG), name))
    aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder))
    replaced = {name for name in (*saved_files(folder), *new) if (folder / name).exists()}
    moved: list[tuple[Path, Path]] = []
    try:
        for name in sorted(replaced, key=lambda name: (name == MANIFEST_FILE, name)):
            _move(folder / name, aside / name, moved)
        for name in new:
            _move(staging / name, folder / name, moved)
    except BaseException:
        for origin, target in reversed(moved):
            origin.parent.mkdir(parents=True, exist_ok=True)
            os.replace(target, origin)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        for parent in {(folder / name).parent for name in (*replaced, *new)} - {folder}:
            with contextlib.suppress(OSError):  # it holds something
                parent.rmdir()
    for old in folder.glob(f"{_ASIDE}*"):  # of this save, and of one that was killed
        shutil.rmtree(old, ignore_errors=True)


def _move(origin: Path, target: Path, moved: list[tuple[Path, Path]]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(origin, target)
    moved.append((origin, target))
