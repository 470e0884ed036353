"""Running a model on the meta device, where tensors have no memory, and counting what would be allocated."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class LiveBytes(TorchDispatchMode):
    """
    Counts the bytes of every storage that operators make while it is on, for as long as something holds it.

    A question to the data (`.item()`, `if mask.all():`) has the answer 0: on the meta device there is none.

    Args:
        known (`Iterable[Tensor]`): tensors whose storages are counted elsewhere: weights, buffers, inputs.

    Attributes:
        live (`int`): bytes held now, gradients of parameters left out.
        gradients (`int`): bytes of the gradients that `mark_gradient` was told about and that are held now.
        peak (`int`): largest `live` since the last `restart_peak`.
        peak_with_gradients (`int`): largest `live + gradients` since then.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.gradients = self.peak = self.peak_with_gradients = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._held: dict[int, int] = {}
        self._gradients: set[int] = set()

    def restart_peak(self) -> None:
        self.peak, self.peak_with_gradients = self.live, self.live + self.gradients

    def mark_gradient(self, tensor: Tensor) -> None:
        """From now on the storage of `tensor` counts under `gradients`."""
        key = tensor.untyped_storage()._cdata
        if key in self._held and key not in self._gradients:
            self._gradients.add(key)
            self.live -= self._held[key]
            self.gradients += self._held[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 0
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held or key in self._known:
            return
        self._held[key] = storage.nbytes()
        self.live += self._held[key]
        weakref.finalize(storage, self._release, key)
        self.peak = max(self.peak, self.live)
        self.peak_with_gradients = max(self.peak_with_gradients, self.live + self.gradients)

    def _release(self, key: int) -> None:
        size = self._held.pop(key, 0)
        if key in self._gradients:
            self._gradients.discard(key)
            self.gradients -= size
        else:
            self.live -= size


class DeviceBehaviour(TorchFunctionMode):
    """
    Lets the meta device allocate as a CPU or GPU would.

    Attention is the fused kernel, which keeps its inputs, its output and one number a query row, and not the
    `[heads, queries, keys]` scores (Dao et al., FlashAttention, arXiv:2205.14135, section 3). With `autocast`,
    matrix products read their inputs, weights included, from copies in that type, as under `torch.autocast`.

    Args:
        autocast (`torch.dtype`, *optional*): the type that matrix products compute in.
    """

    def __init__(self, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.autocast = autocast
        self._casts: dict[int, Tensor] = {}

    def __exit__(self, *exception: Any) -> None:
        self._casts.clear()
        super().__exit__(*exception)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.autocast is not None and func in _CAST:
            args, kwargs = tree_map(self._cast, (args, kwargs))
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*_attention_inputs(*args, **kwargs))
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.autocast)
        # Autocast keeps its copies of trained weights until it ends.
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(self.autocast)
        return self._casts[id(value)]


_CAST = {F.linear, torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm, torch.baddbmm, F.scaled_dot_product_attention}


def _attention_inputs(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any):  # type: ignore[no-untyped-def]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.to(query.dtype)  # what is added to the scores, made in every layer anew
    return query, key, value, attn_mask


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # The kernels write a token's heads side by side, so that the projection after them reads no copy.
        heads_last = query.transpose(-3, -2).shape
        out = query.new_empty(*heads_last[:-1], value.shape[-1]).transpose(-3, -2)
        log_sum_exp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, out, log_sum_exp)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, *_ = ctx.saved_tensors
        # A learned position bias (T5's) is an additive mask with a gradient.
        mask_grad = torch.empty_like(mask) if mask is not None and ctx.needs_input_grad[3] else None
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), mask_grad
