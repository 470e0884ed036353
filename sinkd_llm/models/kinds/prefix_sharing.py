"""When the beginning that the prompts of a batch share is read once for all of them.

Shapes: B prompts, P tokens of the longest.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sinkd_llm.distributed import Ranks
from sinkd_llm.models.kinds.prefix import Prefix, common_prefix, read_prefix
from sinkd_llm.models.kinds.shared_prompt import can_share_prompts, path_logits
from sinkd_llm.models.kinds.tree_attention import takes_trees, tree_logits
from sinkd_llm.models.kinds.trial import Trial, gives, in_eval_mode
from sinkd_llm.models.partitioning import is_partitioned
from sinkd_llm.models.wrappers import unwrap

logger = logging.getLogger(__name__)

# A further forward costs what some 30 tokens cost (SmolLM2-135M on one core of a CPU): two rows then lose nothing.
LEAST_SHARED = 32

_tried: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


class KeptPrefix:
    """
    What a model has last read of a beginning, for the next batch, which mostly begins alike.

    Whoever makes one sees to it that nothing of the model changes while it is in use: its weights, its adapters, their
    type, autocast. Nothing here could tell.
    """

    def __init__(self) -> None:
        self._prefix: Prefix | None = None
        self._model: nn.Module | None = None

    def part(self, model: nn.Module, ids: Sequence[int]) -> Prefix | None:
        """
        As much as has been read of a beginning, if reading all of it again would not pay.

        Args:
            model (`nn.Module`): that is to continue it.
            ids (sequence of `int`): the tokens of the beginning.
        """
        if self._prefix is None or self._model is not model:
            return None
        same = len([*takewhile(lambda both: both[0] == both[1], zip(self._prefix.ids, ids, strict=False))])
        if same < LEAST_SHARED or len(ids) - same >= LEAST_SHARED:
            return None
        return replace(self._prefix, ids=self._prefix.ids[:same])

    def read(self, model: nn.Module, ids: Sequence[int], device: torch.device) -> Prefix:
        """See [`read_prefix`]; kept instead of the last one."""
        self._prefix, self._model = read_prefix(model, ids, device), model
        return self._prefix


def shared_prefix(
    model: nn.Module,
    ids_BP: Tensor,
    mask_BP: Tensor,
    length: int,
    ranks: Ranks | None = None,
    kept: KeptPrefix | None = None,
) -> Prefix | None:
    """
    What all prompts of a batch begin with, read, if that saves time.

    Args:
        model (`nn.Module`): a decoder-only model, possibly wrapped.
        ids_BP, mask_BP (`Tensor` `[B, P]`): the prompts, padded on the left.
        length (`int`): of the longest prompt with what follows it, in tokens.
        ranks ([`Ranks`], *optional*): those that call the model together, each with prompts of its own: all read the
            beginning of theirs, or none does.
        kept ([`KeptPrefix`], *optional*): of the batches before.
    """
    # A gradient would need what is kept, and dropout is drawn for each row.
    if torch.is_grad_enabled() or any(module.training for module in unwrap(model).modules()):
        return None
    kept = kept or KeptPrefix()
    ids = _worth_sharing(ids_BP, mask_BP) if can_share_prompts(model, length) else ()
    prefix = kept.part(model, ids)
    unread = prefix is None
    if ranks is not None:
        told = ranks.numbers(len(ids), unread, device=ids_BP.device)
        ids = ids if all(tokens for tokens, _ in told) else ()
        unread = any(reads for _, reads in told)
    elif ids and is_partitioned(model):
        return None  # the processes that hold a model together make the same number of forwards
    if not ids or not continues_prefixes(model):
        return None
    return kept.read(model, ids, ids_BP.device) if unread else prefix


def _worth_sharing(ids_BP: Tensor, mask_BP: Tensor) -> tuple[int, ...]:
    if len(ids_BP) < 2 or ids_BP.shape[1] <= LEAST_SHARED:
        return ()
    ids = common_prefix(ids_BP, mask_BP)
    return ids if len(ids) >= LEAST_SHARED else ()


def continues_prefixes(model: nn.Module) -> bool:
    """
    Whether a decoder gives the same for prompts whose beginning it has read before.

    The model is asked once, with a few forwards on some made-up tokens, always as many.

    Args:
        model (`nn.Module`): one that [`can_share_prompts`][sinkd_llm.models.kinds.shared_prompt.can_share_prompts],
            possibly wrapped.
    """
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
