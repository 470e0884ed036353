"""`predictions.json`, written and read."""

import json

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.report.predictions import (
    EVALUATION,
    PREDICTIONS_FILE,
    TEACHER,
    Predictions,
    read_predictions,
    write_predictions,
)


def both():
    known = Predictions(
        ["a", "b"],
        [0, 1],
        [0, 0],
        {"acc": 0.5},
        choices=["no", "yes"],
        probabilities=[[0.9, 0.1], [0.66667, 0.33333]],
        texts=["one", "two"],
    )
    return {EVALUATION: known, TEACHER: Predictions(["a", "b"], ["x", "y"], ["x", "z"], {"rouge_l": 0.5})}


def test_answers_are_read_as_they_were_written(tmp_path):
    write_predictions(tmp_path, both())
    assert read_predictions(tmp_path) == both()


def test_probabilities_are_kept_with_five_digits(tmp_path):
    write_predictions(tmp_path, {EVALUATION: Predictions(["a"], [0], [0], {}, probabilities=[[2 / 3, 1 / 3]])})
    assert read_predictions(tmp_path)[EVALUATION].probabilities == [[0.66667, 0.33333]]


def test_answers_of_an_earlier_version_have_no_probabilities(tmp_path):
    write_predictions(tmp_path, both())
    content = json.loads((tmp_path / PREDICTIONS_FILE).read_text())
    for one in content.values():
        for name in ("choices", "probabilities", "texts"):
            del one[name]
    (tmp_path / PREDICTIONS_FILE).write_text(json.dumps(content))
    found = read_predictions(tmp_path)
    assert found[EVALUATION].predictions == [0, 0]
    assert found[EVALUATION].probabilities is None


@pytest.mark.parametrize("name", ["references", "predictions", "probabilities", "texts", "numbers"])
def test_lists_of_other_lengths_are_refused(tmp_path, name):
    write_predictions(tmp_path, both())
    content = json.loads((tmp_path / PREDICTIONS_FILE).read_text())
    content[EVALUATION][name] = [0.5]
    (tmp_path / PREDICTIONS_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="no readable predictions"):
        read_predictions(tmp_path)
