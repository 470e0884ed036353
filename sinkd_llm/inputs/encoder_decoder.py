"""How encoder-decoders read rows: prompt and answer are two texts.

Shapes: B prompts, L tokens of the longest, T tokens of the longest answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.batch import AnswerCollator, Sequences, pad_id, right_padded
from sinkd_llm.inputs.contract import AnswersAsTokens, Ids, Texts
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.inputs.special_tokens import fitted, special_ids
from sinkd_llm.models.kinds import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncoderDecoderTokenizer(AnswersAsTokens):
    """
    Prompt and answer are two texts, each with the special tokens of its side.

    `answer_ids` are the supervised tokens: the answer and, with `add_eos`, what comes after it. The
    collator puts the other special tokens around them. `max_length` bounds prompt and answer separately.
    """

    def _encode_rows(self, rows: Sequence[Row], texts: Sequence[Texts]) -> list[Ids]:
        distinct = list(dict.fromkeys(answer for _, answers in texts for answer in answers))
        answer_ids = dict(zip(distinct, self._encode_answers(distinct), strict=True))
        prompts_ids = self._encode([prompt for prompt, _ in texts])
        return [
            (prompt_ids, [list(answer_ids[answer]) for answer in answers])
            for (_, answers), prompt_ids in zip(texts, prompts_ids, strict=True)
        ]

    def _encode_answers(self, answers: list[str]) -> list[list[int]]:
        """An answer begins its text, so the delimiter that would part it from a prompt is left out."""
        if not answers:
            return []
        encoded = self.tokenizer(text_target=[answer.lstrip() for answer in answers], add_special_tokens=False)
        ids: Any = encoded["input_ids"]
        return ids

    def _eos_ids(self, row: Row) -> list[int]:
        eos = super()._eos_ids(row)
        return list(special_ids(self.tokenizer, target=True)[1]) or eos if eos else []

    def _fit(self, row: Row, prompt_ids: list[int], answer_length: int, name: str) -> tuple[list[int], int]:
        max_length = self.reading.max_length
        if max_length is not None and answer_length + 1 > max_length:
            raise InputError(
                f"The answer of {name} has {answer_length} tokens, but the decoder reads {max_length} at most; "
                "raise max_length or shorten the answer."
            )
        prefix, suffix = ((), ()) if self._templated(row) else special_ids(self.tokenizer)
        return fitted(self.tokenizer, prefix, prompt_ids, suffix, max_length)


@dataclass(frozen=True)
class EncoderDecoderCollator(AnswerCollator):
    """
    `input_ids` and `attention_mask` `[B, L]` are the prompts, `targets` and `labels` `[B, T]` the answers (see
    [`EncoderDecoder.supervised_rows`]). Rows whose answers are ranked give the prompts, and `around_answers`: `before`
    and `after`.

    Args:
        before, after (`tuple[int, ...]`): special tokens around an answer. They are not supervised, unless the
            row's answer has them.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, tokenizer: "PreTrainedTokenizerBase", pad_to_multiple_of: int | None = None
    ) -> "EncoderDecoderCollator":
        """See [`AnswerCollator`]."""
        return cls(pad_id(tokenizer), pad_to_multiple_of, *special_ids(tokenizer, target=True))

    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        targets, labels = [], []
        for _, answer in sequences:
            closed = not self.after or tuple(answer[-len(self.after) :]) == self.after
            targets.append([*self.before, *answer, *(() if closed else self.after)])
            labels.append([IGNORE_INDEX] * len(self.before) + answer)
        length = max(map(len, targets))
        return {
            **self._texts([row for row, _ in sequences]),
            "targets": right_padded(targets, IGNORE_INDEX, length),
            "labels": right_padded(labels, IGNORE_INDEX, length),
        }

    def _prompts(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {**self._texts(rows), "around_answers": (self.before, self.after)}
