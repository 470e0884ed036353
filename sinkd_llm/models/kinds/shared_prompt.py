"""A decoder on trees of choices whose branches are texts of their own, for models that take no mask of a tree.

Shapes: E trees, each after a prompt, P tokens of the longest prompt, Q of them that are still to be read, C paths of
all trees, T nodes of the longest path, L = P + T, N rows of logits, V vocabulary.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from sinkd_llm.models.heads import logits_at
from sinkd_llm.models.kinds.choice_tree import ChoiceTree, stacked
from sinkd_llm.models.kinds.prefix import Prefix
from sinkd_llm.models.wrappers import accepted, forward_parameters, keeps_state, unwrap

# The copy of the cache is no larger than the cache of the prompts, or than the cache of a few prompts.
LEAST_PATHS_AT_A_TIME = 16


def can_share_prompts(model: nn.Module, length: int) -> bool:
    """
    Whether a decoder keeps what it has read as keys and values, one a token, that can be copied and continued.

    Args:
        model (`nn.Module`): a decoder-only model, possibly wrapped.
        length (`int`): of the longest text, in tokens.
    """
    inner = unwrap(model)
    if not {"past_key_values", "use_cache", "attention_mask"} <= forward_parameters(model):
        return False
    if keeps_state(inner) or length > _even_positions(inner.config):
        return False
    try:
        layers = DynamicCache(config=inner.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return False  # a configuration that describes its layers in its own way, as remote code may
    # Other kinds of layers hold states that belong to a place, not to a token.
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _even_positions(config: Any) -> float:
    """The longest text whose keys do not depend on where it ends: some models turn all less in a longer one."""
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    parameters = getattr(config, "rope_parameters", None) or {}
    # One for all layers, or one for each kind of layer.
    each = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    bounds = [
        rope.get("original_max_position_embeddings") or config.max_position_embeddings
        for rope in each
        if rope.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(bounds, default=math.inf)


def path_logits(
    model: nn.Module,
    ids_EP: Tensor,
    mask_EP: Tensor,
    trees: Sequence[ChoiceTree],
    prefix: Prefix | None = None,
) -> Tensor:
    """
    The logits of each tree's rows, tree by tree, in one forward: each path is a text with the prompt.

    Any decoder can do that, for tokens to the right change nothing. Differentiable without a prefix.

    Args:
        model (`nn.Module`): a decoder-only model, possibly wrapped.
        ids_EP, mask_EP (`Tensor` `[E, P]`): the prompts, padded on the left.
        trees (sequence of [`ChoiceTree`]): one a prompt.
        prefix ([`Prefix`], *optional*): what all prompts begin with, if it has been read.

    Returns:
        `Tensor` `[N, V]`: see [`ChoiceTree`].
    """
    path_CT, present_CT, new_CT, first_C, tree_C = _paths(trees, ids_EP.device)
    ids_CL = torch.cat([ids_EP[tree_C], path_CT], dim=1)
    mask_CL = torch.cat([mask_EP[tree_C], present_CT.to(mask_EP.dtype)], dim=1)
    # The end of a prompt is asked once, in its first text.
    asked_CL = torch.zeros_like(mask_CL, dtype=torch.bool)
    asked_CL[:, ids_EP.shape[1] - 1] = first_C
    asked_CL[:, ids_EP.shape[1] :] = new_CT
    # Models with absolute positions count padding unless told otherwise.
    places_CL = (mask_CL.long().cumsum(dim=1) - 1).clamp_min(0)
    if prefix is None:
        more = accepted(model, {"position_ids": places_CL, "use_cache": False})
        return logits_at(model, asked_CL, input_ids=ids_CL, attention_mask=mask_CL, **more)
    read = prefix.columns(ids_EP.shape[1])
    cache = prefix.begun(mask_EP[tree_C])
    return logits_at(
        model, asked_CL[:, read:], **_continued(model, ids_CL[:, read:], mask_CL, places_CL[:, read:], cache)
    )


@torch.no_grad()
def shared_prompt_logits(
    model: nn.Module,
    ids_EP: Tensor,
    mask_EP: Tensor,
    trees: Sequence[ChoiceTree],
    prefix: Prefix | None = None,
) -> Tensor:
    """
    The same as [`path_logits`], without gradient: each prompt is read once, and its paths continue from the cache.

    Args:
        model (`nn.Module`): one that [`can_share_prompts`], possibly wrapped.
        ids_EP, mask_EP, trees, prefix: see [`path_logits`].
    """
    path_CT, present_CT, new_CT, first_C, tree_C = _paths(trees, ids_EP.device)
    cache = DynamicCache(config=unwrap(model).config)
    read = 0
    if prefix is not None:
        read = prefix.columns(ids_EP.shape[1])
        prefix.copy_into(cache, mask_EP)
    ends_EQ = torch.zeros_like(mask_EP[:, read:], dtype=torch.bool)
    ends_EQ[:, -1] = True
    places_EQ = (mask_EP.long().cumsum(dim=1) - 1).clamp_min(0)[:, read:]
    end_EV = logits_at(model, ends_EQ, **_continued(model, ids_EP[:, read:], mask_EP, places_EQ, cache))

    asked_CS = torch.cat([first_C[:, None], new_CT], dim=1)
    logits_NV = end_EV.new_empty(int(asked_CS.sum()), end_EV.shape[-1])
    is_end_N = asked_CS.nonzero(as_tuple=True)[1] == 0
    logits_NV[is_end_N] = end_EV
    places_CT = mask_EP.sum(dim=1)[tree_C][:, None] + torch.arange(path_CT.shape[1], device=ids_EP.device)
    parts = []
    for part_C in torch.arange(len(tree_C), device=ids_EP.device).split(max(len(trees), LEAST_PATHS_AT_A_TIME)):
        longest = int(present_CT[part_C].sum(dim=1).max())
        if not longest:
            continue
        ids_CT, present, new = (table[part_C, :longest] for table in (path_CT, present_CT, new_CT))
        mask_CL = torch.cat([mask_EP[tree_C[part_C]], present.to(mask_EP.dtype)], dim=1)
        part_cache = _rows_of(cache, tree_C[part_C])
        arguments = _continued(model, ids_CT, mask_CL, places_CT[part_C, :longest], part_cache)
        parts.append(logits_at(model, new, **arguments))
    if parts:
        logits_NV[~is_end_N] = torch.cat(parts)
    return logits_NV


def _paths(trees: Sequence[ChoiceTree], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """
    All paths of the trees: their tokens, where they have some, where those are new (`[C, T]` each), which are the
    first of their tree, and whose they are (`[C]` each).
    """
    longest = max(tree.path_QT.shape[1] for tree in trees)
    ids, nodes, new, first = [], [], [], []
    for tree in trees:
        for q, path in enumerate(tree.path_QT):
            ids.append(torch.cat([torch.zeros(1, dtype=torch.long), tree.token_M])[path])
            nodes.append(path)
            new.append(tree.new_QT[q])
            first.append(q == 0)
    tree_C = torch.tensor([e for e, tree in enumerate(trees) for _ in tree.paths])
    tables = (
        stacked(ids, 0, longest),
        stacked(nodes, 0, longest) > 0,
        stacked(new, False, longest),
        torch.tensor(first),
        tree_C,
    )
    return tuple(table.to(device) for table in tables)  # type: ignore[return-value]


def _continued(model: nn.Module, ids: Tensor, mask: Tensor, places: Tensor, cache: Any) -> dict[str, Any]:
    arguments = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
    return arguments | accepted(model, {"position_ids": places})


def _rows_of(cache: Any, tree_C: Tensor) -> Any:
    """A cache of these rows, one for each path; the given one stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    # Sets new tensors on the copied layers, and no layer writes into its tensors in place.
    chosen.batch_select_indices(tree_C)
    return chosen
