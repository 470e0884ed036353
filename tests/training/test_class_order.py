"""A head whose classes stand in another order than the task's choices."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkd_llm import SinKDConfig, SinKDTrainer, evaluate_task
from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model
from sinkd_llm.models.kinds.class_heads import class_order
from sinkd_llm.teachers.cache.manifest import Manifest
from tests.support.caches import cache_model
from tests.support.rows import opinions
from tests.support.trainers import AccuracyTask


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
        first = evaluate_task(plain, tokenizer, AccuracyTask(), opinions(12))
        second = evaluate_task(other, tokenizer, AccuracyTask(), opinions(12))
    assert first.predictions == second.predictions
    assert first.log_likelihoods == second.log_likelihoods
    assert not caplog.records


def test_other_words_are_taken_in_order_with_a_warning(
    tiny_model: Callable[..., Any], marked_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = named(tiny_model("bert", "SequenceClassification"), "contradiction", "entailment")
    with caplog.at_level(logging.WARNING, logger="sinkd_llm"):
        evaluate_task(model, marked_tokenizer("bert"), AccuracyTask(), opinions(4))
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
            train_dataset=opinions(),
        )


def make_trainer(student: Any, teacher: Any, tokenizer: Any, folder: Path) -> SinKDTrainer:
    return SinKDTrainer(
        model=student,
        teacher_model=teacher,
        args=SinKDConfig(output_dir=str(folder / "run"), use_cpu=True, report_to=[], max_steps=2),
        processing_class=tokenizer,
        train_dataset=opinions(),
    )


def test_a_new_head_takes_the_teachers_order(tiny_model: Any, marked_tokenizer: Any, tmp_path: Path) -> None:
    tokenizer = marked_tokenizer("bert")
    teacher = named(tiny_model("bert", "SequenceClassification"), "POSITIVE", "NEGATIVE")
    tiny_model("bert", "SequenceClassification", seed=1).bert.save_pretrained(tmp_path / "encoder")
    trainer = make_trainer(str(tmp_path / "encoder"), teacher, tokenizer, tmp_path)
    assert trainer.model.config.id2label == {0: "positive", 1: "negative"}
    assert trainer.model.config.label2id == {"positive": 0, "negative": 1}
    answers = [" negative", " positive"]
    dataset = opinions()
    taught = [feature["answer_ids"] for feature in trainer.train_dataset]
    assert taught == [[1 - row["label"]] for row in dataset]
    assert dataset[0]["choices"] == answers
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert load_model(tmp_path / "saved").config.id2label == {0: "positive", 1: "negative"}
    without = make_trainer(str(tmp_path / "encoder"), None, tokenizer, tmp_path)
    assert without.model.config.id2label == {0: "negative", 1: "positive"}


def test_a_saved_head_keeps_the_order_of_its_weights(tiny_model: Any, tmp_path: Path) -> None:
    labels = ["negative", "positive"]
    named(tiny_model("bert", "SequenceClassification"), "Positive", "Negative").save_pretrained(tmp_path / "a")
    assert load_model(tmp_path / "a", labels=labels).config.id2label == {
        0: "Positive",
        1: "Negative",
    }
    named(tiny_model("bert", "SequenceClassification"), "LABEL_0", "LABEL_1").save_pretrained(tmp_path / "b")
    assert load_model(tmp_path / "b", labels=labels).config.id2label == {
        0: "negative",
        1: "positive",
    }


@pytest.mark.parametrize("words", [("LABEL_0", "LABEL_1"), ("bad", "good")])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_head_without_the_tasks_words_beside_a_teacher_in_another_order(
    tiny_model: Any, marked_tokenizer: Any, tmp_path: Path, words: tuple[str, str], by_name: bool
) -> None:
    teacher = named(tiny_model("bert", "SequenceClassification"), "positive", "negative")
    student: Any = named(tiny_model("bert", "SequenceClassification", seed=1), *words)
    if by_name:
        student.save_pretrained(tmp_path / "student")
        student = str(tmp_path / "student")
    with pytest.raises(InputError, match=r"another order.*without a classification head"):
        make_trainer(student, teacher, marked_tokenizer("bert"), tmp_path)


def cached(folder: Path, tiny_model: Any, tokenizer: Any, *words: str) -> str:
    """A cache of a classifier that calls its classes by these words."""
    named(tiny_model("bert", "SequenceClassification"), *words).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    cache_model(folder / "cache", folder / "teacher", opinions())
    return str(folder / "cache")


def cached_trainer(student: Any, cache: str, tokenizer: Any, folder: Path) -> SinKDTrainer:
    return SinKDTrainer(
        model=student,
        args=SinKDConfig(str(folder / "run"), use_cpu=True, report_to=[], max_steps=2, teacher_cache=cache),
        processing_class=tokenizer,
        train_dataset=opinions(),
    )


def test_a_new_head_takes_the_order_of_a_cached_teacher(
    tiny_model: Any, marked_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = marked_tokenizer("bert")
    cache = cached(tmp_path, tiny_model, tokenizer, "POSITIVE", "NEGATIVE")
    assert Manifest.load(Path(cache)).teacher.classes == ("positive", "negative")
    tiny_model("bert", "SequenceClassification", seed=1).bert.save_pretrained(tmp_path / "encoder")
    trainer = cached_trainer(str(tmp_path / "encoder"), cache, tokenizer, tmp_path)
    assert trainer.model.config.id2label == {0: "positive", 1: "negative"}
    assert [feature["answer_ids"] for feature in trainer.train_dataset] == [[1 - r["label"]] for r in opinions()]
    trainer.train()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("positive", "negative"), ("negative", "positive")),
        (("positive", "negative"), ("LABEL_0", "LABEL_1")),
        (("LABEL_0", "LABEL_1"), ("positive", "negative")),
    ],
    ids=["both-named", "student-unnamed", "teacher-unnamed"],
)
def test_a_cached_teacher_in_another_order_is_refused_as_a_live_one(
    theirs: tuple[str, str], ours: tuple[str, str], tiny_model: Any, marked_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = marked_tokenizer("bert")
    cache = cached(tmp_path, tiny_model, tokenizer, *theirs)
    student = named(tiny_model("bert", "SequenceClassification", seed=1), *ours)
    with pytest.raises(InputError, match="another order") as live:
        make_trainer(student, load_model(tmp_path / "teacher"), tokenizer, tmp_path)
    with pytest.raises(InputError) as from_cache:
        cached_trainer(student, cache, tokenizer, tmp_path)
    assert str(from_cache.value) == str(live.value)
    same = named(tiny_model("bert", "SequenceClassification", seed=1), *theirs)
    cached_trainer(same, cache, tokenizer, tmp_path).train()


def test_a_cache_that_does_not_say_its_classes_is_used_as_before_and_completed(
    tiny_model: Any, marked_tokenizer: Any, tmp_path: Path
) -> None:
    tokenizer = marked_tokenizer("bert")
    cache = cached(tmp_path, tiny_model, tokenizer, "positive", "negative")
    path = Path(cache) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["teacher"]["classes"]
    path.write_text(json.dumps(manifest))
    same = named(tiny_model("bert", "SequenceClassification", seed=1), "positive", "negative")
    cached_trainer(same, cache, tokenizer, tmp_path).train()
    other = named(tiny_model("bert", "SequenceClassification", seed=1), "negative", "positive")
    with pytest.raises(InputError, match="have another answer than when"):
        cached_trainer(other, cache, tokenizer, tmp_path)
    # The same command again finds it complete, and adds what it does not say.
    before = {file.name: file.stat().st_mtime_ns for file in Path(cache).glob("*.safetensors")}
    cache_model(Path(cache), tmp_path / "teacher", opinions())
    assert {file.name: file.stat().st_mtime_ns for file in Path(cache).glob("*.safetensors")} == before
    assert Manifest.load(Path(cache)).teacher.classes == ("positive", "negative")
    with pytest.raises(InputError, match="another order"):
        cached_trainer(other, cache, tokenizer, tmp_path)
