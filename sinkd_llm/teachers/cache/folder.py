"""The folder of a cache: what may be written there, and how a new cache takes the place of an old one."""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from sinkd_llm.errors import InputError
from sinkd_llm.locks import LOCK_FILES
from sinkd_llm.teachers.cache.manifest import MANIFEST, Manifest

INDEX = "index.safetensors"
SHARDS = "shard-*.safetensors"
# What the other processes of a launch have cached, until the first one writes it into the manifest.
PARTS = "part-*.json"
# Where the successor of a cache is written, inside its folder, until it is whole.
NEW = ".new"


def refuse_other_files(folder: Path) -> None:
    """
    Refuse a folder that holds something, but no cache. Nothing is written.

    Raises:
        InputError: naming what it holds.
    """
    if not folder.is_dir() or _is_cache(folder):
        return
    ours = (*LOCK_FILES, NEW)
    strange = [f.name for f in folder.iterdir() if f.name not in ours and not f.name.endswith(".part")]
    if strange:
        raise InputError(f"{folder} holds {sorted(strange)[0]} but no teacher cache; give a new or empty folder.")


def refuse_differences(folder: Path, wanted: Manifest, found: Manifest) -> None:
    """
    Refuse to go on with a cache that is of something else.

    Raises:
        InputError: naming what differs.
    """
    if differences := wanted.differences(found):
        raise InputError(
            f"{folder} holds a cache of something else ({'; '.join(differences)}); give another --output, or "
            "--overwrite to replace it."
        )


def _is_cache(folder: Path) -> bool:
    """Whether a folder has a manifest of a cache; one that is damaged counts where shards are beside it."""
    path = folder / MANIFEST
    if not path.is_file():
        # A process may have been killed while it put a new cache in the place of an old one.
        return folder.name != NEW and _is_cache(folder / NEW)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and content:
        return {"layout", "shards"} & content.keys() != set()
    return any(folder.glob(SHARDS))


def remove_cache(folder: Path) -> None:
    """Delete the cache in `folder`, its manifest first, and what was begun to replace it; other files stay."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for pattern in (SHARDS, PARTS, INDEX, "*.part"):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(folder / NEW, ignore_errors=True)


def drop_leftovers(folder: Path, kept: Collection[str]) -> None:
    """Delete shards that no manifest names, parts that one has taken over, and files that were begun."""
    for pattern in (SHARDS, PARTS, "*.part"):
        for file in folder.glob(pattern):
            if file.name not in kept:
                file.unlink()


def replace_cache(folder: Path, new: Manifest) -> None:
    """Put the whole cache in `NEW` in the place of the one beside it; called again, it goes on after a kill."""
    (folder / MANIFEST).unlink(missing_ok=True)
    assert new.index is not None
    names = [record["file"] for record in (*new.shards, new.index)]
    for name in names:
        if (folder / NEW / name).exists():
            os.replace(folder / NEW / name, folder / name)
    drop_leftovers(folder, names)
    os.replace(folder / NEW / MANIFEST, folder / MANIFEST)
    shutil.rmtree(folder / NEW, ignore_errors=True)


def finish_replacing(folder: Path, wanted: Manifest) -> None:
    """A process that was killed while it put a whole new cache in the place of the old one has left both in parts."""
    if not (folder / NEW / MANIFEST).exists():
        return
    try:
        new = Manifest.load(folder / NEW)
    except InputError:
        return
    if new.complete and (not (folder / MANIFEST).exists() or not wanted.differences(new)):
        replace_cache(folder, new)
