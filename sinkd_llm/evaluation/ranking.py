"""Rank classification: the choice with the highest log-likelihood after the prompt is the answer, and its metrics.

Shapes: B examples, C choices.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import NonFiniteError
from sinkd_llm.evaluation.batches import batches_by_length, from_all, on_device
from sinkd_llm.inputs.batch import AnswerCollator
from sinkd_llm.models.kinds import Kind
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.models.kinds.prefix_sharing import KeptPrefix

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel

    from sinkd_llm.tasks import Task

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

    `device` and `share` are the same as in [`evaluate_task`].

    Raises:
        NonFiniteError: naming the first rows of which a score is NaN or infinite.
    """
    ranks = Ranks.of() if share else None
    found: dict[int, tuple[list[float], float | None]] = {}
    kept = KeptPrefix()  # nothing of the model changes while its rows are ranked
    for chosen in batches_by_length(
        [len(ids) for ids in features["prompt_ids"]], batch_size, on_progress, share=share
    ):
        batch = on_device(collator([features[i] for i in chosen]), device or model.device)
        scores = score_choices(kind, model, batch, ranks=ranks, kept=kept)
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


def on_scale_of(numbers: Sequence[float], choices: Sequence[Sequence[str]]) -> list[float]:
    """Numbers in [0, 1] on the scale of the numeric choices of their rows; a prediction may lie outside."""
    scaled = []
    for number, row_choices in zip(numbers, choices, strict=True):
        values = [float(choice) for choice in row_choices]
        scaled.append(min(values) + number * (max(values) - min(values)))
    return scaled


def agreement(chosen: Sequence[int], by_teacher: Sequence[int]) -> float | None:
    """
    The share of rows where student and teacher choose the same answer, in [0, 1].

    Args:
        chosen, by_teacher (sequences of `int`): the index of the answer that each chose, for each row.

    Returns:
        `float` or `None`: `None` if the teacher's choice is not known (-1) for one of the rows: the share of the
        others is no number of these rows.
    """
    theirs = np.asarray(by_teacher)
    return None if (theirs < 0).any() else float((np.asarray(chosen) == theirs).mean())


def ranking_metrics(task: "Task", rows: "Dataset | None" = None) -> Callable[["EvalPrediction"], dict[str, float]]:
    """
    The task's metrics as the `compute_metrics` of [`SinKDTrainer`], whose predictions are `[n, C]` scores.

    Args:
        task ([`Task`]): names the metrics.
        rows ([`~datasets.Dataset`], *optional*): the evaluation rows, for tasks that score groups of rows and for
            heads that predict a number.
    """

    def compute_metrics(prediction: "EvalPrediction") -> dict[str, float]:
        chosen, numbers = _chosen(prediction)
        labels: list[int] = np.asarray(prediction.label_ids).tolist()
        scaled = None if numbers is None or rows is None else on_scale_of(numbers, rows["choices"])
        return dict(task.compute_metrics(chosen.tolist(), labels, rows=rows, numbers=scaled))

    return compute_metrics


def accuracy(prediction: "EvalPrediction") -> dict[str, float]:
    """Share of rows whose highest score is the gold choice: the default of [`SinKDTrainer`]."""
    chosen, _ = _chosen(prediction)
    return {"acc": float(np.mean(chosen == np.asarray(prediction.label_ids)))}


def _chosen(prediction: "EvalPrediction") -> tuple[np.ndarray, Sequence[float] | None]:
    """The chosen answers `[n]`, and what a regression head predicted `[n]`, in [0, 1], if it was one."""
    scores: Any = prediction.predictions
    if isinstance(scores, tuple):
        scores, numbers = scores
        return np.asarray(scores).argmax(axis=-1), np.asarray(numbers).tolist()
    return np.asarray(scores).argmax(axis=-1), None
