"""One of the ranks that tests/distributed/test_cache.py starts: writes caches, one of which it does not finish."""

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset

from tests.distributed.short_batch_worker import rows_of

ROWS = 41
KINDS: dict[str, dict[str, Any]] = {"tokens": {}, "choices": {"signal": "choices"}}


def write(folder: Path, name: str, to: Path, spoil: Any = None, rows: Dataset | None = None) -> int:
    """Writes a cache of the teacher in `folder` to `to`, in small shards; returns what was there before."""
    from sinkd_llm import SinKDConfig, load_model, load_tokenizer
    from sinkd_llm.runs.arguments import CacheArguments
    from sinkd_llm.runs.cache import write_cache
    from sinkd_llm.runs.data import RunData
    from sinkd_llm.teachers.cache import writer

    teacher = str(folder / "teacher")
    settings: dict[str, Any] = {"teacher_model_name_or_path": teacher, "per_device_eval_batch_size": 2, **KINDS[name]}
    args = SinKDConfig(str(folder / "unused"), use_cpu=True, report_to="none", **settings)
    model = load_model(teacher)
    if spoil is not None:
        model.get_output_embeddings().register_forward_hook(spoil)
    data = RunData("opinions", None, rows_of("causal", ROWS) if rows is None else rows, None)
    with patch.object(writer, "SHARD_EXAMPLES", 4):
        result = write_cache(to, model, load_tokenizer(teacher), data, args, CacheArguments(content="full"))
    return result.cached_before


def failing(folder: Path, rank: int) -> str:
    """What a rank says when the logits of rank 1 become NaN in its third batch."""
    batches = []

    def spoil(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        batches.append(logits)
        return logits * float("nan") if rank == 1 and len(batches) == 3 else logits

    try:
        write(folder, "tokens", folder / "failed", spoil)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "written"


def main(where: str, dies: str = "") -> int:
    folder, rank = Path(where), int(os.environ["RANK"])
    if dies:
        batches = []

        def die(_: Any, __: Any, logits: torch.Tensor) -> None:
            batches.append(logits)
            if rank == 1 and len(batches) == 7:
                os.kill(os.getpid(), signal.SIGKILL)

        write(folder, "tokens", folder / "killed", die)
        return 0
    for name in KINDS:
        assert write(folder, name, folder / f"two-{name}") == 0
        assert write(folder, name, folder / f"two-{name}") == ROWS
    (folder / f"failed-{rank}.txt").write_text(failing(folder, rank), encoding="utf-8")
    assert 0 < write(folder, "tokens", folder / "begun-by-one") < ROWS
    try:
        write(folder, "tokens", folder / "two-tokens", rows=rows_of("causal", ROWS - 1))
    except ValueError as error:
        (folder / f"other-{rank}.txt").write_text(str(error), encoding="utf-8")
    torch.distributed.destroy_process_group()
    return 0
