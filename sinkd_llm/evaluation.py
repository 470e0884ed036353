"""Rank classification: the choice with the highest log-likelihood after the prompt is the answer.

Shapes: B examples, S sequences, C choices, T tokens of the longest choice, N scored rows, V vocabulary.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sinkd_llm.collator import row_collator
from sinkd_llm.data import tokenize_dataset
from sinkd_llm.errors import InputError
from sinkd_llm.models.architectures import (
    IGNORE_INDEX,
    SupervisedLogits,
    context_length,
    get_architecture,
)
from sinkd_llm.row_tokenizers import row_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase

    from sinkd_llm.tasks import Task


@dataclass
class TaskScore:
    """
    How well a model does a task.

    Attributes:
        metrics (`dict[str, float]`): the task's own metrics of the choices with the highest summed
            log-likelihood, and `acc_norm`, the accuracy of those with the highest log-likelihood per token.
        num_examples (`int`): rows scored.
        seconds (`float`): wall-clock time of tokenising and scoring.
        predictions (`list[int]`): index of the chosen answer, in the order of the data set.
        log_likelihoods (`list[list[float]]`): of every choice, summed over its tokens, in nats.
    """

    metrics: dict[str, float]
    num_examples: int
    seconds: float
    predictions: list[int]
    log_likelihoods: list[list[float]]

    @property
    def examples_per_second(self) -> float:
        return self.num_examples / self.seconds


def choice_log_likelihoods(supervised: SupervisedLogits, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """
    Log-likelihood of every choice of a ranking batch.

    Args:
        supervised ([`SupervisedLogits`]): rows of the batch's S sequences.
        batch (`Mapping`): `choice_ids` `[B, C, T]` and `choice_sequence` `[B, C]` of [`AnswerCollator`].

    Returns:
        `tuple[Tensor, Tensor]`: `[B, C]` sums over the tokens of the choice, in nats, -inf where a row has
        fewer choices; and `[B, C]` numbers of tokens. For a regression the first is minus the squared distance
        between prediction and choice.
    """
    choice_ids_BCT, sequence_BC = batch["choice_ids"], batch["choice_sequence"]
    if "choice_values" in batch:
        predicted_BC = supervised.logits_NV.float()[sequence_BC.clamp_min(0), 0]
        scores_BC = -(predicted_BC - batch["choice_values"]).square()
        return scores_BC.masked_fill(sequence_BC < 0, -torch.inf), (sequence_BC >= 0).long()
    longest = choice_ids_BCT.shape[-1]
    device = supervised.logits_NV.device
    num_sequences = batch["labels"].shape[0]
    # row_ST[s, t] is the row that predicts the t-th answer token of sequence s.
    row_ST = torch.zeros(num_sequences, longest, dtype=torch.long, device=device)
    row_ST[supervised.example_N, supervised.position_N] = torch.arange(len(supervised.labels_N), device=device)
    row_BCT = row_ST[sequence_BC.clamp_min(0)]
    token_BCT = choice_ids_BCT != IGNORE_INDEX
    log_probs_NV = supervised.logits_NV.float().log_softmax(dim=-1)
    log_probs_BCT = log_probs_NV[row_BCT, choice_ids_BCT.clamp_min(0)]
    scores_BC = torch.where(token_BCT, log_probs_BCT, 0.0).sum(dim=-1)
    return scores_BC.masked_fill(sequence_BC < 0, -torch.inf), token_BCT.sum(dim=-1)


@torch.no_grad()
def evaluate_task(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    task: "Task",
    dataset: "Dataset",
    *,
    batch_size: int = 32,
    max_length: int | None = 1024,
    apply_chat_template: bool = False,
    add_eos: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
    share: bool = False,
) -> TaskScore:
    """
    Scores a model on labelled rows of a task.

    Args:
        model ([`~transformers.PreTrainedModel`]): a model of any supported family, also a PEFT model. Its
            training mode is restored afterwards.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        task ([`Task`]): names the metrics.
        dataset ([`~datasets.Dataset`]): rows from `task.load(split)`.
        batch_size (`int`, *optional*, defaults to `32`): rows a forward.
        max_length (`int` or `None`, *optional*, defaults to `1024`): longer prompts are cut from the left.
        apply_chat_template (`bool`, *optional*, defaults to `False`): prompts as a user's turn.
        add_eos (`bool`, *optional*): as in [`SinKDConfig`]; rank as the model was trained.
        on_progress (`Callable[[int, int], None]`, *optional*): called with rows done and rows in all.
        device (`torch.device`, *optional*): where batches go. Default: where the model's weights are.
        share (`bool`, *optional*, defaults to `False`): each process of a distributed launch scores a part of the
            rows, and all get the whole result. All must call this.

    Returns:
        [`TaskScore`]: metrics, predictions, log-likelihoods and time.

    Raises:
        InputError: for unlabelled rows and whatever [`tokenize_dataset`] refuses.
    """
    started = time.perf_counter()
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give 1 or more.")
    length = shortest(max_length, context_length(model))
    answer_tokenizer = row_tokenizer(model, tokenizer, length, apply_chat_template, add_eos)
    features = tokenize_dataset(dataset, answer_tokenizer, ranking=True)
    labels = list(features["label"])
    collator = row_collator(model, tokenizer)
    architecture = get_architecture(model)
    # Rows of like length share a batch: less padding, and the longest come first, so that a batch that does
    # not fit into memory fails at once.
    order = np.argsort([-len(ids) for ids in features["prompt_ids"]], kind="stable")
    starts = range(0, len(order), batch_size)
    spread = share and torch.distributed.is_initialized()
    rank, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if spread else (0, 1)
    scored: dict[int, tuple[list[float], list[int]]] = {}  # row -> sums and lengths of its choices
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(starts), processes):
            # A sharded model must be called by all processes equally often: the last batch may be scored twice.
            start = starts[min(first + rank, len(starts) - 1)]
            chosen = order[start : start + batch_size]
            batch = {
                key: value.to(device or model.device) if isinstance(value, Tensor) else value
                for key, value in collator([features[int(i)] for i in chosen]).items()
            }
            scores_BC, length_BC = choice_log_likelihoods(architecture.supervised_logits(model, batch), batch)
            for i, scores, lengths in zip(chosen, scores_BC.tolist(), length_BC.tolist(), strict=True):
                pairs = [(score, length) for score, length in zip(scores, lengths, strict=True) if length]
                scored[int(i)] = [score for score, _ in pairs], [length for _, length in pairs]
            if on_progress:
                on_progress(min((first + processes) * batch_size, len(order)), len(order))
    finally:
        model.train(was_training)
    if spread:
        parts: list[Any] = [None] * processes
        torch.distributed.all_gather_object(parts, scored)
        scored = {i: scores for part in parts for i, scores in part.items()}
    sums = [scored[i][0] for i in range(len(labels))]
    means = [[s / n for s, n in zip(*scored[i], strict=True)] for i in range(len(labels))]
    predictions = [int(np.argmax(row)) for row in sums]
    normalised = [int(np.argmax(row)) for row in means]
    metrics = dict(task.compute_metrics(predictions, labels, rows=dataset))
    metrics["acc_norm"] = float(np.mean(np.equal(normalised, labels)))
    return TaskScore(metrics, len(labels), time.perf_counter() - started, predictions, sums)


def shortest(*lengths: int | None) -> int | None:
    """The smallest of the bounds that are given."""
    return min((length for length in lengths if length is not None), default=None)


def ranking_metrics(task: "Task", rows: "Dataset | None" = None) -> Callable[["EvalPrediction"], dict[str, float]]:
    """
    The task's metrics as the `compute_metrics` of [`SinKDTrainer`], whose predictions are `[n, C]` scores.

    Args:
        task ([`Task`]): names the metrics.
        rows ([`~datasets.Dataset`], *optional*): the evaluation rows, for tasks that score groups of rows.
    """

    def compute_metrics(prediction: "EvalPrediction") -> dict[str, float]:
        chosen = np.asarray(prediction.predictions).argmax(axis=-1)
        labels = np.asarray(prediction.label_ids)
        return dict(task.compute_metrics(chosen.tolist(), labels.tolist(), rows=rows))

    return compute_metrics


def accuracy(prediction: "EvalPrediction") -> dict[str, float]:
    """Share of rows whose highest score is the gold choice: the default of [`SinKDTrainer`]."""
    chosen = np.asarray(prediction.predictions).argmax(axis=-1)
    return {"acc": float(np.mean(chosen == np.asarray(prediction.label_ids)))}
