"""The loss that training minimises: cross-entropy, one divergence and two transport terms, weighted and normalised.

Shape suffixes: N supervised tokens, V vocabulary (the student's, the teacher's may be wider or narrower).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives.comparison import Compared, TransportRequest, compare, restricted, transport_costs
from sinkd_llm.objectives.couplings import TeacherSets
from sinkd_llm.objectives.cross_costs import cross_costs
from sinkd_llm.objectives.divergences import (
    DIVERGENCES,
    Divergence,
    squared_error,
    temperature_factor,
)
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.joint import SpanningProblem
from sinkd_llm.objectives.objective_settings import (
    CE,
    MSE,
    SINKHORN,
    STUDENT_ENTROPY,
    TEACHER_ENTROPY,
    TEACHER_MSE,
    TRANSPORTED,
    ObjectiveSettings,
)
from sinkd_llm.objectives.plan_part import PlanPart, part_of
from sinkd_llm.objectives.problems import GROUP
from sinkd_llm.objectives.row_checks import IGNORE_INDEX, check_labels, check_places, check_rows
from sinkd_llm.objectives.signals import (
    Signal,
    TeacherSignal,
    as_signal,
    first_ids,
    logits_of,
    mean_entropy,
    rows_of,
    vocabulary_of,
)
from sinkd_llm.objectives.sinkd import solved_term
from sinkd_llm.objectives.sweep import sweep
from sinkd_llm.objectives.terms import ObjectiveOutput, Term, added_up
from sinkd_llm.objectives.tile_pair import Wanted
from sinkd_llm.objectives.transport_term import TransportTerm
from sinkd_llm.objectives.transported import NEEDS_DISTRIBUTIONS, term_of


@dataclass(frozen=True)
class DistillationObjective(ObjectiveSettings):
    """The distillation loss over the supervised tokens of a batch:

    `((1 - alpha) sum CE + alpha * factor * sum divergence + sinkhorn_weight * sum SinKD
    + transported_weight * transported_temperature^2 * sum transported) / num_items`

    Without a teacher it is the plain cross-entropy, `sum CE / num_items`, whatever `alpha` says. With a
    teacher the weight of CE is `1 - alpha`, also when the divergence is `"none"`. A term of weight 0 is not
    computed. With `taught_M`, rows without a label are in no sum of CE, and rows that the teacher does not speak of
    are in CE alone; each term is then divided by the rows that it counts. CE and the divergence are sums over tokens;
    SinKD and the transported cross-entropy have one transport problem (or several, see `transport_scope`) per call, so
    two micro-batches of 8 are not one batch of 16, unless the calls share the problem of [`spanning_problem`].

    A regression (one output, labels that are floating-point numbers in [0, 1]) has squared errors to the label and to
    the teacher's prediction in place of CE and the divergence, without temperature, and SinKD's cost is the
    distance between predictions, see [`sinkd_term`]. A softmax over one output would make every term 0.

    The loss is differentiated once: `backward` or `torch.autograd.grad` frees what the gradient is computed from,
    also with `retain_graph=True`, and there is no second derivative. Who needs several gradients (`gradcheck`, one of
    each weight) computes the loss as often. `torch.func.grad` and `vmap` do not work with it.

    Args:
        settings: see [`~sinkd_llm.objectives.objective_settings.ObjectiveSettings`].

    Raises:
        `ValueError`: for a setting out of its range or of another type, or settings that leave nothing to minimise.
    """

    def __call__(
        self,
        student: Tensor | HeadOf,
        teacher: TeacherSignal | None,
        labels_N: Tensor,
        *,
        example_N: Tensor,
        position_N: Tensor,
        verbalizer_ids: Tensor | Sequence[int] | None = None,
        num_items: Tensor | int | None = None,
        taught_M: Tensor | None = None,
        num_taught: Tensor | int | None = None,
        transport: tuple[SpanningProblem, int] | None = None,
        group_seed: int = 0,
        group_N: Tensor | None = None,
        sets: TeacherSets | None = None,
        with_diagnostics: bool = False,
    ) -> ObjectiveOutput:
        """Computes the loss of one micro-batch.

        Args:
            student (`Tensor` or [`HeadOf`]):
                Logits `[N, V]` of any floating dtype, one row per supervised token, or hidden states with the head
                that would make them. With N = 0 the loss is 0 with a zero gradient. Of logits `[B, L, V]`, give those
                of the supervised tokens: `logits[mask]`.
            teacher (`Tensor`, [`HeadOf`] or [`TopKSignal`], *optional*):
                Likewise of the same rows, or the logits of some ids of each row. The two are compared over the ids
                that both have; CE is over all ids of the student. Never receives a gradient. With a [`TopKSignal`] the
                divergence and SinKD see its ids and one bucket for the rest.
            labels_N (`Tensor`):
                Token ids `[N]` in [0, V), int64; the true values of a regression. Another id is refused on a CPU and
                a failed assertion of torch on a GPU: to look at them here would make every step wait for the device.
                There is no label that means none: leave rows without a label out of all arguments. With `taught_M`
                alone, a row may have the label -100: it has none.
            example_N, position_N (`Tensor`):
                Integers `[N]`: each row's example, and its place in the answer.
            verbalizer_ids (`Tensor` or sequence of `int`, *optional*):
                The ids that SinKD is restricted to when `vocabulary="verbalizers"`.
            num_items (`Tensor` or `int`, *optional*):
                Supervised tokens of the whole accumulation window (with `taught_M`: those with a label); defaults to
                N. At least 1 is used.
            taught_M (`Tensor`, *optional*):
                The rows that the teacher speaks of: it has M rows, for these. By default it has all N, and every row
                has a label. Takes a student that comes as logits.
            num_taught (`Tensor` or `int`, *optional*):
                As `num_items`, of the rows that teachers speak of. Default: M with `taught_M`, else `num_items`.
            transport (`tuple[SpanningProblem, int]`, *optional*):
                A problem of [`spanning_problem`] that these rows are part of, and which part. By default
                the rows are all there are.
            group_seed (`int`, *optional*, defaults to `0`):
                Of the random groups that a problem of more than `transport_group_size` rows is cut into; a problem of
                [`spanning_problem`] has its own.
            group_N (`Tensor`, *optional*):
                Integers `[N]`: the group of each row, for `transport_scope="group"`.
            sets ([`TeacherSets`], *optional*):
                The groups of the teacher's rows, where they are not one for each row: with the scope `"group"` and the
                transported cross-entropy as the only term of the teacher.
            with_diagnostics (`bool`, *optional*, defaults to `False`):
                Fill `diagnostics`: `row_error`, `diagonal_mass` and `plan_entropy` under `sinkhorn/` and
                `transported/`, `teacher_entropy` and `student_entropy` (nats at temperature 1, over the ids that both
                have; not of a regression). A [`TopKSignal`] has no `teacher_entropy`; it has `sinkhorn/cost_width`,
                see [`SinKDTerm`]. And fill `plans`.

        Returns:
            [`ObjectiveOutput`]

        Raises:
            `ValueError`: if types or rows do not match, a label is no id of the student (on a CPU), verbalizers or
                groups are wanted and not given, there is one output without true values, or several with them, or a
                [`TopKSignal`] or `sets` do not know what is asked of them.
            `RuntimeError`: by the loss that is given, if its gradient is asked for a second time.
        """
        regression, N = check_rows(student, teacher, labels_N, taught_M, sets), len(student)
        check_places(N, example_N=example_N, position_N=position_N, group_N=group_N)
        self._check_terms(teacher is not None, regression, sets)
        student, signal = self._as_wanted(student, teacher)
        own, known_N = student, None
        labelled: Tensor | int = N
        if taught_M is not None:
            assert isinstance(student, Tensor)
            known_N = labels_N != IGNORE_INDEX
            labelled, labels_N = known_N.sum(), labels_N.where(known_N, 0)
            student = student.index_select(0, taught_M)
            example_N, position_N = example_N[taught_M], position_N[taught_M]
            group_N = None if group_N is None else group_N[taught_M]
        M = len(student)
        items = labelled if num_items is None else num_items
        taught = num_taught if num_taught is not None else items if taught_M is None else M
        terms: list[Term] = []
        diagnostics: dict[str, Tensor] = {}
        plans: dict[str, PlanPart] = {}
        labels_weight = 1.0 if signal is None else 1 - self.alpha
        request, problems = None, None
        transported: list[TransportTerm] = []
        if signal is not None and self.transports:
            if transport is None:
                settings, V = self.transport_settings, min(vocabulary_of(student), signal.vocabulary_size)
                ids_K = settings.kept_ids(verbalizer_ids, regression, V, rows_of(student).device)
                problems = settings.problems(example_N, position_N, group_N, group_seed)
                pairing = problems.pairing if sets is None or group_N is None else sets.pairing(group_N)
                request = TransportRequest(restricted(signal, ids_K), pairing, settings, ids_K)
            else:
                request = transport[0].request(student, transport[1])
        to_cost = request if self.sinkhorn_weight > 0 else None
        theirs = signal if sets is None else None  # rows that are no pairs are in no other term
        wanted_N = labels_N if labels_weight > 0 else None
        if wanted_N is not None and not regression:
            check_labels(wanted_N, vocabulary_of(own))
        compare_sides = self._squared_errors if regression else self._compared
        if taught_M is None:
            compared = compare_sides(student, theirs, wanted_N, to_cost)
            ce_N = compared.ce_N
        else:
            compared = Compared(None, None, None)
            if theirs is not None:
                compared = compare_sides(student, theirs, None, to_cost)
            ce_N = None if wanted_N is None else compare_sides(own, None, wanted_N, None).ce_N
        if ce_N is not None:
            ce_N = ce_N if known_N is None else ce_N.where(known_N, 0)
            terms.append(Term(MSE if regression else CE, labels_weight, ce_N.sum(), labelled, items))
        if compared.divergence_N is not None:
            name, factor = TEACHER_MSE, 1.0
            if not regression:
                name, factor = self.divergence, temperature_factor(self.divergence, self.temperature)
            terms.append(Term(name, self.alpha, compared.divergence_N.sum() * factor, M, taught))
        if to_cost is not None:
            assert compared.costs is not None
            if problems is not None:
                sinkd = solved_term(compared.costs, problems, self.transport_settings)
            else:
                assert transport is not None
                sinkd = transport[0].term(compared.costs, to_cost, transport[1])
            terms.append(Term(SINKHORN, self.sinkhorn_weight, sinkd.value, M, taught))
            transported.append(sinkd)
        if request is not None and (mixing := self.transported_settings) is not None:
            if transport is None:
                moved = term_of(student, request, mixing, sets)
            else:
                costs = cross_costs(student, request, mixing.transported_temperature)
                moved = transport[0].transported_term(costs, request, transport[1])
            terms.append(Term(TRANSPORTED, mixing.transported_weight, moved.value * mixing.factor, M, taught))
            transported.append(moved)
        if with_diagnostics and request is not None:
            whole = transport[0].pairing if transport is not None else request.pairing
            for one in transported:
                diagnostics |= one.diagnostics()
                plans |= part_of(one, whole, example_N, position_N, request.own, sets is not None)
        if with_diagnostics and not regression:
            diagnostics |= _entropies(student, signal)

        return replace(added_up(terms, diagnostics, M, taught), plans=plans)

    def _check_terms(self, taught: bool, regression: bool, sets: TeacherSets | None) -> None:
        """Refuses rows that the terms in use say nothing of."""
        if taught and regression and self.transported_settings is not None:
            raise ValueError(NEEDS_DISTRIBUTIONS)
        if sets is None:
            return
        if self.transport_scope != GROUP:
            raise ValueError(f"`sets` need transport_scope='group', got {self.transport_scope!r}.")
        if self.has_divergence or self.sinkhorn_weight > 0 or self.transported_settings is None:
            raise ValueError(
                "The teacher's rows are not one for each row of the student, and only the transported cross-entropy "
                "can learn from them: set divergence to 'none', sinkhorn_weight to 0 and transported_weight above 0."
            )

    def _as_wanted(
        self, student: Tensor | HeadOf, teacher: TeacherSignal | None
    ) -> tuple[Tensor | HeadOf, Signal | None]:
        """Both sides as `fused` says."""
        if self.fused == "never":
            student = logits_of(student)
            with torch.no_grad():
                teacher = teacher.logits() if isinstance(teacher, HeadOf) else teacher
        if self.fused == "always" and isinstance(student, Tensor):
            raise ValueError(
                "fused='always' needs the student's hidden states with their head, and it came as logits; use "
                "fused='auto'."
            )
        return student, None if teacher is None else as_signal(teacher)

    def _compared(
        self,
        student: Tensor | HeadOf,
        signal: Signal | None,
        labels_N: Tensor | None,
        request: TransportRequest | None,
    ) -> Compared:
        if signal is None:
            return Compared(sweep(student, None, Wanted(labels_N)).ce_N, None, None)
        divergence: Divergence | None = DIVERGENCES[self.divergence] if self.has_divergence else None
        if divergence is not None and not (divergence.merging_lowers or signal.names_all_ids):
            raise ValueError(
                f"divergence={self.divergence!r} needs the teacher's whole rows: merging ids into one bucket may "
                "raise it, so nothing would be certified; choose another divergence, or cache full rows."
            )
        return compare(student, signal, labels_N, divergence, self.temperature, request)

    def _squared_errors(
        self,
        student: Tensor | HeadOf,
        signal: Signal | None,
        labels_N: Tensor | None,
        request: TransportRequest | None,
    ) -> Compared:
        """What a regression has in place of `_compared`: `(s_i - y_i)^2` and `(s_i - t_i)^2`."""
        student_N1 = logits_of(student)
        to_label_N = squared_error(student_N1, labels_N) if labels_N is not None else None
        to_teacher_N = None
        if signal is not None and self.has_divergence:
            to_teacher_N = squared_error(student_N1, signal.predictions())
        costs = None if request is None else transport_costs(student_N1, request, regression=True)
        return Compared(to_label_N, to_teacher_N, costs)

    def spanning_problem(
        self,
        layout: RowLayout,
        teacher: Sequence[TeacherSignal],
        position: Sequence[Tensor],
        *,
        verbalizer_ids: Tensor | Sequence[int] | None = None,
        regression: bool = False,
        group_seed: int = 0,
        factor: float | Tensor = 1.0,
    ) -> SpanningProblem:
        """The transport problems of several micro-batches, of several ranks, or both; for the argument `transport`.

        Args:
            layout, teacher, position, group_seed, factor: see [`~sinkd_llm.objectives.SpanningProblem`].
            verbalizer_ids: as in a call.
            regression (`bool`): whether the labels are true values.
        """
        return SpanningProblem(
            layout,
            teacher,
            position,
            self.transport_settings,
            transported=self.transported_settings,
            with_sinkd=self.sinkhorn_weight > 0,
            verbalizer_ids=verbalizer_ids,
            regression=regression,
            group_seed=group_seed,
            factor=factor,
        )


def _entropies(student: Tensor | HeadOf, signal: Signal | None) -> dict[str, Tensor]:
    """Of both sides over the ids that both have; of a teacher whose tail may be spread in any way it is not known."""
    entropies = {}
    if signal is not None:
        shared = min(vocabulary_of(student), signal.vocabulary_size)
        student = first_ids(student, shared)
        if (theirs := signal.first_ids(shared).side) is not None:
            entropies[TEACHER_ENTROPY] = mean_entropy(theirs)
    return {**entropies, STUDENT_ENTROPY: mean_entropy(student)}
