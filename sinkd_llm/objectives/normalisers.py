"""Tiles of the vocabulary, and the normalisers of their softmax.

Shape suffixes: N rows, w ids of a tile.
"""

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


def log_sum_exps(z_Nw: Tensor, temperatures: set[float]) -> dict[float, Tensor]:
    """`log sum_v exp(z_iv / T)` over a tile, for each temperature: `[N, 1]`, -inf where all logits are."""
    top_N1 = z_Nw.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(z_Nw.dtype).min)  # -inf - (-inf) would be NaN
    shifted_Nw = z_Nw - top_N1
    sums: dict[float, Tensor] = {}
    weights_Nw, before = shifted_Nw, 0.0
    for T in sorted(temperatures, reverse=True):
        # exp(x) is the square of exp(x / 2): the two temperatures of the defaults cost one exponential.
        weights_Nw = weights_Nw.square() if before == 2 * T else (shifted_Nw / T).exp_()
        sums[T] = torch.add(weights_Nw.sum(dim=-1, keepdim=True).log_(), top_N1, alpha=reciprocal(T, z_Nw.dtype))
        before = T
    return sums


def joined_log_sums(parts: list[Tensor]) -> Tensor:
    """Over the whole vocabulary, given each tile's."""
    return parts[0] if len(parts) == 1 else torch.logsumexp(torch.stack(parts), dim=0)


def log_distribution(logits: Tensor, temperature: float, log_sum_N1: Tensor) -> Tensor:
    """`logits / temperature - log_sum` of a tile."""
    return torch.add(-log_sum_N1, logits, alpha=reciprocal(temperature, logits.dtype))  # one pass over the tile


def distribution(logits: Tensor, temperature: float, log_sum_N1: Tensor) -> Tensor:
    """The softmax of a tile."""
    return log_distribution(logits, temperature, log_sum_N1).exp_()
