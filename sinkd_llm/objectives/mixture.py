"""The loss that training minimises: cross-entropy, one divergence and SinKD, weighted and normalised.

Shape suffixes: N supervised tokens, V vocabulary (the student's, the teacher's may be wider or narrower).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import torch
from torch import Tensor

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives.divergences import (
    DIVERGENCE_CHOICES,
    DIVERGENCES,
    NO_DIVERGENCE,
    cross_entropy,
    squared_error,
    temperature_factor,
)
from sinkd_llm.objectives.joint import SPANNING_SCOPES, SpanningProblem
from sinkd_llm.objectives.problems import TransportSettings
from sinkd_llm.objectives.signals import Signal, TeacherSignal, as_signal, mean_entropy, over_shared_ids
from sinkd_llm.objectives.sinkd import SINKD_DIAGNOSTICS, sinkd_term

# Names of what the objective gives, as they are logged. The report has a label for each.
CE, MSE, TEACHER_MSE, SINKHORN = "ce", "mse", "teacher_mse", "sinkhorn"
TEACHER_ENTROPY, STUDENT_ENTROPY = "teacher_entropy", "student_entropy"
TERMS = (CE, *DIVERGENCES, MSE, TEACHER_MSE, SINKHORN)
DIAGNOSTICS = (*(f"{SINKHORN}/{name}" for name in SINKD_DIAGNOSTICS), TEACHER_ENTROPY, STUDENT_ENTROPY)
# A divergence is multiplied by the square of its temperature, in fp32.
LARGEST_TEMPERATURE = 1e15


@dataclass
class ObjectiveOutput:
    """What [`DistillationObjective`] returns.

    Attributes:
        loss (`Tensor`):
            Scalar to minimise.
        terms (`dict[str, Tensor]`):
            What was computed of `"ce"`, the divergence's name and `"sinkhorn"` (of a regression, `"mse"`,
            `"teacher_mse"` and `"sinkhorn"`): the mean over these rows, before the term's weight and without
            gradient. The divergence has its temperature factor, so that the weighted terms add up to the loss when
            `num_items` is the number of rows.
        diagnostics (`dict[str, Tensor]`):
            Empty unless asked for.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Term:
    """A summand of the loss: the sum over the rows, before its weight."""

    name: str
    weight: float
    total: Tensor


