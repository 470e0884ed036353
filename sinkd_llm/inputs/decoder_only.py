"""How decoder-only models read rows: prompt and answer are one text, padded on the left.

Shapes: S sequences, L tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.batch import AnswerCollator, Sequences, left_padded
from sinkd_llm.inputs.boundary import Boundary
from sinkd_llm.inputs.contract import AnswersAsTokens, Ids, Texts
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.inputs.special_tokens import bos_ids
from sinkd_llm.models.kinds import IGNORE_INDEX
from sinkd_llm.models.kinds.packing import packed


@dataclass(frozen=True)
class DecoderOnlyTokenizer(AnswersAsTokens):
    """`prompt_ids`, and the ids of the answers, which continue the prompt; `max_length` bounds both together."""

    def _encode_rows(self, rows: Sequence[Row], texts: Sequence[Texts]) -> list[Ids]:
        boundary = Boundary(self.tokenizer)
        alone: dict[str, list[int]] = {}
        wholes: dict[tuple[int, str], list[int]] = {}
        for r, (prompt, answers) in enumerate(texts):
            for answer in answers:
                if answer not in alone and boundary.parts(prompt, answer):
                    alone[answer] = []
                elif not boundary.parts(prompt, answer):
                    wholes[r, answer] = []
        alone = dict(zip(alone, self._encode(list(alone)), strict=True))
        wholes = dict(zip(wholes, self._encode([texts[r][0] + answer for r, answer in wholes]), strict=True))
        prompts_ids = self._encode([prompt for prompt, _ in texts])
        return [
            (
                prompt_ids,
                [
                    self._continuation(prompt_ids, wholes[r, answer], answer)
                    if (r, answer) in wholes
                    else list(alone[answer])
                    for answer in answers
                ],
            )
            for r, ((_, answers), prompt_ids) in enumerate(zip(texts, prompts_ids, strict=True))
        ]

    def _continuation(self, prompt_ids: list[int], whole: list[int], answer: str) -> list[int]:
        # No token crosses the boundary in most vocabularies: the answer is what continues the prompt.
        begins = whole[: len(prompt_ids)] == prompt_ids
        return whole[len(prompt_ids) :] if begins else self._encode([answer])[0]

    def _fit(self, row: Row, prompt_ids: list[int], answer_length: int, name: str) -> tuple[list[int], int]:
        prefix = [] if self._templated(row) else bos_ids(self.tokenizer)
        if not prefix and not prompt_ids:
            # Something has to stand where the first answer token is predicted.
            first = self.tokenizer.bos_token_id
            first = self.tokenizer.eos_token_id if first is None else first
            if first is None:
                raise InputError(
                    f"The prompt of {name} is empty, and the tokenizer has no begin or end token to stand there; give "
                    "a prompt of at least one token."
                )
            prefix = [first]
        max_length = self.reading.max_length
        if max_length is None or len(prefix) + len(prompt_ids) + answer_length <= max_length:
            return prefix + prompt_ids, 0
        room = max_length - answer_length - len(prefix)
        if room < 1:
            raise InputError(
                f"The answer of {name} has {answer_length} tokens and leaves no room for a prompt in "
                f"{max_length}; raise max_length or shorten the answer."
            )
        return prefix + prompt_ids[-room:], len(prompt_ids) - room


@dataclass(frozen=True)
class DecoderOnlyCollator(AnswerCollator):
    """
    Pads on the left, so that the answers of a batch end together and the head runs at few positions.

    `input_ids`, `attention_mask` and `labels` are `[S, L]`; labels are -100 outside the answer. Of rows whose answers
    are ranked, the first two hold the prompts.
    """

    def _pad(self, sequences: Sequences) -> dict[str, Tensor]:
        rows = [row["prompt_ids"] + answer for row, answer in sequences]
        length = self._round_up(max(map(len, rows)))
        return {
            "input_ids": left_padded(rows, self.pad_token_id, length),
            "attention_mask": left_padded([[1] * len(ids) for ids in rows], 0, length),
            "labels": left_padded([answer for _, answer in sequences], IGNORE_INDEX, length),
        }

    def _prompts(self, rows: Sequence[Row]) -> dict[str, Any]:
        prompts = [row["prompt_ids"] for row in rows]
        length = self._round_up(max(map(len, prompts)))
        return {
            "input_ids": left_padded(prompts, self.pad_token_id, length),
            "attention_mask": left_padded([[1] * len(ids) for ids in prompts], 0, length),
        }


@dataclass(frozen=True)
class PackingCollator:
    """
    What another collator makes of training rows, without padding: see [`~sinkd_llm.models.kinds.packing.packed`].

    What a teacher of another kind reads of the same rows stays as it is.

    Args:
        padding (`Callable`): the other collator.
    """

    padding: Callable[[Sequence[Row]], Mapping[str, Any]]

    def __call__(self, features: Sequence[Row]) -> dict[str, Any]:
        return packed(self.padding(features))
