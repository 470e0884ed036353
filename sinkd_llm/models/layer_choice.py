"""Which layers of a model a student should have: those that change most what they read, or that its answers need most.

Block Influence (ShortGPT, Men et al., arXiv:2403.03853, eq. 1): 1 minus the mean cosine of what a layer reads and what
it gives, over tokens. A layer that hardly turns its input is dropped first. The greedy choice asks the model instead:
of all layers the one is dropped without which its answers change least, then the next of those that are left.

Shapes: S sequences, L tokens, D hidden size.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.errors import InputError
from sinkd_llm.models.layer_stacks import Kept, first_alone, layer_stacks, layers_of
from sinkd_llm.models.layers import kept_layers, view_of_layers
from sinkd_llm.models.wrappers import unwrap

logger = logging.getLogger(__name__)

EVEN, INFLUENCE, GREEDY, LIST = "even", "influence", "greedy", "list"


@dataclass(frozen=True)
class LayerChoice:
    """
    The layers that a student has of a model, and why.

    Attributes:
        selection (`str`): `"even"`, `"influence"`, `"greedy"` or `"list"`.
        kept (`dict[str, list[int]]`): their indices, for each part of [`~sinkd_llm.models.layer_stacks.layer_stacks`].
        totals (`dict[str, int]`): how many layers the parts have.
        influence (`dict[str, list[float]]`): 1 - cosine of each layer, in [0, 2], where it decided.
        drops (`list[tuple[str, int, float]]`): where answers decided, which layer of which part was dropped, one after
            the other, and how far the answers without it and those before are from the answers of the whole model.
        rows (`int`): how many training rows were looked at.
    """

    selection: str
    kept: dict[str, list[int]]
    totals: dict[str, int]
    influence: dict[str, list[float]] = field(default_factory=dict)
    drops: list[tuple[str, int, float]] = field(default_factory=list)
    rows: int = 0

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds of it."""
        found: dict[str, Any] = {
            "selection": self.selection,
            "kept": {part or "layers": list(kept) for part, kept in self.kept.items()},
            "of": {part or "layers": total for part, total in self.totals.items()},
        }
        if self.rows:
            found["rows"] = self.rows
        if self.influence:
            found["influence"] = {part or "layers": values for part, values in self.influence.items()}
        if self.drops:
            found["drops"] = [{"of": part or "layers", "layer": i, "change": value} for part, i, value in self.drops]
        return {**found, "in_words": self.in_words()}

    def in_words(self) -> str:
        """A line for whoever made the student."""
        parts = [
            f"{'layers' if not part else f'{part} layers'} {', '.join(map(str, kept))} of {self.totals[part]}"
            for part, kept in self.kept.items()
        ]
        return f"The student has the {' and the '.join(parts)}, {self._reason()}."

    def _reason(self) -> str:
        if self.selection == INFLUENCE:
            dropped = sorted(
                (value, part, index)
                for part, values in self.influence.items()
                for index, value in enumerate(values)
                if index not in self.kept[part]
            )
            each = ", ".join(f"{_layer(part, index)} ({value:.2g})" for value, part, index in dropped)
            return (
                f"those that most change what they read, over {self.rows} training rows"
                + f"; dropped, with 1 - cosine: {each}" * bool(dropped)
            )
        if self.selection == GREEDY:
            each = ", ".join(f"{_layer(part, index)} ({value:.2g})" for part, index, value in self.drops)
            return (
                f"those without which the answers to {self.rows} training rows change most"
                + f"; dropped one after the other, with the change of the answers: {each}" * bool(self.drops)
            )
        return "as they were given" if self.selection == LIST else "evenly spaced"


def _layer(part: str, index: int) -> str:
    return f"{part} {index}" if part else str(index)


def choice_of(selection: str, model: Any, kept: Kept) -> LayerChoice:
    """The choice that needs no look at the model: evenly spaced layers, or those of a list."""
    inner = unwrap(model)
    totals = {part: len(layers) for part, layers in layers_of(inner, layer_stacks(inner)).items()}
    return LayerChoice(selection, {part: list(indices) for part, indices in kept.items()}, totals)


def by_influence(model: Any, wanted: Mapping[str, int], read: Callable[[], object], rows: int) -> LayerChoice:
    """
    The layers that most change what they read.

    Args:
        model (`PreTrainedModel` or `PeftModel`): in evaluation mode.
        wanted (`Mapping[str, int]`): how many layers of each part of [`layer_stacks`].
        read (`Callable`): runs the model on prompts, one row a batch and thus without padding.
        rows (`int`): how many these are.

    Raises:
        InputError: if a number is out of range, a layer was not run or gives something else than it reads, or its
            values are not finite.
    """
    layers = layers_of(unwrap(model), layer_stacks(unwrap(model)))
    _check_numbers(wanted, layers)
    influence = influences(layers, read)
    kept = {}
    for part, values in influence.items():
        first = [0] if first_alone(layers[part]) else []
        others = [index for index in range(len(values)) if index not in first]
        # Of equals the earlier one stays.
        best = sorted(others, key=lambda index: (-values[index], index))[: wanted[part] - len(first)]
        kept[part] = sorted(first + best)
    totals = {part: len(stack) for part, stack in layers.items()}
    return LayerChoice(INFLUENCE, kept, totals, influence=influence, rows=rows)


