"""Arguments of commands that are made in Python are held against the same table as flags and recipes."""

from typing import Any

import pytest

from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.runs.arguments import CacheArguments, EvaluateArguments, LaunchArguments, TaskArguments

SCORED = {"model_name_or_path": "x", "task": "sst2"}


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (TaskArguments, {"task": "sst2", "max_eval_samples": 0}, "max_eval_samples is 0; give 1 or more"),
        (TaskArguments, {"task": "sst2", "data_dir": 5}, "data_dir is 5, but it takes text"),
        (CacheArguments, {"top_k": 0}, "top_k is 0; give a whole number from 1"),
        (CacheArguments, {"content": "top"}, "content is 'top'; it takes one of topk, verbalizers, full"),
        (CacheArguments, {"encoding": "float16"}, "encoding is 'float16'; it takes one of fixed16, float32"),
        (CacheArguments, {"temperatures": [1.0, -2.0]}, "temperatures is -2"),
        (EvaluateArguments, {**SCORED, "batch_size": 0}, "batch_size is 0; give a whole number from 1"),
        (EvaluateArguments, {**SCORED, "split": "dev"}, "split is 'dev'; it takes one of train, validation, test"),
        (EvaluateArguments, {**SCORED, "model_kind": "lm"}, "model_kind is 'lm'; it takes one of causal-lm"),
        (LaunchArguments, {"num_processes": 0}, "num_processes is 0; give a whole number from 1"),
    ],
)
def test_a_value_that_a_setting_does_not_take_is_refused(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as raised:
        kind(**arguments)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("missing", "message"), [("model_name_or_path", "the model to score"), ("task", "tasks list")]
)
def test_a_score_needs_a_model_and_a_task(missing: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--{missing} is missing.*{message}"):
        EvaluateArguments(**{**SCORED, missing: None})


def test_scores_may_be_taken_at_the_model_s_own_length() -> None:
    assert EvaluateArguments(**SCORED, max_length=None).max_length is None
