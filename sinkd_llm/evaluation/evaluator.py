"""`evaluate_task`: how well a model does a task."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.evaluation.generation import check_can_generate, generate_answers, reference_log_likelihoods
from sinkd_llm.evaluation.ranking import on_scale_of, rank_choices
from sinkd_llm.inputs.collator import row_collator
from sinkd_llm.inputs.contract import tokenize_dataset
from sinkd_llm.inputs.row_tokenizers import row_tokenizer
from sinkd_llm.metrics import UNDEFINED_FOR_ONE_CLASS, perplexity, right_rows
from sinkd_llm.models.kinds import context_length, kind_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sinkd_llm.tasks import Task

logger = logging.getLogger(__name__)


@dataclass
class TaskScore:
    """
    How well a model does a task.

    Attributes:
        metrics (`dict[str, float]`): the task's own metrics: of the choices with the highest summed
            log-likelihood, and `acc_norm`, the accuracy of those with the highest log-likelihood per character, as
            lm-evaluation-harness has it (of a classification head, which reads no words, the accuracy); or of the
            generated answers.
        num_examples (`int`): rows scored.
        seconds (`float`): wall-clock time of tokenising and scoring.
        predictions (`list[int]` or `list[str]`): index of the chosen answer, or the generated text, in the order of
            the data set.
        log_likelihoods (`list[list[float]]`): of every choice, summed over its tokens, in nats; where answers are
            generated, of the reference answer, or nothing if the task asks for no perplexity.
        numbers (`list[float]`, *optional*): what a head with one output predicts, on the scale of the choices.
    """

    metrics: dict[str, float]
    num_examples: int
    seconds: float
    predictions: list[Any]
    log_likelihoods: list[list[float]]
    numbers: list[float] | None = None

    @property
    def examples_per_second(self) -> float:
        return self.num_examples / self.seconds


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
    Scores a model on labelled rows of a task: ranks the choices, or generates answers (`generate_until`).

    Args:
        model ([`~transformers.PreTrainedModel`]): a model of any supported family, also a PEFT model. Its
            training mode is restored afterwards.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its tokenizer.
        task ([`Task`]): names the metrics, and says how answers are generated.
        dataset ([`~datasets.Dataset`]): rows from `task.load(split)`.
        batch_size (`int`, *optional*, defaults to `32`): rows a forward.
        max_length (`int` or `None`, *optional*, defaults to `1024`): longer prompts are cut from the left.
        apply_chat_template (`bool`, *optional*, defaults to `False`): prompts as a user's turn.
        add_eos (`bool`, *optional*): as in [`SinKDConfig`]; score as the model was trained.
        on_progress (`Callable[[int, int], None]`, *optional*): called with rows done and rows in all.
        device (`torch.device`, *optional*): where batches go. Default: where the model's weights are.
        share (`bool`, *optional*, defaults to `False`): each process of a distributed launch scores a part of the
            rows, and all get the whole result. All must call this.

    Returns:
        [`TaskScore`]: metrics, predictions, log-likelihoods and time.

    Raises:
        InputError: for unlabelled rows, for a model that cannot write where answers are generated, and whatever
            [`tokenize_dataset`] refuses.
        NonFiniteError: for a model whose log-likelihoods or logits are NaN or infinite.
    """
    started = time.perf_counter()
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give 1 or more.")
    generates = task.output_type == "generate_until"
    if generates:
        check_can_generate(model, task)
    length = shortest(max_length, context_length(model))
    answer_tokenizer = row_tokenizer(model, tokenizer, length, apply_chat_template, add_eos)
    features = tokenize_dataset(dataset, answer_tokenizer, ranking=not generates)
    collator = row_collator(model, tokenizer)
    spread: dict[str, Any] = {"device": device, "share": share}
    was_training = model.training
    model.eval()
    try:
        if generates:
            texts = generate_answers(model, answer_tokenizer, task, dataset, batch_size, on_progress, **spread)
            metrics = dict(task.compute_metrics(texts, list(dataset["completion"]), rows=dataset))
            sums: list[float] = []
            if "perplexity" in task.metric_names:
                sums, lengths = reference_log_likelihoods(model, collator, features, batch_size, **spread)
                metrics["perplexity"] = perplexity(sums, lengths)
            seconds = time.perf_counter() - started
            return TaskScore(metrics, len(texts), seconds, texts, [[value] for value in sums])
        kind = kind_of(model)
        ranking = rank_choices(model, kind, collator, features, batch_size, on_progress, **spread)
    finally:
        model.train(was_training)
    labels = list(features["label"])
    if len({*labels}) == 1 and (undefined := [name for name in task.metric_names if name in UNDEFINED_FOR_ONE_CLASS]):
        logger.warning(
            "All %d scored rows have the same answer, for which %s is undefined and given as 0; score rows with other "
            "answers too.",
            len(labels),
            " and ".join(undefined),
        )
    predictions = [int(np.argmax(row)) for row in ranking.log_likelihoods]
    normalised = predictions if kind.scores_classes else _by_character(ranking.log_likelihoods, task, dataset)
    more: dict[str, Any] = {}
    if ranking.numbers is not None:
        more["numbers"] = on_scale_of(ranking.numbers, dataset["choices"])
    metrics = dict(task.compute_metrics(predictions, labels, rows=dataset, **more))
    metrics["acc_norm"] = float(np.mean(right_rows(normalised, labels, dataset)))
    seconds = time.perf_counter() - started
    return TaskScore(metrics, len(labels), seconds, predictions, ranking.log_likelihoods, **more)


def _by_character(log_likelihoods: list[list[float]], task: "Task", dataset: "Dataset") -> list[int]:
    """The choices with the highest log-likelihood per character, without the delimiter in front of an answer."""
    delimiter = task.config.get("target_delimiter", " ")
    chosen = []
    for row, choices in zip(log_likelihoods, dataset["choices"], strict=True):
        lengths = [max(len(choice.removeprefix(delimiter)), 1) for choice in choices]
        chosen.append(int(np.argmax(np.divide(row, lengths))))
    return chosen


def shortest(*lengths: int | None) -> int | None:
    """The smallest of the bounds that are given."""
    return min((length for length in lengths if length is not None), default=None)
