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
from sinkd_llm.models.kinds import (
    IGNORE_INDEX,
    Kind,
    SupervisedRows,
    can_share_prompts,
    shared_prompt_logits,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

# Rows that a message names.
_NAMED = 5


@dataclass(frozen=True)
class ChoiceScores:
    """
    What a model thinks of the choices of a batch.

    Attributes:
        log_likelihood_BC (`Tensor` `[B, C]`): summed over the tokens of the choice, in nats, -inf where a row has
            fewer choices. For a regression, minus the squared distance between prediction and choice.
        length_BC (`Tensor` `[B, C]`): numbers of tokens, 0 where a row has fewer choices.
        number_B (`Tensor` `[B]`, *optional*): what a regression head predicts, its choices spanning [0, 1].
    """

    log_likelihood_BC: Tensor
    length_BC: Tensor
    number_B: Tensor | None = None


def choice_log_likelihoods(supervised: SupervisedRows, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """
    Log-likelihood of every choice of a ranking batch.

    Args:
        supervised ([`SupervisedRows`]): rows of the batch's S sequences.
        batch (`Mapping`): `choice_ids` `[B, C, T]` and `choice_sequence` `[B, C]` of [`AnswerCollator`].

    Returns:
        `tuple[Tensor, Tensor]`: the first two attributes of [`ChoiceScores`].
    """
    scores = _scores([supervised], batch)
    return scores.log_likelihood_BC, scores.length_BC


def score_choices(
    kind: Kind, model: torch.nn.Module, batch: Mapping[str, Any], *, share_prompts: bool = True
) -> ChoiceScores:
    """
    Runs a model on a ranking batch.

    Where the rows of a decoder-only model have several sequences each, their prompts are run once and the choices
    continue from the cache: see [`shared_prompt_logits`]. Choices of one token cost one forward in any case.

    Args:
        kind ([`Kind`]): of the model.
        model (`nn.Module`): possibly wrapped.
        batch (`Mapping`): of the family's collator, on the model's device.
        share_prompts (`bool`, *optional*, defaults to `True`): `False` runs every batch in one forward, so that the
            ranks of a sharded model stay in step.
    """
    several = len(batch["labels"]) > len(batch["choice_ids"])
    if several and share_prompts and kind.name == "causal-lm" and can_share_prompts(model):
        return _scores(shared_prompt_logits(model, batch, _prompt_of_sequence(batch)), batch)
    return _scores([kind.supervised_rows(model, batch)], batch)


def _scores(parts: Iterable[SupervisedRows], batch: Mapping[str, Any]) -> ChoiceScores:
    """The scores from the supervised logits of the batch, in parts of whole sequences."""
    choice_ids_BCT, sequence_BC = batch["choice_ids"], batch["choice_sequence"]
    present_BC = sequence_BC >= 0
    longest = choice_ids_BCT.shape[-1]
    num_sequences = batch["labels"].shape[0]
    log_likelihood_BC = torch.full(sequence_BC.shape, -torch.inf, device=sequence_BC.device)
    for part in parts:
        if "choice_values" in batch:
            number_B = part.logits_NV.float()[sequence_BC[:, 0], 0]
            distance_BC = (number_B[:, None] - batch["choice_values"]).square()
            return ChoiceScores((-distance_BC).masked_fill(~present_BC, -torch.inf), present_BC.long(), number_B)
        device = part.logits_NV.device
        # row_ST[s, t] is the row that predicts the t-th answer token of sequence s.
        row_ST = torch.full((num_sequences, longest), -1, dtype=torch.long, device=device)
        row_ST[part.example_N, part.position_N] = torch.arange(len(part.labels_N), device=device)
        b_K, c_K = torch.nonzero(present_BC & (row_ST[sequence_BC.clamp_min(0), 0] >= 0), as_tuple=True)
        choice_ids_KT = choice_ids_BCT[b_K, c_K]
        row_KT = row_ST[sequence_BC[b_K, c_K]]
        log_probs_NV = part.logits_NV.float().log_softmax(dim=-1)
        log_probs_KT = log_probs_NV[row_KT.clamp_min(0), choice_ids_KT.clamp_min(0)]
        log_likelihood_BC[b_K, c_K] = torch.where(choice_ids_KT != IGNORE_INDEX, log_probs_KT, 0.0).sum(dim=-1)
    return ChoiceScores(log_likelihood_BC, (choice_ids_BCT != IGNORE_INDEX).sum(dim=-1))


def _prompt_of_sequence(batch: Mapping[str, Any]) -> Tensor:
    """Index in the batch of the row that each sequence belongs to: `[S]`."""
    sequence_BC = batch["choice_sequence"]
    b_K, c_K = torch.nonzero(sequence_BC >= 0, as_tuple=True)
    prompt_S = sequence_BC.new_zeros(len(batch["labels"]))
    prompt_S[sequence_BC[b_K, c_K]] = b_K
    return prompt_S


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
