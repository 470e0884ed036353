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

The transported cross-entropy is the same with its own C and with G = n_p P, a constant.

A micro-batch contributes the transport cost of its own rows, `n_p sum_j P_ij C_ij`: the contributions add up to L. Its
gradient is the gradient of `sum_ij G_ij C_ij` with G fixed: the gradients add up to dL. Both are exact for every
`sinkhorn_gradient`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives.comparison import Costs, TransportRequest, restricted, transport_costs
from sinkd_llm.objectives.couplings import PROPORTION, TransportedSettings
from sinkd_llm.objectives.cross_costs import CrossCosts, cross_costs
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.problems import COST_BOUND, Pairing, Problems, TransportSettings
from sinkd_llm.objectives.row_checks import check_side
from sinkd_llm.objectives.signals import DenseSignal, Signal, TeacherSignal, as_signal, joined, vocabulary_of
from sinkd_llm.objectives.sinkd import SinKDTerm
from sinkd_llm.objectives.transport_term import Planned
from sinkd_llm.objectives.transported import TransportedTerm

# In the scope "sequence" a problem lies within one micro-batch.
SPANNING_SCOPES = ("batch", "position")
# The teacher's logits of all rows serve every micro-batch: so many are made once, and more once a micro-batch.
_LOGITS_KEPT = 2**26


@dataclass(frozen=True, eq=False)
class _Solved:
    plans: Sequence[Planned]
    sizes: Sequence[Tensor]
    grad_MW: Tensor
    value_M: Tensor | None = None  # each row's own transport cost


