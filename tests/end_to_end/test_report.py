"""What a run leaves to look at: a page with a transport plan, a model card with code that runs, and both again."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm.cli import main
from sinkd_llm.integrity import check_manifest
from sinkd_llm.report.transport_plan import read_plan

SECRET = "hf_" + "aB3" * 11
SHORT = [
    *("--task", "quickstart", "--max_train_samples", "16", "--max_eval_samples", "8", "--max_length", "64"),
    *("--per_device_train_batch_size", "4", "--logging_steps", "3", "--max_steps", "2", "--seed", "1"),
    *("--use_cpu", "true", "--save_strategy", "no", "--hub_token", SECRET),
]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any
) -> dict[str, Path]:
    """An adapter that learnt from labels, and a whole student that was taught."""
    folder = tmp_path_factory.mktemp("home") / "home" / "user"
    base, adapter, student = (folder / name for name in ("base", "adapter", "student"))
    tiny_causal_lm(layers=4).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    adapted = ["--model_name_or_path", str(base), "--output_dir", str(adapter), "--use_peft", *SHORT]
    assert main(["finetune", *adapted]) == 0
    taught = ["--teacher_model_name_or_path", str(base), "--output_dir", str(student), "--student_layers", "2"]
    assert main(["distill", *taught, *SHORT]) == 0
    return {"adapter": adapter, "student": student}


@pytest.mark.parametrize("name", ["adapter", "student"])
def test_the_code_of_a_card_runs(
    name: str, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (runs[name] / "README.md").read_text(encoding="utf-8")
    answering, loading = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(runs[name])
    exec(answering, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(0 < float(line.split()[-1]) <= 1 for line in lines)
    names: dict[str, Any] = {}
    exec(loading, names)
    ids = names["tokenizer"]("a text", return_tensors="pt")
    assert names["model"](**ids).logits.shape[:2] == ids["input_ids"].shape


@pytest.mark.parametrize("name", ["adapter", "student"])
def test_nothing_that_a_run_leaves_to_look_at_tells_a_secret_or_a_home(name: str, runs: dict[str, Path]) -> None:
    check_manifest(runs[name])
    for file in ("README.md", "results.json", "report.html", "metrics.jsonl"):
        text = (runs[name] / file).read_text(encoding="utf-8")
        for told in (SECRET, "hub_token", "/home/user", str(Path.home()) + "/"):
            assert told not in text, (file, told)


def test_the_last_plan_is_kept_with_what_its_rows_say(runs: dict[str, Path]) -> None:
    assert read_plan(runs["adapter"]) is None
    plan = read_plan(runs["student"])
    assert plan is not None
    assert (plan.term, plan.step, plan.same_rows) == ("sinkhorn", 2, True)  # the last step, though none is logged
    assert sum(map(sum, plan.plan)) == pytest.approx(1, abs=1e-3)
    assert all(row.text and row.gold and row.name for row in plan.students)
    assert "A transport plan" in (runs["student"] / "report.html").read_text(encoding="utf-8")


def test_results_say_how_many_rows_were_trained_on(runs: dict[str, Path]) -> None:
    training = json.loads((runs["student"] / "results.json").read_text())["training"]
    assert (training["rows"], training["labelled_rows"]) == (16, 16)


def test_pages_are_made_again_and_a_card_that_somebody_changed_stays(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = runs["student"]
    page, card = (folder / "report.html").read_bytes(), (folder / "README.md").read_text()
    for file in ("report.html", "README.md"):
        (folder / file).unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == page
    assert (folder / "README.md").read_text() == card
    assert "the model card is" in capsys.readouterr().out
    (folder / "README.md").write_text(card.replace("distilled", "DISTILLED"))
    assert main(["report", str(folder)]) == 0
    assert "DISTILLED" in (folder / "README.md").read_text()
    assert "model card" not in capsys.readouterr().out
    (folder / "README.md").write_text(card)


def test_several_runs_on_one_page(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs.values())]) == 0
    text = (tmp_path / "runs.html").read_text(encoding="utf-8")
    for part in ("<h1>2 runs</h1>", ">adapter<", ">student<", "In which settings they differ", "student_layers"):
        assert part in text
    assert main(["report", *map(str, runs.values())]) == 0  # its own page is written over
    (tmp_path / "notes.html").write_text("mine")
    for argv, said in (
        ([*map(str, runs.values()), "--output", "notes.html"], "is there already and no page of this command"),
        ([*map(str, runs.values()), "--output", "notes.txt"], "give a file that ends in .html"),
        ([str(runs["student"])] * 2, "a folder is given twice"),
        ([str(tmp_path)], "holds no readable results.json"),
        ([str(tmp_path / "none")], "is no folder"),
        ([], "give the folder of a finished run"),
        ([str(runs["student"]), "--output", "x.html"], "--output is for the page of several runs"),
    ):
        assert main(["report", *argv]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "notes.html").read_text() == "mine"
