"""Several answers to one prompt: a decoder reads the prompt once, and the answers continue from its cache.

Shapes: S sequences of a batch (a prompt and one of its answers), L tokens of the longest, B prompts, P tokens of
the longest prompt, C sequences of a part, T tokens of the longest answer, N supervised tokens of a part,
V vocabulary.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.models.kinds.contract import (
    IGNORE_INDEX,
    LOGITS_AT_A_TIME,
    SupervisedRows,
    answer_rows,
)
from sinkd_llm.models.wrappers import forward_parameters, keeps_state, unwrap

# A part's copy of the cache is no larger than the cache of the prompts, or than the cache of a few prompts.
LEAST_ANSWERS_AT_A_TIME = 16


def can_share_prompts(model: nn.Module) -> bool:
    """Whether a decoder keeps what it has read as keys and values, one a token, that can be copied and continued."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    inner = unwrap(model)
    if not {"past_key_values", "use_cache", "attention_mask"} <= forward_parameters(model):
        return False
    if keeps_state(inner):
        return False
    try:
        layers = DynamicCache(config=inner.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return False  # a configuration that describes its layers in its own way, as remote code may
    # Other kinds of layers hold states that belong to a place, not to a token.
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def shared_prompt_logits(model: nn.Module, batch: Mapping[str, Any], prompt_S: Tensor) -> Iterator[SupervisedRows]:
    """
    The supervised logits of a left-padded batch, whose sequences share prompts, without gradient.

    They equal the rows of [`DecoderOnly.supervised_rows`], in parts of a few whole sequences: a part has at most
    [`LOGITS_AT_A_TIME`] logits, or the logits of one answer.

    Args:
        model (`nn.Module`): one that [`can_share_prompts`], possibly wrapped.
        batch (`Mapping`): `input_ids`, `attention_mask` and `labels` `[S, L]`, padded on the left, the answers at
            the end.
        prompt_S (`Tensor` `[S]`): the prompt of each sequence, from 0, in ascending order.
    """
    with torch.no_grad():
        labels_SL, mask_SL = batch["labels"], batch["attention_mask"].long()
        length_S = (labels_SL != IGNORE_INDEX).sum(dim=1)
        end_S = labels_SL.shape[1] - length_S  # the column after the prompt
        # The first sequence of each prompt gives its tokens.
        first_B = torch.searchsorted(prompt_S, torch.arange(int(prompt_S[-1]) + 1, device=prompt_S.device))
        prompt_length_B = mask_SL[first_B].sum(dim=1) - length_S[first_B]
        back_P = torch.arange(-int(prompt_length_B.max()), 0, device=labels_SL.device)
        column_BP = end_S[first_B][:, None] + back_P
        mask_BP = (-back_P[None, :] <= prompt_length_B[:, None]).long()
        ids_BP = batch["input_ids"][first_B].gather(1, column_BP.clamp_min(0))
        first_BV, cache = _read_prompts(model, ids_BP, mask_BP)

        longest = int(length_S.max())
        room = LOGITS_AT_A_TIME // (longest * first_BV.shape[-1])
        size = max(1, min(max(len(first_B), LEAST_ANSWERS_AT_A_TIME), room))
        for part_C in torch.arange(len(prompt_S), device=prompt_S.device).split(size):
            prompt_C = prompt_S[part_C]
            answer_T = torch.arange(int(length_S[part_C].max()), device=prompt_S.device)
            column_CT = (end_S[part_C][:, None] + answer_T).clamp_max(labels_SL.shape[1] - 1)
            present_CT = answer_T < length_S[part_C][:, None]
            labels_CT = labels_SL[part_C].gather(1, column_CT).masked_fill(~present_CT, IGNORE_INDEX)
            example_N, column_N, position_N = answer_rows(present_CT)
            logits_NV = first_BV.new_empty(len(example_N), first_BV.shape[-1])
            logits_NV[position_N == 0] = first_BV[prompt_C]
            if len(answer_T) > 1:
                read_CT = labels_CT[:, :-1].clamp_min(0)  # the last token predicts nothing
                mask_CT = torch.cat([mask_BP[prompt_C], present_CT[:, :-1].long()], dim=1)
                places_CT = prompt_length_B[prompt_C][:, None] + answer_T[:-1]
                part_cache = _rows_of(cache, prompt_C)
                logits_CTV = _continue(model, part_cache, read_CT, mask_CT, places_CT)
                logits_NV[position_N > 0] = logits_CTV[present_CT[:, 1:]]
            yield SupervisedRows(logits_NV, labels_CT[example_N, column_N], part_C[example_N], position_N)


def _read_prompts(model: nn.Module, ids_BP: Tensor, mask_BP: Tensor) -> tuple[Tensor, Any]:
    """Logits after the last token of each prompt `[B, V]`, and the cache."""
    from transformers import DynamicCache

    takes = forward_parameters(model)
    cache = DynamicCache(config=unwrap(model).config)
    arguments = _arguments(takes, ids_BP, mask_BP, (mask_BP.cumsum(dim=1) - 1).clamp_min(0), cache)
    if "logits_to_keep" in takes:
        arguments["logits_to_keep"] = 1
    return model(**arguments).logits[:, -1], cache


def _continue(model: nn.Module, cache: Any, ids_CT: Tensor, mask_CT: Tensor, places_CT: Tensor) -> Tensor:
    """Logits after each token of the answers: `[C, T, V]`; `mask_CT` covers the prompts too."""
    arguments = _arguments(forward_parameters(model), ids_CT, mask_CT, places_CT, cache)
    logits: Tensor = model(**arguments).logits
    return logits


def _arguments(takes: frozenset[str], ids: Tensor, mask: Tensor, places: Tensor, cache: Any) -> dict[str, Any]:
    arguments = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    # Models with absolute positions count padding unless told otherwise.
    return arguments | ({"position_ids": places} if "position_ids" in takes else {})


def _rows_of(cache: Any, prompt_C: Tensor) -> Any:
    """A cache of these rows, one for each answer; the given one stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    # Sets new tensors on the copied layers, and no layer writes into its tensors in place.
    chosen.batch_select_indices(prompt_C)
    return chosen
