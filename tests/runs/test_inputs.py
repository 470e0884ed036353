"""Nothing is written where a command reads: whatever the place is called, and whichever of its inputs it is."""

import json
import os

import pytest
from trl import ModelConfig

from sinkd_llm.cli import main
from sinkd_llm.errors import InputError
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.inputs import Input, check_scores_file, refuse_inputs, run_inputs
from sinkd_llm.training.config import SinKDConfig
from tests.support.models import save
from tests.support.task_files import write_task


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_causal_lm, tiny_tokenizer):
    """A model, an adapter on it, a task with its rows, a recipe."""
    root = tmp_path_factory.mktemp("inputs")
    save(root / "model", tiny_causal_lm(layers=2), tiny_tokenizer)
    (root / "adapter").mkdir()
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(root / "model"),
        "r": 4,
        "target_modules": ["q_proj"],
    }
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (root / "adapter" / "adapter_model.safetensors").write_bytes((root / "model" / "model.safetensors").read_bytes())
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    files = {"data_files": {"train": "train.jsonl", "validation": "train.jsonl"}}
    write_task(root / "task" / "mine.yaml", rows, dataset_kwargs=files)
    (root / "recipes").mkdir()
    (root / "recipes" / "recipe.yaml").write_text("max_steps: 1\n")
    return root


def snapshot(root):
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in root.rglob("*") if file.is_file()}


PLACES = {
    "is": "model",
    "with a slash": "model/",
    "with dots": "task/../model",
    "lies in": "model/deeper/still",
    "holds": "",
    "the base of the adapter": "model",
    "the task": "task",
    "the recipe": "recipes",
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", PLACES)
def test_an_output_folder_that_is_read_is_refused(inputs, name, overwrite, capsys):
    before = snapshot(inputs)
    argv = ["distill", "--teacher_model_name_or_path", str(inputs / "model"), "--student_layers", "1"]
    argv += ["--task", str(inputs / "task" / "mine.yaml"), "--config", str(inputs / "recipes" / "recipe.yaml")]
    argv += ["--use_cpu", "true", "--output_dir", f"{inputs}/{PLACES[name]}"]
    if "adapter" in name:
        argv[2] = str(inputs / "adapter")
    assert main([*argv, *(["--overwrite_output_dir"] if overwrite else [])]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("sinkd: error: --output_dir ")
    assert "which this command reads" in line
    assert snapshot(inputs) == before


def test_links_and_spellings_are_the_same_place(inputs, tmp_path):
    model = Input("the teacher", inputs / "model")
    link = tmp_path / "link"
    link.symlink_to(inputs / "model")
    refused = [link, link / "new", f"{inputs}/./model", os.path.relpath(inputs / "model")]
    for place in refused:
        with pytest.raises(InputError, match="the teacher"):
            refuse_inputs("--output_dir", type(inputs)(place), [model])
    # The teacher is given through a link that lies in the output folder.
    with pytest.raises(InputError, match="holds"):
        refuse_inputs("--output_dir", tmp_path, [Input("the teacher", link)])
    hard = tmp_path / "hard"
    hard.mkdir()
    os.link(inputs / "model" / "model.safetensors", hard / "model.safetensors")
    with pytest.raises(InputError, match="holds a link to the teacher"):
        refuse_inputs("--output_dir", hard, [model])
    refuse_inputs("--output_dir", inputs / "beside", [model])
    refuse_inputs("--output_dir", tmp_path / "elsewhere", [model])


def test_everything_that_a_run_reads(inputs, tmp_path):
    task = TaskArguments(task=str(inputs / "task" / "mine.yaml"), data_dir=str(inputs / "task"))
    args = SinKDConfig(output_dir=str(tmp_path), use_cpu=True, teacher_model_name_or_path=str(inputs / "model"))
    found = run_inputs(
        task, args, ModelConfig(str(inputs / "adapter")), argv=["--config", str(inputs / "recipes" / "recipe.yaml")]
    )
    named = {(given.what, given.path.name) for given in found}
    assert named == {
        ("the model", "adapter"),
        ("the base of the model", "model"),
        ("the teacher", "model"),
        ("the task file", "mine.yaml"),
        ("data_dir", "task"),
        ("a data file", "train.jsonl"),
        ("the recipe", "recipe.yaml"),
    }


def test_scores_are_not_written_over_what_is_read(inputs, tmp_path):
    given = [
        Input("the model", inputs / "model"),
        Input("a data file", inputs / "task" / "train.jsonl"),
        Input("data_dir", inputs / "task"),
    ]
    link = tmp_path / "link.json"
    link.symlink_to(inputs / "task" / "train.jsonl")
    for name, message in (
        (inputs / "task" / "train.jsonl", "is a data file"),
        (link, "is a data file"),
        (inputs / "model" / "config.json", "is a file of the model"),
        (inputs / "model" / "adapter_config.json", "lies in the model"),
        (inputs / "model" / "new", "lies in the model"),
        (inputs / "model", "is a folder"),
        (inputs / "task" / "train.jsonl" / "x.json", "lies below .*, which is a file"),
        (tmp_path / ("x" * 300), "is no path that can be written to"),
    ):
        with pytest.raises(InputError, match=message):
            check_scores_file(name, given)
    earlier = inputs / "model" / "scores.json"
    check_scores_file(earlier, given)
    earlier.write_text('{"metrics": {}, "predictions": [], "num_examples": 0}')
    check_scores_file(earlier, given)
    earlier.write_text('{"something": "else"}')
    with pytest.raises(InputError, match="is a file of the model"):
        check_scores_file(earlier, given)
    earlier.unlink()
    check_scores_file(tmp_path / "new" / "scores.json", given)
    assert not (tmp_path / "new").exists()


def test_a_refused_command_has_deleted_nothing(inputs, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoint-3").mkdir(parents=True)
    (run / "checkpoint-3" / "model.safetensors").write_text("weights")
    (run / "results.json").write_text('{"command": "distill", "rows": []}')
    (run / "model.safetensors").write_text("weights")
    before = snapshot(run)
    common = ["--output_dir", str(run), "--overwrite_output_dir", "--use_cpu", "true", "--max_steps", "1"]
    model, task = str(inputs / "model"), str(inputs / "task" / "mine.yaml")
    for argv in (
        ["finetune", "--model_name_or_path", model, "--task", "sst3"],
        ["finetune", "--model_name_or_path", model, "--task", task, "--data_dir", str(tmp_path / "absent")],
        ["finetune", "--model_name_or_path", str(tmp_path / "absent"), "--task", task],
        ["finetune", "--model_name_or_path", model, "--task", task, "--use_peft", "--lora_target_modules", "nothing"],
        ["distill", "--teacher_model_name_or_path", model, "--student_layers", "9", "--task", task],
        ["distill", "--model_name_or_path", model, "--teacher_cache", str(tmp_path / "absent"), "--task", task],
    ):
        assert main([*argv, *common]) == 2, argv
        assert capsys.readouterr().err.splitlines()[-1].startswith("sinkd: error: ")
        assert snapshot(run) == before
        assert {path.name for path in run.iterdir()} == {"checkpoint-3", "results.json", "model.safetensors"}
        fresh = [str(tmp_path / "fresh" / "run") if word == str(run) else word for word in common]
        assert main([*argv, *fresh]) == 2
        assert not (tmp_path / "fresh").exists()
