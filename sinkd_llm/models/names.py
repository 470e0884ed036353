"""What a model name means: a bundled model, a GGUF file, a LoRA adapter, a folder or a hub id."""

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from sinkd_llm.errors import InputError, shown
from sinkd_llm.models.bundled import BUNDLED, bundled_file
from sinkd_llm.models.stored_config import (
    CONFIG,
    check_adapter_config,
    check_config,
    check_packed,
    check_tokens,
    not_fetched,
    weight_files,
)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# What a save of a student says of it beside its files: how its base was loaded, and which files belong to it.
STUDENT_RECORD = "sinkd_student.json"

# An adapter whose base has no name of its own keeps that base in this folder beside it (saving.py).
BASE_FOLDER = "base"
# What such an adapter writes as its base's name: no hub id, so that nobody asks the hub for it.
BASE_REFERENCE = f"./{BASE_FOLDER}"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WHAT_CAN_BE_GIVEN = (
    "Give a model hub id (organisation/name), a folder, a *.gguf file, or one of the bundled names "
    + ", ".join(repr(name) for name in BUNDLED)
    + "."
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model's weights are.

    Attributes:
        name (`str`): as the user wrote it.
        kind (`str`): `"bundled"`, `"gguf"`, `"adapter"` (a folder with a PEFT adapter), `"folder"` or
            `"hub"`.
        path (`str`): the absolute folder, or the hub id.
        gguf_file (`str` or `None`): name of the GGUF file in `path`, for `"gguf"` and most of `"bundled"`.
        revision (`str`): branch, tag or commit of the hub repository; without meaning elsewhere.
    """

    name: str
    kind: Literal["bundled", "gguf", "adapter", "folder", "hub"]
    path: str
    gguf_file: str | None = None
    revision: str = "main"


def resolve_model_source(name_or_path: str | Path, revision: str = "main") -> ModelSource:
    """
    Says what a model name or path stands for, and that a local one is whole. Reads no weights.

    Args:
        name_or_path (`str` or `Path`): a bundled name, the path of a `*.gguf` file, a folder with a
            model or a PEFT adapter, or a hub id. A bundled name is looked for first; write `./name`
            for a folder of the same name.
        revision (`str`, *optional*, defaults to `"main"`): branch, tag or commit of a hub repository.

    Raises:
        InputError: if the name is unknown, the package of a bundled model is not installed, or the
            folder is not complete; the message says what is missing and what to do.
    """
    if not isinstance(name_or_path, str | Path):
        raise InputError(f"The model's name is {shown(name_or_path)}, which is no text. {WHAT_CAN_BE_GIVEN}")
    name = str(name_or_path)
    path = Path(os.path.expanduser(name))  # unlike `Path.expanduser`, also for a user that is not there
    if not name.strip():
        raise InputError(f"The model name is empty. {WHAT_CAN_BE_GIVEN}")
    if name in BUNDLED:
        file = bundled_file(name)
        if file.is_dir():
            return ModelSource(name, "bundled", str(file))
        return ModelSource(name, "bundled", str(file.parent), file.name)
    if path.suffix.lower() == ".gguf" or path.is_file():
        _check_gguf(path)
        file = path.resolve()
        return ModelSource(name, "gguf", str(file.parent), file.name)
    if path.is_dir():
        folder = path.resolve()
        if (folder / ADAPTER_CONFIG).is_file():
            _check_adapter(folder)
            return ModelSource(name, "adapter", str(folder))
        check_model_folder(folder)
        return ModelSource(name, "folder", str(folder))

    close = get_close_matches(name.lower(), list(BUNDLED), n=1, cutoff=0.75)
    if close:
        # Asking the hub for a misspelt bundled name would end in a slower and less helpful error.
        raise InputError(f"There is no model {name!r}. Did you mean {close[0]!r}? {WHAT_CAN_BE_GIVEN}")
    if _HUB_ID.fullmatch(name):
        return ModelSource(name, "hub", name, revision=revision)
    raise InputError(f"There is no folder or file {name!r}. {WHAT_CAN_BE_GIVEN}")


def is_here(name: str) -> bool:
    """Whether a name means a bundled model, or a file or folder of this machine."""
    return name in BUNDLED or os.path.exists(os.path.expanduser(name))


def stored_file(source: ModelSource, name: str) -> Path | None:
    """A file of a folder, or of a hub repository as far as it was downloaded; `None` if it is not on this machine."""
    if source.kind != "hub":
        file = Path(source.path) / name
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.path, name, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def check_model_folder(folder: Path) -> None:
    """
    Checks that `folder` holds a whole model: its configuration, and all its weights as safetensors.

    Raises:
        InputError: naming the first thing that is missing or damaged.
    """
    if not (folder / CONFIG).is_file():
        files = sorted(file.name for file in folder.glob("*.gguf"))
        checkpoints = sorted(file.name for file in folder.glob("checkpoint-*") if file.is_dir())
        hint = " Give the folder that a finished run or save_pretrained wrote."
        if files:
            hint = f" Give the path of the GGUF file itself: {folder / files[0]}"
        elif checkpoints:
            hint = f" It holds training checkpoints; one of them is {folder / checkpoints[-1]}"
        raise InputError(f"{folder} is no model folder: it has no {CONFIG}.{hint}")
    check_config(folder / CONFIG, 0)  # a configuration that is none is said before its weights are missed
    if (folder / WEIGHTS).is_file():
        weights = [folder / WEIGHTS]
    elif (folder / WEIGHTS_INDEX).is_file():
        weights = [folder / shard for shard in weight_files(folder / WEIGHTS_INDEX)]
    else:
        raise InputError(f"{folder} has a {CONFIG} but no {WEIGHTS}{_pickle_hint(folder)}")
    found = [_check_safetensors(file) for file in weights]
    config = check_config(folder / CONFIG, max(largest for largest, _ in found))
    check_packed(folder / CONFIG, config, [name for _, names in found for name in names])
    if (folder / GENERATION_CONFIG).is_file():
        check_tokens(folder / GENERATION_CONFIG)


def _check_adapter(folder: Path) -> None:
    seen = [folder]
    while (base := _local_base(seen[-1])) is not None:
        if base in seen:
            raise InputError(
                f"The adapter in {seen[-1]} names {'its own folder' if base == seen[-1] else base} as its base model"
                + (", which is an adapter of it in turn." if base != seen[-1] else ".")
            )
        seen.append(base)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"{folder} has an {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}{_pickle_hint(folder)}")
    check_adapter_config(folder / ADAPTER_CONFIG, _check_safetensors(folder / ADAPTER_WEIGHTS)[0])
    if not (folder / BASE_FOLDER).is_dir() and ((folder / WEIGHTS).is_file() or (folder / WEIGHTS_INDEX).is_file()):
        raise InputError(
            f"{folder} holds both a full model and an adapter, so it is not clear which is meant. "
            f"Move {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} to a folder of their own."
        )


def _local_base(folder: Path) -> Path | None:
    """The folder that an adapter names as its base, if that is an adapter as well."""
    name = check_adapter_config(folder / ADAPTER_CONFIG, 0).get("base_model_name_or_path")
    if (folder / BASE_FOLDER).is_dir() or not name or name in BUNDLED:
        return None
    base = Path(os.path.expanduser(name))
    return base.resolve() if (base / ADAPTER_CONFIG).is_file() else None


def _pickle_hint(folder: Path) -> str:
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
    if not pickles:
        return ": the save was interrupted, or the weights were not copied. Save or copy it again."
    return (
        f", only {pickles[0]}: a pickle file can run code when it is opened, so it is not loaded. "
        "Convert it to safetensors where you trust it: load it there with Transformers and call "
        "save_pretrained."
    )


def _check_safetensors(file: Path) -> tuple[int, list[str]]:
    """The largest dimension of any weight in a file that is whole, and the names of its weights."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise InputError(
            f"{file.parent} lacks {file.name}, which its {WEIGHTS_INDEX} lists: the save or copy was "
            "interrupted. Save or copy the folder again."
        )
    try:
        with safe_open(file, framework="pt") as stored:
            names = list(stored.keys())
            return max((n for name in names for n in stored.get_slice(name).get_shape()), default=0), names
    except (SafetensorError, OSError) as error:
        if said := not_fetched(file):
            raise InputError(said) from error
        raise InputError(
            f"{file} is damaged or cut short ({error}): the save or copy was interrupted. Save or copy it again."
        ) from error


def _check_gguf(file: Path) -> None:
    if not file.is_file():
        raise InputError(f"There is no file {str(file)!r}. {WHAT_CAN_BE_GIVEN}")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            if said := not_fetched(file):
                raise InputError(said)
            raise InputError(f"{str(file)!r} is no GGUF file. {WHAT_CAN_BE_GIVEN}")
