"""The head of a language model: run only where it is needed, recorded, and run again on what it has read.

Shapes: S sequences of a batch, L tokens of the longest, N supervised tokens of the batch, V vocabulary, H features of
a hidden state.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.models.wrappers import unwrap


def logits_at(
    model: nn.Module, supervised_SL: Tensor, with_hidden: bool = False, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """
    Runs the model once and its head only where `supervised_SL` is true: `[N, V]`, and `hidden_NH` if asked for.

    The head is most of a step where the vocabulary is large, and only decoders offer an argument for it.

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


def small_head(model: nn.Module) -> nn.Module | None:
    """
    The language-model head, if its inputs are smaller than its outputs: then `hidden_NH` is a shorter way to say the
    logits.

    Args:
        model (`nn.Module`): of any kind, possibly wrapped; a classification head is no language-model head.
    """
    head: nn.Module | None = unwrap(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    return head if weight is not None and weight.ndim == 2 and weight.shape[1] < weight.shape[0] else None
