"""A shallower student from the layers of a model."""

import copy
import json
import logging
import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from sinkd_llm.errors import InputError, first_line, shown
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.models.adapter_checks import refuse_hidden_adapter
from sinkd_llm.models.adapter_facts import is_switched_off
from sinkd_llm.models.layer_stacks import (
    Kept,
    count_of,
    first_alone,
    layer_stacks,
    layers_of,
    put,
    short_lists,
    shorten_config,
)
from sinkd_llm.models.origin import new_modules_of, set_origin
from sinkd_llm.models.outputs import probe_outputs
from sinkd_llm.models.quantisation import is_quantised
from sinkd_llm.models.wrappers import check_is_model, unwrap

logger = logging.getLogger(__name__)

# How many layers, or which.
Layers = TypeVar("Layers", int, Sequence[int], int | Sequence[int])


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


def select_layers(
    model: Any, num_layers: int | Sequence[int], num_decoder_layers: int | Sequence[int] | None = None
) -> Any:
    """
    A student made of some layers of `model`.

    Embeddings, final norm and head are kept, so is the width. The student has its own copy of every
    weight; the dropped layers are never copied. An adapter on `model` is folded into the copy, or left out of it where
    it is switched off. The student is built
    from its own configuration around these weights, as it will be when it is loaded: what a layer computes from its
    index (DiffLlama's lambda, GPT-2's scale by the inverse of it) follows its new place.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model to take layers from; it is not changed.
        num_layers (`int` or sequence of `int`): how many, in `[1, layers of the model]`, evenly spaced ones, see
            [`kept_layers`]; or the indices of the layers themselves, from 0, in their order. Of an encoder-decoder,
            the layers of its encoder. Whole numbers may be of any type (NumPy's, a tensor), lists as well.
        num_decoder_layers (`int` or sequence of `int`, *optional*, defaults to `num_layers`): the same of its decoder.

    Returns:
        `PreTrainedModel`: an ordinary model with a configuration of its own. It has no
        `name_or_path`, because no name gives these weights again.

    Raises:
        InputError: if `model` is none, a number is not whole, a number or an index is out of range, indices are not in
            their order or leave out a first layer that has to stay, a model without a decoder of its own is given
            `num_decoder_layers`, or the model cannot be cut this way.
    """
    check_is_model(model)
    layers_asked = _whole_numbers(num_layers, "num_layers")
    decoder_asked = None if num_decoder_layers is None else _whole_numbers(num_decoder_layers, "num_decoder_layers")
    source = unwrap(model)
    refuse_hidden_adapter(source)
    stacks = layer_stacks(source)
    layers = layers_of(source, stacks)
    kept = {
        part: kept_layers(these, len(layers[part]), part)
        if isinstance(these, int)
        else _checked_indices(these, layers[part], part)
        for part, these in by_part(source, stacks, layers_asked, decoder_asked).items()
    }
    # The short lists stand in while copying, so that the dropped layers take no memory.
    with short_lists(source, stacks, kept):
        student = copy.deepcopy(model)
    if unwrap(student) is not student:
        student = student.unload() if is_switched_off(student) else student.merge_and_unload()

    shorten_config(student.config, kept, {part: len(layers[part]) for part in stacks})
    student = rebuilt(student)
    if not any(weight.requires_grad for weight in student.parameters()):  # of an adapter's base, a frozen teacher
        student.requires_grad_(True)
    _check_runs(student)
    set_origin(student, None, new_modules_of(source))
    return student


def _whole_numbers(given: Any, argument: str) -> int | list[int]:
    """How many layers, or which, as Python's own numbers, whatever holds them."""
    plain = given.tolist() if hasattr(given, "tolist") else given
    several = isinstance(plain, Sequence) and not isinstance(plain, str | bytes | bytearray)
    try:
        return [_whole_number(value) for value in plain] if several else _whole_number(plain)
    except TypeError:
        raise InputError(
            f"{argument} is {shown(given)}; give a whole number (how many layers), or a list of whole numbers (which, "
            "from 0)."
        ) from None


