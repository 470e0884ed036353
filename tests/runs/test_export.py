"""What `sinkd export` writes loads in plain code and answers as the student; what it refuses, it refuses unwritten."""

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkd_llm import load_model, load_student
from sinkd_llm.answering.calibration import Calibration
from sinkd_llm.answering.facts import ANSWERS_FILE, StudentFacts, kept_keys
from sinkd_llm.answering.routing import Route
from sinkd_llm.cli import export as command
from sinkd_llm.errors import InputError
from sinkd_llm.exporting import formats
from sinkd_llm.exporting.gguf_file import GGUF_FILE, TYPES
from sinkd_llm.exporting.place import EXPORT_FILE
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.integrity import check_manifest, manifest_sum
from sinkd_llm.locks import folder_lock
from sinkd_llm.models import save_student
from sinkd_llm.models.names import STUDENT_RECORD
from sinkd_llm.runs.export import run_export
from sinkd_llm.tasks import load_task
from tests.support import models
from tests.support.task_files import write_task

TEXTS = ["good film", "awful plot", "great", "the food was not good but the plot is great", "bad bad", "an awful film"]
ROUTE = Route(0.9, 0.98, "accuracy")
ROWS = [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path / "task" / "mine.yaml", ROWS)


def with_facts(folder: Path, task: Path) -> Path:
    sure = {"calibration": Calibration(2.0), "route": ROUTE, "model_sum": manifest_sum(folder)}
    StudentFacts(kept_keys(load_task(task)), Reading(64), **sure).write(folder)
    return folder


@pytest.fixture
def adapted(tmp_path: Path, task: Path) -> Path:
    """A LoRA student whose base has a name."""
    base = models.save(tmp_path / "base", models.decoder(layers=1), models.word_tokenizer())
    save_student(models.with_adapter(load_model(base)), models.word_tokenizer(), tmp_path / "student")
    return with_facts(tmp_path / "student", task)


