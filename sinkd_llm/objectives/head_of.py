"""Logits that are not there yet: hidden states and the head that would make logits of them.

Shape suffixes: N supervised tokens, V vocabulary, H features of a hidden state, W wanted ids, w ids of a tile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite

import torch
from torch import Tensor

from sinkd_llm.optimal_transport.precision import full_precision


@dataclass(frozen=True, eq=False)
class HeadOf:
    """
    The logits `cap * tanh(scale * (hidden @ weight.T + bias) / cap)`; without a cap, `scale` times the product.

    With it the objective needs no tensor `[N, V]`, see [`~sinkd_llm.objectives.sweep`]. It stands for the student,
    whose gradient then reaches the hidden states and whatever of the head asks for one, or for the teacher.

    Args:
        hidden_NH (`Tensor`): what the head reads, `[N, H]`, any floating dtype; N may be 0.
        weight_VH (`Tensor`): of the head.
        bias_V (`Tensor`, *optional*): of the head.
        scale (`float`, *optional*, defaults to `1.0`): what the model multiplies the head's output by.
        cap (`float`, *optional*): the bound that the model bends its logits below (Gemma's soft cap).

    Raises:
        `ValueError`: for shapes, devices or types that do not match, and a scale or cap that is no number for one.
    """

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def __post_init__(self) -> None:
        hidden, weight, bias = self.hidden_NH, self.weight_VH, self.bias_V
        if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
            raise ValueError(
                "hidden_NH and weight_VH must be [N, H] and [V, H], got "
                f"{tuple(hidden.shape)} and {tuple(weight.shape)}."
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias_V must be [{len(weight)}], got {tuple(bias.shape)}.")
        given = [hidden, weight, *([] if bias is None else [bias])]
        if len(devices := {tensor.device for tensor in given}) > 1:
            raise ValueError(
                f"hidden_NH, weight_VH and bias_V must be on one device, got {sorted(map(str, devices))}."
            )
        if not all(tensor.is_floating_point() for tensor in given):
            raise ValueError(
                f"hidden_NH, weight_VH and bias_V must be floating-point, got {hidden.dtype} hidden states."
            )
        if not (isfinite(self.scale) and self.scale) or not (self.cap is None or 0 < self.cap < inf):
            raise ValueError(
                f"scale must be a number other than 0 and cap positive or None, got {self.scale} and {self.cap}."
            )

    @classmethod
    def joined(cls, signals: "Sequence[HeadOf]", join: Callable[[list[Tensor]], Tensor]) -> "HeadOf":
        """One signal of several with one head; `join` makes one tensor of their hidden states."""
        return replace(signals[0], hidden_NH=join([signal.hidden_NH for signal in signals]))

    @property
    def names_all_ids(self) -> bool:
        """Whether no id is merged with others."""
        return True

    @property
    def vocabulary_size(self) -> int:
        return self.weight_VH.shape[0]

    @property
    def side(self) -> "HeadOf":
        """What a sweep takes."""
        return self

    def __len__(self) -> int:
        return len(self.hidden_NH)

    def detached(self) -> "HeadOf":
        """The same without gradient."""
        bias_V = None if self.bias_V is None else self.bias_V.detach()
        return replace(self, hidden_NH=self.hidden_NH.detach(), weight_VH=self.weight_VH.detach(), bias_V=bias_V)

    def first_ids(self, count: int) -> "HeadOf":
        """The signal over the ids in [0, count)."""
        if count == self.vocabulary_size:
            return self
        bias_V = None if self.bias_V is None else self.bias_V[:count]
        return replace(self, weight_VH=self.weight_VH[:count], bias_V=bias_V)

    def at_ids(self, ids_W: Tensor) -> Tensor:
        """The logits of some ids alone, `[N, W]`: of the head only their rows are read. Differentiable."""
        bias_V = None if self.bias_V is None else self.bias_V.index_select(0, ids_W)
        return replace(self, weight_VH=self.weight_VH.index_select(0, ids_W), bias_V=bias_V).logits()

    def predictions(self) -> Tensor:
        """Of a regression, whose single output is a number: `[N, 1]`."""
        return self.logits()

    def logits(self) -> Tensor:
        """All of them, `[N, V]` in fp32 (or fp64), differentiable: what the sweep is there to avoid."""
        hidden_NH, weight_VH, bias_V = self.hidden_NH, self.weight_VH, self.bias_V
        if hidden_NH.dtype != weight_VH.dtype:
            dtype = torch.promote_types(hidden_NH.dtype, weight_VH.dtype)
            hidden_NH, weight_VH = hidden_NH.to(dtype), weight_VH.to(dtype)
        bias_V = None if bias_V is None else bias_V.to(weight_VH.dtype)
        logits_NV = torch.nn.functional.linear(hidden_NH, weight_VH, bias_V)
        return capped(full_precision(logits_NV), self.scale, self.cap)


def capped(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """`cap * tanh(scale * logits / cap)`, or `scale * logits` without a cap."""
    if cap is not None:
        return torch.tanh(logits * (scale / cap)) * cap
    return logits if scale == 1 else logits * scale
