"""A shallower student from the layers of a model."""

import copy
from typing import Any

import torch
from torch import nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.architectures import unwrap


def kept_layers(num_layers: int, total: int, part: str = "") -> list[int]:
    """
    Indices of `num_layers` evenly spaced layers out of `total`, the first and the last among them.

    Layer i of the student is layer `round(i * (total - 1) / (num_layers - 1))` of the model, halves
    rounded up. A single layer is the first. The first layer always stays: in T5 it holds the position biases of
    all of them. `part` names the layers in the error.

    Raises:
        InputError: if `num_layers` is not in `[1, total]`.
    """
    if not 1 <= num_layers <= total:
        raise InputError(
            f"Cannot take {num_layers} {f'{part} ' if part else ''}layers from a model that has {total}. "
            f"Give a number from 1 to {total}."
        )
    if num_layers == 1:
        return [0]
    # Whole-number arithmetic: floating point may fall on either side of a half.
    steps = num_layers - 1
    return [(2 * i * (total - 1) + steps) // (2 * steps) for i in range(num_layers)]


def select_layers(model: Any, num_layers: int, num_decoder_layers: int | None = None) -> Any:
    """
    A student made of evenly spaced layers of `model`.

    Embeddings, final norm and head are kept, so is the width. The student has its own copy of every
    weight; the dropped layers are never copied. An adapter on `model` is folded into the copy.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model to take layers from; it is not changed.
        num_layers (`int`): in `[1, layers of the model]`; which ones: [`kept_layers`]. Of an encoder-decoder,
            the layers of its encoder.
        num_decoder_layers (`int`, *optional*, defaults to `num_layers`): layers of its decoder.

    Returns:
        `PreTrainedModel`: an ordinary model with a configuration of its own. It has no
        `name_or_path`, because no name gives these weights again.

    Raises:
        InputError: if a number is out of range, a model without a decoder of its own is given
            `num_decoder_layers`, or the architecture cannot be cut this way.
    """
    source = unwrap(model)
    stacks = _layer_stacks(source)
    if num_decoder_layers is not None and len(stacks) == 1:
        raise InputError(
            f"{type(source).__name__} has one stack of layers, so the number of decoder layers means nothing; drop it."
        )
    wanted = (num_layers, num_layers if num_decoder_layers is None else num_decoder_layers)
    kept = {
        name: kept_layers(number, len(source.get_submodule(name)), part)
        for (part, name), number in zip(stacks.items(), wanted, strict=False)
    }
    originals = {name: source.get_submodule(name) for name in kept}
    # The short lists stand in while copying, so that the dropped layers take no memory.
    for name, indices in kept.items():
        _put(source, name, nn.ModuleList([originals[name][index] for index in indices]))
    try:
        student = copy.deepcopy(model)
    finally:
        for name, original in originals.items():
            _put(source, name, original)
    if student_is_wrapped := unwrap(student) is not student:
        student = student.merge_and_unload()

    for part, name in stacks.items():
        _shorten_config(student.config, part, kept[name], len(originals[name]))
        for position, layer in enumerate(student.get_submodule(name)):
            for module in layer.modules():
                for attribute in ("layer_idx", "layer_id"):  # the place in the key-value cache
                    if isinstance(getattr(module, attribute, None), int):
                        setattr(module, attribute, position)
    _shorten_copies(student)
    if student_is_wrapped:
        student.requires_grad_(True)
    _check_rebuilds(student)
    student.sinkd_source = None
    student.name_or_path = student.config._name_or_path = ""
    return student


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


# What a part's number of layers is called; the first name that a configuration has counts.
_COUNTS = {
    "": ("num_hidden_layers",),
    "encoder": ("encoder_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}


def _count_name(config: Any, part: str) -> str | None:
    return next((name for name in _COUNTS[part] if isinstance(getattr(config, name, None), int)), None)


def _layer_stacks(model: nn.Module) -> dict[str, str]:
    """Part (`""`, or `"encoder"` and `"decoder"`) to the name of its `ModuleList`, e.g. `model.layers`."""
    config: Any = getattr(model, "config", None)
    parts = ("encoder", "decoder") if getattr(config, "is_encoder_decoder", False) else ("",)
    stacks = {}
    for part in parts:
        count = _count_name(config, part)
        total = getattr(config, count) if count else None
        # Parents come before their children, so lists inside a layer (experts, T5's sublayers) are not met first.
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) == total and (not part or part in name.split(".")):
                stacks[part] = name
                break
    if len(stacks) < len(parts):
        raise InputError(
            f"Cannot take layers from {type(model).__name__}: it has no single list of layers"
            + (" in its encoder and in its decoder." if len(parts) > 1 else ".")
        )
    return stacks


def _shorten_config(config: Any, part: str, kept: list[int], total: int) -> None:
    """Makes `config` describe the kept layers: their number and every list with one entry a layer."""
    for name, value in list(vars(config).items()) if not part else []:
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
    setattr(config, str(_count_name(config, part)), len(kept))


def _shorten_copies(student: Any) -> None:
    """T5's encoder and decoder keep copies of the configuration, from which they size their caches."""
    for part in ("encoder", "decoder"):
        module = getattr(student, part, None)
        copied = getattr(module, "config", None)
        if copied is None or copied is student.config:
            continue
        number = getattr(student.config, str(_count_name(student.config, part)))
        for name in ("num_layers", "num_decoder_layers"):
            if hasattr(copied, name):
                setattr(copied, name, number)


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
