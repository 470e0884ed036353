"""A model is tried on made-up tokens: does a faster way give what one text after the other gives?

Shapes: E trees, each after a prompt, P tokens of the longest prompt, N rows of logits, V vocabulary.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.models.kinds.choice_tree import ChoiceTree, choice_tree

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Trial:
    """
    Prompts of unlike length and their choices.

    Attributes:
        ids_EP, mask_EP (`Tensor` `[E, P]`): the prompts, padded on the left.
        trees (sequence of [`ChoiceTree`]): one a prompt.
        begin (`tuple[int, ...]`): what all prompts begin with.
    """

    ids_EP: Tensor
    mask_EP: Tensor
    trees: Sequence[ChoiceTree]
    begin: tuple[int, ...]

    @classmethod
    def of(cls, inner: Any) -> "Trial":
        """
        Args:
            inner (`nn.Module`): the model, without wrappers: its tokens, on its device.
        """
        embeddings = inner.get_input_embeddings().weight
        known = int(getattr(inner.config, "vocab_size", None) or embeddings.shape[0])
        made_up = torch.randint(known, (32,), generator=torch.Generator().manual_seed(0)).tolist()
        a, b, c, d, e, f = made_up[:6]
        trees = [choice_tree(((a, b, c, d), (a, b, e, d), (a, f, d), (d, a), (e,))), choice_tree(((b, a, a), (c, a)))]
        begin, padding = made_up[6:10], made_up[10:13]
        ids_EP = torch.tensor([[*begin, *made_up[13:17]], [*padding, *begin, made_up[17]]], device=embeddings.device)
        mask_EP = torch.ones_like(ids_EP)
        mask_EP[1, : len(padding)] = 0
        return cls(ids_EP, mask_EP, trees, tuple(begin))


@contextmanager
def in_eval_mode(inner: Any) -> Iterator[None]:
    """Without dropout and gradients; the modes of the model's modules are then what they were."""
    modes = {module: module.training for module in inner.modules()}
    inner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def gives(logits: Callable[[], Tensor], expected_NV: Tensor, dtype: torch.dtype) -> bool:
    """
    Whether a way works and gives what is expected, up to rounding.

    Args:
        logits (`Callable`): the way; what it raises is no error, for any model's code may refuse it in its own words.
        expected_NV (`Tensor` `[N, V]`): of the way that every model goes.
        dtype (`torch.dtype`): of the model's weights.
    """
    try:
        found_NV = logits()
    except Exception as error:
        logger.debug("A way to score choices was refused: %s", error)
        return False
    # Rounding, against how much the rows differ: another mask or position changes rows as much.
    eps = max(torch.finfo(dtype).eps, torch.finfo(expected_NV.dtype).eps)
    expected_NV = expected_NV.float()
    distance = (found_NV.float() - expected_NV).norm()
    return bool(distance <= 2 * eps**0.5 * (expected_NV - expected_NV.mean(dim=0)).norm())
