"""A teacher with broken weights is refused; one that overflows stops the run and names the rows it failed on."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sinkd_llm.cli import main


def test_not_a_number_among_the_weights_is_refused_by_name(teacher, distill_argv, tmp_path, capsys):
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
    assert "The weight model.layers.1.mlp.down_proj.weight of " in line
    assert str(broken) in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_logits_that_overflow_name_examples(teacher, distill_argv, tmp_path, capsys, value):
    broken = tmp_path / "teacher"
    shutil.copytree(teacher, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = value  # finite, unlike the sums over it
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    argv = distill_argv(tmp_path / "run", "--max_steps", "2", "--save_strategy", "no")
    argv[argv.index(str(teacher))] = str(broken)
    argv[argv.index("--student_layers") : argv.index("--student_layers") + 2] = ["--model_name_or_path", str(teacher)]
    assert main(argv) == 2
    assert "NaN or infinite for quickstart-" in capsys.readouterr().err.splitlines()[-1]
