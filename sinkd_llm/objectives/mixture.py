"""The loss that training minimises: cross-entropy, one divergence and SinKD, weighted and normalised.

Shape suffixes: N supervised tokens, V vocabulary (the student's, the teacher's may be wider or narrower).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.distributed import RowLayout
from sinkd_llm.objectives.divergences import DIVERGENCES, cross_entropy, squared_error, temperature_factor
from sinkd_llm.objectives.joint import SPANNING_SCOPES, SpanningProblem
from sinkd_llm.objectives.signals import TopKSignal, student_bucket_logits
from sinkd_llm.objectives.sinkd import TRANSPORT_SCOPES, sinkd_term
from sinkd_llm.optimal_transport import COST_NORMS, GRADIENTS
from sinkd_llm.optimal_transport.precision import full_precision

VOCABULARIES = ("full", "verbalizers")
# A divergence is multiplied by the square of its temperature, in fp32.
LARGEST_TEMPERATURE = 1e15


@dataclass
class ObjectiveOutput:
    """What [`DistillationObjective`] returns.

    Attributes:
        loss (`Tensor`):
            Scalar to minimise.
        terms (`dict[str, Tensor]`):
            Those of `"ce"`, the divergence's name and `"sinkhorn"` that were computed (of a regression, `"mse"`,
            `"teacher_mse"` and `"sinkhorn"`): the mean over these
            rows, before the term's weight and without gradient. The divergence has its temperature factor, so
            that the weighted terms add up to the loss when `num_items` is the number of rows.
        diagnostics (`dict[str, Tensor]`):
            Empty unless asked for.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


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
        sinkhorn_temperature (`float`, *optional*, defaults to `2.0`):
            Temperature of the SinKD term. No factor is applied (the published form).
        sinkhorn_epsilon (`float`, *optional*, defaults to `0.1`):
            Entropic regularisation, in units of the cost.
        sinkhorn_iterations (`int`, *optional*, defaults to `20`):
            The most Sinkhorn iterations.
        sinkhorn_threshold (`float`, *optional*):
            Row error at which the iterations stop early.
        sinkhorn_gradient (`str`, *optional*, defaults to `"unrolled"`):
            `"unrolled"`, `"implicit"` or `"envelope"`, see [`~sinkd_llm.optimal_transport.sinkhorn`].
        cost_norm (`str`, *optional*, defaults to `"l1"`):
            `"l1"` or `"sql2"`.
        transport_scope (`str`, *optional*, defaults to `"batch"`):
            Which tokens form one transport problem: `"batch"`, `"position"` or `"sequence"`.
        vocabulary (`str`, *optional*, defaults to `"full"`):
            `"verbalizers"` restricts the SinKD term, and only it, to the ids given to the call.

    Raises:
        `ValueError`: for a setting out of its range, or settings that leave nothing to minimise.
    """

    alpha: float = 0.9
    divergence: str = "kl"
    temperature: float = 2.0
    sinkhorn_weight: float = 0.8
    sinkhorn_temperature: float = 2.0
    sinkhorn_epsilon: float = 0.1
    sinkhorn_iterations: int = 20
    sinkhorn_threshold: float | None = None
    sinkhorn_gradient: str = "unrolled"
    cost_norm: str = "l1"
    transport_scope: str = "batch"
    vocabulary: str = "full"

    def __post_init__(self) -> None:
        choices = {
            "divergence": (*DIVERGENCES, "none"),
            "sinkhorn_gradient": GRADIENTS,
            "cost_norm": COST_NORMS,
            "transport_scope": TRANSPORT_SCOPES,
            "vocabulary": VOCABULARIES,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}.")
        for name in ("temperature", "sinkhorn_temperature", "sinkhorn_epsilon"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}.")
        if self.temperature > LARGEST_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature:g}, whose square is no number in fp32; give at most "
                f"{LARGEST_TEMPERATURE:g}."
            )
        if not 0 <= self.sinkhorn_weight < float("inf"):
            raise ValueError(f"sinkhorn_weight must be at least 0, got {self.sinkhorn_weight}.")
        if self.sinkhorn_iterations < 1:
            raise ValueError(f"sinkhorn_iterations must be at least 1, got {self.sinkhorn_iterations}.")
        if self.sinkhorn_threshold is not None and not self.sinkhorn_threshold >= 0:
            raise ValueError(f"sinkhorn_threshold must be None or at least 0, got {self.sinkhorn_threshold}.")
        if self.alpha == 1 and self.divergence == "none" and self.sinkhorn_weight == 0:
            raise ValueError(
                "alpha=1, divergence='none' and sinkhorn_weight=0 leave nothing to minimise; lower alpha to "
                "train on the labels, or choose a divergence."
            )

    @property
    def uses_teacher(self) -> bool:
        """Whether the loss depends on the teacher; if not, its forward can be spared."""
        return self.alpha > 0 or self.sinkhorn_weight > 0

    def __call__(
        self,
        student_NV: Tensor,
        teacher: Tensor | TopKSignal | None,
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
                CE is over all ids of the student. Never receives a gradient. With a [`TopKSignal`] the divergence
                and SinKD see its ids and one bucket for the rest.
            labels_N (`Tensor`):
                Token ids `[N]`; the true values of a regression.
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
        ce_name, divergence_name = ("mse", "teacher_mse") if regression else ("ce", self.divergence)
        sums: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        diagnostics: dict[str, Tensor] = {}

        weights[ce_name] = 1.0 if teacher is None else 1 - self.alpha
        if weights[ce_name] > 0:
            sums[ce_name] = (squared_error if regression else cross_entropy)(student_NV, labels_N).sum()
        if teacher is not None:
            student_NV, teacher = _shared_ids(student_NV, teacher)
            if self.divergence != "none" and self.alpha > 0:
                if regression:
                    assert isinstance(teacher, Tensor)
                    total = squared_error(student_NV, teacher).sum()
                else:
                    divergence_N = self._divergence(student_NV, teacher)
                    total = divergence_N.sum() * temperature_factor(self.divergence, self.temperature)
                sums[divergence_name] = total
                weights[divergence_name] = self.alpha
            if self.sinkhorn_weight > 0:
                ids = None if regression else verbalizer_ids
                if transport is None:
                    settings = self._sinkd_settings(ids, regression)
                    term = sinkd_term(student_NV, teacher, example_N=example_N, position_N=position_N, **settings)
                else:
                    term = transport[0].term(student_NV, transport[1])
                sums["sinkhorn"] = term.value
                weights["sinkhorn"] = self.sinkhorn_weight
                if with_diagnostics:
                    diagnostics["sinkhorn/row_error"] = term.row_error
                    diagnostics["sinkhorn/diagonal_mass"] = term.diagonal_mass
                    diagnostics["sinkhorn/plan_entropy"] = term.plan_entropy
                    if term.cost_width is not None:
                        diagnostics["sinkhorn/cost_width"] = term.cost_width
            if with_diagnostics and not regression and isinstance(teacher, Tensor):
                diagnostics["teacher_entropy"] = _mean_entropy(teacher)
        if with_diagnostics and not regression:
            diagnostics["student_entropy"] = _mean_entropy(student_NV)

        loss = torch.stack([weights[name] * total for name, total in sums.items()]).sum()
        if isinstance(num_items, Tensor):
            loss = loss / num_items.to(loss.device).clamp(min=1)
        else:
            loss = loss / max(N if num_items is None else num_items, 1)
        terms = {name: total.detach() / max(N, 1) for name, total in sums.items()}
        return ObjectiveOutput(loss, terms, diagnostics)

    def _divergence(self, student_NV: Tensor, teacher: Tensor | TopKSignal) -> Tensor:
        divergence = DIVERGENCES[self.divergence]
        if isinstance(teacher, Tensor):
            return divergence(student_NV, teacher, self.temperature)
        student_NB = student_bucket_logits(student_NV, teacher.ids_NK, self.temperature)
        return divergence(student_NB, teacher.bucket_logits(self.temperature), 1.0)

    @property
    def spans(self) -> bool:
        """Whether there are transport problems that could reach beyond a micro-batch of one device."""
        return self.sinkhorn_weight > 0 and self.transport_scope in SPANNING_SCOPES

    def spanning_problem(
        self,
        layout: RowLayout,
        teacher: Sequence[Tensor | TopKSignal],
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
        settings = self._sinkd_settings(None if regression else verbalizer_ids, regression)
        return SpanningProblem(layout, teacher, position, teacher_MV=teacher_MV, factor=factor, **settings)

    def _sinkd_settings(self, verbalizer_ids: Tensor | Sequence[int] | None, regression: bool) -> dict[str, Any]:
        restricted = self.vocabulary == "verbalizers" and not regression  # one output has nothing to leave out
        if restricted and verbalizer_ids is None:
            raise ValueError(
                "vocabulary='verbalizers' needs verbalizer_ids: pass the first token id of each choice, or "
                "use vocabulary='full'."
            )
        return {
            "temperature": self.sinkhorn_temperature,
            "epsilon": self.sinkhorn_epsilon,
            "iterations": self.sinkhorn_iterations,
            "threshold": self.sinkhorn_threshold,
            "gradient": self.sinkhorn_gradient,
            "cost_norm": self.cost_norm,
            "scope": self.transport_scope,
            "vocabulary_ids": verbalizer_ids if restricted else None,
            "regression": regression,
        }


def _shared_ids(student_NV: Tensor, teacher: Tensor | TopKSignal) -> tuple[Tensor, Tensor | TopKSignal]:
    """Both over the ids that both have: one vocabulary may be padded to different widths."""
    width = teacher.vocabulary_size if isinstance(teacher, TopKSignal) else teacher.shape[-1]
    shared = min(student_NV.shape[-1], width)
    if isinstance(teacher, Tensor):
        teacher = teacher.detach()[:, :shared]
    elif width > shared:
        raise ValueError(
            f"The teacher signal counts the mass of {width} ids and the student has {shared}; cache the teacher over "
            f"{shared} ids."
        )
    if student_NV.shape[-1] > shared:  # a slice of everything would copy the gradient for nothing
        student_NV = student_NV[:, :shared]
    return student_NV, teacher


@torch.no_grad()
def _mean_entropy(logits_NV: Tensor) -> Tensor:
    probabilities_NV = torch.softmax(full_precision(logits_NV), dim=-1)
    return torch.special.entr(probabilities_NV).sum() / max(len(logits_NV), 1)
