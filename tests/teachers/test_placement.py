"""Where a teacher's weights lie, and what its DeepSpeed engine is told. Training with it: tests/distributed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.placement import place_teacher, resolve_placement, teacher_engine_config

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
STUDENT: dict[str, Any] = {
    "optimizer": {"type": "AdamW"},
    "scheduler": {"type": "WarmupLR"},
    "gradient_clipping": 1.0,
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 4,
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "cpu"},
        "stage3_prefetch_bucket_size": 1234,
        "stage3_param_persistence_threshold": "auto",
    },
}


def test_the_teachers_engine_has_the_students_precision_and_nothing_of_its_training() -> None:
    before = json.loads(json.dumps(STUDENT))
    config = teacher_engine_config(STUDENT, "shard")
    assert config == {
        "bf16": {"enabled": True},
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": 1234},
    }
    assert before == STUDENT


def test_an_offloaded_teacher_lies_in_cpu_memory_whatever_the_student_does() -> None:
    zero = teacher_engine_config(STUDENT, "offload")["zero_optimization"]
    assert zero["offload_param"] == {"device": "cpu", "pin_memory": True}
    own = {**STUDENT, "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "pin_memory": False}}}
    assert teacher_engine_config(own, "offload")["zero_optimization"]["offload_param"] == {
        "device": "cpu",
        "pin_memory": False,
    }
    assert "offload_param" not in teacher_engine_config(own, "shard")["zero_optimization"]


@pytest.mark.parametrize("file", sorted(DS_CONFIGS.glob("*.json")), ids=lambda f: f.stem)
@pytest.mark.parametrize("placement", ["shard", "offload"])
def test_nothing_is_left_open_for_the_trainer_to_fill_in(file: Path, placement: str) -> None:
    config = teacher_engine_config(json.loads(file.read_text()), placement)
    assert config["train_micro_batch_size_per_gpu"] == 1
    assert "auto" not in json.dumps(config["zero_optimization"])
    assert not {"train_batch_size", "gradient_accumulation_steps", "optimizer", "scheduler"} & config.keys()


@pytest.mark.parametrize(
    ("placement", "stage", "fsdp", "quantised", "expected"),
    [
        ("auto", None, False, False, "replicate"),
        ("auto", 1, False, False, "replicate"),
        ("auto", 2, False, False, "replicate"),
        ("auto", 3, False, False, "shard"),
        ("auto", 3, False, True, "replicate"),
        ("auto", None, True, False, "shard"),
        ("replicate", 3, False, False, "replicate"),
        ("shard", 1, False, False, "shard"),
        ("shard", None, True, False, "shard"),
        ("offload", 2, False, False, "offload"),
    ],
)
def test_the_placement_that_is_meant(
    placement: str, stage: int | None, fsdp: bool, quantised: bool, expected: str
) -> None:
    assert resolve_placement(placement, stage, fsdp, quantised) == expected


@pytest.mark.parametrize(
    ("placement", "stage", "fsdp", "quantised", "message"),
    [
        ("both", 3, False, False, "no teacher_deepspeed 'both'"),
        ("shard", 3, False, True, "4-bit or 8-bit teacher cannot be partitioned"),
        ("shard", None, False, False, "this launch uses no DeepSpeed; launch with"),
        ("offload", None, False, False, "this launch uses no DeepSpeed"),
        ("offload", None, True, False, "this is an FSDP launch"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(
    placement: str, stage: int | None, fsdp: bool, quantised: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        resolve_placement(placement, stage, fsdp, quantised)


def test_in_one_process_the_teacher_is_the_model_on_the_device() -> None:
    model = torch.nn.Linear(2, 2)
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(), device=torch.device("meta"))
    assert place_teacher(model, accelerator, "auto") is model
    assert model.weight.device.type == "meta"
