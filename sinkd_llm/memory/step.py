"""One training step on the meta device: which bytes it holds at once, and when.

The step is the trainer's own ([`~sinkd_llm.training.forward.Forward`]) and its backward pass. What depends on values
(which positions are supervised) is read from real labels, everything else is shapes. So the count holds for every kind
of model and adapter, in place of a formula for one of them such as Korthikanti et al. (arXiv:2205.05198, equation 2),
which it reproduces for the block that they describe (tests/memory).

Shapes: B sequences of the batch, L tokens of the longest, N supervised tokens, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.memory.tracing import DeviceBehaviour, LiveBytes
from sinkd_llm.models.heads import HeadForm
from sinkd_llm.models.kinds import Kind, SupervisedRows, kind_of
from sinkd_llm.models.kinds.packing import ROW_OF
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.objectives import DistillationObjective, HeadOf
from sinkd_llm.teachers import Teacher, TeacherRows
from sinkd_llm.training.forward import Forward
from sinkd_llm.training.projection import StateTerms


class NotCountedError(InputError):
    """Raised for a run whose memory cannot be counted without its weights: nothing is wrong with it."""


@dataclass(frozen=True)
class StepMemory:
    """
    Bytes that one training step holds beside weights and optimizer.

    Attributes:
        activations (`int`): what the student's forward keeps for its backward pass.
        forward_peak (`int`): most that the student's forward holds at once, those among it.
        teacher (`int`): what the teacher's forward holds at once beyond `activations`, and what it gives.
        loss (`int`): what cross-entropy, divergence and transport problem hold at once, with logits, if any.
        peak (`int`): most that the step holds at once, gradients of parameters left out.
        peak_with_gradients (`int`): most at once with the gradients that exist by then. Activations go while
            gradients come, so it is less than the sum of the two.
    """

    activations: int
    forward_peak: int
    teacher: int
    loss: int
    peak: int
    peak_with_gradients: int


def trace_step(
    student: Any,
    teacher: Teacher | None,
    objective: DistillationObjective,
    batch: Mapping[str, Any],
    *,
    verbalizer_ids: Tensor | None = None,
    head: HeadForm | None = None,
    states: StateTerms | None = None,
    gradient_checkpointing: bool = False,
    autocast: torch.dtype | None = None,
) -> StepMemory:
    """
    The memory of one micro-batch, counted on the meta device.

    Args:
        student (`PreTrainedModel` or `PeftModel`): on the meta device, see [`~sinkd_llm.models.blueprint`].
        teacher ([`~sinkd_llm.teachers.Teacher`], *optional*): its model likewise; none for fine-tuning.
        objective ([`DistillationObjective`]): the loss.
        batch (`Mapping`): what the run's collator makes of rows, on the CPU.
        verbalizer_ids (`Tensor`, *optional*): as in the objective.
        head ([`HeadForm`], *optional*): of the student, if the loss takes its head over.
        states ([`StateTerms`], *optional*): of the terms of hidden states, if the loss has them. They are moved to the
            meta device, with a full queue; they and it count as part of the step.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): keep each block's input alone and run the
            block again in the backward pass (Chen et al., arXiv:1604.06174).
        autocast (`torch.dtype`, *optional*): type of matrix products, for a run with `bf16` or `fp16`.

    Raises:
        NotCountedError: if the model's code needs values that only real weights have.
    """
    on_meta = _on_meta(batch)
    models = [student] if teacher is None else [student, teacher.model]
    known = [tensor for model in models for tensor in chain(model.parameters(), model.buffers())]
    known += [value for value in tree_leaves(on_meta) if isinstance(value, Tensor)]
    counter = LiveBytes(known)
    student.train()
    with _checkpointing(student, gradient_checkpointing, autocast), _gradients_marked(student, counter):
        try:
            with counter:
                return _step(student, teacher, objective, on_meta, verbalizer_ids, head, states, counter, autocast)
        except RuntimeError as error:  # an operation that the meta device does not have
            raise NotCountedError(
                f"The memory of {type(unwrap(student)).__name__} cannot be counted without its weights "
                f"({first_line(error)}); start the run with --max_steps 2 and read its peak memory instead."
            ) from error


def _step(
    student: Any,
    teacher: Teacher | None,
    objective: DistillationObjective,
    batch: Mapping[str, Any],
    verbalizer_ids: Tensor | None,
    head: HeadForm | None,
    states: StateTerms | None,
    counter: LiveBytes,
    autocast: torch.dtype | None,
) -> StepMemory:
    kind = _CountedKind(kind_of(student), counter)
    counted = _CountedTeacher(teacher, counter) if teacher is not None else None
    with DeviceBehaviour(autocast):
        if states is not None:
            states.to("meta").fill_queue()
        forward = Forward(kind, counted, objective, verbalizer_ids, head=head, states=states)  # type: ignore[arg-type]
        output = forward(student, batch)
    activations = kind.live
    teacher_peak = max(counted.peak - activations, 0) if counted is not None else 0
    before_loss, signal = (counted.live, counted.bytes) if counted is not None else (0, 0)
    loss = counter.peak - max(before_loss, activations) + signal
    output.loss.backward()
    peak = max(kind.peak, activations + teacher_peak, counter.peak)
    return StepMemory(activations, kind.peak, teacher_peak, loss, peak, max(peak, counter.peak_with_gradients))


class _CountedKind:
    """A kind of model whose forward is measured."""

    def __init__(self, kind: Kind, counter: LiveBytes) -> None:
        self.kind, self.counter = kind, counter
        self.peak = self.live = 0

    def supervised_rows(
        self, model: Any, batch: Mapping[str, Any], head: HeadForm | None, states: bool
    ) -> SupervisedRows:
        rows = self.kind.supervised_rows(model, batch, head, states)
        self.peak, self.live = self.counter.peak, self.counter.live
        self.counter.restart_peak()
        # Which rows there are is known by now.
        return replace(rows, labels_N=rows.labels_N.to("meta"))


class _CountedTeacher:
    """A teacher whose forward is measured."""

    knows_training_rows_only = False

    def __init__(self, teacher: Teacher, counter: LiveBytes) -> None:
        self.teacher, self.counter = teacher, counter
        self.peak = self.live = self.bytes = 0

    def signal(self, batch: Mapping[str, Any]) -> TeacherRows:
        rows = self.teacher.signal(batch)
        assert isinstance(rows.signal, Tensor | HeadOf)  # a cache is not traced: its rows take what a model's take
        given = rows.signal if isinstance(rows.signal, Tensor) else rows.signal.hidden_NH
        self.peak, self.live, self.bytes = self.counter.peak, self.counter.live, given.untyped_storage().nbytes()
        self.counter.restart_peak()
        return rows


def _on_meta(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch on the meta device, but for what is learnt and of which row it is: indices are computed from them."""
    return {
        name: _on_meta(value)
        if isinstance(value, Mapping)
        else value.to("meta")
        if isinstance(value, Tensor) and name not in ("labels", ROW_OF)
        else value
        for name, value in batch.items()
    }


@contextlib.contextmanager
def _checkpointing(student: Any, wanted: bool, autocast: torch.dtype | None) -> Iterator[None]:
    if not wanted:
        yield
        return
    # A function mode ends where the backward pass begins, and the blocks run again in there.
    kwargs = {"use_reentrant": False, "context_fn": lambda: (contextlib.nullcontext(), DeviceBehaviour(autocast))}
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    if hasattr(student, "peft_config"):
        student.enable_input_require_grads()
    try:
        yield
    finally:
        student.gradient_checkpointing_disable()


@contextlib.contextmanager
def _gradients_marked(student: nn.Module, counter: LiveBytes) -> Iterator[None]:
    def mark(parameter: Tensor) -> None:
        assert parameter.grad is not None
        counter.mark_gradient(parameter.grad)

    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    handles = [parameter.register_post_accumulate_grad_hook(mark) for parameter in trained]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        student.zero_grad(set_to_none=True)
