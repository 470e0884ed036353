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
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives.problems import Problems, Solution, TransportSettings
from sinkd_llm.objectives.signals import (
    Signal,
    TeacherSignal,
    TransportRows,
    as_signal,
    distributions,
    joined,
    over_shared_ids,
)
from sinkd_llm.objectives.sinkd import SinKDTerm

# In the scope "sequence" a problem lies within one micro-batch.
SPANNING_SCOPES = ("batch", "position")


@dataclass(frozen=True, eq=False)
class _Solved:
    solution: Solution
    grad_MW: Tensor
    value_M: Tensor  # each row's own transport cost


class SpanningProblem:
    """The SinKD term of all rows of a layout, for one micro-batch at a time.

    Every rank makes it, and calls `solve` (or, with one micro-batch, the first `term`), at the same point:
    these communicate.

    Args:
        layout ([`~sinkd_llm.distributed.RowLayout`]): where the rows of this rank's micro-batches stand.
        teacher (sequence of `Tensor` or [`TopKSignal`]): the teacher's logits of each of them, `[N, V]` or the
            logits of some ids of each row.
        position (sequence of `Tensor`): integers `[N]`, each row's place in its answer.
        settings ([`TransportSettings`]): with the scope `"batch"` or `"position"`.
        verbalizer_ids, regression: see [`sinkd_term`].
        teacher_MV (`Tensor`, *optional*): the teacher's logits of all rows, where they are known already. By default
            the logits of `teacher` are gathered, restricted to the verbalizers if only these count.
        factor (`float` or `Tensor`, *optional*, defaults to `1.0`): multiplies this rank's contribution.

    Raises:
        `ValueError`: for the scope `"sequence"`, and for verbalizers as in [`sinkd_term`].
    """

    def __init__(
        self,
        layout: RowLayout,
        teacher: Sequence[TeacherSignal],
        position: Sequence[Tensor],
        settings: TransportSettings,
        *,
        verbalizer_ids: Tensor | Sequence[int] | None = None,
        regression: bool = False,
        teacher_MV: Tensor | None = None,
        factor: float | Tensor = 1.0,
    ) -> None:
        if settings.transport_scope not in SPANNING_SCOPES:
            raise ValueError(
                f"transport_scope must be one of {', '.join(SPANNING_SCOPES)}, got {settings.transport_scope!r}."
            )
        self.layout, self.settings = layout, settings
        self._factor, self._regression = factor, regression
        self._ids = verbalizer_ids
        self._device = position[0].device
        # Restricted before they travel.
        self._signal: Signal | None = (
            joined([self._kept(as_signal(rows)) for rows in teacher], layout.gather)
            if teacher_MV is None
            else self._kept(as_signal(teacher_MV))
        )
        self._rows_M: TransportRows | None = None
        self._vocabulary = 0
        by_position = settings.transport_scope == "position"
        self._key_M = layout.gather(position) if by_position else position[0].new_zeros(layout.total)
        self._problems = Problems.of(self._key_M) if by_position else Problems.whole(layout.total)
        self._solved: _Solved | None = None

    def cost(self, student_NV: Tensor, part: int) -> Tensor:
        """`[N, W]`: row i's costs to the teacher's rows of its problem, in their order, then zeros. Differentiable.

        Args:
            student_NV (`Tensor`): logits of micro-batch `part`, over the same ids as the teacher's or more.
        """
        return self._cost(student_NV, part)[0]

    @torch.enable_grad()
    def solve(self, costs: Sequence[Tensor]) -> None:
        """Solves the problems, given `cost` of each of this rank's micro-batches."""
        cost_MW = self.layout.gather(costs).requires_grad_()
        blocks = self._problems.split(self._problems.sorted(cost_MW))
        solution = self.settings.solve([cost_PRW[..., : cost_PRW.shape[1]] for cost_PRW in blocks])
        # L = sum_p n_p <P_p, C_p>; of the graph also where there is no row.
        total, values = solution.cost(cost_MW.sum() * 0), [cost_MW.new_zeros(0)]
        for plan, size_P in zip(solution.plans, solution.sizes, strict=True):
            value_PR = (plan.plan * plan.cost).detach().sum(dim=-1) * size_P[:, None]  # n_p sum_j P_ij C_ij
            real_PR = torch.arange(value_PR.shape[-1], device=size_P.device) < size_P[:, None]
            values.append(value_PR[real_PR])
        (grad_MW,) = torch.autograd.grad(total, cost_MW)  # G
        self._solved = _Solved(solution, grad_MW, self._problems.unsorted(torch.cat(values)))

    def term(self, student_NV: Tensor, part: int = 0) -> SinKDTerm:
        """The part of the term that the rows of micro-batch `part` contribute.

        Its `value` is the transport cost of these rows, with their part of the gradient; its diagnostics are of the
        whole problem, but for the width of these rows' costs.
        """
        cost_NW, width_N = self._cost(student_NV, part)
        if self._solved is None:
            self.solve([cost_NW])
        solved = self._solved
        assert solved is not None
        rows = self.layout.parts[part]
        surrogate = (solved.grad_MW[rows] * cost_NW).sum()  # sum_ij G_ij C_ij
        value = self._factor * (solved.value_M[rows].sum() + surrogate - surrogate.detach())
        return SinKDTerm(value, len(cost_NW), self._problems.count, solved.solution, width_N)

    def _cost(self, student_NV: Tensor, part: int) -> tuple[Tensor, Tensor | None]:
        """`cost`, and of a top-k signal each row's mean width, `[N]`."""
        if (ids_K := self._kept_ids(student_NV.shape[-1])) is not None:
            student_NV = student_NV.index_select(1, ids_K)
        rows_M = self._teacher_rows(student_NV)
        student_NV = student_NV[:, : self._vocabulary]
        student_NV = distributions(student_NV, self.settings.sinkhorn_temperature, self._regression)
        if self._problems.count == 1:
            cost_1NM, width_1N = rows_M.map(lambda rows: rows[None]).cost(student_NV[None])
            return cost_1NM[0], None if width_1N is None else width_1N[0]
        if not len(student_NV):
            # Of the graph; and with a width, for every rank logs the same things.
            nothing_NW = student_NV[:, :1].expand(-1, self._problems.largest)
            return nothing_NW, student_NV.new_zeros(0) if rows_M.has_width else None
        return self._cost_by_problem(student_NV, rows_M, part)

    def _cost_by_problem(self, student_NV: Tensor, rows_M: TransportRows, part: int) -> tuple[Tensor, Tensor | None]:
        keys_P, problem_M, count_P = self._key_M.unique(return_inverse=True, return_counts=True)
        problem_N = problem_M[self.layout.parts[part]]
        order_N, order_M = problem_N.argsort(stable=True), problem_M.argsort(stable=True)
        mine, theirs = problem_N.bincount(minlength=len(keys_P)).tolist(), count_P.tolist()
        students = student_NV.index_select(0, order_N).split(mine)
        rows_M = rows_M.map(lambda rows: rows.index_select(0, order_M))
        # One cost call for the problems of one shape.
        present = [p for p in range(len(keys_P)) if mine[p]]
        shape = {p: (mine[p], theirs[p]) for p in present}

        def stacked(rows_M: Tensor, block: list[int]) -> Tensor:
            parts = rows_M.split(theirs)
            return torch.stack([parts[p] for p in block])

        cost_of: dict[int, Tensor] = {}
        width_of: dict[int, Tensor] = {}
        for _, same in groupby(sorted(present, key=shape.__getitem__), key=shape.__getitem__):
            block = list(same)
            rows_PR = rows_M.map(partial(stacked, block=block))
            cost_PNR, width_PN = rows_PR.cost(torch.stack([students[p] for p in block]))
            cost_of.update(zip(block, cost_PNR, strict=True))
            width_of.update({} if width_PN is None else zip(block, width_PN, strict=True))
        cost_NW = torch.cat([pad(cost_of[p], (0, self._problems.largest - theirs[p])) for p in present])
        back_N = order_N.argsort()
        width_N = torch.cat([width_of[p] for p in present]).index_select(0, back_N) if width_of else None
        return cost_NW.index_select(0, back_N), width_N

    def _kept_ids(self, V: int) -> Tensor | None:
        return self.settings.kept_ids(self._ids, self._regression, V, self._device)

    def _kept(self, signal: Signal) -> Signal:
        """The signal over the ids that count."""
        ids_K = self._kept_ids(signal.vocabulary_size)
        return signal if ids_K is None else signal.at(ids_K)

    def _teacher_rows(self, student_NV: Tensor) -> TransportRows:
        """The teacher's rows over the ids that both have; made once, and the logits are then let go."""
        if self._rows_M is None:
            assert self._signal is not None
            signal = over_shared_ids(student_NV, self._signal)[1]
            self._vocabulary, self._signal = signal.vocabulary_size, None
            settings = self.settings
            self._rows_M = signal.transport_rows(settings.sinkhorn_temperature, settings.cost_norm, self._regression)
        return self._rows_M
