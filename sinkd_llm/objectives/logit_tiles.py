"""Logits a tile of the vocabulary at a time, and where the gradient of a tile goes: for logits that are there already,
and for logits that a head makes of hidden states.

Shape suffixes: N rows, V vocabulary, w ids of a tile, H features of a hidden state.

Tiles are in fp32 (fp64 if the inputs are), whatever the dtype of the inputs, and so are the sums of the gradients.
"""

from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from sinkd_llm.objectives.head_of import HeadOf, capped
from sinkd_llm.objectives.normalisers import Scratch
from sinkd_llm.optimal_transport.precision import full_precision, no_autocast

_FULL = (torch.float32, torch.float64)
# The gradients to the tensors of one side, in their order; `None` where none is asked for.
Gradients: TypeAlias = tuple[Tensor | None, ...]


class Sink(Protocol):
    """Adds up the gradient that comes a tile at a time."""

    def add(self, v: slice, logits_Nw: Tensor | None, grad_Nw: Tensor) -> None:  # pragma: no cover - a protocol
        """`grad_Nw` is the gradient to the logits of the ids `v`, and may be overwritten; the logits themselves are
        used where the side needs them."""
        ...

    def gradients(self) -> Gradients:  # pragma: no cover - a protocol
        """To the tensors of the side, in their dtypes."""
        ...


class LogitTiles(Protocol):
    """One side's logits `[N, V]`, a tile at a time."""

    is_there: bool  # the logits take memory anyway, so there is nothing to keep
    trains_head: bool
    needs_logits: bool  # for its gradient

    @property
    def shape(self) -> tuple[int, int]:  # pragma: no cover - a protocol
        """`(N, V)`."""
        ...

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:  # pragma: no cover - a protocol
        """What a gradient may be asked for."""
        ...

    def tile(self, v: slice, scratch: Scratch | None = None) -> Tensor:  # pragma: no cover - a protocol
        """The logits of the ids `v`, `[N, w]`; not to be overwritten, where they are there. Those that are made may
        be written into the `scratch`, and then hold until the next tile."""
        ...

    def sink(self, needed: tuple[bool, ...]) -> Sink:  # pragma: no cover - a protocol
        """Where their gradient goes; `needed` says which of the tensors have one."""
        ...


def logit_tiles(side: Tensor | HeadOf) -> LogitTiles:
    """The tiles of a side, given as logits `[N, V]` or as hidden states with their head."""
    return DenseTiles(side) if isinstance(side, Tensor) else HeadTiles(side)


class DenseTiles:
    """
    The tiles of logits that are there.

    Args:
        logits_NV (`Tensor`): of any floating dtype.
    """

    is_there, trains_head, needs_logits = True, False, False

    def __init__(self, logits_NV: Tensor) -> None:
        self.logits_NV = logits_NV

    @property
    def shape(self) -> tuple[int, int]:
        N, V = self.logits_NV.shape
        return N, V

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (self.logits_NV,)

    def tile(self, v: slice, scratch: Scratch | None = None) -> Tensor:
        whole = v.start == 0 and v.stop == self.logits_NV.shape[1]
        return full_precision(self.logits_NV if whole else self.logits_NV[:, v])

    def sink(self, needed: tuple[bool, ...]) -> "_DenseSink":
        return _DenseSink(self.logits_NV)


class _DenseSink:
    def __init__(self, logits_NV: Tensor) -> None:
        self._like = logits_NV
        self._grad_NV: Tensor | None = None

    def add(self, v: slice, logits_Nw: Tensor | None, grad_Nw: Tensor) -> None:
        if self._grad_NV is None:
            if grad_Nw.shape == self._like.shape:  # one tile is all
                self._grad_NV = grad_Nw
                return
            self._grad_NV = torch.zeros_like(self._like, dtype=grad_Nw.dtype)
        self._grad_NV[:, v] += grad_Nw

    def gradients(self) -> Gradients:
        grad_NV = torch.zeros_like(self._like) if self._grad_NV is None else self._grad_NV
        return (grad_NV.to(self._like.dtype),)


