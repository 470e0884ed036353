"""A student that Transformers runs: an encoder, a masked language model, a decoder or an encoder-decoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sinkd_llm.answering.facts import StudentFacts
from sinkd_llm.answering.student import Answer, Student
from sinkd_llm.errors import InputError
from sinkd_llm.evaluation.generation import (
    GenerationSettings,
    check_can_generate,
    generate_answers,
    reading_of_prompts,
)
from sinkd_llm.evaluation.ranking import rank_choices
from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
from sinkd_llm.models.kinds import context_length, kind_of, output_size
from sinkd_llm.tasks.rendering import Example
from sinkd_llm.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TorchStudent(Student):
    """
    A student whose model is in memory, as [`load_model`] gives it.

    Args:
        model (`PreTrainedModel` or `PeftModel`): of any kind, on the device that it shall run on. It is put into eval
            mode.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        task, facts: see [`Student`].

    Raises:
        InputError: if the model cannot answer the task: it cannot write where answers are written, has classes where
            choices vary or are of another number, or predicts a number.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", task: Task, facts: StudentFacts
    ) -> None:
        super().__init__(task, facts)
        self.model, self.tokenizer = model.eval(), tokenizer
        self._kind = kind_of(model)
        reading = facts.reading.within(context_length(model))
        self._settings: GenerationSettings | None = None
        if self.generates:
            check_can_generate(model, task)
            self._settings = GenerationSettings.of(task)
            reading = reading_of_prompts(model, self._settings, reading)
        elif self._kind.scores_classes and output_size(model) == 1:
            raise InputError(
                f"The model of this student predicts a number and not which choice of the task {task.name!r} is "
                "right, so that its choices have no probabilities; 'sinkd evaluate' scores it."
            )
        self._tokenizer = row_tokenizer(model, tokenizer, reading)
        self._collator = row_collator(model, tokenizer)
        self._choices_checked = False
        self.num_cut = 0

    @property
    def takes_choices(self) -> bool:
        """See [`Student`]."""
        return not self._kind.scores_classes

    @torch.no_grad()
    def log_probabilities(self, examples: Sequence[Example]) -> list[list[float]]:
        """See [`Student`]; summed over the tokens of a choice."""
        rows = [_as_row(example) for example in examples]
        if not self._choices_checked:
            self._tokenizer.check_choices({example.choices for example in examples}, rows)
            # Choices that vary have to be looked at in every batch; only a head with classes refuses them.
            self._choices_checked = self.choices is not None or not self._kind.scores_classes
        features: Any = _Columns(self._tokenizer.features(rows, ranking=True))
        self.num_cut += sum(count > 0 for count in features["num_cut"])
        return rank_choices(self.model, self._kind, self._collator, features, len(rows)).log_likelihoods

    @torch.no_grad()
    def answer_batch(self, ids: Sequence[str | int], examples: Sequence[Example]) -> list[Answer]:
        """See [`Student`]; a task whose answers are written has texts in the place of choices."""
        if self._settings is None:
            return super().answer_batch(ids, examples)
        prompts = self._tokenizer.prompts([{"id": example.id, "prompt": example.prompt} for example in examples])
        texts = generate_answers(self.model, self.tokenizer, prompts, self._settings, len(prompts))
        return [Answer(name, text, None, None, {}) for name, text in zip(ids, texts, strict=True)]


class _Columns:
    """Features of a few rows, read as those of a data set are: by row or by column."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | str) -> Any:
        return [row[key] for row in self._rows] if isinstance(key, str) else self._rows[key]


def _as_row(example: Example) -> dict[str, Any]:
    """What tokenizers read of a row whose choices are ranked; which label it has makes no difference."""
    texts = {name: getattr(example, name) for name in ("text", "text_pair") if getattr(example, name) is not None}
    return {"id": example.id, "prompt": example.prompt, "choices": list(example.choices), "label": 0, **texts}
