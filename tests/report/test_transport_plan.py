"""A kept plan: written and read, and what a page says of its rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.report.transport_plan import PLAN_FILE, KeptPlan, PlanRow, read_plan, view_of, write_plan

ROWS = [PlanRow("a", "one", "x"), PlanRow("b", "two", "w"), PlanRow("c", "three", "x", 1)]
PLAN = KeptPlan("sinkhorn", 7, [[0.2, 0.05, 0.0], [0.0, 0.25, 0.0], [0.1, 0.0, 0.15]], ROWS, ROWS, (4, 4), True)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    write_plan(tmp_path, PLAN)
    assert read_plan(tmp_path) == PLAN


def test_rows_of_one_answer_stand_beside_each_other_and_name_their_partners() -> None:
    lines = view_of(PLAN).lines
    assert [(line.number, line.name, line.gold) for line in lines] == [
        (1, "b", "w"),
        (2, "a", "x"),
        (3, "c, token 2", "x"),
    ]
    # Shares of a row's mass, which is a quarter of the whole.
    assert [line.own for line in lines] == pytest.approx([1.0, 0.8, 0.6])
    assert lines[1].partners == [(2, "x: one", pytest.approx(0.8)), (1, "w: two", pytest.approx(0.2))]


def test_columns_that_belong_to_no_row_have_numbers() -> None:
    other = replace(PLAN, teachers=[PlanRow(""), PlanRow(""), PlanRow("")], same_rows=False)
    line = view_of(other).lines[0]
    assert (line.own, line.partners) == (None, [(2, "row 2", pytest.approx(1.0))])


@pytest.mark.parametrize(
    "change",
    [
        {"plan": [[1.0]]},
        {"plan": []},
        {"plan": [[0.1, 0.2, "x"]] * 3},
        {"problem": 4},
        {"students": 3},
        {"term": None, "x": 1},
    ],
)
def test_a_damaged_file_is_named(change: dict[str, object], tmp_path: Path) -> None:
    write_plan(tmp_path, PLAN)
    content = json.loads((tmp_path / PLAN_FILE).read_text())
    (tmp_path / PLAN_FILE).write_text(json.dumps({**content, **change}))
    with pytest.raises(InputError, match=rf"{PLAN_FILE} is damaged; delete it"):
        read_plan(tmp_path)
