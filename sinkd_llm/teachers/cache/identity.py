"""What tells one teacher, tokenizer or row from another: short hashes."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.models.names import resolve_model_source
from sinkd_llm.teachers.cache.arrays import file_checksum

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_AT_ONCE = 10_000


def example_key(example_id: str) -> int:
    """64 bits that stand for an example's id."""
    return int.from_bytes(hashlib.blake2b(example_id.encode("utf-8"), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class RowPrints:
    """What is known of some tokenised rows without their text.

    Attributes:
        names (`list[str]`): their example ids.
        keys (`np.ndarray`): [`example_key`] of each.
        prints (`np.ndarray`): 32 bits of what the model reads of a row, and above them 32 bits of its answer.
        counts (`np.ndarray`): supervised tokens.
        lengths (`np.ndarray`): tokens of prompt and answer.
    """

    names: list[str]
    keys: "np.ndarray[Any, Any]"
    prints: "np.ndarray[Any, Any]"
    counts: "np.ndarray[Any, Any]"
    lengths: "np.ndarray[Any, Any]"


def row_prints(features: "Dataset") -> Iterator[RowPrints]:
    """The prints of tokenised rows, ten thousand rows at a time; of rows with all their choices, of their texts."""
    if "row_print" in features.column_names:
        for table in features.select_columns(["example_id", "row_print"]).with_format("arrow").iter(_ROWS_AT_ONCE):
            names = table["example_id"].to_pylist()
            keys = np.array([example_key(n) for n in names], np.uint64)
            ones = np.ones(len(names), np.int64)
            yield RowPrints(names, keys, table["row_print"].to_numpy().astype(np.uint64), ones, ones)
        return
    columns = [c for c in ("example_id", "prompt_ids", "token_type_ids", "answer_ids") if c in features.column_names]
    if "answer_ids" not in columns:
        raise InputError("A teacher cache holds training rows, but these rows have no single answer each.")
    for table in features.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        names = table["example_id"].to_pylist()
        read = [_lists(table[c]) for c in ("prompt_ids", "token_type_ids") if c in columns]
        answers = _lists(table["answer_ids"])
        prompts = read[0]
        prints = np.empty(len(names), np.uint64)
        for i in range(len(names)):
            prompt = _print32(*(rows[i] for rows in read))
            prints[i] = prompt | _print32(answers[i]) << 32
        counts = np.array([len(row) for row in answers], np.int64)
        lengths = counts + np.array([len(row) for row in prompts], np.int64)
        yield RowPrints(names, np.array([example_key(n) for n in names], np.uint64), prints, counts, lengths)


def _lists(column: Any) -> list["np.ndarray[Any, Any]"]:
    """The lists of an Arrow column, as views of its values."""
    array = column.combine_chunks()
    values = np.asarray(array.values, dtype=np.int64)
    ends = np.asarray(array.offsets)
    return [values[start:stop] for start, stop in pairwise(ends)]


def _print32(*parts: "np.ndarray[Any, Any]") -> int:
    digest = hashlib.blake2b(digest_size=4)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(part, "<i8").tobytes())
    return int.from_bytes(digest.digest(), "little")


def tokenizer_hash(tokenizer: Any) -> str:
    """Of the vocabulary without added tokens, in which models that share it may differ (`check_same_tokenizer`)."""
    added = set(tokenizer.added_tokens_decoder)
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items() if index not in added)
    return hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=16).hexdigest()


def weights_hash(name_or_path: str, revision: str = "main") -> str | None:
    """Of the files that hold a model's weights and configuration; `None` for the hub, where a revision names them.

    Raises:
        InputError: as [`~sinkd_llm.models.resolve_model_source`].
    """
    source = resolve_model_source(name_or_path, revision)
    if source.kind == "hub":
        return None
    folder = Path(source.path)
    weights = ["*.safetensors", "base/*.safetensors", "config.json", "adapter_config.json"]
    patterns = [source.gguf_file] if source.gguf_file else weights
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.relative_to(folder)} {file_checksum(file)}\n".encode())
    return digest.hexdigest()
