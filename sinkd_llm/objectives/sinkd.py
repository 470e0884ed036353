"""The SinKD term: what it costs to transport the student's set of predictions onto the teacher's.

Shape suffixes: N supervised tokens, V vocabulary, K kept token ids, P transport problems of one size, R rows
of a problem.

The published form (SinKD, arXiv:2402.17110; equations 17 to 20 of MultiLevelOT, AAAI 2025, which follows it), with
plans of mass 1 in place of n, so that `SD / N` is a mean over tokens:

    s_i = softmax(student_i / tau)     t_j = softmax(teacher_j / tau)     C_ij = || s_i - t_j ||_1
    P = argmin <P, C> - epsilon H(P)   of rows and columns 1 / n          SD = sum_p n_p <P_p, C_p> over problems p
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sinkd_llm.objectives.comparison import Costs, TransportRequest, restricted, transport_costs
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.problems import Problems, Solution, TransportSettings
from sinkd_llm.objectives.signals import Signal, TeacherSignal, as_signal, rows_of, vocabulary_of

# Attributes of `SinKDTerm` that are logged.
SINKD_DIAGNOSTICS = ("row_error", "diagonal_mass", "plan_entropy", "cost_width")


@dataclass(frozen=True, eq=False)
class SinKDTerm:
    """The result of `sinkd_term`. The diagnostics are computed on first use and carry no gradient.

    Attributes:
        value (`Tensor`):
            Scalar, the *sum* over supervised tokens of their transport cost: `sum_p n_p <P_p, C_p>` over
            the problems p of n_p tokens, each plan of mass 1.
        num_tokens (`int`):
            Supervised tokens.
        num_problems (`int`):
            Transport problems they were divided into.
        solution ([`~sinkd_llm.objectives.problems.Solution`]):
            Their plans.
        width_N (`Tensor`, *optional*):
            Of a top-k signal: the width of the interval around the cost that was used in which the dense one lies, a
            row's mean over its problem.
    """

    value: Tensor
    num_tokens: int
    num_problems: int
    solution: Solution
    width_N: Tensor | None = None

    @cached_property
    def transport_cost(self) -> Tensor:
        """Mean transport cost of a supervised token, in [0, 2] for both norms."""
        return self.value.detach() / max(self.num_tokens, 1)

    @cached_property
    def row_error(self) -> Tensor:
        """Share of the mass that the plan's rows misplace, in [0, 2], mean over tokens: 0 = converged."""
        return self._mean([plan.row_error for plan in self.solution.plans])

    @cached_property
    def diagonal_mass(self) -> Tensor:
        """Share of a token's mass that goes to the same token, in [0, 1], mean over tokens.

        At 1 the term is the plain L1 distance between corresponding rows and transport does nothing;
        at 1/n the plan of n rows does not know which rows correspond.
        """
        return self._mean([plan.plan.detach().diagonal(dim1=-2, dim2=-1).sum(dim=-1) for plan in self.solution.plans])

    @cached_property
    def plan_entropy(self) -> Tensor:
        """How spread the plan is, in [0, 1], mean over tokens: 0 is a permutation, 1 the uniform plan.

        `(H(P) - log n) / log n` for a problem of n rows: the entropy of where a token's mass comes from, over
        its maximum. A single row has only one plan: 0.
        """
        spreads = []
        for plan, size in zip(self.solution.plans, self.solution.sizes, strict=True):
            log_n = size.to(plan.cost.dtype).log()
            entropy = torch.special.entr(plan.plan.detach()).sum(dim=(-2, -1))
            spreads.append(((entropy - log_n) / log_n).clamp(0, 1).where(size > 1, 0))
        return self._mean(spreads)

    @cached_property
    def cost_width(self) -> Tensor | None:
        """Mean width of the interval that the dense cost lies in: it begins at the cost that was used.

        Where the teacher's logits were stored with fewer bits, the interval reaches as far beyond both of its ends as
        they may be off ([`TopKSignal.cost_error`]), and is so much wider. `None` for a dense signal.
        """
        return None if self.width_N is None else self.width_N.sum() / max(len(self.width_N), 1)

    def diagnostics(self) -> dict[str, Tensor]:
        """Those of `SINKD_DIAGNOSTICS` that there are, by their names in the log."""
        values = {name: getattr(self, name) for name in SINKD_DIAGNOSTICS}
        return {f"sinkhorn/{name}": value for name, value in values.items() if value is not None}

    def _mean(self, values: list[Tensor]) -> Tensor:
        """Mean over the tokens of all problems of a quantity that each problem has."""
        sizes, total = self.solution.sizes, torch.zeros_like(self.value.detach())
        for value, size in zip(values, sizes, strict=True):
            total = total + (value * size).sum()
        return total / max(sum(int(size.sum()) for size in sizes), 1)


