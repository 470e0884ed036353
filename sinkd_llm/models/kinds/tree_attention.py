"""A decoder on trees of choices in one forward: the nodes follow the prompt, and each sees only what it continues.

Shapes: E trees, each after a prompt, P tokens of the longest prompt, M nodes of the largest tree, S = P + M places,
Q of them that are still to be read, N rows of logits, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sinkd_llm.models.heads import logits_at
from sinkd_llm.models.kinds.choice_tree import ChoiceTree, stacked
from sinkd_llm.models.kinds.contract import context_length
from sinkd_llm.models.kinds.prefix import Prefix
from sinkd_llm.models.kinds.shared_prompt import path_logits
from sinkd_llm.models.kinds.trial import Trial, gives, in_eval_mode
from sinkd_llm.models.wrappers import accepted, forward_parameters, keeps_state, unwrap

logger = logging.getLogger(__name__)

# How a mask says what is seen: some ways to compute attention select by it, others add it.
Form = Callable[[Tensor, torch.dtype], Tensor]
# Names by which configurations say how far a layer looks back.
_WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_window_size", "attention_chunk_size")
_forms: "WeakKeyDictionary[nn.Module, Form | None]" = WeakKeyDictionary()


def takes_trees(model: nn.Module, length: int) -> bool:
    """
    Whether [`tree_logits`] may ask this decoder.

    Its class has to take positions, and the model is asked once whether it gives for a small tree what it gives for
    the branches apart: a model that makes its own mask of the one it gets, or none, does not. That check runs the
    model a few times on some made-up tokens, always as often.

    Args:
        model (`nn.Module`): a decoder-only model, possibly wrapped.
        length (`int`): S, prompt and nodes.
    """
    inner = unwrap(model)
    if not {"position_ids", "attention_mask"} <= forward_parameters(model) or keeps_state(inner):
        return False
    if inner not in _forms:
        _forms[inner] = _form_for(model)
    if _forms[inner] is None:
        return False
    # Some count places instead of positions up to what they can have.
    bounds = [context_length(model)]
    if not _slides(inner.config):
        bounds += [getattr(inner.config, name, None) for name in _WINDOWS]
    return all(length <= bound for bound in bounds if isinstance(bound, int))


def tree_logits(
    model: nn.Module,
    ids_EP: Tensor,
    mask_EP: Tensor,
    trees: Sequence[ChoiceTree],
    prefix: Prefix | None = None,
    form: Form | None = None,
) -> Tensor:
    """
    The logits of each tree's rows, tree by tree, in one forward in which each prompt and each node is read once.

    Differentiable without a prefix: the choices' gradient goes through one reading of the prompt.

    Args:
        model (`nn.Module`): one that [`takes_trees`], possibly wrapped.
        ids_EP, mask_EP (`Tensor` `[E, P]`): the prompts, padded on the left.
        trees (sequence of [`ChoiceTree`]): one a prompt.
        prefix ([`Prefix`], *optional*): what all prompts begin with, if it has been read.
        form (`Callable`, *optional*): how the mask says what is seen; default: what the model takes.

    Returns:
        `Tensor` `[N, V]`: see [`ChoiceTree`].
    """
    inner = unwrap(model)
    form = form or _forms[inner]
    assert form is not None
    prompt, device, most = ids_EP.shape[1], ids_EP.device, max(len(tree.tokens) for tree in trees)
    count = prompt + most
    read = 0 if prefix is None else prefix.columns(prompt)
    node_EM = stacked([tree.token_M for tree in trees], 0, most).to(device)
    follows_EMM = stacked([tree.seen_MM for tree in trees], False, most, most).to(device)
    size_E = torch.tensor([len(tree.tokens) for tree in trees], device=device)

    seen_EQS = torch.zeros(len(trees), count - read, count, dtype=torch.bool, device=device)
    seen_EQS[:, :, :prompt] = mask_EP.bool()[:, None, :]
    seen_EQS[:, :-most, :prompt] &= torch.ones(prompt - read, prompt, dtype=torch.bool, device=device).tril(read)
    seen_EQS[:, -most:, prompt:] = follows_EMM
    # Padding sees itself, for nothing seen is no number.
    seen_EQS.diagonal(offset=read, dim1=1, dim2=2).fill_(True)

    read_EP = mask_EP.long().cumsum(dim=1)
    place_ES = torch.cat([read_EP - 1, read_EP[:, -1:] + follows_EMM.sum(dim=2) - 1], dim=1).clamp_min(0)
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else inner.dtype
    masks: Any = form(seen_EQS[:, None], dtype)
    if _slides(inner.config):
        near_EQS = place_ES[:, read:, None] - place_ES[:, None, :] < inner.config.sliding_window
        masks = {"full_attention": masks, "sliding_attention": form((seen_EQS & near_EQS)[:, None], dtype)}

    asked_EQ = torch.zeros(len(trees), count - read, dtype=torch.bool, device=device)
    asked_EQ[:, -most - 1] = True
    asked_EQ[:, -most:] = torch.arange(most, device=device) < size_E[:, None]
    ids_ES = torch.cat([ids_EP, node_EM], dim=1)
    more: dict[str, Any] = accepted(model, {"use_cache": False})
    if prefix is not None:
        more = {"past_key_values": prefix.begun(mask_EP), "use_cache": True}
    given = {"input_ids": ids_ES[:, read:], "position_ids": place_ES[:, read:]}
    return logits_at(model, asked_EQ, **given, attention_mask=masks, **more)


def _slides(config: Any) -> bool:
    """Whether layers differ in how far they look back, and the model takes a mask for either kind of layer."""
    kinds = {*(getattr(config, "layer_types", None) or ())}
    return "sliding_attention" in kinds and kinds <= {"sliding_attention", "full_attention"}


def _selecting(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return seen


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _form_for(model: nn.Module) -> Form | None:
    """How the model takes the mask of a tree, if it does."""
    inner = unwrap(model)
    trial, found = Trial.of(inner), None
    with in_eval_mode(inner):
        expected_NV = path_logits(model, trial.ids_EP, trial.mask_EP, trial.trees)
        for form in (_added, _selecting):  # both, for the ranks of a sharded model have to run it as often
            logits = partial(tree_logits, model, trial.ids_EP, trial.mask_EP, trial.trees, form=form)
            if gives(logits, expected_NV, inner.dtype):
                found = found or form
    if found is None:
        logger.debug("%s takes no mask of a tree: choices are ranked branch by branch.", type(inner).__name__)
    return found
