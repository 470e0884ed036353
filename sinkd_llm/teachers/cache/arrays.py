"""Files of a cache: written whole or not at all, checked, and read through memory maps.

The arrays are safetensors files. Their header is read here, and not by the safetensors library, because that copies
an array to give one row of it; nothing is ever unpickled.
"""

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole

_DTYPES = {"F32": "<f4", "U8": "|u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "I64": "<i8"}
_BLOCK = 2**20


def write_arrays(path: Path, arrays: Mapping[str, "np.ndarray[Any, Any]"]) -> dict[str, Any]:
    """Write arrays as a safetensors file; returns its `file`, `bytes` and `checksum`."""
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    write_whole(path, content)
    return {"file": path.name, "bytes": len(content), "checksum": _digest(content)}


def file_checksum(path: Path) -> str:
    """BLAKE2b of a file, 16 bytes in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def problem_of_file(folder: Path, record: Mapping[str, Any], *, read: bool = True) -> str | None:
    """What is wrong with a file of which `record` is kept, or `None`; without `read` only its length is looked at."""
    path = folder / record["file"]
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != record["bytes"]:
        return f"{path.name} has {path.stat().st_size} bytes instead of {record['bytes']}"
    if read and file_checksum(path) != record["checksum"]:
        return f"the bytes of {path.name} have changed"
    return None


@dataclass(frozen=True)
class MappedArrays:
    """The arrays of a safetensors file, memory-mapped: indexing reads what is indexed."""

    arrays: dict[str, "np.ndarray[Any, Any]"]
    memory: "np.memmap[Any, Any]"

    def release(self) -> None:
        """
        Give back the memory of what was read. The system would do so itself, but not before memory is scarce, and
        until then a process would seem to hold all that it ever read.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def map_arrays(path: Path) -> MappedArrays:
    """Map a safetensors file.

    Raises:
        InputError: if it is no such file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no mapping")
        memory = np.memmap(path, np.uint8, mode="r")
        if hasattr(mmap, "MADV_RANDOM"):  # a batch's rows lie anywhere; reading ahead would read the whole file
            memory._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = (8 + length + offset for offset in entry["data_offsets"])
            if not 8 + length <= start <= stop <= size:
                raise ValueError(f"{name} lies outside the file")
            # A plain array over the map: memmap's own indexing costs a Python call for each result.
            octets = np.asarray(memory[start:stop])
            arrays[name] = octets.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return MappedArrays(arrays, memory)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is no safetensors file of a teacher cache ({error}); write the cache again."
        ) from error
