"""Log-loss, Brier score and calibration error: against scikit-learn, loops from the definitions, and by hand."""

import itertools
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from sinkd_llm.errors import InputError
from sinkd_llm.metrics.calibration import (
    bins_of,
    brier_score,
    calibration_error,
    expected_calibration_error,
    log_loss,
    probabilities_of,
    reliability,
)


def rows(count, choices, seed=0, sharpness=2.0):
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(count, choices)) * sharpness
    return probabilities_of(scores.tolist()), generator.integers(choices, size=count).tolist()


@pytest.mark.parametrize("choices", [2, 7])
def test_as_scikit_learn_has_them(choices):
    probabilities, labels = rows(200, choices)
    expected = reference.log_loss(labels, probabilities, labels=range(choices))
    assert log_loss(probabilities, labels) == pytest.approx(expected, abs=1e-12)
    onehot = np.eye(choices)[labels]
    assert brier_score(probabilities, labels) == pytest.approx(((np.array(probabilities) - onehot) ** 2).sum(1).mean())
    if choices == 2:
        one = reference.brier_score_loss(labels, [row[1] for row in probabilities])
        assert brier_score(probabilities, labels) == pytest.approx(2 * one)


def test_probabilities_are_the_softmax_of_each_row_also_of_unlike_lengths():
    assert probabilities_of([[math.log(3), 0.0], [-1e4, -1e4, -1e4], [-math.inf, 5.0]]) == [
        pytest.approx([0.75, 0.25]),
        pytest.approx([1 / 3] * 3),
        [0.0, 1.0],
    ]
    assert probabilities_of([]) == []
    with pytest.raises(InputError, match=r"row 1 are \[nan, 0.0\], which is no distribution"):
        probabilities_of([[0.0, 1.0], [math.nan, 0.0]])


def test_unlike_rows_by_hand():
    probabilities, labels = [[0.5, 0.5], [0.2, 0.2, 0.6]], [0, 1]
    assert log_loss(probabilities, labels) == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)
    assert brier_score(probabilities, labels) == pytest.approx((0.5 + 0.04 + 0.64 + 0.36) / 2)


def test_a_choice_that_was_impossible_and_is_right_costs_a_number():
    assert log_loss([[0.0, 1.0]], [0]) == pytest.approx(708.4, abs=0.1)
    assert brier_score([[0.0, 1.0]], [0]) == 2


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("bins", [1, 15, 40])
def test_calibration_error_is_its_definition(bins, adaptive):
    probabilities, labels = rows(301, 4)
    top = [max(row) for row in probabilities]
    right = [row.index(max(row)) == label for row, label in zip(probabilities, labels, strict=True)]
    if adaptive:
        order = sorted(range(301), key=top.__getitem__)
        ends = [math.ceil(301 * k / bins) for k in range(bins + 1)]
        members = [order[low:high] for low, high in itertools.pairwise(ends)]
    else:
        members = [[n for n in range(301) if math.ceil(top[n] * bins) - 1 == b] for b in range(bins)]
    expected = sum(abs(sum(right[n] - top[n] for n in inside)) for inside in members) / 301
    found = expected_calibration_error(probabilities, labels, bins, adaptive)
    assert found == pytest.approx(expected, abs=1e-12)
    bars = reliability(probabilities, labels, bins, adaptive)
    assert sum(bar.count for bar in bars) == 301
    assert found == pytest.approx(sum(bar.count * abs(bar.accuracy - bar.confidence) for bar in bars) / 301)
    assert all(bar.low < bar.confidence <= bar.high for bar in bars)


def test_calibration_error_by_hand():
    # Bins (0.6, 0.667] and (0.933, 1]: |1/2 − 0.65| · 2/4 + |1 − 1| · 2/4.
    assert calibration_error(np.array([0.65, 0.65, 1.0, 1.0]), np.array([True, False, True, True])) == pytest.approx(
        0.075
    )
    assert calibration_error(np.array([1.0]), np.array([False])) == 1


def test_equal_confidences_share_a_bin_of_equal_mass():
    confidence, right = np.full(30, 0.6), np.arange(30) % 5 < 3
    assert calibration_error(confidence, right, adaptive=True) == pytest.approx(0, abs=1e-12)
    assert set(bins_of(confidence, adaptive=True)[0].tolist()) == {0}


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([], [], "0 rows of probabilities for 0 labels"),
        ([[1.0, 0.0]], [0, 1], "1 rows of probabilities for 2 labels"),
        ([[1.0, 0.0], [0.5, 0.6]], [0, 1], "row 1 are .* no distribution"),
        ([[math.nan, 1.0]], [0], "row 0 are .* no distribution"),
        ([[1.5, -0.5]], [0], "row 0 are .* no distribution"),
        ([[0.5, 0.5], [0.2, 0.2, 0.6]], [2, 0], "label of row 0 is 2, but the row has 2 choices"),
        ([[0.5, 0.5]], [-1], "label of row 0 is -1"),
    ],
)
def test_what_is_no_distribution_is_refused(probabilities, labels, message):
    for score in (log_loss, brier_score, expected_calibration_error, reliability):
        with pytest.raises(InputError, match=message):
            score(probabilities, labels)


def test_bins_are_one_or_more():
    with pytest.raises(InputError, match="bins is 0"):
        expected_calibration_error([[0.5, 0.5]], [0], bins=0)


def test_rounded_probabilities_of_many_choices_are_a_distribution():
    probabilities, labels = rows(3, 200, sharpness=0.1)
    rounded = [[round(value, 5) for value in row] for row in probabilities]
    assert log_loss(rounded, labels) == pytest.approx(log_loss(probabilities, labels), abs=2e-3)
