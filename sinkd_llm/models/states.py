"""The state of an example: the mean over its prompt of what a model's body gives last, whatever head reads it.

Shapes: S sequences of a batch, L tokens of the longest, H features of a hidden state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.wrappers import is_compiled, unwrap


def body_of(model: Any) -> nn.Module:
    """
    What is below a model's head; of an encoder-decoder its encoder, which reads the prompt.

    Args:
        model (`nn.Module`): possibly wrapped.

    Raises:
        InputError: if the model does not say what it is.
    """
    inner = unwrap(model)
    if getattr(inner.config, "is_encoder_decoder", False) and hasattr(inner, "get_encoder"):
        encoder: nn.Module = inner.get_encoder()
        return encoder
    body = getattr(inner, "base_model", None)
    if not isinstance(body, nn.Module) or body is inner:
        raise InputError(
            f"{type(inner).__name__} does not say which of its modules is below its head, so that its hidden states "
            "are not known; set hidden_weight and queue_weight to 0."
        )
    return body


def state_width(model: Any) -> int:
    """
    H, as a model's configuration has it.

    Raises:
        InputError: if it does not say.
    """
    config = unwrap(model).config
    width = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "hidden_size", None)
    if not isinstance(width, int):
        raise InputError(
            f"The configuration of {type(unwrap(model)).__name__} has no hidden_size, so that the width of its hidden "
            "states is not known; set hidden_weight and queue_weight to 0."
        )
    return width


@contextmanager
def last_states(model: Any, wanted: bool = True) -> Iterator[list[Tensor]]:
    """
    While it is open, every forward of the model appends what its body gives, `[S, L, H]`, with its gradient.

    Args:
        model (`nn.Module`): possibly wrapped, but not compiled: a compiled forward does not see who looks at it.
        wanted (`bool`, *optional*, defaults to `True`): otherwise nothing is looked at or appended.
    """
    if not wanted:
        yield []
        return
    if is_compiled(model):
        raise InputError(
            "A model is compiled, and its hidden states cannot be read; leave torch_compile out, or set hidden_weight "
            "and queue_weight to 0."
        )
    found: list[Tensor] = []
    hook = body_of(model).register_forward_hook(lambda _, __, output: found.append(output[0]))
    try:
        yield found
    finally:
        hook.remove()


def only_states(found: list[Tensor], read_SL: Tensor) -> Tensor:
    """
    `[S, L, H]`, of one forward.

    Args:
        found (`list[Tensor]`): what [`last_states`] found.
        read_SL (`Tensor` `[S, L]`): of the same shape but for H.

    Raises:
        InputError: if there is not one state for each token.
    """
    if len(found) != 1 or found[0].shape[:2] != read_SL.shape:
        shapes = ", ".join(str(tuple(one.shape)) for one in found) or "none"
        raise InputError(
            f"A batch of {read_SL.shape[0]} rows of {read_SL.shape[1]} tokens has hidden states of shape {shapes}: "
            "not one for each token. Set hidden_weight and queue_weight to 0."
        )
    return found[0]


def mean_states(found: list[Tensor], prompt_SL: Tensor) -> Tensor:
    """
    The mean state of each sequence, `[S, H]`, in fp32; 0 of one without a prompt.

    Args:
        found (`list[Tensor]`): what [`last_states`] found.
        prompt_SL (`Tensor` `[S, L]`): true, or not 0, at the tokens of the prompt.
    """
    hidden_SLH = only_states(found, prompt_SL).float()
    weight_SL = prompt_SL.to(hidden_SLH.device, hidden_SLH.dtype)
    return (hidden_SLH * weight_SL[..., None]).sum(dim=1) / weight_SL.sum(dim=1, keepdim=True).clamp(min=1)
