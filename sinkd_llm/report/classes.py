"""What a page says of the classes of a task: how well each is answered, and which are taken for which."""

from collections.abc import Sequence
from dataclasses import dataclass

from sinkd_llm.report.drawing import draw_heat_map
from sinkd_llm.report.results import TEACHER, ClassTable, ResultRow, find_row

# A table of counts with more classes is not read, and is drawn.
MOST_IN_TABLE = 12
# Names of more classes do not fit at an axis.
_MOST_NAMES = 40
MOST_CONFUSIONS = 20


@dataclass(frozen=True)
class ClassLine:
    """
    One class.

    Attributes:
        name (`str`): the choice.
        support (`int`): rows of which it is the right answer.
        precision, recall, f1 (`float`): of the student, in [0, 1].
        teacher_f1 (`float`, *optional*): of the teacher.
    """

    name: str
    support: int
    precision: float
    recall: float
    f1: float
    teacher_f1: float | None


@dataclass(frozen=True)
class Confusion:
    """
    Which answers a model gives to rows of which right answer.

    Attributes:
        title (`str`): whose.
        names (`list[str]`): the classes.
        counts (`list[list[int]]`): rows by right answer and chosen one; empty where they are drawn instead.
        shares (`list[list[float]]`): likewise, of the rows with this right answer, in [0, 1].
        svg (`str`): the drawing of these shares; empty where there is a table.
        largest (`list[tuple[str, str, int]]`): right answer, chosen one, rows: the most frequent mistakes.
        mistakes (`int`): rows that are answered wrongly.
    """

    title: str
    names: list[str]
    counts: list[list[int]]
    shares: list[list[float]]
    svg: str
    largest: list[tuple[str, str, int]]
    mistakes: int


@dataclass(frozen=True)
class Classes:
    """What is said of the classes: `lines`, the weakest first, and the confusions of student and teacher."""

    lines: list[ClassLine]
    confusions: list[Confusion]


def classes_of(rows: Sequence[ResultRow]) -> Classes | None:
    """
    Of the rows of the results table; `None` where no student has scores of classes.

    Args:
        rows (`Sequence[ResultRow]`): of them the last one that is not the teacher is the trained student.
    """
    students = [row for row in rows if row.name != TEACHER and row.classes is not None]
    if not students or (own := students[-1].classes) is None:
        return None
    teacher = find_row(rows, TEACHER)
    theirs = teacher.classes if teacher is not None and _same(teacher.classes, own) else None
    lines = [
        ClassLine(
            name.strip(), own.support[i], own.precision[i], own.recall[i], own.f1[i], theirs.f1[i] if theirs else None
        )
        for i, name in enumerate(own.names)
        if own.support[i] or own.precision[i]
    ]
    confusions = [_confusion(students[-1].name, own), *([_confusion(TEACHER, theirs)] if theirs is not None else [])]
    return Classes(sorted(lines, key=lambda line: line.f1), confusions)


def _same(table: ClassTable | None, other: ClassTable) -> bool:
    return table is not None and table.names == other.names


def _confusion(title: str, table: ClassTable) -> Confusion:
    C = len(table.names)
    names = [name.strip() for name in table.names]
    counts = [[0] * C for _ in range(C)]
    for right, chosen, rows in table.confusion:
        counts[right][chosen] = rows
    shares = [[rows / max(sum(line), 1) for rows in line] for line in counts]
    wrong = sorted((entry for entry in table.confusion if entry[0] != entry[1]), key=lambda entry: -entry[2])
    largest = [(names[right], names[chosen], rows) for right, chosen, rows in wrong[:MOST_CONFUSIONS]]
    mistakes = sum(rows for _, _, rows in wrong)
    if C <= MOST_IN_TABLE:
        return Confusion(title, names, counts, shares, "", largest, mistakes)
    labels = (names, names) if C <= _MOST_NAMES else None
    drawn = f"Confusion matrix of the {title}: shares of the rows of each right answer"
    svg = draw_heat_map(drawn, shares, ("right answer", "chosen answer"), labels)
    return Confusion(title, names, [], [], svg, largest, mistakes)
