"""A teacher's findings against loops from the definitions, and what is said of teachers that are known by design."""

import math

import numpy as np
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.evaluation.examination import (
    Examination,
    Findings,
    examine,
    majority,
    sentences,
    tfidf_baseline,
)


def teacher(rows: int, accuracy: float, top: float, seed: int, choices: int = 3) -> tuple[np.ndarray, list[int]]:
    """Log-scores with this top probability and score, and the labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(choices, size=rows)
    chosen = np.where(np.arange(rows) < round(accuracy * rows), labels, (labels + 1) % choices)
    probabilities = np.full((rows, choices), (1 - top) / (choices - 1))
    probabilities[np.arange(rows), chosen] = top
    return np.log(probabilities), labels.tolist()


def test_findings_equal_the_definitions() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=c) * 3 + 7 for c in generator.integers(2, 5, size=200)]
    labels = [int(generator.integers(-1, len(row))) for row in rows]
    found = examine(rows, labels).taught
    right, entropy, sharp, tops = [], 0.0, 0, []
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(rows, labels, strict=True):
        total = math.fsum(math.exp(v) for v in row)
        p = [math.exp(v) / total for v in row]
        entropy -= math.fsum(v * math.log(v) for v in p) / len(rows)
        tops.append(max(p))
        sharp += max(p) > 0.99
        if label >= 0:
            right.append(p.index(max(p)) == label)
            bins[math.ceil(max(p) * 15) - 1].append((max(p), right[-1]))
    error = sum(
        abs(sum(r for _, r in one) / len(one) - sum(c for c, _ in one) / len(one)) * len(one) for one in bins if one
    )
    assert found.rows == 200
    assert found.labelled == len(right) < 200
    assert found.score == pytest.approx(sum(right) / len(right), abs=1e-12)
    assert found.entropy == pytest.approx(entropy, abs=1e-12)
    assert found.calibration_error == pytest.approx(error / len(right), abs=1e-12)
    assert found.sharp == sharp / 200 > 0
    assert found.median_top == pytest.approx(float(np.median(tops)), abs=1e-12)


def test_certain_rows_and_rows_without_labels() -> None:
    found = examine(np.array([[0.0, -np.inf], [-1e4, 1e4]]), [None, -1]).taught
    assert found == Findings(2, 0, None, 0.0, None, 1.0, 1.0)
    assert sentences(Examination(found)) == [
        "The teacher on 2 rows that it teaches: "
        "not scored, mean entropy 0.000 nats, top probability above 0.99 in 100%."
    ]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], [], "says nothing of any row"),
        ([[0.0, 1.0], [math.nan, 0.0]], [0, 0], "scores of row 1 are .*nan"),
        ([[0.0, math.inf]], [0], "scores of row 0"),
        ([[0.0, 1.0]], [2], "label of row 0 is 2, but the row has 2 choices"),
    ],
)
def test_what_is_refused(scores: list[list[float]], labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        examine([np.array(row) for row in scores], labels)


def test_a_teacher_that_has_memorised_its_rows_is_told_from_one_that_has_not() -> None:
    held_out = teacher(500, 0.86, 0.9, 1)
    assert examine(*teacher(600, 1.0, 0.999, 0), *held_out).memorised
    # As good there as here; as soft here as there; sharp by nature; above by chance; few rows; nothing to compare.
    assert not examine(*teacher(600, 0.87, 0.999, 0), *held_out).memorised
    assert not examine(*teacher(600, 1.0, 0.92, 0), *held_out).memorised
    assert not examine(*teacher(600, 1.0, 0.999, 0), *teacher(500, 0.86, 0.999, 1)).memorised
    assert not examine(*teacher(600, 0.89, 0.999, 0), *held_out).memorised
    assert not examine(*teacher(600, 1.0, 0.999, 0), *teacher(10, 0.9, 0.9, 1)).memorised
    assert not examine(*teacher(600, 1.0, 0.999, 0)).memorised


def test_two_lines_say_what_is_wrong_and_what_to_do() -> None:
    memorised = sentences(examine(*teacher(600, 1.0, 0.999, 0), *teacher(500, 0.86, 0.9, 1)), 0.34, 0.7)
    assert len(memorised) == 2
    assert memorised[0].startswith("The teacher on 600 rows that it teaches: score 1.000, calibration error 0.001")
    assert "on 500 rows for evaluation: score 0.860" in memorised[0]
    assert memorised[0].endswith("the most frequent label 0.340, TF-IDF with logistic regression 0.700.")
    assert "unlabelled rows" in memorised[1]
    assert "temperature" in memorised[1]
    good = examine(*teacher(600, 0.9, 0.9, 0), *teacher(500, 0.9, 0.9, 1))
    assert len(sentences(good, 0.34, 0.7)) == 1
    assert "no better than TF-IDF with logistic regression (0.900 against 0.895)" in sentences(good, 0.34, 0.895)[1]
    assert "no better than the most frequent label (0.900 against 0.920)" in sentences(good, 0.92, 0.93)[1]
    assert "another prompt" in sentences(good, 0.92)[1]
    # Where held-out rows have no labels, the rows that are taught are judged.
    scores, _ = teacher(500, 0.9, 0.9, 1)
    unlabelled = examine(*teacher(600, 0.5, 0.9, 0), scores, [-1] * 500)
    assert "no better than the most frequent label (0.500 against 0.600)" in sentences(unlabelled, 0.6)[1]


def test_majority() -> None:
    assert majority([1, 1, 0, None, -1, -1, -1]) == pytest.approx(2 / 3)
    assert majority([None, -1]) is None


def test_the_words_baseline() -> None:
    train = [f"the {word} film number {i}" for i in range(20) for word in ("good", "bad")]
    labels = [1, 0] * 20
    assert tfidf_baseline(train, labels, ["a good one", "a bad one", "good", "?"], [1, 0, 0, -1]) == pytest.approx(
        2 / 3
    )
    assert tfidf_baseline([*train, "x"], [*labels, None], ["a good one"], [1]) == 1
    assert tfidf_baseline(train, [1] * 40, ["good"], [1]) is None
    assert tfidf_baseline(["?", "!"], [0, 1], ["good"], [1]) is None
    assert tfidf_baseline(train, labels, ["good"], [None]) is None


def test_large_sets_are_sampled_the_same_way_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkd_llm.evaluation.examination.MOST_ROWS", 10)
    train, labels = [f"word{i % 2} other{i}" for i in range(1000)], [i % 2 for i in range(1000)]
    score = tfidf_baseline(train, labels, train, [0] * 1000)
    assert score in [i / 10 for i in range(1, 10)]
    assert tfidf_baseline(train, labels, train, [0] * 1000) == score
