"""The Transformers model inside its wrappers, and what its forward takes."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from sinkd_llm.errors import InputError, shown


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


def check_is_model(model: Any) -> None:
    """
    Makes sure that what was given as a model is one in memory.

    Raises:
        InputError: for a name, a path or anything else.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is {shown(model)}, which is no model in memory; give one, such as load_model(name).")


def is_compiled(model: Any) -> bool:
    """Whether `torch.compile` has wrapped the model, or what is inside another wrapper."""
    while model is not None:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            return True
        model = getattr(model, "module", None)
    return False


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at, or changes, what a module reads or gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


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


def keeps_state(model: nn.Module) -> bool:
    """Whether a model keeps a recurrent state of what it has read, beside keys and values or instead of them."""
    return bool(getattr(unwrap(model), "_is_stateful", False))
