"""Models whose weights are spread over processes: DeepSpeed's stage 3 and FSDP2."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.models.quantisation import is_quantised

_FSDP_RANK_0_ONLY = "FSDP_CPU_RAM_EFFICIENT_LOADING"
_CPU = torch.device("cpu")


@contextlib.contextmanager
def whole_weights() -> Iterator[None]:
    """
    Within, models are built and loaded with all weights in every process.

    Under DeepSpeed's stage 3 Transformers partitions a model while it loads it, and under FSDP it may load it in the
    first process alone. Such a model cannot be cut, merged with an adapter, or scored before training.
    """
    from transformers.integrations import deepspeed as integration

    # There is a public setter for this reference, but no getter.
    reference = getattr(integration, "_hf_deepspeed_config_weak_ref", None)
    settings = reference() if reference is not None else None
    first_only = os.environ.get(_FSDP_RANK_0_ONLY)
    integration.unset_hf_deepspeed_config()
    if first_only is not None:
        os.environ[_FSDP_RANK_0_ONLY] = "false"
    try:
        yield
    finally:
        if settings is not None:
            integration.set_hf_deepspeed_config(settings)
        if first_only is not None:
            os.environ[_FSDP_RANK_0_ONLY] = first_only


def waits_for_weights() -> bool:
    """Whether this process's models are empty until the first process sends their weights (FSDP's frugal loading)."""
    from transformers.integrations.fsdp import is_fsdp_enabled

    return bool(is_fsdp_enabled()) and int(os.environ.get("LOCAL_RANK", "-1")) > 0


def is_partitioned(model: nn.Module) -> bool:
    """Whether this process holds only a part of some parameter."""
    return any(is_part(parameter) for parameter in model.parameters())


def is_part(weight: Any) -> bool:
    """Whether this process holds only a part of a weight."""
    return _of_deepspeed(weight) or _of_fsdp(weight)


def _of_deepspeed(weight: Any) -> bool:
    return hasattr(weight, "ds_id")  # stage 3 leaves an empty tensor, and the truth in attributes beside it


def _of_fsdp(weight: Any) -> bool:
    return hasattr(weight, "full_tensor")  # a DTensor of FSDP2


def whole_shape(weight: Any) -> tuple[int, ...]:
    """The shape of a weight in all processes together."""
    return tuple(weight.ds_shape if _of_deepspeed(weight) else weight.shape)


def whole_value(value: Any) -> Any:
    """A number that may be spread, as the norm of gradients is under FSDP2, as an ordinary one. All processes ask."""
    return value.full_tensor() if _of_fsdp(value) else value


def held_part(weight: Any) -> Tensor | None:
    """
    What this process holds of a weight, without its gradient: all of it, unless [`is_part`].

    Args:
        weight (`Tensor`): a parameter, a buffer, or a norm over parameters that are spread.

    Returns:
        `Tensor`, or `None` if DeepSpeed has handed this process's part to somebody else.
    """
    if _of_deepspeed(weight):
        part: Tensor | None = getattr(weight, "ds_tensor", None)
        return part.detach() if part is not None else None
    local: Tensor = weight.detach().to_local() if _of_fsdp(weight) else weight.detach()
    return local


def gathered_weights(model: Any, trainable_only: bool = False) -> dict[str, Tensor] | None:
    """
    The whole weights of a partitioned model, in CPU memory. All processes must call it.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model.
        trainable_only (`bool`, *optional*, defaults to `False`): leave out what is frozen, apart from the embeddings,
            which an adapter may carry.

    Returns:
        `dict[str, Tensor]`: names as in `state_dict()`, tied weights as one tensor; empty in all processes but the
        first. `None` if the model is not partitioned: it has its own weights then.
    """
    if not is_partitioned(model):
        return None
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    kept = {id(parameter) for end in ends if end is not None for parameter in end.parameters()}
    weights: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if trainable_only and not value.requires_grad and id(value) not in kept:
            continue
        if id(value) not in seen:
            seen[id(value)] = _whole(value, first)
        weights[name] = seen[id(value)]
    return weights if first else {}


def whole_frozen(weight: Tensor) -> Tensor:
    """A weight, with its graph, if all of it is here; else gathered, without gradient. All processes ask."""
    return _whole(weight, True, weight.device) if is_part(weight) else weight


def _whole(value: Any, keep: bool, place: torch.device = _CPU) -> Tensor:
    if _of_fsdp(value):
        whole = value.detach().full_tensor()
        return whole.to(place) if keep else torch.empty(0)
    if _of_deepspeed(value):
        import deepspeed

        with deepspeed.zero.GatheredParameters([value]):
            return value.detach().to(place, copy=True) if keep else torch.empty(0)
    return value.detach().to(place)


@contextlib.contextmanager
def on_device(model: Any, device: torch.device) -> Iterator[None]:
    """
    Within, a model that waits in CPU memory to be sharded is on `device`.

    Quantised and partitioned models have their place already.
    """
    if is_partitioned(model) or is_quantised(model):
        yield
        return
    before = next(model.parameters()).device
    model.to(device)
    try:
        yield
    finally:
        model.to(before)
