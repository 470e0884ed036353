"""The beginning that all prompts of a batch share: read once, and continued in every row.

The prompts stay as they are, padded on the left: a row's first columns hold its padding and as much of the beginning
as fits, already read, and a forward reads the other columns. So padding, positions and how far a layer looks back are
what they are where everything is read.

Shapes: B prompts, P tokens of the longest, S tokens of the shared beginning, R columns that are read already, E rows
of a forward, H heads, D features of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from sinkd_llm.models.heads import logits_at
from sinkd_llm.models.wrappers import accepted


@dataclass(frozen=True, eq=False)
class Prefix:
    """
    What a decoder keeps of a beginning that it has read.

    Attributes:
        ids (`tuple[int, ...]`): its tokens, `[S]`.
        layers (sequence of pairs of `Tensor` `[1, H, S, D]`): keys and values of each layer; `None` for a layer that
            keeps none of its own.
    """

    ids: tuple[int, ...]
    layers: Sequence[tuple[Tensor, Tensor] | None]

    def columns(self, prompt: int) -> int:
        """R, the columns of `prompt` columns that need no reading: not the last one, which the answer follows."""
        return min(len(self.ids), prompt - 1)

    def begun(self, mask_EP: Tensor) -> DynamicCache:
        """
        The cache for one forward over the other columns of E prompts, which may be followed by more.

        It holds the beginning once: rows are made of it layer by layer, and what a layer makes of them is not kept.
        """
        place_ER = self._places(mask_EP)
        cache = DynamicCache()
        cache.layers = [_SharedLayer(kept, place_ER) for kept in self.layers]
        return cache

    def copy_into(self, cache: DynamicCache, mask_EP: Tensor) -> None:
        """Fills an empty cache as a forward over the first R columns of E prompts would, to be continued further."""
        place_ER = self._places(mask_EP)
        for number, kept in enumerate(self.layers):
            if kept is not None:
                keys, values = (_rows(states, place_ER) for states in kept)
                cache.update(keys, values, number)

    def _places(self, mask_EP: Tensor) -> Tensor:
        """Which token of the beginning stands in each column that is read already; any where there is padding."""
        prompt = mask_EP.shape[1]
        padding_E = prompt - mask_EP.sum(dim=1)
        return (torch.arange(self.columns(prompt), device=mask_EP.device) - padding_E[:, None]).clamp_min(0)


class _SharedLayer(DynamicLayer):
    """A layer whose rows begin alike. It has read R tokens before every forward, and keeps nothing of one."""

    def __init__(self, kept: tuple[Tensor, Tensor] | None, place_ER: Tensor) -> None:
        super().__init__()
        self._kept, self._place_ER = kept, place_ER

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        assert self._kept is not None
        keys, values = (_rows(states, self._place_ER) for states in self._kept)
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self) -> int:
        return self._place_ER.shape[1]


def _rows(states: Tensor, place_ER: Tensor) -> Tensor:
    """Keys or values `[1, H, S, D]` at the places of each row, `[E, H, R, D]`."""
    place_ER = place_ER.to(states.device)  # layers may lie on several devices
    return states[0][:, place_ER].transpose(0, 1)


@torch.no_grad()
def read_prefix(model: nn.Module, ids: Sequence[int], device: torch.device) -> Prefix:
    """
    Runs a model on a beginning.

    Args:
        model (`nn.Module`): a decoder that
            [`can_share_prompts`][sinkd_llm.models.kinds.shared_prompt.can_share_prompts], possibly wrapped.
        ids (sequence of `int`): its S tokens, at least one.
        device (`torch.device`): that the model takes tokens on.
    """
    ids_1S = torch.tensor([[*ids]], device=device)
    last_1S = torch.zeros_like(ids_1S, dtype=torch.bool)
    last_1S[:, -1] = True
    # Without the model's configuration a cache keeps all tokens, in layers too that look back less far: rows with more
    # padding need earlier ones.
    cache = DynamicCache()
    more = accepted(model, {"position_ids": torch.arange(len(ids), device=device)[None]})
    read = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S), "past_key_values": cache}
    logits_at(model, last_1S, **read, use_cache=True, **more)
    kept = [(keys, values) if keys is not None and values is not None else None for keys, values, _ in cache]
    return Prefix(tuple(ids), kept)


def common_prefix(ids_BP: Tensor, mask_BP: Tensor) -> tuple[int, ...]:
    """The longest beginning of all prompts, `[S]`; they are padded on the left (0 in `mask_BP`)."""
    length_B = mask_BP.sum(dim=1)
    place_BS = ids_BP.shape[1] - length_B[:, None] + torch.arange(int(length_B.min()), device=ids_BP.device)
    begin_BS = ids_BP.gather(1, place_BS)
    same_S = (begin_BS == begin_BS[0]).all(dim=0).long().cumprod(dim=0)
    return tuple(begin_BS[0, : int(same_S.sum())].tolist())