class HeadTiles:
    """
    The tiles of logits that a head makes of hidden states: one matrix product a tile.

    Args:
        head ([`HeadOf`]): both.
    """

    is_there = False

    def __init__(self, head: HeadOf) -> None:
        self.head = head
        bias_V = head.bias_V
        self.needs_logits = head.cap is not None
        self.trains_head = head.weight_VH.requires_grad or (bias_V is not None and bias_V.requires_grad)
        self._hidden_NH = _operand(head.hidden_NH.detach())

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.head), self.head.vocabulary_size

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.head.hidden_NH, self.head.weight_VH, self.head.bias_V

    def tile(self, v: slice, scratch: Scratch | None = None) -> Tensor:
        weight_Hw = _operand(self.head.weight_VH.detach()[v]).T
        if scratch is None or self._hidden_NH.dtype != weight_Hw.dtype or weight_Hw.dtype not in _FULL:
            logits_Nw = _product(self._hidden_NH, weight_Hw)
        else:
            room_Nw = scratch.empty("logits", (len(self._hidden_NH), weight_Hw.shape[1]), like=weight_Hw)
            with no_autocast(weight_Hw):
                logits_Nw = torch.mm(self._hidden_NH, weight_Hw, out=room_Nw)
        if self.head.bias_V is not None:
            logits_Nw += self.head.bias_V.detach()[v]
        return capped(logits_Nw, self.head.scale, self.head.cap)

    def sink(self, needed: tuple[bool, ...]) -> "_HeadSink":
        return _HeadSink(self.head, self._hidden_NH, needed)


class _HeadSink:
    def __init__(self, head: HeadOf, hidden_NH: Tensor, needed: tuple[bool, ...]) -> None:
        self._head, self._hidden_NH = head, hidden_NH
        dtype = torch.promote_types(full_precision(head.hidden_NH).dtype, full_precision(head.weight_VH).dtype)
        hidden, weight, bias = needed
        self._grad_NH = torch.zeros_like(head.hidden_NH, dtype=dtype) if hidden else None
        self._grad_VH = torch.zeros_like(head.weight_VH) if weight else None
        self._grad_V = torch.zeros_like(head.bias_V, dtype=dtype) if bias and head.bias_V is not None else None

    def add(self, v: slice, logits_Nw: Tensor | None, grad_Nw: Tensor) -> None:
        grad_Nw = self._before_cap(logits_Nw, grad_Nw)
        if self._grad_NH is not None:
            weight_wH = _operand(self._head.weight_VH.detach()[v], like=grad_Nw)
            if weight_wH.dtype == grad_Nw.dtype == self._grad_NH.dtype:
                with no_autocast(grad_Nw):
                    self._grad_NH.addmm_(grad_Nw, weight_wH)
            else:
                self._grad_NH += _product(grad_Nw, weight_wH)
        if self._grad_VH is not None:
            self._grad_VH[v] += _product(grad_Nw.T, full_precision(self._hidden_NH)).to(self._grad_VH.dtype)
        if self._grad_V is not None:
            self._grad_V[v] += grad_Nw.sum(dim=0)

    def gradients(self) -> Gradients:
        head = self._head
        hidden = None if self._grad_NH is None else self._grad_NH.to(head.hidden_NH.dtype)
        bias = None if self._grad_V is None or head.bias_V is None else self._grad_V.to(head.bias_V.dtype)
        return hidden, self._grad_VH, bias

    def _before_cap(self, logits_Nw: Tensor | None, grad_Nw: Tensor) -> Tensor:
        """The gradient to what the head's product gives."""
        scale, cap = self._head.scale, self._head.cap
        if cap is not None and logits_Nw is not None:  # d tanh(x) = 1 - tanh(x)^2
            return grad_Nw.mul_((1 - (logits_Nw / cap).square_()).mul_(scale))
        return grad_Nw if scale == 1 else grad_Nw.mul_(scale)


def _operand(matrix: Tensor, like: Tensor | None = None) -> Tensor:
    """As a factor of [`_product`]: in half precision only where a device multiplies that into fp32."""
    if matrix.is_cuda and like is None and matrix.dtype in (torch.bfloat16, torch.float16):
        return matrix
    return full_precision(matrix) if like is None else full_precision(matrix).to(like.dtype)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y`, summed and given in fp32 or better."""
    with no_autocast(x):
        if x.dtype == y.dtype and x.dtype in (torch.bfloat16, torch.float16):
            return torch.mm(x, y, out_dtype=torch.float32)
        dtype = torch.promote_types(full_precision(x).dtype, full_precision(y).dtype)
        return torch.mm(x.to(dtype), y.to(dtype))
