"""Metrics against hand-computed values, and the cases without a defined value."""

import math

import datasets
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.metrics import (
    CLASSIFICATION,
    GLUE,
    REGRESSION,
    SUPERGLUE,
    compute_metrics,
    compute_text_metrics,
    glue_score,
    normalize_answer,
    perplexity,
    rouge_l,
    superglue_score,
)

METRICS = (*CLASSIFICATION, *REGRESSION)

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
        (["em"], [0, 1], [0, 1], "em compares rows, not only indices"),
        (["em"], [0, 1], [0, -1], "1 of 2 references are unlabelled"),
    ],
)
def test_bad_input(names, predictions, references, message: str) -> None:
    with pytest.raises(InputError) as caught:
        compute_metrics(names, predictions, references)
    assert message in str(caught.value)


# Two questions with two and three proposed answers, as in MultiRC, and one with a single answer.
GROUPS = {"group": ["a", "a", "b", "b", "b", "c"]}


def test_exact_match_over_questions() -> None:
    references = [1, 0, 1, 1, 0, 0]
    # question a right, b wrong in its last row, c right; tp 3, fp 1
    scores = compute_metrics(["f1", "em"], [1, 0, 1, 1, 1, 0], references, GROUPS)
    assert scores == {"f1": pytest.approx(2 * 3 / (2 * 3 + 1)), "em": pytest.approx(2 / 3)}
    # The rows of a question need not stand together.
    order = [5, 2, 0, 3, 1, 4]
    shuffled = [[values[i] for i in order] for values in ([1, 0, 1, 1, 1, 0], references, GROUPS["group"])]
    assert compute_metrics(["em"], *shuffled[:2], {"group": shuffled[2]})["em"] == scores["em"]
    assert compute_metrics(["em"], [1, 0], [1, 1], {}) == {"em": 0.5}


def test_answers_of_record() -> None:
    rows = {
        "choices": [[" Bo", " Kray", " Ana Kray"], [" Arl", " The  Arl!"], [" Bo Lee", " Ann"]],
        "answers": [["Ana Kray", "Kray"], ["Arl"], ["Mr Bo Lee"]],
    }
    # 1: another gold answer than the label; 2: equal after normalisation; 3: 2 of 3 words
    scores = compute_metrics(["em", "token_f1"], [1, 1, 0], [2, 0, 1], rows)
    assert scores["em"] == pytest.approx(2 / 3)
    assert scores["token_f1"] == pytest.approx((1 + 1 + 2 * 2 / (2 + 3)) / 3)
    assert compute_metrics(["token_f1"], [0, 0, 1], [2, 0, 1], rows)["token_f1"] == pytest.approx(1 / 3)
    assert compute_metrics(["em", "token_f1"], [1, 1, 0], [2, 0, 1], datasets.Dataset.from_dict(rows)) == scores


def test_normalize_answer() -> None:
    assert normalize_answer(" The U.S.  of a  Theatre, an A! ") == "us of theatre"


def test_regression_compares_numbers_with_the_targets() -> None:
    rows = {"choices": [["0.0", "2.5", "5.0"]] * 4, "target": [0.1, 4.9, 2.0, 2.6]}
    scores = compute_metrics(["pearson", "spearman"], [0, 2, 1, 1], [0, 2, 1, 1], rows)
    chosen = [0.0, 5.0, 2.5, 2.5]
    assert scores["pearson"] == pytest.approx(np.corrcoef(chosen, rows["target"])[0, 1])
    # ranks 1, 4, 2.5, 2.5 against 1, 4, 2, 3
    assert scores["spearman"] == pytest.approx(np.corrcoef([1, 4, 2.5, 2.5], [1, 4, 2, 3])[0, 1])
    assert compute_metrics(["pearson"], [1, 1, 1, 1], [0, 2, 1, 1], rows) == {"pearson": 0.0}


def test_macro_f1_and_correlations_agree_with_scikit_learn_and_scipy() -> None:
    random = np.random.default_rng(0)
    predictions, references = random.integers(0, 3, 100).tolist(), random.integers(0, 3, 100).tolist()
    scores = compute_metrics(["f1_macro", "spearman"], predictions, references)
    per_class = sklearn.metrics.f1_score(references, predictions, average=None)
    assert scores["f1_macro"] == pytest.approx(per_class.mean())
    assert scores["spearman"] == pytest.approx(scipy.stats.spearmanr(predictions, references).statistic)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("pearson", {"choices": [["a", "b"]] * 2, "target": [0.0, 1.0]}, "The choice 'b' is no number"),
        ("pearson", {"choices": [["1", "2"]] * 2, "target": [0.0, None]}, "1 of 2 rows have no target"),
        ("pearson", {"target": [0.0, 1.0]}, "no column 'choices'"),
        ("em", {"group": ["a"]}, "There are 1 rows (group) for 2 references"),
        ("token_f1", {"choices": [["1", "2"]] * 2}, "needs rows with a column 'answers'"),
    ],
)
def test_bad_rows(name: str, rows: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        compute_metrics([name], [1, 0], [1, 0], rows)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("The cat sat.", "the cat sat", 1.0),
        # common subsequence "the cat the mat", 4 of 6 and of 5 words
        ("The cat lay on the mat", "the cat, the old mat", 2 * 4 / (6 + 5)),
        ("police kill the gunman", "police killed the gunman", 2 * 3 / 8),
        ("the gunman police killed", "police killed the gunman", 2 * 2 / 8),
        ("a a a", "a", 2 * 1 / 4),
        ("42,5 Äpfel", "42 äpfel", 2 * 2 / 5),
        ("one_word", "one word", 1.0),
        ("für", "f r", 1.0),
        ("猫が座った", "猫が座った", 0.0),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("?!", "?!", 0.0),
    ],
)
def test_rouge_l(prediction: str, reference: str, score: float) -> None:
    assert rouge_l(prediction, reference) == pytest.approx(score)
    assert rouge_l(reference, prediction) == pytest.approx(score)


