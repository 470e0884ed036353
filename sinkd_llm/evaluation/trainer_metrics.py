"""What `SinKDTrainer` reports of an evaluation: its `compute_metrics`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.evaluation.ranking import on_scale_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction

    from sinkd_llm.tasks import Task


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
        more: dict[str, Any] = {}
        if numbers is not None and rows is not None:
            more["numbers"] = on_scale_of(numbers, rows["choices"])
        return dict(task.compute_metrics(chosen.tolist(), labels, rows=rows, **more))

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