def _whole_number(value: Any) -> int:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def by_part(
    model: nn.Module, stacks: Mapping[str, str], layers: Layers, decoder_layers: Layers | None = None
) -> dict[str, Layers]:
    """
    What is asked for of each part of a model.

    Raises:
        InputError: if something is asked for of a decoder, and the model has no decoder of its own.
    """
    if decoder_layers is not None and len(stacks) == 1:
        raise InputError(
            f"{type(model).__name__} has one stack of layers, so that nothing can be said of a decoder's: leave "
            "student_decoder_layers out, and a list for the decoder (layer_selection; num_decoder_layers of "
            "select_layers)."
        )
    both: tuple[Layers, Layers] = (layers, layers if decoder_layers is None else decoder_layers)
    return dict(zip(stacks, both, strict=False))


def _checked_indices(indices: Sequence[int], layers: nn.ModuleList, part: str) -> list[int]:
    """The indices of layers as they were given, if they are some."""
    of = f"the {part}'s layers" if part else "the layers"
    total = len(layers)
    if not indices:
        raise InputError(f"No index of {of} is given; give at least one from 0 to {total - 1}.")
    for place, index in enumerate(indices):
        if not 0 <= index < total:
            raise InputError(
                f"The index {shown(index)} of {of} to keep is none of this model's, which has {total}: give whole "
                f"numbers from 0 to {total - 1}."
            )
        if place and index <= indices[place - 1]:
            said = "is given twice" if index in indices[:place] else f"stands after {indices[place - 1]}"
            raise InputError(
                f"The index {index} of {of} to keep {said}; give each layer once, in the order that the layers have "
                f"in the model: {', '.join(map(str, sorted(set(indices))))}."
            )
    if indices[0] != 0 and first_alone(layers):
        raise InputError(
            f"{', '.join(map(str, indices))} of {of} leave out layer 0, which has weights that no other layer has "
            "(T5's holds the position biases of all layers) and has to stay; add 0."
        )
    return list(indices)


def view_of_layers(model: Any, kept: Kept) -> Any:
    """
    The student that [`select_layers`] would make, around the very weights of `model`, to look at what it computes.

    Args:
        model (`PreTrainedModel`): without an adapter; it is not changed.
        kept (`Mapping[str, Sequence[int]]`): the indices of its layers, for each part of [`layer_stacks`].

    Returns:
        `PreTrainedModel`: it shares every weight with `model`, in evaluation mode. Do not train it.

    Raises:
        InputError: if the model cannot be cut this way.
    """
    stacks = layer_stacks(model)
    totals = {part: len(layers) for part, layers in layers_of(model, stacks).items()}
    config = copy.deepcopy(model.config)
    shorten_config(config, kept, totals)
    with short_lists(model, stacks, kept):
        return rebuilt(model, config).eval()


def attention_of(model: Any) -> str | None:
    """The name of the kernel of a model's attention, such as `"sdpa"`, which its configuration is not saved with."""
    name: str | None = model.config._attn_implementation
    return name


