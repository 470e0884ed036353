"""What a PEFT model is: its base's weights, which name gives them again, and what its adapter does to a save."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.names import WEIGHTS, WEIGHTS_INDEX, ModelSource, resolve_model_source, stored_file
from sinkd_llm.models.origin import Origin, name_of, note_held, origin_of
from sinkd_llm.models.partitioning import is_partitioned
from sinkd_llm.models.wrappers import unwrap

# Adapters that Transformers itself loads from a folder as PEFT wrote them: tests/models/test_adapters.py holds it.
# The others share weights between their layers, or keep something under a name that Transformers does not know.
_LOADED_BY_TRANSFORMERS = {
    *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "LN_TUNING", "GRALORA", "DELORA"),
    "TRAINABLE_TOKENS",
}
# Initialisations of LoRA that leave the base as it is; PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA take a part out of it.
_LEAVES_BASE = ("gaussian", "eva", "orthogonal")


def is_switched_off(adapted: Any) -> bool:
    """Whether the adapters of a PEFT model change nothing that it computes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    return bool(layers) and all(layer.disable_adapters for layer in layers)


def peft_type_of(adapted: Any) -> str:
    """PEFT's name for the kind of adapter, for messages."""
    config = next(iter(adapted.peft_config.values()))
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    return "DoRA" if getattr(config, "use_dora", False) else kind


def loads_merged_only(adapted: Any) -> bool:
    """Whether Transformers could not load this adapter beside its base: it is saved folded in."""
    from peft.tuners.lora import LoraLayer

    config = next(iter(adapted.peft_config.values()))
    if str(getattr(config.peft_type, "value", config.peft_type)) not in _LOADED_BY_TRANSFORMERS:
        return True
    # DoRA and its like keep more than the two matrices.
    return any(isinstance(module, LoraLayer) and module.lora_variant for module in unwrap(adapted).modules())


def changes_base(adapted: Any) -> bool:
    """Whether putting the adapter on has changed its base, as PiSSA does: no name gives that base again."""
    config = next(iter(adapted.peft_config.values()))
    start = getattr(config, "init_lora_weights", True)
    return isinstance(start, str) and start.lower() not in _LEAVES_BASE


def plain_name(name: str) -> str:
    """A module's name before PEFT put its layers around it."""
    return ".".join(word for word in name.split(".") if word not in ("base_layer", "original_module", "token_adapter"))


def base_weights(adapted: Any, state_dict: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """
    The weights of an adapter's base, under the names that they had before PEFT put its layers around them.

    Args:
        adapted (`PeftModel`): with any number of adapters.
        state_dict (`Mapping`, *optional*): the gathered weights of `adapted`, where it holds only a part of them.
    """
    base = unwrap(adapted)
    if state_dict is None:
        weights = base.state_dict()
    else:
        weights = {name.removeprefix("base_model.model."): value for name, value in state_dict.items()}
    kept = _kept_below(base)
    return {plain_name(name) if kept else name: value for name, value in weights.items() if _is_kept(name, kept)}


def adapter_parameters(model: Any) -> set[int]:
    """
    The identities of the parameters that a PEFT model has beside its base's: the matrices of its adapter, and the
    copies of what is trained whole. A model without an adapter has none.

    Args:
        model (`nn.Module`): possibly wrapped.
    """
    base = unwrap(model)
    kept = _kept_below(base) if base is not model else {}
    return {id(parameter) for name, parameter in base.named_parameters() if not _is_kept(name, kept)}


def _kept_below(base: Any) -> dict[str, tuple[str, ...]]:
    """The modules that PEFT put around others, and the names of their children that belong to the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kept: dict[str, tuple[str, ...]] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            kept[name] = ("base_layer",)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            kept[name] = ("original_module", "token_adapter")
    return kept


def _is_kept(name: str, kept: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a weight belongs to the base, by the name that it has since PEFT put its layers around it."""
    words = name.split(".")
    below = ((".".join(words[:i]), words[i]) for i in range(1, len(words)))
    return all(child in kept.get(parent, (child,)) for parent, child in below)


def base_by_name(model: Any) -> bool:
    """Whether `model` is an adapter that is saved alone, because its base can be had by name again."""
    from peft import PeftModel

    return isinstance(model, PeftModel) and base_source(model) is not None


def base_source(model: Any) -> ModelSource | None:
    """
    The hub repository or folder that gives the weights of an adapter's base again, or `None`.

    The base is compared with what lies there, so one that was resized or trained since has no name. A base whose
    weights are spread over processes cannot be: what [`settle_base`] found before counts.

    Args:
        model (`PeftModel`): the adapter on its base.
    """
    base = model.get_base_model()
    if changes_base(model) or loads_merged_only(model):
        return None
    origin = origin_of(base) or Origin(None)
    source, name = origin.source, name_of(base)
    if source is None and name:  # loaded with Transformers itself
        try:
            source = resolve_model_source(name)
        except InputError:
            return None
    # Plain Transformers code knows no bundled names, and does not read a GGUF file by this path.
    if source is None or source.kind not in ("hub", "folder"):
        return None
    if is_partitioned(base):
        return source if origin.held_before_spreading else None
    return source if _holds(source, base_weights(model)) else None


def settle_base(model: Any) -> None:
    """Notes whether an adapter's base can be had by name, before its weights are spread over processes."""
    from peft import PeftModel

    if isinstance(model, PeftModel) and not is_partitioned(model):
        note_held(model.get_base_model(), base_source(model) is not None)


def _holds(source: ModelSource, weights: dict[str, Tensor]) -> bool:
    """
    Whether the files of `source` hold these weights.

    Weights that are stored under another name, packed, or not on this machine are left to the comparison of outputs
    that follows a save.
    """
    for name, shape, read in _stored(source):
        weight = next((weights[other] for other in _names(name, weights) if other in weights), None)
        if weight is None or weight.is_meta or not weight.is_floating_point():
            continue
        if tuple(weight.shape) != shape:
            return False
        found = read()
        if found.is_floating_point() and not torch.equal(found.to(weight.dtype), weight.detach().cpu()):
            return False
    return True


def _names(stored: str, weights: dict[str, Tensor]) -> Iterator[str]:
    """A stored weight's name in the model: checkpoints of a bare model lack the first part of it."""
    yield stored
    for prefix in {name.split(".", 1)[0] for name in weights}:
        yield f"{prefix}.{stored}"


def _stored(source: ModelSource) -> Iterator[tuple[str, tuple[int, ...], Callable[[], Tensor]]]:
    """Name, shape and reader of every weight in the files of `source` that are on this machine."""
    from safetensors import safe_open

    for file in _files(source):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                shape = tuple(opened.get_slice(name).get_shape())
                yield name, shape, functools.partial(opened.get_tensor, name)


def _files(source: ModelSource) -> list[Path]:
    whole, index = (stored_file(source, name) for name in (WEIGHTS, WEIGHTS_INDEX))
    if whole is not None:
        return [whole]
    if index is None:
        return []
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [file for file in (stored_file(source, shard) for shard in shards) if file is not None]
