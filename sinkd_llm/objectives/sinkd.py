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

from torch import Tensor

from sinkd_llm.objectives.comparison import Costs, TransportRequest, restricted, transport_costs
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.problems import Problems, TransportSettings
from sinkd_llm.objectives.row_checks import check_places, check_side
from sinkd_llm.objectives.setting_checks import check_kind
from sinkd_llm.objectives.signals import Signal, TeacherSignal, as_signal, rows_of, vocabulary_of
from sinkd_llm.objectives.transport_term import PLAN_DIAGNOSTICS, TransportTerm

# What is logged of a term.
SINKD_DIAGNOSTICS = (*PLAN_DIAGNOSTICS, "cost_width")


@dataclass(frozen=True, eq=False)
class SinKDTerm(TransportTerm):
    """The result of `sinkd_term`.

    Attributes:
        value (`Tensor`):
            Scalar, the *sum* over supervised tokens of their transport cost: `sum_p n_p <P_p, C_p>` over
            the problems p of n_p tokens, each plan of mass 1.
        width_N (`Tensor`, *optional*):
            Of a top-k signal: the width of the interval around the cost that was used in which the dense one lies, a
            row's mean over its problem.
    """

    name, logged = "sinkhorn", SINKD_DIAGNOSTICS

    width_N: Tensor | None = None

    @cached_property
    def transport_cost(self) -> Tensor:
        """Mean transport cost of a supervised token, in [0, 2] for both norms."""
        return self.value.detach() / max(self.num_tokens, 1)

    @cached_property
    def cost_width(self) -> Tensor | None:
        """Mean width of the interval that the dense cost lies in: it begins at the cost that was used.

        Where the teacher's logits were stored with fewer bits, the interval reaches as far beyond both of its ends as
        they may be off ([`TopKSignal.cost_error`]), and is so much wider. `None` for a dense signal.
        """
        return None if self.width_N is None else self.width_N.sum() / max(len(self.width_N), 1)


def solved_term(costs: Costs, problems: Problems, settings: TransportSettings) -> SinKDTerm:
    """
    The term of rows that are all here, given the costs between the rows of each problem.

    Args:
        costs ([`Costs`]): of the pairing of `problems`.
        problems ([`Problems`]): which rows form one.
        settings ([`TransportSettings`]): of the solver.
    """
    solution = settings.solve(costs.blocks, costs.bound)
    N = sum(P * R for P, R in problems.blocks)
    return SinKDTerm(solution.cost(costs.zero), N, problems.count, solution.plans, solution.sizes, costs.width_N)


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
    group_N: Tensor | None = None,
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
        group_N (`Tensor`, *optional*):
            Integer `[N]`: the group of each row, for the scope `"group"`.

    Returns:
        [`SinKDTerm`]

    Raises:
        `ValueError`: for types and shapes that do not match, groups that are wanted and missing, a vocabulary of one
        id, verbalizers that are wanted and missing, repeated, fewer than two or outside of the vocabulary, and
        whatever [`TopKSignal`] refuses.
    """
    settings = TransportSettings() if settings is None else settings
    check_kind("settings", settings, TransportSettings)
    check_side("student", student)
    check_side("teacher", teacher)
    signal = as_signal(teacher)
    _check(student, signal, regression)
    check_places(len(student), example_N=example_N, position_N=position_N, group_N=group_N)
    ids_K = settings.kept_ids(verbalizer_ids, regression, vocabulary_of(student), rows_of(student).device)
    problems = settings.problems(example_N, position_N, group_N, group_seed)
    request = TransportRequest(restricted(signal, ids_K), problems.pairing, settings, ids_K)
    return solved_term(transport_costs(student, request, regression), problems, settings)


def _check(student: Tensor | HeadOf, signal: Signal, regression: bool) -> None:
    shape = (len(student), vocabulary_of(student))
    if shape != (len(signal), signal.vocabulary_size):
        raise ValueError(
            "The student's and the teacher's logits must be [N, V] of the same shape, got "
            f"{shape} and {(len(signal), signal.vocabulary_size)}."
        )
    if regression and shape[1] != 1:
        raise ValueError(f"A regression has one output, got {shape[1]}.")
    if not regression and shape[1] < 2:
        raise ValueError("SinKD over a vocabulary of one id is 0 whatever the model says.")
