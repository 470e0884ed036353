"""Metrics against hand-computed values, and the cases without a defined value."""

import numpy as np
import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.metrics import METRICS, compute_metrics

PREDICTIONS = [1, 1, 0, 0, 1, 0]
REFERENCES = [1, 0, 0, 1, 1, 0]  # tp 2, fp 1, fn 1, tn 2


def test_hand_computed() -> None:
    scores = compute_metrics(["acc", "f1", "mcc", "f1_macro"], PREDICTIONS, REFERENCES)
    assert list(scores) == ["acc", "f1", "mcc", "f1_macro"]
    assert scores["acc"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["mcc"] == pytest.approx((2 * 2 - 1 * 1) / 3**2)
    assert scores["f1_macro"] == pytest.approx(2 / 3)


def test_f1_macro_of_three_classes() -> None:
    # class 0: tp 1 fp 1 fn 0 -> 2/3; class 1: tp 1 fp 0 fn 1 -> 2/3; class 2: tp 1 -> 1
    scores = compute_metrics(["f1_macro"], [0, 0, 1, 2], [0, 1, 1, 2])
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_correlations() -> None:
    scores = compute_metrics(["pearson", "spearman"], [1.0, 2.0, 4.0, 8.0], [0.0, 1.0, 2.0, 3.0])
    expected = np.corrcoef([1, 2, 4, 8], [0, 1, 2, 3])[0, 1]
    assert scores["pearson"] == pytest.approx(expected)
    assert scores["spearman"] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple])
def test_plain_floats_for_any_sequence(kind) -> None:
    scores = compute_metrics(METRICS, kind(PREDICTIONS), kind(REFERENCES))
    assert all(type(score) is float for score in scores.values())
    assert scores == compute_metrics(METRICS, PREDICTIONS, REFERENCES)


@pytest.mark.parametrize("name", ["mcc", "f1", "pearson", "spearman"])
def test_undefined_is_zero(name: str, recwarn: pytest.WarningsRecorder) -> None:
    assert compute_metrics([name], [0, 0, 0], [0, 0, 0]) == {name: 0.0}
    assert compute_metrics([name], [0, 0, 0], [0, 1, 0]) == {name: 0.0}
    assert not recwarn.list


@pytest.mark.parametrize(
    ("names", "predictions", "references", "message"),
    [
        (["accuracy"], [0], [0], "Unknown metric 'accuracy'. Did you mean 'acc'?"),
        (["acc"], [0, 1], [0], "2 predictions for 1 references"),
        (["acc"], [], [], "no predictions"),
        (["acc"], [0, 1], [0, -1], "1 of 2 references are unlabelled"),
        (["acc"], [0, 0.5], [0, 1], "0.5 is no choice index"),
        (["pearson"], [0.1, float("nan")], [0, 1], "Row 1 of the scored values is nan"),
        (["acc"], ["yes"], ["no"], "Row 0 of the scored values is 'yes'"),
        (["f1"], [0, 1, 2], [0, 1, 1], "f1 is binary"),
    ],
)
def test_bad_input(names, predictions, references, message: str) -> None:
    with pytest.raises(InputError) as caught:
        compute_metrics(names, predictions, references)
    assert message in str(caught.value)
