"""`transport_plan.json` of a run: the plan of one of its last transport problems, with what its rows say."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole
from sinkd_llm.report.drawing import draw_heat_map
from sinkd_llm.report.rows_shown import cut

PLAN_FILE = "transport_plan.json"
# A mass is kept with so many digits after the point.
_DIGITS = 6
# Teacher rows that are named for a row of the student.
_MOST_PARTNERS = 3
_LONGEST_TEXT = 200


@dataclass(frozen=True)
class PlanRow:
    """
    A row or a column of a plan.

    Attributes:
        name (`str`): the id of its training row; empty where a teacher's row belongs to none.
        text (`str`): what that says.
        gold (`str`): its right answer; empty where it has none.
        place (`int`): which token of its answer it is, from 0.
    """

    name: str
    text: str = ""
    gold: str = ""
    place: int = 0


@dataclass(frozen=True)
class KeptPlan:
    """
    A transport plan as it is kept.

    Attributes:
        term (`str`): the term of the loss that it is of, `"sinkhorn"` or `"transported"`.
        step (`int`): of the training step.
        plan (`list[list[float]]`): masses, of the whole problem 1; at most 64 rows and columns.
        students, teachers (`list[PlanRow]`): its rows, and its columns.
        problem (`tuple[int, int]`): how many rows of either side the whole problem has.
        same_rows (`bool`): whether row i and column i are the same token of the same training row.
    """

    term: str
    step: int
    plan: list[list[float]]
    students: list[PlanRow]
    teachers: list[PlanRow]
    problem: tuple[int, int]
    same_rows: bool


def write_plan(folder: Path, kept: KeptPlan) -> None:
    """Write `transport_plan.json` into the folder of a run."""
    content = asdict(kept) | {"plan": [[round(float(mass), _DIGITS) for mass in row] for row in kept.plan]}
    write_whole(folder / PLAN_FILE, json.dumps(content, ensure_ascii=False) + "\n")


def read_plan(folder: Path) -> KeptPlan | None:
    """
    The plan in the folder of a run; `None` where none was kept: no transport, or a run of an earlier version.

    Raises:
        InputError: if the file is damaged.
    """
    path = folder / PLAN_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {side: [PlanRow(**row) for row in content[side]] for side in ("students", "teachers")}
        n, m = map(int, content["problem"])
        kept = KeptPlan(**{**content, **rows, "problem": (n, m)})
        masses = [[float(mass) for mass in row] for row in kept.plan]
        if not masses or not masses[0] or {len(row) for row in masses} != {len(kept.teachers)}:
            raise ValueError("its rows are not of one length")
        if len(masses) != len(kept.students) or (kept.same_rows and len(masses) != len(masses[0])):
            raise ValueError("its rows are not those that it names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged; delete it, and the page is made without the plan.") from error
    return kept


@dataclass(frozen=True)
class PlanLine:
    """
    A row of the plan in words.

    Attributes:
        number (`int`): of the row in the drawing, from 1.
        name, text, gold (`str`): as of [`PlanRow`]; a token that is not the first of its answer is named so.
        own (`float`, *optional*): the share of its mass that goes to the same token of the teacher.
        partners (`list[tuple[int, str, float]]`): column, what it is, share: where most of its mass goes.
    """

    number: int
    name: str
    text: str
    gold: str
    own: float | None
    partners: list[tuple[int, str, float]]


@dataclass(frozen=True)
class PlanView:
    """What a page shows of a plan: `svg`, the `lines` of its rows, and the [`KeptPlan`]."""

    kept: KeptPlan
    svg: str
    lines: list[PlanLine]


def view_of(kept: KeptPlan) -> PlanView:
    """A plan as a page shows it: rows and columns of the same right answer stand beside each other."""
    rows = sorted(range(len(kept.students)), key=lambda i: kept.students[i].gold)
    columns = rows if kept.same_rows else sorted(range(len(kept.teachers)), key=lambda j: kept.teachers[j].gold)
    masses = [[kept.plan[i][j] for j in columns] for i in rows]
    students, teachers = [kept.students[i] for i in rows], [kept.teachers[j] for j in columns]
    title = f"Transport plan of {len(rows)} rows of the student and {len(columns)} rows of the teacher"
    svg = draw_heat_map(title, masses, ("row of the student", "row of the teacher"))
    return PlanView(kept, svg, [_line(i, row, students, teachers, kept) for i, row in enumerate(masses)])


def _line(
    index: int, masses: Sequence[float], students: Sequence[PlanRow], teachers: Sequence[PlanRow], kept: KeptPlan
) -> PlanLine:
    row = students[index]
    # A plan that was cut shows a part of its row's mass, which is 1 / n of the whole.
    share = [mass * kept.problem[0] for mass in masses]
    best = sorted((j for j in range(len(share)) if share[j] > 0), key=lambda j: -share[j])[:_MOST_PARTNERS]
    return PlanLine(
        number=index + 1,
        name=_named(row),
        text=cut(row.text, _LONGEST_TEXT),
        gold=row.gold,
        own=share[index] if kept.same_rows else None,
        partners=[(j + 1, _partner(teachers[j], j), share[j]) for j in best],
    )


def _named(row: PlanRow) -> str:
    return row.name + (f", token {row.place + 1}" if row.place else "")


def _partner(row: PlanRow, index: int) -> str:
    parts = [row.gold, cut(row.text, 80) or _named(row)]
    return ": ".join(part for part in parts if part) or f"row {index + 1}"
