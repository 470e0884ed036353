"""Rank classification against a loop over choices written from the definition."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.evaluation import TaskEvaluator, agreement, evaluate_task, evaluator, ranking_metrics
from sinkd_llm.inputs.by_kind import row_tokenizer
from sinkd_llm.inputs.contract import AnswerTokenizer
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, DecoderOnlyTokenizer
from sinkd_llm.inputs.pair import features_of_each, rows_for
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.teachers.choices import row_keys
from tests.support.rows import opinions
from tests.support.trainers import AccuracyTask

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


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_log_likelihoods_equal_the_naive_loop(
    model_type: str, batch_size: int, tiny_causal_lm: Any, tiny_tokenizer: Any
) -> None:
    model = tiny_causal_lm(model_type, seed=3)
    score = evaluate_task(model, tiny_tokenizer, AccuracyTask(), dataset(), batch_size=batch_size)
    expected = naive(model, tiny_tokenizer)
    for got, want in zip(score.log_likelihoods, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4)
    assert score.predictions == [int(np.argmax(row)) for row in expected]
    golds = [gold for _, _, gold in ROWS]
    assert score.metrics["acc"] == np.mean(np.equal(score.predictions, golds))
    lengths = [[len(c.removeprefix(" ")) for c in cs] for _, cs, _ in ROWS]  # characters, as in lm-evaluation-harness
    normalised = [int(np.argmax(np.divide(s, n))) for s, n in zip(expected, lengths, strict=True)]
    assert score.metrics["acc_norm"] == np.mean(np.equal(normalised, golds))
    assert score.num_examples == 4
    assert score.examples_per_second > 0


def test_probabilities_are_of_the_choices_of_a_row(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    model, rows = tiny_causal_lm("llama", seed=3), dataset()
    score = evaluate_task(model, tiny_tokenizer, AccuracyTask(), rows)
    for found, logs in zip(score.probabilities, score.log_likelihoods, strict=True):
        assert found == pytest.approx(np.exp(logs) / np.exp(logs).sum())
    golds = [gold for _, _, gold in ROWS]
    assert list(score.metrics) == ["acc", "acc_norm", "log_loss", "brier", "ece", "ece_adaptive"] == [*score.intervals]
    assert score.metrics["log_loss"] == pytest.approx(
        -np.mean([np.log(row[gold]) for row, gold in zip(score.probabilities, golds, strict=True)])
    )

    def reverse(log_likelihoods: list[list[float]]) -> list[list[float]]:
        return [[float(i + 1) / (len(row) * (len(row) + 1) / 2) for i in range(len(row))] for row in log_likelihoods]

    calibrated = evaluate_task(model, tiny_tokenizer, AccuracyTask(), rows, calibrate=reverse)
    assert calibrated.predictions == [len(choices) - 1 for _, choices, _ in ROWS]
    assert calibrated.log_likelihoods == score.log_likelihoods
    assert calibrated.metrics["acc_norm"] == score.metrics["acc_norm"]
    several = evaluate_task(model, tiny_tokenizer, AccuracyTask(), rows.add_column("answers", [["x"]] * len(ROWS)))
    assert list(several.metrics) == ["acc", "acc_norm"]


def test_rows_with_fewer_choices_are_minus_infinity(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    features = tokenize_dataset(dataset(), DecoderOnlyTokenizer(tiny_tokenizer), ranking=True)
    batch = DecoderOnlyCollator(tiny_tokenizer.pad_token_id)(list(features))
    model = tiny_causal_lm("llama")
    found = score_choices(kind_of(model), model, batch)
    scores, lengths = found.log_likelihood_BC, found.length_BC
    assert torch.isinf(scores[0, 2:]).all()
    assert torch.isinf(scores[3, 1:]).all()
    assert (lengths[0, 2:] == 0).all()
    assert torch.isfinite(scores[1]).all()


def test_a_model_that_gives_no_numbers_has_no_score(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    model = tiny_causal_lm("llama")
    model.lm_head.weight.data[7, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="log-likelihood of an answer is NaN or infinite for 0, 1, 2, 3, and"):
        evaluate_task(model, tiny_tokenizer, AccuracyTask(), dataset())


def test_one_row_without_a_number_is_named(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    model = tiny_causal_lm("llama")
    (token,) = tiny_tokenizer(" false")["input_ids"]  # of the last row alone
    model.get_input_embeddings().weight.data[token] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinite for 3, and"):
        evaluate_task(model, tiny_tokenizer, AccuracyTask(), dataset(), batch_size=1)


def test_training_mode_is_restored_and_progress_reported(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    model = tiny_causal_lm("llama").train()
    seen: list[tuple[int, int]] = []
    evaluate_task(
        model,
        tiny_tokenizer,
        AccuracyTask(),
        dataset(),
        batch_size=3,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert model.training
    assert seen == [(3, 4), (4, 4)]


def test_an_impossible_batch_size_is_refused(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        evaluate_task(tiny_causal_lm("llama"), tiny_tokenizer, AccuracyTask(), dataset(), batch_size=0)


def test_acc_norm_counts_every_right_answer(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    """Of several right entities the gold choice is only one."""
    rows = dataset()
    model = tiny_causal_lm("llama", seed=3)
    first = evaluate_task(model, tiny_tokenizer, AccuracyTask(), rows)
    lengths = [[len(c.removeprefix(" ")) for c in choices] for _, choices, _ in ROWS]
    chosen = [int(np.argmax(np.divide(s, n))) for s, n in zip(first.log_likelihoods, lengths, strict=True)]
    golds = [gold for _, _, gold in ROWS]
    assert chosen != golds
    texts = [choices[index] for (_, choices, _), index in zip(ROWS, chosen, strict=True)]
    answers = [[c[g], text.upper() + " !"] for (_, c, g), text in zip(ROWS, texts, strict=True)]
    several = evaluate_task(model, tiny_tokenizer, AccuracyTask(), rows.add_column("answers", answers))
    assert first.metrics["acc_norm"] == np.mean(np.equal(chosen, golds)) < several.metrics["acc_norm"] == 1.0


@pytest.mark.parametrize(("metrics", "warned"), [(("mcc",), True), (("acc",), False)])
def test_a_split_with_one_answer_is_pointed_out(
    metrics: tuple[str, ...], warned: bool, tiny_causal_lm: Any, tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from sinkd_llm import load_task

    task = load_task("sst2")
    task.metric_names = metrics
    row = {
        "id": "0",
        "prompt": "good film\nSentiment:",
        "choices": [" bad", " good"],
        "label": 1,
        "completion": " good",
    }
    with caplog.at_level("WARNING", logger="sinkd_llm"):
        evaluate_task(tiny_causal_lm("llama"), tiny_tokenizer, task, Dataset.from_list([row, row]))
    assert ("All 2 scored rows have the same answer, for which mcc is undefined" in caplog.text) is warned


SIMILARITIES = (0.3, 4.9, 2.0, 3.3, 1.1, 0.0)


@pytest.mark.parametrize("with_target", [True, False])
def test_a_regression_head_is_scored_on_its_own_numbers(
    with_target: bool, tiny_model: Any, marked_tokenizer: Any, tmp_path: Any
) -> None:
    """Not on the nearest choice, in `evaluate_task` and in the trainer."""
    from scipy.stats import pearsonr, spearmanr

    from sinkd_llm import SinKDConfig, SinKDTrainer, load_task

    task = load_task("stsb")
    choices = list(task.choices or ())
    golds = [round(5 * value) for value in SIMILARITIES]
    texts = ["a good film", "the plot was bad", "yes", "no food", "question and answer", "sports"]
    rows = Dataset.from_list(
        [
            {"id": str(i), "prompt": text, "completion": choices[gold], "choices": choices, "label": gold}
            | {"target": value, "text": text, "text_pair": "the film is " + text}
            for i, (text, gold, value) in enumerate(zip(texts, golds, SIMILARITIES, strict=True))
        ]
    )
    if not with_target:
        rows = rows.remove_columns("target")
    model, tokenizer = tiny_model("bert", num_labels=1, seed=2), marked_tokenizer("bert")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)  # random weights of the usual size predict nearly the same for every row
        model.classifier.weight.mul_(20.0)
        raw = [float(model(**tokenizer(r["text"], r["text_pair"], return_tensors="pt")).logits) for r in rows]
    assert max(raw) - min(raw) > 0.5
    assert max(raw) > 1  # above the largest choice, with which it would count as equal
    truth = SIMILARITIES if with_target else [float(choices[gold]) for gold in golds]
    expected = {"pearson": pearsonr(raw, truth).statistic, "spearman": spearmanr(raw, truth).statistic}
    if not with_target:
        task.scoring_columns = ()
    score = evaluate_task(model, tokenizer, task, rows, batch_size=4)
    np.testing.assert_allclose(score.numbers, np.multiply(5, raw), rtol=1e-4, atol=1e-5)
    assert score.predictions == [int(np.argmin([abs(5 * n - float(c)) for c in choices])) for n in raw]
    for name, value in expected.items():
        assert score.metrics[name] == pytest.approx(value, abs=1e-5)

    arguments = SinKDConfig(str(tmp_path), use_cpu=True, report_to=[], per_device_eval_batch_size=4, disable_tqdm=True)
    trainer = SinKDTrainer(
        model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        compute_metrics=ranking_metrics(task, rows),
    )
    metrics = trainer.evaluate()
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-5)
    trainer = SinKDTrainer(model, args=arguments, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    assert trainer.evaluate()["eval_acc"] == np.mean(np.equal(score.predictions, golds))


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[AnswerTokenizer]:
    """What an evaluator tokenised rows with, one entry a time."""
    calls: list[AnswerTokenizer] = []

    def counted(rows: Dataset, answer_tokenizer: AnswerTokenizer, **more: Any) -> Dataset:
        calls.append(answer_tokenizer)
        return tokenize_dataset(rows, answer_tokenizer, **more)

    monkeypatch.setattr(evaluator, "tokenize_dataset", counted)
    return calls


def test_rows_are_tokenised_once_for_all_models_that_read_them_alike(
    tokenized: list[AnswerTokenizer], tiny_model: Any, marked_tokenizer: Any
) -> None:
    tokenizer, rows = marked_tokenizer("bert"), opinions(6)
    models = [
        tiny_model("bert", "MaskedLM", seed=1),
        tiny_model("bert", "MaskedLM", seed=2),
        tiny_model("bert", seed=3),
    ]
    together = TaskEvaluator(AccuracyTask(), rows, tokenizer, Reading(64))
    found = [together.score(model) for model in models]
    found.append(together.score(models[0], batch_size=2))
    assert [type(used).__name__ for used in tokenized] == ["MaskTokenizer", "ClassTokenizer"]
    alone = [evaluate_task(model, tokenizer, AccuracyTask(), rows, max_length=64) for model in models]
    for one, other in zip(found, alone, strict=False):
        assert one.log_likelihoods == other.log_likelihoods
        assert (one.predictions, one.metrics) == (other.predictions, other.metrics)
    # A shorter context is another way of reading.
    TaskEvaluator(AccuracyTask(), rows, tokenizer, Reading(12)).score(models[0])
    assert tokenized[-1].reading.max_length == 12


def test_rows_of_a_student_and_a_teacher_of_another_kind_are_taken_apart(
    tokenized: list[AnswerTokenizer], tiny_model: Any, tiny_causal_lm: Any, marked_tokenizer: Any
) -> None:
    tokenizer, rows, reading = marked_tokenizer("roberta"), opinions(6), Reading(64)
    student, teacher = tiny_causal_lm(vocab=len(tokenizer)), tiny_model("roberta", "MaskedLM", seed=2)
    pair, _ = rows_for(student, teacher, tokenizer, reading)
    features = tokenize_dataset(rows, pair, ranking=True)
    parts = features_of_each(pair, features)
    for model, (made_by, part) in zip((student, teacher), parts, strict=True):
        own = row_tokenizer(model, tokenizer, reading)
        assert made_by == own
        expected = tokenize_dataset(rows, own, ranking=True)
        assert {name: part[name][:] for name in expected.column_names} == expected.to_dict()
    shared = TaskEvaluator(AccuracyTask(), rows, tokenizer, reading, parts)
    for model in (student, teacher):
        one, other = shared.score(model), evaluate_task(model, tokenizer, AccuracyTask(), rows, max_length=64)
        assert one.log_likelihoods == other.log_likelihoods
    assert len(tokenized) == 2, "only evaluate_task tokenised"


def test_a_row_has_the_key_by_which_a_teacher_knows_it(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    model, rows = tiny_causal_lm("llama"), dataset()
    keys = TaskEvaluator(AccuracyTask(), rows, tiny_tokenizer, Reading(64)).row_keys(model)
    features = tokenize_dataset(rows, DecoderOnlyTokenizer(tiny_tokenizer), ranking=True)
    assert keys == row_keys(DecoderOnlyCollator(tiny_tokenizer.pad_token_id)(list(features)))
    assert len(set(keys)) == len(rows)


def test_agreement_is_the_share_of_equal_choices_where_all_are_known() -> None:
    assert agreement([0, 1, 2, 1], [0, 1, 1, 1]) == 0.75
    assert agreement(np.array([1, 1]), np.array([0, 0])) == 0.0
    assert agreement([0, 1, 2], [0, -1, 2]) is None
