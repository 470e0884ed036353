"""The results as a table and in words."""

import io
from collections import Counter
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from sinkd_llm.report.results import ResultRow
from sinkd_llm.report.table import describe_rows, describe_training, quantities, results_table, summary
from sinkd_llm.terminal import printable, show
from tests.support.results import AFTER, BEFORE, ROWS, whole_run


def printed(rows: list[ResultRow], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(rows, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_columns_of_the_models():
    columns = quantities(ROWS)
    assert list(columns) == [
        "acc", "acc_norm", "agreement", "of teacher", "parameters", "trained", "on disk", "examples/s",
    ]  # fmt: skip
    cells = [tuple(cell.value for cell in of) for of in zip(*columns.values(), strict=True)]
    assert cells[0] == ("0.800", "0.800", "–", "100.0 %", "135.0 M", "–", "540 MB", "50.0")
    assert cells[2] == ("0.720", "0.700", "0.900", "90.0 %", "65.0 M", "5.0 M", "260 MB", "100")


def test_columns_that_say_nothing_are_left_out():
    assert list(quantities([ResultRow("model", {"acc": 0.5}, 10)])) == ["acc", "parameters"]


NAMES = {
    "usual": ["teacher", "student before", "student after"],
    "long": ["an-organisation-with-a-long-name/a-model-with-a-longer-one-8B-instruct", "before", "student after"],
    "wide": ["教師モデル" * 6, "学生" * 4, "学生モデル after"],
    "control": ["teacher\x1b[31m", "student\u202e before", "student after"],
}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("metrics", [0, 10])
@pytest.mark.parametrize("names", NAMES)
def test_the_table_is_whole_in_any_terminal(names, metrics, width, monkeypatch, capsys):
    more = {f"a_metric_of_some_length_{i}": 0.5 for i in range(metrics)}
    rows = [
        replace(row, name=name, metrics=row.metrics | more)
        for row, name in zip(whole_run().record.rows, NAMES[names], strict=True)
    ]
    monkeypatch.setenv("COLUMNS", str(width))
    show(results_table(rows))
    out = capsys.readouterr().out
    assert max(map(cell_len, out.splitlines())) <= width
    assert not set(out) & {"\x1b", "\u202e", "…"}
    for name, cells in quantities(rows).items():
        for cell in cells:
            assert cell.value in out, (name, cell)
    # A name of a model or of a metric may be folded, and every part of it is there.
    letters = Counter(out)
    for name in (*map(printable, NAMES[names]), *quantities(rows)):
        assert not Counter(name.replace(" ", "")) - letters, name


def test_intervals_are_shown_where_there_is_room():
    rows = whole_run().record.rows
    beside, below, without = ("\n".join(printed(rows, width)) for width in (80, 60, 50))
    assert beside.count("0.720 [0.650, 0.780]") == 1
    assert "0.720 [" not in below
    assert below.count("[0.650, 0.780]") == 3
    assert "[" not in without
    assert without.count("0.720") == 1


def test_more_models_than_fit_stand_below_each_other():
    rows = [ResultRow(f"model-{i}", {"acc": 0.1 * i}) for i in range(9)]
    lines = printed(rows, 40)
    assert max(map(len, lines)) <= 40
    text = "\n".join(lines)
    for i in range(9):
        assert f"model-{i}" in text
        assert f"{0.1 * i:.3f}" in text
    assert text.count("acc") > 1


def test_the_summary_says_what_was_kept():
    assert summary(ROWS) == (
        "The student scores acc 0.720, 90.0 % of its teacher's 0.800, with 48.1 % of its parameters; "
        "before training it scored 0.500."
    )
    assert summary([BEFORE, AFTER]) is None


def test_the_time_of_a_resumed_run_is_that_of_its_last_part():
    assert describe_training({"steps": 20, "resumed_at": 0, "seconds": 3}) == "20 steps in 3 s"
    assert describe_training({"steps": 20, "resumed_at": 15, "seconds": 3}) == "20 steps, the last 5 in 3 s"


def test_how_many_rows_were_trained_on():
    assert describe_rows({"rows": 4096, "labelled_rows": 512}) == "4,096 training rows, 512 of them labelled"
    assert describe_rows({"rows": 4096, "labelled_rows": 4096}) == "4,096 training rows"
    assert describe_rows({"rows": 5, "labelled_rows": 0}) == "5 training rows without labels"
    assert describe_rows({"steps": 5}) == ""
