"""The page."""

import base64
import hashlib
import html
import json
import re
import xml.dom.minidom
from dataclasses import replace

import numpy as np
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.report import rows_shown
from sinkd_llm.report.drawing import whole_ticks
from sinkd_llm.report.model_files import ModelFiles
from sinkd_llm.report.page import RunFiles, render_report, write_report
from sinkd_llm.report.predictions import EVALUATION, TEACHER
from sinkd_llm.report.results import ResultRow
from tests.support.results import RECORDS, ROWS, record, whole_run, write_run


@pytest.fixture(scope="module")
def page():
    return render_report(whole_run(hostile=True))


def test_the_page_is_whole_and_needs_nothing_from_outside(page):
    assert "The student scores acc 0.720" in page
    assert page.count("<svg") == 5  # terms, scores, plan; reliability, the plan of one batch
    assert "20 steps in 2 min 5 s on 512 training rows, 64 of them labelled" in page
    assert "3.2 GB" in page
    for outside in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert outside.startswith(("#", "data:image/png;base64,"))  # parts of a drawing, and pixels of a heat map
    assert "//" not in "".join(re.findall(r"url\(([^)]*)\)", page))
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        drawn = xml.dom.minidom.parseString(svg).documentElement
        assert drawn.firstChild.tagName == "title"
        assert drawn.firstChild.firstChild.data == drawn.getAttribute("aria-label")


def test_the_layers_of_the_student_are_on_the_page(page):
    words = "The student has the layers 0, 2 of 3, evenly spaced."
    assert words not in render_report(RunFiles(record(ROWS)))
    assert f"<p>{words}</p>" in render_report(RunFiles(replace(record(ROWS), layers={"in_words": words})))
    assert [f"layer {i}{', kept' * (i != 1)}" in page for i in range(3)] == [True] * 3


def test_text_of_the_user_is_escaped(page):
    assert page.count("<script>") == 1  # the page's own
    assert page.count("&lt;script&gt;alert(1)") > 10
    assert "&lt;script&gt;alert(2)" in render_report(RunFiles(record(ROWS, "<script>alert(2)</script>")))
    assert not set(page) & {"\x1b", "\u202e"}
    assert r"\x1b[31m\u202e" in page


def test_only_the_script_of_the_page_may_run(page):
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in html.unescape(page)


@pytest.mark.parametrize("classes", [3, 77])
def test_every_part_of_a_run_is_on_its_page(classes):
    files = replace(whole_run(classes, rows=700), logged=[])
    page = html.unescape(render_report(files))
    for text in ("Reliability", "Confusion matrix, student after", "Confusion matrix, teacher", "the weakest first"):
        assert text in page
    for text in ("Lost: the teacher is right", "Won: the student is right", "Both are wrong", "A transport plan"):
        assert text in page
    assert "[0.650, 0.780]" in page
    assert "4.20 ms" in page
    assert ("The other 62 classes" in page) == (classes == 77)
    student, teacher = files.answers[EVALUATION], files.answers[TEACHER]
    rows = range(len(student.ids))
    lost = [i for i in rows if teacher.predictions[i] == student.references[i] != student.predictions[i]]
    assert f"Lost: the teacher is right, the student is not: {len(lost)} rows" in page
    assert len(page) < 3_000_000


def test_of_a_classifier_losses_are_means_over_rows():
    files = whole_run()
    words, classes = render_report(files), render_report(replace(files, model=ModelFiles("SequenceClassification")))
    for text, place in (("mean per supervised token", words), ("mean per row", classes)):
        assert [text in page for page in (words, classes)] == [page is place for page in (words, classes)], text
    assert "before any calibration: log_loss, brier, ece, ece_adaptive" in classes


