"""Partitioned models, without a launch. With one: tests/distributed."""

import contextlib
import gc
from typing import Any

import pytest
import torch

from sinkd_llm.models.partitioning import gathered_weights, is_partitioned, on_device, whole_weights


def test_whole_weights_hides_stage_3_and_brings_it_back() -> None:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    settings = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert is_deepspeed_zero3_enabled()
    with contextlib.suppress(KeyError), whole_weights():
        assert not is_deepspeed_zero3_enabled()
        with whole_weights():
            pass
        assert not is_deepspeed_zero3_enabled()
        raise KeyError
    assert is_deepspeed_zero3_enabled()
    del settings
    gc.collect()
    with whole_weights():  # the settings of a run that is over
        pass
    assert not is_deepspeed_zero3_enabled()


def test_whole_weights_loads_in_every_process_of_an_fsdp_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    name = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    monkeypatch.delenv(name, raising=False)
    with whole_weights():
        assert name not in os.environ
    monkeypatch.setenv(name, "true")
    with whole_weights():
        assert os.environ[name] == "false"
    assert os.environ[name] == "true"


def test_an_ordinary_model_is_whole(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm()
    assert not is_partitioned(model)
    assert gathered_weights(model) is None


def test_a_sharded_model_is_gathered_under_its_names_and_tied_weights_once(tiny_causal_lm: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    model = tiny_causal_lm("gpt2")  # its head is its embedding
    model.transformer.h.requires_grad_(False)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        whole = {name: value.clone() for name, value in model.state_dict().items()}
        fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
        assert is_partitioned(model)
        gathered, trained = gathered_weights(model), gathered_weights(model, trainable_only=True)
    finally:
        torch.distributed.destroy_process_group()
    assert gathered is not None
    assert trained is not None
    assert gathered.keys() == whole.keys()
    assert all(torch.equal(gathered[name], whole[name]) for name in whole)
    assert gathered["lm_head.weight"] is gathered["transformer.wte.weight"]
    assert set(trained) == {name for name in whole if ".h." not in name}


def test_a_model_visits_a_device_and_comes_back() -> None:
    model = torch.nn.Linear(2, 2)
    with on_device(model, torch.device("cpu")):
        assert model.weight.device.type == "cpu"
    packed = torch.nn.Linear(2, 2)
    packed.quantization_method = "bitsandbytes"
    with on_device(packed, torch.device("meta")):
        assert packed.weight.device.type == "cpu"


def test_which_process_waits_for_its_weights(monkeypatch):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from sinkd_llm.models.partitioning import waits_for_weights

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not waits_for_weights()  # not launched
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        assert waits_for_weights()
        with whole_weights():
            assert not waits_for_weights()
        monkeypatch.setenv("LOCAL_RANK", "0")
        assert not waits_for_weights()
    finally:
        torch.distributed.destroy_process_group()
