"""Rank classification against a loop over choices written from the definition."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sinkd_llm.collator import AnswerCollator
from sinkd_llm.data import AnswerTokenizer, tokenize_dataset
from sinkd_llm.errors import InputError
from sinkd_llm.evaluation import choice_log_likelihoods, evaluate_task
from sinkd_llm.models.architectures import get_architecture

ROWS = [
    ("Review: good film\nSentiment:", [" positive", " negative"], 0),
    ("the food was awful .", [" good", " not good", " not bad", " a great film"], 1),
    ("question:", [" yes", " no"], 1),
    ("question: the plot is great but the film is bad . true or false ? answer:", [" true"], 0),
]


def dataset() -> Dataset:
    return Dataset.from_list(
        [{"id": str(i), "prompt": p, "choices": c, "label": g, "completion": c[g]} for i, (p, c, g) in enumerate(ROWS)]
    )


class Task:
    """Stands for a task: accuracy is all that is asked of it."""

    output_type = "multiple_choice"

    def compute_metrics(self, predictions: list[int], references: list[int], rows: Any = None) -> dict[str, float]:
        assert rows is not None
        return {"acc": float(np.mean(np.equal(predictions, references)))}


def naive(model: Any, tokenizer: Any) -> list[list[float]]:
    """Each choice on its own, no batch, no padding, fp64."""
    scores = []
    for prompt, choices, _ in ROWS:
        row = []
        for choice in choices:
            ids = tokenizer(prompt + choice)["input_ids"]
            start = len(tokenizer(prompt)["input_ids"])
            log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            row.append(sum(float(log_probs[i - 1, ids[i]]) for i in range(start, len(ids))))
        scores.append(row)
    return scores


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_log_likelihoods_equal_the_naive_loop(
    family: str, batch_size: int, tiny_causal_lm: Any, tiny_tokenizer: Any
) -> None:
    model = tiny_causal_lm(family, seed=3)
    score = evaluate_task(model, tiny_tokenizer, Task(), dataset(), batch_size=batch_size)
    expected = naive(model, tiny_tokenizer)
    for got, want in zip(score.log_likelihoods, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4)
    assert score.predictions == [int(np.argmax(row)) for row in expected]
    golds = [gold for _, _, gold in ROWS]
    assert score.metrics["acc"] == np.mean(np.equal(score.predictions, golds))
    lengths = [
        [len(tiny_tokenizer(p + c)["input_ids"]) - len(tiny_tokenizer(p)["input_ids"]) for c in cs]
        for p, cs, _ in ROWS
    ]
    normalised = [int(np.argmax(np.divide(s, n))) for s, n in zip(expected, lengths, strict=True)]
    assert score.metrics["acc_norm"] == np.mean(np.equal(normalised, golds))
    assert score.num_examples == 4
    assert score.examples_per_second > 0


def test_rows_with_fewer_choices_are_minus_infinity(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    features = tokenize_dataset(dataset(), AnswerTokenizer(tiny_tokenizer), ranking=True)
    batch = AnswerCollator(tiny_tokenizer.pad_token_id)(list(features))
    model = tiny_causal_lm("llama")
    scores, lengths = choice_log_likelihoods(get_architecture(model).supervised_logits(model, batch), batch)
    assert torch.isinf(scores[0, 2:]).all()
    assert torch.isinf(scores[3, 1:]).all()
    assert (lengths[0, 2:] == 0).all()
    assert torch.isfinite(scores[1]).all()


def test_training_mode_is_restored_and_progress_reported(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    model = tiny_causal_lm("llama").train()
    seen: list[tuple[int, int]] = []
    evaluate_task(
        model,
        tiny_tokenizer,
        Task(),
        dataset(),
        batch_size=3,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert model.training
    assert seen == [(3, 4), (4, 4)]


def test_an_impossible_batch_size_is_refused(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        evaluate_task(tiny_causal_lm("llama"), tiny_tokenizer, Task(), dataset(), batch_size=0)
