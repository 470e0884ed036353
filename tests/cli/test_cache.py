"""`sinkd cache` and what follows, as a user types them, on a tiny random model."""

import json
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm.cli import main

ROWS = [
    *("--task", "quickstart", "--max_train_samples", "24", "--max_eval_samples", "8", "--max_length", "64"),
    *("--use_cpu", "true", "--seed", "1"),
]
TRAINING = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--logging_steps", "1", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_causal_lm: Any, tiny_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    # With small weights the layers change little, and a part of them chooses what all of them choose.
    tiny_causal_lm(layers=4, initializer_range=0.3).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_cache_then_distill_without_the_teacher_in_memory(teacher: Path, tmp_path: Path, capsys: Any) -> None:
    cache, out = tmp_path / "cache", tmp_path / "student"
    argv = ["--teacher_model_name_or_path", str(teacher), *ROWS]
    assert main(["cache", *argv, "--output", str(cache), "--top_k", "16"]) == 0
    printed = capsys.readouterr().out
    assert "24 examples: the 16 largest of" in printed
    assert "bytes a token" in printed
    assert "temperature 2: " in printed
    assert "would bring that to 0.05 or less" in printed
    assert "The teacher scores acc" in printed
    assert main(["cache", *argv, "--output", str(cache), "--top_k", "16"]) == 0
    assert "All examples were cached already." in capsys.readouterr().out

    without = [*argv, *TRAINING, "--student_layers", "2", "--output_dir", str(out)]
    run = [*without, "--teacher_cache", str(cache)]
    assert main(["distill", *run]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["teacher", "student before", "student after"]
    # What the teacher predicted is recorded with its score.
    assert main(["distill", *without, "--overwrite_output_dir"]) == 0
    beside = json.loads((out / "results.json").read_text())["rows"]
    assert results["rows"][1]["metrics"]["agreement"] == beside[1]["metrics"]["agreement"]
    assert 0 < beside[1]["metrics"]["agreement"] < 1
    assert results["rows"][2]["share_of_teacher"] is not None
    evaluating = ["--eval_strategy", "steps", "--eval_steps", "2", "--metric_for_best_model", "agreement"]
    assert main(["distill", *run, *evaluating, "--overwrite_output_dir"]) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["sinkhorn/cost_width"] > 0
    after = json.loads((out / "results.json").read_text())["rows"][2]
    assert [r["eval_agreement"] for r in records if "eval_acc" in r] == [after["metrics"]["agreement"]]

    # Some of the rows: the recorded score is not theirs, so it is left out; the recorded choices are.
    some = [*run, "--max_eval_samples", "4", "--overwrite_output_dir"]
    assert main(["distill", *some, *evaluating]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["student before", "student after"]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    after = results["rows"][1]["metrics"]
    assert [r["eval_agreement"] for r in records if "eval_acc" in r] == [after["agreement"]]

    def refusal(*more: str) -> str:
        capsys.readouterr()
        assert main(["distill", *run, *evaluating, *more, "--overwrite_output_dir"]) == 2
        return " ".join(capsys.readouterr().err.split())

    # Of other rows no choice is known.
    assert "does not know what the teacher chooses for all rows" in refusal("--max_eval_samples", "100")
    manifest = json.loads((cache / "manifest.json").read_text())
    del manifest["teacher_score"]["keys"]
    (cache / "manifest.json").write_text(json.dumps(manifest))
    assert "by an earlier version, which did not record" in refusal()
    assert main(["distill", *run, "--overwrite_output_dir"]) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "student before", "student after"]
    assert not any("agreement" in row["metrics"] for row in rows)
    manifest["teacher_score"] = None
    (cache / "manifest.json").write_text(json.dumps(manifest))
    assert "written without the teacher's score" in refusal()


def test_mistakes_are_one_line_and_exit_code_2(teacher: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["--teacher_model_name_or_path", str(teacher), *ROWS]
    for more, message in (
        ([], "--output is missing: the folder of the cache"),
        (["--output", str(tmp_path / "c"), "--top_k", "0"], "top_k is 0"),
        (["--output", str(teacher)], "but no teacher cache; give a new or empty folder"),
        (["--output", str(tmp_path / "c"), "--content", "everything"], "--content"),
        (["--output", str(tmp_path / "c"), "--vocabulary_size", "1000000"], "vocabulary_size is 1000000"),
    ):
        assert main(["cache", *argv, *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("sinkd: error: ")
        assert message in error
    run = [*ROWS, *TRAINING, "--teacher_cache", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]
    assert main(["distill", *run, "--model_name_or_path", str(teacher)]) == 2
    assert "is no teacher cache" in capsys.readouterr().err
    assert main(["distill", *run]) == 2
    assert "there is no student" in capsys.readouterr().err
    assert main(["finetune", *run, "--model_name_or_path", str(teacher)]) == 2
    assert "finetune takes no teacher" in capsys.readouterr().err
