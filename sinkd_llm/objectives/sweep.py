"""Cross-entropy, a divergence and the transport cost in one walk over the vocabulary: no `[N, V]` tensor is made.

Shape suffixes: N student rows, M teacher rows (of the same tokens, or of more), V vocabulary, w ids of a tile,
P transport problems of one size, n and m the rows of a problem.

With the logits z of the student and y of the teacher, at the temperatures T of the divergence and tau of the cost:

    pass 1   L(T)_i = log sum_v exp(z_iv / T)                   and the same of the teacher
    pass 2   CE_i = L(1)_i - z_i,label      D_i = sum_v d(q_iv, p_iv)      S_i = sum_v d'_iv
             C_ij = sum_v c(s_iv, t_jv)     with q, p, s, t = exp(logits / temperature - L)
    pass 3   dz_iv = g_i (exp(z_iv - L(1)_i) - [v = label_i]) + h_i (d'_iv - q_iv S_i) / T
                     + s_iv (r_iv - A_i) / tau     r_iv = sum_j G_ij dc/ds_iv     A_i = sum_v s_iv r_iv

for the gradients g, h, G of what comes after: the solver stands between the passes 2 and 3. d' is the slope of
[`~sinkd_llm.objectives.Divergence`]. Logits that a head makes are made again in each pass, but for as many tiles as
fit into `KEPT_BYTES`. A_i is known only at the end of pass 3; its part is linear, so `sum_v s_iv W_v` is added up
beside the rest. Where all tiles are kept, or the logits were given, each tile is finished in a second loop instead.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.objectives import normalisers
from sinkd_llm.objectives.divergences import Divergence
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.logit_tiles import LogitTiles, logit_tiles
from sinkd_llm.objectives.normalisers import (
    distribution,
    joined_log_sums,
    log_distribution,
    log_sum_exps,
    tile_width,
)
from sinkd_llm.objectives.problems import Pairing
from sinkd_llm.optimal_transport import add_cost, cost_gradient

# Logits of one side of which the distributions are kept as well.
_FEW = 2**14


@dataclass(frozen=True)
class Wanted:
    """
    What a sweep computes. Without a teacher only cross-entropy can be.

    Args:
        labels_N (`Tensor`, *optional*): token ids, for cross-entropy over all ids of the student.
        divergence ([`Divergence`], *optional*): over the ids that both have, without a factor for the temperature.
        temperature (`float`, *optional*, defaults to `1.0`): of the divergence.
        pairing ([`Pairing`], *optional*): which rows meet in the transport cost, over the ids that both have.
        sinkhorn_temperature (`float`, *optional*, defaults to `1.0`): of the cost.
        cost_norm (`str`, *optional*, defaults to `"l1"`): of the cost.
        own (`slice`, *optional*): which of the teacher's M rows are of the student's tokens. Default: all.
    """

    labels_N: Tensor | None = None
    divergence: Divergence | None = None
    temperature: float = 1.0
    pairing: Pairing | None = None
    sinkhorn_temperature: float = 1.0
    cost_norm: str = "l1"
    own: slice | None = None


@dataclass(frozen=True, eq=False)
class Swept:
    """
    What [`sweep`] gives, each differentiable once to the student's side.

    Attributes:
        ce_N (`Tensor`, *optional*): `-log softmax(student)[label]`, `[N]`.
        divergence_N (`Tensor`, *optional*): `[N]`, at least 0.
        costs (`list[Tensor]`): `[P, n, m]` for each block of the pairing.
    """

    ce_N: Tensor | None
    divergence_N: Tensor | None
    costs: list[Tensor]


def sweep(student: Tensor | HeadOf, teacher: Tensor | HeadOf | None, wanted: Wanted) -> Swept:
    """
    Cross-entropy, divergence and transport cost of a batch, see the module.

    Args:
        student (`Tensor` or [`HeadOf`]): logits `[N, V]` of any floating dtype, or hidden states with their head. The
            sums are in fp32, or in fp64 if this is. N may be 0.
        teacher (`Tensor` or [`HeadOf`], *optional*): of M rows; never receives a gradient. The two are compared over
            the first ids, which both have.
        wanted ([`Wanted`]): what to compute.

    Returns:
        [`Swept`]
    """
    sides = logit_tiles(student), None if teacher is None else logit_tiles(teacher)
    ce_N, divergence_N, *costs = _Sweep.apply(*sides, wanted, *sides[0].tensors)
    return Swept(ce_N, divergence_N, costs)


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: LogitTiles, teacher: LogitTiles | None, wanted: Wanted, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        passes = _Passes(student, teacher, wanted)
        outputs = passes.forward()
        ctx.passes = passes if any(ctx.needs_input_grad) else None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)  # torch notices if they are changed before the backward pass
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        passes, ctx.passes = ctx.passes, None
        if passes is None:
            raise RuntimeError("The gradient of a sweep is taken once: what it keeps is let go.")
        return None, None, None, *passes.backward(grads[0], grads[1], grads[2:], ctx.needs_input_grad[3:])


class _Passes:
    """The passes of one sweep, and what they keep for each other."""

    def __init__(self, student: LogitTiles, teacher: LogitTiles | None, wanted: Wanted) -> None:
        self.student, self.teacher, self.wanted = student, teacher, wanted
        (N, V), (M, shared) = student.shape, (0, 0) if teacher is None else teacher.shape
        shared = min(shared, V)
        like = student.tensors[0]
        assert like is not None
        given = [tensor.dtype for side in (student, teacher) if side for tensor in side.tensors if tensor is not None]
        self.dtype = torch.float64 if torch.float64 in given else torch.float32
        width = tile_width(max(N, M), like.device)
        # Tiles of the ids that both have, then of those that the student alone has: cross-entropy is over all.
        ends = [*range(0, shared, width), *range(shared, V, width), V]
        self.tiles = [slice(start, stop) for start, stop in pairwise(ends)]
        self.num_compared = sum(v.stop <= shared for v in self.tiles)
        if wanted.labels_N is None:
            self.tiles = self.tiles[: self.num_compared]
        a_tile = 4 * width * ((0 if student.is_there else N) + (0 if teacher is None or teacher.is_there else M))
        self.num_kept = min(len(self.tiles), normalisers.KEPT_BYTES // a_tile) if a_tile else len(self.tiles)
        self.kept: dict[tuple[bool, int], Tensor] = {}
        # Of a few answers' logits, operations cost more than numbers.
        self.pairs: dict[int, _Pair] | None = {} if N * V <= _FEW else None
        compared = [wanted.temperature] if wanted.divergence else []
        self.compared = {*compared, *([wanted.sinkhorn_temperature] if wanted.pairing else [])}

    def forward(self) -> tuple[Tensor | None, ...]:
        self._first_pass()
        return self._second_pass()

    # ---- pass 1

    def _first_pass(self) -> None:
        """The normalisers, and with labels the cross-entropy."""
        labels_N = self.wanted.labels_N
        every: list[dict[float, Tensor]] = []  # log-sum-exps of each tile
        theirs: list[dict[float, Tensor]] = []
        gold_N1 = None
        for k, v in enumerate(self.tiles):
            z_Nw = self._logits(k)
            wanted = self.compared if k < self.num_compared else set()
            every.append(log_sum_exps(z_Nw, wanted if labels_N is None else {*wanted, 1.0}))
            if k < self.num_compared and self.teacher is not None and self.compared:
                theirs.append(log_sum_exps(self._logits(k, teacher=True), self.compared))
            if labels_N is not None:
                at_N1, here_N = self._places(labels_N, v)
                part_N1 = z_Nw.gather(1, at_N1)
                part_N1 = part_N1 if here_N is None else part_N1.masked_fill(~here_N[:, None], 0)
                gold_N1 = part_N1 if gold_N1 is None else gold_N1 + part_N1
        # As columns, [N, 1] and [M, 1].
        self.log_sums = {T: joined_log_sums([sums[T] for sums in every[: self.num_compared]]) for T in self.compared}
        self.teacher_log_sums = {T: joined_log_sums([sums[T] for sums in theirs]) for T in self.compared}
        self.ce_N = None
        if labels_N is not None and gold_N1 is not None:
            self.all_log_sum_N1 = joined_log_sums([sums[1.0] for sums in every])
            self.ce_N = (self.all_log_sum_N1 - gold_N1)[:, 0]

    # ---- pass 2

    def _second_pass(self) -> tuple[Tensor | None, ...]:
        wanted = self.wanted
        divergence_N, costs = None, []
        if self.compared:
            like = next(iter(self.log_sums.values()))
            costs = [like.new_zeros(block) for block in wanted.pairing.blocks] if wanted.pairing else []
            for k in range(self.num_compared):
                pair = self._pair(k)
                if wanted.divergence is not None:
                    value_N, slope_Nw = pair.divergence(wanted.divergence)
                    slope_N1 = slope_Nw.sum(dim=-1, keepdim=True)
                    if divergence_N is None:
                        divergence_N, self.slope_sum_N1 = value_N, slope_N1
                    else:
                        divergence_N += value_N
                        self.slope_sum_N1 += slope_N1
                for cost_Pnm, s_Pnw, t_Pmw in zip(costs, *pair.blocks(), strict=True) if costs else ():
                    add_cost(cost_Pnm, s_Pnw, t_Pmw, wanted.cost_norm)
        if wanted.divergence is None or divergence_N is None:
            return self.ce_N, None, *costs
        # The kernels take any NaN of theirs for a logit of -inf on both sides; a NaN or an infinite logit, or a row
        # without one above -inf, is seen in the normaliser.
        T = wanted.temperature
        theirs_N1 = self.teacher_log_sums[T]
        sound_N = (self.log_sums[T] - (theirs_N1 if wanted.own is None else theirs_N1[wanted.own])).isfinite()[:, 0]
        divergence_N = divergence_N.clamp_(min=0).where(sound_N, float("nan"))  # what is below 0 is rounding
        return self.ce_N, divergence_N, *costs

    # ---- pass 3

    def backward(
        self,
        ce_N: Tensor | None,
        divergence_N: Tensor | None,
        costs: tuple[Tensor | None, ...],
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """The gradients to the student's tensors, given the gradients to what `forward` gave."""
        sink = self.student.sink(needed)
        moves = any(grad is not None for grad in costs)
        # Finished in a second loop, or with the sum of s_iv W_v: see the module.
        whole = self.num_kept == len(self.tiles)
        twice = moves and (whole or self.student.is_there or self.student.trains_head)
        beside = self.student.sink(needed) if moves and not twice else None
        mean_N: Tensor | None = None  # A
        held: dict[int, Tensor] = {}
        for k, v in enumerate(self.tiles):
            z_Nw = self._logits(k)
            grad_Nw = self._of_labels(k, z_Nw, ce_N)
            if k < self.num_compared and (divergence_N is not None or moves):
                grad_Nw, part_N = self._of_pair(k, grad_Nw, divergence_N, costs if moves else None, beside)
                mean_N = part_N if mean_N is None else mean_N if part_N is None else mean_N + part_N
                if twice and whole:
                    held[k] = grad_Nw
                    self.kept.pop((True, k), None)
                    continue
            if grad_Nw is not None:
                sink.add(v, z_Nw, grad_Nw)
        if twice and mean_N is not None:
            tau = self.wanted.sinkhorn_temperature
            for k, v in enumerate(self.tiles[: self.num_compared]):
                z_Nw = self._logits(k)
                s_Nw = distribution(z_Nw, tau, self.log_sums[tau]).mul_(-mean_N[:, None])
                sink.add(v, z_Nw, s_Nw.add_(held.pop(k)) if held else s_Nw)
        gradients = sink.gradients()
        if beside is None or mean_N is None:
            return gradients
        (hidden_NH, *_), (expected_NH, *_) = gradients, beside.gradients()
        assert hidden_NH is not None
        assert expected_NH is not None
        return (hidden_NH - mean_N[:, None] * expected_NH).to(hidden_NH.dtype), *gradients[1:]

    def _of_labels(self, k: int, z_Nw: Tensor, grad_N: Tensor | None) -> Tensor | None:
        """`g_i (softmax - one-hot)` of a tile."""
        if grad_N is None:
            return None
        v, labels_N = self.tiles[k], self.wanted.labels_N
        assert labels_N is not None
        grad_Nw = distribution(z_Nw, 1.0, self.all_log_sum_N1).mul_(grad_N[:, None])
        at_N1, here_N = self._places(labels_N, v)
        return grad_Nw.scatter_add_(1, at_N1, (-grad_N if here_N is None else (-grad_N).where(here_N, 0))[:, None])

    def _places(self, labels_N: Tensor, v: slice) -> tuple[Tensor, Tensor | None]:
        """Where the labels stand in a tile, `[N, 1]`, and which of them do; an id beyond V is torch's own error."""
        if len(self.tiles) == 1:
            return labels_N[:, None], None
        at_N = labels_N - v.start
        # The last tile takes what is beyond, and the first what is below 0.
        here_N = torch.ones_like(at_N, dtype=torch.bool)
        if v.start > 0:
            here_N &= at_N >= 0
            at_N = at_N.clamp(min=0)
        if v.stop < self.student.shape[1]:
            here_N &= at_N < v.stop - v.start
            at_N = at_N.clamp(max=v.stop - v.start - 1)
        return at_N[:, None], here_N

    def _of_pair(
        self,
        k: int,
        grad_Nw: Tensor | None,
        divergence_N: Tensor | None,
        costs: tuple[Tensor | None, ...] | None,
        beside: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The same with what the divergence and the cost add, but for A; and the tile's part of A."""
        pair = self._pair(k)
        if divergence_N is not None:
            assert self.wanted.divergence is not None
            _, slope_Nw = pair.divergence(self.wanted.divergence)
            slope_Nw = torch.addcmul(slope_Nw, pair.q_Nw, self.slope_sum_N1, value=-1)
            slope_Nw *= (divergence_N / self.wanted.temperature)[:, None]
            grad_Nw = slope_Nw if grad_Nw is None else grad_Nw.add_(slope_Nw)
        if costs is None:
            assert grad_Nw is not None
            return grad_Nw, None
        assert self.wanted.pairing is not None
        s_blocks, t_blocks = pair.blocks()
        moves = [
            torch.zeros_like(s) if G is None else cost_gradient(s, t, G, self.wanted.cost_norm)
            for s, t, G in zip(s_blocks, t_blocks, costs, strict=True)
        ]
        pull_Nw = self.wanted.pairing.joined_student(moves)
        pull_Nw.mul_(pair.s_Nw).div_(self.wanted.sinkhorn_temperature)
        part_N = pull_Nw.sum(dim=-1)
        if beside is not None:
            beside.add(self.tiles[k], pair.z_Nw, pair.s_Nw)
        return (pull_Nw if grad_Nw is None else grad_Nw.add_(pull_Nw)), part_N

    # ---- tiles

    def _logits(self, k: int, teacher: bool = False) -> Tensor:
        if (kept := self.kept.get((teacher, k))) is not None:
            return kept
        side = self.teacher if teacher else self.student
        assert side is not None
        logits = side.tile(self.tiles[k])
        if logits.dtype != self.dtype:
            logits = logits.to(self.dtype)
        if k < self.num_kept and not side.is_there:
            self.kept[teacher, k] = logits
        return logits

    def _pair(self, k: int) -> "_Pair":
        if self.pairs is None:
            return _Pair(self, self._logits(k), self._logits(k, teacher=True))
        if k not in self.pairs:
            self.pairs[k] = _Pair(self, self._logits(k), self._logits(k, teacher=True))
        return self.pairs[k]


class _Pair:
    """Both sides of a tile: each distribution is made once."""

    def __init__(self, passes: _Passes, z_Nw: Tensor, y_Mw: Tensor) -> None:
        wanted = passes.wanted
        self.z_Nw, self._pairing = z_Nw, wanted.pairing
        own = wanted.own
        if wanted.divergence is not None:
            T = wanted.temperature
            theirs, theirs_log_sum = (y_Mw, passes.teacher_log_sums[T])
            if own is not None:
                theirs, theirs_log_sum = theirs[own], theirs_log_sum[own]
            self._log_q = log_distribution(z_Nw, T, passes.log_sums[T])
            self._log_p = log_distribution(theirs, T, theirs_log_sum)
            self.q_Nw, self._p_Nw = self._log_q.exp(), self._log_p.exp()
            self._found: tuple[Tensor, Tensor] | None = None
        if wanted.pairing is not None:
            tau = wanted.sinkhorn_temperature
            same = wanted.divergence is not None and wanted.temperature == tau
            self.s_Nw = self.q_Nw if same else distribution(z_Nw, tau, passes.log_sums[tau])
            all_own = same and own is None
            self._t_Mw = self._p_Nw if all_own else distribution(y_Mw, tau, passes.teacher_log_sums[tau])

    def divergence(self, divergence: Divergence) -> tuple[Tensor, Tensor]:
        """The tile's part of each row's value `[N]`, and the slopes `[N, w]`."""
        if self._found is None:
            self._found = divergence.kernel(self._log_q, self._log_p, self.q_Nw, self._p_Nw)
        return self._found

    def blocks(self) -> tuple[list[Tensor], list[Tensor]]:
        """The rows of each block of transport problems: `[P, n, w]` and `[P, m, w]`."""
        assert self._pairing is not None
        return self._pairing.students(self.s_Nw), self._pairing.teachers(self._t_Mw)
