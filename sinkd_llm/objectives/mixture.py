"""The loss that training minimises: cross-entropy, one divergence and SinKD, weighted and normalised.

Shape suffixes: N supervised tokens, V vocabulary (the student's, the teacher's may be wider or narrower).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives.comparison import Compared, TransportRequest, compare, transport_costs
from sinkd_llm.objectives.divergences import (
    DIVERGENCE_CHOICES,
    DIVERGENCES,
    NO_DIVERGENCE,
    Divergence,
    squared_error,
    temperature_factor,
)
from sinkd_llm.objectives.head_of import HeadOf
from sinkd_llm.objectives.joint import SPANNING_SCOPES, SpanningProblem
from sinkd_llm.objectives.problems import TransportSettings
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
from sinkd_llm.objectives.sinkd import SINKD_DIAGNOSTICS, BatchProblem
from sinkd_llm.objectives.sweep import sweep
from sinkd_llm.objectives.terms import ObjectiveOutput, Term, added_up
from sinkd_llm.objectives.tile_pair import Wanted

# Names of what the objective gives, as they are logged. The report has a label for each.
CE, MSE, TEACHER_MSE, SINKHORN = "ce", "mse", "teacher_mse", "sinkhorn"
TEACHER_ENTROPY, STUDENT_ENTROPY = "teacher_entropy", "student_entropy"
TERMS = (CE, *DIVERGENCES, MSE, TEACHER_MSE, SINKHORN)
DIAGNOSTICS = (*(f"{SINKHORN}/{name}" for name in SINKD_DIAGNOSTICS), TEACHER_ENTROPY, STUDENT_ENTROPY)
# The label of a row that has none, as torch has it.
IGNORE_INDEX = -100
# Whether hidden states and heads are taken as they are, or logits are made of them first.
FUSED = ("auto", "always", "never")
# A divergence is multiplied by the square of its temperature, in fp32.
LARGEST_TEMPERATURE = 1e15


@dataclass(frozen=True)
class DistillationObjective:
    """The distillation loss over the supervised tokens of a batch:

    `((1 - alpha) sum CE + alpha * factor * sum divergence + sinkhorn_weight * sum SinKD) / num_items`

    Without a teacher it is the plain cross-entropy, `sum CE / num_items`, whatever `alpha` says. With a
    teacher the weight of CE is `1 - alpha`, also when the divergence is `"none"`. A term of weight 0 is not
    computed. Rows without a label are in no sum of CE, and rows that the teacher does not speak of are in CE alone;
    each term is then divided by the rows that it counts. CE and the divergence are sums over tokens; the SinKD term
    is one transport problem (or several, see `transport_scope`) per call, so two micro-batches of 8 are not one batch
    of 16, unless the calls share the problem of [`spanning_problem`].

    A regression (one output, labels that are floating-point numbers in [0, 1]) has squared errors to the label and to
    the teacher's prediction in place of CE and the divergence, without temperature, and SinKD's cost is the
    distance between predictions, see [`sinkd_term`]. A softmax over one output would make every term 0.

    Args:
        alpha (`float`, *optional*, defaults to `0.9`):
            Weight of the divergence, in [0, 1]; CE has the rest.
        divergence (`str`, *optional*, defaults to `"kl"`):
            `"kl"`, `"rkl"`, `"js"`, `"tvd"` or `"none"`. Multiplied by
            [`~sinkd_llm.objectives.temperature_factor`]: its weight means the same at every temperature.
        temperature (`float`, *optional*, defaults to `2.0`):
            Temperature of the divergence.
        sinkhorn_weight (`float`, *optional*, defaults to `0.8`):
            Weight of the mean transport cost of a supervised token; the paper's beta, on the scale that
            docs/method.md converts.
        sinkhorn_temperature, sinkhorn_epsilon, sinkhorn_iterations, sinkhorn_threshold, sinkhorn_gradient, cost_norm,
        transport_scope, vocabulary, transport_group_size:
            The SinKD term's settings, see [`TransportSettings`].
        fused (`str`, *optional*, defaults to `"auto"`):
            What becomes of hidden states with a head ([`HeadOf`]): `"auto"` and `"always"` walk over the vocabulary
            without making logits `[N, V]` ([`~sinkd_llm.objectives.sweep`]), `"never"` makes them first. `"always"`
            refuses a student that comes as logits. The results are the same.

    Raises:
        `ValueError`: for a setting out of its range, or settings that leave nothing to minimise.
    """

    alpha: float = 0.9
    divergence: str = "kl"
    temperature: float = 2.0
    sinkhorn_weight: float = 0.8
    sinkhorn_temperature: float = TransportSettings.sinkhorn_temperature
    sinkhorn_epsilon: float = TransportSettings.sinkhorn_epsilon
    sinkhorn_iterations: int = TransportSettings.sinkhorn_iterations
    sinkhorn_threshold: float | None = TransportSettings.sinkhorn_threshold
    sinkhorn_gradient: str = TransportSettings.sinkhorn_gradient
    cost_norm: str = TransportSettings.cost_norm
    transport_scope: str = TransportSettings.transport_scope
    vocabulary: str = TransportSettings.vocabulary
    transport_group_size: int | None = TransportSettings.transport_group_size
    fused: str = "auto"

    def __post_init__(self) -> None:
        if self.fused not in FUSED:
            raise ValueError(f"fused must be one of {', '.join(FUSED)}, got {self.fused!r}.")
        if self.divergence not in DIVERGENCE_CHOICES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCE_CHOICES)}, got {self.divergence!r}.")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}.")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, got {self.temperature}.")
        if self.temperature > LARGEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature:g}, whose square is no number in fp32; give at most "
                f"{LARGEST_TEMPERATURE:g}."
            )
        if not 0 <= self.sinkhorn_weight < float("inf"):
            raise ValueError(f"sinkhorn_weight must be at least 0, got {self.sinkhorn_weight}.")
        _ = self.transport_settings  # which checks them
        if self.alpha == 1 and not self._has_divergence and self.sinkhorn_weight == 0:
            raise ValueError(
                "alpha=1, divergence='none' and sinkhorn_weight=0 leave nothing to minimise; lower alpha to "
                "train on the labels, or choose a divergence."
            )

    @cached_property
    def transport_settings(self) -> TransportSettings:
        """The settings of the SinKD term."""
        return TransportSettings(
            **{setting.name: getattr(self, setting.name) for setting in fields(TransportSettings) if setting.init}
        )

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss depends on the teacher; if not, its forward can be spared."""
        return self.alpha > 0 or self.sinkhorn_weight > 0

    @property
    def spans(self) -> bool:
        """Whether there are transport problems that could reach beyond a micro-batch of one device."""
        return self.sinkhorn_weight > 0 and self.transport_scope in SPANNING_SCOPES

    @property
    def _has_divergence(self) -> bool:
        return self.alpha > 0 and self.divergence != NO_DIVERGENCE

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
        with_diagnostics: bool = False,
    ) -> ObjectiveOutput:
        """Computes the loss of one micro-batch.

        Args:
            student (`Tensor` or [`HeadOf`]):
                Logits `[N, V]`, one row per supervised token, or hidden states with the head that would make them.
                With N = 0 the loss is 0 with a zero gradient.
            teacher (`Tensor`, [`HeadOf`] or [`TopKSignal`], *optional*):
                Likewise of the same rows, or the logits of some ids of each row. The two are compared over the ids
                that both have; CE is over all ids of the student. Never receives a gradient. With a [`TopKSignal`] the
                divergence and SinKD see its ids and one bucket for the rest.
            labels_N (`Tensor`):
                Token ids `[N]` in [0, V); the true values of a regression. Another id is torch's own error (on a GPU
                a failed assertion): to look at them here would make every step wait for the device. With `taught_M`
                a row may have the label -100: it has none.
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
            with_diagnostics (`bool`, *optional*, defaults to `False`):
                Fill `diagnostics`: `sinkhorn/row_error`, `sinkhorn/diagonal_mass`, `sinkhorn/plan_entropy`,
                `teacher_entropy` and `student_entropy` (nats at temperature 1, over the ids that both have; not of
                a regression). A [`TopKSignal`] has no `teacher_entropy`; it has `sinkhorn/cost_width`,
                see [`SinKDTerm`].

        Returns:
            [`ObjectiveOutput`]

        Raises:
            `ValueError`: if the rows do not match, verbalizers are wanted and not given, there is one output
                without true values, or several with them, or a [`TopKSignal`] does not know what is asked of it.
        """
        regression, N = _check_rows(student, teacher, labels_N, taught_M), len(student)
        student, signal = self._as_wanted(student, teacher)
        own, known_N = student, None
        labelled: Tensor | int = N
        if taught_M is not None:
            assert isinstance(student, Tensor)
            known_N = labels_N != IGNORE_INDEX
            labelled, labels_N = known_N.sum(), labels_N.where(known_N, 0)
            student = student.index_select(0, taught_M)
            example_N, position_N = example_N[taught_M], position_N[taught_M]
        M = len(student)
        items = labelled if num_items is None else num_items
        taught = num_taught if num_taught is not None else items if taught_M is None else M
        terms: list[Term] = []
        diagnostics: dict[str, Tensor] = {}
        labels_weight = 1.0 if signal is None else 1 - self.alpha
        request, problem = None, None
        if signal is not None and self.sinkhorn_weight > 0:
            if transport is None:
                V = min(vocabulary_of(student), signal.vocabulary_size)
                ids_K = self.transport_settings.kept_ids(verbalizer_ids, regression, V, rows_of(student).device)
                problem = BatchProblem(signal, self.transport_settings, example_N, position_N, ids_K, group_seed)
                request = problem.request
            else:
                request = transport[0].request(student, transport[1])
        wanted_N = labels_N if labels_weight > 0 else None
        compare_sides = self._squared_errors if regression else self._compared
        if taught_M is None:
            compared = compare_sides(student, signal, wanted_N, request)
            ce_N = compared.ce_N
        else:
            compared = Compared(None, None, None)
            if signal is not None:
                compared = compare_sides(student, signal, None, request)
            ce_N = None if wanted_N is None else compare_sides(own, None, wanted_N, None).ce_N
        if ce_N is not None:
            ce_N = ce_N if known_N is None else ce_N.where(known_N, 0)
            terms.append(Term(MSE if regression else CE, labels_weight, ce_N.sum(), labelled, items))
        if compared.divergence_N is not None:
            name, factor = TEACHER_MSE, 1.0
            if not regression:
                name, factor = self.divergence, temperature_factor(self.divergence, self.temperature)
            terms.append(Term(name, self.alpha, compared.divergence_N.sum() * factor, M, taught))
        if request is not None:
            assert compared.costs is not None
            if problem is not None:
                sinkd = problem.term(compared.costs)
            else:
                assert transport is not None
                sinkd = transport[0].term(compared.costs, request, transport[1])
            terms.append(Term(SINKHORN, self.sinkhorn_weight, sinkd.value, M, taught))
            if with_diagnostics:
                diagnostics |= sinkd.diagnostics()
        if with_diagnostics and not regression:
            diagnostics |= _entropies(student, signal)

        return added_up(terms, diagnostics, M, taught)

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
        divergence: Divergence | None = DIVERGENCES[self.divergence] if self._has_divergence else None
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
        if signal is not None and self._has_divergence:
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
        """The SinKD problems of several micro-batches, of several ranks, or both; for the argument `transport`.

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
            verbalizer_ids=verbalizer_ids,
            regression=regression,
            group_seed=group_seed,
            factor=factor,
        )


def _check_rows(
    student: Tensor | HeadOf, teacher: TeacherSignal | None, labels_N: Tensor, taught_M: Tensor | None
) -> bool:
    """Refuses rows that do not match. Returns whether they belong to a regression."""
    N, outputs = len(student), vocabulary_of(student)
    M = N if taught_M is None else len(taught_M)
    if labels_N.shape != (N,) or (teacher is not None and len(teacher) != M):
        raise ValueError(
            f"Labels and teacher must have one row for each of the student's {N}, got {tuple(labels_N.shape)} "
            f"labels and {0 if teacher is None else len(teacher)} rows of the teacher"
            + ("." if taught_M is None else f" for {M} taught rows.")
        )
    if taught_M is not None and not isinstance(student, Tensor):
        raise ValueError("taught_M needs a student that comes as logits.")
    regression = labels_N.is_floating_point()
    theirs = outputs if teacher is None else as_signal(teacher).vocabulary_size
    if min(outputs, theirs) < 1 or (not regression and outputs > 1 and theirs == 1):
        raise ValueError(
            f"The student has {outputs} outputs and the teacher {theirs}: there is nothing to compare over fewer than "
            "two ids."
        )
    if regression != (outputs == 1):
        raise ValueError(
            f"The student has {outputs} outputs and labels of type {labels_N.dtype}: one output goes "
            "with true values (floating point), and more with token ids or classes (integers)."
        )
    return regression


def _entropies(student: Tensor | HeadOf, signal: Signal | None) -> dict[str, Tensor]:
    """Of both sides over the ids that both have; of a teacher whose tail may be spread in any way it is not known."""
    entropies = {}
    if signal is not None:
        shared = min(vocabulary_of(student), signal.vocabulary_size)
        student = first_ids(student, shared)
        if (theirs := signal.first_ids(shared).side) is not None:
            entropies[TEACHER_ENTROPY] = mean_entropy(theirs)
    return {**entropies, STUDENT_ENTROPY: mean_entropy(student)}
