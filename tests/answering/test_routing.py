"""Exact bounds against their definition, and a guarantee that holds as often as it says."""

import math
import time

import numpy as np
import pytest
from scipy.stats import binom

from sinkd_llm.answering.routing import (
    Route,
    answered_at,
    choose_threshold,
    lower_bound,
    rows_needed,
    rows_to_show,
)
from sinkd_llm.errors import InputError

TARGET = 0.9


@pytest.mark.parametrize(("right", "count"), [(149, 149), (10, 10), (7, 9), (1, 30), (950, 1000)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_bound_is_the_share_that_makes_so_many_right_answers_that_unlikely(
    right: int, count: int, level: float
) -> None:
    bound = lower_bound(right, count, level)
    assert binom.sf(right - 1, count, bound) == pytest.approx(1 - level, rel=1e-6)
    assert bound < right / count
    assert lower_bound(0, count, level) == 0


@pytest.mark.parametrize(("target", "level"), [(0.98, 0.95), (0.9, 0.95), (0.5, 0.9), (0.999, 0.99)])
@pytest.mark.parametrize("mistakes", [0, 1, 3])
def test_the_fewest_rows_that_can_show_it(target: float, level: float, mistakes: int) -> None:
    count = rows_needed(target, level, mistakes)
    assert lower_bound(count - mistakes, count, level) >= target
    assert lower_bound(count - 1 - mistakes, count - 1, level) < target
    assert rows_needed(0.98) == 149


def population(rows: int, seed: int, decimals: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether the choices are right, of which the surest are nearly always."""
    random = np.random.default_rng(seed)
    confidence = 1 / (1 + np.exp(-random.normal(2.0, 1.7, rows)))
    right = random.random(rows) < confidence
    return (confidence if decimals is None else confidence.round(decimals)), right


@pytest.mark.parametrize("decimals", [None, 2])
@pytest.mark.parametrize("rows", [100, 300])
def test_the_guarantee_is_violated_no_more_often_than_the_level_says(rows: int, decimals: int | None) -> None:
    confidence, right = population(200_000, 0, decimals)
    order = np.argsort(-confidence, kind="stable")
    up_to = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    draws, violated, found = 300, 0, 0
    for draw in range(draws):
        chosen = choose_threshold(*population(rows, 1 + draw, decimals), target=TARGET)
        if chosen is None:
            continue
        found += 1
        answered = int(np.searchsorted(-confidence[order], -chosen.threshold, side="right"))
        violated += up_to[answered - 1] < TARGET
    assert found > draws / 5
    # A rate of 5 % gives more than these in one of a thousand such tests.
    assert violated <= binom.ppf(0.999, draws, 0.05)


def test_a_threshold_is_found_and_checked() -> None:
    chosen = choose_threshold(*population(2000, 1), target=TARGET)
    assert chosen is not None
    assert chosen.lower_bound >= TARGET
    assert chosen == answered_at(chosen.threshold, *population(2000, 1))
    other = answered_at(chosen.threshold, *population(2000, 2))
    assert other.coverage == pytest.approx(chosen.coverage, abs=0.05)
    assert other.share_right is not None
    assert other.share_right > TARGET - 0.02
    # The next threshold, with room for one mistake more, does not pass.
    confidence, right = population(2000, 1)
    counts = [rows_needed(TARGET, 0.95, mistakes) for mistakes in range(250)]
    assert chosen.answered in counts
    after = counts[counts.index(chosen.answered) + 1]
    lower = answered_at(float(np.sort(confidence)[::-1][after - 1]), confidence, right)
    assert lower.lower_bound < TARGET


def test_rows_that_are_as_sure_as_one_another_are_answered_together() -> None:
    right = np.ones(100, bool)
    right[50:] = False
    assert choose_threshold([0.5] * 100, right.tolist(), TARGET) is None
    chosen = choose_threshold([0.5] * 100, [True] * 100, TARGET)
    assert chosen is not None
    assert (chosen.answered, chosen.threshold, chosen.coverage) == (100, 0.5, 1)


def test_all_right_is_answered_whole_and_none_right_not_at_all() -> None:
    confidence = np.linspace(0.4, 1, 500)
    whole = choose_threshold(confidence.tolist(), [True] * 500, 0.98)
    assert whole is not None
    assert whole.answered == 500
    assert choose_threshold(confidence.tolist(), [False] * 500, 0.98) is None
    nothing = answered_at(1.5, confidence.tolist(), [True] * 500)
    assert (nothing.answered, nothing.share_right, nothing.lower_bound) == (0, None, 0)


def test_too_few_rows_are_told_how_many_are_needed() -> None:
    with pytest.raises(InputError, match="takes 149 rows"):
        choose_threshold([0.9] * 148, [True] * 148, 0.98)
    for target in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(InputError, match="target is"):
            choose_threshold([0.9] * 200, [True] * 200, target)


def test_how_many_rows_would_show_it() -> None:
    """One mistake, at rank 147 of 167: the 146 before it are right, and only rows are missing for 98 %."""
    confidence = np.linspace(1, 0, 167)
    right = np.arange(167) != 146
    assert choose_threshold(confidence, right, 0.98) is None
    assert rows_to_show(confidence, right, 0.98) == math.ceil(167 * 149 / 146)
    assert rows_to_show(confidence, np.arange(167) % 10 > 0, 0.98) is None


def test_high_targets_of_many_rows_take_no_time() -> None:
    """Each number of mistakes takes a few looks at a bound, and not one for each of 10,000 more rows."""
    confidence = np.linspace(1, 0, 40_000)
    right = np.ones(40_000, bool)
    right[[30, 20_000, 39_000]] = False
    started = time.process_time()
    wanted = rows_to_show(confidence, right, 0.9999)
    assert wanted is not None
    assert wanted > 40_000
    assert time.process_time() - started < 5


def test_decisions() -> None:
    route = Route(0.8, 0.98, "accuracy")
    assert [route.decision(p) for p in (0.79, 0.8, 1.0)] == ["ask", "answer", "answer"]
