"""The page."""

import json
import re
import xml.dom.minidom
from dataclasses import replace

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.report.page import render_report, write_report
from sinkd_llm.report.results import ResultRow
from tests.support.results import RECORDS, ROWS, record


def test_the_page_is_whole_and_needs_nothing_from_outside():
    page = render_report(record(ROWS), RECORDS)
    assert "The student scores acc 0.720" in page
    assert page.count("<svg") == 3  # terms, scores, plan; no learning rate was logged
    assert "2 min 5 s" in page
    assert "3.2 GB" in page
    for outside in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert outside.startswith("#")  # clip paths and markers inside the drawing
    assert "<script" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        xml.dom.minidom.parseString(svg)


def test_the_layers_of_the_student_are_on_the_page():
    words = "The student has the layers 0, 2 of 3, evenly spaced."
    assert words not in render_report(record(ROWS), RECORDS)
    assert f"<p>{words}</p>" in render_report(replace(record(ROWS), layers={"in_words": words}), RECORDS)


def test_text_of_the_user_is_escaped():
    page = render_report(record(ROWS, command_line="sinkd distill --task '<script>alert(1)</script>'"), RECORDS)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_run_without_records_or_evaluation_has_a_page_too():
    page = render_report(record([ResultRow("before"), ResultRow("after")]), [])
    assert "<svg" not in page
    assert "<table>" in page


def test_records_of_other_shapes_do_no_harm():
    odd = [{"step": 1, "loss": "nan"}, {"step": 2, "ce": None}, {"step": 3, "eval_acc": 0.5}]
    assert render_report(record(ROWS), odd).count("<svg") == 1


def test_write_report_reads_the_folder_alone(tmp_path):
    record(ROWS).write(tmp_path)
    lines = [json.dumps(record) for record in RECORDS]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "lo']))
    path = write_report(tmp_path)
    assert path.read_text(encoding="utf-8").count("<svg") == 3


def test_every_diagnostic_is_drawn():
    logged = [
        {
            "step": step,
            "teacher_entropy": 0.5,
            "student_entropy": 0.9,
            "sinkhorn/cost_width": 0.1,
            "learning_rate": 1e-4,
        }
        for step in (1, 2)
    ]
    page = render_report(record(ROWS), logged)
    assert page.count("<svg") == 3
    for text in ("Entropy of the predictions", "width of the interval that the cost lies in", "</i>teacher</li>"):
        assert text in page


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
