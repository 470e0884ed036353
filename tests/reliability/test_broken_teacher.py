"""A teacher with broken weights stops the run and names the rows it failed on."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sinkd_llm.cli import main


def test_not_a_number_in_the_teacher_names_examples(teacher, distill_argv, tmp_path, capsys):
    broken = tmp_path / "teacher"
    shutil.copytree(teacher, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    argv = distill_argv(tmp_path / "run", "--max_steps", "2", "--save_strategy", "no")
    argv[argv.index(str(teacher))] = str(broken)
    # The student is made of layers 0 and 3, which are sound: it is the teacher that must be found.
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    line = captured.splitlines()[-1]
    assert line.startswith("sinkd: error: ")
    assert "The teacher's logits are NaN or infinite for quickstart-" in line
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_logits_too(teacher, distill_argv, tmp_path, capsys, value):
    broken = tmp_path / "teacher"
    shutil.copytree(teacher, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    argv = distill_argv(tmp_path / "run", "--max_steps", "2", "--save_strategy", "no")
    argv[argv.index(str(teacher))] = str(broken)
    argv[argv.index("--student_layers") : argv.index("--student_layers") + 2] = ["--model_name_or_path", str(teacher)]
    assert main(argv) == 2
    assert "The teacher's logits are NaN or infinite for quickstart-" in capsys.readouterr().err.splitlines()[-1]