class BatchProblem:
    """
    The transport problems of rows that are all here.

    Args:
        signal ([`Signal`]): the teacher's, of N rows.
        settings ([`TransportSettings`]): of the term.
        example_N, position_N (`Tensor`): see [`sinkd_term`].
        ids_K (`Tensor`, *optional*): of [`TransportSettings.kept_ids`].
        group_seed (`int`, *optional*, defaults to `0`): see [`sinkd_term`].
    """

    def __init__(
        self,
        signal: Signal,
        settings: TransportSettings,
        example_N: Tensor,
        position_N: Tensor,
        ids_K: Tensor | None = None,
        group_seed: int = 0,
    ) -> None:
        scope = settings.transport_scope
        key_N = None if scope == "batch" else position_N if scope == "position" else example_N
        self.settings = settings
        self.problems = Problems.of(key_N, len(position_N), settings.transport_group_size, group_seed)
        self.request = TransportRequest(restricted(signal, ids_K), self.problems.pairing, settings, ids_K)

    def term(self, costs: Costs) -> SinKDTerm:
        """The term, given the costs that [`request`] asks for."""
        solution = self.settings.solve(costs.blocks, costs.bound)
        N = sum(P * R for P, R in self.problems.blocks)
        return SinKDTerm(solution.cost(costs.zero), N, self.problems.count, solution, costs.width_N)


def sinkd_term(
    student: Tensor | HeadOf,
    teacher: TeacherSignal,
    settings: TransportSettings | None = None,
    *,
    example_N: Tensor,
    position_N: Tensor,
    verbalizer_ids: Tensor | Sequence[int] | None = None,
    regression: bool = False,
    group_seed: int = 0,
) -> SinKDTerm:
    """Sinkhorn distance between the student's and the teacher's rows (SinKD, arXiv:2402.17110).

    Both sides are softmaxed over the vocabulary, in fp32, at the same temperature. The loss does not know
    which student row belongs to which teacher row: permuting the teacher's rows within a problem leaves it
    unchanged. A problem of one row is the plain distance between the two.

    Args:
        student (`Tensor` or [`HeadOf`]):
            Logits `[N, V]`, one row per supervised token, any floating dtype; N may be 0. Or hidden states with the
            head that would make these logits.
        teacher (`Tensor`, [`HeadOf`] or [`TopKSignal`]):
            Likewise over the same ids, without a gradient; or the logits of some ids of each row.
            Then the cost is the L1 distance over those ids and one bucket for the rest, a lower bound of the dense
            one, see [`~sinkd_llm.optimal_transport.pairwise_top_k_cost`].
        settings ([`TransportSettings`], *optional*):
            Defaults to the published constants.
        example_N (`Tensor`):
            Integer `[N]`: which example each row belongs to.
        position_N (`Tensor`):
            Integer `[N]`: which token of its example's answer each row is.
        verbalizer_ids (`Tensor` or sequence of `int`, *optional*):
            `[K]` distinct token ids in [0, V), which the logits are restricted to if `vocabulary` is
            `"verbalizers"`.
        regression (`bool`, *optional*, defaults to `False`):
            V is 1 and the rows are raw predictions of a number that lies in [0, 1]. A softmax over one output is
            constant, so a prediction z stands for the two masses (z, 1 - z) instead, without temperature: the
            cost is `2 |s_i - t_j|` (`l1`), in [0, 2] for predictions in [0, 1] as it is for distributions.
        group_seed (`int`, *optional*, defaults to `0`):
            Of the random groups that problems of more than `transport_group_size` rows are cut into.

    Returns:
        [`SinKDTerm`]

    Raises:
        `ValueError`: for shapes that do not match, a vocabulary of one id, verbalizers that are wanted and missing,
        repeated, fewer than two or outside of the vocabulary, and whatever [`TopKSignal`] refuses.
    """
    settings = settings or TransportSettings()
    signal = as_signal(teacher)
    _check(student, signal, example_N, position_N, regression)
    ids_K = settings.kept_ids(verbalizer_ids, regression, vocabulary_of(student), rows_of(student).device)
    problem = BatchProblem(signal, settings, example_N, position_N, ids_K, group_seed)
    return problem.term(transport_costs(student, problem.request, regression))


def _check(student: Tensor | HeadOf, signal: Signal, example_N: Tensor, position_N: Tensor, regression: bool) -> None:
    shape = (len(student), vocabulary_of(student)) if rows_of(student).ndim == 2 else tuple(rows_of(student).shape)
    if shape != (len(signal), signal.vocabulary_size):
        raise ValueError(
            "The student's and the teacher's logits must be [N, V] of the same shape, got "
            f"{shape} and {(len(signal), signal.vocabulary_size)}."
        )
    if example_N.shape != shape[:1] or position_N.shape != shape[:1]:
        raise ValueError(
            f"example_N and position_N must have one entry for each of the {shape[0]} rows, got "
            f"shapes {tuple(example_N.shape)} and {tuple(position_N.shape)}."
        )
    if regression and shape[1] != 1:
        raise ValueError(f"A regression has one output, got {shape[1]}.")
    if not regression and shape[1] < 2:
        raise ValueError("SinKD over a vocabulary of one id is 0 whatever the model says.")
