"""Temperatures against a grid, gradients of a vector against finite differences, and what is kept."""

import numpy as np
import pytest

from sinkd_llm.answering.calibration import NONE, Calibration, NothingToFitError, Vector, fit_best, mean_log_loss
from sinkd_llm.errors import InputError


def world(rows: int, classes: int, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of a student that is `sharpness` times as sure as it should be, and labels."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, classes)) * 2
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    sharp = logits * sharpness
    return sharp - np.log(np.exp(sharp).sum(axis=1, keepdims=True)), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_best_of_a_grid(sharpness: float) -> None:
    log_NC, labels = world(1000, 4, sharpness)
    found = Calibration.fit(log_NC.tolist(), labels.tolist())
    grid = np.exp(np.linspace(np.log(0.1), np.log(10), 1501))
    best = grid[np.argmin([mean_log_loss(log_NC / t, labels) for t in grid])]
    assert found.temperature == pytest.approx(best, rel=4e-3)
    assert found.temperature == pytest.approx(sharpness, rel=0.15)


def test_rows_may_have_different_numbers_of_choices() -> None:
    three, two = world(400, 3, 2.0), world(400, 2, 2.0, seed=1)
    rows = [*three[0].tolist(), *two[0].tolist()]
    found = Calibration.fit(rows, [*three[1].tolist(), *two[1].tolist()])
    assert found.temperature == pytest.approx(2, rel=0.2)
    probabilities = found.apply(rows)
    assert [len(row) for row in probabilities] == [3] * 400 + [2] * 400
    assert np.allclose([sum(row) for row in probabilities], 1)
    alone = found.apply([rows[0]]) + found.apply([rows[-1]])
    assert np.allclose(alone[0], probabilities[0])
    assert np.allclose(alone[1], probabilities[-1])


def test_constants_of_a_row_make_no_difference() -> None:
    log_NC, labels = world(200, 3)
    shifted = log_NC + np.arange(200)[:, None]
    for calibration in (NONE, Calibration(2.0), Calibration(1.0, Vector((1.0, 0.5, 2.0), (0.0, 1.0, -1.0)))):
        assert np.allclose(calibration.apply(log_NC.tolist()), calibration.apply(shifted.tolist()))
    once, again = (Calibration.fit(rows.tolist(), labels.tolist()) for rows in (log_NC, shifted))
    assert once.temperature == pytest.approx(again.temperature, rel=1e-5)
    assert np.allclose(NONE.apply(log_NC.tolist()), np.exp(log_NC))
    assert NONE.apply([]) == []


def test_a_vector_finds_classes_that_are_given_too_often() -> None:
    log_NC, labels = world(4000, 3)
    wrong_NC = log_NC + np.array([0.0, 2.0, 0.0])  # the second class is made too likely
    found = Calibration.fit_vector(wrong_NC.tolist(), labels.tolist())
    assert found.vector is not None
    by_temperature = Calibration.fit(wrong_NC.tolist(), labels.tolist())

    def loss(calibration: Calibration) -> float:
        return mean_log_loss(np.log(calibration.apply(wrong_NC.tolist())), labels)

    assert loss(found) < loss(by_temperature) - 0.1
    assert loss(found) == pytest.approx(mean_log_loss(log_NC, labels), abs=0.005)
    bias = np.asarray(found.vector.bias)
    assert bias[1] - bias[[0, 2]].mean() == pytest.approx(-2, abs=0.3)


def test_a_vector_is_at_a_minimum() -> None:
    log_NC, labels = world(300, 3, 1.5)
    found = Calibration.fit_vector(log_NC.tolist(), labels.tolist())
    assert found.vector is not None
    start = np.asarray([*np.log(np.asarray(found.vector.scale) * found.temperature), *found.vector.bias])

    def loss(parameters: np.ndarray) -> float:
        scale = tuple((np.exp(parameters[:3]) / found.temperature).tolist())
        made = Calibration(found.temperature, Vector(scale, tuple(parameters[3:].tolist())))
        fit = mean_log_loss(np.log(made.apply(log_NC.tolist())), labels)
        return fit + float(parameters @ parameters) / len(labels)

    for place in range(6):
        step = np.eye(6)[place] * 1e-4
        assert abs(loss(start + step) - loss(start - step)) / 2e-4 < 1e-4


def test_the_vector_is_taken_only_where_it_is_better_on_other_rows() -> None:
    log_NC, labels = world(1500, 3, 2.0)
    best, unseen = fit_best(log_NC.tolist(), labels.tolist(), same_choices=True)
    assert best.vector is None
    assert len(unseen) == 1500
    skewed = log_NC + np.array([0.0, 3.0, 0.0])
    assert fit_best(skewed.tolist(), labels.tolist(), same_choices=True)[0].vector is not None
    few, _ = fit_best(skewed[:100].tolist(), labels[:100].tolist(), same_choices=True)
    assert few.vector is None
    many_NC, many = world(1200, 25)
    assert fit_best((many_NC + np.arange(25) / 5).tolist(), many.tolist(), same_choices=True)[0].vector is None


def test_places_in_lists_of_own_choices_are_no_classes() -> None:
    """In 80 % of rows with two choices of their own the first is right: of its place, and not of a class."""
    log_NC, _ = world(300, 2)
    labels = (np.random.default_rng(1).random(300) < 0.2).astype(int)
    log_NC[np.arange(300), labels] += 1.0
    assert fit_best(log_NC.tolist(), labels.tolist(), same_choices=True)[0].vector is not None
    found, unseen = fit_best(log_NC.tolist(), labels.tolist(), same_choices=False)
    assert found.vector is None
    assert found.apply([[0.0, 0.0]]) == [[0.5, 0.5]]
    assert len(unseen) == 300


@pytest.mark.parametrize("unit", [1e-4, 400.0])
def test_a_temperature_is_found_at_every_scale_of_the_scores(unit: float) -> None:
    log_NC, labels = world(1000, 3)
    found = Calibration.fit((log_NC * unit).tolist(), labels.tolist())
    assert found.temperature == pytest.approx(unit * Calibration.fit(log_NC.tolist(), labels.tolist()).temperature)


def test_scores_that_are_all_alike_are_left_so() -> None:
    found = Calibration.fit([[-0.7, -0.7]] * 20, [0] * 12 + [1] * 8)
    assert found.apply([[-0.7, -0.7]]) == [[0.5, 0.5]]


def test_unseen_probabilities_are_of_other_folds() -> None:
    log_NC, labels = world(50, 3, 2.0)
    _, unseen = fit_best(log_NC.tolist(), labels.tolist(), same_choices=True)
    inside = Calibration.fit(log_NC.tolist(), labels.tolist()).apply(log_NC.tolist())
    assert all(one != other for one, other in zip(unseen, inside, strict=True))
    # What a row's own label is does not touch its own probabilities.
    changed = labels.copy()
    changed[7] = (changed[7] + 1) % 3
    assert fit_best(log_NC.tolist(), changed.tolist(), same_choices=True)[1][7] == unseen[7]


@pytest.mark.parametrize("labels", [[0] * 20, [1] * 20, []])
def test_rows_of_which_no_temperature_follows(labels: list[int]) -> None:
    rows = [[-0.1, -2.4]] * len(labels)
    with pytest.raises(InputError, match=r"some are right and some wrong|no rows"):
        Calibration.fit(rows, labels)


def test_one_mistake_is_too_few_to_check_a_temperature_on_other_rows() -> None:
    with pytest.raises(NothingToFitError, match="of 40 rows too few are wrong"):
        fit_best([[-0.1, -2.4]] * 40, [1, *[0] * 39], same_choices=True)


def test_too_few_rows_and_other_choices() -> None:
    with pytest.raises(InputError, match="too few"):
        fit_best([[-0.1, -2.4]] * 4, [0, 1, 0, 0], same_choices=True)
    with pytest.raises(InputError, match="calibrated for 3 choices"):
        Calibration(1.0, Vector((1.0,) * 3, (0.0,) * 3)).apply([[-0.1, -2.4]])


def test_choices_that_are_never_made() -> None:
    rows = [[-0.1, -2.4, -np.inf]] * 30
    found = Calibration.fit_vector(rows, [0] * 25 + [1] * 5)
    (row,) = found.apply(rows[:1])
    assert row[2] == 0
    assert row[1] == pytest.approx(5 / 30, abs=0.05)
