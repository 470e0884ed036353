"""How each kind reads a row: prompt and answer as one text, as two, as a class, or as a word at a mask.

Shapes: C choices of a row.
"""

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.contract import AnswerTokenizer, checked_rows
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.models.kinds import kind_of, output_size
from sinkd_llm.models.kinds.class_heads import class_order, class_words
from sinkd_llm.models.origin import name_of
from sinkd_llm.models.tokenizers import check_vocabulary
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.values import shown

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=16)
def special_ids(
    tokenizer: "PreTrainedTokenizerBase", *, target: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer puts before and after a text (an answer if `target`) by itself."""
    text = {"text_target" if target else "text": "a"}
    whole = tuple(tokenizer(**text)["input_ids"])
    plain = tuple(tokenizer(**text, add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return (), ()


class EncoderDecoderTokenizer(AnswerTokenizer):
    """
    For encoder-decoders: prompt and answer are two texts, each with the special tokens of its side.

    `answer_ids` are the supervised tokens: the answer and, with `add_eos`, what comes after it. The
    collator puts the other special tokens around them. `max_length` bounds prompt and answer separately.
    """

    def _encode_rows(
        self, rows: Sequence[Row], texts: Sequence[tuple[str, list[str]]]
    ) -> list[tuple[list[int], list[list[int]]]]:
        answers_ids = iter(self.encode_answers([answer for _, answers in texts for answer in answers]))
        prompts_ids = self._encode([prompt for prompt, _ in texts])
        return [
            (prompt_ids, [next(answers_ids) for _ in answers])
            for (_, answers), prompt_ids in zip(texts, prompts_ids, strict=True)
        ]

    def encode_answers(self, answers: list[str]) -> list[list[int]]:
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
        return fitted(self.tokenizer, prefix, prompt_ids, suffix, self.reading.max_length)


class MaskTokenizer(AnswerTokenizer):
    """For masked language models: the prompt, a mask where the answer goes, and one token for each answer."""

    def _encode_rows(
        self, rows: Sequence[Row], texts: Sequence[tuple[str, list[str]]]
    ) -> list[tuple[list[int], list[list[int]]]]:
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
class ClassTokenizer(AnswerTokenizer):
    """
    For classification heads: the text of the row, or its pair of texts, and the number of the answer.

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
            prompts = [self._texts(row, [], name)[0] for row, name in zip(rows, names, strict=True)]
            prefix, suffix = special_ids(self.tokenizer)
            fits = [fitted(self.tokenizer, prefix, ids, suffix, max_length) for ids in self._encode(prompts)]
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


def fitted(
    tokenizer: "PreTrainedTokenizerBase",
    prefix: tuple[int, ...],
    prompt_ids: list[int],
    suffix: tuple[int, ...],
    max_length: int | None,
) -> tuple[list[int], int]:
    """The prompt between its special tokens, without so many of its first tokens that all fits; how many."""
    if not prefix and not prompt_ids and not suffix:
        prompt_ids = [int(tokenizer.eos_token_id)]  # an encoder needs something to read
    room = len(prompt_ids) if max_length is None else max_length - len(prefix) - len(suffix)
    if room < 1 and prompt_ids:
        raise InputError(f"max_length={max_length} leaves no room for a prompt beside the special tokens; raise it.")
    cut = max(0, len(prompt_ids) - room)
    return [*prefix, *prompt_ids[cut:], *suffix], cut


_TOKENIZERS: dict[str, type[AnswerTokenizer]] = {
    "causal-lm": AnswerTokenizer,
    "seq2seq-lm": EncoderDecoderTokenizer,
    "sequence-classification": ClassTokenizer,
    "masked-lm": MaskTokenizer,
}


def row_tokenizer(
    model: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    reading: Reading,
) -> AnswerTokenizer:
    """
    What turns rows into what `model` reads; the arguments are the same as in [`AnswerTokenizer`].

    Raises:
        InputError: if the model's kind is not supported, it lacks a token that the tokenizer gives, or `add_eos`
            asks for one that it cannot predict.
    """
    kind = kind_of(model).name
    inner = unwrap(model)
    check_vocabulary(inner, tokenizer, name_of(inner) or type(inner).__name__)
    more: dict[str, Any] = {}
    if kind == "sequence-classification":
        more = {"num_classes": output_size(model), "head_words": class_words(unwrap(model).config)}
    if reading.add_eos and kind in ("sequence-classification", "masked-lm"):
        raise InputError(f"add_eos is set, but {type(unwrap(model)).__name__} predicts no end of a sequence; drop it.")
    return _TOKENIZERS[kind](tokenizer, reading, **more)
