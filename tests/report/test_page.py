"""The results table and the page."""

import io
import json
import re
import xml.dom.minidom

import pytest
from rich.console import Console

from sinkd_llm.errors import InputError
from sinkd_llm.report.page import (
    ResultRow,
    describe_training,
    read_records,
    render_report,
    results_table,
    summary,
    table_cells,
    write_report,
)

TEACHER = ResultRow("teacher", {"acc": 0.8, "acc_norm": 0.8}, 135_000_000, 0, 540_000_000, 200, 4.0)
BEFORE = ResultRow(
    "student before", {"acc": 0.5, "acc_norm": 0.5, "agreement": 0.6}, 65_000_000, 5_000_000, None, 200, 2.0
)
AFTER = ResultRow(
    "student after", {"acc": 0.72, "acc_norm": 0.7, "agreement": 0.9}, 65_000_000, 5_000_000, 260_000_000, 200, 2.0
)
ROWS = [TEACHER, BEFORE, AFTER]


def results(rows, **more):
    teacher = rows[0] if rows[0].name == "teacher" else None
    return {
        "command": "distill",
        "command_line": "sinkd distill --task sst2",
        "task": "sst2",
        "seed": 0,
        "finished": "2026-01-01 00:00 UTC",
        "device": "2 CPU threads",
        "peak_memory_bytes": 3_200_000_000,
        "evaluation": "200 rows",
        "training": {"steps": 20, "resumed_at": 0, "seconds": 125.0, "loss": 1.0},
        "rows": [row.as_dict(teacher) for row in rows],
        "settings": {"alpha": 0.9},
        "all_settings": {"alpha": 0.9, "seed": 0},
        "versions": {"torch": "2.0"},
    } | more


RECORDS = [
    {"step": 10, "loss": 2.0, "ce": 1.0, "kl": 0.8, "sinkhorn": 0.9, "sinkhorn/diagonal_mass": 0.2},
    {"step": 20, "loss": 1.0, "ce": 0.5, "kl": 0.4, "sinkhorn": 0.5, "sinkhorn/diagonal_mass": 0.6},
    {"step": 20, "eval_acc": 0.72, "eval_teacher_agreement": 0.9},
]


def test_the_share_is_of_the_first_metric():
    assert AFTER.share_of(TEACHER) == pytest.approx(0.9)
    assert ResultRow("x", {"mcc": 0.2}).share_of(ResultRow("teacher", {"mcc": -0.1})) is None
    assert ResultRow("x", {"loss": 0.2}).share_of(ResultRow("teacher", {"loss": 0.1})) is None
    assert ResultRow("x").share_of(TEACHER) is None


def test_cells_of_the_table():
    header, cells = table_cells(ROWS)
    assert header == [
        "", "acc", "acc_norm", "agreement", "of teacher", "parameters", "trained", "on disk", "examples/s",
    ]  # fmt: skip
    assert cells[0] == ["teacher", "0.800", "0.800", "–", "100.0 %", "135.0 M", "–", "540 MB", "50.0"]
    assert cells[2] == ["student after", "0.720", "0.700", "0.900", "90.0 %", "65.0 M", "5.0 M", "260 MB", "100"]


def test_columns_that_say_nothing_are_left_out():
    header, _ = table_cells([ResultRow("model", {"acc": 0.5}, 10)])
    assert header == ["", "acc", "parameters"]


def test_the_table_is_not_folded_at_80_columns():
    console = Console(file=io.StringIO(), width=120)
    console.print(results_table(ROWS))
    lines = console.file.getvalue().splitlines()
    assert sum("student after" in line and "90.0 %" in line and "260 MB" in line for line in lines) == 1


def test_the_summary_says_what_was_kept():
    assert summary(ROWS) == (
        "The student scores acc 0.720, 90.0 % of its teacher's 0.800, with 48.1 % of its parameters; "
        "before training it scored 0.500."
    )
    assert summary([BEFORE, AFTER]) is None


def test_the_time_of_a_resumed_run_is_that_of_its_last_part():
    assert describe_training({"steps": 20, "resumed_at": 0, "seconds": 3}) == "20 steps in 3 s"
    assert describe_training({"steps": 20, "resumed_at": 15, "seconds": 3}) == "20 steps, the last 5 in 3 s"


def test_the_page_is_whole_and_needs_nothing_from_outside():
    page = render_report(results(ROWS), RECORDS)
    assert "The student scores acc 0.720" in page
    assert page.count("<svg") == 3  # terms, scores, plan; no learning rate was logged
    assert "2 min 5 s" in page
    assert "3.2 GB" in page
    for outside in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert outside.startswith("#")  # clip paths and markers inside the drawing
    assert "<script" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        xml.dom.minidom.parseString(svg)


def test_text_of_the_user_is_escaped():
    page = render_report(results(ROWS, command_line="sinkd distill --task '<script>alert(1)</script>'"), RECORDS)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_run_without_records_or_evaluation_has_a_page_too():
    page = render_report(results([ResultRow("before"), ResultRow("after")]), [])
    assert "<svg" not in page
    assert "<table>" in page


def test_records_of_other_shapes_do_no_harm():
    odd = [{"step": 1, "loss": "nan"}, {"step": 2, "ce": None}, {"step": 3, "eval_acc": 0.5}]
    assert render_report(results(ROWS), odd).count("<svg") == 1


def test_write_report_reads_the_folder_alone(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results(ROWS)))
    lines = [json.dumps(record) for record in RECORDS]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "lo']))
    path = write_report(tmp_path)
    assert path.read_text(encoding="utf-8").count("<svg") == 3


@pytest.mark.parametrize("content", [None, "{half"])
def test_a_folder_that_is_no_finished_run(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match="no finished run"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "null", '{"rows": 1}', '{"rows": [1]}', '{"rows": []}', "[" * 99999]
)
def test_results_of_another_kind_are_no_run(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    (tmp_path / "report.html").write_text("earlier")
    with pytest.raises(InputError, match=r"holds no readable results\.json"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "earlier"


def test_lines_that_are_no_records_are_left_out(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n5\n[1]\nnull\n{"step": "x"}\n\xff\xfe\n{"step": 2}\n{"st')
    assert read_records(file) == [{"step": 1}, {"step": 2}]
