"""A batch without padding: its rows end to end, as one sequence whose positions begin again with every row.

Attention that is told these positions and no mask keeps the rows apart, as in Krell et al., "Efficient Sequence
Packing without Cross-contamination" (arXiv:2107.02027). `models/probes.py` tries whether a model's does.

Shapes: B rows of a batch, L tokens of the longest, M tokens of all rows together, N supervised tokens, H features of
a hidden state.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds.contract import IGNORE_INDEX
from sinkd_llm.models.states import only_states

# Where a packed batch holds which row each of its tokens is of.
ROW_OF = "row_of"


def packed(batch: Mapping[str, Any]) -> dict[str, Any]:
    """
    The batch with its rows end to end.

    Args:
        batch (`Mapping`): of a collator for decoder-only models: `input_ids`, `attention_mask` and `labels` `[B, L]`,
            padded on either side.

    Returns:
        `dict`: `input_ids`, `labels`, `position_ids` and `row_of` `[1, M]`, no mask, and what else the batch has.

    Raises:
        InputError: for a batch that does not say what of it is padding, or has a row that begins with a supervised
            token: what predicts that one would be the end of another row.
    """
    missing = [name for name in ("input_ids", "attention_mask", "labels") if name not in batch]
    if missing:
        raise InputError(
            f"packing is on, and a batch of data_collator has no {' and no '.join(missing)}, so its rows cannot be "
            "taken out of their padding; return all of input_ids, attention_mask and labels, or leave packing out."
        )
    present_BL = batch["attention_mask"].bool()
    positions_BL = present_BL.long().cumsum(dim=1) - 1
    rows_BL = torch.arange(len(present_BL), device=present_BL.device)[:, None].expand_as(present_BL)
    parts = {"input_ids": batch["input_ids"], "position_ids": positions_BL, ROW_OF: rows_BL, "labels": batch["labels"]}
    laid = {name: part_BL[present_BL][None] for name, part_BL in parts.items()}
    if bool((laid["labels"][laid["position_ids"] == 0] != IGNORE_INDEX).any()):
        raise InputError(
            "packing is on, and a row of a batch has a label at its first token, which nothing in that row predicts; "
            "begin each row with a token whose label is -100, or leave packing out."
        )
    rest = {name: value for name, value in batch.items() if name not in (*parts, "attention_mask")}
    return {**rest, **laid}


def rows_of_packed(row_of_1M: Tensor, column_N: Tensor) -> tuple[Tensor, Tensor]:
    """`example_N` and `position_N` of the supervised tokens that stand in these columns, in ascending order."""
    example_N = row_of_1M[0, column_N]
    # Supervised tokens of the rows before: where the first token of each one's row stands among all.
    before_N = torch.searchsorted(example_N, example_N)
    return example_N, torch.arange(len(example_N), device=example_N.device) - before_N


def mean_states_of_packed(found: list[Tensor], answered_1M: Tensor, row_of_1M: Tensor) -> Tensor:
    """
    The mean hidden state of what stands before the first supervised token of each row, `[B, H]`, in fp32.

    Args:
        found (`list[Tensor]`): what [`~sinkd_llm.models.states.last_states`] found.
        answered_1M (`Tensor` `[1, M]`): true at supervised tokens.
        row_of_1M (`Tensor` `[1, M]`): the row of each token, growing.
    """
    hidden_MH, row_M = only_states(found, answered_1M)[0].float(), row_of_1M[0]
    earlier_M = answered_1M[0].cumsum(dim=0)
    # A row begins with no supervised token, so that the sum at its first token is of the rows before.
    before_M = earlier_M[torch.searchsorted(row_M.contiguous(), row_M.contiguous())]
    prompt_M = (earlier_M == before_M).to(hidden_MH.device, hidden_MH.dtype)
    row_M = row_M.to(hidden_MH.device)
    rows = int(row_M[-1]) + 1
    total_BH = hidden_MH.new_zeros(rows, hidden_MH.shape[1]).index_add(0, row_M, hidden_MH * prompt_M[:, None])
    return total_BH / hidden_MH.new_zeros(rows).index_add(0, row_M, prompt_M).clamp(min=1)[:, None]