def rebuilt(model: Any, config: Any = None) -> Any:
    """
    `model` as its configuration alone describes it, around the very same weights.

    Args:
        model (`PreTrainedModel`): its weights, packed ones too, are those of the result.
        config (`PretrainedConfig`, *optional*): the configuration, where it is not the model's own.

    Raises:
        InputError: if a model of this configuration has other weights.
    """
    from accelerate import init_empty_weights
    from accelerate.hooks import add_hook_to_module
    from transformers.initialization import no_init_weights

    cls, on_meta = type(model), all(parameter.is_meta for parameter in model.parameters())
    # As from its file, so that what does not survive there does not survive here.
    config = model.config if config is None else config
    config = type(config).from_dict(json.loads(json.dumps(config.to_dict(), default=str)))
    config._attn_implementation = attention_of(model)
    try:
        with torch.device("meta") if on_meta else init_empty_weights(include_buffers=False), no_init_weights():
            fresh = cls._from_config(config, dtype=model.dtype)
    except Exception as error:  # whatever a class raises that is not made of a configuration alone
        raise InputError(
            f"Cannot take layers from {cls.__name__}: it cannot be built again from its configuration ({error})."
        ) from error
    _check_same_weights(model, fresh)
    saved = fresh.state_dict().keys()
    for name, module in model.named_modules(remove_duplicate=False):
        twin = fresh.get_submodule(name)
        if type(module) is not type(twin) and module is not model and next(module.parameters(False), None) is not None:
            put(fresh, name, module)  # a layer of a quantisation
            continue
        for key in module._parameters:
            twin._parameters[key] = module._parameters[key]
        for key, buffer in twin._buffers.items():
            ours = module._buffers.get(key)
            if f"{name}.{key}".lstrip(".") in saved:
                twin._buffers[key] = ours
            elif buffer is not None and ours is not None:
                twin._buffers[key] = buffer.to(ours.device)
        if (hook := getattr(module, "_hf_hook", None)) is not None:  # accelerate's, of a model on several devices
            add_hook_to_module(twin, hook)
    _tie(fresh)
    for key, value in vars(model).items():
        if key not in vars(fresh):  # how it was quantised, where it lies
            setattr(fresh, key, value)
    if getattr(model, "generation_config", None) is not None:
        fresh.generation_config = model.generation_config
    return fresh.train(model.training)


def _check_same_weights(model: Any, fresh: Any) -> None:
    ours: dict[str, Any] = {name: weight.shape for name, weight in model.named_parameters(remove_duplicate=False)}
    theirs: dict[str, Any] = {name: weight.shape for name, weight in fresh.named_parameters(remove_duplicate=False)}
    if is_quantised(model):  # packed weights have other shapes
        ours, theirs = dict.fromkeys(ours), dict.fromkeys(theirs)
    if ours != theirs:
        differing = sorted(ours.items() ^ theirs.items())
        raise InputError(
            f"Cannot take layers from {type(model).__name__}: its layers are not of one kind, and "
            f"its configuration cannot say which kinds remain ({differing[0][0]} differs)."
        )


def _tie(model: Any) -> None:
    """Ties what the configuration ties, as loading does."""
    before = dict(model.named_parameters(remove_duplicate=False))
    model.tie_weights()
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight is not before[name] and not weight.is_meta and not torch.equal(weight, before[name]):
            raise InputError(
                f"The configuration of {type(model).__name__} ties {name} to another weight, but they differ, so one "
                "of them would be lost when it is saved; set config.tie_word_embeddings to False first."
            )


def _check_runs(student: Any) -> None:
    """
    Makes sure that the student computes something, and that an encoder-decoder can generate.

    Transformers sizes the cache of T5 by the number of encoder layers, which is too few for a decoder with more; such
    a student generates without one.
    """
    if any(weight.is_meta for weight in student.parameters()) or is_quantised(student):
        return  # the forward of a quantised model may repack its weights for good
    try:
        probe_outputs(student)
    except Exception as error:  # whatever a model raises whose layers need each other
        raise InputError(
            f"Cannot take layers from {type(student).__name__}: without the others the kept ones do not run "
            f"({type(error).__name__}: {error}). Take another number of layers."
        ) from error
    if not getattr(student.config, "is_encoder_decoder", False):
        return
    ids = torch.zeros(1, 1, dtype=torch.long, device=student.get_input_embeddings().weight.device)
    settings = student.generation_config
    for use_cache in (True, False):
        try:
            student.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, use_cache=use_cache, num_beams=1
            )
            break
        except Exception as error:  # whatever Transformers raises where a setting is missing
            if is_memory_full(error):
                raise
            if not (use_cache and isinstance(error, IndexError | KeyError)):
                raise InputError(
                    f"Cannot take layers from {type(student).__name__}: it cannot generate ({first_line(error)}). Set "
                    "what is missing in the model's config and in its generation_config; T5's decoder_start_token_id "
                    "is its pad_token_id."
                ) from error
            logger.warning(
                "%s of %d encoder and %d decoder layers generates without a cache, slower: Transformers builds one "
                "for the encoder's number of layers.",
                type(student).__name__,
                count_of(student.config, "encoder"),
                count_of(student.config, "decoder"),
            )
            settings.use_cache = False
