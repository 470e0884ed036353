"""Small caches for the tests: made-up rows, and a teacher that is a table."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from sinkd_llm.teachers.cache.layout import CacheLayout
from sinkd_llm.teachers.cache.manifest import Manifest, RowsIdentity, TeacherIdentity
from sinkd_llm.teachers.cache.writer import CacheWriter, RowOrder

WIDTH = 50
BATCH = 4
TOP_K = CacheLayout("topk", WIDTH, 8, (1.0, 2.0), "fixed16")


def features(count: int = 23, start: int = 0, longest: int = 3) -> Dataset:
    """Tokenised rows with answers of one to `longest` tokens, and prompts of many lengths."""
    rows = []
    for i in range(start, start + count):
        random = np.random.default_rng(i)
        prompt = random.integers(0, WIDTH, 1 + i * 7 % 11).tolist()
        answer = random.integers(0, WIDTH, 1 + i % longest).tolist()
        rows.append({"example_id": f"row-{i}", "prompt_ids": prompt, "answer_ids": answer})
    return Dataset.from_list(rows)


def teacher_rows(name: str, count: int, width: int = WIDTH) -> Tensor:
    """The logits that the made-up teacher gives an example."""
    seed = int(name.split("-")[1])
    return 3 * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def new_manifest(ordered: RowOrder, layout: CacheLayout = TOP_K, **changes: Any) -> Manifest:
    teacher = TeacherIdentity("teacher", "main", "abc", "causal-lm", layout.vocabulary_size, False)
    rows = {
        **{"task": "made-up", "hash": ordered.hash, "examples": len(ordered.order), "tokenizer": "xyz"},
        **{"max_length": 64, "cut_at": 64, "apply_chat_template": False, "add_eos": None},
    }
    tail_at = [1, 2, 4, 8, 16, 32] if layout.temperatures else []
    return Manifest(teacher, RowsIdentity(**{**rows, **changes}), layout, tail_at=tail_at)


def add_rows(writer: CacheWriter, rows: Dataset, batch: int = BATCH) -> None:
    for numbers in writer.batches(batch):
        chosen = [rows[i] for i in numbers]
        width = writer.manifest.layout.vocabulary_size
        logits = [teacher_rows(row["example_id"], len(row["answer_ids"]), width) for row in chosen]
        example = [b for b, row in enumerate(chosen) for _ in row["answer_ids"]]
        writer.add(numbers, torch.cat(logits), torch.tensor(example))


def write(
    folder: Path, rows: Dataset, layout: CacheLayout = TOP_K, shard_bytes: int = 100, **changes: Any
) -> Manifest:
    """The made-up teacher's cache of `rows`, in small shards."""
    ordered = RowOrder(rows)
    with CacheWriter(folder, new_manifest(ordered, layout, **changes), ordered, shard_bytes) as writer:
        if not writer.manifest.complete:
            add_rows(writer, rows)
            writer.finish()
        return writer.manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != ".lock"}


class Crash(BaseException):
    """As a kill: nothing catches it."""


class CrashingRename:
    """Takes the place of `os.replace`: raises `Crash` at the rename number `at`, with `damage` done first."""

    def __init__(self, damage: Callable[[Any, Any], None] | None = None) -> None:
        self.rename, self.damage, self.count, self.at = os.replace, damage, 0, 0

    def __call__(self, source: Any, target: Any) -> None:
        self.count += 1
        if self.count == self.at:
            if self.damage is not None:
                self.damage(source, target)
            raise Crash
        self.rename(source, target)


def cache_model(folder: Path, name: Path, rows: Dataset) -> None:
    """Writes into `folder` what the model in the folder `name` says about `rows`, in full."""
    from sinkd_llm import SinKDConfig, load_model, load_tokenizer
    from sinkd_llm.runs.arguments import CacheArguments
    from sinkd_llm.runs.cache import write_cache
    from sinkd_llm.runs.data import RunData

    write_cache(
        folder,
        load_model(str(name)),
        load_tokenizer(str(name)),
        RunData("opinions", None, rows, None),
        SinKDConfig(
            str(folder.parent / "unused"), teacher_model_name_or_path=str(name), use_cpu=True, report_to="none"
        ),
        CacheArguments(content="full"),
    )
