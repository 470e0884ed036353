"""Rank classification: the choice with the highest log-likelihood after the prompt is the answer.

Shapes: B examples, S sequences, C choices, T tokens of the longest choice, N scored rows, V vocabulary.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import NonFiniteError
from sinkd_llm.inputs.collator import AnswerCollator
from sinkd_llm.models.kinds import Kind
from sinkd_llm.models.kinds.choices import score_choices

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

# Rows that a message names.
_NAMED = 5


@dataclass(frozen=True)
class Ranking:
    """
    Scores of the choices of every row of a data set, in its order.

    Attributes:
        log_likelihoods (`list[list[float]]`): summed over the tokens of a choice, in nats, all finite.
        numbers (`list[float]`, *optional*): what a regression head predicts, its choices spanning [0, 1].
    """

    log_likelihoods: list[list[float]]
    numbers: list[float] | None


def rank_choices(
    model: "PreTrainedModel",
    kind: Kind,
    collator: AnswerCollator,
    features: "Dataset",
    batch_size: int,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    device: torch.device | None = None,
    share: bool = False,
) -> Ranking:
    """
    Scores the choices of tokenised rows (`tokenize_dataset(…, ranking=True)`), `batch_size` rows at a time.

    `device` and `share` are those of [`evaluate_task`].

    Raises:
        NonFiniteError: naming the first rows of which a score is NaN or infinite.
    """
    alone = not share or Ranks.of() is None  # otherwise the ranks have to make the same number of forwards
    found: dict[int, tuple[list[float], float | None]] = {}
    for chosen in batches_by_length(
        [len(ids) for ids in features["prompt_ids"]], batch_size, on_progress, share=share
    ):
        batch = on_device(collator([features[i] for i in chosen]), device or model.device)
        scores = score_choices(kind, model, batch, share_prompts=alone)
        numbers = scores.number_B.tolist() if scores.number_B is not None else [None] * len(chosen)
        rows = zip(scores.log_likelihood_BC.tolist(), scores.length_BC.tolist(), numbers, strict=True)
        for i, (sums, lengths, number) in zip(chosen, rows, strict=True):
            found[i] = [score for score, length in zip(sums, lengths, strict=True) if length], number
    found = from_all(found, share)
    rows_sums, all_numbers = zip(*(found[i] for i in range(len(features))), strict=True)
    refuse_non_finite(rows_sums, features["example_id"], "log-likelihood of an answer")
    numbered = all_numbers[0] is not None
    return Ranking(list(rows_sums), list(all_numbers) if numbered else None)


def refuse_non_finite(rows: Iterable[Sequence[float]], names: Iterable[str], what: str) -> None:
    """
    Refuses numbers of a model that rank nothing: the greatest of several NaN is the first.

    Args:
        rows (iterable of sequences of `float`): the numbers of each row.
        names (iterable of `str`): of the rows.
        what (`str`): what the numbers are, for the message.

    Raises:
        NonFiniteError: naming the first rows with NaN or infinity.
    """
    broken = [name for name, row in zip(names, rows, strict=True) if not all(map(math.isfinite, row))]
    if broken:
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise NonFiniteError(
            f"The {what} is NaN or infinite for {', '.join(broken[:_NAMED])}{more}, and a model that gives no numbers "
            "has no score. Check its weights (a broken save, a learning_rate that was too large), or load it in "
            "float32 or bfloat16 if it runs in float16."
        )


def batches_by_length(
    lengths: Sequence[int],
    batch_size: int,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    share: bool = False,
) -> Iterable[list[int]]:
    """
    Indices of the rows of each batch, and a report after each.

    Rows of like length share a batch: less padding, and the longest come first, so that a batch that does not fit
    into memory fails at once. With `share`, each process of a distributed launch gets a part of the batches, and all
    get equally many, for a sharded model must be called by all alike: the last may come twice. See [`from_all`].
    """
    order = np.argsort([-length for length in lengths], kind="stable").tolist()
    starts = range(0, len(order), batch_size)
    ranks = Ranks.of() if share else None
    rank, processes = (ranks.index, ranks.count) if ranks else (0, 1)
    for first in range(0, len(starts), processes):
        start = starts[min(first + rank, len(starts) - 1)]
        yield order[start : start + batch_size]
        if on_progress:
            on_progress(min((first + processes) * batch_size, len(order)), len(order))


def from_all(found: dict[int, Any], share: bool) -> dict[int, Any]:
    """What every process found for its rows, by row, if the rows were shared."""
    ranks = Ranks.of() if share else None
    return found if ranks is None else ranks.merged(found)


def on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def on_scale_of(numbers: Sequence[float], choices: Sequence[Sequence[str]]) -> list[float]:
    """Numbers in [0, 1] on the scale of the numeric choices of their rows; a prediction may lie outside."""
    scaled = []
    for number, row_choices in zip(numbers, choices, strict=True):
        values = [float(choice) for choice in row_choices]
        scaled.append(min(values) + number * (max(values) - min(values)))
    return scaled
