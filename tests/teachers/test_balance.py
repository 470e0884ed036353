"""A teacher's answers are balanced to a prior over all of its rows."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.balance import Array, Balance, balance, prior_of, remarks

CHOICES = (" red", " green", " blue", " card's 3")


def scores(rows: int = 3000, classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    """Log-scores of a teacher that prefers the first classes, and the right answers, of shares 0.1, 0.2, …"""
    draw = np.random.default_rng(seed)
    prior = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    gold = draw.choice(classes, size=rows, p=prior)
    logits = draw.normal(size=(rows, classes)) + 2.0 * np.eye(classes)[gold]
    return logits - 1.2 * np.arange(classes), gold


def parts(given: Array, size: int = 700) -> Callable[[], Iterable[Array]]:
    return lambda: (given[start : start + size] for start in range(0, len(given), size))


def softmax(logs: Array) -> Array:
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def test_the_plan_is_the_one_of_scaling_rows_and_columns_in_turn() -> None:
    logits, gold = scores()
    prior = prior_of("labels", CHOICES, gold)
    found = balance(parts(logits), prior)
    plan = softmax(logits) / len(logits)
    for _ in range(5000):
        plan = plan * (prior / plan.sum(axis=0))
        plan = plan / plan.sum(axis=1, keepdims=True) / len(logits)
    balanced = softmax(found.applied(logits))
    np.testing.assert_allclose(balanced, plan * len(logits), atol=1e-5)
    np.testing.assert_allclose(balanced.mean(axis=0), prior, atol=1e-6)
    np.testing.assert_allclose(found.after_C, prior, atol=1e-6)
    np.testing.assert_allclose(found.before_C, softmax(logits).mean(axis=0), rtol=1e-12)
    assert found.error <= 1e-6


def test_a_biased_teacher_gets_better_by_the_right_prior_and_less_by_one_step() -> None:
    logits, gold = scores()
    prior = prior_of("labels", CHOICES, gold)
    right = {
        method: float((balance(parts(logits), prior, method=method).applied(logits).argmax(axis=1) == gold).mean())
        for method in ("sinkhorn", "calibration")
    }
    before = float((logits.argmax(axis=1) == gold).mean())
    assert before + 0.05 < right["calibration"] < right["sinkhorn"]


def test_what_is_balanced_already_stays() -> None:
    logits, _ = scores()
    once = balance(parts(logits), prior_of("uniform", CHOICES, ())).applied(logits)
    again = balance(parts(once), prior_of("uniform", CHOICES, ()))
    assert again.steps == 0
    np.testing.assert_array_equal(again.applied(once), once)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_strength_scales_the_logarithm_of_the_weights(strength: float) -> None:
    logits, gold = scores()
    prior = prior_of("labels", CHOICES, gold)
    whole, part = balance(parts(logits), prior), balance(parts(logits), prior, strength=strength)
    np.testing.assert_allclose(part.log_weight_C, strength * whole.log_weight_C, atol=1e-12)
    np.testing.assert_allclose(part.after_C, softmax(part.applied(logits)).mean(axis=0), rtol=1e-12)


def test_rows_that_lie_far_apart_and_constants_of_rows_do_not_matter() -> None:
    logits, gold = scores()
    moved = logits + np.random.default_rng(1).normal(scale=300, size=(len(logits), 1))
    prior = prior_of("labels", CHOICES, gold)
    found, again = balance(parts(logits), prior), balance(parts(moved, 1000), prior)
    np.testing.assert_allclose(again.log_weight_C, found.log_weight_C, atol=1e-9)


def test_a_prior_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prior.yaml"
    file.write_text('blue: 2\nred: 1\n"card\'s 3": 4\ngreen: 1\n')
    np.testing.assert_allclose(prior_of(str(file), CHOICES, ()), np.array([1, 1, 2, 4]) / 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("red: 1\n", "no share of 'green', 'blue', \"card's 3\""),
        ("reed: 1\n", r"the share of 'reed', which is no choice\. Did you mean 'red'"),
        ('red: 0\ngreen: 1\nblue: 1\n"card\'s 3": 1\n', "the share 0 of 'red'; give a number above 0"),
        ('red: .nan\ngreen: 1\nblue: 1\n"card\'s 3": 1\n', "the share nan of 'red'"),
        ('red: yes\ngreen: 1\nblue: 1\n"card\'s 3": 1\n', "the share True of 'red'"),
        ('red: 0.5\ngreen: 0.6\nblue: 0.3\n"card\'s 3": 0.2\n', r"shares that sum to 1\.6"),
        ("- red\n", "prior.yaml"),
        ("", "prior.yaml"),
    ],
)
def test_a_wrong_prior(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "prior.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        prior_of(str(file), CHOICES, ())


def test_what_cannot_be_balanced() -> None:
    logits, _ = scores()
    prior = prior_of("uniform", CHOICES, ())
    with pytest.raises(InputError, match="neither uniform nor labels nor a file"):
        prior_of("uniformly", CHOICES, ())
    with pytest.raises(InputError, match='no training row has the label "card\'s 3"'):
        prior_of("labels", CHOICES, [0, 1, 2])
    with pytest.raises(InputError, match=r"balance_strength is 1\.5"):
        balance(parts(logits), prior, strength=1.5)
    with pytest.raises(InputError, match="balance_method is 'otter'"):
        balance(parts(logits), prior, method="otter")
    with pytest.raises(InputError, match="nothing to balance"):
        balance(parts(logits[:0]), prior)
    broken = logits.copy()
    broken[1234, 1] = np.nan
    with pytest.raises(InputError, match="scores of row 1234"):
        balance(parts(broken), prior)
    never = logits.copy()
    never[:, 2] = -np.inf
    with pytest.raises(InputError, match="no probability at all to class 2"):
        balance(parts(never), prior)


def with_hard(shares: list[float], prior: Sequence[float] = (0.25, 0.25, 0.25, 0.25)) -> Balance:
    """A balance of four classes with these shares of answers without probabilities."""
    prior_C = np.asarray(prior)
    return Balance(np.zeros(4), prior_C, prior_C, prior_C, 1, 0.0, np.asarray(shares))


def test_the_share_of_answers_without_probabilities() -> None:
    uniform = prior_of("uniform", CHOICES, ())
    logits, gold = scores()
    top = softmax(logits).max(axis=1)
    assert balance(parts(logits), uniform).hard_C.sum() == pytest.approx((top >= 0.99).mean(), abs=1e-12)
    # 0 and -30, as answers are kept: nearly all rows, and by how many rows each stands for.
    answers = np.where(np.eye(4)[gold] == 1, 0.0, -30.0)
    mixed = np.concatenate([answers[:900], np.zeros((100, 4))])
    hard_C = balance(parts(mixed), uniform).hard_C
    assert hard_C == pytest.approx(np.bincount(gold[:900], minlength=4) / 1000)
    mass = np.concatenate([np.ones(900), np.full(100, 9.0)])
    found = balance(lambda: [mixed], uniform, masses=lambda: [mass])
    assert found.hard_C.sum() == pytest.approx(0.5)
    assert remarks(4000, with_hard([0.22, 0.22, 0.22, 0.23]), CHOICES) == []
    (said,) = remarks(4000, with_hard([0.23, 0.24, 0.24, 0.24]), CHOICES)
    assert said.startswith("Of 95% of the rows the teacher gives 0.99 or more to one answer, which leaves no")
    assert len(remarks(10, with_hard([0.25] * 4), CHOICES)) == 2


def test_answers_that_come_too_often_without_probabilities_are_said() -> None:
    """60 % of such answers where half are wanted: what is left to move are the other rows, which are turned over."""
    scores_RC = np.concatenate([np.tile([0.0, -30.0], (1200, 1)), np.tile(np.log([0.9, 0.1]), (800, 1))])
    found = balance(lambda: [scores_RC], np.array([0.5, 0.5]))
    assert found.error < 1e-6
    assert softmax(found.applied(scores_RC))[-1] == pytest.approx([0, 1], abs=1e-9)
    (said,) = remarks(2000, found, ("A", "B"))
    assert said.startswith("To 'A', whose share is to be 50.0%, the teacher gives 0.99 or more in 60.0% of the rows.")
    assert remarks(2000, balance(lambda: [scores_RC], np.array([0.7, 0.3])), ("A", "B")) == []


def test_what_changes_nothing() -> None:
    logits, _ = scores()
    uniform = prior_of("uniform", CHOICES, ())
    once = balance(parts(logits), uniform)
    assert not once.changes_nothing
    assert balance(parts(logits), uniform, strength=0).changes_nothing
    assert balance(parts(once.applied(logits)), uniform).changes_nothing


def test_few_rows_are_said() -> None:
    soft = with_hard([0.0] * 4)
    assert remarks(2000, soft, CHOICES) == []
    assert "over 1,999 rows" in remarks(1999, soft, CHOICES)[0]
    few = with_hard([0.0] * 4, (0.001, 0.399, 0.3, 0.3))
    assert "of which 4 should be 'red'" in remarks(4000, few, CHOICES)[0]
