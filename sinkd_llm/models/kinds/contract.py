"""What every kind of model gives: logits at the supervised positions of a batch.

Objectives, teachers and evaluation see only `SupervisedRows`: one row per answer token, and which
example and which answer position each row is. They never ask which kind they serve.

Shapes: S sequences of a batch, L tokens of the longest, N supervised tokens of the batch, V outputs: the
vocabulary, or the classes of a classification head, H features of a hidden state.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

IGNORE_INDEX = -100
# Where scoring may choose how much it looks at together: so many logits, 1 GiB in fp32.
LOGITS_AT_A_TIME = 2**28


@dataclass(frozen=True)
class SupervisedRows:
    """Logits at the supervised tokens of a batch, in the order (sequence, answer position).

    Attributes:
        logits_NV (`Tensor` `[N, V]`): scores of the vocabulary or of the classes, in the model's dtype.
        labels_N (`Tensor` `[N]`): the supervised token ids or classes; the true values of a regression.
        example_N (`Tensor` `[N]`): index of the row's sequence in the batch, in `[0, S)`.
        position_N (`Tensor` `[N]`): index of the row's token in its answer, from 0.
        hidden_NH (`Tensor` `[N, H]`, *optional*): what the model's head made the logits of, if `with_hidden` asked
            for it, and if they are what the head gives: `None` where the model scales, caps or shifts them afterwards.
    """

    logits_NV: Tensor
    labels_N: Tensor
    example_N: Tensor
    position_N: Tensor
    hidden_NH: Tensor | None = None


class Kind(Protocol):
    """The contract of a kind of model: a batch in, supervised logits out.

    Attributes:
        title (`str`): in words, for messages.
        name (`str`): the `kind` by which [`load_model`] loads it.
        lora_task_type (`str` or `None`): PEFT's task type, if it has one for the kind.
        scores_classes (`bool`): V is the classes of a head, not a vocabulary.
    """

    title: str
    name: str
    lora_task_type: str | None
    scores_classes: bool

    def supervised_rows(
        self, model: nn.Module, batch: Mapping[str, Any], with_hidden: bool = False
    ) -> SupervisedRows:  # pragma: no cover - a protocol
        """`batch` comes from the kind's collator; `labels` are -100 outside answers."""
        ...


def unwrap(model: Any) -> Any:
    """The Transformers model inside DDP, DeepSpeed, PEFT and `torch.compile` wrappers."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):  # PEFT
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), nn.Module):  # DDP, DeepSpeed
            model = model.module
        else:
            return model


def forward_parameters(model: nn.Module) -> frozenset[str]:
    """
    Names of the arguments that the innermost model's `forward` takes (PEFT, DDP and `torch.compile` pass them on).

    Its class is asked: accelerate and others put functions of `(*args, **kwargs)` in place of an object's forward.
    """
    return frozenset(inspect.signature(type(unwrap(model)).forward).parameters) - {"self"}


def accepted(model: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that the model's `forward` takes."""
    names = forward_parameters(model)
    return {name: value for name, value in arguments.items() if name in names}


def logits_at(
    model: nn.Module, supervised_SL: Tensor, with_hidden: bool = False, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """
    Runs the model once and its head only where `supervised_SL` is true: `[N, V]`, and `hidden_NH` if asked for.

    The head is most of a step where the vocabulary is large, and these families offer no argument for it.

    Args:
        model (`nn.Module`): a model with a language-model head, possibly wrapped.
        supervised_SL (`Tensor` `[S, L]`): true at the positions whose logits are wanted.
        with_hidden (`bool`): see [`SupervisedRows`].
        arguments: of the model's forward.
    """

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if inputs and inputs[0].shape[:2] == supervised_SL.shape:
            return (inputs[0][supervised_SL], *inputs[1:])
        return None

    def rows(scores: Tensor) -> Tensor:
        # A head that is no module of its own (some tie it by hand) has run at every position.
        return scores[supervised_SL] if scores.ndim == 3 else scores

    head = unwrap(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if isinstance(head, nn.Module) else None
    try:
        with recorded_head(model, with_hidden) as calls:
            logits_NV = rows(model(**arguments).logits)
    finally:
        if hook is not None:
            hook.remove()
    return logits_NV, hidden_rows(calls, rows, logits_NV)


@contextmanager
def recorded_head(model: nn.Module, record: bool) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs and outputs of the model's head inside the context, if `record`, and if it is a module."""
    calls: list[tuple[Tensor, Tensor]] = []
    head = unwrap(model).get_output_embeddings() if record else None
    if not isinstance(head, nn.Module):
        yield calls
        return
    hook = head.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    try:
        yield calls
    finally:
        hook.remove()


def hidden_rows(
    calls: list[tuple[Tensor, Tensor]], rows: Callable[[Tensor], Tensor], logits_NV: Tensor
) -> Tensor | None:
    """`hidden_NH` of [`SupervisedRows`], from one recorded call of the head; `rows` selects N rows of a batch."""
    if len(calls) != 1:
        return None
    hidden, output = calls[0]
    # Equal to the last bit, for this is the same product: a cap that hardly bends small logits is seen, too.
    same = torch.equal(rows(output).to(logits_NV.dtype), logits_NV)
    return rows(hidden) if same else None


def answer_rows(supervised_SL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`example_N`, the column of each supervised position, and `position_N`."""
    example_N, column_N = supervised_SL.nonzero(as_tuple=True)
    return example_N, column_N, (supervised_SL.cumsum(dim=1) - 1)[example_N, column_N]
