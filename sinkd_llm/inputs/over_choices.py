"""Rows whose answer choices are compared: student and teacher each read them in their way, whatever their tokens."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
from sinkd_llm.inputs.classifier import ClassTokenizer
from sinkd_llm.inputs.contract import AnswerTokenizer, ReadsForTwo
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.inputs.row_checks import Row, row_name
from sinkd_llm.models.kinds import IGNORE_INDEX, TEACHER, context_length
from sinkd_llm.models.kinds.over_choices import PLACES

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

# Of a training row its label or -100, or the true value of a regression; of any row what it says, in 63 bits.
LABELS, PRINT = "labels", "row_print"
NO_LABEL = -1


@dataclass(frozen=True)
class ChoiceRows(ReadsForTwo):
    """
    A [`~sinkd_llm.inputs.contract.RowTokenizer`]: all choices of a row, for training as for ranking.

    The column `teacher` of a row, if it has one, is what the teacher reads instead: a mapping with a `prompt`,
    `choices` in the order of the row's own, and perhaps `text` and `text_pair`.

    Args:
        student ([`AnswerTokenizer`]): of the student's kind, over its own tokenizer.
        teacher ([`AnswerTokenizer`], *optional*): of the teacher's kind, over its own tokenizer, with its own reading.
        as_asked (`bool`, *optional*, defaults to `False`): no student is here, and what stands for it is the teacher.
    """

    teacher: AnswerTokenizer | None = None
    as_asked: bool = False

    def features(self, rows: Sequence[Row], start: int = 0, *, ranking: bool = False) -> list[Row]:
        """
        As [`~sinkd_llm.inputs.contract.RowTokenizer`]: always all choices, and `row_print` besides. Rows to train
        on may have no label (-1), and have `labels`.

        Raises:
            InputError: for a row without choices, and for one whose teacher reads another number of choices.
        """
        rows = [{**row, "id": row_name(row, start + i)} for i, row in enumerate(rows)]
        for row in rows:
            if "choices" not in row:
                raise InputError(
                    f"{row['id']} has no answer choices, and the signal is over the choices; give a task with "
                    "choices, or set signal to tokens."
                )
        has_label = [ranking or row.get("label") not in (None, NO_LABEL) for row in rows]
        blank = {"label": 0, "completion": None}
        read = [row if known else {**row, **blank} for row, known in zip(rows, has_label, strict=True)]
        own = [_as_asked(row) for row in read] if self.as_asked else read
        features = self.student.features(own, start, ranking=True)
        if not ranking:
            for row, feature, known in zip(read, features, has_label, strict=True):
                feature[LABELS] = self._label(row, feature) if known else IGNORE_INDEX
        for row, feature in zip(rows, features, strict=True):
            feature[PRINT] = row_print(row)
        if self.teacher is None:
            return features
        theirs = self.teacher.features([_as_asked(row) for row in read], start, ranking=True)
        for feature, other in zip(features, theirs, strict=True):
            mine, its = len(feature["answers_ids"]), len(other["answers_ids"])
            if mine != its:
                raise InputError(
                    f"{feature['example_id']} has {mine} choices for the student and {its} for the teacher; both "
                    "tasks need the same choices in the same order."
                )
            other.pop("num_cut")
            feature[TEACHER] = other
        return features

    def _label(self, row: Row, feature: Row) -> float | int:
        if isinstance(self.student, ClassTokenizer) and self.student.num_classes == 1:
            (own,) = self.student.features([row])
            target: float = own["target"]
            return target
        label: int = feature["label"]
        return label

    def check_choices(self, choice_sets: set[tuple[str, ...]], rows: Sequence[Row]) -> None:
        """Refuses choices that the student or the teacher cannot tell apart."""
        asked = [_as_asked({"id": str(i), **row}) for i, row in enumerate(rows)]
        theirs = {tuple(row["choices"]) for row in asked} if any(TEACHER in row for row in rows) else choice_sets
        self.student.check_choices(*((theirs, asked) if self.as_asked else (choice_sets, rows)))
        if self.teacher is not None:
            self.teacher.check_choices(theirs, asked)


@dataclass(frozen=True)
class ChoiceCollator:
    """
    Ranking batches with the `row_print` of each row; those to train on have `labels` `[B]`: the gold choice, or -100.

    Args:
        student, teacher (`Callable`): the collators of the two kinds; the teacher's batch is under `teacher`.
    """

    student: Callable[[Sequence[Row]], dict[str, Any]]
    teacher: Callable[[Sequence[Row]], dict[str, Any]] | None = None

    def __call__(self, features: Sequence[Row]) -> dict[str, Any]:
        batch = self._with_labels(self.student(features), features)
        if PRINT in features[0]:
            batch[PRINT] = [row[PRINT] for row in features]
        if self.teacher is not None:
            theirs = self.teacher([row[TEACHER] for row in features])
            batch[TEACHER] = self._with_labels(theirs, features)
        return batch

    @staticmethod
    def _with_labels(batch: dict[str, Any], features: Sequence[Row]) -> dict[str, Any]:
        """With the gold choice of each row as `labels`; what its kind calls so says where it reads."""
        if LABELS not in features[0]:
            return batch
        places = {PLACES: batch[LABELS]} if LABELS in batch else {}
        return {**batch, **places, LABELS: torch.tensor([row[LABELS] for row in features])}


def choice_rows_for(
    student: "nn.Module",
    tokenizer: "PreTrainedTokenizerBase",
    teacher: "nn.Module | None",
    teacher_tokenizer: "PreTrainedTokenizerBase | None",
    reading: Reading,
    *,
    pad_to_multiple_of: int | None = None,
) -> tuple[ChoiceRows, ChoiceCollator]:
    """
    What turns rows into the input of a student and a teacher that are compared over the answer choices.

    Args:
        student, teacher (`nn.Module`): of any kinds; no teacher where none is here that reads rows.
        tokenizer, teacher_tokenizer (`PreTrainedTokenizerBase`): each its own.
        reading ([`Reading`]): of both, each within its own context.
        pad_to_multiple_of (`int`, *optional*): rounds the length of batches up.
    """
    ours = row_tokenizer(student, tokenizer, reading.within(context_length(student)))
    collator = row_collator(student, tokenizer, pad_to_multiple_of)
    if teacher is None or teacher_tokenizer is None:
        return ChoiceRows(ours), ChoiceCollator(collator)
    theirs = row_tokenizer(teacher, teacher_tokenizer, reading.within(context_length(teacher)))
    return ChoiceRows(ours, theirs), ChoiceCollator(
        collator, row_collator(teacher, teacher_tokenizer, pad_to_multiple_of)
    )


def _as_asked(row: Row) -> Row:
    """The row as the teacher reads it."""
    asked = row.get(TEACHER)
    if asked is None:
        return row
    kept = {key: value for key, value in asked.items() if value is not None}
    return {"id": row["id"], "label": row["label"], "completion": None, **kept}  # its answers are its own choices


def row_print(row: Row) -> int:
    """63 bits of what a row says before any tokenizer: 32 of its text (or prompt), and above them its choices."""
    texts = [row[name] for name in ("text", "text_pair") if row.get(name) is not None]
    return _digest(texts or [str(row["prompt"])]) | (_digest(row["choices"]) >> 1) << 32


def _digest(texts: Sequence[str]) -> int:
    digest = hashlib.blake2b(digest_size=4)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\x1f")
    return int.from_bytes(digest.digest(), "little")
