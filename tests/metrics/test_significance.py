"""Which differences are more than chance: against scikit-learn, scipy and known values, and in simulations."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from sinkd_llm.errors import InputError
from sinkd_llm.metrics import compute_metrics
from sinkd_llm.metrics.significance import (
    OF_CLASSES,
    OF_NUMBERS,
    Resampled,
    difference,
    holm,
    mean_and_sd,
    resample,
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def naive(metric, predictions, references, seed, draws):
    """The scores of the same draws, one by one, by the metrics that runs report."""
    drawn = np.random.default_rng(seed).integers(len(references), size=(draws, len(references)))
    return [compute_metrics([metric], predictions[row], references[row])[metric] for row in drawn]


@pytest.mark.parametrize(
    ("metric", "classes"), [(name, count) for name in OF_CLASSES for count in (2, 5) if (name, count) != ("f1", 5)]
)
def test_every_draw_is_scored_as_rows_are(metric, classes, random):
    references = random.integers(classes, size=40)
    predictions = np.where(random.random((2, 40)) < 0.6, references, random.integers(classes, size=(2, 40)))
    found = resample(metric, predictions, references, draws=12, seed=7)
    for s in range(2):
        whole = compute_metrics([metric], predictions[s], references)[metric]
        assert found.score_S[s] == pytest.approx(whole, abs=1e-12)
        assert found.score_DS[:, s] == pytest.approx(naive(metric, predictions[s], references, 7, 12), abs=1e-12)


@pytest.mark.parametrize("metric", OF_NUMBERS)
def test_correlations_of_draws(metric, random):
    references = np.round(random.random(30) * 5, 0)  # with ties
    predictions = references + random.normal(size=(2, 30))
    found = resample(metric, predictions, references, draws=30, seed=3)
    assert found.score_DS[:, 1] == pytest.approx(naive(metric, predictions[1], references, 3, 30), abs=1e-9)


def test_a_side_with_one_value_has_no_correlation_and_no_mcc():
    assert resample("pearson", [[1.0, 1.0, 1.0]], [1.0, 2.0, 3.0], draws=5).score_S == [0.0]
    assert resample("spearman", [[1.0, 1.0, 1.0]], [1.0, 2.0, 3.0], draws=5).score_DS.tolist() == [[0.0]] * 5
    assert resample("mcc", [[1, 1, 1]], [0, 1, 1], draws=5).score_S == [0.0]
    assert resample("f1", [[0, 0, 0]], [0, 0, 0], draws=5).score_S == [0.0]


def test_many_classes_as_scikit_learn_has_them(random):
    references, predictions = random.integers(77, size=500), random.integers(77, size=500)
    assert resample("mcc", [predictions], references, draws=2).score_S[0] == pytest.approx(
        reference.matthews_corrcoef(references, predictions)
    )
    assert resample("f1_macro", [predictions], references, draws=2).score_S[0] == pytest.approx(
        reference.f1_score(references, predictions, average="macro")
    )


def test_draws_in_parts_are_the_draws_at_once(random, monkeypatch):
    references, predictions = random.integers(2, size=50), random.integers(2, size=(2, 50))
    whole = resample("acc", predictions, references, draws=20).score_DS
    monkeypatch.setattr("sinkd_llm.metrics.counted._AT_ONCE", 150)  # three draws at a time
    assert np.array_equal(resample("acc", predictions, references, draws=20).score_DS, whole)


def test_over_seeds_alone_it_is_the_paired_t_test():
    first, second = np.array([0.81, 0.83, 0.82, 0.85]), np.array([0.80, 0.80, 0.83, 0.81])
    found = difference(Resampled(first), Resampled(second))
    theirs = stats.ttest_rel(first, second)
    interval = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue)
    assert found.p_seeds == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.bound == max(abs(found.low), abs(found.high))


def test_over_examples_alone_it_is_their_standard_error(random):
    first, second = random.integers(2, size=(2, 1, 400))
    references = np.ones(400, int)
    found = difference(*(resample("acc", side, references, draws=4000) for side in (first, second)))
    apart = (first - second)[0]
    error = apart.std(ddof=1) / 20
    assert found.estimate == pytest.approx(apart.mean())
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 399) * error, rel=0.05)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(apart.mean()) / error, 399), abs=0.03)
    assert found.p_seeds is None


def test_the_variance_is_that_of_two_crossed_effects(random):
    """Against the mean squares of an analysis of variance with seeds and examples as random effects."""
    seeds, examples = 6, 200
    effects = 0.3 * random.normal(size=(seeds, 1)) + random.normal(size=examples) + random.normal(size=(seeds, 200))
    apart_SN = np.sign(effects)
    first = ((apart_SN + 1) / 2).astype(int)
    references = np.ones(examples, int)
    found = difference(
        resample("acc", first, references, draws=6000), resample("acc", 1 - first, references, draws=6000)
    )
    by_seed, by_example = apart_SN.mean(1), apart_SN.mean(0)
    rest = apart_SN - by_seed[:, None] - by_example + apart_SN.mean()
    of_rest = (rest**2).sum() / ((seeds - 1) * (examples - 1))
    variance = by_seed.var(ddof=1) / seeds + by_example.var(ddof=1) / examples - of_rest / (seeds * examples)
    freedom = variance**2 / (
        (by_seed.var(ddof=1) / seeds) ** 2 / (seeds - 1)
        + (variance - by_seed.var(ddof=1) / seeds) ** 2 / (examples - 1)
    )
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.05)


@pytest.mark.parametrize(
    ("seeds", "of_seeds", "shift"), [(5, 0.0, 0.0), (5, 0.15, 0.0), (3, 0.1, 0.0), (5, 0.05, 0.4)]
)
def test_intervals_hold_what_they_promise(seeds, of_seeds, shift, random):
    """Models that are right where a normal variable is above 0, with effects of seeds, examples and both."""
    runs, examples, covered, found = 150, 150, 0, 0
    spread = np.sqrt(1 + of_seeds**2 + 0.3**2 + 0.3**2)
    truth = stats.norm.cdf((0.8 + shift) / spread) - stats.norm.cdf(0.8 / spread)
    for run in range(runs):
        difficulty = random.normal(0.8, 1, examples)
        sides = []
        for more in (shift, 0.0):
            effects = of_seeds * random.normal(size=(seeds, 1)) + 0.3 * random.normal(size=(2, seeds, examples))[0]
            right = difficulty + more + effects + 0.3 * random.normal(size=examples) > 0
            sides.append(resample("acc", right.astype(int), np.ones(examples, int), draws=100, seed=run))
        one = difference(*sides)
        covered += one.low <= truth <= one.high
        found += one.p < 0.05
    # 95 % of 150, and four standard errors below.
    assert covered / runs > 0.88
    if shift:
        assert found / runs > 0.9
    else:
        assert found / runs < 0.12


def test_the_same_answers_differ_by_nothing():
    side = resample("acc", [[1, 0, 1], [1, 1, 1]], [1, 1, 1], draws=50)
    found = difference(side, side)
    assert (found.estimate, found.low, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize("rows", [2, 3, 5, 12, 1500])
def test_rows_that_all_differ_alike_are_as_certain_as_by_a_sign_test(rows):
    right, wrong = (resample("acc", [[said] * rows], [1] * rows, draws=200) for said in (1, 0))
    found = difference(right, wrong)
    assert found.p == pytest.approx(max(stats.binomtest(rows, rows).pvalue, 1e-300))
    assert found.estimate == 1
    assert (found.low > 0) == (found.p < 0.05)
    assert found.low < 1 < found.high
    nearly = [1] * (rows - 1) + [0]
    assert difference(resample("acc", [nearly], [1] * rows, draws=200), wrong).p >= 0.999 * found.p


def test_one_example_says_nothing_of_chance():
    found = difference(*(resample("acc", [[said]] * 2, [1], draws=20) for said in (1, 0)))
    assert (found.estimate, found.low, found.high, found.p) == (1, None, None, None)
    assert found.p_seeds > 0.1


def test_seeds_that_meet_on_one_point_of_the_grid_of_the_scores_are_not_certain():
    first, second = np.array([0.82, 0.81]), np.array([0.81, 0.80])
    found = difference(Resampled(first, examples=100), Resampled(second, examples=100))
    # A t test over two seeds with a standard deviation of 0.01 / sqrt(6).
    assert found.p == pytest.approx(2 * stats.t.sf(np.sqrt(12), 1))
    assert found.p_seeds == found.p
    assert found.low < 0 < found.high
    assert found.examples == 0
    # Of scores of which the grid is not known nothing is known, unless they are the same.
    found = difference(Resampled(first), Resampled(second))
    assert (found.low, found.p, found.p_seeds) == (None, None, None)
    found = difference(Resampled(first), Resampled(first))
    assert (found.low, found.p, found.p_seeds) == (0, 1, 1)
    # With draws of the examples, the t test over the seeds alone has the same limit.
    right, wrong = (
        resample("acc", [[1] * count + [0] * (100 - count)] * 2, [1] * 100, draws=50) for count in (82, 81)
    )
    assert difference(right, wrong).p_seeds == pytest.approx(2 * stats.t.sf(np.sqrt(12), 1))


@pytest.mark.parametrize(("seeds", "rows"), [(2, 100), (2, 20), (3, 100), (5, 20)])
def test_equal_models_are_seldom_different_by_their_seeds(seeds, rows, random):
    runs, found = 1000, 0
    for first, second in random.binomial(rows, 0.8, (runs, 2, seeds)) / rows:
        found += difference(Resampled(first, examples=rows), Resampled(second, examples=rows)).p < 0.01
    assert found / runs < 0.02


def test_one_seed_without_examples_says_nothing_of_chance():
    found = difference(Resampled(np.array([0.9])), Resampled(np.array([0.8])))
    assert found.estimate == pytest.approx(0.1)
    assert (found.low, found.p, found.bound) == (None, None, None)


def test_a_difference_turns_its_sign_with_its_sides(random):
    first, second = (resample("acc", random.integers(2, size=(3, 60)), np.ones(60, int), draws=200) for _ in range(2))
    one, other = difference(first, second), difference(second, first)
    assert (one.low, one.high, one.p) == pytest.approx((-other.high, -other.low, other.p))


def test_holm():
    # Holm 1979, as in R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_and_sd():
    assert mean_and_sd([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_sd([1.0]) == (1.0, None)
    with pytest.raises(InputError, match="no scores"):
        mean_and_sd([])


@pytest.mark.parametrize(
    ("metric", "predictions", "references", "draws", "message"),
    [
        ("rouge_l", [[1]], [1], 10, "rouge_l is not resampled"),
        ("acc", [], [1], 10, "one prediction for each"),
        ("acc", [[1, 2]], [1], 10, "one prediction for each"),
        ("acc", [[]], [], 10, "one prediction for each"),
        ("acc", [[1]], [1], 1, "give 2 or more"),
    ],
)
def test_what_is_refused(metric, predictions, references, draws, message):
    with pytest.raises(InputError, match=message):
        resample(metric, predictions, references, draws=draws)


def test_models_with_other_examples_are_not_paired():
    with pytest.raises(InputError, match="pair by pair"):
        difference(resample("acc", [[1, 1]], [1, 1], draws=5), resample("acc", [[1]], [1], draws=5))
