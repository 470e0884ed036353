"""Tiles of the vocabulary, and the normalisers of their softmax.

Shape suffixes: N rows, w ids of a tile.
"""

from math import prod

import torch
from torch import Tensor

from sinkd_llm.optimal_transport.precision import reciprocal

# Logits that a head has made are kept between passes up to this size: then small batches need no product twice, and
# large ones need no more memory.
KEPT_BYTES = 160 * 2**20
# Elements of a tile, and its bounds in ids: on a CPU it should stay in the cache.
_CPU_TILE = (2**19, 1024, 8192)
_GPU_TILE = (2**22, 4096, 2**15)


def tile_width(rows: int, device: torch.device) -> int:
    """How many ids of the vocabulary are looked at together."""
    elements, narrowest, widest = _CPU_TILE if device.type == "cpu" else _GPU_TILE
    return min(widest, max(narrowest, elements // max(rows, 1)))


class Scratch:
    """Buffers that all tiles share: to get fresh memory may take longer than the arithmetic on it."""

    def __init__(self) -> None:
        self._rooms: dict[str, Tensor] = {}

    def like(self, name: str, tile: Tensor) -> Tensor:
        """The buffer of this name, in the shape of a tile. What was in it is lost."""
        return self.empty(name, tile.shape, tile)

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The same in another shape, of the dtype and on the device of `like`."""
        size, buffer = prod(shape), self._rooms.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._rooms[name] = like.new_empty(size)
        return buffer[:size].view(shape)


def log_sum_exps(z_Nw: Tensor, temperatures: set[float], out_Nw: Tensor | None = None) -> dict[float, Tensor]:
    """`log sum_v exp(z_iv / T)` over a tile, for each temperature: `[N, 1]`, -inf where all logits are. What is
    computed on the way may be written into `out_Nw`."""
    top_N1 = z_Nw.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(z_Nw.dtype).min)  # -inf - (-inf) would be NaN
    sums: dict[float, Tensor] = {}
    weights_Nw, before = z_Nw, 0.0
    for T in sorted(temperatures, reverse=True):
        share = reciprocal(T, z_Nw.dtype)
        if before == 2 * T:
            # exp(x) is the square of exp(x / 2): the two temperatures of the defaults cost one exponential.
            sum_N1 = weights_Nw.square_().sum(dim=-1, keepdim=True)
            before = T
        else:
            # One pass over the tile; a small T could make both terms of it infinite.
            if T >= 1:
                weights_Nw = torch.add(top_N1 * -share, z_Nw, alpha=share, out=out_Nw)
            else:
                weights_Nw = torch.sub(z_Nw, top_N1, out=out_Nw).mul_(share)
            weights_Nw, before = weights_Nw.exp_(), T
            sum_N1 = weights_Nw.sum(dim=-1, keepdim=True)
        sums[T] = torch.add(sum_N1.log_(), top_N1, alpha=share)
    return sums


def joined_log_sums(parts: list[Tensor]) -> Tensor:
    """Over the whole vocabulary, given each tile's."""
    return parts[0] if len(parts) == 1 else torch.logsumexp(torch.stack(parts), dim=0)


def log_distribution(logits: Tensor, temperature: float, log_sum_N1: Tensor, out_Nw: Tensor | None = None) -> Tensor:
    """`logits / temperature - log_sum` of a tile."""
    return torch.add(-log_sum_N1, logits, alpha=reciprocal(temperature, logits.dtype), out=out_Nw)  # one pass


def distribution(logits: Tensor, temperature: float, log_sum_N1: Tensor, out_Nw: Tensor | None = None) -> Tensor:
    """The softmax of a tile."""
    return log_distribution(logits, temperature, log_sum_N1, out_Nw).exp_()
