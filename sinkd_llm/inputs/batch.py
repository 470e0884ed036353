"""From features to batches: padding, and the layout of rows whose choices are ranked.

Shapes: B examples, S sequences, L tokens, C choices, T tokens of the longest answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.models.kinds import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A row and one of its answers: what becomes a sequence.
Sequences = Sequence[tuple[Row, list[int]]]


@dataclass(frozen=True)
class AnswerCollator(ABC):
    """
    Lays tokenised rows out as a batch for one kind of model.

    Training rows give what the kind reads, `labels` among it, and `example_id`. Ranking rows give the same over S
    sequences, plus `label` `[B]`, `choice_ids` `[B, C, T]` (-100 beyond the answer) and `choice_sequence` `[B, C]`,
    the sequence in which a choice is scored (-1 where a row has fewer choices); `example_id` names the sequences.
    Choices that differ only in their last token share one sequence, so that single-token choices cost one forward a
    row.

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
        if "answers_ids" in features[0]:
            return self._ranking_batch(features)
        return {
            **self._pad([(row, row["answer_ids"]) for row in features]),
            "example_id": [row["example_id"] for row in features],
        }

    def _ranking_batch(self, features: Sequence[Row]) -> dict[str, Any]:
        sequences: list[tuple[Row, list[int]]] = []
        most = max(len(row["answers_ids"]) for row in features)
        longest = max(len(answer) for row in features for answer in row["answers_ids"])
        choice_ids = torch.full((len(features), most, longest), IGNORE_INDEX)
        choice_sequence = torch.full((len(features), most), -1)
        for b, row in enumerate(features):
            start = len(sequences)
            by_length = sorted(enumerate(row["answers_ids"]), key=lambda item: -len(item[1]))
            for c, answer in by_length:
                choice_ids[b, c, : len(answer)] = torch.tensor(answer)
                condition = answer[:-1]  # what the model must have read to score the choice
                for s in range(start, len(sequences)):
                    if sequences[s][1][: len(condition)] == condition:
                        break
                else:
                    s = len(sequences)
                    sequences.append((row, answer))
                choice_sequence[b, c] = s
        return {
            # First, for transformers.Trainer takes the batch size from the first tensor.
            "label": torch.tensor([row["label"] for row in features]),
            "choice_ids": choice_ids,
            "choice_sequence": choice_sequence,
            **self._pad(sequences),
            "example_id": [row["example_id"] for row, _ in sequences],
        }

    @abstractmethod
    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        """What the kind of model reads: `input_ids`, `attention_mask`, `labels`, and more."""

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