def test_what_has_no_teacher_is_no_student():
    files = whole_run()
    rows = [replace(row, name=name) for row, name in zip(files.record.rows[1:], ("before", "after"), strict=True)]
    answers = {EVALUATION: files.answers[EVALUATION]}
    own = replace(files.record, command="finetune", rows=rows, layers=None)
    page = render_report(RunFiles(own, answers=answers))
    assert "student" not in page
    for text in (
        ">model before<",
        "</i>model after</li>",
        "Confusion matrix, model after",
        "that the model got wrong",
    ):
        assert text in page


@pytest.mark.parametrize(("last", "step"), [(60, 10), (4, 1), (1000, 200), (200_000, 50_000)])
def test_ticks_are_at_round_numbers(last, step):
    ticks = whole_ticks().tick_values(0, last)
    assert set(np.diff(ticks)) == {step}


def test_a_page_says_how_many_of_its_rows_it_shows(monkeypatch):
    monkeypatch.setattr(rows_shown, "MOST_ROWS", 2)
    files = RunFiles(record(ROWS), answers=whole_run().answers)
    (lost, *_), page = rows_shown.row_lists(files.answers), render_report(files)
    assert (len(lost.rows), lost.total > 2) == (2, True)
    assert f"{lost.total} rows, 2 of them here" in page


def test_the_rows_of_a_list_begin_with_those_of_which_the_student_is_surest():
    for one in rows_shown.row_lists(whole_run().answers):
        sure = [row.student.probability for row in one.rows]
        assert sure == sorted(sure, reverse=True)


def test_a_page_of_the_largest_texts_stays_small():
    answers = whole_run(rows=2000).answers
    long = {name: replace(one, texts=["<" * 50_000] * 2000) for name, one in answers.items()}
    assert 300_000 < len(render_report(RunFiles(record(ROWS), answers=long))) < 3_000_000


def test_rows_without_a_teacher_with_numbers_and_with_texts():
    student = whole_run().answers[EVALUATION]
    (wrong,) = rows_shown.row_lists({EVALUATION: student})
    assert (wrong.title, wrong.rows[0].teacher) == ("Rows that the student got wrong", None)
    other = whole_run(rows=8).answers[TEACHER]  # of other rows
    assert [one.title for one in rows_shown.row_lists({EVALUATION: student, TEACHER: other})] == [wrong.title]
    numbers = [float(i) for i in range(len(student.ids))]
    (off,) = rows_shown.row_lists({EVALUATION: replace(student, numbers=numbers, targets=[0.0] * len(numbers))})
    assert (off.rows[0].gold, off.rows[0].student.answer, off.total) == ("0.000", "59.000", 59)
    said = replace(student, predictions=["a"] * 60, references=["a", "b"] * 30, choices=None, probabilities=None)
    (unlike,) = rows_shown.row_lists({EVALUATION: said})
    assert (unlike.title, unlike.total) == ("Rows answered otherwise than the reference", 30)
    assert (unlike.rows[0].gold, unlike.rows[0].student.answer) == ("b", "a")


def test_a_run_without_records_or_evaluation_has_a_page_too():
    page = render_report(RunFiles(record([ResultRow("before"), ResultRow("after")])))
    assert "<svg" not in page
    assert "<table" in page


def test_records_of_other_shapes_do_no_harm():
    odd = [{"step": 1, "loss": "nan"}, {"step": 2, "ce": None}, {"step": 3, "eval_acc": 0.5}]
    assert render_report(RunFiles(record(ROWS), odd)).count("<svg") == 1


def test_write_report_reads_the_folder_alone(tmp_path):
    record(ROWS).write(tmp_path)
    lines = [json.dumps(record) for record in RECORDS]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "lo']))
    path = write_report(tmp_path)
    assert path.read_text(encoding="utf-8").count("<svg") == 3
    whole = whole_run()
    write_run(tmp_path, whole)
    found = RunFiles.read(tmp_path)
    assert (found.record, list(found.logged), found.plan) == (whole.record, RECORDS, whole.plan)
    assert found.answers[EVALUATION].texts == whole.answers[EVALUATION].texts


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
    page = render_report(RunFiles(record(ROWS), logged))
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
