"""The step up to the loss: student, teacher, objective.

Shapes: N supervised tokens of a micro-batch, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sinkd_llm.distributed import Ranks, RowLayout
from sinkd_llm.models.head_forms import stays_dense
from sinkd_llm.models.heads import HeadForm, why_dense
from sinkd_llm.models.kinds import Kind, SupervisedRows
from sinkd_llm.models.kinds.over_choices import OverChoices
from sinkd_llm.objectives import GROUP, DistillationObjective, ObjectiveOutput, SpanningProblem
from sinkd_llm.teachers import Teacher, TeacherRows
from sinkd_llm.teachers.contract import GROUP_NUMBER, signal_of
from sinkd_llm.training.projection import StateTerms

if TYPE_CHECKING:
    from sinkd_llm.training.window import Window

# A problem, and which of its micro-batches: what the objective takes.
Transport = tuple[SpanningProblem, int]


class Forward:
    """
    Runs student and teacher on a micro-batch and computes the objective; the memory estimate traces this very step.

    Where the heads of student and teacher are known, the models give hidden states, and the objective makes of them
    what it needs of the logits, without logits `[N, V]`.

    Rows of other ranks may be part of a micro-batch's transport problem. Of these only what is small travels: of the
    teacher its hidden states (logits where it makes its own), or its logits of the verbalizers, or what a cache kept
    of its logits; of the student nothing but the costs.

    Args:
        kind ([`Kind`]): what the student's rows are: of its own kind, or over the answer choices.
        teacher ([`~sinkd_llm.teachers.Teacher`], *optional*): without one the loss is cross-entropy.
        objective ([`DistillationObjective`]): the loss.
        verbalizer_ids (`Tensor`, *optional*): as in the objective.
        ranks ([`Ranks`], *optional*): those that share a transport problem. Default: every rank has its own.
        head ([`HeadForm`], *optional*): of the student, if the loss takes its head over.
        states ([`StateTerms`], *optional*): adds the terms of hidden states, if the loss has them.

    Attributes:
        group_seed (`int`): draws the groups of transport problems that are cut; set before each update.
    """

    def __init__(
        self,
        kind: Kind,
        teacher: Teacher | None,
        objective: DistillationObjective,
        verbalizer_ids: Tensor | None = None,
        ranks: Ranks | None = None,
        head: HeadForm | None = None,
        states: StateTerms | None = None,
    ) -> None:
        self.kind, self.teacher, self.objective = kind, teacher, objective
        self.verbalizer_ids, self.ranks, self.head, self.states = verbalizer_ids, ranks, head, states
        self._said_why_dense = False
        self.group_seed = 0

    def __call__(
        self,
        student: nn.Module,
        batch: Mapping[str, Any],
        *,
        num_items: Tensor | int | None = None,
        own_items: Tensor | int | None = None,
        num_taught: Tensor | int | None = None,
        num_examples: Tensor | int | None = None,
        window: "Window | None" = None,
        with_diagnostics: bool = False,
    ) -> ObjectiveOutput:
        """
        The loss of a micro-batch.

        Args:
            student (`nn.Module`): possibly wrapped.
            batch (`Mapping`): of the run's collator, on the device.
            num_items (`Tensor` or `int`, *optional*): what the loss is divided by. Default: N.
            own_items (`Tensor` or `int`, *optional*): what the teacher's terms are divided by, if it is a number of
                this rank's own and gradients are then averaged over ranks as they are. Default: the number is the same
                on all ranks.
            num_taught (`Tensor` or `int`, *optional*): what the teacher's terms are divided by, where it is another
                number than `num_items`, as in the objective.
            num_examples (`Tensor` or `int`, *optional*): what the terms of hidden states are divided by. Default: the
                examples of the micro-batch.
            window ([`Window`], *optional*): the accumulation window that is one transport problem.
            with_diagnostics (`bool`, *optional*, defaults to `False`): as in the objective.
        """
        rows, theirs, transport = self._rows(student, batch, own_items, window)
        output = self.objective(
            signal_of(rows),
            None if theirs is None else theirs.signal,
            rows.labels_N,
            example_N=rows.example_N,
            position_N=rows.position_N,
            verbalizer_ids=self.verbalizer_ids,
            num_items=num_items,
            taught_M=self._taught(rows, theirs),
            num_taught=num_taught,
            transport=transport,
            group_seed=self.group_seed,
            group_N=self._groups(rows, batch),
            sets=None if theirs is None else theirs.sets,
            with_diagnostics=with_diagnostics,
        )
        if self.states is None or theirs is None:
            return output
        self.states.train(student.training)
        return self.states(output, rows, theirs, num_examples)

    def _groups(self, rows: SupervisedRows, batch: Mapping[str, Any]) -> Tensor | None:
        """The number of each row's group, where groups are the transport problems: they lie whole in a batch."""
        if self.objective.transport_scope != GROUP or GROUP_NUMBER not in batch:
            return None
        group_B: Tensor = batch[GROUP_NUMBER]
        return group_B[rows.example_N]

    def _taught(self, rows: SupervisedRows, theirs: TeacherRows | None) -> Tensor | None:
        """The rows that the teacher speaks of, where there may be others, or rows without a label."""
        if theirs is not None:
            return theirs.row_N
        return rows.example_N[:0] if isinstance(self.kind, OverChoices) else None

    def student_rows(self, student: nn.Module, batch: Mapping[str, Any]) -> SupervisedRows:
        """The student's rows of a micro-batch: hidden states if the objective takes over its head."""
        head = self.head
        if head is not None and (reason := why_dense(student)) is not None:
            head = None
            if not self._said_why_dense:
                stays_dense(reason, "student", self.objective.fused)
                self._said_why_dense = True
        return self.kind.supervised_rows(student, batch, head, self.states is not None)

    def _rows(
        self,
        student: nn.Module,
        batch: Mapping[str, Any],
        own_items: Tensor | int | None,
        window: "Window | None",
    ) -> tuple[SupervisedRows, TeacherRows | None, Transport | None]:
        """The student's rows of a micro-batch, the teacher's signal, and the problem that they are part of."""
        teacher = self.teacher if self.objective.uses_teacher else None
        if teacher is None or (teacher.knows_training_rows_only and not student.training):
            return self.student_rows(student, batch), None, None
        spans = student.training and self.objective.spans
        if spans and window is not None:
            return window.rows(student, batch, own_items)
        rows, theirs = self.student_rows(student, batch), self.teacher_rows(batch)
        if not spans or self.ranks is None:
            return rows, theirs, None
        return rows, theirs, (self.problem([batch], [theirs], own_items), 0)

    def teacher_rows(self, batch: Mapping[str, Any]) -> TeacherRows:
        """
        The teacher's rows of a micro-batch.

        Where the student predicts a number and the teacher ranks the words of numbers, they are its expected number.
        """
        assert self.teacher is not None
        theirs = self.teacher.signal(batch)
        if "choice_values" not in batch or not isinstance(theirs.signal, Tensor) or theirs.signal.shape[1] == 1:
            return theirs
        values_BC = batch["choice_values"]
        values_NC = values_BC if theirs.row_N is None else values_BC[theirs.row_N]
        expected_N1 = (theirs.signal.softmax(dim=-1) * values_NC).sum(dim=-1, keepdim=True)
        return replace(theirs, signal=expected_N1)

    def problem(
        self,
        batches: Sequence[Mapping[str, Any]],
        teachers: Sequence[TeacherRows],
        own_items: Tensor | int | None,
    ) -> SpanningProblem:
        """The transport problem of some micro-batches on all ranks that share it."""
        device = teachers[0].position_N.device
        layout = RowLayout.of([len(rows.position_N) for rows in teachers], self.ranks, device)
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
            group_seed=self.group_seed,
            factor=factor,
        )
