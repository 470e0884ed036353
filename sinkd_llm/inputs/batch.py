"""From features to batches: padding, and the trees of rows whose choices are ranked.

Shapes: B examples, L tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.models.kinds.choice_tree import choice_tree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A row and one of its answers: what becomes a sequence.
Sequences = Sequence[tuple[Row, list[int]]]


@dataclass(frozen=True)
class AnswerCollator(ABC):
    """
    Lays tokenised rows out as a batch for one kind of model.

    Training rows give what the kind reads, `labels` among it, and `example_id`. Ranking rows give `label` `[B]`,
    `trees` (a [`ChoiceTree`] a row), what the kind reads of the prompts, and `example_id`.

    Args:
        pad_token_id (`int`): fills `input_ids`.
        pad_to_multiple_of (`int`, *optional*): rounds L up.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", pad_to_multiple_of: int | None = None) -> "AnswerCollator":
        """
        The collator of rows that this tokenizer made.

        Raises:
            InputError: if the tokenizer has no token to pad with.
        """
        return cls(pad_id(tokenizer), pad_to_multiple_of)

    def __call__(self, features: Sequence[Row]) -> dict[str, Any]:
        if "answers_ids" not in features[0]:
            inputs = self._pad([(row, row["answer_ids"]) for row in features])
            return {**inputs, "example_id": [row["example_id"] for row in features]}
        return {
            # First, for transformers.Trainer takes the batch size from the first tensor.
            "label": torch.tensor([row["label"] for row in features]),
            "trees": [choice_tree(tuple(map(tuple, row["answers_ids"]))) for row in features],
            **self._prompts(features),
            "example_id": [row["example_id"] for row in features],
        }

    @abstractmethod
    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        """What the kind of model reads: `input_ids`, `attention_mask`, `labels`, and more."""

    def _prompts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The same of rows whose answers are ranked; by default one answer holds the place of all, each one token."""
        return self._pad([(row, row["answers_ids"][0]) for row in rows])

    def _round_up(self, length: int) -> int:
        return length + (-length % self.pad_to_multiple_of if self.pad_to_multiple_of else 0)

    def _texts(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The prompts alone, padded on the right, where absolute positions need it: `[len(rows), L]`."""
        length = self._round_up(max(len(row["prompt_ids"]) for row in rows))
        texts = {
            "input_ids": right_padded([row["prompt_ids"] for row in rows], self.pad_token_id, length),
            "attention_mask": right_padded([[1] * len(row["prompt_ids"]) for row in rows], 0, length),
        }
        if "token_type_ids" in rows[0]:
            texts["token_type_ids"] = right_padded([row["token_type_ids"] for row in rows], 0, length)
        return texts


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that fills batches up."""
    pad: Any = tokenizer.pad_token_id
    if pad is None:
        raise InputError(
            "The tokenizer has no token to pad a batch with; give it one, such as tokenizer.pad_token = "
            "tokenizer.eos_token."
        )
    return int(pad)


def right_padded(rows: Sequence[Sequence[Any]], value: Any, length: int) -> Tensor:
    """`rows` as one tensor `[len(rows), length]`, filled up with `value`."""
    return torch.tensor([[*row, *([value] * (length - len(row)))] for row in rows])


def left_padded(rows: Sequence[Sequence[Any]], value: Any, length: int) -> Tensor:
    """`rows` as one tensor `[len(rows), length]`, filled up with `value` before each of them."""
    return torch.tensor([[*([value] * (length - len(row))), *row] for row in rows])
