"""The SinKD term: what it costs to transport the student's set of predictions onto the teacher's.

Shape suffixes: N supervised tokens, V vocabulary, K kept token ids, P transport problems of one size, R rows
of a problem.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad

from sinkd_llm.objectives.signals import TopKSignal
from sinkd_llm.optimal_transport import TransportPlan, pairwise_cost, pairwise_top_k_cost, sinkhorn
from sinkd_llm.optimal_transport.precision import full_precision

TRANSPORT_SCOPES = ("batch", "position", "sequence")

# The teacher's rows as the cost takes them: their distributions `[M, V]`; or, of a top-k signal, kept ids `[M, K]`,
# their probabilities `[M, K]`, the probability of the others `[M]`, and how far a distance to a row may be off `[M]`.
TeacherSide = tuple[Tensor, ...]


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
        plans (`list[TransportPlan]`):
            Their solutions, problems of similar size together: `plan` is `[P, R, R]`.
        sizes (`list[Tensor]`):
            For each of `plans`, the number of tokens of its problems, `[P]`.
        width_N (`Tensor`, *optional*):
            Of a top-k signal: the width of the interval around the cost that was used in which the dense one lies, a
            row's mean over its problem.
    """

    value: Tensor
    num_tokens: int
    num_problems: int
    plans: list[TransportPlan]
    sizes: list[Tensor]
    width_N: Tensor | None = None

    @cached_property
    def transport_cost(self) -> Tensor:
        """Mean transport cost of a supervised token, in [0, 2] for both norms."""
        return self.value.detach() / max(self.num_tokens, 1)

    @cached_property
    def row_error(self) -> Tensor:
        """Share of the mass that the plan's rows misplace, in [0, 2], mean over tokens: 0 = converged."""
        return self._mean([plan.row_error for plan in self.plans])

    @cached_property
    def diagonal_mass(self) -> Tensor:
        """Share of a token's mass that goes to the same token, in [0, 1], mean over tokens.

        At 1 the term is the plain L1 distance between corresponding rows and transport does nothing;
        at 1/n the plan of n rows does not know which rows correspond.
        """
        return self._mean([plan.plan.detach().diagonal(dim1=-2, dim2=-1).sum(dim=-1) for plan in self.plans])

    @cached_property
    def plan_entropy(self) -> Tensor:
        """How spread the plan is, in [0, 1], mean over tokens: 0 is a permutation, 1 the uniform plan.

        `(H(P) - log n) / log n` for a problem of n rows: the entropy of where a token's mass comes from, over
        its maximum. A single row has only one plan: 0.
        """
        spreads = []
        for plan, size in zip(self.plans, self.sizes, strict=True):
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

    def _mean(self, values: list[Tensor]) -> Tensor:
        """Mean over the tokens of all problems of a quantity that each problem has."""
        total = torch.zeros_like(self.value.detach())
        for value, size in zip(values, self.sizes, strict=True):
            total = total + (value * size).sum()
        return total / max(sum(int(size.sum()) for size in self.sizes), 1)


