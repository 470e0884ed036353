"""Pages as a browser shows them: nothing is wider than the window, at a desk and on a phone, in light and in dark."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sinkd_llm.report.comparison import render_comparison
from sinkd_llm.report.page import RunFiles, render_report
from sinkd_llm.report.runs_page import render_runs
from tests.support.browser import NAMES, Browser, browser_path
from tests.support.comparisons import comparison
from tests.support.results import ROWS, record, whole_run

DESK, PHONE = 1200, 400
OVERFLOW = "document.scrollingElement.scrollWidth - window.innerWidth"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = browser_path()
    if path is None:
        said = f"no browser is installed ({', '.join(NAMES)}): the pages were not looked at"
        warnings.warn(said, stacklevel=1)
        pytest.skip(said)
    with Browser(path) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    whole, many = whole_run(hostile=True), whole_run(77, rows=300)
    long = RunFiles(record(ROWS, "sinkd distill " + "x" * 400))
    texts = {
        "few classes": render_report(whole),
        "twelve classes": render_report(whole_run(12, hostile=True)),
        "many classes": render_report(many),
        "long words": render_report(long),
        "several runs": render_runs({"runs/a-name-of-some-length": whole, "runs/b": many, "c": long}),
        "a comparison": render_comparison(comparison()),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize(
    "name", ["few classes", "twelve classes", "many classes", "long words", "several runs", "a comparison"]
)
def test_nothing_overflows(
    name: str, width: int, dark: bool, browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    browser.open(pages[name], width, dark)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.value(OVERFLOW) <= 0
    assert browser.value("document.title") != ""
    browser.picture(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.width == width
        grey = np.asarray(picture.convert("L"))
    # Paper, and ink on it that is as dark as the paper is light.
    paper, ink = np.median(grey), grey.min() if not dark else grey.max()
    assert (paper < 60) == dark
    assert abs(float(paper) - float(ink)) > 120
    assert browser.messages == []  # nothing was refused, and no script failed


def test_tables_become_cards_on_a_phone(browser: Browser, pages: dict[str, Path]) -> None:
    row = "getComputedStyle(document.querySelector('table.cards tbody tr')).display"
    for width, display in ((DESK, "table-row"), (PHONE, "block")):
        browser.open(pages["few classes"], width)
        assert browser.value(row) == display
    label = "getComputedStyle(document.querySelector('table.cards td'), '::before').content"
    assert browser.value(label) == '"teacher"'


@pytest.mark.parametrize("name", ["twelve classes", "several runs"])
def test_tables_are_whole_at_a_desk(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages[name], DESK)
    hidden = "Math.max(...[...document.querySelectorAll('.scroll')].map(one => one.scrollWidth - one.clientWidth))"
    assert browser.value(hidden) <= 0


def test_the_names_of_a_confusion_matrix_stay_where_it_is_scrolled(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["twelve classes"], PHONE)
    left = "document.querySelector('.confusion tbody th').getBoundingClientRect().left"
    before = browser.value(left)
    scrolled = "(() => { const box = document.querySelector('.scroll:has(.confusion)'); box.scrollLeft = 100;"
    assert browser.value(f"{scrolled} return box.scrollLeft; }})()") == 100
    assert browser.value(left) == before
    shown = "document.querySelector('.confusion tbody th span')"
    assert browser.value(f"{shown}.getBoundingClientRect().width") < PHONE / 2
    assert browser.value(f"{shown}.parentElement.title").startswith("class 0")


def test_rows_are_searched(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["few classes"], DESK)
    shown = "document.querySelectorAll('article:not([hidden])').length"
    every = browser.value(shown)
    name = browser.value("document.querySelector('article .name').textContent")
    browser.value(
        f"(() => {{ const box = document.getElementById('search'); box.value = '{name} TEXT';"
        " box.dispatchEvent(new Event('input')); })()"
    )
    assert 1 <= browser.value(shown) < every
    assert browser.value("document.getElementById('found').textContent").endswith(f"of {every}")


def test_without_script_all_rows_are_there_and_no_search(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["few classes"], DESK, script=False)
    assert browser.value("getComputedStyle(document.querySelector('.search')).display") == "none"
    assert browser.value("document.querySelectorAll('article').length") > 0


def test_what_data_say_is_never_run(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["few classes"], DESK)
    assert browser.value("document.querySelectorAll('script').length") == 1
    assert "<script>alert(1)</script>" in browser.value("document.querySelector('article .text').textContent")
