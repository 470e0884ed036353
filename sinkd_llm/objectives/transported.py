"""Transported cross-entropy: the student learns from the teacher's rows re-mixed by a transport plan.

Shape suffixes: N student rows, M teacher rows, V vocabulary, P transport problems of one size, n and m the rows of a
problem that are the student's and the teacher's.

With s and t the distributions of student and teacher at one temperature, in a problem of n and m rows:

    C_ij = CE(t_j, s_i) = -sum_v t_jv log s_iv                          nats
    P    = argmin <P, C> + epsilon KL(P | R)      of row sums 1 / n and column sums b: a constant, without gradient
    R    = rho / (n m) + (1 - rho) I / n          the anchor; rho = 1 is free, rho = 0 is P = I / n
    L    = n sum_ij P_ij (C_ij - H(t_j)) = n sum_ij P_ij KL(t_j || s_i)

summed over problems. Its gradient is the gradient of `sum_i CE(r_i, s_i)`, with the re-mixed rows `r = n P t`.
What is subtracted is the entropy of the rows that the teacher gave, and not of the re-mixed ones. The columns of P sum
to b, so that it depends on the teacher alone: L follows `<P, C>`, which the plan minimises with the entropic part, and
the gradient with a constant plan is the gradient of that minimum (envelope theorem). L is at least 0; with rho = 0 it
is the KL divergence of the pairs; it is 0 where every student row equals each teacher row that the plan gives it. With
`KL(r_i || s_i)` instead, a student that says the mean of the teacher's rows of every row would have L = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sinkd_llm.objectives.comparison import TransportRequest, zero_of
from sinkd_llm.objectives.couplings import PROPORTION, TeacherSets, TransportedSettings
from sinkd_llm.objectives.cross_costs import cross_costs
from sinkd_llm.objectives.divergences import DIVERGENCES
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.problems import Problems, TransportSettings
from sinkd_llm.objectives.row_checks import check_side
from sinkd_llm.objectives.setting_checks import check_kind
from sinkd_llm.objectives.signals import (
    TeacherSignal,
    TopKSignal,
    as_signal,
    at_ids,
    first_ids,
    logits_of,
    vocabulary_of,
)
from sinkd_llm.objectives.transport_term import TransportTerm
from sinkd_llm.optimal_transport.precision import full_precision

NEEDS_DISTRIBUTIONS = (
    "The transported cross-entropy is between distributions over two ids or more, and there is one output: a number "
    "has no cross-entropy; set transported_weight to 0 for a regression."
)


@dataclass(frozen=True, eq=False)
class TransportedTerm(TransportTerm):
    """The result of `transported_term`: `value` is L of all problems, the sum over supervised tokens, in nats and
    without a factor for the temperature. A `"proportion"` has no plans, and logs 0 for each diagnostic."""

    name = "transported"


def term_of(
    student: Tensor | HeadOf,
    request: TransportRequest,
    settings: TransportedSettings,
    sets: TeacherSets | None = None,
) -> TransportedTerm:
    """
    The term of rows that are all here.

    Args:
        student (`Tensor` or [`HeadOf`]): logits `[N, V]`, or hidden states with their head.
        request ([`TransportRequest`]): the teacher's signal, and which rows meet.
        settings ([`TransportedSettings`]): of the term.
        sets ([`TeacherSets`], *optional*): the request's, where the teacher's rows are sets.
    """
    pairing = request.pairing
    masses: list[Tensor | None] = [None] * len(pairing.blocks)
    paired: list[Tensor | None] = [None] * len(pairing.blocks)
    if sets is not None and sets.count_M is not None:
        masses = [*pairing.teachers(sets.count_M.to(zero_of(student)))]
    if sets is not None and sets.paired_M is not None:
        paired = [paired_Pm[:, 0] for paired_Pm in pairing.teachers(sets.paired_M.cpu())]
    T = settings.transported_temperature
    N, problems = sum(P * n for P, n, _ in pairing.blocks), sum(P for P, _, _ in pairing.blocks)
    if settings.transported_coupling == PROPORTION:
        return TransportedTerm(_proportions(student, request, T, masses), N, problems, [], [])
    costs = cross_costs(student, request, T)
    value, plans, sizes = costs.zero, [], []
    for cost_Pnm, divergence_Pnm, mass_Pm, paired_P in zip(
        costs.blocks, costs.divergences(), masses, paired, strict=True
    ):
        (P, n, _), coupling = cost_Pnm.shape, settings.couple(cost_Pnm, mass_Pm, paired_P)
        value = value + n * (coupling.plan * divergence_Pnm).sum()
        plans.append(coupling)
        sizes.append(torch.full((P,), n, device=value.device))
    return TransportedTerm(value, N, problems, plans, sizes)


def _proportions(
    student: Tensor | HeadOf, request: TransportRequest, temperature: float, masses: Sequence[Tensor | None]
) -> Tensor:
    """`n KL(mean t || mean s)`, summed over problems."""
    signal, pairing, value = request.signal, request.pairing, zero_of(student)
    if isinstance(signal, TopKSignal):
        raise ValueError(
            "transported_coupling='proportion' needs the teacher's whole rows: each row of this signal names ids of "
            "its own, and their mean is not known; cache full rows, or use another coupling."
        )
    if request.ids_K is None:
        shared = min(signal.vocabulary_size, vocabulary_of(student))
        student, signal = first_ids(student, shared), signal.first_ids(shared)
    else:
        student = at_ids(student, request.ids_K)
    sides = pairing.students(logits_of(student)), pairing.teachers(logits_of(signal.side))
    for z_PnV, y_PmV, mass_Pm in zip(*sides, masses, strict=True):
        s_PnV, t_PmV = (torch.softmax(full_precision(x) / temperature, dim=-1) for x in (z_PnV, y_PmV))
        if mass_Pm is None:
            mass_Pm = t_PmV.new_ones(t_PmV.shape[:2])
        least = torch.finfo(s_PnV.dtype).tiny
        mean_t = (t_PmV * (mass_Pm / mass_Pm.sum(dim=-1, keepdim=True))[:, :, None]).sum(dim=1)
        log_s, log_t = (mean.clamp(min=least).log() for mean in (s_PnV.mean(dim=1), mean_t))
        value = value + z_PnV.shape[1] * DIVERGENCES["kl"](log_s, log_t).sum()
    return value


def transported_term(
    student: Tensor | HeadOf,
    teacher: TeacherSignal,
    settings: TransportedSettings | None = None,
    *,
    group_N: Tensor | None = None,
    sets: TeacherSets | None = None,
) -> TransportedTerm:
    """Transported cross-entropy between the student's and the teacher's rows, see the module.

    It names classes only as far as the student does: a plan that starts from a student who knows none may give each
    class another one's rows. Beside it there must be something that names them: labels, or pairs.

    Args:
        student (`Tensor` or [`HeadOf`]):
            Logits `[N, V]` of any floating dtype (tokens, or answer choices, all rows with the same ones); N may be 0.
            Or hidden states with the head that would make these logits.
        teacher (`Tensor`, [`HeadOf`] or [`TopKSignal`]):
            Likewise, without a gradient: N rows, or those of `sets`. Of a [`TopKSignal`] the costs are over the ids of
            each teacher row and one more for all others, which makes L a lower bound of the dense one for a given
            plan.
        settings ([`TransportedSettings`], *optional*):
            Defaults to a free plan.
        group_N (`Tensor`, *optional*):
            Integers `[N]`: rows with the same number are one problem. Default: all rows are one.
        sets ([`TeacherSets`], *optional*):
            The groups of the teacher's rows, where they are not one for each row of the student; takes `group_N`.

    Returns:
        [`TransportedTerm`]

    Raises:
        `ValueError`: for types, rows or groups that do not match, fewer than two ids, and what a coupling or a
        [`TopKSignal`] cannot do.
    """
    settings = TransportedSettings() if settings is None else settings
    check_kind("settings", settings, TransportedSettings)
    check_side("student", student)
    check_side("teacher", teacher)
    signal = as_signal(teacher)
    N, M = len(student), len(signal)
    if min(vocabulary_of(student), signal.vocabulary_size) < 2:
        raise ValueError(NEEDS_DISTRIBUTIONS)
    if group_N is not None and len(group_N) != N:
        raise ValueError(f"group_N must have one entry for each of the student's {N} rows, got {len(group_N)}.")
    known = N if sets is None else len(sets.group_M)
    if known != M:
        raise ValueError(
            f"The teacher has {M} rows, and "
            + (f"the student {N}" if sets is None else f"its groups are given for {known}")
            + "; where its rows are not one for each row of the student, give `sets` with a group for each."
        )
    if sets is None:
        pairing = Problems.of(group_N, N).pairing
    elif group_N is None:
        raise ValueError("`sets` are the teacher's groups; give group_N, the group of each row of the student.")
    else:
        pairing = sets.pairing(group_N)
    request = TransportRequest(signal, pairing, TransportSettings())
    return term_of(student, request, settings, sets)
