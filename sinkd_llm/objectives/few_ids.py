"""The student where a top-k teacher looks: its logits of the ids that some row names, and the weight of all others.

Shape suffixes: N rows, V vocabulary, U ids that some row of the teacher names, K ids of one row, w ids of a tile.

A teacher's row names K ids, and every row others. Together they name U, usually far fewer than V. Of hidden states
with a head, the logits `[N, U]` and the log-sum-exp of all other ids say everything that the loss asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.objectives import normalisers
from sinkd_llm.objectives.divergences import cross_entropy
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.logit_tiles import HeadTiles
from sinkd_llm.objectives.normalisers import joined_log_sums, log_sum_exps, tile_width
from sinkd_llm.optimal_transport.precision import full_precision


@dataclass(frozen=True, eq=False)
class StudentAt:
    """
    The student's logits of some ids, and what the others weigh.

    Attributes:
        logits_NU (`Tensor`): differentiable.
        ids_U (`Tensor`, *optional*): the ids, growing; `None`: all there are.
        rest (`dict[float, Tensor]`): at each temperature T, `log sum exp(logit / T)` over the other ids, `[N]`,
            differentiable once; empty if there are none.
    """

    logits_NU: Tensor
    ids_U: Tensor | None = None
    rest: dict[float, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, student: Tensor | HeadOf, named: Sequence[Tensor], temperatures: Sequence[float]) -> "StudentAt":
        """
        The student at the ids that are named.

        Args:
            student (`Tensor` or [`HeadOf`]): of logits, all ids are taken.
            named (sequence of `Tensor`): ids, in any shape.
            temperatures (sequence of `float`): those of `rest`.
        """
        if isinstance(student, Tensor):
            return cls(student)
        V = student.vocabulary_size
        ids_U = torch.cat([ids.flatten() for ids in named]).unique()
        if 2 * len(ids_U) >= V:
            return cls(student.logits())
        # One more id than any row names: a row that names all of them would seem to leave no tail.
        other = torch.ones(V, dtype=torch.bool, device=ids_U.device).index_fill_(0, ids_U, False).nonzero()[:1, 0]
        ids_U = torch.cat([ids_U, other]).sort().values
        distinct = tuple(dict.fromkeys(map(float, temperatures)))
        rests = _Rest.apply(HeadTiles(student), ids_U, distinct, student.hidden_NH, student.weight_VH, student.bias_V)
        return cls(student.at_ids(ids_U), ids_U, dict(zip(distinct, rests, strict=True)))

    def positions(self, ids: Tensor) -> Tensor:
        """Where ids that were named stand among U."""
        return ids if self.ids_U is None else torch.searchsorted(self.ids_U, ids)

    def cross_entropy(self, labels_N: Tensor) -> Tensor:
        """`-log softmax(student)[label]`, `[N]`; the labels were named."""
        ce_N = cross_entropy(self.logits_NU, self.positions(labels_N))
        if not self.rest:
            return ce_N
        few_N = torch.logsumexp(full_precision(self.logits_NU), dim=-1)
        return ce_N - few_N + torch.logaddexp(few_N, self.rest[1.0])

    def with_rest(self, log_sum_N: Tensor, temperature: float) -> Tensor:
        """The log-sum-exp of some of U and of all ids beyond."""
        return torch.logaddexp(log_sum_N, self.rest[temperature]) if self.rest else log_sum_N

    def distribution(self, temperature: float) -> Tensor:
        """The probabilities of U, `[N, U]`."""
        scaled_NU = full_precision(self.logits_NU) / temperature
        if not self.rest:
            return torch.softmax(scaled_NU, dim=-1)
        log_sum_N = self.with_rest(torch.logsumexp(scaled_NU, dim=-1), temperature)
        return (scaled_NU - log_sum_N[:, None]).exp()

    def log_distribution(self, temperature: float) -> tuple[Tensor, Tensor]:
        """The logarithms of the probabilities of U, `[N, U]`, and the probability of all others together, `[N]`."""
        scaled_NU = full_precision(self.logits_NU) / temperature
        log_sum_N = self.with_rest(torch.logsumexp(scaled_NU, dim=-1), temperature)
        log_s_NU = scaled_NU - log_sum_N[:, None]
        rest_N = (self.rest[temperature] - log_sum_N).exp() if self.rest else torch.zeros_like(log_sum_N)
        return log_s_NU, rest_N


class _Rest(torch.autograd.Function):
    """`log sum exp(logit / T)` over the ids that are not among U, `[N]` for each temperature."""

    @staticmethod
    def forward(
        ctx: Any, tiles: HeadTiles, ids_U: Tensor, temperatures: tuple[float, ...], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        N, V = tiles.shape
        width = tile_width(N, ids_U.device)
        ctx.slices = [slice(start, min(start + width, V)) for start in range(0, V, width)]
        ctx.masked_V = torch.zeros(V, dtype=torch.bool, device=ids_U.device).index_fill_(0, ids_U, True)
        kept = normalisers.KEPT_BYTES // max(4 * N * width, 1)
        ctx.kept, sums = {}, []
        for k, v in enumerate(ctx.slices):
            z_Nw = tiles.tile(v)
            if k < kept:
                ctx.kept[k] = z_Nw
            sums.append(log_sum_exps(z_Nw.masked_fill(ctx.masked_V[v], float("-inf")), set(temperatures)))
        ctx.log_sums = {T: joined_log_sums([part[T] for part in sums]) for T in temperatures}
        ctx.tiles = tiles
        ctx.save_for_backward(*tensors)  # torch notices if they are changed before the backward pass
        return tuple(ctx.log_sums[T][:, 0] for T in temperatures)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        sink = ctx.tiles.sink(ctx.needs_input_grad[3:])
        for k, v in enumerate(ctx.slices):
            z_Nw = ctx.kept.pop(k, None)
            z_Nw = ctx.tiles.tile(v) if z_Nw is None else z_Nw
            masked_Nw = z_Nw.masked_fill(ctx.masked_V[v], float("-inf"))
            total_Nw = torch.zeros_like(z_Nw)
            for (T, log_sum_N1), grad_N in zip(ctx.log_sums.items(), grads, strict=True):
                finite_N1 = log_sum_N1.where(log_sum_N1.isfinite(), 0)  # -inf: nothing is left, and it gets nothing
                weights_Nw = normalisers.distribution(masked_Nw, T, finite_N1)
                total_Nw.addcmul_(weights_Nw, grad_N[:, None] / T)
            sink.add(v, z_Nw, total_Nw)
        return None, None, None, *sink.gradients()
