"""Batches of rows of like length, shared over the processes of a launch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkd_llm.distributed import Ranks


def batches_by_length(
    lengths: Sequence[int],
    batch_size: int,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    share: bool = False,
) -> Iterable[list[int]]:
    """
    Indices of the rows of each batch, and a report after each.

    Rows of like length share a batch: less padding, and the longest come first, so that a batch that does not fit
    into memory fails at once. With `share`, each process of a distributed launch gets a part of the batches, and all
    get equally many, for a sharded model must be called by all alike: the last may come twice. See [`from_all`].
    """
    order = np.argsort([-length for length in lengths], kind="stable").tolist()
    starts = range(0, len(order), batch_size)
    ranks = Ranks.of() if share else None
    rank, processes = (ranks.index, ranks.count) if ranks else (0, 1)
    for first in range(0, len(starts), processes):
        start = starts[min(first + rank, len(starts) - 1)]
        yield order[start : start + batch_size]
        if on_progress:
            on_progress(min((first + processes) * batch_size, len(order)), len(order))


def from_all(found: dict[int, Any], share: bool) -> dict[int, Any]:
    """What every process found for its rows, by row, if the rows were shared."""
    ranks = Ranks.of() if share else None
    return found if ranks is None else ranks.merged(found)


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
