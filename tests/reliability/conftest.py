"""A warm process whose children run the command line, and a tiny teacher for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_causal_lm: Any, tiny_tokenizer: Any) -> Path:
    """A folder with a random model of four layers."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_causal_lm(layers=4).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def distill_argv(teacher: Path) -> Callable[..., list[str]]:
    """The flags of a short distillation into a folder; dropout, so that random states matter."""

    def argv(folder: Path, *more: str) -> list[str]:
        return [
            *(
                "distill",
                "--teacher_model_name_or_path",
                str(teacher),
                "--student_layers",
                "2",
                "--task",
                "quickstart",
            ),
            *("--max_train_samples", "64", "--max_eval_samples", "4", "--max_length", "64", "--use_peft"),
            *("--lora_r", "4", "--lora_dropout", "0.2", "--per_device_train_batch_size", "4", "--logging_steps", "1"),
            *("--learning_rate", "0.01", "--seed", "3", "--use_cpu", "true", "--report_to", "none"),
            *("--output_dir", str(folder), *more),
        ]

    return argv
