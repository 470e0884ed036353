"""The cross-entropy of every student row to every teacher row of its problem: `C_ij = -sum_v t_jv log s_iv`.

Shape suffixes: N student rows, M teacher rows, V vocabulary, w ids of a tile, U ids that some row of the teacher
names, K ids of one row, P transport problems of one size, n and m the rows of a problem.

With the logits z and y at one temperature T, in one walk over the vocabulary after the normalisers are known:

    C_ij -= t_jw . log s_iw       H_j -= t_jw . log t_jw         one matrix product a tile
    dz_iw = (s_iw sum_j G_ij - sum_j G_ij t_jw) / T              for the gradient G to C

so that no `[N, V]` tensor is made of hidden states with a head, and none at all of size N×M×V.

Of a top-k signal both rows are seen over the ids that the *teacher's* row names, and one more id for all others. The
difference `C_ij - H_j` is then the KL divergence of the merged rows, a lower bound of the dense one (merging ids never
raises it), and smaller by `tail_j KL(teacher's tail || student's tail)`: no more than the tail's mass times that.
There is no upper bound without the tail's own distribution. It is the dense one where the tail is empty.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinkd_llm.objectives import normalisers
from sinkd_llm.objectives.comparison import TransportRequest, shared_ids, zero_of
from sinkd_llm.objectives.few_ids import StudentAt
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.logit_tiles import LogitTiles, logit_tiles
from sinkd_llm.objectives.normalisers import joined_log_sums, log_distribution, log_sum_exps, tile_width
from sinkd_llm.objectives.problems import Pairing
from sinkd_llm.objectives.signals import TopKSignal, at_ids
from sinkd_llm.optimal_transport.precision import no_autocast

# Stands for the logarithm of 0: an id that the student cannot give costs a large finite amount, and one that neither
# can give costs nothing.
_LOG_OF_NOTHING = -1e4


@dataclass(frozen=True, eq=False)
class CrossCosts:
    """
    What [`cross_costs`] gives.

    Attributes:
        blocks (`list[Tensor]`): C in nats, `[P, n, m]` for each block of the pairing, differentiable once to the
            student.
        entropies (`list[Tensor]`): H of the teacher's rows in nats, `[P, m]`, without gradient.
        zero (`Tensor`): 0, but of the graph where there is no row.
    """

    blocks: list[Tensor]
    entropies: list[Tensor]
    zero: Tensor

    def divergences(self) -> list[Tensor]:
        """`C_ij - H_j`, the KL divergence of teacher row j from student row i, `[P, n, m]` for each block."""
        return [C - H[:, None, :] for C, H in zip(self.blocks, self.entropies, strict=True)]


def cross_costs(student: Tensor | HeadOf, request: TransportRequest, temperature: float) -> CrossCosts:
    """
    The cross-entropies that a request asks for, over the ids that both sides have.

    A logit of -inf on both sides takes no part; one that only the student has costs a large finite amount. A row with
    a logit of NaN or +inf, or with none above -inf, makes the costs of its problem NaN.

    Args:
        student (`Tensor` or [`HeadOf`]): logits `[N, V]` of any floating dtype, or hidden states with their head;
            computed in fp32, or fp64 if given fp64. N may be 0.
        request ([`TransportRequest`]): the teacher's signal of M rows, and which rows meet.
        temperature (`float`): divides both sides' logits.

    Returns:
        [`CrossCosts`]

    Raises:
        `ValueError`: whatever a [`TopKSignal`] refuses.
    """
    signal, pairing = request.signal, request.pairing
    if request.ids_K is not None:
        student = at_ids(student, request.ids_K)
    elif isinstance(signal, TopKSignal):
        few = StudentAt.of(shared_ids(student, signal), [signal.ids_NK], [temperature])
        with no_autocast(few.logits_NU):
            return CrossCosts(*_over_named_ids(few, signal, pairing, temperature), zero_of(student))
    assert not isinstance(signal, TopKSignal)  # restricted to ids that every row names, it is dense
    tiles = logit_tiles(student)
    entropy_M, *blocks = _Walk.apply(tiles, logit_tiles(signal.side), pairing, temperature, *tiles.tensors)
    return CrossCosts(blocks, pairing.teachers(entropy_M), zero_of(student))


class _Walk(torch.autograd.Function):
    """H `[M]`, and C of each block."""

    @staticmethod
    def forward(
        ctx: Any,
        student: LogitTiles,
        teacher: LogitTiles,
        pairing: Pairing,
        temperature: float,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        walk = _Tiles(student, teacher, temperature)
        entropy_M = walk.zeros((teacher.shape[0],))
        blocks = [walk.zeros(block) for block in pairing.blocks]
        for k in range(len(walk.slices)):
            log_s_Nw, log_t_Mw = (log.clamp_(min=_LOG_OF_NOTHING) for log in walk.log_distributions(k))
            t_Mw = log_t_Mw.exp()
            with no_autocast(t_Mw):
                entropy_M -= torch.linalg.vecdot(t_Mw, log_t_Mw)
                for C, log_s, t in zip(blocks, pairing.students(log_s_Nw), pairing.teachers(t_Mw), strict=True):
                    C.baddbmm_(log_s, t.mT, alpha=-1)
        if any(ctx.needs_input_grad):
            ctx.walk, ctx.pairing = walk, pairing
        ctx.save_for_backward(*tensors)  # torch notices if they are changed before the backward pass
        ctx.mark_non_differentiable(entropy_M)
        ctx.set_materialize_grads(False)
        return entropy_M, *blocks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        walk, pairing = ctx.walk, ctx.pairing
        _ = ctx.saved_tensors
        sink = walk.student.sink(ctx.needs_input_grad[4:])
        for k, v in enumerate(walk.slices if any(G is not None for G in grads) else ()):
            s_Nw, t_Mw = (log.exp_() for log in walk.log_distributions(k))
            pulls = []
            with no_autocast(s_Nw):
                for s, t, G in zip(pairing.students(s_Nw), pairing.teachers(t_Mw), grads, strict=True):
                    own = torch.zeros_like(s) if G is None else s * G.sum(dim=-1, keepdim=True)
                    pulls.append(own if G is None else own.baddbmm_(G, t, alpha=-1).div_(walk.temperature))
            logits_Nw = walk.logits(k)[0] if walk.student.needs_logits else None
            if pulls:  # without a row there is no block
                sink.add(v, logits_Nw, pairing.joined_student(pulls))
        return None, None, None, None, *sink.gradients()


class _Tiles:
    """Both sides a tile at a time, and the normalisers of their rows. Logits that a head makes are kept between the
    passes up to `KEPT_BYTES`."""

    def __init__(self, student: LogitTiles, teacher: LogitTiles, temperature: float) -> None:
        self.student, self.temperature = student, temperature
        self._sides = (student, teacher)
        (N, V), (M, theirs) = student.shape, teacher.shape
        shared = min(V, theirs)
        given = [tensor for side in self._sides for tensor in side.tensors if tensor is not None]
        self._like = given[0]
        self._dtype = torch.float64 if any(one.dtype == torch.float64 for one in given) else torch.float32
        width = tile_width(max(N, M), self._like.device)
        self.slices = [slice(start, stop) for start, stop in pairwise([*range(0, shared, width), shared])]
        made = sum(side.shape[0] for side in self._sides if not side.is_there)
        self._num_kept = normalisers.KEPT_BYTES // (4 * width * made) if made else 0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        sums = [[log_sum_exps(z, {temperature})[temperature] for z in self.logits(k)] for k in range(len(self.slices))]
        self._log_sums = [joined_log_sums(list(parts)) for parts in zip(*sums, strict=True)]

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return self._like.new_zeros(shape, dtype=self._dtype)

    def logits(self, k: int) -> tuple[Tensor, Tensor]:
        """Of the student `[N, w]` and the teacher `[M, w]`; not to be overwritten."""
        if (kept := self._kept.get(k)) is not None:
            return kept
        z_Nw, y_Mw = (side.tile(self.slices[k]).to(self._dtype) for side in self._sides)
        if k < self._num_kept:
            self._kept[k] = z_Nw, y_Mw
        return z_Nw, y_Mw

    def log_distributions(self, k: int) -> tuple[Tensor, Tensor]:
        """Of both sides; a tensor of its own."""
        z_Nw, y_Mw = self.logits(k)
        ours, theirs = self._log_sums
        T = self.temperature
        return log_distribution(z_Nw, T, ours), log_distribution(y_Mw, T, theirs)


def _over_named_ids(
    student: StudentAt, signal: TopKSignal, pairing: Pairing, temperature: float
) -> tuple[list[Tensor], list[Tensor]]:
    """C and H of each block, over the ids of each teacher row and one more for all others."""
    log_s_NU, rest_N = student.log_distribution(temperature)
    kept_MK, tail_M = signal.probabilities(temperature)
    entropy_M = torch.special.entr(kept_MK).sum(dim=-1) + torch.special.entr(tail_M)
    places_MK, U = student.positions(signal.ids_NK), log_s_NU.shape[1]
    least = torch.finfo(log_s_NU.dtype).tiny
    blocks = []
    rows = map(pairing.teachers, (places_MK, kept_MK, tail_M))
    for log_s, rest, places, kept, tail in zip(*map(pairing.students, (log_s_NU, rest_N)), *rows, strict=True):
        t_PmU = kept.new_zeros(*kept.shape[:2], U).scatter_(2, places, kept)
        others_PmU = torch.ones_like(t_PmU).scatter_(2, places, 0)
        # A sum of what is not named, and not 1 minus what is: that would cancel where the student is sure.
        tail_Pnm = log_s.exp() @ others_PmU.mT + rest[:, :, None]
        C = -(log_s.clamp(min=_LOG_OF_NOTHING) @ t_PmU.mT) - tail[:, None, :] * tail_Pnm.clamp(min=least).log()
        blocks.append(C)
    return blocks, pairing.teachers(entropy_M)
