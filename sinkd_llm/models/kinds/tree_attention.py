"""A decoder on trees of choices in one forward: the nodes follow the prompt, and each sees only what it continues.

Shapes: E trees, each after a prompt, P tokens of the longest prompt, M nodes of the largest tree, S = P + M places,
N rows of logits, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sinkd_llm.models.heads import logits_at
from sinkd_llm.models.kinds.choice_tree import ChoiceTree, choice_tree, stacked
from sinkd_llm.models.kinds.contract import context_length
from sinkd_llm.models.kinds.shared_prompt import path_logits
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
    model: nn.Module, ids_EP: Tensor, mask_EP: Tensor, trees: Sequence[ChoiceTree], form: Form | None = None
) -> Tensor:
    """
    The logits of each tree's rows, tree by tree, in one forward in which each prompt and each node is read once.

    Differentiable: the choices' gradient goes through one reading of the prompt.

    Args:
        model (`nn.Module`): one that [`takes_trees`], possibly wrapped.
        ids_EP, mask_EP (`Tensor` `[E, P]`): the prompts, padded on the left.
        trees (sequence of [`ChoiceTree`]): one a prompt.
        form (`Callable`, *optional*): how the mask says what is seen; default: what the model takes.

    Returns:
        `Tensor` `[N, V]`: see [`ChoiceTree`].
    """
    inner = unwrap(model)
    form = form or _forms[inner]
    assert form is not None
    prompt, device, most = ids_EP.shape[1], ids_EP.device, max(len(tree.tokens) for tree in trees)
    count = prompt + most
    node_EM = stacked([tree.token_M for tree in trees], 0, most).to(device)
    follows_EMM = stacked([tree.seen_MM for tree in trees], False, most, most).to(device)
    size_E = torch.tensor([len(tree.tokens) for tree in trees], device=device)

    seen_ESS = torch.zeros(len(trees), count, count, dtype=torch.bool, device=device)
    seen_ESS[:, :, :prompt] = mask_EP.bool()[:, None, :]
    seen_ESS[:, :prompt, :prompt] &= torch.ones(prompt, prompt, dtype=torch.bool, device=device).tril()
    seen_ESS[:, prompt:, prompt:] = follows_EMM
    # Padding sees itself, for nothing seen is no number.
    seen_ESS.diagonal(dim1=1, dim2=2).fill_(True)

    read_EP = mask_EP.long().cumsum(dim=1)
    place_ES = torch.cat([read_EP - 1, read_EP[:, -1:] + follows_EMM.sum(dim=2) - 1], dim=1).clamp_min(0)
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else inner.dtype
    masks: Any = form(seen_ESS[:, None], dtype)
    if _slides(inner.config):
        near_ESS = place_ES[:, :, None] - place_ES[:, None, :] < inner.config.sliding_window
        masks = {"full_attention": masks, "sliding_attention": form((seen_ESS & near_ESS)[:, None], dtype)}

    asked_ES = torch.zeros(len(trees), count, dtype=torch.bool, device=device)
    asked_ES[:, prompt - 1] = True
    asked_ES[:, prompt:] = torch.arange(most, device=device) < size_E[:, None]
    ids_ES = torch.cat([ids_EP, node_EM], dim=1)
    more = {"position_ids": place_ES, **accepted(model, {"use_cache": False})}
    return logits_at(model, asked_ES, input_ids=ids_ES, attention_mask=masks, **more)


def _slides(config: Any) -> bool:
    """Whether layers differ in how far they look back, and the model takes a mask for either kind of layer."""
    kinds = {*(getattr(config, "layer_types", None) or ())}
    return "sliding_attention" in kinds and kinds <= {"sliding_attention", "full_attention"}


def _selecting(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return seen


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


@torch.no_grad()
def _form_for(model: nn.Module) -> Form | None:
    """How the model takes the mask of a tree, if it does."""
    inner = unwrap(model)
    embeddings = inner.get_input_embeddings().weight
    known = int(getattr(inner.config, "vocab_size", None) or embeddings.shape[0])
    made_up = torch.randint(known, (32,), generator=torch.Generator().manual_seed(0)).tolist()
    a, b, c, d, e, f = made_up[:6]
    trees = [choice_tree(((a, b, c, d), (a, b, e, d), (a, f, d), (d, a), (e,))), choice_tree(((b, a, a), (c, a)))]
    ids_EP = torch.tensor([made_up[6:14], made_up[14:22]], device=embeddings.device)
    mask_EP = torch.ones_like(ids_EP)
    mask_EP[1, :3] = 0
    modes = {module: module.training for module in inner.modules()}
    inner.eval()
    try:
        expected_NV = path_logits(model, ids_EP, mask_EP, trees)
        found = None
        for form in (_added, _selecting):  # both, for the ranks of a sharded model have to run it as often
            logits = partial(tree_logits, model, ids_EP, mask_EP, trees, form)
            if _same(logits, expected_NV, inner.dtype):
                found = found or form
    finally:
        for module, mode in modes.items():
            module.training = mode
    if found is None:
        logger.debug("%s takes no mask of a tree: choices are ranked branch by branch.", type(inner).__name__)
    return found


def _same(logits: Callable[[], Tensor], expected_NV: Tensor, dtype: torch.dtype) -> bool:
    try:
        found_NV = logits()
    except Exception as error:  # code of any model may refuse such a mask in its own way
        logger.debug("The mask of a tree was refused: %s", error)
        return False
    # Rounding, against how much the rows differ: another mask or position changes rows as much.
    eps = max(torch.finfo(dtype).eps, torch.finfo(expected_NV.dtype).eps)
    expected_NV = expected_NV.float()
    distance = (found_NV.float() - expected_NV).norm()
    return bool(distance <= 2 * eps**0.5 * (expected_NV - expected_NV.mean(dim=0)).norm())
