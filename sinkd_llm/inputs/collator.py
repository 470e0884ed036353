"""From tokenised rows to batches, laid out for the kind of model that reads them.

Shapes: B examples, S sequences, L tokens, C choices, T tokens of the longest answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.inputs.row_tokenizers import special_ids
from sinkd_llm.models.kinds import IGNORE_INDEX, kind_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# A row and one of its answers: what becomes a sequence.
Sequences = Sequence[tuple[Row, list[int]]]


@dataclass(frozen=True)
class AnswerCollator:
    """
    Lays tokenised rows out as a batch for a decoder-only model: padded on the left, so that the answers
    of a batch end together and the head runs at few positions.

    Training rows give `input_ids`, `attention_mask`, `labels` `[B, L]` (-100 outside the answer) and
    `example_id`. Ranking rows give the same over S sequences, plus `label` `[B]`, `choice_ids`
    `[B, C, T]` (-100 beyond the answer) and `choice_sequence` `[B, C]`, the sequence in which a choice is
    scored (-1 where a row has fewer choices); `example_id` names the sequences. Choices that differ only in
    their last token share one sequence, so that single-token choices cost one forward a row.

    Args:
        pad_token_id (`int`): fills `input_ids`.
        pad_to_multiple_of (`int`, *optional*): rounds L up.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

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

    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask`, `labels` and what else the kind reads."""
        length = self._round_up(max(len(row["prompt_ids"]) + len(answer) for row, answer in sequences))
        shape = (len(sequences), length)
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX)
        for s, (row, answer) in enumerate(sequences):
            tokens = row["prompt_ids"] + answer
            input_ids[s, length - len(tokens) :] = torch.tensor(tokens)
            attention_mask[s, length - len(tokens) :] = 1
            labels[s, length - len(answer) :] = torch.tensor(answer)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

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


@dataclass(frozen=True)
class EncoderDecoderCollator(AnswerCollator):
    """
    For encoder-decoders: `input_ids` and `attention_mask` `[B, L]` are the prompts, `targets` and `labels`
    `[S, T]` the answers (see [`EncoderDecoder.supervised_rows`]). Rows whose choices need several answers
    give `prompt_of_answer` `[S]` as well, so that a prompt is encoded once.

    Args:
        before, behind (`tuple[int, ...]`): special tokens around an answer. They are not supervised, unless the
            row's answer has them.
    """

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        rows: list[Row] = []
        prompt_of_answer = []
        for row, _ in sequences:  # the answers of a row follow each other
            if not rows or rows[-1] is not row:
                rows.append(row)
            prompt_of_answer.append(len(rows) - 1)
        targets, labels = [], []
        for _, answer in sequences:
            closed = not self.behind or tuple(answer[-len(self.behind) :]) == self.behind
            targets.append([*self.before, *answer, *(() if closed else self.behind)])
            labels.append([IGNORE_INDEX] * len(self.before) + answer)
        length = max(map(len, targets))
        batch = {
            **self._texts(rows),
            "targets": right_padded(targets, IGNORE_INDEX, length),
            "labels": right_padded(labels, IGNORE_INDEX, length),
        }
        if len(rows) < len(sequences):
            batch["prompt_of_answer"] = torch.tensor(prompt_of_answer)
        return batch


@dataclass(frozen=True)
class ClassCollator(AnswerCollator):
    """For classification heads: texts `[S, L]` and `labels` `[S]`; `choice_values` `[B, C]` for one output."""

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


@dataclass(frozen=True)
class MaskCollator(AnswerCollator):
    """
    For masked language models: texts and `labels` `[S, L]`, -100 but at the answer's mask, the last of a text.

    Args:
        mask_token_id (`int`): the mask.
    """

    mask_token_id: int = -1

    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        batch = self._texts([row for row, _ in sequences])
        labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
        for s, (row, answer) in enumerate(sequences):
            ids = row["prompt_ids"]
            labels[s, len(ids) - 1 - ids[::-1].index(self.mask_token_id)] = answer[0]
        return {**batch, "labels": labels}


def right_padded(rows: Sequence[Sequence[Any]], value: Any, length: int) -> Tensor:
    """`rows` as one tensor `[len(rows), length]`, filled up with `value`."""
    return torch.tensor([[*row, *([value] * (length - len(row)))] for row in rows])


def row_collator(
    model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", pad_to_multiple_of: int | None = None
) -> AnswerCollator:
    """The collator of rows that [`~sinkd_llm.inputs.row_tokenizers.row_tokenizer`] made for `model`."""
    pad: Any = tokenizer.pad_token_id
    if pad is None:
        raise InputError(
            "The tokenizer has no token to pad a batch with; give it one, such as tokenizer.pad_token = "
            "tokenizer.eos_token."
        )
    match kind_of(model).name:
        case "seq2seq-lm":
            before, behind = special_ids(tokenizer, target=True)
            return EncoderDecoderCollator(pad, pad_to_multiple_of, before, behind)
        case "sequence-classification":
            return ClassCollator(pad, pad_to_multiple_of)
        case "masked-lm":
            mask: Any = tokenizer.mask_token_id
            return MaskCollator(pad, pad_to_multiple_of, mask)
    return AnswerCollator(pad, pad_to_multiple_of)