def test_text_metrics() -> None:
    assert compute_text_metrics(["rouge_l", "perplexity"], ["a b", "c"], ["a b", "d"]) == {"rouge_l": 0.5}
    assert compute_text_metrics(["perplexity"], ["a"], ["a"]) == {}
    with pytest.raises(InputError, match=r"Unknown metric 'acc'\. Known metrics: rouge_l, perplexity"):
        compute_text_metrics(["acc"], ["a"], ["a"])
    with pytest.raises(InputError, match="Row 1 of the scored texts is 3, not text"):
        compute_text_metrics(["rouge_l"], ["a", 3], ["a", "b"])
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        compute_text_metrics(["rouge_l"], ["a"], ["a", "b"])


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_rouge_l_is_that_of_the_package(prediction: str, reference: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    theirs = RougeScorer(["rougeL"], use_stemmer=False).score(reference, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, reference) == theirs


def test_a_reference_in_another_script_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="sinkd_llm"):
        assert compute_text_metrics(["rouge_l"], ["a cat", "猫"], ["a cat", "猫"]) == {"rouge_l": 0.5}
    assert "1 of 2 reference texts have letters other than a to z" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="sinkd_llm"):
        compute_text_metrics(["rouge_l"], ["猫"], ["a cat, 42 €"])
    assert not caplog.text


def test_perplexity() -> None:
    assert perplexity([4 * math.log(0.5), 2 * math.log(0.25)], [4, 2]) == pytest.approx(2 ** (8 / 6))
    with pytest.raises(InputError, match="no tokens"):
        perplexity([], [])


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf, -1e6])
def test_what_has_no_perplexity_is_refused(value: float) -> None:
    with pytest.raises(NonFiniteError, match="no perplexity"):
        perplexity([-1.0, value], [1, 1])


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_of_large_numbers(name: str) -> None:
    small, references = [1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 5.0]
    for factor in (1e150, 1e300):
        large = [factor * value for value in small]
        assert compute_metrics([name], large, references)[name] == pytest.approx(
            compute_metrics([name], small, references)[name]
        )
        assert compute_metrics([name], references, large)[name] > 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_average_refuses_what_is_no_number(value: float) -> None:
    with pytest.raises(InputError, match="a number as mcc of cola"):
        glue_score({**GLUE_RESULTS, "cola": {"mcc": value}})


GLUE_RESULTS = {
    "cola": {"mcc": 0.5, "acc_norm": 0.9},
    "sst2": {"acc": 0.9},
    "mrpc": {"acc": 0.8, "f1": 0.9},
    "stsb": {"pearson": 0.8, "spearman": 0.7},
    "qqp": {"acc": 0.7, "f1": 0.6},
    "mnli": {"acc": 0.8},
    "mnli_mismatched": {"acc": 0.7},
    "qnli": {"acc": 0.8},
    "rte": {"acc": 0.6},
    "wnli": {"acc": 0.5},
    "boolq": {"acc": 0.0},
}


def test_glue_score() -> None:
    expected = (0.5 + 0.9 + 0.85 + 0.75 + 0.65 + 0.75 + 0.8 + 0.6 + 0.5) / 9
    assert glue_score(GLUE_RESULTS) == pytest.approx(expected)
    assert glue_score(GLUE_RESULTS, partial=True) == pytest.approx(expected)
    some = {"mrpc": GLUE_RESULTS["mrpc"], "rte": GLUE_RESULTS["rte"], "mnli": GLUE_RESULTS["mnli"]}
    assert glue_score(some, partial=True) == pytest.approx((0.85 + 0.6) / 2)  # MNLI needs both its sets
    with pytest.raises(InputError, match="none of cola, mnli_mismatched, qnli, qqp, sst2, stsb, wnli; score them"):
        glue_score(some)
    with pytest.raises(InputError, match="GLUE score needs results"):
        glue_score({}, partial=True)
    with pytest.raises(InputError, match="needs f1 of mrpc, but its results are acc"):
        glue_score(GLUE_RESULTS | {"mrpc": {"acc": 1.0}})


def test_superglue_score() -> None:
    results = {
        "boolq": {"acc": 0.8},
        "cb": {"acc": 0.9, "f1_macro": 0.7},
        "copa": {"acc": 0.6},
        "multirc": {"f1": 0.7, "em": 0.3},
        "record": {"em": 0.6, "token_f1": 0.7},
        "sglue_rte": {"acc": 0.6},
        "wic": {"acc": 0.5},
        "wsc": {"acc": 0.6},
    }
    expected = (0.8 + 0.8 + 0.6 + 0.5 + 0.65 + 0.6 + 0.5 + 0.6) / 8
    assert superglue_score(results) == pytest.approx(expected)


def test_averages_use_the_tasks_own_metrics() -> None:
    from sinkd_llm.tasks import load_task

    for benchmark in (GLUE, SUPERGLUE):
        for parts in benchmark.values():
            for task in {task for task, _ in parts}:
                assert {metric for t, metric in parts if t == task} == set(load_task(task).metric_names)
