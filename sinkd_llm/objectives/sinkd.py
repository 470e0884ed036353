"""The SinKD term: what it costs to transport the student's set of predictions onto the teacher's.

Shape suffixes: N supervised tokens, V vocabulary, K kept token ids, P transport problems of one size, R rows
of a problem.

The published form (SinKD, arXiv:2402.17110; equations 17 to 20 of MultiLevelOT, AAAI 2025, which follows it), with
plans of mass 1 in place of n, so that `SD / N` is a mean over tokens:

    s_i = softmax(student_i / tau)     t_j = softmax(teacher_j / tau)     C_ij = || s_i - t_j ||_1
    P = argmin <P, C> - epsilon H(P)   of rows and columns 1 / n          SD = sum_p n_p <P_p, C_p> over problems p
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sinkd_llm.objectives.problems import Problems, Solution, TransportSettings
from sinkd_llm.objectives.signals import Signal, TeacherSignal, as_signal, distributions

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


def sinkd_term(
    student_NV: Tensor,
    teacher: TeacherSignal,
    settings: TransportSettings | None = None,
    *,
    example_N: Tensor,
    position_N: Tensor,
    verbalizer_ids: Tensor | Sequence[int] | None = None,
    regression: bool = False,
) -> SinKDTerm:
    """Sinkhorn distance between the student's and the teacher's rows (SinKD, arXiv:2402.17110).

    Both sides are softmaxed over the vocabulary, in fp32, at the same temperature. The loss does not know
    which student row belongs to which teacher row: permuting the teacher's rows within a problem leaves it
    unchanged. A problem of one row is the plain distance between the two.

    Args:
        student_NV (`Tensor`):
            Logits `[N, V]`, one row per supervised token, any floating dtype; N may be 0.
        teacher (`Tensor` or [`TopKSignal`]):
            Logits `[N, V]` over the same ids, which never receive a gradient; or the logits of some ids of each row.
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

    Returns:
        [`SinKDTerm`]

    Raises:
        `ValueError`: for shapes that do not match, a vocabulary of one id, verbalizers that are wanted and missing,
        repeated, fewer than two or outside of the vocabulary, and whatever [`TopKSignal`] refuses.
    """
    settings = settings or TransportSettings()
    signal = as_signal(teacher)
    _check(student_NV, signal, example_N, position_N, regression)
    ids_K = settings.kept_ids(verbalizer_ids, regression, student_NV.shape[1], student_NV.device)
    if ids_K is not None:
        student_NV, signal = student_NV.index_select(1, ids_K), signal.at(ids_K)
    teacher_rows = signal.transport_rows(settings.sinkhorn_temperature, settings.cost_norm, regression)
    N = len(student_NV)
    if settings.transport_scope == "batch":
        problems = Problems.whole(N)
    else:
        problems = Problems.of(position_N if settings.transport_scope == "position" else example_N)
    student_NV = problems.sorted(student_NV)
    teacher_rows = teacher_rows.map(problems.sorted)
    student_NV = distributions(student_NV, settings.sinkhorn_temperature, regression)

    # One cost call for the problems of one size: nothing is computed between rows of different problems.
    costs, widths = [], []
    blocks = zip(problems.split(student_NV), *map(problems.split, teacher_rows.tensors), strict=True)
    for student_PRV, *tensors in blocks:
        cost_PRR, width_PR = replace(teacher_rows, tensors=tuple(tensors)).cost(student_PRV)
        costs.append(cost_PRR)
        widths += [] if width_PR is None else [width_PR.flatten()]
    solution = settings.solve(costs)
    value = solution.cost(student_NV.new_zeros(()) if N else student_NV.sum())  # 0, but without rows of the graph
    width_N = torch.cat(widths or [student_NV.new_zeros(0)]) if teacher_rows.has_width else None
    return SinKDTerm(value, N, problems.count, solution, width_N)


def _check(student_NV: Tensor, signal: Signal, example_N: Tensor, position_N: Tensor, regression: bool) -> None:
    if student_NV.ndim != 2 or student_NV.shape != (len(signal), signal.vocabulary_size):
        raise ValueError(
            "The student's and the teacher's logits must be [N, V] of the same shape, got "
            f"{tuple(student_NV.shape)} and {(len(signal), signal.vocabulary_size)}."
        )
    if example_N.shape != student_NV.shape[:1] or position_N.shape != student_NV.shape[:1]:
        raise ValueError(
            f"example_N and position_N must have one entry for each of the {len(student_NV)} rows, got "
            f"shapes {tuple(example_N.shape)} and {tuple(position_N.shape)}."
        )
    if regression and student_NV.shape[1] != 1:
        raise ValueError(f"A regression has one output, got {student_NV.shape[1]}.")
    if not regression and student_NV.shape[1] < 2:
        raise ValueError("SinKD over a vocabulary of one id is 0 whatever the model says.")
