"""The results as a table and in words."""

import io

import pytest
from rich.console import Console

from sinkd_llm.report.results import ResultRow
from sinkd_llm.report.table import describe_training, results_table, summary, table_columns
from tests.support.results import AFTER, BEFORE, ROWS


def printed(rows: list[ResultRow], width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(rows))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_columns_of_the_models():
    columns = table_columns(ROWS)
    assert list(columns) == [
        "acc", "acc_norm", "agreement", "of teacher", "parameters", "trained", "on disk", "examples/s",
    ]  # fmt: skip
    cells = list(zip(*columns.values(), strict=True))
    assert cells[0] == ("0.800", "0.800", "–", "100.0 %", "135.0 M", "–", "540 MB", "50.0")
    assert cells[2] == ("0.720", "0.700", "0.900", "90.0 %", "65.0 M", "5.0 M", "260 MB", "100")


def test_columns_that_say_nothing_are_left_out():
    assert list(table_columns([ResultRow("model", {"acc": 0.5}, 10)])) == ["acc", "parameters"]


@pytest.mark.parametrize("metrics", [1, 3, 12])
def test_the_table_fits_a_terminal_of_80_columns_and_says_everything(metrics):
    more = {f"a_metric_of_some_length_{i}": 0.5 for i in range(metrics)}
    rows = [ResultRow(row.name, row.metrics | more, *list(vars(row).values())[2:]) for row in ROWS]
    lines = printed(rows)
    assert max(map(len, lines)) <= 80
    assert "teacher   student before   student after" in lines[1]
    columns = table_columns(rows)
    body = [line.split() for line in lines if line and "─" not in line][1:]
    assert body == [" ".join([name, *cells]).split() for name, cells in columns.items()]


def test_the_summary_says_what_was_kept():
    assert summary(ROWS) == (
        "The student scores acc 0.720, 90.0 % of its teacher's 0.800, with 48.1 % of its parameters; "
        "before training it scored 0.500."
    )
    assert summary([BEFORE, AFTER]) is None


def test_the_time_of_a_resumed_run_is_that_of_its_last_part():
    assert describe_training({"steps": 20, "resumed_at": 0, "seconds": 3}) == "20 steps in 3 s"
    assert describe_training({"steps": 20, "resumed_at": 15, "seconds": 3}) == "20 steps, the last 5 in 3 s"
