"""Is an export the student: what counts as rounding, and what is refused."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.exporting.comparison import ROUNDING, Comparison, Said, check_same, compare, said_of
from sinkd_llm.tasks import Example


def said(*rows: Sequence[float]) -> Said:
    return Said([str(max(range(len(row)), key=row.__getitem__)) for row in rows], [list(row) for row in rows])


def test_rounding_is_absolute_near_nought_and_a_share_below() -> None:
    before = said([-0.1, -40.0])
    assert not compare(before, said([-0.1 + 0.9 * ROUNDING, -40.0 - 39 * ROUNDING])).beyond_rounding
    assert compare(before, said([-0.1 + 1.1 * ROUNDING, -40.0])).beyond_rounding
    assert compare(before, said([-0.1, -40.0 - 41 * ROUNDING])).beyond_rounding


def test_what_differs_is_counted() -> None:
    found = compare(said([-0.1, -2.0], [-3.0, -0.2]), said([-0.4, -2.0], [-0.1, -0.5]))
    assert found == Comparison(rows=2, differing=1, largest=2.9, beyond_rounding=True)
    assert found.share == 0.5
    assert compare(Said(["yes", "no"], []), Said(["yes", "no"], [])) == Comparison(2, 0, None, False)
    assert compare(Said(["yes", "no"], []), Said(["yes", "maybe"], [])) == Comparison(2, 1, None, True)


@pytest.mark.parametrize(
    ("found", "exact", "refused"),
    [
        (Comparison(100, 0, 1e-5, False), True, False),
        (Comparison(100, 0, 0.1, True), True, True),
        (Comparison(100, 5, 0.9, True), False, False),
        (Comparison(100, 6, 0.9, True), False, True),
    ],
)
def test_exact_formats_may_round_and_others_may_change_a_few_rows(
    found: Comparison, exact: bool, refused: bool
) -> None:
    check_same(found, exact, allowed=True)
    if not refused:
        check_same(found, exact, allowed=False)
        return
    with pytest.raises(InputError, match=f"another answer to {found.differing} of 100 rows.*--allow_differences"):
        check_same(found, exact, allowed=False)


class Counting:
    """A student that notes in which order it was asked."""

    generates = False

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def answer_batch(self, ids: Sequence[str], examples: Sequence[Any]) -> list[Any]:
        assert len(examples) == 1
        self.asked.append(f"{self.name}{ids[0]}")
        return [SimpleNamespace(choice=" yes")]

    def log_probabilities(self, examples: Sequence[Example]) -> list[list[float]]:
        return [[-2.0, -0.1] for _ in examples]


def examples(count: int) -> list[Example]:
    return [Example(str(i), "text", (" no", " yes"), None, "") for i in range(count)]


def test_all_rows_are_answered_and_told() -> None:
    student: Any = Counting("a", [])
    told: list[tuple[int, int]] = []
    found = said_of(student, examples(70), lambda done, total: told.append((done, total)))
    assert found == Said([" yes"] * 70, [[-2.0, -0.1]] * 70)
    assert told == [(32, 70), (64, 70), (70, 70)]