def influences(layers: Mapping[str, nn.ModuleList], read: Callable[[], object]) -> dict[str, list[float]]:
    """
    Block Influence of every layer: 1 - the mean over tokens of the cosine of its input and its output, in [0, 2].

    Args:
        layers (`Mapping[str, nn.ModuleList]`): the layers of each part.
        read (`Callable`): runs them, on sequences without padding.

    Raises:
        InputError: if a layer was not run or gives something else than it reads, or a value is not finite.
    """
    sums: dict[tuple[str, int], tuple[float, int]] = {}
    with ExitStack() as hooks:
        for part, stack in layers.items():
            for index, layer in enumerate(stack):
                hooks.enter_context(_watched(layer, sums, (part, index)))
        with torch.no_grad():
            read()
    found = {}
    for part, stack in layers.items():
        values = []
        for index in range(len(stack)):
            total, count = sums.get((part, index), (0.0, 0))
            if not count:
                raise InputError(
                    f"Layer {_layer(part, index)} does not run on the training rows, so its influence cannot be told; "
                    "set layer_selection to even, or list the layers."
                )
            values.append(1 - total / count)
        found[part] = values
    if any(value != value for values in found.values() for value in values):
        raise InputError(
            "A layer's output on the training rows is NaN or infinite, so its influence cannot be told; check the "
            "model's weights."
        )
    return found


@contextmanager
def _watched(
    layer: nn.Module, sums: dict[tuple[str, int], tuple[float, int]], place: tuple[str, int]
) -> Iterator[None]:
    """Within, each run of a layer adds its cosines to `sums`, and their number."""

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read_SLD, given_SLD = _hidden([*args, kwargs.get("hidden_states")]), _hidden([output])
        if read_SLD is None or given_SLD is None or read_SLD.shape != given_SLD.shape:
            raise InputError(
                f"{type(module).__name__} does not give hidden states of the shape that it reads, so its influence "
                "cannot be told; set layer_selection to greedy or even, or list the layers."
            )
        cosine_SL = torch.cosine_similarity(read_SLD.double(), given_SLD.double(), dim=-1)
        total, count = sums.get(place, (0.0, 0))
        sums[place] = (total + float(cosine_SL.sum()), count + cosine_SL.numel())

    hook = layer.register_forward_hook(look, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _hidden(values: Any) -> Tensor | None:
    """The first hidden states among what a layer reads or gives."""
    for value in values:
        if isinstance(value, tuple | list):
            value = value[0] if value else None
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return None


def by_answers(model: Any, wanted: Mapping[str, int], change: Callable[[Any], float], rows: int) -> LayerChoice:
    """
    The layers that are left when the one is dropped, again and again, without which the answers change least.

    No weight is copied: what is left is looked at as a model around the same weights.

    Args:
        model (`PreTrainedModel`): without an adapter, in evaluation mode; it is not changed.
        wanted (`Mapping[str, int]`): how many layers of each part of [`layer_stacks`].
        change (`Callable[[PreTrainedModel], float]`): how far the answers of such a model are from those of the whole
            one, at least 0.
        rows (`int`): how many rows these answer.

    Raises:
        InputError: if a number is out of range, or no layer can be dropped.
    """
    layers = layers_of(model, layer_stacks(model))
    _check_numbers(wanted, layers)
    kept = {part: list(range(len(stack))) for part, stack in layers.items()}
    held = {part: 0 if first_alone(stack) else -1 for part, stack in layers.items()}
    drops: list[tuple[str, int, float]] = []
    while any(len(kept[part]) > wanted[part] for part in kept):
        found: list[tuple[float, str, int]] = []
        refused: InputError | None = None
        for part in kept:
            for index in kept[part] if len(kept[part]) > wanted[part] else ():
                if index == held[part]:
                    continue
                try:
                    view = view_of_layers(model, {**kept, part: [other for other in kept[part] if other != index]})
                    value = change(view)
                except InputError as error:  # as of layers of several kinds, of which some cannot go
                    refused = error
                    continue
                found.append((value if value == value else float("inf"), part, index))
        if not found:
            raise InputError(
                f"No further layer can be dropped from {type(model).__name__}"
                + (f" ({refused})" if refused is not None else "")
                + "; list the layers, or ask for more."
            )
        value, part, index = min(found, key=lambda one: one[0])
        kept[part].remove(index)
        drops.append((part, index, value))
        left = sum(map(len, kept.values()))
        logger.info("Dropped layer %s: answers change by %.3g; %d layers are left.", _layer(part, index), value, left)
    totals = {part: len(stack) for part, stack in layers.items()}
    return LayerChoice(GREEDY, kept, totals, drops=drops, rows=rows)


def _check_numbers(wanted: Mapping[str, int], layers: Mapping[str, nn.ModuleList]) -> None:
    for part, number in wanted.items():
        kept_layers(number, len(layers[part]), part)
