"""`sinkd_manifest.json`: what a model or checkpoint folder held when it was written: changed bytes are seen."""

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole

MANIFEST_FILE = "sinkd_manifest.json"
# What a student's folder keeps for its use, beside its model: calibrated and routed after it is saved.
ANSWERS_FILE = "sinkd_answers.json"
FORMAT = 1

# What goes on changing in a run folder, or that a reader may edit: it says nothing about the model.
_CHANGING = {
    *(MANIFEST_FILE, ANSWERS_FILE, "results.json", "metrics.jsonl", "report.html"),
    *("predictions.json", "transport_plan.json"),
}
_EDITED = "README.md"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_OTHER_FOLDERS = re.compile(r"checkpoint-\d+|runs|\..*")


def write_manifest(folder: Path, facts: dict[str, Any] | None = None) -> None:
    """
    Record size and sha256 of the files of a model or checkpoint, as the last thing that is written of it.

    Left out are hidden files, the records of a run (results, metrics, report), the README.md of a model, and the
    folders of checkpoints and of tensorboard, none of which belongs to the model beside it.

    Args:
        folder (`Path`): of the model or the checkpoint; sub-folders (`base/`, `global_step…/`) are recorded too.
        facts (`dict`, *optional*): what [`check_manifest`] shall give back: anything that JSON can hold.

    Raises:
        OSError: if a file cannot be read, or the manifest cannot be written.
    """
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _digest_of(file)}
        for file in sorted(_recorded_files(folder))
    }
    content = {"format": FORMAT, "facts": facts or {}, "files": files}
    content["sha256"] = _own_sum(content)
    write_whole(folder / MANIFEST_FILE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def check_manifest(folder: Path) -> dict[str, Any]:
    """
    Make sure that the files of a folder are the files of which its manifest was written.

    A file is read once a process, as long as its size and time stay the same. Files that were added later pass.

    Args:
        folder (`Path`): of a model or a checkpoint.

    Returns:
        `dict`: the facts that [`write_manifest`] was given; empty where there is no manifest.

    Raises:
        InputError: naming the first file that is missing or whose bytes have changed, or the manifest if that is
            damaged.
    """
    content = _read(folder / MANIFEST_FILE)
    for name, record in content["files"].items():
        if (problem := _problem(folder, name, record)) is not None:
            raise InputError(f"{problem}. {_ADVICE}")
    facts: dict[str, Any] = content["facts"]
    return facts


def changed_files(folder: Path) -> list[str]:
    """Names of the files that are not, or no longer, the files of which the folder's manifest was written.

    Raises:
        InputError: if the manifest is damaged.
    """
    content = _read(folder / MANIFEST_FILE)
    return [name for name, record in content["files"].items() if _problem(folder, name, record) is not None]


def manifest_sum(folder: Path) -> str | None:
    """
    What tells the model of a folder from every other: the sum of its manifest; `None` where there is no manifest.

    Raises:
        InputError: if the manifest is damaged.
    """
    found = _read(folder / MANIFEST_FILE).get("sha256")
    return None if found is None else str(found)


def _problem(folder: Path, name: str, record: dict[str, Any]) -> str | None:
    file = folder / name
    if not file.is_file():
        return f"{folder} lacks {name}, which was there when it was written"
    size = file.stat().st_size
    if size != record["bytes"]:
        return f"{file} has {size} bytes instead of the {record['bytes']} that were written"
    if _digest_of(file) != record["sha256"]:
        return f"the bytes of {file} are not those that were written"
    return None


_ADVICE = (
    "It was damaged, copied in part or edited: copy or save the folder again, or delete its "
    f"{MANIFEST_FILE} if the change is meant."
)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {"facts": {}, "files": {}}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise InputError(
                f"{path} is of format {content['format']!r} and this version reads {FORMAT}; update sinkd-llm, or "
                "delete the file to load the folder unchecked."
            )
        if not isinstance(content["facts"], dict) or not isinstance(content["files"], dict):
            raise ValueError("its facts or files are no mapping")
        if not all(map(_is_inside, content["files"])):
            raise ValueError("it names files outside of its folder")
        for record in content["files"].values():
            if not (type(record["bytes"]) is int and isinstance(record["sha256"], str)):
                raise ValueError("a file's size or sum is missing")
        if content["sha256"] != _own_sum(content):
            raise ValueError("it does not agree with its own sum")
        return dict(content)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}). {_ADVICE}") from error


def _own_sum(content: dict[str, Any]) -> str:
    text = json.dumps([content["facts"], content["files"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


def _recorded_files(folder: Path) -> Iterator[Path]:
    of_checkpoint = _CHECKPOINT.fullmatch(folder.name) is not None
    for entry in folder.iterdir():
        if entry.name == _EDITED and not of_checkpoint:
            continue
        if entry.is_dir():
            if not _OTHER_FOLDERS.fullmatch(entry.name):
                yield from _recorded_files(entry)
        elif entry.is_file() and entry.name not in _CHANGING and not entry.name.startswith("."):
            yield entry


def _digest_of(file: Path) -> str:
    found = file.stat()
    return _digest(str(file.resolve()), found.st_size, found.st_mtime_ns, found.st_ino)


@functools.lru_cache(maxsize=4096)
def _digest(path: str, size: int, time_ns: int, inode: int) -> str:
    """Keyed by size, time and inode, so that a file that is written over is read again."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
