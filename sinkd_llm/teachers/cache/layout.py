"""How teacher rows become the arrays of a cache, and arrays rows again.

Shape suffixes: N supervised tokens, V vocabulary, K kept ids of a row, T temperatures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.objectives import TopKSignal

CONTENTS = ("topk", "verbalizers", "full")
# What a cache holds where the signal is over the answer choices: their scores, -inf where a row has fewer.
OVER_CHOICES = "choices"
# The same of rows that are known per group: scores, and how often the group has them.
IN_GROUPS = "groups"
ENCODINGS = ("fixed16", "float32")
# Logits further below the largest of their row are stored as so far below: exp(-128) is 1e-56.
FIXED16_RANGE = 128.0
_STEPS = 65535
# What was stored as the lowest may have lain lower; a little above, for the rounding of a product.
_FLOOR = -FIXED16_RANGE * (1 - 1e-6)

Arrays = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class CacheLayout:
    """What a cache keeps of a teacher row.

    Args:
        content (`str`): `"topk"`: the largest logits of each row, with their ids; `"verbalizers"`: the logits of
            `always`; `"full"`: all logits; `"choices"`: the scores of a row's answer choices; `"groups"`: such scores
            of the rows of a group, each with how often the group has it.
        vocabulary_size (`int`): V (the most choices of a row). Wider rows are cut to their first V logits.
        k (`int`): K, at most V; V for `"full"`.
        temperatures (`tuple[float, ...]`): where the mass of the ids that are not kept is stored; none for `"full"`.
        encoding (`str`): `"float32"`: logits as they are. `"fixed16"`: their distance from the largest kept one of
            the row, in 65,535 equal steps up to the row's range: off by `range / 131,070` at most.
        always (`tuple[int, ...]`): ids that every row keeps.

    Raises:
        InputError: for a k that does not fit.
    """

    content: str
    vocabulary_size: int
    k: int
    temperatures: tuple[float, ...]
    encoding: str
    always: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not max(1, len(self.always)) <= self.k <= self.vocabulary_size:
            kept = f" and {len(self.always)} ids that every row keeps" if self.always else ""
            raise InputError(
                f"top_k is {self.k}, with {self.vocabulary_size} ids in the vocabulary{kept}; give a number from "
                f"{max(1, len(self.always))} to {self.vocabulary_size}, or content full."
            )

    @property
    def names_all_ids(self) -> bool:
        """Whether nothing of a row is left out."""
        return self.content == "full" or self.over_choices

    @property
    def over_choices(self) -> bool:
        """Whether it keeps scores of answer choices, and no logits of a vocabulary or of classes."""
        return self.content in (OVER_CHOICES, IN_GROUPS)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one row, without the index."""
        logits = self.k * (2 if self.encoding == "fixed16" else 4) + (4 if self.encoding == "fixed16" else 0)
        ids = self.k * self._id_bytes if self.content == "topk" else 0
        return logits + ids + 4 * len(self.temperatures)

    @property
    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Of each array its type, as numpy writes it, and the shape of a row."""
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {"logits": ("f4", (self.k,))}
        if self.encoding == "fixed16":
            arrays = {"logits": ("u2", (self.k,)), "step": ("f4", ())}
        if self.content == "topk":
            arrays["ids"] = ("u1", (self.k * self._id_bytes,))
        if self.temperatures and not self.names_all_ids:
            arrays["tail"] = ("f4", (len(self.temperatures),))
        if self.content == IN_GROUPS:
            arrays["times"] = ("f4", ())
        return arrays

    def encode(self, logits_NV: Tensor) -> Arrays:
        """The arrays of rows of logits, one entry per row."""
        logits_NV = logits_NV.detach()[:, : self.vocabulary_size].float()
        if self.content == "full":
            return self._encode_logits(logits_NV)[0]
        if self.over_choices:
            missing = self.vocabulary_size - logits_NV.shape[1]
            padded_NV = torch.nn.functional.pad(logits_NV, (0, missing), value=-torch.inf)
            return {"logits": padded_NV.cpu().numpy()}
        signal = TopKSignal.from_logits(logits_NV, self._kept_ids(logits_NV), self.temperatures)
        arrays, shift_N = self._encode_logits(signal.logits_NK)
        if self.content == "topk":
            arrays["ids"] = self._pack_ids(signal.ids_NK)
        if self.temperatures:
            tails = [tail_N - shift_N / T for T, tail_N in signal.tail_log_sum_exp.items()]
            arrays["tail"] = torch.stack(tails, dim=-1).cpu().numpy()
        return arrays

    def decode(self, arrays: Mapping[str, "np.ndarray[Any, Any]"], device: torch.device | str) -> Tensor | TopKSignal:
        """The teacher signal of rows of the arrays: logits `[N, V]`, or a [`TopKSignal`]."""
        if self.encoding == "fixed16":
            steps = torch.from_numpy(arrays["logits"].astype(np.float32)).to(device)
            logits = steps.mul_(-torch.from_numpy(arrays["step"]).to(device)[:, None])
        else:
            logits = torch.from_numpy(arrays["logits"]).to(device)
        if self.names_all_ids:
            return logits
        if self.content == "topk":
            ids_NK = torch.from_numpy(self._unpack_ids(arrays["ids"])).to(device)
        else:
            ids_NK = torch.tensor(self.always, device=device).expand(len(logits), -1)
        tails = {}
        if self.temperatures:
            tail_TN = torch.from_numpy(arrays["tail"]).to(device).unbind(dim=-1)
            tails = dict(zip(self.temperatures, tail_TN, strict=True))
        if self.encoding == "float32":
            return TopKSignal(ids_NK, logits, tails, self.vocabulary_size)
        # Half a step, and the rounding of the division that counts steps.
        error_N = 0.51 * torch.from_numpy(arrays["step"]).to(device)
        return TopKSignal(ids_NK, logits, tails, self.vocabulary_size, error_N, _FLOOR)

    def cost_error(self, temperature: float) -> float:
        """The most by which the encoding widens the interval of the transport cost, see [`TopKSignal.cost_error`]."""
        if self.encoding == "float32" or self.names_all_ids:
            return 0.0
        clamped = self.k * math.exp(_FLOOR / temperature)
        return 2 * min(2.0, 0.51 * FIXED16_RANGE / _STEPS / temperature + 2 * clamped)

    def _kept_ids(self, logits_NV: Tensor) -> Tensor:
        if self.content == "verbalizers":
            return torch.tensor(self.always, device=logits_NV.device).expand(len(logits_NV), -1)
        if self.always:
            logits_NV = logits_NV.clone()
            logits_NV[:, list(self.always)] = float("inf")
        return logits_NV.topk(self.k, dim=-1).indices

    def _encode_logits(self, logits_NK: Tensor) -> tuple[Arrays, Tensor]:
        """The arrays, and what was subtracted from each row, `[N]`."""
        if self.encoding == "float32":
            return {"logits": logits_NK.cpu().numpy()}, logits_NK.new_zeros(len(logits_NK))
        largest_N = logits_NK.amax(dim=-1)
        below_NK = (largest_N[:, None] - logits_NK).clamp_(max=FIXED16_RANGE)
        step_N = (below_NK.amax(dim=-1) / _STEPS).clamp_(min=1e-12)
        steps = (below_NK / step_N[:, None]).round_().clamp_(max=_STEPS)
        # Through int32: not every device has uint16.
        arrays = {"logits": steps.to(torch.int32).cpu().numpy().astype(np.uint16), "step": step_N.cpu().numpy()}
        return arrays, largest_N

    @property
    def _id_bytes(self) -> int:
        """2, 3 or 4: as few as hold the largest id."""
        return 2 if self.vocabulary_size <= 2**16 else 3 if self.vocabulary_size <= 2**24 else 4

    def _pack_ids(self, ids_NK: Tensor) -> "np.ndarray[Any, Any]":
        ids = ids_NK.to(torch.int32).cpu().numpy().astype("<u4")
        octets = ids.view(np.uint8).reshape(*ids.shape, 4)[..., : self._id_bytes]
        return np.ascontiguousarray(octets).reshape(len(ids), self.k * self._id_bytes)

    def _unpack_ids(self, octets: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        ids = np.zeros((len(octets), self.k, 4), np.uint8)
        ids[..., : self._id_bytes] = octets.reshape(len(octets), self.k, self._id_bytes)
        return ids.reshape(len(octets), 4 * self.k).view("<u4").astype(np.int64)


def choose_temperatures(*temperatures: float | None, more: Sequence[float] = ()) -> tuple[float, ...]:
    """The distinct temperatures in growing order, 1 among them.

    Raises:
        InputError: for one that is not positive.
    """
    chosen = sorted({1.0, *(float(t) for t in (*temperatures, *more) if t is not None)})
    if chosen[0] <= 0 or not np.isfinite(chosen[-1]):
        raise InputError(f"temperatures must be positive numbers, got {', '.join(f'{t:g}' for t in chosen)}.")
    return tuple(chosen)
