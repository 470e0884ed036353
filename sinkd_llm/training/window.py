"""How far one transport problem of a run reaches: over the ranks, and over the micro-batches of a window.

Shapes: N supervised tokens of a micro-batch, M those of all micro-batches of all ranks, V vocabulary, H features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.distributed import Ranks, RowLayout
from sinkd_llm.inputs.pair import TEACHER
from sinkd_llm.models.kinds import Kind, SupervisedRows
from sinkd_llm.objectives import DistillationObjective, SpanningProblem, TopKSignal
from sinkd_llm.teachers import CachedTeacher, LocalTeacher

# A problem, and which of its micro-batches: what the objective takes.
Transport = tuple[SpanningProblem, int]


@dataclass(frozen=True)
class _TeacherRows:
    """The teacher's signal of a micro-batch, each row's place in its answer, and the hidden states it came from."""

    signal: Tensor | TopKSignal
    position_N: Tensor
    hidden_NH: Tensor | None = None


@dataclass
class _Window:
    """An accumulation window between its two passes."""

    batches: Sequence[Mapping[str, Any]]
    next: int = 0
    problem: SpanningProblem | None = None
    teachers: list[_TeacherRows | None] = field(default_factory=list)
    random_states: list[list[Tensor]] = field(default_factory=list)


class TransportSpan:
    """
    Runs student and teacher on micro-batches, and joins the rows that form one transport problem.

    Of other ranks' rows only what is small travels: of the teacher its hidden states, out of which every rank makes
    the logits (the logits themselves where the head is sharded, or where the model changes what the head gives),
    or its logits of the verbalizers, or what a cache kept of its logits; of the student nothing but the costs.

    A window is solved in two passes, as GradCache does for contrastive losses (arXiv:2101.06983): the first runs
    every micro-batch without gradient, for the costs; the second is the usual one, with the same dropout masks,
    and has the solution's gradient to its costs. The teacher runs in the first pass only, and its logits are kept
    until the second has used them.

    Args:
        kind ([`Kind`]): the student's.
        teacher ([`LocalTeacher`] or [`CachedTeacher`], *optional*): without one there is no transport.
        ranks ([`Ranks`], *optional*): those that share a problem. Default: every rank has its own.
        accumulate (`bool`, *optional*, defaults to `False`): whether a window is one problem.
    """

    def __init__(
        self,
        kind: Kind,
        teacher: LocalTeacher | CachedTeacher | None,
        ranks: Ranks | None = None,
        accumulate: bool = False,
    ) -> None:
        self.kind = kind
        self.teacher = teacher
        self.ranks = ranks
        self.accumulate = accumulate
        self._window: _Window | None = None

    def open_window(self, batches: Sequence[Mapping[str, Any]], prepare: Callable[[Any], Any]) -> None:
        """Announces the micro-batches that `rows` will be asked for; `prepare` puts one onto the device."""
        joined = self.accumulate and len(batches) > 1
        self._window = _Window([prepare(batch) for batch in batches]) if joined else None

    def rows(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        objective: DistillationObjective,
        verbalizer_ids: Tensor | None,
        num_items: Tensor | int | None,
    ) -> tuple[SupervisedRows, Tensor | TopKSignal | None, Transport | None]:
        """The student's rows of a micro-batch, the teacher's signal, and the problem that they are part of.

        Args:
            num_items (`Tensor` or `int`, *optional*): what this rank's loss is divided by, if its gradients are then
                averaged over ranks as they are. Default: the same number on all ranks.
        """
        # A cache holds the training rows, and rows for evaluation may go by the same ids.
        absent = self.teacher is None or (isinstance(self.teacher, CachedTeacher) and not model.training)
        if absent or not objective.uses_teacher:
            return self.kind.supervised_rows(model, inputs), None, None
        if not (model.training and objective.spans):
            student = self.kind.supervised_rows(model, inputs)
            return student, self._teacher_rows(inputs, objective).signal, None
        if self._window is not None:
            return self._second_pass(model, inputs, objective, verbalizer_ids, num_items)
        student = self.kind.supervised_rows(model, inputs)
        teacher = self._teacher_rows(inputs, objective)
        if self.ranks is None:
            return student, teacher.signal, None
        problem = self._problem([inputs], [teacher], objective, verbalizer_ids, num_items)
        return student, teacher.signal, (problem, 0)

    def _second_pass(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        objective: DistillationObjective,
        verbalizer_ids: Tensor | None,
        num_items: Tensor | int | None,
    ) -> tuple[SupervisedRows, Tensor | TopKSignal | None, Transport | None]:
        window = self._window
        assert window is not None
        if window.problem is None:
            window.problem = self._first_pass(window, model, objective, verbalizer_ids, num_items)
        part = window.next
        window.next += 1
        if window.next == len(window.batches):
            self._window = None
        teacher = window.teachers[part]
        window.teachers[part] = None
        assert teacher is not None
        _set_random_state(window.random_states[part])
        student = self.kind.supervised_rows(model, inputs)
        announced = window.batches[part]["labels"]
        assert torch.equal(inputs["labels"], announced), "micro-batches came in another order than announced"
        return student, teacher.signal, (window.problem, part)

    @torch.no_grad()
    def _first_pass(
        self,
        window: _Window,
        model: nn.Module,
        objective: DistillationObjective,
        verbalizer_ids: Tensor | None,
        num_items: Tensor | int | None,
    ) -> SpanningProblem:
        teachers = [self._teacher_rows(batch, objective) for batch in window.batches]
        problem = self._problem(window.batches, teachers, objective, verbalizer_ids, num_items)
        costs = []
        for part, batch in enumerate(window.batches):
            window.random_states.append(_random_state(teachers[part].position_N.device))
            student = self.kind.supervised_rows(model, batch)
            costs.append(problem.cost(student.logits_NV, part))
        problem.solve(costs)
        torch.clear_autocast_cache()  # weights that were cast without gradient must not serve the second pass
        window.teachers = [*teachers]
        return problem

    def _problem(
        self,
        batches: Sequence[Mapping[str, Any]],
        teachers: Sequence[_TeacherRows],
        objective: DistillationObjective,
        verbalizer_ids: Tensor | None,
        num_items: Tensor | int | None,
    ) -> SpanningProblem:
        device = teachers[0].position_N.device
        small = all(rows.hidden_NH is not None for rows in teachers)
        layout = RowLayout.of([len(rows.position_N) for rows in teachers], self.ranks, device, agree=small)
        factor: float | Tensor = 1.0
        if self.ranks is not None and num_items is not None:
            # The rows are divided by their rank's number, but they count alike: by the mean of all ranks' numbers.
            own = torch.as_tensor(num_items, device=device)
            factor = own * self.ranks.count / self.ranks.sum(own).clamp(min=1)
        return objective.spanning_problem(
            layout,
            [rows.signal for rows in teachers],
            [rows.position_N for rows in teachers],
            verbalizer_ids=verbalizer_ids,
            regression=batches[0]["labels"].is_floating_point(),
            teacher_MV=self._logits_of_hidden_states(teachers, layout),
            factor=factor,
        )

    def _teacher_rows(self, batch: Mapping[str, Any], objective: DistillationObjective) -> _TeacherRows:
        if isinstance(self.teacher, CachedTeacher):
            return _TeacherRows(*self.teacher.signal(batch["example_id"], batch["labels"].device))
        assert self.teacher is not None
        with_hidden = self.ranks is not None and objective.spans and objective.vocabulary == "full"
        rows = self.teacher.supervised_rows(batch.get(TEACHER, batch), with_hidden=with_hidden)
        return _TeacherRows(rows.logits_NV, rows.position_N, rows.hidden_NH)

    def _logits_of_hidden_states(self, teachers: Sequence[_TeacherRows], layout: RowLayout) -> Tensor | None:
        """The teacher's logits of all ranks `[M, V]`, if on all of them they follow from hidden states."""
        if layout.ranks is None or not layout.agreed:
            return None
        assert isinstance(self.teacher, LocalTeacher)
        hidden_MH = layout.gather([rows.hidden_NH for rows in teachers if rows.hidden_NH is not None])
        own = layout.ranks.own_rows(layout.counts)
        own_logits = [rows.signal for rows in teachers if isinstance(rows.signal, Tensor)]
        before, behind = self.teacher.logits(hidden_MH[: own.start]), self.teacher.logits(hidden_MH[own.stop :])
        return torch.cat([before, *own_logits, behind])


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the CPU, and of `device`: dropout draws from the one or the other."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state()]


def _set_random_state(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module().set_rng_state(state)
