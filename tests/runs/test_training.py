"""What `finetune` and `distill` refuse before they load anything, and how to resume."""

import pytest
from trl import ModelConfig

from sinkd_llm.errors import InputError
from sinkd_llm.runs import TaskArguments, run_distill, run_finetune
from sinkd_llm.runs.training import resume_command
from sinkd_llm.training.config import SinKDConfig


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["--task", "sst2"], "sinkd distill --task sst2 --resume_from_checkpoint true"),
        (
            ["--resume_from_checkpoint", "a b", "--task", "sst2", "--resume-from-checkpoint=x"],
            "sinkd distill --task sst2 --resume_from_checkpoint true",
        ),
        (
            ["--overwrite_output_dir", "--data_dir", "my data", "--overwrite_output_dir", "true"],
            "sinkd distill --data_dir 'my data' --resume_from_checkpoint true",
        ),
        (["--task", "a", "--overwrite_output_dir"], "sinkd distill --task a --resume_from_checkpoint true"),
        (None, "the same call with resume_from_checkpoint='true'"),
    ],
)
def test_resume_command(argv, command):
    assert resume_command("distill", argv) == command


@pytest.mark.parametrize(
    ("run", "training", "model", "message"),
    [
        (run_finetune, {}, {}, "--model_name_or_path is missing"),
        (run_finetune, {"teacher_model_name_or_path": "x"}, {"model_name_or_path": "y"}, "takes no teacher"),
        (run_distill, {}, {"model_name_or_path": "y"}, "--teacher_model_name_or_path is missing"),
        (run_distill, {"teacher_model_name_or_path": "x"}, {}, "there is no student"),
        (
            run_distill,
            {"teacher_model_name_or_path": "x", "student_layers": 2},
            {"load_in_4bit": True, "use_peft": True},
            "--teacher_load_in_4bit",
        ),
        (
            run_distill,
            {"teacher_model_name_or_path": "x"},
            {"model_name_or_path": "y", "load_in_8bit": True},
            "add --use_peft",
        ),
    ],
)
def test_contradictions_are_refused_before_anything_is_loaded(tmp_path, run, training, model, message):
    config = SinKDConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **training)
    with pytest.raises(InputError, match=message):
        run(TaskArguments(task="quickstart"), config, ModelConfig(**model))
    assert not (tmp_path / "run").exists()
