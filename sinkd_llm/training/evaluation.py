"""What the trainer makes of an evaluation batch, and of all of them: numbers a row, whatever the batches were.

Shapes: B rows of a batch, C choices, N supervised tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from sinkd_llm.errors import InputError
from sinkd_llm.evaluation import agreement, refuse_non_finite
from sinkd_llm.models.kinds import SupervisedRows
from sinkd_llm.models.kinds.choices import ChoiceScores
from sinkd_llm.objectives import cross_entropy, squared_error

# What `prediction_step` gives for rows without choices: their losses and their numbers of tokens.
_LOSSES_ONLY = 2


def answer_losses(supervised: SupervisedRows, examples: Sequence[str]) -> tuple[Tensor, Tensor]:
    """
    Cross-entropy of each row's answer, summed over its tokens, and its number of tokens: `[B]` each.

    Args:
        supervised ([`SupervisedRows`]): of a batch without choices.
        examples (sequence of `str`): the names of its B rows.

    Raises:
        NonFiniteError: naming the rows whose loss is NaN or infinite.
    """
    loss = squared_error if supervised.labels_N.is_floating_point() else cross_entropy
    loss_N = loss(supervised.logits_NV, supervised.labels_N)
    loss_B = loss_N.new_zeros(len(examples)).index_add(0, supervised.example_N, loss_N)
    tokens_B = torch.zeros_like(loss_B).index_add(0, supervised.example_N, torch.ones_like(loss_N))
    refuse_non_finite(loss_B[:, None].tolist(), examples, "loss of an answer")
    return loss_B, tokens_B


def gold_losses(scores: ChoiceScores, gold_B: Tensor) -> tuple[Tensor, Tensor]:
    """The same of rows with choices: minus the log-likelihood of the gold choice, and its number of tokens."""
    gold_B1 = gold_B[:, None]
    return (
        -scores.log_likelihood_BC.gather(1, gold_B1).squeeze(1),
        scores.length_BC.gather(1, gold_B1).squeeze(1).float(),
    )


class EvaluationMetrics:
    """
    The `compute_metrics` that Transformers gets: the loss a token over all rows, the user's metrics, the agreement.

    Args:
        user (`Callable`): gets the log-probabilities of the choices, and what a regression head predicts.
    """

    def __init__(self, user: Callable[[EvalPrediction], Any]) -> None:
        self.user = user

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """
        Raises:
            InputError: if the user's function gives something else than numbers by name.
        """
        parts: Any = prediction.predictions  # what `prediction_step` returns, gathered
        if len(parts) == _LOSSES_ONLY:
            return {"loss": _mean_loss(*parts)}
        scores, teacher_choice, losses, tokens, *numbers = parts
        given = EvalPrediction((scores, *numbers) if numbers else scores, prediction.label_ids)
        metrics = {"loss": _mean_loss(losses, tokens), **_checked(self.user(given))}
        agrees = agreement(scores.argmax(-1), teacher_choice)
        return metrics if agrees is None else {**metrics, "agreement": agrees}


def public_predictions(predictions: Any) -> Any:
    """What `trainer.predict` shows of what `prediction_step` gives: no losses."""
    if not isinstance(predictions, tuple):
        return predictions
    return None if len(predictions) == _LOSSES_ONLY else (*predictions[:2], *predictions[4:])


def _mean_loss(losses: Any, tokens: Any) -> float:
    return float(np.sum(losses, dtype=np.float64) / max(np.sum(tokens, dtype=np.float64), 1))


def _checked(metrics: Any) -> dict[str, Any]:
    if not isinstance(metrics, Mapping):
        raise InputError(
            f"compute_metrics returned a {type(metrics).__name__}; it has to return a dictionary of names and "
            'numbers, such as {"acc": 0.9}.'
        )
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise InputError(f"compute_metrics returned the name {name!r}; names are texts.")
        plain = value.item() if hasattr(value, "item") and np.ndim(value) == 0 else value
        if name in ("loss", "agreement"):
            raise InputError(
                f"compute_metrics returned {name!r}, which an evaluation reports itself; give the number another name."
            )
        if isinstance(plain, float) and not math.isfinite(plain):
            raise InputError(
                f"compute_metrics returned {plain} for {name!r}, which ranks no model above another; return a finite "
                "number, such as 0 where the metric is undefined."
            )
    return dict(metrics)
