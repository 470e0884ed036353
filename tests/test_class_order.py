"""A head whose classes stand in another order than the task's choices."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sinkd_llm import SinKDConfig, SinKDTrainer, evaluate_task
from sinkd_llm.errors import InputError
from sinkd_llm.row_tokenizers import class_order
from tests.test_evaluation import Task
from tests.test_trainer import rows


def swapped(model: Any) -> Any:
    """The same classifier with its classes in the other order."""
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter.flip(0))
    return model


def named(model: Any, *words: str) -> Any:
    model.config.id2label = dict(enumerate(words))
    return model


def test_choices_find_their_class_by_name(
    tiny_model: Callable[..., Any], marked_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = marked_tokenizer("bert")
    plain = named(tiny_model("bert", "SequenceClassification", seed=3), "negative", "positive")
    other = named(swapped(tiny_model("bert", "SequenceClassification", seed=3)), "Positive", "Negative")
    with caplog.at_level(logging.WARNING, logger="sinkd_llm"):
        first = evaluate_task(plain, tokenizer, Task(), rows(12))
        second = evaluate_task(other, tokenizer, Task(), rows(12))
    assert first.predictions == second.predictions
    assert first.log_likelihoods == second.log_likelihoods
    assert not caplog.records


def test_other_words_are_taken_in_order_with_a_warning(
    tiny_model: Callable[..., Any], marked_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = named(tiny_model("bert", "SequenceClassification"), "contradiction", "entailment")
    with caplog.at_level(logging.WARNING, logger="sinkd_llm"):
        evaluate_task(model, marked_tokenizer("bert"), Task(), rows(4))
    assert "contradiction, entailment" in caplog.text
    assert class_order((" no", " yes"), ("contradiction", "entailment")) == (0, 1)
    assert class_order((" b", " c", " a"), ("a", "b", "c")) == (1, 2, 0)


def test_a_pair_in_different_orders_is_refused(
    tiny_model: Callable[..., Any], marked_tokenizer: Any, tmp_path: Any
) -> None:
    teacher = named(tiny_model("bert", "SequenceClassification"), "positive", "negative")
    student = named(tiny_model("bert", "SequenceClassification", seed=1), "negative", "positive")
    with pytest.raises(InputError, match="another order"):
        SinKDTrainer(
            model=student,
            teacher_model=teacher,
            args=SinKDConfig(output_dir=str(tmp_path), use_cpu=True),
            processing_class=marked_tokenizer("bert"),
            train_dataset=rows(),
        )
