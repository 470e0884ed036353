"""From texts to token ids: what every kind of model shares.

A row is a task example of this project (`id`, `prompt`, `completion`, `choices`, `label`) or one of TRL's
prompt-completion rows, plain or conversational. Each kind of model reads it in its own way: its file here has the
tokenizer that makes token ids of prompt and answers, and the collator that lays them out as a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sinkd_llm.errors import InputError, first_line
from sinkd_llm.inputs.answer_choices import check_choice_tokens
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.inputs.row_checks import Row, checked_row, row_name

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# The texts of a row: its prompt, and its answers.
Texts = tuple[str, list[str]]
# The token ids of a row: of its prompt, and of its answers.
Ids = tuple[list[int], list[list[int]]]


class RowTokenizer(Protocol):
    """What turns the rows of a data set into features: for one kind of model, or for a student and a teacher."""

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":  # pragma: no cover - a protocol
        """The tokenizer that both models share."""
        ...

    @property
    def reading(self) -> Reading:  # pragma: no cover
        """How rows become tokens."""
        ...

    def features(self, rows: Sequence[Row], start: int = 0, *, ranking: bool = False) -> list[Row]:  # pragma: no cover
        """
        Tokenises rows with one call of the tokenizer.

        Args:
            rows (`Sequence[dict]`): the rows.
            start (`int`, *optional*, defaults to `0`): number of the first row, to name those without an id.
            ranking (`bool`, *optional*, defaults to `False`): all choices instead of the gold answer.

        Returns:
            `list[dict]`: for each row `example_id`, `prompt_ids`, `num_cut` (the prompt tokens that were cut),
            and `answer_ids`, or `answers_ids` (one list per choice) and `label`.

        Raises:
            InputError: see [`~sinkd_llm.inputs.dataset.tokenize_dataset`].
        """
        ...

    def choice_ids(self, rows: Sequence[Row], start: int = 0) -> list[list[list[int]]]:  # pragma: no cover
        """The token ids of each row's choices, as they follow its prompt, whatever its label and length."""
        ...

    def cut_place(self, columns: Sequence[str]) -> str:  # pragma: no cover
        """Where rows with these columns lose what is too long, in words."""
        ...

    def check_choices(self, choice_sets: set[tuple[str, ...]], rows: Sequence[Row]) -> None:  # pragma: no cover
        """
        Refuses choices that the kind cannot tell apart.

        Args:
            choice_sets (`set[tuple[str, ...]]`): the different lists of choices of a data set.
            rows (`Sequence[dict]`): some of its rows, see [`rows_of_choices`].

        Raises:
            InputError: if all rows have the same choices and two of them are the same tokens, as they follow a prompt.
                Where the rows have their own choices, a warning counts those.
        """
        ...


