"""`sinkd evaluate` on tasks that are not ranked, and what every mistake reads like."""

import json
from pathlib import Path

import pytest

from sinkd_llm.cli import main

ROWS = [
    {"instruction": "Name a film.", "input": "", "output": "The plot."},
    {"instruction": "Is this good?", "input": "awful food", "output": "No, it is bad."},
    {"instruction": "question", "input": "true or false", "output": "true"},
    {"instruction": "good", "input": "", "output": "bad"},
]


@pytest.fixture
def instructions(tmp_path: Path) -> Path:
    folder = tmp_path / "instructions"
    folder.mkdir()
    for name in ("train.jsonl", "val.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return folder


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_instructions_are_trained_generated_and_scored(
    family: str, instructions: Path, tiny_causal_lm, tiny_tokenizer, tiny_model, marked_tokenizer, tmp_path, capsys
) -> None:
    base, student = tmp_path / "base", tmp_path / "student"
    if family == "t5":
        tiny_model("t5", layers=4).save_pretrained(base)
        marked_tokenizer("t5").save_pretrained(base)
    else:
        tiny_causal_lm(layers=4, max_position_embeddings=512).save_pretrained(base)
        tiny_tokenizer.save_pretrained(base)
    task = ["--task", "instruct", "--data_dir", str(instructions)]
    argv = ["--teacher_model_name_or_path", str(base), "--student_layers", "2", "--output_dir", str(student), *task]
    argv += ["--max_steps", "2", "--use_cpu", "true", "--save_strategy", "no", "--eval_strategy", "epoch"]
    assert main(["distill", *argv]) == 0
    table = capsys.readouterr().out
    assert "rouge_l" in table
    assert "perplexity" in table
    assert "agreement" not in table
    rows = {row["name"]: row for row in json.loads((student / "results.json").read_text())["rows"]}
    assert set(rows) == {"teacher", "student before", "student after"}
    for row in rows.values():
        assert list(row["metrics"]) == ["rouge_l", "perplexity"]
        assert row["num_examples"] == len(ROWS)
    assert rows["student after"]["metrics"]["perplexity"] < rows["student before"]["metrics"]["perplexity"]

    scores = tmp_path / "scores.json"
    argv = ["--model_name_or_path", str(student), *task, "--batch_size", "3", "--output", str(scores)]
    assert main(["evaluate", *argv]) == 0
    assert "rouge_l" in capsys.readouterr().out
    written = json.loads(scores.read_text())
    assert written["metrics"] == pytest.approx(rows["student after"]["metrics"], rel=1e-4)
    assert len(written["predictions"]) == len(ROWS)
    assert written["predictions"][0]["id"].startswith("instruct-validation-0-")
    assert all(isinstance(entry["prediction"], str) for entry in written["predictions"])


def test_an_encoder_is_refused_in_one_line(instructions: Path, tiny_model, marked_tokenizer, tmp_path, capsys) -> None:
    base = tmp_path / "base"
    tiny_model("bert", "MaskedLM").save_pretrained(base)
    marked_tokenizer("bert").save_pretrained(base)
    assert (
        main(["evaluate", "--model_name_or_path", str(base), "--task", "instruct", "--data_dir", str(instructions)])
        == 2
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("sinkd: error: The answers of the task 'instruct' are generated, and BertForMaskedLM is")
