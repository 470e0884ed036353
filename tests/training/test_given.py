"""What a Python user may give to the trainer by mistake is refused in one sentence, before anything is loaded."""

from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import LoraConfig
from transformers import TrainerCallback, TrainingArguments

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.models.adapters import add_adapter
from sinkd_llm.training.given import check_optimizers
from tests.support.rows import opinions

STREAM = IterableDataset.from_generator(lambda: iter(opinions(16)))


class IterableRows(torch.utils.data.IterableDataset[Any]):
    """A stream of PyTorch's own."""

    def __iter__(self) -> Any:
        return iter(opinions(4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 5}, "model is a int; give a model's name or folder"),
        ({"teacher_model": ["teacher"]}, "teacher_model is a list"),
        ({"processing_class": "tokenizer"}, r"processing_class is a str; .*load_tokenizer\(name\)"),
    ],
)
def test_models_and_tokenizers_of_another_kind_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: Any
) -> None:
    settings = SinKDConfig(str(tmp_path / "out"), use_cpu=True)
    with pytest.raises(InputError, match=message):
        SinKDTrainer(**{"model": "no/such-model", "args": settings, "train_dataset": opinions(), **arguments})


def test_a_path_names_a_model(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    for role, seed in (("student", 1), ("teacher", 2)):
        tiny_causal_lm(seed=seed).save_pretrained(tmp_path / role)
        tiny_tokenizer.save_pretrained(tmp_path / role)
    settings = SinKDConfig(str(tmp_path / "out"), use_cpu=True)
    trainer = SinKDTrainer(tmp_path / "student", tmp_path / "teacher", settings, train_dataset=opinions())
    assert trainer.teacher is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"args": TrainingArguments(output_dir="out", use_cpu=True)}, "args is a TrainingArguments, .* SinKDConfig"),
        ({"args": "out"}, "args is a str"),
        (
            {"train_dataset": DatasetDict({"train": opinions(), "test": opinions()})},
            r"splits train, test; .*data\['train'\]",
        ),
        ({"train_dataset": {"a": opinions()}}, r"splits a; .*data\['a'\]"),
        ({"train_dataset": DatasetDict()}, r"splits \(none\)"),
        ({"train_dataset": IterableRows()}, "train_dataset is a IterableRows, .* collect its rows"),
        ({"train_dataset": list(opinions())}, "train_dataset is a list, .*from_list"),
        ({"train_dataset": "rows.jsonl"}, "train_dataset is a str"),
        ({"train_dataset": opinions().to_pandas()}, "train_dataset is a DataFrame"),
        ({"eval_dataset": list(opinions())}, "eval_dataset is a list"),
        ({"eval_dataset": {}}, "empty dict"),
        ({"eval_dataset": {"a": opinions(), "b": IterableRows()}}, r"eval_dataset\['b'\] is a IterableRows"),
        ({"eval_dataset": {"a": None}}, "There are no rows"),
        ({"compute_metrics": "accuracy"}, "compute_metrics is a str"),
        ({"callbacks": ["x"]}, "callbacks holds 'x', which is no transformers.TrainerCallback"),
        ({"callbacks": TrainerCallback()}, "callbacks is a TrainerCallback; give a list"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_a_model_is_loaded(
    arguments: dict[str, Any], message: str, tmp_path: Any
) -> None:
    given = {"args": SinKDConfig(str(tmp_path / "out"), use_cpu=True), "train_dataset": opinions(), **arguments}
    with pytest.raises(InputError, match=message):
        SinKDTrainer(model="no/such-model", **given)
    assert not (tmp_path / "out").exists()


def test_callbacks_may_come_in_a_tuple(train: Any) -> None:
    mine = TrainerCallback()
    assert mine in train(callbacks=(mine,)).callback_handler.callbacks


def test_a_dictionary_of_evaluation_sets_is_one_of_datasets_own(train: Any) -> None:
    found = train(eval_dataset=DatasetDict({"near": opinions(4, 100), "far": opinions(4, 200)})).evaluate()
    assert {"eval_near_loss", "eval_far_acc"} <= set(found)


@pytest.mark.parametrize("form", ["numpy", "torch", "arrow", "pandas"])
def test_the_format_of_a_data_set_changes_nothing(form: str, train: Any) -> None:
    """Arrays of tokens would be added up where lists are joined."""
    plain, other = train(max_steps=2), train(max_steps=2)
    shaped = train(max_steps=2, train_dataset=opinions().with_format(form), eval_dataset=opinions(8).with_format(form))
    assert shaped.train_dataset.to_dict() == plain.train_dataset.to_dict()
    assert shaped.evaluate(opinions(4).with_format(form))["eval_loss"] == plain.evaluate(opinions(4))["eval_loss"]
    assert other.evaluate(opinions(8))["eval_acc"] == shaped.evaluate()["eval_acc"]
    for trainer in (plain, shaped):
        trainer.train()
    assert shaped.state.log_history[0]["loss"] == plain.state.log_history[0]["loss"]


def test_rows_that_a_transform_makes_anew_are_refused(train: Any) -> None:
    changing = opinions().with_transform(lambda batch: batch)
    for argument in ("train_dataset", "eval_dataset"):
        with pytest.raises(InputError, match=f"{argument} has a transform .* apply it once with data.map"):
            train(**{argument: changing})


def test_streams_train_and_evaluate_as_their_rows_do(train: Any, tmp_path: Any) -> None:
    rows = train(output_dir=str(tmp_path / "rows"), max_steps=2)
    rows.train()
    stream = train(output_dir=str(tmp_path / "stream"), max_steps=2, train_dataset=STREAM, eval_dataset={"a": STREAM})
    stream.train()
    assert len(stream.train_dataset) == min(2 * stream.args.train_batch_size, 16)
    assert stream.evaluate()["eval_a_loss"] == pytest.approx(stream.evaluate(opinions(16))["eval_loss"])
    again = train(output_dir=str(tmp_path / "all"), max_steps=-1, num_train_epochs=1, train_dataset=STREAM)
    assert again.train_dataset.to_dict() == rows.train_dataset.to_dict()
    with pytest.raises(InputError, match="collect its rows"):
        stream.predict(STREAM)


def test_there_is_nothing_to_train_or_to_evaluate(train: Any) -> None:
    trainer = train(train_dataset=None, eval_dataset=None)
    with pytest.raises(InputError, match="give train_dataset"):
        trainer.train()
    with pytest.raises(InputError, match="give eval_dataset"):
        trainer.evaluate()
    for call in (trainer.evaluate, trainer.predict):
        with pytest.raises(InputError, match="and a data set is a"):
            call(list(opinions()))
    with pytest.raises(InputError, match="was given no evaluation sets by name"):
        trainer.evaluate("validation")
    with pytest.raises(InputError, match="and a data set is a"):
        trainer.predict("validation")
    with pytest.raises(InputError, match="splits a"):
        trainer.predict({"a": opinions()})
    with pytest.raises(InputError, match="eval_on_start is on, but there is no eval_dataset"):
        train(eval_dataset=None, eval_on_start=True)
    with pytest.raises(InputError, match="eval_strategy is 'steps', but there is no eval_dataset"):
        train(eval_dataset=None, eval_strategy="steps", eval_steps=1)


def test_one_of_several_evaluation_sets_by_its_name(train: Any) -> None:
    trainer = train(eval_dataset={"near": opinions(4, 100), "far": opinions(4, 200)})
    assert trainer.evaluate("far")["eval_loss"] == trainer.evaluate()["eval_far_loss"]
    with pytest.raises(InputError, match="eval_dataset is 'else', and the trainer has near, far; give one of these"):
        trainer.evaluate("else")


@pytest.mark.parametrize("batch", [17, 100])
def test_fewer_rows_than_a_batch_that_has_to_be_full(batch: int, train: Any) -> None:
    trainer = train(dataloader_drop_last=True, per_device_train_batch_size=batch)
    with pytest.raises(InputError, match=rf"16 training rows, a batch takes {batch}, and dataloader_drop_last"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_empty_rows_are_refused(train: Any) -> None:
    with pytest.raises(InputError, match="no rows"):
        train(train_dataset=Dataset.from_dict({"prompt": [], "completion": []}))


def test_a_setting_that_was_changed_is_checked_when_the_trainer_is_made(tmp_path: Any) -> None:
    args = SinKDConfig(str(tmp_path / "out"), use_cpu=True)
    args.alpha = 7
    with pytest.raises(InputError, match=r"^alpha is 7"):
        SinKDTrainer(model="no/such-model", args=args, train_dataset=opinions())


@pytest.mark.parametrize(
    ("collator", "message"),
    [
        ("collator", "data_collator is a str"),
        (lambda rows: rows, "data_collator returns a list"),
        (lambda rows: {"input_ids": []}, "without labels"),
        (lambda rows: rows[0]["nope"], "data_collator fails on the first rows .KeyError"),
    ],
)
def test_collators_that_make_no_batch(collator: Any, message: str, train: Any) -> None:
    with pytest.raises(InputError, match=message):
        train(data_collator=collator)


@pytest.mark.parametrize("settings", [{"lora_dropout": 1.0}, {"lora_alpha": 0}, {"alpha_pattern": {"q_proj": 0}}])
def test_adapters_that_would_not_move(settings: dict[str, Any], tiny_causal_lm: Any) -> None:
    with pytest.raises(InputError, match=f"peft_config has {next(iter(settings))}"):
        add_adapter(tiny_causal_lm(seed=1), LoraConfig(target_modules="all-linear", **settings))


def test_an_optimizer_of_another_model(tiny_causal_lm: Any) -> None:
    student, other = tiny_causal_lm(seed=1), tiny_causal_lm(seed=1)
    check_optimizers((torch.optim.SGD(student.parameters(), lr=0.1), None), student)
    check_optimizers((None, None), student)
    with pytest.raises(InputError, match="no trainable parameter of the student"):
        check_optimizers((torch.optim.SGD(other.parameters(), lr=0.1), None), student)
    with pytest.raises(InputError, match="not a pair"):
        check_optimizers(torch.optim.SGD(student.parameters(), lr=0.1), student)
