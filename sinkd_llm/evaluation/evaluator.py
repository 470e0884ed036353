"""How well models do a task: its rows are tokenised once, however many models are scored on them."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.evaluation.batches import on_device
from sinkd_llm.evaluation.generation import (
    GenerationSettings,
    check_can_generate,
    generate_answers,
    reading_of_prompts,
    reference_log_likelihoods,
)
from sinkd_llm.evaluation.ranking import on_scale_of, rank_choices
from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
from sinkd_llm.inputs.contract import AnswerTokenizer, RowTokenizer
from sinkd_llm.inputs.dataset import plain_rows, tokenize_dataset
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.metrics import UNDEFINED_FOR_ONE_CLASS, perplexity, right_rows
from sinkd_llm.metrics.calibration import calibration_scores, probabilities_of
from sinkd_llm.metrics.intervals import Interval, choice_intervals, text_intervals
from sinkd_llm.models.kinds import context_length, kind_of
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.models.kinds.prefix_sharing import KeptPrefix
from sinkd_llm.teachers.choices import row_keys

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sinkd_llm.tasks import Task

logger = logging.getLogger(__name__)
# The log-likelihoods of the choices of rows, to their probabilities.
Calibrate: TypeAlias = Callable[[Sequence[Sequence[float]]], list[list[float]]]


@dataclass
class TaskScore:
    """
    How well a model does a task.

    Attributes:
        metrics (`dict[str, float]`): the task's own metrics: of the choices with the highest summed
            log-likelihood, and `acc_norm`, the accuracy of those with the highest log-likelihood per character, as
            lm-evaluation-harness has it (of a classification head, which reads no words, the accuracy); or of the
            generated answers. Where there are probabilities and one choice of a row is right, after these `log_loss`
            (nats), `brier` (summed over choices), `ece` and `ece_adaptive` (15 bins): see
            [`~sinkd_llm.metrics.calibration`].
        num_examples (`int`): rows scored.
        seconds (`float`): wall-clock time of scoring rows that are tokenised.
        predictions (`list[int]` or `list[str]`): index of the chosen answer, or the generated text, in the order of
            the data set.
        log_likelihoods (`list[list[float]]`): of every choice, summed over its tokens, in nats; where answers are
            generated, of the reference answer, or nothing if the task asks for no perplexity.
        numbers (`list[float]`, *optional*): what a head with one output predicts, on the scale of the choices.
        probabilities (`list[list[float]]`, *optional*): of every choice of a row, in [0, 1]: the softmax of its
            log-likelihoods, or what a calibration makes of them. `None` where answers are generated, and for a head
            that predicts a number.
        intervals (`dict[str, tuple[float, float]]`): the 95 % interval of each score.
    """

    metrics: dict[str, float]
    num_examples: int
    seconds: float
    predictions: list[Any]
    log_likelihoods: list[list[float]]
    numbers: list[float] | None = None
    probabilities: list[list[float]] | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)

    @property
    def examples_per_second(self) -> float:
        return self.num_examples / self.seconds


class TaskEvaluator:
    """
    Scores models on the labelled rows of a task.

    A model of another kind reads the rows in another way, and so does one with a shorter context. Each way is
    tokenised once, when the first model needs it.

    Args:
        task ([`Task`]): names the metrics, and says how answers are generated.
        dataset ([`~datasets.Dataset`]): rows from `task.load(split)`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the one of all models.
        reading ([`Reading`]): how rows become tokens, before a model's context bounds it.
        tokenized (iterable of `tuple[RowTokenizer, Dataset]`, *optional*): the rows as they are tokenised already
            (`tokenize_dataset(dataset, answer_tokenizer, ranking=True)`), and by what.
    """

    def __init__(
        self,
        task: "Task",
        dataset: "Dataset",
        tokenizer: "PreTrainedTokenizerBase",
        reading: Reading,
        tokenized: "Iterable[tuple[RowTokenizer, Dataset]]" = (),
    ) -> None:
        self.task, self.dataset, self.tokenizer, self.reading = task, plain_rows(dataset), tokenizer, reading
        self._features = list(tokenized)
        self._prompts: list[tuple[AnswerTokenizer, list[list[int]]]] = []

    @torch.no_grad()
    def score(
        self,
        model: "PreTrainedModel",
        *,
        batch_size: int = 32,
        on_progress: Callable[[int, int], None] | None = None,
        device: torch.device | None = None,
        share: bool = False,
        calibrate: Calibrate | None = None,
    ) -> TaskScore:
        """
        Ranks the choices of the rows, or generates answers (`generate_until`), and computes the task's metrics.

        Arguments, result and errors are the same as in [`evaluate_task`].
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give 1 or more.")
        spread: dict[str, Any] = {"device": device, "share": share}
        was_training = model.training
        model.eval()
        try:
            if self.task.output_type == "generate_until":
                return self._generated(model, batch_size, on_progress, spread)
            return self._ranked(model, batch_size, on_progress, spread, calibrate)
        finally:
            model.train(was_training)

    def row_keys(self, model: "PreTrainedModel", max_length: int | None = None) -> list[bytes]:
        """
        What `model` reads of each row, as [`~sinkd_llm.teachers.choices.TeacherChoices`] knows a row again.

        Args:
            model (`PreTrainedModel`): the model.
            max_length (`int`, *optional*): a bound in tokens beside the model's own.
        """
        reading = self._reading_of(model).within(max_length)
        features = self._tokenized(row_tokenizer(model, self.tokenizer, reading))
        collator = row_collator(model, self.tokenizer)
        return [key for row in features for key in row_keys(collator([row]))]

    def one_at_a_time(
        self, model: "PreTrainedModel", places: Sequence[int], device: torch.device | None = None
    ) -> Callable[[int], None]:
        """
        A function that answers one row alone: what there is to time.

        Args:
            model (`PreTrainedModel`): in eval mode.
            places (`Sequence[int]`): of the rows that may be asked for.
            device (`torch.device`, *optional*): as in [`evaluate_task`].

        Returns:
            `Callable[[int], None]`: takes the place of a row, which is tokenised already, makes a batch of it alone
            and ranks its choices.

        Raises:
            InputError: for a task whose answers are generated: their length decides.
        """
        if self.task.output_type == "generate_until":
            raise InputError(f"The answers of the task {self.task.name!r} are generated, and of unlike lengths.")
        kind, collator, kept = kind_of(model), row_collator(model, self.tokenizer), KeptPrefix()
        features = self._tokenized(row_tokenizer(model, self.tokenizer, self._reading_of(model)))
        rows = {place: features[place] for place in places}

        @torch.no_grad()
        def answer(place: int) -> None:
            batch = on_device(collator([rows[place]]), device or model.device)
            score_choices(kind, model, batch, kept=kept).log_likelihood_BC.tolist()  # a GPU is waited for

        return answer

    def _ranked(
        self, model: Any, batch_size: int, on_progress: Any, spread: dict[str, Any], calibrate: Calibrate | None
    ) -> TaskScore:
        task, dataset, kind = self.task, self.task.as_scored(self.dataset), kind_of(model)
        features = self._tokenized(row_tokenizer(model, self.tokenizer, self._reading_of(model)))
        started = time.perf_counter()
        collator = row_collator(model, self.tokenizer)
        ranking = rank_choices(model, kind, collator, features, batch_size, on_progress, **spread)
        labels = features["label"][:]
        if len({*labels}) == 1 and (
            undefined := [name for name in task.metric_names if name in UNDEFINED_FOR_ONE_CLASS]
        ):
            logger.warning(
                "All %d scored rows have the same answer, for which %s is undefined and given as 0; score rows with "
                "other answers too.",
                len(labels),
                " and ".join(undefined),
            )
        probabilities = None
        if ranking.numbers is None:
            probabilities = (calibrate or probabilities_of)(ranking.log_likelihoods)
        ranked = ranking.log_likelihoods if calibrate is None or probabilities is None else probabilities
        predictions = [int(np.argmax(row)) for row in ranked]
        normalised = predictions if kind.scores_classes else self._by_character(ranking.log_likelihoods)
        numbers = None if ranking.numbers is None else on_scale_of(ranking.numbers, dataset["choices"])
        own = dict(task.compute_metrics(predictions, labels, rows=dataset, numbers=numbers))
        right = {"acc_norm": right_rows(normalised, labels, dataset)}
        metrics = {**own, "acc_norm": float(np.mean(right["acc_norm"]))}
        seconds = time.perf_counter() - started
        # Where several choices are right, a label is only one of them.
        believed = None if "answers" in dataset.column_names else probabilities
        metrics |= {} if believed is None else calibration_scores(believed, labels)
        intervals = choice_intervals(own, predictions, labels, dataset, numbers, believed, right)
        return TaskScore(
            metrics, len(labels), seconds, predictions, ranking.log_likelihoods, numbers, probabilities, intervals
        )

    def _generated(self, model: Any, batch_size: int, on_progress: Any, spread: dict[str, Any]) -> TaskScore:
        task = self.task
        check_can_generate(model, task)
        answer_tokenizer = row_tokenizer(model, self.tokenizer, self._reading_of(model))
        features = self._tokenized(answer_tokenizer)
        settings = GenerationSettings.of(task)
        reading = reading_of_prompts(model, settings, answer_tokenizer.reading)
        prompts = self._prompts_of(replace(answer_tokenizer, reading=reading))
        started = time.perf_counter()
        texts = generate_answers(model, self.tokenizer, prompts, settings, batch_size, on_progress, **spread)
        metrics = dict(task.compute_metrics(texts, self.dataset["completion"][:], rows=self.dataset))
        sums: list[float] = []
        lengths: list[int] = []
        if "perplexity" in task.metric_names:
            collator = row_collator(model, self.tokenizer)
            sums, lengths = reference_log_likelihoods(model, collator, features, batch_size, **spread)
            metrics["perplexity"] = perplexity(sums, lengths)
        seconds = time.perf_counter() - started
        intervals = text_intervals(task.metric_names, texts, self.dataset["completion"][:], sums, lengths)
        return TaskScore(metrics, len(texts), seconds, texts, [[value] for value in sums], intervals=intervals)

    def _reading_of(self, model: Any) -> Reading:
        return self.reading.within(context_length(model))

    def _tokenized(self, answer_tokenizer: RowTokenizer) -> "Dataset":
        """The rows as `answer_tokenizer` reads them; with all choices, where answers are ranked."""
        for known, features in self._features:
            if known == answer_tokenizer:
                return features
        ranking = self.task.output_type != "generate_until"
        features = tokenize_dataset(self.dataset, answer_tokenizer, ranking=ranking)
        self._features.append((answer_tokenizer, features))
        return features

    def _prompts_of(self, answer_tokenizer: AnswerTokenizer) -> list[list[int]]:
        """The prompts alone, as `answer_tokenizer` reads them."""
        for known, prompts in self._prompts:
            if known == answer_tokenizer:
                return prompts
        prompts = answer_tokenizer.prompts(list(self.dataset))
        self._prompts.append((answer_tokenizer, prompts))
        return prompts

    def _by_character(self, log_likelihoods: list[list[float]]) -> list[int]:
        """The choices with the highest log-likelihood per character, without the delimiter before an answer."""
        delimiter = self.task.config.get("target_delimiter", " ")
        chosen = []
        for row, choices in zip(log_likelihoods, self.dataset["choices"], strict=True):
            lengths = [max(len(choice.removeprefix(delimiter)), 1) for choice in choices]
            chosen.append(int(np.argmax(np.divide(row, lengths))))
        return chosen


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
    calibrate: Calibrate | None = None,
) -> TaskScore:
    """
    Scores a model on labelled rows of a task: ranks the choices, or generates answers (`generate_until`).

    Args:
        model ([`~transformers.PreTrainedModel`]): a model of any supported kind, also a PEFT model. Its
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
        calibrate (`Callable`, *optional*): makes probabilities of the log-likelihoods of the choices of rows; the
            choice with the highest one is the answer. Default: their softmax.

    Returns:
        [`TaskScore`]: metrics with their intervals, predictions, log-likelihoods, probabilities and time.

    Raises:
        InputError: for unlabelled rows, for a model that cannot write where answers are generated, and whatever
            [`tokenize_dataset`] refuses.
        NonFiniteError: for a model whose log-likelihoods or logits are NaN or infinite.
    """
    reading = Reading(max_length, apply_chat_template, add_eos)
    return TaskEvaluator(task, dataset, tokenizer, reading).score(
        model, batch_size=batch_size, on_progress=on_progress, device=device, share=share, calibrate=calibrate
    )
