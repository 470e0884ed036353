"""One page of several runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from sinkd_llm.report.page import RunFiles
from sinkd_llm.report.runs_page import differing, names_of, render_runs
from tests.support.results import RECORDS, ROWS, record


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/a/0", "/r/b/0"], ["a/0", "b/0"]),
        (["/x/a/0", "/y/a/0", "/y/b"], ["x/a/0", "y/a/0", "y/b"]),
    ],
)
def test_names_are_as_short_as_they_can_be(folders: list[str], names: list[str]) -> None:
    assert names_of([Path(folder) for folder in folders]) == names


def test_the_settings_that_differ() -> None:
    one = replace(
        record(ROWS),
        all_settings={
            "load": {"dtype": "x", "revision": "main"},
            "alpha": 0.9,
            "seed": 0,
            "output_dir": "a",
            "task": "sst2",
        },
    )
    other = replace(
        record(ROWS),
        all_settings={"load": {"dtype": "y", "revision": "main"}, "alpha": 0.5, "seed": 0, "output_dir": "b"},
        settings={"hub_token": "x"},
    )
    assert differing({"one": replace(one, settings={}), "other": other}) == [
        ["alpha", "0.9", "0.5"],
        ["load.dtype", "x", "y"],
        ["task", "sst2", "–"],
    ]


def test_the_page_has_a_column_and_a_curve_for_each_run() -> None:
    runs = {name: RunFiles(record(ROWS, f"sinkd distill --seed {name}"), RECORDS) for name in ("<b>a</b>", "b")}
    page = render_runs(runs)
    assert "<b>a</b>" not in page
    assert page.count('<th scope="col">&lt;b&gt;a&lt;/b&gt;</th>') == 1
    assert "teacher&#39;s acc</th>" in page
    assert page.count("<svg") == 3  # loss, score, agreement
    assert "In which settings they differ" not in page
    assert "sinkd distill --seed b" in page