def test_an_adapter_is_folded_into_its_base(
    adapted: Path, task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run_export(str(adapted), tmp_path / "out", "merged", task=str(task))
    folder = result.folder
    assert "of another model" not in caplog.text
    assert (result.comparison.rows, result.comparison.differing) == (6, 0)
    assert not (folder / "adapter_config.json").exists()
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Review: good film", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, load_model(adapted)(ids).logits)
    check_manifest(folder)
    student = load_student(folder)
    assert (student.facts.calibration, student.facts.route) == (Calibration(2.0), ROUTE)
    expected = [answer.probability for answer in load_student(adapted).predict(TEXTS)]
    assert [answer.probability for answer in student.predict(TEXTS)] == pytest.approx(expected, rel=1e-5)

    record = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    assert {file.name for file in folder.iterdir()} == {*record["files"]}
    everything = "".join(file.read_text(encoding="utf-8", errors="replace") for file in folder.iterdir())
    assert str(tmp_path) not in everything
    readme = (folder / "README.md").read_text(encoding="utf-8")
    run_readme(folder)
    assert "the temperature 2" in readme
    assert "`negative`, `positive`" in readme
    # Another format takes the place of this one, and its README too.
    run_export(str(adapted), folder, "adapter", task=str(task))
    assert not (folder / "model.safetensors").exists()
    assert "PEFT" in (folder / "README.md").read_text(encoding="utf-8")


def test_an_adapter_alone_is_loaded_by_peft(adapted: Path, task: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = run_export(str(adapted), tmp_path / "out", "adapter", task=str(task)).folder
    assert not list(folder.glob("model*.safetensors"))
    run_readme(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (adapted / name).read_bytes()
    model = PeftModel.from_pretrained(load_model(tmp_path / "base"), folder).eval()
    ids = torch.tensor([[5, 9, 40]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load_model(adapted, merge_adapter=False)(ids).logits)


def test_a_gguf_file_is_checked_as_it_is_read_back(adapted: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.txt"
    rows.write_text("\n".join(TEXTS), encoding="utf-8")
    result = run_export(str(adapted), tmp_path / "out", "gguf", rows=str(rows), check=4, numbers="f32")
    assert (result.comparison.rows, result.comparison.largest) == (4, 0.0)
    assert result.after.latency_ms is None
    assert {file.name for file in result.folder.iterdir()} > {GGUF_FILE, ANSWERS_FILE, "README.md"}
    facts = StudentFacts.load(result.folder)
    assert facts is not None
    assert facts.route == ROUTE
    # In fewer bits the probabilities are others, about which a route guarantees nothing.
    result = run_export(str(adapted), tmp_path / "out", "gguf", rows=str(rows), numbers="f16")
    facts = StudentFacts.load(result.folder)
    assert facts is not None
    assert (facts.calibration, facts.route) == (Calibration(2.0), None)
    assert "route is left out" in command.said(result)
    assert result.route_command is None  # llama.cpp runs it
    assert not re.findall("```python", (result.folder / "README.md").read_text(encoding="utf-8"))


def test_the_readme_of_an_onnx_export_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """With a row that has the task's own columns."""
    pytest.importorskip("onnxscript")
    texts, template = ["text", "other"], "{{text}} {{other}}"
    rows = [{**row, "other": "film"} for row in ROWS]
    task = write_task(tmp_path / "task" / "mine.yaml", rows, metadata={"texts": texts}, doc_to_text=template)
    model = models.encoder_or_encoder_decoder("distilbert", layers=1)
    student = with_facts(models.save(tmp_path / "student", model, models.marked_tokenizer("distilbert")), task)
    result = run_export(str(student), tmp_path / "out", "onnx", task=str(task))
    capsys.readouterr()
    run_readme(result.folder)
    (answer,) = capsys.readouterr().out.splitlines()
    assert answer.split()[0] in ("negative", "positive")


def run_readme(folder: Path) -> None:
    """Runs the code of an export's README in its folder."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    with contextlib.chdir(folder):
        for block in blocks:
            exec(compile(block, "README.md", "exec"), {"__name__": "shown"})


def test_a_route_that_is_left_out_is_chosen_again_for_the_same_thing(
    adapted: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    route = Route(0.9, 0.9, "agreement", {"level": 0.99})
    facts = StudentFacts.load(adapted)
    assert facts is not None
    dataclasses.replace(facts, route=route).write(adapted)
    inexact = dataclasses.replace(formats.FORMATS["merged"], exact=lambda exported: False)
    monkeypatch.setitem(formats.FORMATS, "merged", inexact)
    rows = tmp_path / "rows.txt"
    rows.write_text("\n".join(TEXTS), encoding="utf-8")
    out = tmp_path / "out"
    result = run_export(str(adapted), out, "merged", rows=str(rows))
    assert result.without_route == route
    words = ["sinkd", "route", str(out), "--task", "TASK.yaml", "--target", "0.9", "--of", "agreement"]
    words += ["--level", "0.99", "--teacher_model_name_or_path", "TEACHER"]
    assert shlex.split(str(result.route_command)) == words
    assert f"    {result.route_command}\n" in command.said(result)
    dataclasses.replace(facts, route=ROUTE).write(adapted)
    said = str(run_export(str(adapted), out, "merged", task=str(task)).route_command)
    assert shlex.split(said)[3:] == ["--task", str(task), "--target", "0.98", "--of", "accuracy"]


def test_an_export_that_was_killed_does_not_stand_in_the_way(adapted: Path, task: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / ".sinkd-saving-abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    run_export(str(adapted), tmp_path / "out", "adapter", task=str(task))
    assert not left.exists()


def test_two_exports_into_one_folder(adapted: Path, task: Path, tmp_path: Path) -> None:
    with folder_lock(tmp_path / "out", ""):
        refused("Another process is writing to", adapted, tmp_path / "out", "adapter", task=str(task))
    assert not list((tmp_path / "out").iterdir())


def test_a_changed_onnx_folder_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    task = write_task(tmp_path / "task" / "mine.yaml", ROWS, metadata={"texts": ["text"]})
    model = models.encoder_or_encoder_decoder("distilbert", layers=1)
    student = with_facts(models.save(tmp_path / "student", model, models.marked_tokenizer("distilbert")), task)
    folder = run_export(str(student), tmp_path / "out", "onnx", task=str(task)).folder
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("good", "goad"), encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json are not those"):
        load_student(folder)


def refused(match: str, student: Path, output: Path, format: str, **settings: Any) -> None:
    before = sorted(output.iterdir()) if output.is_dir() else output.exists()
    with pytest.raises(InputError, match=match):
        run_export(str(student), output, format, **settings)
    assert (sorted(output.iterdir()) if output.is_dir() else output.exists()) == before


def test_what_is_refused_leaves_nothing(
    adapted: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rows = tmp_path / "a" / "out", {"task": str(task)}
    refused("--check is 0", adapted, out, "merged", check=0, **rows)
    refused(r"is the student|lies in the student", adapted, adapted, "merged", **rows)
    refused(r"There are no evaluation rows .*--rows FILE", adapted, out, "merged")
    refused(r"--dtype bfloat16 goes with --format merged", adapted, out, "gguf", dtype="bfloat16", **rows)
    refused(r"a decoder-only model, which is not exported to ONNX", adapted, out, "onnx", **rows)
    refused(r"holds no adapter but a whole model", tmp_path / "base", out, "adapter", **rows)
    with pytest.raises(InputError, match="--output is empty"):
        run_export(str(adapted), " ", "merged", **rows)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    refused("is an ONNX export already", tmp_path / "onnx", out, "merged", **rows)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    refused(r"needs onnx, which is not installed.*sinkd-llm\[export\]", adapted, out, "onnx", **rows)
    assert not out.parent.exists()


def test_an_adapter_whose_base_lies_beside_it_or_is_gone(adapted: Path, task: Path, tmp_path: Path) -> None:
    cut = models.decoder(layers=1, seed=1)
    save_student(models.with_adapter(cut), models.word_tokenizer(), tmp_path / "cut")
    with_facts(tmp_path / "cut", task)
    refused("lies beside it .*--format merged", tmp_path / "cut", tmp_path / "out", "adapter", task=str(task))
    shutil.rmtree(tmp_path / "base")
    refused("needs its base model|There is no", adapted, tmp_path / "out", "merged", task=str(task))


def test_a_student_over_a_packed_base_is_exported_on_demand_alone(adapted: Path, task: Path, tmp_path: Path) -> None:
    record = json.loads((adapted / STUDENT_RECORD).read_text(encoding="utf-8"))
    (adapted / STUDENT_RECORD).write_text(json.dumps({**record, "base_quantisation": "int8"}), encoding="utf-8")
    (adapted / "sinkd_manifest.json").unlink()
    refused(r"over a base in int8.*--format adapter", adapted, tmp_path / "out", "merged", task=str(task))
    assert run_export(str(adapted), tmp_path / "out", "merged", task=str(task), allow_differences=True)
    kept = run_export(str(adapted), tmp_path / "adapter", "adapter", task=str(task)).folder
    assert json.loads((kept / STUDENT_RECORD).read_text(encoding="utf-8"))["base_quantisation"] == "int8"


def test_an_export_that_answers_otherwise_is_not_kept(
    adapted: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = formats.FORMATS["merged"]

    def wrong(exported: Any, folder: Path) -> None:
        with torch.no_grad():
            exported.student.model.lm_head.weight.neg_()
        right.write(exported, folder)

    changed = {**vars(right), "write": wrong}
    monkeypatch.setitem(formats.FORMATS, "merged", formats.Format(**changed))
    refused("rounding explains.*--allow_differences", adapted, tmp_path / "out", "merged", task=str(task))
    result = run_export(str(adapted), tmp_path / "out", "merged", task=str(task), allow_differences=True)
    assert result.comparison.beyond_rounding


def test_the_command_prints_a_table_of_few_columns(
    adapted: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--format", "merged", "--output", str(tmp_path / "out"), "--task", str(task), "--check", "4"]
    assert command.main([str(adapted), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines if str(tmp_path) not in line) <= 80
    assert [line.split()[0] for line in lines if " ms" in line] == ["student", "merged"]
    assert any("0 of 4 rows get another answer" in line for line in lines)


def test_the_command_knows_the_formats() -> None:
    assert list(command.FORMATS) == list(formats.FORMATS)
    assert list(command.NUMBERS) == list(TYPES)
