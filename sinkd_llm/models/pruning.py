"""A shallower student from the layers of a model."""

import copy
from typing import Any

import torch
from torch import nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.architectures import unwrap


def kept_layers(num_layers: int, total: int) -> list[int]:
    """
    Indices of `num_layers` evenly spaced layers out of `total`, the first and the last among them.

    Layer i of the student is layer `round(i * (total - 1) / (num_layers - 1))` of the model, halves
    rounded up. A single layer is the first.

    Raises:
        InputError: if `num_layers` is not in `[1, total]`.
    """
    if not 1 <= num_layers <= total:
        raise InputError(
            f"Cannot take {num_layers} layers from a model that has {total}. Give a number from 1 to {total}."
        )
    if num_layers == 1:
        return [0]
    # Whole-number arithmetic: floating point may fall on either side of a half.
    steps = num_layers - 1
    return [(2 * i * (total - 1) + steps) // (2 * steps) for i in range(num_layers)]


def select_layers(model: Any, num_layers: int) -> Any:
    """
    A student made of `num_layers` evenly spaced layers of a decoder-only `model`.

    Embeddings, final norm and head are kept, so is the width. The student has its own copy of every
    weight; the dropped layers are never copied. An adapter on `model` is folded into the copy.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model to take layers from; it is not changed.
        num_layers (`int`): in `[1, layers of the model]`; which ones: [`kept_layers`].

    Returns:
        `PreTrainedModel`: an ordinary model with a configuration of its own. It has no
        `name_or_path`, because no name gives these weights again.

    Raises:
        InputError: if `num_layers` is out of range, or the architecture cannot be cut this way.
    """
    source = unwrap(model)
    stack_name = _layer_stack(source)
    stack = source.get_submodule(stack_name)
    assert isinstance(stack, nn.ModuleList)
    kept = kept_layers(num_layers, len(stack))

    parent_name, _, attribute = stack_name.rpartition(".")
    parent = source.get_submodule(parent_name)
    # The short list stands in while copying, so that the dropped layers take no memory.
    setattr(parent, attribute, nn.ModuleList([stack[index] for index in kept]))
    try:
        student = copy.deepcopy(model)
    finally:
        setattr(parent, attribute, stack)
    if student_is_wrapped := unwrap(student) is not student:
        student = student.merge_and_unload()

    _shorten_config(student.config, kept, len(stack))
    for position, layer in enumerate(student.get_submodule(stack_name)):
        for module in layer.modules():
            for name in ("layer_idx", "layer_id"):  # the place in the key-value cache
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, position)
    if student_is_wrapped:
        student.requires_grad_(True)
    _check_rebuilds(student)
    student.sinkd_source = None
    student.name_or_path = student.config._name_or_path = ""
    return student


def _layer_stack(model: nn.Module) -> str:
    """Name of the `ModuleList` with the model's layers, e.g. `model.layers` or `transformer.h`."""
    config: Any = getattr(model, "config", None)
    total = getattr(config, "num_hidden_layers", None)
    if total and not getattr(config, "is_encoder_decoder", False):
        # Parents come before their children, so lists inside a layer (experts) are not met first.
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == total:
                return name
    raise InputError(
        f"Cannot take layers from {type(model).__name__}: it has no single list of layers. Depth "
        "pruning is for decoder-only language models."
    )


def _shorten_config(config: Any, kept: list[int], total: int) -> None:
    """Makes `config` describe the kept layers: their number and every list with one entry a layer."""
    for name, value in list(vars(config).items()):
        if name == "mlp_only_layers":  # lists layers by index
            setattr(config, name, [new for new, old in enumerate(kept) if old in value])
        elif (
            isinstance(value, list | tuple)
            and len(value) == total
            and not name.endswith(("_token_id", "_token_ids"))
            and name not in ("architectures", "attention_types")
        ):
            setattr(config, name, [value[index] for index in kept])
    if hasattr(config, "attention_types"):  # GPT-Neo: [[pattern, repetitions], …]
        config.attention_types = [[list(config.attention_layers), 1]]
    config.num_hidden_layers = len(kept)


def _check_rebuilds(student: Any) -> None:
    """Makes sure that a model built from the student's configuration has the student's weights."""
    with torch.device("meta"):
        rebuilt = type(student)(copy.deepcopy(student.config))
    ours: dict[str, Any] = {name: parameter.shape for name, parameter in student.named_parameters()}
    theirs: dict[str, Any] = {name: parameter.shape for name, parameter in rebuilt.named_parameters()}
    if getattr(student, "is_quantized", False):  # packed weights have other shapes
        ours, theirs = dict.fromkeys(ours), dict.fromkeys(theirs)
    if ours != theirs:
        differing = sorted(ours.items() ^ theirs.items())
        raise InputError(
            f"Cannot take layers from {type(student).__name__}: its layers are not of one kind, and "
            f"its configuration cannot say which kinds remain ({differing[0][0]} differs)."
        )
