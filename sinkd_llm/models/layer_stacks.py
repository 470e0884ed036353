"""Where a model keeps its layers, and what its configuration says of each of them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from sinkd_llm.errors import InputError

# What a part's number of layers is called; the first name that a configuration has counts.
_COUNTS = {
    "": ("num_hidden_layers",),
    "encoder": ("encoder_layers", "num_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers"),
}
# Of each part of a model, the indices of some of its layers.
Kept = Mapping[str, Sequence[int]]


def layer_stacks(model: nn.Module) -> dict[str, str]:
    """
    Where the layers of a model are.

    Args:
        model (`PreTrainedModel`): without wrappers.

    Returns:
        `dict[str, str]`: part (`""`, or `"encoder"` and `"decoder"`) to the name of its `ModuleList`, e.g.
        `model.layers`.

    Raises:
        InputError: if a part has no single list of layers.
    """
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


def layers_of(model: nn.Module, stacks: Mapping[str, str]) -> dict[str, nn.ModuleList]:
    """The lists of layers that [`layer_stacks`] found, by part."""
    found = {}
    for part, name in stacks.items():
        layers = model.get_submodule(name)
        assert isinstance(layers, nn.ModuleList)
        found[part] = layers
    return found


def count_of(config: Any, part: str) -> int:
    """How many layers a part has, by the configuration."""
    count: int = getattr(config, str(_count_name(config, part)))
    return count


def _count_name(config: Any, part: str) -> str | None:
    return next((name for name in _COUNTS[part] if isinstance(getattr(config, name, None), int)), None)


@contextmanager
def short_lists(model: nn.Module, stacks: Mapping[str, str], kept: Kept) -> Iterator[None]:
    """Within, the model has the kept layers alone; then, also after an error, its own lists again, untouched."""
    whole = layers_of(model, stacks)
    try:
        for part, name in stacks.items():
            put(model, name, nn.ModuleList([whole[part][index] for index in kept[part]]))
        yield
    finally:
        for part, name in stacks.items():
            put(model, name, whole[part])


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of the one of this name."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def shorten_config(config: Any, kept: Kept, totals: Mapping[str, int]) -> None:
    """Makes `config` describe the kept layers: their numbers and every list with one entry a layer."""
    for part, indices in kept.items():
        if not part:
            _shorten_lists(config, indices, totals[part])
        setattr(config, str(_count_name(config, part)), len(indices))


def _shorten_lists(config: Any, kept: Sequence[int], total: int) -> None:
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


def first_alone(layers: nn.ModuleList) -> bool:
    """
    Whether the first layer has weights that no other layer has alike, so that it has to stay the first one.

    In T5 it holds the position biases of all layers; ModernBERT's lacks a norm that all others have.
    """
    signatures = [
        {(name, tuple(weight.shape)) for name, weight in layer.named_parameters(remove_duplicate=False)}
        for layer in layers
    ]
    return len(signatures) > 1 and signatures[0] not in signatures[1:]
