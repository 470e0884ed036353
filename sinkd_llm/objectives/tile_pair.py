"""What a sweep over the vocabulary computes, and the distributions of both sides in one tile of it.

Shape suffixes: N student rows, M teacher rows (of the same tokens, or of more), w ids of a tile, P transport problems
of one size, n and m the rows of a problem.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from sinkd_llm.objectives.divergences import Divergence
from sinkd_llm.objectives.normalisers import Scratch, distribution, log_distribution
from sinkd_llm.objectives.problems import Pairing

# The logits of a tile, and the log-sum-exp of each row at each temperature.
Side: TypeAlias = tuple[Tensor, dict[float, Tensor]]


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


class TilePair:
    """
    Both sides of a tile: each distribution is made once.

    Args:
        wanted ([`Wanted`]): what is computed of it.
        student, teacher (`tuple[Tensor, dict[float, Tensor]]`): logits of the tile, `[N, w]` and `[M, w]`, and the
            log-sum-exps of the rows over all ids that both have, `[N, 1]` and `[M, 1]`, at each temperature in use.
        value (`bool`, *optional*, defaults to `True`): whether `divergence` is asked for, or the slopes alone.
        scratch ([`Scratch`], *optional*): where the distributions are written; one pair at a time uses it. Default:
            into memory of their own.
        in_place (`bool`, *optional*, defaults to `False`): the distributions are written over the logits, which takes
            one temperature and a divergence with `halves` (or none).

    Attributes:
        q_Nw (`Tensor`): the student's distribution at the divergence's temperature.
        s_Nw (`Tensor`): the same at the cost's temperature.
    """

    def __init__(
        self,
        wanted: Wanted,
        student: Side,
        teacher: Side,
        *,
        value: bool = True,
        scratch: Scratch | None = None,
        in_place: bool = False,
    ) -> None:
        (z_Nw, log_sums), (y_Mw, teacher_log_sums) = student, teacher
        self._wanted, own = wanted, wanted.own
        self._logs: tuple[Tensor, Tensor] | None = None
        self._slope: Tensor | None = None

        def out(name: str, like: Tensor) -> Tensor | None:
            return None if scratch is None else scratch.like(name, like)

        def softmax(name: str, logits: Tensor, T: float, log_sum_N1: Tensor) -> Tensor:
            return distribution(logits, T, log_sum_N1, logits if in_place else out(name, logits))

        divergence, T, tau = wanted.divergence, wanted.temperature, wanted.sinkhorn_temperature
        same = divergence is not None and wanted.pairing is not None and tau == T
        if divergence is not None:
            # Where the cost needs all M rows at this temperature, the own ones are a part of them.
            few = own if own is not None and not same else slice(None)
            theirs_Mw, theirs_M1 = y_Mw[few], teacher_log_sums[T][few]
            if value or divergence.halves is None:
                log_q = log_distribution(z_Nw, T, log_sums[T], out("log_q", z_Nw))
                log_p = log_distribution(theirs_Mw, T, theirs_M1, out("log_p", theirs_Mw))
                self.q_Nw = torch.exp(log_q, out=z_Nw if in_place else out("q", z_Nw))
                p_Mw = torch.exp(log_p, out=theirs_Mw if in_place else out("p", theirs_Mw))
                self._logs = log_q, log_p[own] if same and own is not None else log_p
            else:
                self.q_Nw = softmax("q", z_Nw, T, log_sums[T])
                p_Mw = softmax("p", theirs_Mw, T, theirs_M1)
            self._p_Nw = p_Mw[own] if same and own is not None else p_Mw
        if same:
            self.s_Nw, self._t_Mw = self.q_Nw, p_Mw
        elif wanted.pairing is not None:
            self.s_Nw = softmax("s", z_Nw, tau, log_sums[tau])
            self._t_Mw = softmax("t", y_Mw, tau, teacher_log_sums[tau])

    def divergence(self) -> tuple[Tensor, Tensor | None]:
        """The tile's part of each row's value, `[N]`, and of the sum of its slopes, `[N, 1]`, where that is not 0.

        Asked for once, and before the slopes.
        """
        divergence = self._wanted.divergence
        assert divergence is not None
        assert self._logs is not None
        (log_q, log_p), self._logs = self._logs, None
        if divergence.halves is not None:
            return divergence.halves[0](log_q, log_p, self._p_Nw), None
        value_N, self._slope = divergence.kernel(log_q, log_p, self.q_Nw, self._p_Nw)
        return value_N, self._slope.sum(dim=-1, keepdim=True)

    def slope(self) -> Tensor:
        """The slopes, `[N, w]`."""
        divergence = self._wanted.divergence
        assert divergence is not None
        if divergence.halves is not None:
            return divergence.halves[1](self.q_Nw, self._p_Nw)
        if self._slope is None:
            self.divergence()
        assert self._slope is not None
        return self._slope

    def blocks(self) -> tuple[list[Tensor], list[Tensor]]:
        """The rows of each block of transport problems: `[P, n, w]` and `[P, m, w]`."""
        pairing = self._wanted.pairing
        assert pairing is not None
        return pairing.students(self.s_Nw), pairing.teachers(self._t_Mw)
