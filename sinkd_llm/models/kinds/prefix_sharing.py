"""When the beginning that the prompts of a batch share is read once for all of them.

Shapes: B prompts, P tokens of the longest.
"""

import logging
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sinkd_llm.models.kinds.prefix import common_prefix, read_prefix
from sinkd_llm.models.kinds.shared_prompt import can_share_prompts, path_logits
from sinkd_llm.models.kinds.tree_attention import takes_trees, tree_logits
from sinkd_llm.models.kinds.trial import Trial, gives, in_eval_mode
from sinkd_llm.models.wrappers import unwrap

logger = logging.getLogger(__name__)

# A further forward costs about what reading so many tokens costs (benchmarks: from 32 on it never took longer).
LEAST_SHARED = 32

_tried: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def worth_sharing(model: nn.Module, ids_BP: Tensor, mask_BP: Tensor) -> tuple[int, ...]:
    """
    What all prompts of a batch begin with, if reading it once saves time; else nothing.

    Only without gradients, for the beginning's would be kept, and without dropout, which is drawn for each row.

    Args:
        model (`nn.Module`): a decoder-only model, possibly wrapped.
        ids_BP, mask_BP (`Tensor` `[B, P]`): the prompts, padded on the left.
    """
    if torch.is_grad_enabled() or len(ids_BP) < 2 or ids_BP.shape[1] <= LEAST_SHARED:
        return ()
    if any(module.training for module in unwrap(model).modules()):
        return ()
    ids = common_prefix(ids_BP, mask_BP)
    return ids if len(ids) >= LEAST_SHARED else ()


def continues_prefixes(model: nn.Module) -> bool:
    """
    Whether a decoder gives the same for prompts whose beginning it has read before.

    The model is asked once, with a few forwards on some made-up tokens, always as many.

    Args:
        model (`nn.Module`): a decoder-only model, possibly wrapped.
    """
    if not can_share_prompts(model):
        return False
    inner = unwrap(model)
    if inner not in _tried:
        _tried[inner] = _continues(model)
    return _tried[inner]


def _continues(model: nn.Module) -> bool:
    inner = unwrap(model)
    trial = Trial.of(inner)
    ways: list[Callable[..., Tensor]] = [path_logits]
    if takes_trees(model, trial.ids_EP.shape[1] + max(len(tree.tokens) for tree in trial.trees)):
        ways.append(tree_logits)
    with in_eval_mode(inner):
        expected_NV = path_logits(model, trial.ids_EP, trial.mask_EP, trial.trees)
        # Each way, for the ranks of a sharded model have to run it as often.
        same = [gives(partial(_from_prefix, way, trial, model), expected_NV, inner.dtype) for way in ways]
    if not all(same):
        logger.debug("%s does not continue what it has read: each prompt is read as a whole.", type(inner).__name__)
    return all(same)


def _from_prefix(way: Callable[..., Tensor], trial: Trial, model: nn.Module) -> Tensor:
    prefix = read_prefix(model, trial.begin, trial.ids_EP.device)
    return way(model, trial.ids_EP, trial.mask_EP, trial.trees, prefix)
