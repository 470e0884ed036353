"""How masked language models read rows: the answer is one token at a mask after the prompt.

Shapes: S texts, L tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.batch import AnswerCollator, Sequences, pad_id
from sinkd_llm.inputs.contract import AnswersAsTokens, Ids, Texts
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.inputs.special_tokens import fitted, special_ids
from sinkd_llm.models.kinds import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class MaskTokenizer(AnswersAsTokens):
    """The prompt, a mask where the answer goes, and one token for each answer."""

    predicts_end: ClassVar[bool] = False

    def _encode_rows(self, rows: Sequence[Row], texts: Sequence[Texts]) -> list[Ids]:
        if self.tokenizer.mask_token_id is None:
            raise InputError(
                "The tokenizer has no mask token, so there is nowhere to put the answer; use a masked language "
                "model's own tokenizer, or a classification head (model_kind sequence-classification)."
            )
        known: dict[str, list[int]] = {}
        for _, answers in texts:
            for answer in answers:
                if answer not in known:
                    known[answer] = self._single(answer)
        prompts_ids = self._encode([prompt for prompt, _ in texts])
        return [
            (prompt_ids, [list(known[answer]) for answer in answers])
            for (_, answers), prompt_ids in zip(texts, prompts_ids, strict=True)
        ]

    def _single(self, answer: str) -> list[int]:
        ids = self._encode([answer])[0]
        if len(ids) > 1 or ids == [self.tokenizer.unk_token_id]:
            found = "unknown to" if len(ids) == 1 else f"{self.tokenizer.convert_ids_to_tokens(ids)} to"
            raise InputError(
                f"The answer {answer.strip()!r} is {found} this tokenizer, "
                "but a masked language model gives one token at the mask; choose words of one token in doc_to_choice, "
                "or a classification head (model_kind sequence-classification)."
            )
        return ids

    def _eos_ids(self, row: Row) -> list[int]:
        return []

    def _fit(self, row: Row, prompt_ids: list[int], answer_length: int, name: str) -> tuple[list[int], int]:
        prefix, suffix = special_ids(self.tokenizer)
        suffix = (int(self.tokenizer.mask_token_id), *suffix)
        return fitted(self.tokenizer, prefix, prompt_ids, suffix, self.reading.max_length)


@dataclass(frozen=True)
class MaskCollator(AnswerCollator):
    """
    Texts and `labels` `[S, L]`, -100 but at the answer's mask, the last of a text.

    Args:
        mask_token_id (`int`): the mask.
    """

    mask_token_id: int = -1

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", pad_to_multiple_of: int | None = None) -> "MaskCollator":
        """See [`AnswerCollator`]."""
        mask: Any = tokenizer.mask_token_id
        return cls(pad_id(tokenizer), pad_to_multiple_of, mask)

    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        batch = self._texts([row for row, _ in sequences])
        labels = torch.full_like(batch["input_ids"], IGNORE_INDEX)
        for s, (row, answer) in enumerate(sequences):
            ids = row["prompt_ids"]
            labels[s, len(ids) - 1 - ids[::-1].index(self.mask_token_id)] = answer[0]
        return {**batch, "labels": labels}
