"""What a PEFT model is: its base's own weights, and what its adapter does to loading and saving."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sinkd_llm.models.kinds import unwrap

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
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    base = unwrap(adapted)
    if state_dict is None:
        weights = base.state_dict()
    else:
        weights = {name.removeprefix("base_model.model."): value for name, value in state_dict.items()}
    # Below these modules only the named children belong to the base.
    kept_below: dict[str, tuple[str, ...]] = {}
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            kept_below[name] = ("base_layer",)
        elif isinstance(module, AuxiliaryTrainingWrapper):
            kept_below[name] = ("original_module", "token_adapter")

    def belongs(name: str) -> bool:
        words = name.split(".")
        below = ((".".join(words[:i]), words[i]) for i in range(1, len(words)))
        return all(child in kept_below.get(parent, (child,)) for parent, child in below)

    return {plain_name(name) if kept_below else name: value for name, value in weights.items() if belongs(name)}
