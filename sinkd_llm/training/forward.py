"""The step up to the loss: student, teacher, objective.

Shapes: N supervised tokens of a micro-batch, M of all micro-batches of all ranks, V vocabulary, H features.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sinkd_llm.distributed import Ranks, RowLayout
from sinkd_llm.models.kinds import Kind, SupervisedRows
from sinkd_llm.objectives import DistillationObjective, ObjectiveOutput, SpanningProblem, TeacherSignal
from sinkd_llm.teachers import Teacher, TeacherRows

if TYPE_CHECKING:
    from sinkd_llm.training.window import Window

# A problem, and which of its micro-batches: what the objective takes.
Transport = tuple[SpanningProblem, int]


class Forward:
    """
    Runs student and teacher on a micro-batch and computes the objective; the memory estimate traces this very step.

    Rows of other ranks may be part of a micro-batch's transport problem. Of these only what is small travels: of the
    teacher its hidden states, out of which every rank makes the logits (the logits themselves where the head is
    sharded, or where the model changes what the head gives), or its logits of the verbalizers, or what a cache kept of
    its logits; of the student nothing but the costs.

    Args:
        kind ([`Kind`]): the student's.
        teacher ([`~sinkd_llm.teachers.Teacher`], *optional*): without one the loss is cross-entropy.
        objective ([`DistillationObjective`]): the loss.
        verbalizer_ids (`Tensor`, *optional*): as in the objective.
        ranks ([`Ranks`], *optional*): those that share a transport problem. Default: every rank has its own.
    """

    def __init__(
        self,
        kind: Kind,
        teacher: Teacher | None,
        objective: DistillationObjective,
        verbalizer_ids: Tensor | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.kind, self.teacher, self.objective = kind, teacher, objective
        self.verbalizer_ids, self.ranks = verbalizer_ids, ranks

    def __call__(
        self,
        student: nn.Module,
        batch: Mapping[str, Any],
        *,
        num_items: Tensor | int | None = None,
        own_items: Tensor | int | None = None,
        window: "Window | None" = None,
        with_diagnostics: bool = False,
    ) -> tuple[ObjectiveOutput, int]:
        """
        The loss of a micro-batch, and its number of supervised tokens.

        Args:
            student (`nn.Module`): possibly wrapped.
            batch (`Mapping`): of the run's collator, on the device.
            num_items (`Tensor` or `int`, *optional*): what the loss is divided by. Default: N.
            own_items (`Tensor` or `int`, *optional*): the same, if it is a number of this rank's own and gradients
                are then averaged over ranks as they are. Default: the number is the same on all ranks.
            window ([`Window`], *optional*): the accumulation window that is one transport problem.
            with_diagnostics (`bool`, *optional*, defaults to `False`): as in the objective.
        """
        rows, signal, transport = self._rows(student, batch, own_items, window)
        output = self.objective(
            rows.logits_NV,
            signal,
            rows.labels_N,
            example_N=rows.example_N,
            position_N=rows.position_N,
            verbalizer_ids=self.verbalizer_ids,
            num_items=num_items,
            transport=transport,
            with_diagnostics=with_diagnostics,
        )
        return output, len(rows.labels_N)

    def _rows(
        self, student: nn.Module, batch: Mapping[str, Any], own_items: Tensor | int | None, window: "Window | None"
    ) -> tuple[SupervisedRows, TeacherSignal | None, Transport | None]:
        """The student's rows of a micro-batch, the teacher's signal, and the problem that they are part of."""
        teacher = self.teacher if self.objective.uses_teacher else None
        if teacher is None or (teacher.knows_training_rows_only and not student.training):
            return self.kind.supervised_rows(student, batch), None, None
        spans = student.training and self.objective.spans
        if spans and window is not None:
            return window.rows(student, batch, own_items)
        rows, theirs = self.kind.supervised_rows(student, batch), self.teacher_rows(batch)
        if not spans or self.ranks is None:
            return rows, theirs.signal, None
        return rows, theirs.signal, (self.problem([batch], [theirs], own_items), 0)

    def teacher_rows(self, batch: Mapping[str, Any]) -> TeacherRows:
        """The teacher's rows of a micro-batch, with the hidden states where other ranks make the logits of them."""
        assert self.teacher is not None
        with_hidden = self.ranks is not None and self.objective.spans and self.objective.vocabulary == "full"
        return self.teacher.signal(batch, with_hidden=with_hidden)

    def problem(
        self, batches: Sequence[Mapping[str, Any]], teachers: Sequence[TeacherRows], own_items: Tensor | int | None
    ) -> SpanningProblem:
        """The transport problem of some micro-batches on all ranks that share it."""
        device = teachers[0].position_N.device
        small = all(rows.hidden_NH is not None for rows in teachers)
        layout = RowLayout.of([len(rows.position_N) for rows in teachers], self.ranks, device, agree=small)
        factor: float | Tensor = 1.0
        if self.ranks is not None and own_items is not None:
            # The rows are divided by their rank's number, but they count alike: by the mean of all ranks' numbers.
            own = torch.as_tensor(own_items, device=device)
            factor = own * self.ranks.count / self.ranks.sum(own).clamp(min=1)
        return self.objective.spanning_problem(
            layout,
            [rows.signal for rows in teachers],
            [rows.position_N for rows in teachers],
            verbalizer_ids=self.verbalizer_ids,
            regression=batches[0]["labels"].is_floating_point(),
            teacher_MV=self._logits_of_hidden_states(teachers, layout),
            factor=factor,
        )

    def _logits_of_hidden_states(self, teachers: Sequence[TeacherRows], layout: RowLayout) -> Tensor | None:
        """The teacher's logits of all ranks `[M, V]`, if on all of them they follow from hidden states."""
        if layout.ranks is None or not layout.agreed:
            return None
        assert self.teacher is not None
        hidden_MH = layout.gather([rows.hidden_NH for rows in teachers if rows.hidden_NH is not None])
        own = layout.ranks.own_rows(layout.counts)
        own_logits = [rows.signal for rows in teachers if isinstance(rows.signal, Tensor)]
        before, after = self.teacher.logits(hidden_MH[: own.start]), self.teacher.logits(hidden_MH[own.stop :])
        return torch.cat([before, *own_logits, after])
