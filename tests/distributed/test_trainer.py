"""The same run in one process and in two: DDP, DeepSpeed's stages, FSDP2, over gloo on CPUs.

All cases run in one launch (`worker.py`), for DeepSpeed takes long to start. Their batches are half as large as those
of the run in one process that they are compared with.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.distributed.cases import POSITIVE, make_models, train_case
from tests.support.caches import cache_model
from tests.support.launch import ranks
from tests.support.rows import opinions

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]

HALF, QUARTER = {}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
SAVES = {"save_strategy": "steps", "save_steps": 2}
QUANTISED = {"nf4": {"teacher_load_in_4bit": True}, "int8": {"teacher_load_in_8bit": True}}
# One transport problem over the rows of both processes, and of both micro-batches.
SINKD = {"sinkhorn_weight": 0.8, "sinkhorn_temperature": 0.5}
WINDOW = {**SINKD, **QUARTER, "transport_accumulation": True}

# name -> (ds_configs file, the run in one process, what is changed)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ddp": ("cpu", "full", HALF),
    "zero1": ("zero1", "full", HALF),
    "zero1-sharded-teacher": ("zero1", "full", {"teacher_deepspeed": "shard"}),
    "zero2": ("zero2", "full", QUARTER),
    "zero2-nf4-teacher": ("zero2", "nf4", QUANTISED["nf4"]),
    "zero2-int8-teacher": ("zero2", "int8", QUANTISED["int8"]),
    "zero3-int8-teacher": ("zero3", "int8", QUANTISED["int8"]),
    "zero3": ("zero3", "full", HALF),
    "zero3-replicated-teacher": ("zero3", "full", {"teacher_deepspeed": "replicate"}),
    "zero3-offloaded-teacher": ("zero3", "full", {"teacher_deepspeed": "offload", **QUARTER}),
    "zero3-lora": ("zero3", "lora", QUARTER),
    "zero3-lora-of-teacher-layers": ("zero3", "cut", {"student_layers": 2}),
    "zero3-lora-checkpointing": ("zero3", "lora", {"gradient_checkpointing": True}),
    "zero3-t5": ("zero3", "t5", HALF),
    "zero3-saves": ("zero3", "full", SAVES),
    "zero3-resumed": ("zero3", "full", SAVES),
    "fsdp2": ("fsdp2", "full", QUARTER),
    "fsdp2-lora": ("fsdp2", "lora", HALF),
    "fsdp2-lora-of-teacher-layers": ("fsdp2", "cut", {"student_layers": 2}),
    "fsdp2-saves": ("fsdp2", "full", SAVES),
    "fsdp2-resumed": ("fsdp2", "full", SAVES),
    "zero2-sinkhorn": ("zero2", "sinkhorn", WINDOW),
    "zero3-sinkhorn": ("zero3", "sinkhorn", SINKD),
    "zero3-sinkhorn-window": ("zero3", "sinkhorn", WINDOW),
    "zero3-sinkhorn-replicated-teacher": ("zero3", "sinkhorn", {**SINKD, "teacher_deepspeed": "replicate"}),
    "fsdp2-sinkhorn": ("fsdp2", "sinkhorn", WINDOW),
    # The teacher is not there: each process reads the cached rows of its own batch.
    "ddp-cached": ("cpu", "sinkhorn", SINKD),
    "zero2-cached-window": ("zero2", "sinkhorn", WINDOW),
    "zero3-cached": ("zero3", "sinkhorn", SINKD),
    "zero3-lora-of-teacher-layers-cached": ("zero3", "cut", {"student_layers": 2}),
    "fsdp2-cached": ("fsdp2", "sinkhorn", WINDOW),
}
# Runs without a like in one process: other precision.
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "zero3-lora-bf16": (
        "zero3",
        {"bf16": True, "model_init_kwargs": {"dtype": "bfloat16"}, "teacher_model_init_kwargs": {"dtype": "bfloat16"}},
    ),
}


def described(name: str, models: Path, out: Path) -> dict[str, Any]:
    if name in CASES:
        config, reference, settings = CASES[name]
    else:
        (config, settings), reference = MORE[name], "lora" if "lora" in name else "full"
    case = {"name": name, "config": config, "models": str(models), "settings": settings}
    case["lora"] = reference in ("lora", "cut")
    case["family"] = "t5-" if reference == "t5" else ""
    case["cached"] = "cached" in name
    if name.endswith("-resumed"):
        case["resume"] = str(out / name.replace("resumed", "saves") / "checkpoint-2")
    return case


@pytest.fixture(scope="module")
def models(tmp_path_factory: Any, tiny_causal_lm: Any, tiny_tokenizer: Any, tiny_model: Any, marked_tokenizer: Any):
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, tiny_causal_lm, tiny_tokenizer, tiny_model, marked_tokenizer("t5"))
    cache_model(folder / "cache", folder / "teacher", opinions(40, positive=POSITIVE))
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory: Any, models: Path, zygote: Any) -> Path:
    """The folder with the results of every case, by one launch of two processes."""
    out = tmp_path_factory.mktemp("launched")
    (out / "cases.json").write_text(json.dumps([described(name, models, out) for name in (*CASES, *MORE)]))
    argv = [str(out / "cases.json"), str(out)]
    zygote(argv, out / "log.txt", module="tests.distributed.worker", env=ranks(), together=True, limit=1100)
    return out


def result(launched: Path, name: str, process: int = 0) -> dict[str, Any]:
    file = launched / f"{name}.{process}.json"
    if not file.exists():
        pytest.fail(f"process {process} did not get to {name}:\n{(launched / 'log.txt').read_text()[-4000:]}")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert "error" not in found, found["error"]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any, models: Path) -> Any:
    """Results of the runs in one process, and where their students are."""
    done: dict[str, tuple[dict[str, Any], Path]] = {}

    def run(reference: str) -> tuple[dict[str, Any], Path]:
        if reference not in done:
            settings: dict[str, Any] = {"per_device_train_batch_size": 8}
            settings |= QUANTISED.get(reference, SINKD if reference == "sinkhorn" else {})
            settings |= {"student_layers": 2} if reference == "cut" else {}
            case = {"models": str(models), "settings": settings, "lora": reference in ("lora", "cut")}
            case["family"] = "t5-" if reference == "t5" else ""
            out = tmp_path_factory.mktemp(reference)
            done[reference] = train_case(case, out), out / "final"
        return done[reference]

    return run


def load(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The student as a user loads it; an adapter folded in."""
    cls = AutoModelForSeq2SeqLM if "t5" in name else AutoModelForCausalLM
    model = cls.from_pretrained(folder)
    if (folder / "adapter_config.json").exists():
        from peft import PeftModel

        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        plain = cls.from_pretrained(folder / "base" if (folder / "base").exists() else base)
        model = PeftModel.from_pretrained(plain, folder).merge_and_unload()
    return model.state_dict()


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(name: str, launched: Path, alone: Any) -> None:
    (expected, student), found = alone(CASES[name][1]), result(launched, name)
    assert expected["processes"] == 1
    assert found["processes"] == 2
    steps = 1 if name.endswith("-resumed") else 3  # the log of a resumed run has the earlier records too
    for key in ("losses", "norms"):
        assert found[key][-steps:] == pytest.approx(expected[key][-steps:], rel=1e-4)
    assert abs(expected["losses"][0] - expected["losses"][-1]) > 1e-3, "nothing was trained"
    ours, theirs = load(launched / name / "final", name), load(student, name)
    assert ours.keys() == theirs.keys()
    for weight, value in theirs.items():
        torch.testing.assert_close(ours[weight], value, rtol=1e-4, atol=2e-5, msg=lambda m, w=weight: f"{w}: {m}")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_score_what_one_scores(name: str, launched: Path, alone: Any) -> None:
    expected, found = alone(CASES[name][1])[0], result(launched, name)
    cached = "cached" in name  # without a teacher its term is not in the loss, and there are no scores of it
    for when in ("before", "after"):
        if cached:
            assert found[when]["eval_acc"] == expected[when]["eval_acc"]
        else:
            assert found[when] == pytest.approx(expected[when], rel=1e-3)
    assert len(found["scores"]) == (1 if cached else 2)
    for ours, theirs in zip(found["scores"], expected["scores"], strict=not cached):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_the_processes_agree(name: str, launched: Path) -> None:
    first, second = result(launched, name, 0), result(launched, name, 1)
    for key in ("losses", "before", "after", "scores"):
        assert first[key] == second[key]


@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_the_teacher_lies_where_it_should(name: str, launched: Path) -> None:
    config = CASES[name][0] if name in CASES else MORE[name][0]
    found = result(launched, name)
    assert found["student_is_held_in_part"] == (config in ("zero3", "fsdp2"))
    if "cached" in name:
        assert "teacher_held" not in found
        return
    whole = "replicated" in name or "int8" in name  # packed weights cannot be partitioned
    sharded = "sharded" in name or "offloaded" in name or (config in ("zero3", "fsdp2") and not whole)
    assert found["teacher_is_frozen"]
    assert found["teacher_is_quantised"] == ("nf4" in name or "int8" in name)
    share = found["teacher_held"] / found["teacher_parameters"]
    if sharded:
        assert 0.5 <= share < 0.52  # padding to equal parts
    elif "nf4" not in name:
        assert share == 1


@pytest.mark.parametrize("name", MORE)
def test_it_trains(name: str, launched: Path) -> None:
    found = result(launched, name)
    assert all(torch.isfinite(torch.tensor(found["losses"] + found["norms"])))
    assert len(found["losses"]) == 3
    assert load(launched / name / "final", name)
