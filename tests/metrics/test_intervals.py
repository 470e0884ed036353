"""Intervals: Wilson's closed form, every draw scored one by one, groups drawn whole, and simulations."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from sinkd_llm.errors import InputError
from sinkd_llm.metrics import compute_metrics, perplexity, rouge_l
from sinkd_llm.metrics.calibration import brier_score, calibration_error, log_loss, probabilities_of
from sinkd_llm.metrics.counted import mean_of
from sinkd_llm.metrics.intervals import (
    bootstrap,
    calibration_interval,
    choice_intervals,
    share_interval,
    text_intervals,
    wilson,
)


def drawn_rows(units, draws, seed):
    return np.random.default_rng(seed).integers(units, size=(draws, units))


def middle(scores):
    return pytest.approx(tuple(np.quantile(scores, (0.025, 0.975))), abs=1e-9)


@pytest.mark.parametrize(("right", "total"), [(0, 20), (20, 20), (7, 20), (981, 1000)])
def test_wilson_is_its_formula(right, total):
    z, share = norm.ppf(0.975), right / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    reach = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    assert wilson(right, total) == pytest.approx((centre - reach, centre + reach), abs=1e-9)


def test_wilson_as_published():
    # Newcombe 1998, table I: 81 of 263 and 1 of 29.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@pytest.mark.parametrize(("right", "total"), [(1, 0), (3, 2), (-1, 5)])
def test_what_is_no_share_has_no_interval(right, total):
    with pytest.raises(InputError, match="is no share"):
        wilson(right, total)


def labelled(count, choices, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(choices, size=count)
    scores = generator.normal(size=(count, choices)) * 2
    scores[np.arange(count), labels] += 1
    probabilities = probabilities_of(scores.tolist())
    return probabilities, [int(np.argmax(row)) for row in probabilities], labels.tolist()


def test_every_draw_is_scored_as_rows_are():
    probabilities, predictions, labels = labelled(40, 3)
    found = choice_intervals(["f1_macro", "mcc", "acc"], predictions, labels, None, None, probabilities, draws=60)
    assert list(found) == ["f1_macro", "mcc", "acc", "log_loss", "brier", "ece", "ece_adaptive"]
    assert found["acc"] == wilson(sum(a == b for a, b in zip(predictions, labels, strict=True)), 40)
    taken = [([predictions[n] for n in row], [labels[n] for n in row], row) for row in drawn_rows(40, 60, 0)]
    for name in ("f1_macro", "mcc"):
        assert found[name] == middle([compute_metrics([name], said, meant)[name] for said, meant, _ in taken])
    for name, score in (("log_loss", log_loss), ("brier", brier_score)):
        assert found[name] == middle([score([probabilities[n] for n in row], meant) for _, meant, row in taken])


def test_the_rows_of_a_group_are_drawn_together():
    groups = ["b"] * 3 + ["a"] * 2 + ["c"] * 5 + ["d"]
    _, predictions, labels = labelled(11, 2, seed=4)
    rows = {"group": groups, "choices": [["no", "yes"]] * 11}
    found = choice_intervals(["f1", "em", "acc"], predictions, labels, rows, draws=50, seed=3)
    by_group = {name: [n for n in range(11) if groups[n] == name] for name in ("b", "a", "c", "d")}
    order = list(by_group.values())
    scores = []
    for draw in drawn_rows(4, 50, 3):
        taken = [n for place in draw for n in order[place]]
        scores.append(compute_metrics(["f1", "acc"], [predictions[n] for n in taken], [labels[n] for n in taken]))
    assert found["f1"] == middle([score["f1"] for score in scores])
    assert found["acc"] == middle([score["acc"] for score in scores])
    right = [all(predictions[n] == labels[n] for n in members) for members in order]
    assert found["em"] == wilson(sum(right), 4)


def test_groups_of_equal_answers_tell_less_than_rows():
    right = np.repeat(np.arange(50) % 2, 10)
    alone = bootstrap({"share": mean_of(right)}, 500)["share"]
    together = bootstrap({"share": mean_of(right)}, np.repeat(np.arange(50), 10).tolist())["share"]
    assert together[1] - together[0] > 2.5 * (alone[1] - alone[0])


def test_correlations_and_shares_that_are_given():
    generator = np.random.default_rng(2)
    targets = generator.random(30) * 5
    numbers = (targets + generator.normal(size=30)).tolist()
    rows = {"target": targets.tolist(), "choices": [["0", "5"]] * 30}
    found = choice_intervals(
        ["pearson"], [0] * 30, [0] * 30, rows, numbers, shares={"acc_norm": [True] * 30}, draws=40
    )
    scores = [np.corrcoef(targets[row], np.array(numbers)[row])[0, 1] for row in drawn_rows(30, 40, 0)]
    assert found == {"pearson": middle(scores), "acc_norm": wilson(30, 30)}


@pytest.mark.parametrize("scale", [1e-160, 1e-7, 1e80, 1e160])
def test_correlations_are_the_same_at_every_scale(scale):
    generator = np.random.default_rng(4)
    targets = generator.normal(size=60)
    numbers = targets + generator.normal(size=60)

    def found(unit):
        rows = {"target": (unit * targets).tolist(), "choices": [["0", "1"]] * 60}
        return choice_intervals(["pearson"], [0] * 60, [0] * 60, rows, (unit * numbers).tolist(), draws=50)["pearson"]

    assert found(scale) == pytest.approx(found(1.0))
    assert found(1.0)[0] > 0.3


def test_draws_of_one_number_have_no_correlation():
    """The other number is a thousand million times as large, and the mean of thirds is no third."""
    rows = {"target": [1 / 3] * 9 + [1e9], "choices": [["0", "1"]] * 10}
    numbers = [i / 7 for i in range(10)]
    found = choice_intervals(["pearson"], [0] * 10, [0] * 10, rows, numbers, draws=200)["pearson"]
    expected = [
        np.corrcoef(np.array(rows["target"])[row], np.array(numbers)[row])[0, 1] if 9 in row else 0.0
        for row in drawn_rows(10, 200, 0)
    ]
    assert found == middle(expected)


def test_texts():
    said = ["a b c", "d e", "f", "g h i j"] * 5
    meant = ["a b", "d e f", "x", "g h i j"] * 5
    sums, tokens = [-1.0, -7.0, -2.5, -0.5] * 5, [2, 3, 1, 4] * 5
    found = text_intervals(["rouge_l", "perplexity"], said, meant, sums, tokens, draws=30, seed=1)
    rows = drawn_rows(20, 30, 1)
    assert found["rouge_l"] == middle([np.mean([rouge_l(said[n], meant[n]) for n in row]) for row in rows])
    logs = [math.log(perplexity([sums[n] for n in row], [tokens[n] for n in row])) for row in rows]
    assert tuple(map(math.log, found["perplexity"])) == middle(logs)


def test_nothing_has_no_interval():
    with pytest.raises(InputError, match="0 rows and 1000 draws"):
        bootstrap({}, [])
    with pytest.raises(InputError, match="5 rows and 1 draws"):
        bootstrap({}, 5, draws=1)


@pytest.mark.parametrize(("rows", "error"), [(100, 0.0), (300, 0.1)])
def test_the_interval_of_a_calibration_error_holds_the_true_one(rows, error):
    generator = np.random.default_rng(rows)
    held = 0
    for _ in range(30):
        confidence = generator.uniform(0.4, 1, rows)
        right = generator.random(rows) < confidence - error
        draws = [
            calibration_error(confidence[draw], right[draw]) for draw in generator.integers(rows, size=(100, rows))
        ]
        ends = tuple(map(float, np.quantile(draws, (0.025, 0.975))))
        low, high = calibration_interval(confidence, right, ends, draws=200)
        assert low <= calibration_error(confidence, right) <= high
        held += low <= error <= high
    assert held >= 25  # of 30, with 95 % each: fewer in 3 of 1000 cases


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_calibrated_model_of_rows_in_groups_may_be_calibrated(adaptive):
    """40 groups of 10 rows with one confidence and one outcome each: 40 outcomes, and not 400."""
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), 10).tolist()
    name, held = "ece_adaptive" if adaptive else "ece", 0
    for _ in range(20):
        confidence = generator.uniform(0.55, 0.95, 40)
        labels = np.where(generator.random(40) < confidence, 0, 1)
        rows = [[one, 1 - one] for one in np.repeat(confidence, 10).tolist()]
        found = choice_intervals(
            [], [0] * 400, np.repeat(labels, 10).tolist(), {"group": groups}, probabilities=rows, draws=100
        )
        held += found[name][0] == 0
    assert held >= 17


@pytest.mark.parametrize(("rows", "share"), [([True] * 6, 3), ([False] * 6, 0), ([True, False] * 3, 1.5)])
def test_groups_that_are_all_alike_have_an_interval(rows, share):
    groups = [0, 0, 1, 1, 2, 2]
    found = share_interval(rows, groups)
    z, p = norm.ppf(0.975), share / 3
    reach = z * math.sqrt(p * (1 - p) / 3 + z**2 / 36)
    assert found == pytest.approx(tuple((p + z**2 / 6 + side * reach) / (1 + z**2 / 3) for side in (-1, 1)), abs=1e-9)
    assert choice_intervals(["acc"], [int(row) for row in rows], [1] * 6, {"group": groups})["acc"] == found
    apart = [True, *rows[1:5], not rows[5]]
    assert share_interval(apart, groups) != wilson(sum(apart), 6)
