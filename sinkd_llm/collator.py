"""From tokenised rows to batches.

Shapes: B examples, S sequences, L tokens, C choices, T tokens of the longest answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sinkd_llm.data import Row
from sinkd_llm.models.architectures import IGNORE_INDEX


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
            **self._pad([(row["prompt_ids"], row["answer_ids"]) for row in features]),
            "example_id": [row["example_id"] for row in features],
        }

    def _ranking_batch(self, features: Sequence[Row]) -> dict[str, Any]:
        sequences: list[tuple[list[int], list[int]]] = []
        names: list[str] = []
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
                    sequences.append((row["prompt_ids"], answer))
                    names.append(row["example_id"])
                choice_sequence[b, c] = s
        return {
            # First, for transformers.Trainer takes the batch size from the first tensor.
            "label": torch.tensor([row["label"] for row in features]),
            "choice_ids": choice_ids,
            "choice_sequence": choice_sequence,
            **self._pad(sequences),
            "example_id": names,
        }

    def _pad(self, sequences: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(prompt) + len(answer) for prompt, answer in sequences)
        if self.pad_to_multiple_of:
            length += -length % self.pad_to_multiple_of
        shape = (len(sequences), length)
        input_ids = torch.full(shape, self.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX)
        for s, (prompt, answer) in enumerate(sequences):
            tokens = prompt + answer
            input_ids[s, length - len(tokens) :] = torch.tensor(tokens)
            attention_mask[s, length - len(tokens) :] = 1
            labels[s, length - len(answer) :] = torch.tensor(answer)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
