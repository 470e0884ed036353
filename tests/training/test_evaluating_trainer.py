"""An evaluation's numbers are those of its rows: not of the batches, the order, the names, or what came before."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import EvalPrediction

from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, DecoderOnlyTokenizer
from sinkd_llm.teachers.choices import row_keys
from tests.support.rows import opinions


def answers(count: int = 7, choices: bool = True) -> Dataset:
    """Rows whose answers have one to four tokens."""
    made = []
    for i in range(count):
        answer = " good" * (1 + i % 4)
        row = {"prompt": f"Review: film {i}\nSentiment:", "completion": answer}
        made.append({**row, "choices": [" bad", answer], "label": 1} if choices else row)
    return Dataset.from_list(made)


def loss_by_hand(trainer: Any, data: Dataset) -> float:
    """Cross-entropy a token, row by row, in fp64."""
    total = count = 0.0
    for row in data:
        prompt = trainer.processing_class(row["prompt"])["input_ids"]
        ids = trainer.processing_class(row["prompt"] + row["completion"])["input_ids"]
        if "choices" not in row:
            ids = [*ids, trainer.processing_class.eos_token_id]
        with torch.no_grad():
            log_probs = trainer.model.eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for i in range(len(prompt), len(ids)):
            total -= float(log_probs[i - 1, ids[i]])
            count += 1
    return total / count


@pytest.mark.parametrize("choices", [True, False], ids=["choices", "text"])
def test_the_loss_is_one_mean_over_all_tokens(choices: bool, train: Any) -> None:
    data = answers(choices=choices)
    trainer = train(eval_dataset=data, per_device_eval_batch_size=1)
    expected = loss_by_hand(trainer, data)
    for size in (1, 2, 3, 7, 8):
        trainer.args.per_device_eval_batch_size = size
        assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    order = [5, 2, 0, 6, 3, 1, 4]
    assert trainer.evaluate(data.select(order))["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_no_row_is_left_out_of_an_evaluation(train: Any) -> None:
    data = answers()
    whole = train(eval_dataset=data, per_device_eval_batch_size=4).evaluate()
    trainer = train(eval_dataset=data, per_device_eval_batch_size=4, dataloader_drop_last=True)
    found = trainer.evaluate()
    for name in ("eval_loss", "eval_acc", "eval_agreement"):
        assert found[name] == whole[name]
    assert len(trainer.predict(data).label_ids) == len(data)
    assert trainer.args.dataloader_drop_last


@pytest.mark.parametrize("named", [True, False], ids=["same-names", "no-names"])
def test_two_evaluation_sets_have_two_teachers_opinions(named: bool, train: Any) -> None:
    first = opinions(6, 100)
    second = first.map(lambda row: {"choices": row["choices"][::-1], "label": 1 - row["label"]})
    if named:
        assert first["id"][:] == second["id"][:]
    else:
        first, second = first.remove_columns("id"), second.remove_columns("id")
    alone = [train(eval_dataset=data).predict(data).predictions[1].tolist() for data in (first, second)]
    assert alone[0] != alone[1], "the two sets have to differ in what the teacher says"
    trainer = train(eval_dataset={"first": first, "second": second})
    trainer.evaluate()
    assert [trainer.predict(data).predictions[1].tolist() for data in (first, second)] == alone


def test_rows_of_one_name_in_one_set_are_different_rows(train: Any) -> None:
    data = opinions(6, 100).remove_columns("id").add_column("id", ["same"] * 6)
    expected = train(eval_dataset=opinions(6, 100)).predict(opinions(6, 100)).predictions[1].tolist()
    assert train(eval_dataset=data).predict(data).predictions[1].tolist() == expected


def test_a_row_is_known_in_every_batch(tiny_tokenizer: Any) -> None:
    features = list(tokenize_dataset(answers(), DecoderOnlyTokenizer(tiny_tokenizer), ranking=True))
    collator = DecoderOnlyCollator(tiny_tokenizer.pad_token_id)
    together = row_keys(collator(features))
    assert together == [row_keys(collator([row]))[0] for row in features]
    assert together == row_keys(DecoderOnlyCollator(tiny_tokenizer.pad_token_id, pad_to_multiple_of=64)(features))
    assert len(set(together)) == len(features)
    swapped = [{**row, "answers_ids": row["answers_ids"][::-1]} for row in features]
    assert not set(together) & set(row_keys(collator(swapped)))


def test_a_student_that_gives_no_numbers_has_no_score(train: Any) -> None:
    for data in (answers(), answers(choices=False)):
        trainer = train(eval_dataset=data)
        trainer.model.lm_head.weight.data[3, 3] = float("nan")
        with pytest.raises(NonFiniteError, match=r"is NaN or infinite for row 0, row 1, .* and 2 more"):
            trainer.evaluate()


def test_predict_takes_rows_as_they_are(train: Any) -> None:
    trainer = train()
    found = trainer.predict(opinions(5, 100))
    assert found.predictions[0].shape == (5, 2)
    assert found.predictions[1].shape == (5,)
    assert found.label_ids.tolist() == opinions(5, 100)["label"]
    assert set(found.metrics) >= {"test_loss", "test_acc", "test_agreement"}
    text = trainer.predict(answers(choices=False))
    assert text.predictions is None
    assert np.isfinite(text.metrics["test_loss"])


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (lambda _: 0.5, "returned a float"),
        (lambda _: None, "returned a NoneType"),
        (lambda _: {"mine": float("nan")}, "returned nan for 'mine'"),
        (lambda _: {"mine": np.float32("inf")}, "returned inf for 'mine'"),
        (lambda _: {"mine": torch.tensor(float("nan"))}, "returned nan for 'mine'"),
        (lambda _: {3: 0.5}, "returned the name 3"),
        (lambda _: {"loss": 0.5}, "returned 'loss', which an evaluation reports itself"),
        (lambda _: {"agreement": 0.5}, "returned 'agreement', which an evaluation reports itself"),
    ],
)
def test_metrics_that_say_nothing_are_refused(metrics: Any, message: str, train: Any) -> None:
    with pytest.raises(InputError, match=message):
        train(compute_metrics=metrics).evaluate()


def test_metrics_of_ones_own(train: Any) -> None:
    def mine(prediction: EvalPrediction) -> dict[str, Any]:
        assert np.asarray(prediction.predictions).shape == (8, 2)
        return {"mine": np.float64(0.25), "rows": len(prediction.label_ids), "note": "text"}

    found = train(compute_metrics=mine).evaluate()
    assert (found["eval_mine"], found["eval_rows"], found["eval_note"]) == (0.25, 8, "text")


def test_a_metric_for_the_best_model_that_nothing_reports_is_refused(train_and_save: Any) -> None:
    trainer = train_and_save(
        eval_strategy="steps", eval_steps=1, load_best_model_at_end=True, metric_for_best_model="nope", max_steps=1
    )
    with pytest.raises(
        InputError, match=r"metric_for_best_model is 'nope', but .* eval_loss, eval_acc, eval_agreement"
    ):
        trainer.train()


def test_rows_without_choices_have_a_loss_alone(train: Any, caplog: pytest.LogCaptureFixture) -> None:
    found = train(eval_dataset=answers(choices=False), compute_metrics=lambda _: {"mine": 1.0}).evaluate()
    assert "eval_mine" not in found
    assert "compute_metrics is given, and the rows of eval_dataset have no choices" in caplog.text
    with pytest.raises(InputError, match="metric_for_best_model is 'rouge', but an evaluation here gives loss"):
        train(eval_dataset=answers(choices=False), metric_for_best_model="rouge", eval_strategy="steps", eval_steps=1)


def test_rows_that_are_set_later_are_those_that_count(train: Any) -> None:
    trainer, other = train(max_steps=1), answers()
    trainer.eval_dataset = other
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss_by_hand(trainer, other))
    trainer.eval_dataset = {"a": other, "b": opinions(4)}
    assert trainer.evaluate()["eval_a_loss"] == pytest.approx(loss_by_hand(trainer, other))
    trainer.train_dataset = other
    trainer.train()
    assert len(trainer.train_dataset) == len(other)
    assert "prompt_ids" in trainer.train_dataset.column_names
    for wrong, message in (
        (DatasetDict({"a": other}), r"splits a; .*data\['a'\]"),
        (IterableDataset.from_generator(lambda: iter(other)), "collect its rows"),
        (other.select_columns(["label"]), r"has the columns \['label'\], but not \['completion', 'prompt'\]"),
    ):
        trainer.train_dataset = wrong
        with pytest.raises(InputError, match=message):
            trainer.train()