@dataclass(frozen=True)
class AnswerTokenizer(ABC):
    """
    How one kind of model reads rows: a [`RowTokenizer`].

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the model's.
        reading ([`Reading`], *optional*): how rows become tokens.
    """

    tokenizer: "PreTrainedTokenizerBase"
    reading: Reading = field(default_factory=Reading)
    # Whether the kind can be taught where an answer ends.
    predicts_end: ClassVar[bool] = True

    @classmethod
    def of(cls, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", reading: Reading) -> "AnswerTokenizer":
        """What turns rows into what `model`, of this kind, reads."""
        return cls(tokenizer, reading)

    @abstractmethod
    def features(self, rows: Sequence[Row], start: int = 0, *, ranking: bool = False) -> list[Row]:
        """See [`RowTokenizer`]."""

    @abstractmethod
    def choice_ids(self, rows: Sequence[Row], start: int = 0) -> list[list[list[int]]]:
        """See [`RowTokenizer`]."""

    @abstractmethod
    def _fit(self, row: Row, prompt_ids: list[int], answer_length: int, name: str) -> tuple[list[int], int]:
        """The prompt with its special tokens, without so many of its first tokens that the answer fits; how many."""

    def prompts(self, rows: Sequence[Row], start: int = 0) -> list[list[int]]:
        """`prompt_ids` of rows whose answers are yet to be written, without so many first tokens that they fit."""
        names, rows = checked_rows(rows, start)
        texts = [self._texts(row, [], name)[0] for row, name in zip(rows, names, strict=True)]
        encoded = zip(rows, self._encode(texts), names, strict=True)
        return [self._fit(row, prompt_ids, 0, name)[0] for row, prompt_ids, name in encoded]

    def cut_place(self, columns: Sequence[str]) -> str:
        """See [`RowTokenizer`]."""
        return "their beginning"

    def check_choices(self, choice_sets: set[tuple[str, ...]], rows: Sequence[Row]) -> None:
        """See [`RowTokenizer`]."""
        check_choice_tokens(choice_sets, rows, self)

    def _templated(self, row: Row) -> bool:
        return self.reading.apply_chat_template or not isinstance(row["prompt"], str)

    def _texts(self, row: Row, answers: list[Any], name: str) -> tuple[str, list[str]]:
        """Prompt and answers as text, a conversation rendered by the chat template."""
        prompt = row["prompt"]
        if not self._templated(row):
            # White space at the prompt's end is part of the answer's first token in most vocabularies.
            stripped = prompt.rstrip()
            return stripped, [prompt[len(stripped) :] + answer for answer in answers]
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{name} is a conversation, or apply_chat_template is set, but the tokenizer has no chat "
                "template; use a chat model's tokenizer or plain text rows."
            )
        if isinstance(prompt, str):
            turn = [{"role": "user", "content": prompt}]
            # The delimiter belongs to running text; an assistant's turn starts with the answer.
            rendered = self._render(turn, name, add_generation_prompt=True)
            return rendered, [answer.lstrip() for answer in answers]
        if not all(answers):
            raise InputError(f"The completion of {name} is a conversation without messages; give the assistant's.")
        rendered = self._render(prompt, name, add_generation_prompt=True)
        wholes = [self._render(prompt + answer, name) for answer in answers]
        if not all(whole.startswith(rendered) for whole in wholes):
            raise InputError(
                f"The chat template renders {name} so that the prompt is not the beginning of prompt and answer; "
                "use a template that only appends turns."
            )
        return rendered, [whole[len(rendered) :] for whole in wholes]

    def _render(self, messages: list[dict[str, Any]], name: str, add_generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception as error:  # a template is a small program, and says by an exception what it refuses
            if not messages:
                raise InputError(
                    f"The prompt of {name} is a conversation without messages, which the tokenizer's chat template "
                    f"refuses ({first_line(error)}); give at least a user's message."
                ) from error
            roles = ", ".join(message["role"] for message in messages[:8])
            raise InputError(
                f"The tokenizer's chat template refuses {name} ({first_line(error)}), whose turns are {roles}; "
                "give the turns that it takes (many take no system turn, and a user's and an assistant's by turns), "
                "or another chat template."
            ) from error
        return str(text)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # Special tokens are put in by `_fit` and `_eos_ids`, or written out by the chat template.
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


@dataclass(frozen=True)
class AnswersAsTokens(AnswerTokenizer):
    """For the kinds of model that predict the tokens of an answer."""

    @abstractmethod
    def _encode_rows(self, rows: Sequence[Row], texts: Sequence[Texts]) -> list[Ids]:
        """The token ids of each row's prompt and answers, without special tokens."""

    def features(self, rows: Sequence[Row], start: int = 0, *, ranking: bool = False) -> list[Row]:
        """See [`RowTokenizer`]."""
        names, rows = checked_rows(rows, start)
        texts = [
            self._texts(row, list(row["choices"]) if ranking else [row["completion"]], name)
            for row, name in zip(rows, names, strict=True)
        ]
        features = []
        for row, name, texts_of_row, encoded in zip(rows, names, texts, self._encode_rows(rows, texts), strict=True):
            prompt_ids, answers_ids = encoded
            eos_ids = self._eos_ids(row)
            for answer, answer_ids in zip(texts_of_row[1], answers_ids, strict=True):
                if not answer_ids:
                    raise InputError(
                        f"{name} has an answer without tokens ({answer!r}); every answer needs some text."
                    )
                answer_ids += eos_ids
            prompt_ids, num_cut = self._fit(row, prompt_ids, max(map(len, answers_ids)), name)
            feature = {"example_id": name, "prompt_ids": prompt_ids, "num_cut": num_cut}
            if ranking:
                feature |= {"label": row["label"], "answers_ids": answers_ids}
            else:
                feature["answer_ids"] = answers_ids[0]
            features.append(feature)
        return features

    def choice_ids(self, rows: Sequence[Row], start: int = 0) -> list[list[list[int]]]:
        """See [`RowTokenizer`]."""
        names, rows = checked_rows([{**row, "label": 0, "completion": None} for row in rows], start)
        texts = [self._texts(row, row["choices"], name) for row, name in zip(rows, names, strict=True)]
        encoded = zip(rows, self._encode_rows(rows, texts), strict=True)
        return [[ids + self._eos_ids(row) for ids in answers_ids] for row, (_, answers_ids) in encoded]

    def _eos_ids(self, row: Row) -> list[int]:
        add_eos = self.reading.add_eos
        if add_eos is None:
            add_eos = not self._templated(row) and "choices" not in row
        if add_eos and self.tokenizer.eos_token_id is None:
            raise InputError(
                "The tokenizer has no end-of-sequence token to close the answers with; set add_eos to false, or give "
                "the tokenizer one (tokenizer.eos_token)."
            )
        return [self.tokenizer.eos_token_id] if add_eos else []


@dataclass(frozen=True)
class ReadsForTwo:
    """
    What a [`RowTokenizer`] for a student and a teacher has of the student's.

    Args:
        student ([`AnswerTokenizer`]): of the student's kind, over its own tokenizer.
    """

    student: AnswerTokenizer

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self.student.tokenizer

    @property
    def reading(self) -> Reading:
        return self.student.reading

    def choice_ids(self, rows: Sequence[Row], start: int = 0) -> list[list[list[int]]]:
        """The student's."""
        return self.student.choice_ids(rows, start)

    def cut_place(self, columns: Sequence[str]) -> str:
        """See [`RowTokenizer`]."""
        return self.student.cut_place(columns)


def checked_rows(rows: Sequence[Row], start: int) -> tuple[list[str], list[Row]]:
    """The rows' names, their ids or numbers from `start`, and the rows as [`checked_row`] gives them."""
    names = [row_name(row, start + i) for i, row in enumerate(rows)]
    return names, [checked_row(row, name) for row, name in zip(rows, names, strict=True)]