def sinkd_term(
    student_NV: Tensor,
    teacher: Tensor | TopKSignal,
    *,
    example_N: Tensor,
    position_N: Tensor,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    threshold: float | None = None,
    gradient: str = "unrolled",
    cost_norm: str = "l1",
    scope: str = "batch",
    vocabulary_ids: Tensor | Sequence[int] | None = None,
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
        example_N (`Tensor`):
            Integer `[N]`: which example each row belongs to.
        position_N (`Tensor`):
            Integer `[N]`: which token of its example's answer each row is.
        temperature (`float`, *optional*, defaults to `2.0`):
            Divides both sides' logits before the softmax.
        epsilon, iterations, threshold, gradient:
            See [`~sinkd_llm.optimal_transport.sinkhorn`].
        cost_norm (`str`, *optional*, defaults to `"l1"`):
            See [`~sinkd_llm.optimal_transport.pairwise_cost`].
        scope (`str`, *optional*, defaults to `"batch"`):
            Which rows form one transport problem: `"batch"` all of them, `"position"` those with the same
            `position_N`, `"sequence"` those with the same `example_N`.
        vocabulary_ids (`Tensor` or sequence of `int`, *optional*):
            `[K]` distinct token ids: the logits are restricted to them *before* the softmax.
        regression (`bool`, *optional*, defaults to `False`):
            V is 1 and the rows are raw predictions of a number that lies in [0, 1]. A softmax over one output is
            constant, so a prediction z stands for the two masses (z, 1 - z) instead, without temperature: the
            cost is `2 |s_i - t_j|` (`l1`), in [0, 2] for predictions in [0, 1] as it is for distributions.

    Returns:
        [`SinKDTerm`]

    Raises:
        `ValueError`: for shapes that do not match, a temperature <= 0, an unknown scope, fewer than two
        vocabulary ids, repeated ones or ones outside the vocabulary, and whatever `sinkhorn`, `pairwise_cost` and
        [`TopKSignal`] refuse.
    """
    _check(student_NV, teacher, example_N, position_N, temperature, scope, regression)
    if vocabulary_ids is not None:
        ids_K = checked_ids(vocabulary_ids, student_NV.shape[1], student_NV.device)
        student_NV, teacher = student_NV.index_select(1, ids_K), teacher_at(teacher, ids_K)
    side = teacher_side(teacher, temperature, regression, cost_norm)
    N = len(student_NV)
    if scope == "batch":
        blocks = [(1, N)] if N else []
    else:
        order_N, blocks = sort_by_problem(position_N if scope == "position" else example_N)
        order_N = order_N.to(student_NV.device)
        student_NV = student_NV.index_select(0, order_N)
        side = tuple(rows.index_select(0, order_N) for rows in side)
    student_NV = distributions(student_NV, temperature, regression)

    # One cost call for the problems of one size: nothing is computed between rows of different problems.
    costs, widths = [], []
    parts = (split_by_problem(rows, blocks) for rows in (student_NV, *side))
    for (P, R), *rows in zip(blocks, *parts, strict=True):
        student_PRV, *teacher_PR = (part.view(P, R, *part.shape[1:]) for part in rows)
        cost_PRR, width_PR = cost_to(student_PRV, tuple(teacher_PR), cost_norm)
        costs.append(cost_PRR)
        widths += [] if width_PR is None else [width_PR.flatten()]
    plans, sizes = solve_problems(costs, epsilon, iterations, threshold, gradient)
    value = student_NV.new_zeros(()) if N else student_NV.sum()  # 0, but part of the graph
    for plan, size_P in zip(plans, sizes, strict=True):
        value = value + (plan.value * size_P).sum()
    width_N = None
    if isinstance(teacher, TopKSignal):
        width_N = torch.cat(widths) if widths else student_NV.new_zeros(0)
    return SinKDTerm(value, N, sum(P for P, _ in blocks), plans, sizes, width_N)


def distributions(logits_NV: Tensor, temperature: float, regression: bool) -> Tensor:
    """What the cost compares: softmax over V at the temperature, or a prediction's two masses `[N, 2]`."""
    logits_NV = full_precision(logits_NV)
    if regression:
        return torch.cat([logits_NV, 1 - logits_NV], dim=-1)
    return torch.softmax(logits_NV / temperature, dim=-1)


def teacher_at(teacher: Tensor | TopKSignal, ids_K: Tensor) -> Tensor:
    """The teacher's logits of some ids, over which alone every signal is dense: `[M, K]`."""
    return teacher.logits_at(ids_K) if isinstance(teacher, TopKSignal) else teacher.index_select(1, ids_K)


def teacher_side(teacher: Tensor | TopKSignal, temperature: float, regression: bool, cost_norm: str) -> TeacherSide:
    """What `cost_to` takes of the teacher's rows, without gradient.

    Raises:
        `ValueError`: for a top-k signal with a norm for which it certifies nothing, or of a regression.
    """
    if isinstance(teacher, Tensor):
        return (distributions(teacher.detach(), temperature, regression),)
    if regression:
        raise ValueError("A regression has one output, so its teacher signal is dense: give the predictions [N, 1].")
    if cost_norm != "l1":
        raise ValueError(
            f"cost_norm={cost_norm!r} needs the teacher's whole rows: merging ids into one bucket shortens an L1 "
            "distance, but may lengthen a squared one, so nothing would be certified; use cost_norm='l1', or cache "
            "full rows."
        )
    return teacher.ids_NK, *teacher.probabilities(temperature), teacher.cost_error(temperature)


def cost_to(student_PNV: Tensor, side: TeacherSide, norm: str) -> tuple[Tensor, Tensor | None]:
    """The cost `[P, N, M]` of P problems, and of a top-k signal each student row's mean width, `[P, N]`."""
    if len(side) == 1:
        return pairwise_cost(student_PNV, side[0], norm=norm), None
    *rows, error_PM = side
    cost_PNM, width_PNM = pairwise_top_k_cost(student_PNV, *rows)
    return cost_PNM, width_PNM.mean(dim=-1) + 2 * error_PM.mean(dim=-1, keepdim=True)


def solve_problems(
    costs: Sequence[Tensor], epsilon: float, iterations: int, threshold: float | None, gradient: str
) -> tuple[list[TransportPlan], list[Tensor]]:
    """Solutions of the blocks `[P, R, R]` of growing R, and of each the number of tokens of its problems.

    One solver call for the problems that have the same power of two above their size: few calls, and padding that
    at most quadruples the plans, however unequal the problems are.
    """
    plans, sizes = [], []
    for _, similar in groupby(costs, key=lambda cost: (cost.shape[-1] - 1).bit_length()):
        cost_PRR, mask_PR, size_P = _pad(list(similar))
        plans.append(sinkhorn(cost_PRR, epsilon, iterations, threshold, gradient, mask_PR, mask_PR))
        sizes.append(size_P)
    return plans, sizes


def sort_by_problem(key_N: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """An order of the rows, and in that order the `(P, R)` of each block of P problems of R rows, R growing.

    Rows of one problem are contiguous and keep their order, so that row i of the student and row i of the
    teacher stay the same token.
    """
    _, problem_N, count = key_N.unique(return_inverse=True, return_counts=True)
    order_N = problem_N.argsort(stable=True)
    order_N = order_N[count[problem_N[order_N]].argsort(stable=True)]
    return order_N, [(len(list(same)), R) for R, same in groupby(sorted(count.tolist()))]


def split_by_problem(rows_NV: Tensor, blocks: list[tuple[int, int]]) -> Sequence[Tensor]:
    """The rows of each block. A single block is not split, which would copy its gradient."""
    return [rows_NV] if len(blocks) == 1 else rows_NV.split([P * R for P, R in blocks])


def _pad(costs: list[Tensor]) -> tuple[Tensor, Tensor | None, Tensor]:
    """Square cost blocks `[P, R, R]` of growing R as one; a mask of the real rows if there is padding."""
    largest = costs[-1].shape[-1]
    cost = torch.cat([pad(c, (0, largest - c.shape[-1]) * 2) for c in costs])
    sizes = [c.shape[-1] for c in costs for _ in range(len(c))]
    size_P = torch.tensor(sizes, device=cost.device)
    if sizes[0] == largest:
        return cost, None, size_P
    return cost, torch.arange(largest, device=cost.device) < size_P[:, None], size_P


def _check(
    student_NV: Tensor,
    teacher: Tensor | TopKSignal,
    example_N: Tensor,
    position_N: Tensor,
    temperature: float,
    scope: str,
    regression: bool,
) -> None:
    shape = (len(teacher), teacher.vocabulary_size) if isinstance(teacher, TopKSignal) else tuple(teacher.shape)
    if student_NV.ndim != 2 or student_NV.shape != shape:
        raise ValueError(
            "The student's and the teacher's logits must be [N, V] of the same shape, got "
            f"{tuple(student_NV.shape)} and {shape}."
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
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a positive number, got {temperature}.")
    if scope not in TRANSPORT_SCOPES:
        raise ValueError(f"scope must be one of {', '.join(TRANSPORT_SCOPES)}, got {scope!r}.")


def checked_ids(vocabulary_ids: Tensor | Sequence[int], V: int, device: torch.device) -> Tensor:
    ids_K = torch.as_tensor(vocabulary_ids, device=device).flatten()
    distinct = ids_K.unique()
    if len(distinct) < 2:
        raise ValueError(
            f"SinKD needs at least two vocabulary ids, got {ids_K.tolist()}: over a single one every "
            "distribution is the same and the term is 0 whatever the model says."
        )
    if len(distinct) < len(ids_K):
        raise ValueError(f"vocabulary_ids must be distinct, got {ids_K.tolist()}.")
    if distinct[0] < 0 or distinct[-1] >= V:
        raise ValueError(f"vocabulary_ids must lie in [0, {V}), got {ids_K.tolist()}.")
    return ids_K
