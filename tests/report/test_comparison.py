"""What a comparison says, in sentences, in its table, and on a page that escapes what users wrote."""

import csv
import io
from dataclasses import replace

import pytest

from sinkd_llm.report.comparison import (
    GOLD,
    Comparison,
    render_comparison,
    sentences,
    table_cells,
    write_comparison,
)
from tests.support.comparisons import BETTER, UNCLEAR, comparison


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (comparison(BETTER), "<b>x</b> is better than kl by 0.0200 [+0.010, +0.030], p < 0.001 after Holm's"),
        (comparison(BETTER, metric="perplexity"), "<b>x</b> is worse than kl by 0.0200"),
        (
            comparison(UNCLEAR),
            "no difference is supported ([-0.006, +0.014], p = 0.800), and none larger than 0.01",
        ),
        (comparison(replace(UNCLEAR, low=None, p_holm=None)), "say nothing of chance"),
        (comparison(BETTER), "<b>x</b>: alpha=0.5 is the best of 4 on 50 held-out training rows (acc 0.8100 there)."),
        (comparison(BETTER, gold=0.83), f"Do not distil here: {GOLD}, which needs no teacher, scores 0.8300"),
        (comparison(BETTER, gold=0.81, over=UNCLEAR), f"No student is better than {GOLD} (0.8100) as far as"),
        (comparison(BETTER), "1 run of 2 failed, of <b>x</b>; the same command tries them again."),
    ],
)
def test_sentences(found: Comparison, expected: str) -> None:
    assert any(expected in sentence for sentence in sentences(found)), sentences(found)


def test_a_student_that_beats_its_baselines_is_distilled() -> None:
    assert not any(GOLD in sentence for sentence in sentences(comparison(BETTER)))


def test_the_table_says_which_row_is_the_baseline() -> None:
    found = comparison(BETTER)
    assert table_cells(found, found.rows[0])[2] == "baseline"
    assert table_cells(found, found.rows[1]) == [
        *("<b>x</b>, alpha=0.5", "0.820 ± 0.010", "+0.020", "[+0.010, +0.030]", "< 0.001", "1 min 0 s", "1.0 GB"),
    ]


def test_what_users_wrote_is_escaped_on_the_page() -> None:
    page = render_comparison(comparison(BETTER))
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert page.count("<script") == 1  # the page's own


def test_the_table_of_runs_is_read_as_it_was_written(tmp_path) -> None:
    write_comparison(tmp_path, comparison(BETTER))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [row["cell"] for row in rows] == ["kl", "<b>x</b>"]
    assert (rows[0]["alpha"], rows[0]["acc"], rows[0]["held_out_acc"], rows[0]["steps"]) == ("0.5", "0.8", "0.7", "3")
    assert (rows[1]["note"], rows[1]["problem"]) == ('a,"b', "sinkd: error: <script>")
