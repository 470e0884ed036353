"""What a launch is checked for before anything trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from sinkd_llm import SinKDConfig
from sinkd_llm.errors import InputError
from sinkd_llm.training.processes import check_fsdp


@pytest.mark.parametrize(
    ("processes", "available", "expected"), [("2", False, True), ("2", True, False), ("1", False, False)]
)
def test_on_a_machine_without_devices_a_launch_is_one_of_cpus(
    processes: str, available: bool, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Transformers would see no devices, and train the same thing in every process.
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: int(processes)))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    monkeypatch.setenv("WORLD_SIZE", processes)
    assert SinKDConfig(output_dir=str(tmp_path)).use_cpu is expected


@pytest.mark.parametrize(("version", "encoder_decoder", "message"), [(1, False, "FSDP1"), (2, True, "zero3.yaml")])
def test_what_fsdp_cannot_shard_is_refused(
    version: int, encoder_decoder: bool, message: str, tiny_causal_lm: Any, tiny_model: Any
) -> None:
    student = tiny_model("t5") if encoder_decoder else tiny_causal_lm()
    with pytest.raises(InputError, match=message):
        check_fsdp(SimpleNamespace(fsdp_version=version), student)
    check_fsdp(None, student)
    check_fsdp(SimpleNamespace(fsdp_version=2), tiny_causal_lm())


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # one that accelerate cannot use
    monkeypatch.setattr(SinKDConfig, "world_size", property(lambda self: 1))
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="started 2 processes, but"):
        SinKDConfig(output_dir=str(tmp_path))
