"""A comparison of real runs: one of them is killed, is noted, and goes on from its checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sinkd_llm.cli.compare import _parse
from sinkd_llm.report.predictions import EVALUATION, HELD_OUT, TEACHER, read_predictions
from sinkd_llm.report.results import RunRecord
from sinkd_llm.runs.comparing.compare import Request, run_compare
from sinkd_llm.runs.comparing.processes import Command
from tests.support.launch import Ended
from tests.support.models import decoder, save, word_tokenizer
from tests.support.task_files import write_task

ROWS = [{"text": f"a {'good' if i % 2 else 'bad'} film {i}", "label": i % 2} for i in range(40)]


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., Request]:
    teacher = save(tmp_path / "teacher", decoder(layers=3), word_tokenizer())
    recipe = {
        **{"teacher_model_name_or_path": str(teacher), "student_layers": 2, "use_cpu": True, "report_to": "none"},
        **{"task": str(write_task(tmp_path / "task" / "mine.yaml", ROWS)), "max_length": 64, "max_steps": 4},
        **{"per_device_train_batch_size": 4, "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 1},
        **{"logging_steps": 1, "check_saved": False, "signal": "choices", "save_total_limit": 1},
    }
    grid = {"variants": {"kl": {"sinkhorn_weight": 0.0}, "sinkd": {"sinkhorn_weight": 0.8}}, "seeds": [0]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    parse = _parse("recipe.yaml", "grid.yaml")
    return Request(recipe, tmp_path / "grid.yaml", str(tmp_path / "out"), parse, baselines=True)


def test_a_killed_run_goes_on_from_its_checkpoint(
    request_of: Request, zygote: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    started: list[list[str]] = []
    killed = {"at": "training_step", "step": 2}

    def start(command: Command, environment: dict[str, str]) -> Ended:
        started.append(command.argv)
        dies = killed if "sinkd-" in command.argv[2] and "identity" not in command.argv[2] else None
        (code,) = zygote(command.argv, command.log, die=dies)["codes"]
        return Ended(code)

    found = run_compare(request_of, start).comparison
    (failed,) = found.failed
    assert (failed.cell, failed.seed) == ("sinkd", 0)
    assert [words[0] for words in started] == ["cache", *["distill"] * 4]  # gold labels only, and the control
    assert list(Path(failed.folder).glob("checkpoint-*"))
    killed.clear()
    killed.update({"at": "training_step", "step": 99})
    started.clear()
    found = run_compare(request_of, start).comparison
    (words,) = started
    assert words[-2:] == ["--resume_from_checkpoint", "true"]
    assert not found.failed
    assert {row.name for row in found.rows} == {
        *("kl", "sinkd", "gold labels only", "identity control of sinkd", "most frequent label", "teacher"),
        "TF-IDF + logistic regression",
    }
    folder = Path(next(run for run in found.runs if run.cell == "sinkd").folder)
    assert RunRecord.read(folder).training["resumed_at"] == 2
    answers = read_predictions(folder)
    assert {*answers} == {EVALUATION, HELD_OUT, TEACHER}
    assert len(answers[EVALUATION].ids) == len(ROWS)
    assert answers[EVALUATION].metrics["acc"] == found.row("sinkd").scores[0]
    assert not list((tmp_path / "out" / "runs").rglob("*.safetensors"))  # the students are scored, and gone
    assert json.loads((tmp_path / "out" / "results.json").read_text())["baseline"] == "kl"