class SpanningProblem:
    """The transport terms of all rows of a layout, for one micro-batch at a time.

    Every rank makes it, and calls `solve` (or, with one micro-batch, `term` and `transported_term` in the same order),
    at the same point: these communicate.

    Args:
        layout ([`~sinkd_llm.distributed.RowLayout`]): where the rows of this rank's micro-batches stand.
        teacher (sequence of `Tensor` or [`TopKSignal`]): the teacher's logits of each of them, `[N, V]` or the
            logits of some ids of each row.
        position (sequence of `Tensor`): integers `[N]`, each row's place in its answer.
        settings ([`TransportSettings`]): with the scope `"batch"` or `"position"`.
        transported ([`TransportedSettings`], *optional*): of a transported cross-entropy. Default: there is none.
        with_sinkd (`bool`, *optional*, defaults to `True`): whether there is a SinKD term.
        verbalizer_ids, regression: see [`sinkd_term`].
        group_seed (`int`, *optional*, defaults to `0`): see [`sinkd_term`]; the same on all ranks.
        factor (`float` or `Tensor`, *optional*, defaults to `1.0`): multiplies this rank's contribution.

    Raises:
        `ValueError`: for a scope whose problems lie in one micro-batch, a transported cross-entropy with the coupling
        `"proportion"`, which is no sum over rows, a teacher that is no logits `[N, V]`, and for verbalizers as in
        [`sinkd_term`].
    """

    def __init__(
        self,
        layout: RowLayout,
        teacher: Sequence[TeacherSignal],
        position: Sequence[Tensor],
        settings: TransportSettings,
        *,
        transported: TransportedSettings | None = None,
        with_sinkd: bool = True,
        verbalizer_ids: Tensor | Sequence[int] | None = None,
        regression: bool = False,
        group_seed: int = 0,
        factor: float | Tensor = 1.0,
    ) -> None:
        if settings.transport_scope not in SPANNING_SCOPES:
            raise ValueError(
                f"transport_scope must be one of {', '.join(SPANNING_SCOPES)}, got {settings.transport_scope!r}."
            )
        if transported is not None and transported.transported_coupling == PROPORTION:
            raise ValueError(
                "transported_coupling='proportion' compares the means of whole problems, so that their rows must be "
                "in one micro-batch of one process; use transport_scope='group' or 'sequence'."
            )
        for one in teacher:
            check_side("teacher", one)
        self.layout, self.settings, self._transported = layout, settings, transported
        self._solvers = {
            **({SinKDTerm.name: self._solve_sinkd} if with_sinkd else {}),
            **({TransportedTerm.name: self._solve_transported} if transported is not None else {}),
        }
        self._factor, self._regression = factor, regression
        self._given_ids = verbalizer_ids
        self._device = position[0].device
        # Restricted before they travel. Of hidden states with a head, only the hidden states travel.
        kept = [restricted(signal, self._ids(signal.vocabulary_size)) for signal in map(as_signal, teacher)]
        self._signal: Signal = joined(kept, layout.gather)
        if isinstance(self._signal, HeadOf) and len(self._signal) * self._signal.vocabulary_size <= _LOGITS_KEPT:
            with torch.no_grad():
                self._signal = DenseSignal(self._signal.logits())
        key_M = layout.gather(position) if settings.transport_scope == "position" else None
        self._problems = Problems.of(key_M, layout.total, settings.transport_group_size, group_seed)
        self._solved: dict[str, _Solved] = {}

    @property
    def pairing(self) -> Pairing:
        """Which of the M rows meet, in the order of the plans."""
        return self._problems.pairing

    def request(self, student: Tensor | HeadOf, part: int) -> TransportRequest:
        """
        Which costs the term needs of micro-batch `part`.

        Args:
            student (`Tensor` or [`HeadOf`]): its rows, over the same ids as the teacher's or more.
        """
        ids_K = self._ids(vocabulary_of(student))
        rows = self.layout.parts[part]
        return TransportRequest(self._signal, self._problems.pairing_of(rows), self.settings, ids_K, rows)

    def cost(self, student: Tensor | HeadOf, part: int) -> Tensor:
        """For each term `[N, W]`, beside each other: row i's costs to the teacher's rows of its problem, in their
        order, then zeros. Differentiable.

        Args:
            student (`Tensor` or [`HeadOf`]): see [`request`].
        """
        request = self.request(student, part)
        costs: list[Costs | CrossCosts] = []
        if SinKDTerm.name in self._solvers:
            costs.append(transport_costs(student, request, self._regression))
        if self._transported is not None:
            costs.append(cross_costs(student, request, self._transported.transported_temperature))
        return torch.cat([self._rows(one.blocks, one.zero, request) for one in costs], dim=1)

    def solve(self, costs: Sequence[Tensor]) -> None:
        """Solves the problems, given `cost` of each of this rank's micro-batches."""
        cost_MTW, W = self.layout.gather(costs), self._problems.largest
        for place, (name, solver) in enumerate(self._solvers.items()):
            self._solved[name] = solver(cost_MTW[:, place * W : (place + 1) * W])

    @torch.enable_grad()
    def _solve_sinkd(self, cost_MW: Tensor) -> _Solved:
        cost_MW = cost_MW.detach().requires_grad_()
        bound = None if self._regression else COST_BOUND
        solution = self.settings.solve(self._blocks(cost_MW), bound)
        # L = sum_p n_p <P_p, C_p>; of the graph also where there is no row.
        total, values = solution.cost(cost_MW.sum() * 0), [cost_MW.new_zeros(0)]
        for plan, size_P in zip(solution.plans, solution.sizes, strict=True):
            value_PR = (plan.plan * plan.cost).detach().sum(dim=-1) * size_P[:, None]  # n_p sum_j P_ij C_ij
            real_PR = torch.arange(value_PR.shape[-1], device=size_P.device) < size_P[:, None]
            values.append(value_PR[real_PR])
        (grad_MW,) = torch.autograd.grad(total, cost_MW)  # G
        return _Solved(solution.plans, solution.sizes, grad_MW, self._problems.unsorted(torch.cat(values)))

    def _solve_transported(self, cost_MW: Tensor) -> _Solved:
        assert self._transported is not None
        blocks = self._blocks(cost_MW)
        plans = [self._transported.couple(cost_PRR) for cost_PRR in blocks]
        sizes = [torch.full((len(cost),), cost.shape[1], device=cost.device) for cost in blocks]
        W = self._problems.largest
        rows = [pad(one.plan * len(one.plan[0]), (0, W - one.plan.shape[-1])).flatten(0, 1) for one in plans]
        grad_MW = self._problems.unsorted(torch.cat([cost_MW[:0], *rows]))  # G = n_p P
        return _Solved(plans, sizes, grad_MW)

    def _blocks(self, cost_MW: Tensor) -> list[Tensor]:
        """`[P, R, R]` for the P problems of each size R."""
        blocks = self._problems.split(self._problems.sorted(cost_MW))
        return [cost_PRW[..., : cost_PRW.shape[1]] for cost_PRW in blocks]

    def term(self, costs: Costs, request: TransportRequest, part: int = 0) -> SinKDTerm:
        """The part of the SinKD term that the rows of micro-batch `part` contribute.

        Its `value` is the transport cost of these rows, with their part of the gradient; its diagnostics are of the
        whole problem, but for the width of these rows' costs.

        Args:
            costs ([`Costs`]), request ([`TransportRequest`]): what [`request`] asks for, and what it was.
        """
        cost_NW = self._rows(costs.blocks, costs.zero, request)
        solved = self._solution(SinKDTerm.name, cost_NW)
        assert solved.value_M is not None
        rows = self.layout.parts[part]
        surrogate = (solved.grad_MW[rows] * cost_NW).sum()  # sum_ij G_ij C_ij
        value = self._factor * (solved.value_M[rows].sum() + surrogate - surrogate.detach())
        return SinKDTerm(value, len(cost_NW), self._problems.count, solved.plans, solved.sizes, costs.width_N)

    def transported_term(self, costs: CrossCosts, request: TransportRequest, part: int = 0) -> TransportedTerm:
        """The same of the transported cross-entropy.

        Args:
            costs ([`CrossCosts`]), request ([`TransportRequest`]): as in [`term`].
        """
        solved = self._solution(TransportedTerm.name, self._rows(costs.blocks, costs.zero, request))
        divergence_NW = self._rows(costs.divergences(), costs.zero, request)
        value = self._factor * (solved.grad_MW[self.layout.parts[part]] * divergence_NW).sum()
        return TransportedTerm(value, len(divergence_NW), self._problems.count, solved.plans, solved.sizes)

    def _solution(self, name: str, cost_NW: Tensor) -> _Solved:
        """That of [`solve`], or of the costs of the only micro-batch."""
        if name not in self._solved:
            self._solved[name] = self._solvers[name](self.layout.gather([cost_NW]))
        return self._solved[name]

    def _rows(self, blocks: Sequence[Tensor], zero: Tensor, request: TransportRequest) -> Tensor:
        """The costs as `[N, W]`."""
        if not blocks:
            return zero.new_zeros(0, self._problems.largest) + zero  # of the graph
        W = self._problems.largest
        return request.pairing.joined_student([pad(cost, (0, W - cost.shape[-1])) for cost in blocks])

    def _ids(self, V: int) -> Tensor | None:
        return self.settings.kept_ids(self._given_ids, self._regression, V, self._device)
