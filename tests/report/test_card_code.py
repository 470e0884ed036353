"""The code of a card without this package: it runs, and answers as the student does in this package."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkd_llm.answering.calibration import Calibration, Vector
from sinkd_llm.answering.load import load_student
from sinkd_llm.models.kinds.class_heads import class_order as order_of_heads
from sinkd_llm.report.card_code import class_order, rows_code
from sinkd_llm.report.model_card import render_card
from sinkd_llm.report.page import RunFiles
from sinkd_llm.runs.reporting import card_facts
from tests.support.results import ROWS, record
from tests.support.students import save_student

VECTOR = Calibration(1.0, Vector((0.5, 2.0), (0.7, -0.7)))


def card_of(folder: Path) -> str:
    facts = card_facts(folder)
    assert facts is not None
    return render_card("folder", RunFiles(replace(record(ROWS), all_settings={"max_length": 64})), facts)


def code_of(card: str) -> str:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Label and probability, in the last line: an import may print others."""
    return capsys.readouterr().out.splitlines()[-1].split()


def name_classes(folder: Path, *names: str) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "id2label": dict(enumerate(names))}))


@pytest.mark.parametrize(
    ("names", "metadata", "calibration"),
    [
        ((), {"texts": ["text"]}, None),
        (("negative", "positive"), {"texts": ["text"]}, Calibration(0.3)),
        (("Positive", "negative"), {"texts": ["text"]}, VECTOR),
        (("Positive", "negative"), {"texts": ["It says {{text}}"]}, None),
        (("other", "names"), {}, VECTOR),
    ],
    ids=["no names", "temperature", "another order and a vector", "a template", "a prompt"],
)
def test_it_gives_the_answer_and_the_probability_of_the_student(
    names: tuple[str, ...],
    metadata: dict[str, Any],
    calibration: Calibration | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_student(tmp_path / "s", "classifier", task={"metadata": metadata}, calibration=calibration)
    if names:
        name_classes(folder, *names)
    monkeypatch.chdir(folder)
    exec(code_of(card_of(folder)), {})
    label, probability = printed(capsys)
    (answer,) = load_student(folder).predict(["a text"])
    assert label.lower() == answer.choice
    assert float(probability) == pytest.approx(answer.probability, abs=1e-5)


def test_an_adapter_has_as_many_outputs_as_there_are_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification

    choices = {"doc_to_choice": ["a", "b", "c"], "doc_to_target": 0}
    folder = save_student(tmp_path / "s", "classifier", task=choices)
    base = tmp_path / "base"
    AutoModelForSequenceClassification.from_pretrained(folder).base_model.save_pretrained(base)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    config = AutoConfig.from_pretrained(base, num_labels=3)
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    adapted: Any = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    adapted.save_pretrained(folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code_of(card_of(folder)), names)
    with torch.no_grad():
        expected = adapted.eval()(**names["inputs"]).logits.softmax(-1)[0]
    label, probability = printed(capsys)
    assert label == "abc"[int(expected.argmax())]
    assert float(probability) == pytest.approx(float(expected.max()), abs=1e-5)


def test_a_number_has_no_probability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_student(tmp_path / "s", "classifier")
    name_classes(folder, "LABEL_0")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=True)
    model.save_pretrained(folder)
    monkeypatch.chdir(folder)
    card = card_of(folder)
    exec(code_of(card), {})
    assert len(printed(capsys)) == 1
    assert "predicts a number, and the answer is the nearest of these: negative, positive" in card
    assert "load_student" not in card  # which is for choices with probabilities


def test_the_card_says_what_a_classifier_reads_and_how_it_is_calibrated(tmp_path: Path) -> None:
    pair = {"metadata": {"texts": ["first", "{{second}}!"]}}
    cards = {
        kind: card_of(save_student(tmp_path / kind, kind, task=task, calibration=calibration))
        for kind, task, calibration in (("classifier", None, Calibration(0.3)), ("decoder", None, None))
    }
    cards["pair"] = card_of(save_student(tmp_path / "pair", "classifier", task=pair))
    assert "The classifier reads the column text alone, as it stands, and no prompt." in cards["classifier"]
    assert "Before the softmax logits are divided by the temperature" in cards["classifier"]
    assert "these templates make, as a pair of texts, of a row, and no prompt:" in cards["pair"]
    assert "```\n{{second}}!\n```" in cards["pair"]
    assert "## Prompt" in cards["decoder"]
    for kind in ("classifier", "pair"):
        assert "## Prompt" not in cards[kind]


@pytest.mark.parametrize(
    ("choices", "labels"),
    [
        (("b", "c", "a"), ("A", "b ", "c")),
        (("a", "b"), ("a", "b")),
        (("a", "b"), ("x", "y")),
        (("a", "b"), ("LABEL_0", "LABEL_1")),
        (("a", "b"), ()),
        (("a", "a"), ("a", "a")),
    ],
)
def test_the_order_of_classes_is_that_of_the_package(choices: tuple[str, ...], labels: tuple[str, ...]) -> None:
    words = tuple(label.strip().lower() for label in labels)
    in_order = tuple(range(len(choices)))
    assert tuple(class_order(choices, labels) or in_order) == order_of_heads(choices, words or None)


def test_a_row_of_the_code_has_choices_where_rows_bring_their_own() -> None:
    for columns, task in ((["options", "text"], {"doc_to_choice": "options"}), (["a", "b"], {"doc_to_choice": ["x"]})):
        (row,) = eval(rows_code(columns, task))
        assert list(row) == columns
        assert len({*map(str, row.values())}) == 2
    assert row["a"] == "a text of a"
    assert eval(rows_code(["options"], {"doc_to_choice": "options"})) == [
        {"options": ["one answer", "another answer"]}
    ]
    assert rows_code([], {}) == ""
