"""An encoder on rows of unlike lengths: in parts, so that short rows are not padded to the longest row of the batch.

Shapes: S rows of a batch, L tokens of the longest, V classes, H features of a hidden state.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sinkd_llm.models.states import last_states, mean_states

# What one more forward and backward cost beside their tokens, in tokens. Measured with MiniLM on one thread.
_COST_OF_A_PART = 40


def logits_by_length(
    model: nn.Module, inputs: Mapping[str, Tensor], states: bool = False
) -> tuple[Tensor, Tensor | None]:
    """
    The logits of a classification head, `[S, V]`, equal to those of one forward but for rounding and dropout's draws,
    and the mean hidden state of each row, `[S, H]`, where `states` asks for it.

    One process on a CPU runs the rows in parts, by length: there, time goes by the tokens, padding included, and rows
    in whole groups cannot be put together by length beforehand. A GPU is faster with one forward, and processes that
    share a model must agree on their number.

    Args:
        model (`nn.Module`): possibly wrapped.
        inputs (`Mapping[str, Tensor]`): `input_ids`, `attention_mask` and what else the model reads, `[S, L]`, padded
            on the right.
    """
    mask_SL = inputs.get("attention_mask")
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if mask_SL is None or mask_SL.device.type != "cpu" or not alone:
        return _forward(model, inputs, states)
    lengths = mask_SL.sum(dim=1).tolist()
    parts = parts_by_length(lengths)
    if len(parts) <= 1:
        return _forward(model, inputs, states)
    found = []
    with _looked_up_once(model, inputs["input_ids"]) as take:
        for rows in parts:
            longest = max(lengths[row] for row in rows)
            take(rows, longest)
            found.append(_forward(model, {name: value[rows, :longest] for name, value in inputs.items()}, states))
    back = torch.tensor([row for rows in parts for row in rows]).argsort()
    logits, means = zip(*found, strict=True)
    return torch.cat(logits)[back], torch.cat(means)[back] if states else None


def _forward(model: nn.Module, inputs: Mapping[str, Tensor], states: bool) -> tuple[Tensor, Tensor | None]:
    with last_states(model, states) as found:
        logits_SV: Tensor = model(**inputs).logits
    return logits_SV, mean_states(found, inputs["attention_mask"]) if states else None


@contextmanager
def _looked_up_once(model: nn.Module, input_ids_SL: Tensor) -> Iterator[Callable[[Sequence[int], int], None]]:
    """
    The embeddings of all rows are looked up once, and each part takes its own: the gradient of the embeddings is as
    large as the vocabulary, and would be made and added up for every part.

    Yields a function that says which part comes: its rows and how many tokens of them. Other tokens than the part's
    are looked up as ever.
    """
    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    embedded_SLH: Tensor = embedding(input_ids_SL)
    part: tuple[Sequence[int], int] = ([], 0)

    def take(rows: Sequence[int], longest: int) -> None:
        nonlocal part
        part = (rows, longest)

    def embedded(_: nn.Module, given: tuple[Any, ...], __: object) -> Tensor | None:
        rows, longest = part
        asked = given[0] if given else None
        if not isinstance(asked, Tensor) or not torch.equal(asked, input_ids_SL[rows, :longest]):
            return None
        return embedded_SLH[rows, :longest]

    hook = embedding.register_forward_hook(embedded)
    try:
        yield take
    finally:
        hook.remove()


def parts_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """
    The rows in the parts that together cost least: their tokens with padding, and something for each part.

    Args:
        lengths (sequence of `int`): tokens of each row.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # The cheapest way to part the first rows of the order, and where its last part begins.
    costs, begins = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        cost, begin = min((costs[i] + (end - i) * longest + _COST_OF_A_PART, i) for i in range(end))
        costs.append(cost)
        begins.append(begin)
    parts: list[list[int]] = []
    end = len(order)
    while end:
        parts.insert(0, order[begins[end] : end])
        end = begins[end]
    return parts