@dataclass(frozen=True)
class DistillationObjective:
    """The distillation loss over the supervised tokens of a batch:

    `((1 - alpha) sum CE + alpha * factor * sum divergence + sinkhorn_weight * sum SinKD) / num_items`

    Without a teacher it is the plain cross-entropy, `sum CE / num_items`, whatever `alpha` says. With a
    teacher the weight of CE is `1 - alpha`, also when the divergence is `"none"`. A term of weight 0 is not
    computed. CE and the divergence are sums over tokens; the SinKD term is one transport problem (or several,
    see `transport_scope`) per call, so two micro-batches of 8 are not one batch of 16, unless the calls share the
    problem of [`spanning_problem`].

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
        transport_scope, vocabulary:
            The SinKD term's settings, see [`TransportSettings`].

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

    def __post_init__(self) -> None:
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
            **{setting.name: getattr(self, setting.name) for setting in fields(TransportSettings)}
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
        student_NV: Tensor,
        teacher: TeacherSignal | None,
        labels_N: Tensor,
        *,
        example_N: Tensor,
        position_N: Tensor,
        verbalizer_ids: Tensor | Sequence[int] | None = None,
        num_items: Tensor | int | None = None,
        transport: tuple[SpanningProblem, int] | None = None,
        with_diagnostics: bool = False,
    ) -> ObjectiveOutput:
        """Computes the loss of one micro-batch.

        Args:
            student_NV (`Tensor`):
                Logits `[N, V]`, one row per supervised token. With N = 0 the loss is 0 with a zero gradient.
            teacher (`Tensor` or [`TopKSignal`], *optional*):
                Logits of the same rows, or of some ids of each row. The two are compared over the ids that both have;
                CE is over all ids of the student. Never receives a gradient. With a [`TopKSignal`] the divergence and
                SinKD see its ids and one bucket for the rest.
            labels_N (`Tensor`):
                Token ids `[N]` in [0, V); the true values of a regression. Another id is torch's own error (on a GPU
                a failed assertion): to look at them here would make every step wait for the device.
            example_N, position_N (`Tensor`):
                Integers `[N]`: each row's example, and its place in the answer.
            verbalizer_ids (`Tensor` or sequence of `int`, *optional*):
                The ids that SinKD is restricted to when `vocabulary="verbalizers"`.
            num_items (`Tensor` or `int`, *optional*):
                Supervised tokens of the whole accumulation window; defaults to N. At least 1 is used.
            transport (`tuple[SpanningProblem, int]`, *optional*):
                A problem of [`spanning_problem`] that these rows are part of, and which part. By default
                the rows are all there are.
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
        regression, N = _check_rows(student_NV, teacher, labels_N), len(student_NV)
        terms: list[_Term] = []
        diagnostics: dict[str, Tensor] = {}
        labels_weight = 1.0 if teacher is None else 1 - self.alpha
        if labels_weight > 0:
            terms.append(_label_term(student_NV, labels_N, labels_weight))
        if teacher is not None:
            student_NV, signal = over_shared_ids(student_NV, as_signal(teacher))
            if self._has_divergence:
                terms.append(self._divergence_term(student_NV, signal, regression))
            if self.sinkhorn_weight > 0:
                if transport is None:
                    sinkd = sinkd_term(
                        student_NV,
                        signal,
                        self.transport_settings,
                        example_N=example_N,
                        position_N=position_N,
                        verbalizer_ids=verbalizer_ids,
                        regression=regression,
                    )
                else:
                    problem, part = transport
                    sinkd = problem.term(student_NV, part)
                terms.append(_Term(SINKHORN, self.sinkhorn_weight, sinkd.value))
                if with_diagnostics:
                    diagnostics |= sinkd.diagnostics()
            if with_diagnostics and not regression and (entropy := signal.mean_entropy()) is not None:
                diagnostics[TEACHER_ENTROPY] = entropy
        if with_diagnostics and not regression:
            diagnostics[STUDENT_ENTROPY] = mean_entropy(student_NV)

        loss = torch.stack([term.weight * term.total for term in terms]).sum()
        if isinstance(num_items, Tensor):
            loss = loss / num_items.to(loss.device).clamp(min=1)
        else:
            loss = loss / max(N if num_items is None else num_items, 1)
        means = {term.name: term.total.detach() / max(N, 1) for term in terms}
        return ObjectiveOutput(loss, means, diagnostics)

    def _divergence_term(self, student_NV: Tensor, signal: Signal, regression: bool) -> _Term:
        """`T^order sum_i D(p_i, q_i)` at the temperature T; of a regression `sum_i (s_i - t_i)^2`."""
        if regression:
            return _Term(TEACHER_MSE, self.alpha, squared_error(student_NV, signal.predictions()).sum())
        divergence = DIVERGENCES[self.divergence]
        if not (divergence.merging_lowers or signal.names_all_ids):
            raise ValueError(
                f"divergence={self.divergence!r} needs the teacher's whole rows: merging ids into one bucket may "
                "raise it, so nothing would be certified; choose another divergence, or cache full rows."
            )
        total = divergence(*signal.compared(student_NV, self.temperature)).sum()
        return _Term(self.divergence, self.alpha, total * temperature_factor(self.divergence, self.temperature))

    def spanning_problem(
        self,
        layout: RowLayout,
        teacher: Sequence[TeacherSignal],
        position: Sequence[Tensor],
        *,
        verbalizer_ids: Tensor | Sequence[int] | None = None,
        regression: bool = False,
        teacher_MV: Tensor | None = None,
        factor: float | Tensor = 1.0,
    ) -> SpanningProblem:
        """The SinKD problems of several micro-batches, of several ranks, or both; for the argument `transport`.

        Args:
            layout, teacher, position, teacher_MV, factor: see [`~sinkd_llm.objectives.SpanningProblem`].
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
            teacher_MV=teacher_MV,
            factor=factor,
        )


def _check_rows(student_NV: Tensor, teacher: TeacherSignal | None, labels_N: Tensor) -> bool:
    """Refuses rows that do not match. Returns whether they belong to a regression."""
    N = len(student_NV)
    if labels_N.shape != (N,) or (teacher is not None and len(teacher) != N):
        raise ValueError(
            f"Labels and teacher must have one row for each of the student's {N}, got {tuple(labels_N.shape)} "
            f"labels and {0 if teacher is None else len(teacher)} rows of the teacher."
        )
    regression = labels_N.is_floating_point()
    if regression != (student_NV.shape[-1] == 1):
        raise ValueError(
            f"The student has {student_NV.shape[-1]} outputs and labels of type {labels_N.dtype}: one output goes "
            "with true values (floating point), and more with token ids or classes (integers)."
        )
    return regression


def _label_term(student_NV: Tensor, labels_N: Tensor, weight: float) -> _Term:
    """`sum_i -log q_i[y_i]`; of a regression `sum_i (s_i - y_i)^2`."""
    if labels_N.is_floating_point():
        return _Term(MSE, weight, squared_error(student_NV, labels_N).sum())
    return _Term(CE, weight, cross_entropy(student_NV, labels_N).sum())
