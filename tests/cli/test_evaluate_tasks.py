"""`sinkd evaluate` of several tasks in one call, and what it writes of each row."""

import json
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm import load_task
from sinkd_llm.answering.calibration import Calibration
from sinkd_llm.answering.facts import ANSWERS_FILE, StudentFacts, kept_keys
from sinkd_llm.cli import main
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.report.evaluation import classes_table, tasks_table
from sinkd_llm.report.results import ClassTable, ResultRow
from sinkd_llm.runs.evaluate import calibration_of
from tests.support.models import save
from tests.support.task_files import write_task


@pytest.fixture(scope="module")
def world(tmp_path_factory: Any, tiny_causal_lm: Any, tiny_tokenizer: Any) -> Path:
    root = tmp_path_factory.mktemp("world")
    save(root / "model", tiny_causal_lm(layers=2), tiny_tokenizer)
    for name, count in (("first", 6), ("second", 4)):
        rows = [{"text": f"film {name} {i}", "label": i % 2} for i in range(count)]
        files = {"data_files": {"train": f"{name}.jsonl", "validation": f"{name}.jsonl"}}
        write_task(root / "tasks" / f"{name}.yaml", rows, dataset_kwargs=files, task=name)
    return root


def evaluate(world: Path, *more: str, task: str = "tasks") -> int:
    argv = ["evaluate", "--model_name_or_path", str(world / "model"), "--task", str(world / task)]
    return main([*argv, "--profile", "false", *more])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def widest(printed: str) -> int:
    """The longest line but those that name a file."""
    return max(len(line) for line in printed.splitlines() if "/" not in line or "examples/s" in line)


def test_a_folder_of_tasks_of_which_one_fails(world: Path, tmp_path: Path, capsys: Any) -> None:
    broken = world / "tasks" / "third.yaml"
    broken.write_text("include: nothing.yaml\n")
    try:
        assert evaluate(world, "--output", str(tmp_path / "scores.json")) == 2
    finally:
        broken.unlink()
    said = capsys.readouterr()
    assert f"1 of 3 tasks could not be scored. {broken}: " in said.err
    assert widest(said.out) <= 80
    content = json.loads((tmp_path / "scores.json").read_text())
    assert [result["task"] for result in content["results"]] == ["first", "second"]
    assert [result["num_examples"] for result in content["results"]] == [6, 4]
    assert list(content["failed"]) == [str(broken)]
    assert evaluate(world, "--output", str(tmp_path / "scores.json"), task="tasks/first.yaml") == 0  # replaced


