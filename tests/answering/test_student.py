"""Students of every kind answer rows as evaluation ranks them; what rows may be; what a folder keeps."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from sinkd_llm import load_model, load_student
from sinkd_llm.answering.calibration import Calibration, Vector
from sinkd_llm.answering.facts import ANSWERS_FILE, HeldOut, StudentFacts, kept_keys
from sinkd_llm.answering.routing import Route
from sinkd_llm.answering.student import BATCHES_AHEAD
from sinkd_llm.errors import InputError
from sinkd_llm.evaluation import evaluate_task
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.integrity import manifest_sum, write_manifest
from sinkd_llm.models import save_student
from sinkd_llm.tasks import load_task
from tests.support import models
from tests.support.task_files import write_task

TEXTS = ["good film", "awful plot", "great", "the food was not good but the plot is great", "bad bad", "an awful film"]
ROWS = [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)]


def made(kind: str) -> tuple[Any, Any]:
    if kind == "decoder":
        return models.decoder(), models.word_tokenizer()
    family, head = {
        "classifier": ("bert", "SequenceClassification"),
        "masked": ("roberta", "MaskedLM"),
        "encoder-decoder": ("t5", ""),
    }[kind]
    return models.encoder_or_encoder_decoder(family, head), models.marked_tokenizer(family)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path / "task" / "mine.yaml", ROWS, metadata={"texts": ["text"]})


@pytest.fixture
def folder(tmp_path: Path, task: Path) -> Path:
    folder = models.save(tmp_path / "student", *made("classifier"))
    StudentFacts(kept_keys(load_task(task)), Reading(64)).write(folder)
    return folder


@pytest.mark.parametrize("kind", ["decoder", "classifier", "masked", "encoder-decoder"])
def test_answers_are_those_of_evaluation(kind: str, task: Path, tmp_path: Path) -> None:
    model, tokenizer = made(kind)
    folder = models.save(tmp_path / "student", model, tokenizer)
    loaded = load_task(task)
    score = evaluate_task(model, tokenizer, loaded, loaded.load("validation"), max_length=64)
    student = load_student(folder, task, reading=Reading(64))
    answers = list(student.predict(TEXTS, batch_size=4))
    assert [answer.index for answer in answers] == score.predictions
    assert [answer.id for answer in answers] == list(range(len(TEXTS)))
    for answer, log_likelihoods in zip(answers, score.log_likelihoods, strict=True):
        expected = np.exp(log_likelihoods) / np.exp(log_likelihoods).sum()
        assert list(answer.probabilities) == ["negative", "positive"]
        assert list(answer.probabilities.values()) == pytest.approx(expected.tolist(), rel=1e-4)
        assert answer.choice == ["negative", "positive"][answer.index or 0]
        assert answer.probability == max(answer.probabilities.values())
        assert answer.decision is None


def test_an_adapter_answers_too(task: Path, tmp_path: Path) -> None:
    base = models.save(tmp_path / "base", models.decoder(), models.word_tokenizer())
    adapted = models.with_adapter(load_model(base))
    save_student(adapted, models.word_tokenizer(), tmp_path / "student")
    loaded = load_task(task)
    score = evaluate_task(adapted, models.word_tokenizer(), loaded, loaded.load("validation"))
    answers = load_student(tmp_path / "student", task).predict(TEXTS)
    assert [answer.index for answer in answers] == score.predictions


def test_choices_of_each_row(tmp_path: Path) -> None:
    file = write_task(tmp_path / "mine.yaml", doc_to_choice="{{options}}")
    folder = models.save(tmp_path / "student", *made("decoder"))
    rows = [
        {"text": "good", "options": ["yes", "no", "film"]},
        {"text": "bad", "options": ["plot", "food"], "id": "b"},
    ]
    first, second = load_student(folder, file).predict(rows)
    assert list(first.probabilities) == ["yes", "no", "film"]
    assert sum(first.probabilities.values()) == pytest.approx(1)
    assert (second.id, list(second.probabilities)) == ("b", ["plot", "food"])


def test_written_answers(tmp_path: Path) -> None:
    changes = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": None}
    file = write_task(tmp_path / "mine.yaml", **changes, generation_kwargs={"max_gen_toks": 4})
    folder = models.save(tmp_path / "student", *made("decoder"))
    answers = list(load_student(folder, file).predict(TEXTS[:3], batch_size=2))
    assert all(isinstance(answer.choice, str) and answer.index is answer.probability is None for answer in answers)
    encoder = models.save(tmp_path / "encoder", *made("masked"))
    with pytest.raises(InputError, match="writes no text"):
        load_student(encoder, file)


def test_rows_are_read_as_they_are_answered(folder: Path) -> None:
    read = 0

    def rows() -> Iterator[str]:
        nonlocal read
        for text in TEXTS * 6:
            read += 1
            yield text

    answers = load_student(folder).predict(rows(), batch_size=2)
    assert read == 0
    next(answers)
    assert read == 2 * BATCHES_AHEAD
    assert sum(1 for _ in answers) == 6 * 6 - 1


def test_rows_before_one_that_cannot_be_read_are_answered(folder: Path) -> None:
    answers = load_student(folder).predict(["good film", "bad plot", 3], batch_size=1)
    assert [next(answers).id, next(answers).id] == [0, 1]
    with pytest.raises(InputError, match="row 2 is 3"):
        next(answers)


class OfPolars:
    """What is asked of a table of Polars, which is not among the packages that tests need."""

    columns = ("note", "text")

    def iter_rows(self) -> Iterator[tuple[str, str]]:
        return iter([("x", text) for text in TEXTS])


def test_tables_are_read_by_rows(folder: Path) -> None:
    import datasets
    import pyarrow

    student = load_student(folder)
    expected = [answer.probabilities for answer in student.predict(TEXTS)]
    columns = {"note": ["x"] * len(TEXTS), "text": TEXTS}
    frame = pandas.DataFrame(columns, index=range(7, 7 + len(TEXTS)))
    dataset = datasets.Dataset.from_dict(columns)
    formatted = [dataset.with_format(form) for form in ("pandas", "arrow", "numpy")]
    tables = (frame, frame["text"], OfPolars(), pyarrow.table(columns), dataset, dataset["text"], np.array(TEXTS))
    for rows in (*tables, *formatted):
        answers = list(student.predict(rows))
        assert [answer.id for answer in answers] == list(range(len(TEXTS)))
        assert [answer.probabilities for answer in answers] == expected
    named = student.predict(frame.assign(id=[f"n{i}" for i in range(len(TEXTS))]))
    assert next(named).id == "n0"
    assert list(student.predict(frame[:0])) == []


def test_order_does_not_depend_on_lengths(folder: Path) -> None:
    student = load_student(folder)
    together = list(student.predict(TEXTS, batch_size=3))
    for index, text in enumerate(TEXTS):
        (alone,) = student.predict([text])
        assert alone.probability == pytest.approx(together[index].probability, rel=1e-5)


def test_a_text_of_digits_is_answered(folder: Path) -> None:
    assert len(list(load_student(folder).predict(["5", "good film"]))) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("good film", "no list of rows"),
        ({"text": "good film"}, "for a single row give"),
        ({"text": TEXTS}, "in place of columns, one mapping of column names to values for each row"),
        (None, "rows is None"),
        (pandas.DataFrame([["good", "bad"]], columns=["text", "text"]), "2 columns of the name 'text'"),
        (pandas.DataFrame({"word": ["good"]}), "row 0"),
        (pandas.DataFrame({"text": ["good", None]}), "row 1"),
        (["good", 3], "row 1 is 3, neither a text nor a mapping"),
        (["good", "  "], "no text on row 1"),
        ([{"text": "good"}, {"txt": "bad"}], "row 1"),
        ([{"text": None}], "row 0"),
        ([{"text": ["good"]}], "is a list"),
        ([{"text": {"of": "good"}}], "is a list"),
    ],
)
def test_rows_that_are_none(folder: Path, rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(load_student(folder).predict(rows))


def test_batch_sizes_that_are_none(folder: Path) -> None:
    student = load_student(folder)
    for size in (0, -1, True, 2.5):
        with pytest.raises(InputError, match="batch_size"):
            student.predict(TEXTS, batch_size=size)  # type: ignore[arg-type]


def test_a_text_for_a_task_of_two_columns(tmp_path: Path) -> None:
    file = write_task(tmp_path / "mine.yaml", doc_to_text="{{a}} and {{b}}:")
    folder = models.save(tmp_path / "student", *made("decoder"))
    with pytest.raises(InputError, match="reads the columns 'a', 'b'"):
        list(load_student(folder, file).predict(["good"]))


def test_classes_and_choices_that_do_not_fit(tmp_path: Path) -> None:
    folder = models.save(tmp_path / "student", *made("classifier"))
    three = write_task(tmp_path / "three.yaml", doc_to_choice=["a", "b", "c"])
    with pytest.raises(InputError, match="3 answer choices"):
        list(load_student(folder, three).predict(TEXTS))
    number = models.encoder_or_encoder_decoder("bert", num_labels=1)
    other = models.save(tmp_path / "number", number, models.marked_tokenizer("bert"))
    with pytest.raises(InputError, match="predicts a number"):
        load_student(other, write_task(tmp_path / "mine.yaml"))


def test_the_folder_keeps_what_is_needed(folder: Path, task: Path) -> None:
    facts = StudentFacts.load(folder)
    assert facts is not None
    assert "data_files" not in json.dumps(facts.task)
    assert facts.load_task(folder).config["doc_to_text"] == load_task(task).config["doc_to_text"]
    (before,) = load_student(folder).predict(TEXTS[:1])
    held_out = HeldOut(0.1, None, False, None, 0)
    full = replace(facts, calibration=Calibration(4.0), route=Route(0.9, 0.98, "accuracy"), held_out=held_out)
    full.write(folder)
    assert StudentFacts.load(folder) == full
    (after,) = load_student(folder).predict(TEXTS[:1])
    assert before.probability is not None
    assert after.probability is not None
    sharper = np.asarray(list(after.probabilities.values())) ** 4
    assert (sharper / sharper.sum()).tolist() == pytest.approx(list(before.probabilities.values()), rel=1e-4)
    assert after.decision == ("answer" if after.probability >= 0.9 else "ask")
    with pytest.raises(InputError, match="other answers"):
        load_student(folder, write_task(task.parent / "other.yaml", doc_to_choice=["no", "yes"]))


def test_a_calibration_of_another_model_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_manifest(folder)
    facts = StudentFacts.load(folder)
    assert facts is not None
    replace(facts, calibration=Calibration(2.0), model_sum=manifest_sum(folder)).write(folder)
    kept = StudentFacts.load(folder)
    assert kept is not None
    assert kept.calibration == Calibration(2.0)
    list(load_student(folder).predict(TEXTS[:1]))  # the manifest does not speak of the file
    write_manifest(folder, {"another": "model"})
    later = StudentFacts.load(folder)
    assert later is not None
    assert later.calibration is None
    assert "of another model" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": Calibration(float("inf"))},
        {"calibration": Calibration(1.0, Vector((1.0, float("nan")), (0.0, 0.0)))},
        {"route": Route(float("nan"), 0.9, "accuracy")},
        {"route": Route(0.5, 98.0, "accuracy")},
    ],
)
def test_numbers_that_are_none_are_said_to_be(folder: Path, change: dict[str, Any]) -> None:
    facts = StudentFacts.load(folder)
    assert facts is not None
    content = {"format": 1, **asdict(replace(facts, **change))}
    (folder / ANSWERS_FILE).write_text(json.dumps(content))
    with pytest.raises(InputError, match="damaged"):
        load_student(folder)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', '{"format": 1, "task": 3, "reading": {}}']
)
def test_a_damaged_file_is_said_to_be(folder: Path, content: str) -> None:
    (folder / ANSWERS_FILE).write_text(content)
    with pytest.raises(InputError, match=r"damaged|format 2"):
        load_student(folder)


def test_a_folder_without_a_task_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Give a task \(--task, in Python task=\)"):
        load_student(models.save(tmp_path / "student", *made("classifier")))


@pytest.mark.parametrize("given", [None, "", "  ", 3, ["runs/student"]])
def test_what_is_no_student(given: Any, task: Path) -> None:
    for also in ({}, {"task": task}):
        with pytest.raises(InputError, match=r"The student is .*; give the folder of a run"):
            load_student(given, **also)


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no folder ~nobody-of-this-name/student"):
        load_student("~nobody-of-this-name/student")


def test_what_needs_no_model_imports_no_torch() -> None:
    rooms = "student", "facts", "given_rows", "calibration", "routing", "load", "new_rows", "answer_rows"
    code = f"""
import sys
for name in ("torch", "transformers", "trl"):
    sys.modules[name] = None
for name in {rooms}:
    __import__("sinkd_llm.answering." + name)
import sinkd_llm.cli.predict
sinkd_llm.cli.predict._parser()
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": "."})
