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
fit into `KEPT_BYTES`; where pass 3 needs the distributions alone, these are kept in their place. A_i is known only at
the end of pass 3; its part is linear, so `sum_v s_iv W_v` is added up beside the rest. Where all tiles are kept, or
the logits were given, each tile is finished in a second loop instead.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.objectives import normalisers
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.logit_tiles import LogitTiles, logit_tiles
from sinkd_llm.objectives.normalisers import (
    Scratch,
    distribution,
    joined_log_sums,
    log_sum_exps,
    tile_width,
)
from sinkd_llm.objectives.tile_pair import TilePair, Wanted
from sinkd_llm.optimal_transport import add_cost, cost_gradient

_TAKEN = (
    "The gradient of this loss was already taken (by backward with retain_graph=True, torch.autograd.grad or "
    "gradcheck), and the loss gives it once: what it is computed from is freed then. Compute the loss again for each "
    "further gradient."
)
# Logits of one side of which the distributions are kept as well.
_FEW = 2**14


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
            raise RuntimeError(_TAKEN)
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
        self.last: dict[bool, tuple[int, Tensor]] = {}  # the tile in use, of those that are not kept
        compared = [wanted.temperature] if wanted.divergence else []
        self.compared = {*compared, *([wanted.sinkhorn_temperature] if wanted.pairing else [])}
        self.pairs: dict[int, TilePair] = {}
        # Of a few answers' logits, operations cost more than numbers.
        self.keeps_pairs = N * V <= _FEW
        self.scratch = None if self.keeps_pairs else Scratch()
        self.rooms = (None, None) if self.keeps_pairs else (Scratch(), Scratch())  # of the two sides' logits
        # The distributions are all that pass 3 needs: they are kept in place of the logits.
        self.in_place = (
            len(self.compared) == 1
            and (wanted.divergence is None or wanted.divergence.halves is not None)
            and not (student.is_there or student.needs_logits or teacher is None or teacher.is_there)
        )

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
            wanted = wanted if labels_N is None else {*wanted, 1.0}
            every.append(log_sum_exps(z_Nw, wanted, _room(self.scratch, "log_q", z_Nw)))
            if k < self.num_compared and self.teacher is not None and self.compared:
                y_Mw = self._logits(k, teacher=True)
                theirs.append(log_sum_exps(y_Mw, self.compared, _room(self.scratch, "log_p", y_Mw)))
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
        self.slope_sum_N1: Tensor | None = None
        if self.compared:
            like = next(iter(self.log_sums.values()))
            costs = [like.new_zeros(block) for block in wanted.pairing.blocks] if wanted.pairing else []
            for k in range(self.num_compared):
                pair = self._pair(k, value=True)
                if wanted.divergence is not None:
                    value_N, slope_N1 = pair.divergence()
                    divergence_N = value_N if divergence_N is None else divergence_N.add_(value_N)
                    if slope_N1 is not None:
                        self.slope_sum_N1 = slope_N1 if self.slope_sum_N1 is None else self.slope_sum_N1 + slope_N1
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
        held: dict[int, tuple[Tensor, Tensor | None]] = {}
        for k, v in enumerate(self.tiles):
            pair = self._pair(k) if k < self.num_compared and (divergence_N is not None or moves) else None
            # What is held until the second loop has memory of its own.
            grad_Nw = self._of_labels(k, pair, ce_N, None if twice and whole else self.scratch)
            if pair is not None:
                grad_Nw, part_N = self._of_pair(k, pair, grad_Nw, divergence_N, costs if moves else None, beside)
                mean_N = part_N if mean_N is None else mean_N if part_N is None else mean_N + part_N
                if twice and whole:
                    held[k] = grad_Nw, (pair.s_Nw if k in self.pairs else None)
                    self.kept.pop((True, k), None)
                    self.pairs.pop(k, None)
                    continue
            if grad_Nw is not None:
                sink.add(v, self._logits_for_cap(k), grad_Nw)
            self.pairs.pop(k, None)
        if twice and mean_N is not None:
            tau = self.wanted.sinkhorn_temperature
            for k, v in enumerate(self.tiles[: self.num_compared]):
                grad_Nw, s_Nw = held.pop(k, (None, None))
                if s_Nw is None:
                    s_Nw = distribution(self._logits(k), tau, self.log_sums[tau])
                mean_N1 = mean_N[:, None]
                rest_Nw = s_Nw.mul_(-mean_N1) if grad_Nw is None else grad_Nw.addcmul_(s_Nw, mean_N1, value=-1)
                sink.add(v, self._logits_for_cap(k), rest_Nw)
        gradients = sink.gradients()
        if beside is None or mean_N is None:
            return gradients
        (hidden_NH, *_), (expected_NH, *_) = gradients, beside.gradients()
        assert hidden_NH is not None
        assert expected_NH is not None
        return (hidden_NH - mean_N[:, None] * expected_NH).to(hidden_NH.dtype), *gradients[1:]

    def _of_labels(
        self, k: int, pair: TilePair | None, grad_N: Tensor | None, scratch: Scratch | None
    ) -> Tensor | None:
        """`g_i (softmax - one-hot)` of a tile."""
        if grad_N is None:
            return None
        v, labels_N = self.tiles[k], self.wanted.labels_N
        assert labels_N is not None
        weight_N1, softer = grad_N[:, None], self.log_sums.get(2.0)
        if pair is not None and softer is not None:  # softmax(z) is the square of softmax(z / 2), but for its sum
            soft_Nw = pair.q_Nw if self.wanted.temperature == 2 and self.wanted.divergence else pair.s_Nw
            grad_Nw = torch.mul(soft_Nw, soft_Nw, out=_room(scratch, "grad", soft_Nw))
            grad_Nw *= (2 * softer - self.all_log_sum_N1).exp_().mul_(weight_N1)
        else:
            z_Nw = self._logits(k)
            grad_Nw = distribution(z_Nw, 1.0, self.all_log_sum_N1, _room(scratch, "grad", z_Nw)).mul_(weight_N1)
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
        pair: TilePair,
        grad_Nw: Tensor | None,
        divergence_N: Tensor | None,
        costs: tuple[Tensor | None, ...] | None,
        beside: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The same with what the divergence and the cost add, but for A; and the tile's part of A."""
        if divergence_N is not None:
            slope_Nw = pair.slope()
            if self.slope_sum_N1 is not None:
                slope_Nw = torch.addcmul(slope_Nw, pair.q_Nw, self.slope_sum_N1, value=-1)
            weight_N1 = (divergence_N / self.wanted.temperature)[:, None]
            grad_Nw = slope_Nw.mul_(weight_N1) if grad_Nw is None else grad_Nw.addcmul_(slope_Nw, weight_N1)
        if costs is None:
            assert grad_Nw is not None
            return grad_Nw, None
        assert self.wanted.pairing is not None
        tau = self.wanted.sinkhorn_temperature
        s_blocks, t_blocks = pair.blocks()
        moves = [
            torch.zeros_like(s) if G is None else cost_gradient(s, t, G / tau, self.wanted.cost_norm)
            for s, t, G in zip(s_blocks, t_blocks, costs, strict=True)
        ]
        pull_Nw = self.wanted.pairing.joined_student(moves)
        part_N = torch.linalg.vecdot(pull_Nw, pair.s_Nw)
        grad_Nw = pull_Nw.mul_(pair.s_Nw) if grad_Nw is None else grad_Nw.addcmul_(pull_Nw, pair.s_Nw)
        if beside is not None:
            beside.add(self.tiles[k], self._logits_for_cap(k), pair.s_Nw)
        return grad_Nw, part_N

    # ---- tiles

    def _logits(self, k: int, teacher: bool = False) -> Tensor:
        if (kept := self.kept.get((teacher, k))) is not None:
            return kept
        last, logits = self.last.get(teacher, (-1, None))
        if last == k and logits is not None:
            return logits
        side = self.teacher if teacher else self.student
        assert side is not None
        keeps = k < self.num_kept and not side.is_there
        logits = side.tile(self.tiles[k], None if keeps else self.rooms[teacher])
        if logits.dtype != self.dtype:
            logits = logits.to(self.dtype)
        if keeps:
            self.kept[teacher, k] = logits
        else:
            self.last[teacher] = k, logits
        return logits

    def _logits_for_cap(self, k: int) -> Tensor | None:
        return self._logits(k) if self.student.needs_logits else None

    def _pair(self, k: int, value: bool = False) -> TilePair:
        if (kept := self.pairs.get(k)) is not None:
            return kept
        z_Nw, y_Mw = self._logits(k), self._logits(k, teacher=True)
        in_place = self.in_place and k < self.num_kept
        sides = (z_Nw, self.log_sums), (y_Mw, self.teacher_log_sums)
        pair = TilePair(self.wanted, *sides, value=value, scratch=self.scratch, in_place=in_place)
        if in_place:
            del self.kept[False, k], self.kept[True, k]
        if in_place or self.keeps_pairs:
            self.pairs[k] = pair
        return pair


def _room(scratch: Scratch | None, name: str, like: Tensor) -> Tensor | None:
    return None if scratch is None else scratch.like(name, like)
