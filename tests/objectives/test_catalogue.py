"""The table for users has every part that a loss can have, and the page is made of it."""

from sinkd_llm.objectives import COUPLINGS, DIVERGENCES, TERMS
from sinkd_llm.objectives.catalogue import NEEDS, advice, parts
from tools.objectives_page import PAGE, page


def test_every_term_and_every_control_has_its_row() -> None:
    names = [part.name for part in parts()]
    controls = {f"transported ({coupling})" for coupling in COUPLINGS if coupling != "transport"}
    assert sorted(names) == sorted({*TERMS} | controls)
    assert {need for part in parts() for need in part.needs} == set(NEEDS)
    assert all(part.setting and part.equation and part.purpose and part.needs for part in parts())
    assert {name for name, one in DIVERGENCES.items() if one.equation} == set(DIVERGENCES)


def test_what_is_advised_is_there() -> None:
    names = {part.name for part in parts()}
    assert all({*one.parts} <= names for one in advice())
    assert len({one.data for one in advice()}) == len(advice())


def test_the_page_is_made_from_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tools.objectives_page"
