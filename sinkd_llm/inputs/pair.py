"""Rows for a student and a teacher of different kinds, which read the same row in different ways.

Their supervised rows must be the same tokens in the same order; what stands around them differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.collator import AnswerCollator, row_collator
from sinkd_llm.inputs.contract import AnswerTokenizer
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.inputs.row_tokenizers import row_tokenizer
from sinkd_llm.models.kinds import TEACHER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PairTokenizer(AnswerTokenizer):
    """
    The features for the student's kind, and in the column `teacher` the features for the teacher's kind.

    Args:
        student, teacher ([`AnswerTokenizer`]): of the two kinds, over the same tokenizer.
    """

    student: AnswerTokenizer | None = None
    teacher: AnswerTokenizer | None = None

    @classmethod
    def of(cls, student: AnswerTokenizer, teacher: AnswerTokenizer) -> "PairTokenizer":
        """The pair, with the student's settings."""
        return cls(student.tokenizer, student.reading, student, teacher)

    def features(self, rows: Sequence[Row], start: int = 0, *, ranking: bool = False) -> list[Row]:
        """As [`AnswerTokenizer.features`].

        Raises:
            InputError: for an answer that the two kinds read as different tokens.
        """
        assert self.student is not None
        assert self.teacher is not None
        features = self.student.features(rows, start, ranking=ranking)
        key = "answers_ids" if ranking else "answer_ids"
        for ours, theirs in zip(features, self.teacher.features(rows, start, ranking=ranking), strict=True):
            if ours[key] != theirs[key]:
                raise InputError(
                    f"Teacher and student are of different kinds and read the answer of {ours['example_id']} as "
                    f"different tokens, {theirs[key]} and {ours[key]}, so their predictions cannot be compared token "
                    "by token; choose two models of one kind."
                )
            ours["num_cut"] = max(ours["num_cut"], theirs.pop("num_cut"))
            ours[TEACHER] = theirs
        return features

    def choice_ids(self, rows: Sequence[Row], start: int = 0) -> list[list[list[int]]]:
        """The student's; the teacher's are the same, see `features`."""
        assert self.student is not None
        return self.student.choice_ids(rows, start)

    def check_choices(self, choice_sets: set[tuple[str, ...]], rows: Sequence[Row]) -> None:
        """Refuses choices that one of the two kinds cannot tell apart."""
        for tokenizer in (self.student, self.teacher):
            assert tokenizer is not None
            tokenizer.check_choices(choice_sets, rows)


def rows_for(
    student: "nn.Module",
    teacher: "nn.Module | None",
    tokenizer: "PreTrainedTokenizerBase",
    reading: Reading,
    *,
    pad_to_multiple_of: int | None = None,
) -> "tuple[AnswerTokenizer, AnswerCollator | PairCollator]":
    """What turns rows into the student's and the teacher's input, see [`row_tokenizer`]."""
    tokenizers, collators = [], []
    for model in (student,) if teacher is None else (student, teacher):
        tokenizers.append(row_tokenizer(model, tokenizer, reading))
        collators.append(row_collator(model, tokenizer, pad_to_multiple_of))
    if teacher is None or type(tokenizers[0]) is type(tokenizers[1]):
        return tokenizers[0], collators[0]
    return PairTokenizer.of(*tokenizers), PairCollator(*collators)


@dataclass(frozen=True)
class PairCollator:
    """The student's batch, and the teacher's under `teacher`."""

    student: Callable[[Sequence[Row]], dict[str, Any]]
    teacher: Callable[[Sequence[Row]], dict[str, Any]]

    def __call__(self, features: Sequence[Row]) -> dict[str, Any]:
        return {**self.student(features), TEACHER: self.teacher([row[TEACHER] for row in features])}


def features_of_each(tokenizer: AnswerTokenizer, features: "Dataset") -> "list[tuple[AnswerTokenizer, Dataset]]":
    """
    The features of student and teacher apart, each with what made them.

    Args:
        tokenizer ([`AnswerTokenizer`]): what made the features, perhaps a [`PairTokenizer`].
        features ([`~datasets.Dataset`]): of `tokenize_dataset`.
    """
    if not isinstance(tokenizer, PairTokenizer):
        return [(tokenizer, features)]
    assert tokenizer.student is not None
    assert tokenizer.teacher is not None
    theirs = features.select_columns([TEACHER]).flatten()
    names = {name: name.removeprefix(f"{TEACHER}.") for name in theirs.column_names}
    return [
        (tokenizer.student, features.remove_columns(TEACHER)),
        (tokenizer.teacher, theirs.rename_columns(names)),
    ]
