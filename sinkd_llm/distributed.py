"""Gathers rows from the data-parallel ranks of a run. torch.distributed only, and without gradients.

Shapes: N rows of this rank, M rows of all ranks in the order of the ranks, R ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks that train on different rows of one batch: at least two.

    Every method that communicates must be called by all ranks, in the same order.

    Args:
        index (`int`): this rank, in `[0, count)`.
        count (`int`): R, how many there are.
        group (`ProcessGroup`, *optional*): their process group; defaults to all processes.
    """

    index: int
    count: int
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, group: dist.ProcessGroup | None = None) -> "Ranks | None":
        """The ranks of a process group; `None` where there is only one process."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
            return None
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def numbers(self, *own: int, device: torch.device) -> list[list[int]]:
        """A few integers of each rank, `[R, len(own)]`, rank by rank."""
        sent = torch.tensor(own, dtype=torch.long, device=device)
        received = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(received, sent, group=self.group)
        return torch.stack(received).tolist()

    def own_rows(self, counts: Sequence[int]) -> slice:
        """Where this rank's N rows stand among the M."""
        start = sum(counts[: self.index])
        return slice(start, start + counts[self.index])

    def gather(self, rows_N: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks, `[M, ...]`, bit for bit.

        Args:
            rows_N (`Tensor`): `[N, ...]`, of one dtype and of one shape but for N on all ranks. N may be 0.
            counts (sequence of `int`): rows of each rank, `[R]`.
        """
        most, shape = max(counts), rows_N.shape[1:]
        if most == 0 or shape.numel() == 0:
            return rows_N.new_zeros(sum(counts), *shape)
        # Ranks send equal numbers of bytes: not every backend knows every dtype, or unequal sizes.
        padded = rows_N.new_zeros(most, *shape)
        padded[: len(rows_N)] = rows_N.detach()
        sent = padded.view(-1).view(torch.uint8)
        received = [torch.empty_like(sent) for _ in range(self.count)]
        dist.all_gather(received, sent, group=self.group)
        parts = [part.view(rows_N.dtype).view(most, *shape)[:n] for part, n in zip(received, counts, strict=True)]
        return torch.cat(parts)

    def merged(self, own: dict[Any, Any]) -> dict[Any, Any]:
        """The entries of all ranks' dictionaries; of equal keys one."""
        parts: list[dict[Any, Any]] = [{} for _ in range(self.count)]
        dist.all_gather_object(parts, own, group=self.group)
        return {key: value for part in parts for key, value in part.items()}

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks of a scalar."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self.group)
        return total


@dataclass(frozen=True)
class RowLayout:
    """Where rows stand that are spread over micro-batches, and perhaps over ranks.

    Attributes:
        parts (`tuple[slice, ...]`): the rows of each micro-batch of this rank among all M.
        counts (`tuple[int, ...]`): rows of each rank.
        ranks ([`Ranks`], *optional*): `None` if all rows are here.
    """

    parts: tuple[slice, ...]
    counts: tuple[int, ...]
    ranks: Ranks | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], ranks: Ranks | None, device: torch.device) -> "RowLayout":
        """The layout of micro-batches with `lengths` rows. Communicates, as every rank has lengths of its own.

        Args:
            lengths (sequence of `int`): rows of each of this rank's micro-batches.
            ranks ([`Ranks`], *optional*): those whose rows are part of it.
            device (`torch.device`): where the rows are.
        """
        counts, start = [sum(lengths)], 0
        if ranks is not None:
            counts = [n for (n,) in ranks.numbers(sum(lengths), device=device)]
            start = ranks.own_rows(counts).start
        ends = list(accumulate(lengths, initial=start))
        return cls(tuple(slice(*ends[i : i + 2]) for i in range(len(lengths))), tuple(counts), ranks)

    @property
    def total(self) -> int:
        """M."""
        return sum(self.counts)

    def gather(self, parts: Sequence[Tensor]) -> Tensor:
        """All M rows, given the rows of each micro-batch of this rank; without gradient."""
        rows_N = (parts[0] if len(parts) == 1 else torch.cat(list(parts))).detach()
        return self.ranks.gather(rows_N, self.counts) if self.ranks else rows_N
