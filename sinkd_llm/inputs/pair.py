"""Rows for a student and a teacher of different kinds, which read the same row in different ways.

Their supervised rows must be the same tokens in the same order; what stands around them differs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
from sinkd_llm.inputs.contract import AnswerTokenizer, ReadsForTwo, RowTokenizer
from sinkd_llm.inputs.over_choices import ChoiceRows
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.inputs.row_checks import Row
from sinkd_llm.models.kinds import TEACHER

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

RowCollator = Callable[[Sequence[Row]], dict[str, Any]]


@dataclass(frozen=True)
class PairTokenizer(ReadsForTwo):
    """
    A [`RowTokenizer`]: the features for the student's kind, and in the column `teacher` those for the
    teacher's kind.

    Args:
        student, teacher ([`AnswerTokenizer`]): of the two kinds, over the same tokenizer and with the same reading.
    """

    teacher: AnswerTokenizer

    def features(self, rows: Sequence[Row], start: int = 0, *, ranking: bool = False) -> list[Row]:
        """See [`RowTokenizer`].

        Raises:
            InputError: for an answer that the two kinds read as different tokens.
        """
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

    def check_choices(self, choice_sets: set[tuple[str, ...]], rows: Sequence[Row]) -> None:
        """Refuses choices that one of the two kinds cannot tell apart."""
        for tokenizer in (self.student, self.teacher):
            tokenizer.check_choices(choice_sets, rows)


@dataclass(frozen=True)
class PairCollator:
    """The student's batch, and the teacher's under `teacher`."""

    student: RowCollator
    teacher: RowCollator

    def __call__(self, features: Sequence[Row]) -> dict[str, Any]:
        return {**self.student(features), TEACHER: self.teacher([row[TEACHER] for row in features])}


def rows_for(
    student: "nn.Module",
    teacher: "nn.Module | None",
    tokenizer: "PreTrainedTokenizerBase",
    reading: Reading,
    *,
    pad_to_multiple_of: int | None = None,
) -> tuple[RowTokenizer, RowCollator]:
    """
    What turns rows into the student's and the teacher's input: the tokenizer and the collator of a run.

    Args:
        student (`nn.Module`): of any kind.
        teacher (`nn.Module`, *optional*): of any kind; `None` where none is here that reads rows.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the one of both.
        reading ([`Reading`]): how rows become tokens, within what both can read.
        pad_to_multiple_of (`int`, *optional*): rounds the length of batches up.

    Raises:
        InputError: see [`row_tokenizer`] and [`row_collator`].
    """
    ours, collator = row_tokenizer(student, tokenizer, reading), row_collator(student, tokenizer, pad_to_multiple_of)
    if teacher is None:
        return ours, collator
    theirs = row_tokenizer(teacher, tokenizer, reading)
    if type(ours) is type(theirs):
        return ours, collator
    return PairTokenizer(ours, theirs), PairCollator(collator, row_collator(teacher, tokenizer, pad_to_multiple_of))


def features_of_each(tokenizer: RowTokenizer, features: "Dataset") -> "list[tuple[RowTokenizer, Dataset]]":
    """
    The features of student and teacher apart, each with what made them.

    Args:
        tokenizer ([`RowTokenizer`]): what made the features, perhaps for two models.
        features ([`~datasets.Dataset`]): of `tokenize_dataset`.
    """
    if not isinstance(tokenizer, PairTokenizer | ChoiceRows):
        return [(tokenizer, features)]
    if tokenizer.teacher is None:
        return [(tokenizer.student, features)]
    theirs = features.select_columns([TEACHER]).flatten()
    names = {name: name.removeprefix(f"{TEACHER}.") for name in theirs.column_names}
    return [
        (tokenizer.student, features.remove_columns(TEACHER)),
        (tokenizer.teacher, theirs.rename_columns(names)),
    ]
