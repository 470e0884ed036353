"""Where an export is written: a folder of its own, as a whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from sinkd_llm.errors import InputError
from sinkd_llm.locks import LOCK_FILES
from sinkd_llm.models.placing import is_staging, staged
from sinkd_llm.models.stored_config import read_json
from sinkd_llm.units import format_bytes

# What an export says of itself: its format, its files, and how it was checked.
EXPORT_FILE = "sinkd_export.json"


def check_export_place(folder: Path, needed: int) -> None:
    """
    Refuses a folder that an export must not be written to. Nothing is written.

    Args:
        folder (`Path`): where the export is to be; an earlier export in it is replaced.
        needed (`int`): bytes that writing takes.

    Raises:
        InputError: if it is a file, or holds a file that no export wrote, or its disk has less room.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder} is a file; give a folder.")
    if foreign := _foreign(folder):
        raise InputError(
            f"--output {folder} holds {foreign}, which no export wrote; give another folder, or move it away."
        )
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"The disk of --output {folder} has {format_bytes(free)} left, and this export takes up to "
            f"{format_bytes(needed)} while it is written; free space, or give a folder on another disk."
        )


def _foreign(folder: Path) -> str | None:
    """A file that is of no export, nor of a save that was stopped or goes on; `None` if there is none."""
    if not folder.is_dir():
        return None
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    names = sorted(file.as_posix() for file in files if not is_staging(file) and file.name not in LOCK_FILES)
    own: set[str] = set()
    if (folder / EXPORT_FILE).is_file():
        own = {*read_json(folder / EXPORT_FILE, "sinkd export").get("files", ())}
    return next((name for name in names if name not in own), None)


@contextlib.contextmanager
def export_folder(folder: Path) -> Iterator[Path]:
    """
    An empty folder, whose content goes to `folder` when the block ends without an error; after one that is as before.

    Raises:
        OSError: naming what could not be written, such as where the disk is full.
    """
    try:
        with staged(folder) as staging:
            yield staging
    except OSError:
        raise
    except Exception as error:
        # Libraries in other languages say so in words alone.
        if "no space left" in str(error).lower() or "os error 28" in str(error).lower():
            raise InputError(
                f"The disk of {folder} is full: nothing was kept of this export. Free space, or give a folder on "
                "another disk."
            ) from error
        raise
