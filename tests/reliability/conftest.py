"""A warm process whose children run the command line, and a tiny teacher for them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_causal_lm: Any, tiny_tokenizer: Any) -> Path:
    """A folder with a random model of four layers."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_causal_lm(layers=4).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def without_adapter(argv: list[str]) -> list[str]:
    """The same flags for a student whose own weights are trained."""
    kept = [word for word in argv if word != "--use_peft"]
    for name in ("--lora_r", "--lora_dropout"):
        place = kept.index(name)
        del kept[place : place + 2]
    return kept


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


@pytest.fixture(scope="session")
def zygote() -> Iterator[Callable[..., dict[str, Any]]]:
    """Sends a request to tests/reliability/zygote.py and waits for its answer."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.reliability.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=REPOSITORY,
    )

    def ask(argv: list[str], log: Path, **request: Any) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"argv": argv, "log": str(log), **request}) + "\n")
        process.stdin.flush()
        return dict(json.loads(process.stdout.readline()))

    yield ask
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=30)
