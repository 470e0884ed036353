"""Transport problems whose rows are not all here at once: they lie on other ranks, in other micro-batches, or both.

Shape suffixes: N rows of one micro-batch of this rank, M rows of all micro-batches of all ranks (rank by rank, and
micro-batch by micro-batch within a rank), V vocabulary, K kept token ids, P problems of one size, R rows of a
problem, W rows of the largest problem.

A student row needs every teacher row of its problem, and of the other student rows nothing but their costs. So
the teacher's rows and the costs travel, and the student's rows never do:

    C_i. = cost(s_i, all t)                       of the own rows i, with gradient: [N, W]
    C    = the rows of everybody                  a constant: [M, W]
    L    = sum_p n_p <P_p, C_p>,   G = dL/dC      solved by every rank, on equal numbers
    dL/ds_i = sum_j G_ij dC_ij/ds_i               all of it, because no other cost depends on s_i

A micro-batch contributes the transport cost of its own rows, `n_p sum_j P_ij C_ij`: the contributions add up to L. Its
gradient is the gradient of `sum_ij G_ij C_ij` with G fixed: the gradients add up to dL. Both are exact for every
`sinkhorn_gradient`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives.signals import TopKSignal
from sinkd_llm.objectives.sinkd import (
    SinKDTerm,
    TeacherSide,
    checked_ids,
    cost_to,
    distributions,
    solve_problems,
    sort_by_problem,
    split_by_problem,
    teacher_at,
    teacher_side,
)
from sinkd_llm.optimal_transport import TransportPlan

# In the scope "sequence" a problem lies within one micro-batch.
SPANNING_SCOPES = ("batch", "position")


@dataclass(frozen=True, eq=False)
class _Solution:
    grad_MW: Tensor
    value_M: Tensor  # each row's own transport cost
    plans: list[TransportPlan]
    sizes: list[Tensor]


class SpanningProblem:
    """The SinKD term of all rows of a layout, for one micro-batch at a time. Settings as in [`sinkd_term`].

    Every rank makes it, and calls `solve` (or, with one micro-batch, the first `term`), at the same point:
    these communicate.

    Args:
        layout ([`~sinkd_llm.distributed.RowLayout`]): where the rows of this rank's micro-batches stand.
        teacher (sequence of `Tensor` or [`TopKSignal`]): the teacher's logits of each of them, `[N, V]` or the
            logits of some ids of each row.
        position (sequence of `Tensor`): integers `[N]`, each row's place in its answer.
        scope (`str`): `"batch"` or `"position"`.
        teacher_MV (`Tensor`, *optional*): the teacher's logits of all rows, where they are known already. By default
            the logits of `teacher` are gathered, restricted to `vocabulary_ids`.
        factor (`float` or `Tensor`, *optional*, defaults to `1.0`): multiplies this rank's contribution.
    """

    def __init__(
        self,
        layout: RowLayout,
        teacher: Sequence[Tensor | TopKSignal],
        position: Sequence[Tensor],
        *,
        temperature: float,
        epsilon: float,
        iterations: int,
        threshold: float | None,
        gradient: str,
        cost_norm: str,
        scope: str,
        vocabulary_ids: Tensor | Sequence[int] | None = None,
        regression: bool = False,
        teacher_MV: Tensor | None = None,
        factor: float | Tensor = 1.0,
    ) -> None:
        if scope not in SPANNING_SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SPANNING_SCOPES)}, got {scope!r}.")
        self.layout = layout
        self._factor = factor
        self._temperature, self._regression, self._norm = temperature, regression, cost_norm
        self._solver = (epsilon, iterations, threshold, gradient)
        self._ids = vocabulary_ids
        self._device = position[0].device
        self._vocabulary = 0
        if teacher_MV is None:
            self._teacher_logits: Tensor | TopKSignal | None = self._gathered([self._kept(rows) for rows in teacher])
        else:
            self._teacher_logits = self._kept(teacher_MV).detach()
        self._side_M: TeacherSide = ()
        self._key_M = layout.gather(position) if scope == "position" else position[0].new_zeros(layout.total)
        self._order_M, self._blocks = sort_by_problem(self._key_M)
        self._width = max((R for _, R in self._blocks), default=0)
        self._solution: _Solution | None = None

    def cost(self, student_NV: Tensor, part: int) -> Tensor:
        """`[N, W]`: row i's costs to the teacher's rows of its problem, in their order, then zeros. Differentiable.

        Args:
            student_NV (`Tensor`): logits of micro-batch `part`, over the same ids as the teacher's or more.
        """
        return self._cost(student_NV, part)[0]

    def _cost(self, student_NV: Tensor, part: int) -> tuple[Tensor, Tensor | None]:
        """`cost`, and of a top-k signal each row's mean width, `[N]`."""
        student_NV = self._kept(student_NV)
        side_M = self._teacher(student_NV.shape[-1])
        student_NV = distributions(student_NV[:, : self._vocabulary], self._temperature, self._regression)
        if len(self._blocks) == 1 and self._blocks[0][0] == 1:  # one problem
            cost_1NM, width_1N = cost_to(student_NV[None], tuple(rows[None] for rows in side_M), self._norm)
            return cost_1NM[0], None if width_1N is None else width_1N[0]
        if not len(student_NV):
            # Of the graph; and with a width, for every rank logs the same things.
            return student_NV[:, :1].expand(-1, self._width), student_NV.new_zeros(0) if len(side_M) > 1 else None
        keys_P, problem_M, count_P = self._key_M.unique(return_inverse=True, return_counts=True)
        problem_N = problem_M[self.layout.parts[part]]
        order_N, order_M = problem_N.argsort(stable=True), problem_M.argsort(stable=True)
        mine_P = problem_N.bincount(minlength=len(keys_P)).tolist()
        students = student_NV.index_select(0, order_N).split(mine_P)
        teachers = [rows.index_select(0, order_M).split(count_P.tolist()) for rows in side_M]
        # One cost call for the problems of one shape.
        present = [p for p in range(len(keys_P)) if mine_P[p]]
        shape = {p: (mine_P[p], len(teachers[0][p])) for p in present}
        cost_of: dict[int, Tensor] = {}
        width_of: dict[int, Tensor] = {}
        for _, same in groupby(sorted(present, key=shape.__getitem__), key=shape.__getitem__):
            block = list(same)
            student_PNV, *side_PR = (torch.stack([rows[p] for p in block]) for rows in (students, *teachers))
            cost_PNR, width_PN = cost_to(student_PNV, tuple(side_PR), self._norm)
            cost_of.update(zip(block, cost_PNR, strict=True))
            width_of.update({} if width_PN is None else zip(block, width_PN, strict=True))
        rows = torch.cat([pad(cost_of[p], (0, self._width - shape[p][1])) for p in present])
        back_N = order_N.argsort()
        width_N = torch.cat([width_of[p] for p in present]).index_select(0, back_N) if width_of else None
        return rows.index_select(0, back_N), width_N

    @torch.enable_grad()
    def solve(self, costs: Sequence[Tensor]) -> None:
        """Solves the problems, given `cost` of each of this rank's micro-batches."""
        cost_MW = self.layout.gather(costs).requires_grad_()
        blocks = [
            rows.view(P, R, -1)[..., :R]
            for (P, R), rows in zip(
                self._blocks, split_by_problem(cost_MW.index_select(0, self._order_M), self._blocks), strict=True
            )
        ]
        plans, sizes = solve_problems(blocks, *self._solver)
        total, values = cost_MW.sum() * 0, [cost_MW.new_zeros(0)]
        for plan, size_P in zip(plans, sizes, strict=True):
            total = total + (plan.value * size_P).sum()
            value_PR = (plan.plan * plan.cost).detach().sum(dim=-1) * size_P[:, None]
            real_PR = torch.arange(value_PR.shape[-1], device=size_P.device) < size_P[:, None]
            values.append(value_PR[real_PR])
        value_M = torch.empty_like(torch.cat(values))
        value_M[self._order_M] = torch.cat(values)
        (grad_MW,) = torch.autograd.grad(total, cost_MW)
        self._solution = _Solution(grad_MW, value_M, plans, sizes)

    def term(self, student_NV: Tensor, part: int = 0) -> SinKDTerm:
        """The part of the term that the rows of micro-batch `part` contribute.

        Its `value` is the transport cost of these rows, with their part of the gradient; its diagnostics are of the
        whole problem, but for the width of these rows' costs.
        """
        cost_NW, width_N = self._cost(student_NV, part)
        if self._solution is None:
            self.solve([cost_NW])
        solution = self._solution
        assert solution is not None
        rows = self.layout.parts[part]
        surrogate = (solution.grad_MW[rows] * cost_NW).sum()
        value = self._factor * (solution.value_M[rows].sum() + surrogate - surrogate.detach())
        problems = sum(P for P, _ in self._blocks)
        return SinKDTerm(value, len(cost_NW), problems, solution.plans, solution.sizes, width_N)

    def _gathered(self, teacher: Sequence[Tensor | TopKSignal]) -> Tensor | TopKSignal:
        """The teacher's rows of all micro-batches of all ranks."""
        signals = [rows for rows in teacher if isinstance(rows, TopKSignal)]
        if signals:
            return TopKSignal.joined(signals, self.layout.gather)
        return self.layout.gather([rows for rows in teacher if isinstance(rows, Tensor)])

    def _kept(self, rows: Any) -> Any:
        """Logits or a signal of only the ids that count."""
        if self._ids is None or self._regression:
            return rows
        width = rows.vocabulary_size if isinstance(rows, TopKSignal) else rows.shape[1]
        return teacher_at(rows, checked_ids(self._ids, width, self._device))

    def _teacher(self, student_width: int) -> TeacherSide:
        """The teacher's rows over the ids that both have."""
        if self._teacher_logits is not None:
            rows = self._teacher_logits
            if isinstance(rows, Tensor):
                rows = rows[:, :student_width]
                self._vocabulary = rows.shape[-1]
            else:
                self._vocabulary = rows.vocabulary_size
            self._side_M = teacher_side(rows, self._temperature, self._regression, self._norm)
            self._teacher_logits = None
        return self._side_M
