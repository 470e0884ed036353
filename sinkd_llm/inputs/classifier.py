"""How encoders with a classification head read rows: a text or a pair of texts, and the number of a class.

Shapes: B rows, S texts, L tokens of the longest, C choices of a row.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.batch import AnswerCollator, Sequences, right_padded
from sinkd_llm.inputs.contract import AnswerTokenizer, checked_rows
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.inputs.special_tokens import fitted, special_ids
from sinkd_llm.models.kinds import output_size
from sinkd_llm.models.kinds.class_heads import class_order, class_words
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.values import shown

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassTokenizer(AnswerTokenizer):
    """
    The text of the row, or its pair of texts, and the number of the answer.

    The texts are the columns `text` and `text_pair` (a task's `metadata.texts`), else the prompt. A pair that is
    too long loses the end of its longer text, a prompt its beginning. For a head with one output, the answer
    is where the row's `target` lies between its smallest and its largest choice, in [0, 1].

    Choice c is class c of the head, unless the head names its classes by the words of the choices: then each choice
    is the class of its name.

    Args:
        num_classes (`int`, *optional*, defaults to `2`): outputs of the head.
        head_words (`tuple[str, ...]`, *optional*): the head's names of its classes, see [`class_words`].
    """

    num_classes: int = 2
    head_words: tuple[str, ...] | None = None
    predicts_end: ClassVar[bool] = False

    @classmethod
    def of(cls, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", reading: Reading) -> "ClassTokenizer":
        """See [`AnswerTokenizer`]."""
        return cls(tokenizer, reading, output_size(model), class_words(unwrap(model).config))

    def features(self, rows: Sequence[Row], start: int = 0, *, ranking: bool = False) -> list[Row]:
        """As [`AnswerTokenizer.features`]; `answer_ids` is the class, `answers_ids` all of them."""
        names, rows = checked_rows(rows, start)
        features = []
        for row, name, read in zip(rows, names, self._read(rows, names), strict=True):
            if "choices" not in row:
                raise InputError(
                    f"{name} has no answer choices, so a classification head has no classes to learn; give a task "
                    "with choices, or another kind of model."
                )
            feature = {"example_id": name, **read}
            if self.num_classes == 1:
                values = choice_values(row["choices"], name)
                feature |= {"choice_values": values} if ranking else {"target": self._target(row, name)}
            classes = class_order(tuple(row["choices"]), self.head_words)
            if ranking:
                feature |= {"label": row["label"], "answers_ids": [[c] for c in classes]}
            else:
                feature["answer_ids"] = [classes[row["label"]]]
            features.append(feature)
        return features

    def choice_ids(self, rows: Sequence[Row], start: int = 0) -> list[list[list[int]]]:
        """The class of each choice."""
        return [[[c] for c in class_order(tuple(row["choices"]), self.head_words)] for row in rows]

    def cut_place(self, columns: Sequence[str]) -> str:
        """Where rows with these columns lose what is too long, in words."""
        return "the end of their longer text" if "text" in columns else super().cut_place(columns)

    def check_choices(self, choice_sets: set[tuple[str, ...]], rows: Sequence[Row]) -> None:
        """Refuses choices that are not the head's classes."""
        if self.num_classes == 1:
            return
        if len(choice_sets) != 1:
            raise InputError(
                f"The rows have {len(choice_sets)} different lists of choices, but a classification head has the same "
                "classes for every row; use a decoder, an encoder-decoder, or model_kind masked-lm."
            )
        if (count := len(next(iter(choice_sets)))) != self.num_classes:
            raise InputError(
                f"The task has {count} answer choices, but the model's classification head has {self.num_classes} "
                "outputs; give a model that was fine-tuned on this task."
            )
        choices = tuple(choice.strip() for choice in next(iter(choice_sets)))
        if self.head_words is not None and set(self.head_words) != {choice.lower() for choice in choices}:
            logger.warning(
                "The head calls its classes %s and the task its choices %s: the first is taken for the first, and so "
                "on. If their order differs, the scores are wrong.",
                ", ".join(self.head_words),
                ", ".join(choices),
            )

    def _read(self, rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
        """`prompt_ids`, `num_cut` and, where the tokenizer tells two texts apart, `token_type_ids` of each row."""
        max_length = self.reading.max_length
        if rows[0].get("text") is None:
            prompts = self._encode([self._texts(row, [], name)[0] for row, name in zip(rows, names, strict=True)])
            fits = [self._fit(row, ids, 0, name) for row, ids, name in zip(rows, prompts, names, strict=True)]
            return [{"prompt_ids": ids, "num_cut": num_cut} for ids, num_cut in fits]
        for row, name in zip(rows, names, strict=True):
            for column in ("text", "text_pair"):
                if rows[0].get(column) is not None and not isinstance(row.get(column), str):
                    raise InputError(f"The column {column!r} of {name} is {shown(row.get(column))}, not text.")
        first = [row["text"] for row in rows]
        second = [row["text_pair"] for row in rows] if rows[0].get("text_pair") is not None else None
        whole = self.tokenizer(first, second)
        encoded: Any = whole
        if max_length is not None and any(len(ids) > max_length for ids in whole["input_ids"]):
            encoded = self.tokenizer(first, second, truncation="longest_first", max_length=max_length)
        read: list[Row] = [
            {"prompt_ids": ids, "num_cut": len(all_ids) - len(ids)}
            for ids, all_ids in zip(encoded["input_ids"], whole["input_ids"], strict=True)
        ]
        if second is not None and "token_type_ids" in encoded:
            for row, types in zip(read, encoded["token_type_ids"], strict=True):
                row["token_type_ids"] = types
        return read

    def _fit(self, row: Row, prompt_ids: list[int], answer_length: int, name: str) -> tuple[list[int], int]:
        prefix, suffix = special_ids(self.tokenizer)
        return fitted(self.tokenizer, prefix, prompt_ids, suffix, self.reading.max_length)

    @staticmethod
    def _target(row: Row, name: str) -> float:
        numbers = _numbers(row["choices"], name)
        target = row.get("target")
        target = numbers[row["label"]] if target is None else float(target)
        return (target - min(numbers)) / (max(numbers) - min(numbers))


def choice_values(choices: Sequence[str], name: str) -> list[float]:
    """Where each choice lies between the smallest and the largest number among them, in [0, 1]: `[C]`.

    Raises:
        InputError: if a choice is no number, or all are the same one.
    """
    numbers = _numbers(choices, name)
    return [(number - min(numbers)) / (max(numbers) - min(numbers)) for number in numbers]


def _numbers(choices: Sequence[str], name: str) -> list[float]:
    try:
        numbers = [float(choice) for choice in choices]
    except ValueError:
        numbers = []
    if len(set(numbers)) < 2 or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"A head with one output predicts a number, but the choices of {name} are {shown(list(choices))}; give a "
            "model with one output a choice."
        )
    return numbers


@dataclass(frozen=True)
class ClassCollator(AnswerCollator):
    """Texts `[S, L]` and `labels` `[S]`; `choice_values` `[B, C]` for one output."""

    def __call__(self, features: Sequence[Row]) -> dict[str, Any]:
        batch = super().__call__(features)
        if "choice_values" in features[0]:
            values = [row["choice_values"] for row in features]
            batch["choice_values"] = right_padded(values, 0.0, max(map(len, values)))
        return batch

    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        rows = [row for row, _ in sequences]
        if "target" in rows[0]:
            labels = torch.tensor([row["target"] for row in rows], dtype=torch.float32)
        else:
            labels = torch.tensor([answer[0] for _, answer in sequences])
        return {**self._texts(rows), "labels": labels}
