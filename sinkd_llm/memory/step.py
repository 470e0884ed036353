"""One training step on the meta device: which bytes it holds at once, and when.

The step is the trainer's own: the family's forward, the teacher's, the objective, the backward pass, in that
order. What depends on values (which positions are supervised) is read from real labels, everything else is shapes.
So the count holds for every architecture and adapter, in place of a formula for one of them such as Korthikanti et
al. (arXiv:2205.05198, equation 2), which it reproduces for the block that they describe (tests/memory).

Shapes: B sequences of the batch, L tokens of the longest, N supervised tokens, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.memory.tracing import DeviceBehaviour, LiveBytes
from sinkd_llm.models.kinds import kind_of, unwrap
from sinkd_llm.objectives import DistillationObjective


@dataclass(frozen=True)
class StepMemory:
    """
    Bytes that one training step holds beside weights and optimizer.

    Attributes:
        activations (`int`): what the student's forward keeps for its backward pass.
        forward_peak (`int`): most that the student's forward holds at once, those among it.
        teacher (`int`): what the teacher's forward holds at once beyond `activations`, its logits among it.
        loss (`int`): what the logits of both, the divergence and the transport problem hold at once.
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
    teacher: Any | None,
    objective: DistillationObjective,
    batch: Mapping[str, Any],
    *,
    teacher_batch: Mapping[str, Any] | None = None,
    verbalizer_ids: Tensor | None = None,
    gradient_checkpointing: bool = False,
    autocast: torch.dtype | None = None,
) -> StepMemory:
    """
    The memory of one micro-batch, counted on the meta device.

    Args:
        student, teacher (`PreTrainedModel` or `PeftModel`): on the meta device, see
            [`~sinkd_llm.models.blueprint`]; no teacher for fine-tuning.
        objective ([`DistillationObjective`]): the loss.
        batch (`Mapping`): what the student's collator makes of rows, on the CPU.
        teacher_batch (`Mapping`, *optional*): the teacher's, if it reads the rows in another way.
        verbalizer_ids (`Tensor`, *optional*): as in the objective.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): keep each block's input alone and run the
            block again in the backward pass (Chen et al., arXiv:1604.06174).
        autocast (`torch.dtype`, *optional*): type of matrix products, for a run with `bf16` or `fp16`.

    Raises:
        InputError: if the model's code needs values that only real weights have.
    """
    on_meta = _on_meta(batch)
    teachers = on_meta if teacher_batch is None else _on_meta(teacher_batch)
    models = [model for model in (student, teacher) if model is not None]
    known = [tensor for model in models for tensor in chain(model.parameters(), model.buffers())]
    known += [value for part in (on_meta, teachers) for value in part.values() if isinstance(value, Tensor)]
    counter = LiveBytes(known)
    student.train()
    with _checkpointing(student, gradient_checkpointing, autocast), _gradients_marked(student, counter):
        try:
            with counter:
                return _step(student, teacher, objective, on_meta, teachers, verbalizer_ids, counter, autocast)
        except RuntimeError as error:  # an operation that the meta device does not have
            raise InputError(
                f"The memory of {type(unwrap(student)).__name__} cannot be counted without its weights "
                f"({first_line(error)}); start the run with --max_steps 2 and read its peak memory instead."
            ) from error


def _step(
    student: Any,
    teacher: Any | None,
    objective: DistillationObjective,
    batch: Mapping[str, Any],
    teacher_batch: Mapping[str, Any],
    verbalizer_ids: Tensor | None,
    counter: LiveBytes,
    autocast: torch.dtype | None,
) -> StepMemory:
    with DeviceBehaviour(autocast):
        supervised = kind_of(student).supervised_rows(student, batch)
        forward_peak, activations = counter.peak, counter.live
        counter.restart_peak()
        teacher_NV = None
        if teacher is not None and objective.uses_teacher:
            with torch.no_grad():
                teacher_NV = kind_of(teacher).supervised_rows(teacher, teacher_batch).logits_NV
        teacher_peak, before_loss = counter.peak - activations, counter.live
        counter.restart_peak()
        labels_N = supervised.labels_N
        if labels_N.is_floating_point():  # true values are computed with, where classes are indices
            labels_N = labels_N.to("meta")
        output = objective(
            supervised.logits_NV,
            teacher_NV,
            labels_N,
            example_N=supervised.example_N,
            position_N=supervised.position_N,
            verbalizer_ids=verbalizer_ids,
            num_items=max(len(labels_N), 1),
        )
        loss = counter.peak - before_loss + (teacher_NV.untyped_storage().nbytes() if teacher_NV is not None else 0)
    del supervised, teacher_NV
    output.loss.backward()
    peak = max(forward_peak, activations + teacher_peak, counter.peak)
    return StepMemory(activations, forward_peak, teacher_peak, loss, peak, max(peak, counter.peak_with_gradients))


def _on_meta(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch on the meta device, but for what is learnt: indices are computed from it."""
    return {
        name: value.to("meta") if isinstance(value, Tensor) and name != "labels" else value
        for name, value in batch.items()
        if not isinstance(value, Mapping)
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