def test_rows_of_a_student_and_its_teacher(world: Path, tmp_path: Path, capsys: Any) -> None:
    teacher, student = tmp_path / "teacher.jsonl", tmp_path / "student.jsonl"
    task = "tasks/first.yaml"
    assert evaluate(world, "--output", str(teacher), "--with_text", "true", task=task) == 0
    rows = lines(teacher)
    assert list(rows[0]) == ["task", "id", "text", "gold", "choice", "probabilities"]
    assert [row["gold"] for row in rows[:2]] == list(rows[0]["probabilities"])
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4) for row in rows)
    assert all(row["choice"] == max(row["probabilities"], key=row["probabilities"].get) for row in rows)
    capsys.readouterr()
    scores = tmp_path / "scores.json"
    assert evaluate(world, "--output", str(scores), "--teacher_file", str(teacher), task=task) == 0
    content = json.loads(scores.read_text())
    assert content["metrics"]["agreement"] == 1
    assert content["metrics"]["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert content["intervals"]["agreement"] == pytest.approx([0.6097, 1], abs=1e-4)  # Wilson, 6 of 6
    assert content["classes"]["support"] == [3, 3]
    printed = capsys.readouterr().out
    assert widest(printed) <= 80
    assert "agreement" in printed
    assert evaluate(world, "--output", str(student), "--teacher_file", str(teacher), task=task) == 0
    assert [row["teacher_choice"] for row in lines(student)] == [row["choice"] for row in rows]
    assert lines(student)[0]["teacher_probabilities"] == pytest.approx(rows[0]["probabilities"], abs=1e-4)
    # Its own earlier rows may be replaced, others may not.
    assert evaluate(world, "--output", str(student), task=task) == 0
    student.write_text('{"id": 1}\n')
    assert evaluate(world, "--output", str(student), task=task) == 2


def test_the_calibration_of_a_folder_is_applied_to_its_task(world: Path, tmp_path: Path, capsys: Any) -> None:
    task, plain, calibrated = world / "tasks" / "first.yaml", tmp_path / "plain.jsonl", tmp_path / "calibrated.jsonl"
    assert evaluate(world, "--output", str(plain), task="tasks/first.yaml") == 0
    facts = StudentFacts(kept_keys(load_task(task)), Reading(max_length=1024), Calibration(0.25))
    facts.write(world / "model")
    try:
        capsys.readouterr()
        assert evaluate(world, "--output", str(calibrated), task="tasks/first.yaml") == 0
        assert "first: probabilities are calibrated" in capsys.readouterr().out
        assert calibration_of(str(world / "model"), load_task("rte")) is None  # other answers
    finally:
        (world / "model" / ANSWERS_FILE).unlink()
    for before, after in zip(lines(plain), lines(calibrated), strict=True):
        powers = {choice: value**4 for choice, value in before["probabilities"].items()}
        expected = {choice: value / sum(powers.values()) for choice, value in powers.items()}
        assert after["probabilities"] == pytest.approx(expected, abs=1e-4)
        assert after["choice"] == before["choice"]


def test_what_does_not_go_together_is_refused(world: Path, tmp_path: Path, capsys: Any) -> None:
    assert evaluate(world, "--with_text", "true") == 2
    assert "--with_text is about the rows of an --output file" in capsys.readouterr().err
    assert evaluate(world, "--teacher_file", "answers.csv") == 2
    assert "--teacher_file holds answers to the rows of one task, but there are 2 tasks" in capsys.readouterr().err


def rendered(table: Any, width: int) -> list[str]:
    from rich.console import Console

    console = Console(width=width, file=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


@pytest.mark.parametrize("width", [60, 80])
def test_tasks_and_averages_fit(width: int) -> None:
    rows = {
        "mrpc": ResultRow("x", {"acc": 0.9, "f1": 0.8, "log_loss": 1.25, "ece": 0.1}, num_examples=408),
        "a_task_with_a_long_name_of_its_own": ResultRow("x", {"f1_macro": 0.7}, num_examples=40_430),
    }
    rows["mrpc"].intervals = {"acc": (0.87, 0.92), "f1": (0.75, 0.84)}
    metrics = {"mrpc": ["acc", "f1"], "a_task_with_a_long_name_of_its_own": ["f1_macro"]}
    text = rendered(tasks_table(rows, metrics, {"GLUE, 1 of 9 tasks": 0.85}, width), width)
    assert max(map(len, text)) <= width
    for word in ("0.900", "[0.870, 0.920]", "[0.750, 0.840]", "f1_macro", "40,430", "0.850"):
        assert any(word in line for line in text), word
    assert any("1.250" in line for line in text) is (width == 80)


def test_classes_name_what_they_are_taken_for() -> None:
    cells = [[0, 0, 2], [0, 1, 2], [1, 1, 1]]
    table = ClassTable(["a", "b", "c"], [1, 0.5, 0], [0.5, 1, 0], [0.6, 0.6, 0], [4, 1, 0], cells)
    text = rendered(classes_table(table), 60)
    assert any(line.split()[0] == "a" and line.rstrip().endswith("b (2)") for line in text[2:])
    assert [line.rstrip()[-1] for line in text[-2:]] == ["–", "–"]
