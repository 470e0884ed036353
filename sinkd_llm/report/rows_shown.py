"""The rows that a page shows: those that a student lost to its teacher, those that it won, and others it got wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinkd_llm.report.predictions import EVALUATION, TEACHER, Predictions
from sinkd_llm.units import format_score

# So many rows of a list, and characters of a text, stand in a page: it stays below 3 MB, whatever the data.
MOST_ROWS = 200
LONGEST_TEXT = 600
_LONGEST_ANSWER = 160
WON = "Won: the student is right, the teacher is not"


@dataclass(frozen=True)
class Said:
    """
    What a model said of a row.

    Attributes:
        answer (`str`): the chosen answer, or what it wrote.
        probability (`float`, *optional*): of this answer, in [0, 1].
    """

    answer: str
    probability: float | None = None


@dataclass(frozen=True)
class ShownRow:
    """
    A row of a list.

    Attributes:
        name (`str`): its id.
        text (`str`): what it says, cut; empty where it was not kept.
        gold (`str`): the right answer.
        student ([`Said`]), teacher ([`Said`], *optional*): what the models said.
    """

    name: str
    text: str
    gold: str
    student: Said
    teacher: Said | None = None


@dataclass(frozen=True)
class RowList:
    """
    A list of rows.

    Attributes:
        title (`str`): what they have in common.
        rows (`list[ShownRow]`): at most `MOST_ROWS`.
        total (`int`): how many there are in all.
        order (`str`): by what they are sorted.
    """

    title: str
    rows: list[ShownRow]
    total: int
    order: str


def row_lists(answers: Mapping[str, Predictions], subject: str = "student") -> list[RowList]:
    """
    The lists of a run, as far as its answers allow; a list without a row is left out.

    Args:
        answers (`Mapping[str, Predictions]`): of `predictions.json`.
        subject (`str`, *optional*): what a model without a teacher is called.
    """
    student = answers.get(EVALUATION)
    if student is None:
        return []
    if student.numbers is not None and student.targets is not None:
        return _listed([("Rows whose number is far off", _far_off(student))], _NumberRows(student).row, _OFF)
    rows = _ChoiceRows(student, _same_rows(answers.get(TEACHER), student), subject)
    wrong = [i for i in range(len(student.ids)) if student.predictions[i] != student.references[i]]
    if rows.teacher is None:
        named = f"Rows that the {subject} got wrong" if rows.chooses else "Rows answered otherwise than the reference"
        return _listed([(named, rows.surest(wrong))], rows.row, rows.order)
    theirs = rows.teacher
    lost = [i for i in wrong if theirs.predictions[i] == student.references[i]]
    won = [
        i for i in range(len(student.ids)) if student.predictions[i] == student.references[i] != theirs.predictions[i]
    ]
    both = [i for i in wrong if theirs.predictions[i] != student.references[i]]
    return _listed(
        [
            ("Lost: the teacher is right, the student is not", rows.surest(lost)),
            (WON, rows.surest(won)),
            ("Both are wrong", rows.surest(both)),
        ],
        rows.row,
        rows.order,
    )


_OFF = "the largest distance first"


def _listed(named: Sequence[tuple[str, list[int]]], row: Callable[[int], ShownRow], order: str) -> list[RowList]:
    return [
        RowList(title, [row(index) for index in rows[:MOST_ROWS]], len(rows), order) for title, rows in named if rows
    ]


def _same_rows(teacher: Predictions | None, student: Predictions) -> Predictions | None:
    """The teacher's answers, if they are to the student's rows."""
    return teacher if teacher is not None and teacher.ids == student.ids else None


class _ChoiceRows:
    """Rows whose answers are chosen among some, or written."""

    def __init__(self, student: Predictions, teacher: Predictions | None, subject: str) -> None:
        self.student, self.teacher, self._subject = student, teacher, subject
        self.chooses = all(isinstance(answer, int) for answer in student.predictions)

    @property
    def order(self) -> str:
        return f"those first of which the {self._subject} is surest" if self._sure else "in the order of the data"

    @property
    def _sure(self) -> bool:
        return self.student.probabilities is not None

    def surest(self, rows: list[int]) -> list[int]:
        """Where probabilities are known, the surest answers first: mistakes from which most is learnt."""
        return sorted(rows, key=lambda i: -(_probability(self.student, i) or 0.0)) if self._sure else rows

    def row(self, index: int) -> ShownRow:
        student = self.student
        return ShownRow(
            name=cut(student.ids[index], _LONGEST_ANSWER),
            text=cut(student.texts[index]) if student.texts is not None else "",
            gold=_answer(student, student.references[index]),
            student=self._said(student, index),
            teacher=self._said(self.teacher, index) if self.teacher is not None else None,
        )

    def _said(self, of: Predictions, index: int) -> Said:
        # The choices are the same for both, and a teacher's record may lack their names.
        return Said(_answer(self.student, of.predictions[index]), _probability(of, index))


@dataclass(frozen=True)
class _NumberRows:
    """Rows that are answered with a number."""

    student: Predictions

    def row(self, index: int) -> ShownRow:
        student = self.student
        assert student.numbers is not None
        assert student.targets is not None
        text = cut(student.texts[index]) if student.texts is not None else ""
        target, number = format_score(student.targets[index]), format_score(student.numbers[index])
        return ShownRow(cut(student.ids[index], _LONGEST_ANSWER), text, target, Said(number))


def _far_off(student: Predictions) -> list[int]:
    """Rows by how far their number is from what is right."""
    assert student.numbers is not None
    assert student.targets is not None
    distance = [abs(one - other) for one, other in zip(student.numbers, student.targets, strict=True)]
    return sorted((i for i in range(len(distance)) if distance[i] > 0), key=lambda i: -distance[i])


def _probability(of: Predictions, index: int) -> float | None:
    answer = of.predictions[index]
    if of.probabilities is None or not isinstance(answer, int) or not 0 <= answer < len(of.probabilities[index]):
        return None
    return of.probabilities[index][answer]


def _answer(of: Predictions, answer: Any) -> str:
    if not isinstance(answer, int):
        return cut(str(answer), _LONGEST_ANSWER)
    if of.choices is None or not 0 <= answer < len(of.choices):
        return f"choice {answer + 1}"
    return cut(of.choices[answer].strip(), _LONGEST_ANSWER)


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text of at most so many characters; its middle is left out."""
    text = str(text)
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]} … {text[-half:]}"
