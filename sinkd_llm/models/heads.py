"""The head of a language model: run only where it is needed, or left to the loss, which then makes no logits.

Shapes: S sequences of a batch, L tokens of the longest, N supervised tokens of the batch, V vocabulary, H features of
a hidden state.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.models.partitioning import is_part, whole_frozen
from sinkd_llm.models.wrappers import has_hooks, is_compiled, unwrap


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """
    What the head of a model reads at N positions, and the head: `cap * tanh(scale * (h @ W.T + b) / cap)` are the
    logits; without a cap `scale * (h @ W.T + b)`.

    Attributes:
        hidden_NH (`Tensor` `[N, H]`): h, in the type that the head computes in.
        weight_VH (`Tensor` `[V, H]`): W. If the head trains, the gradient reaches it.
        bias_V (`Tensor` `[V]`, *optional*): b, likewise.
        scale (`float`), cap (`float`, *optional*): see [`HeadForm`].
    """

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None
    scale: float
    cap: float | None


@dataclass(frozen=True)
class HeadForm:
    """
    How a model makes logits of what its head reads. [`describe_head`] finds it, once.

    Attributes:
        scale (`float`): what the model multiplies the head's output by.
        cap (`float`, *optional*): the bound that it bends its logits below, by `cap * tanh(logits / cap)`.
        shift (`str`, *optional*): the name of the model's buffer that it adds to the head's output.
    """

    scale: float = 1.0
    cap: float | None = None
    shift: str | None = None

    def of(self, model: nn.Module, hidden_NH: Tensor) -> HiddenStates:
        """The head's weights as they are now, beside what it reads; of a frozen one that is spread all processes
        gather it."""
        inner = unwrap(model)
        head = linear_head(inner)
        assert head is not None
        weight_VH, bias_V = (None if w is None else whole_frozen(w) for w in (head.weight, head.bias))
        assert weight_VH is not None
        if self.shift is not None:
            shift_V = getattr(inner, self.shift).flatten().to(weight_VH.device)
            bias_V = shift_V if bias_V is None else bias_V + shift_V
        dtype = hidden_NH.dtype
        bias_V = None if bias_V is None else bias_V.to(dtype)
        return HiddenStates(hidden_NH, weight_VH.to(dtype), bias_V, self.scale, self.cap)

    def bent(self, scores: Tensor, shift_V: Tensor | None) -> Tensor:
        """What the model makes of its head's output `[..., V]`."""
        scores = self.scale * (scores if shift_V is None else scores + shift_V)
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)


def linear_head(model: Any) -> nn.Linear | None:
    """
    The module that makes a model's logits, if it computes nothing but `nn.Linear` does.

    An adapter on the head, packed weights and a device map have forwards of their own, also where they would compute
    the same at first.

    Args:
        model (`nn.Module`): without wrappers.
    """
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if hasattr(head, "modules_to_save"):  # PEFT trains a copy
        head = dict(head.modules_to_save).get(head.active_adapter)
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    return head if plain else None


def why_dense(model: nn.Module) -> str | None:
    """
    Why the loss cannot take over the head of a model whose [`HeadForm`] is known, as it is placed and wrapped now, in
    words that follow "the student's"; `None`: it can.
    """
    if is_compiled(model):
        return "forward is compiled, and would be compiled again for every batch"
    head = linear_head(unwrap(model))
    if head is None:
        return "head is no plain linear layer any more"
    if has_hooks(head) and not any(map(is_part, head.parameters())):  # DeepSpeed hooks onto what it spreads
        return "head has hooks, which would see no logits"
    if any(is_part(weight) and weight.requires_grad for weight in head.parameters()):
        return "head is trained, and its weights are spread over the processes"
    return None


def hidden_at(model: nn.Module, form: HeadForm, example_N: Tensor, column_N: Tensor, **arguments: Any) -> HiddenStates:
    """
    Runs the model once, and its head on nothing: what the head would have read at N positions.

    The head still runs, and is part of the graph, so that whatever wraps the model (DDP, FSDP, DeepSpeed) sees its
    parameters used and gathers them when it would.

    Args:
        model (`nn.Module`): possibly wrapped.
        form ([`HeadForm`]): of the model.
        example_N, column_N (`Tensor` `[N]`): the sequence of each position, and its place in there.
        arguments: of the model's forward.
    """
    found: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found.append(inputs[0][example_N, column_N])
        return inputs[0][:, :0], *inputs[1:]

    def convert(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        found.append(found.pop().to(output.dtype))  # under autocast a head computes in another type than it reads

    head = linear_head(unwrap(model))
    assert head is not None
    hooks = head.register_forward_pre_hook(take), head.register_forward_hook(convert)
    try:
        nothing = model(**arguments).logits
    finally:
        for hook in hooks:
            hook.remove()
    (hidden_NH,) = found
    # A sum over nothing, which leads the backward pass through what wraps the model.
    return form.of(model, hidden_NH + nothing.sum() * 0)


def logits_at(model: nn.Module, supervised_SL: Tensor, **arguments: Any) -> Tensor:
    """
    Runs the model once and its head only where `supervised_SL` is true: `[N, V]`.

    The head is most of a step where the vocabulary is large, and only decoders offer an argument for it.

    Args:
        model (`nn.Module`): a model with a language-model head, possibly wrapped.
        supervised_SL (`Tensor` `[S, L]`): true at the positions whose logits are wanted.
        arguments: of the model's forward.
    """

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if inputs and inputs[0].shape[:2] == supervised_SL.shape:
            return (inputs[0][supervised_SL], *inputs[1:])
        return None

    head = unwrap(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(select) if isinstance(head, nn.Module) else None
    try:
        logits: Tensor = model(**arguments).logits
    finally:
        if hook is not None:
            hook.remove()
    # A head that is no module of its own (some tie it by hand) has run at every position.
    return logits[supervised_SL] if logits.ndim == 3 else logits
