"""An accumulation window whose micro-batches are one transport problem, solved in two passes.

As GradCache does for contrastive losses (arXiv:2101.06983): the first pass runs every micro-batch without gradient,
for the costs; the second is the usual one, with the same dropout masks, and has the solution's gradient to its costs.

Shapes: N supervised tokens of a micro-batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.models.kinds import SupervisedRows
from sinkd_llm.objectives import SpanningProblem
from sinkd_llm.teachers import TeacherRows
from sinkd_llm.teachers.contract import signal_of
from sinkd_llm.training.finite import names_of
from sinkd_llm.training.forward import Forward, Transport


class Window:
    """
    The micro-batches of an update, between the two passes.

    The teacher runs in the first pass only, and its signal is kept until the second has used it.

    Args:
        forward ([`Forward`]): the step.
        batches (sequence of `Mapping`): the micro-batches, on the device, in the order in which [`rows`] will be asked
            for them.
    """

    def __init__(self, forward: Forward, batches: Sequence[Mapping[str, Any]]) -> None:
        self.forward, self.batches = forward, batches
        self._next = 0
        self._problem: SpanningProblem | None = None
        self._teachers: list[TeacherRows | None] = []
        self._random_states: list[list[Tensor]] = []

    @property
    def is_done(self) -> bool:
        """Whether all micro-batches have been asked for: nothing is kept any more."""
        return self._next == len(self.batches)

    def rows(
        self, student: nn.Module, batch: Mapping[str, Any], own_items: Tensor | int | None
    ) -> tuple[SupervisedRows, TeacherRows, Transport]:
        """The second pass of the next micro-batch: its rows, the teacher's, and the problem and its part."""
        if self._problem is None:
            self._problem = self._first_pass(student, own_items)
        part = self._next
        self._next += 1
        teacher, self._teachers[part] = self._teachers[part], None
        assert teacher is not None
        _set_random_state(self._random_states[part])
        student_rows = self.forward.student_rows(student, batch)
        # By what the host knows of them: to compare tokens would make every step wait for the device.
        announced = self.batches[part]
        known = [(names_of(one), one["labels"].shape) for one in (batch, announced)]
        assert known[0] == known[1], "micro-batches came in another order than announced"
        return student_rows, teacher, (self._problem, part)

    @torch.no_grad()
    def _first_pass(self, student: nn.Module, own_items: Tensor | int | None) -> SpanningProblem:
        teachers = [self.forward.teacher_rows(batch) for batch in self.batches]
        problem = self.forward.problem(self.batches, teachers, own_items)
        costs = []
        for part, batch in enumerate(self.batches):
            self._random_states.append(_random_state(teachers[part].position_N.device))
            side, taught_M = signal_of(self.forward.student_rows(student, batch)), teachers[part].row_N
            if taught_M is not None:
                assert isinstance(side, Tensor)  # over answer choices
                side = side.index_select(0, taught_M)
            costs.append(problem.cost(side, part))
        problem.solve(costs)
        torch.clear_autocast_cache()  # weights that were cast without gradient must not serve the second pass
        self._teachers = [*teachers]
        return problem


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the CPU, and of `device`: dropout draws from the one or the other."""
    states = [torch.get_rng_state()]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state()]


def _set_random_state(states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module().set_rng_state(state)
