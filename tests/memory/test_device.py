"""From one step to a device: the ZeRO paper's own example, and what each set-up divides."""

from dataclasses import replace

import pytest

from sinkd_llm.memory import SETUPS, ModelSize, StepMemory, device_memory, model_size, optimizer_bytes
from sinkd_llm.models.adapters import add_adapter

NOTHING = StepMemory(0, 0, 0, 0, 0, 0)
STEP = StepMemory(activations=400, forward_peak=450, teacher=60, loss=40, peak=500, peak_with_gradients=520)
SMALL = ModelSize(parameters=100, trained=100, weights=400, trained_weights=400)
TEACHER = ModelSize(parameters=1000, trained=0, weights=4000, trained_weights=0)


@pytest.mark.parametrize(("setup", "gigabytes"), [("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.88)])
def test_the_example_of_the_zero_paper(setup, gigabytes):
    """Figure 1: 7.5 billion parameters in half precision, Adam, 64 devices; without DeepSpeed's working buffers."""
    psi = 7_500_000_000
    model = ModelSize(psi, psi, 2 * psi, 2 * psi)
    device = device_memory(setup, 64, model, None, NOTHING)
    gathered = 2e9 if setup == "zero3" else 0
    assert (device.total - gathered) / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_one_device_without_zero():
    device = device_memory("none", 1, SMALL, TEACHER, STEP)
    assert (device.weights, device.optimizer, device.teacher, device.step) == (400, 800, 4000, 500)
    # Gradients come as activations go, so the peak is less than the sum.
    assert device.total == 400 + 800 + 4000 + 520
    assert device.host == 0


def test_accumulation_keeps_the_gradients_while_the_next_micro_batch_runs():
    assert device_memory("none", 1, SMALL, None, STEP, accumulation=2).total == 400 + 800 + 500 + 400


def test_data_parallel_buckets_are_a_second_copy_of_the_gradients():
    one, two = (device_memory("none", n, SMALL, None, STEP).total for n in (1, 2))
    assert two - one == SMALL.trained_weights


def test_buckets_under_deepspeed():
    wide = replace(SMALL, width=3)
    with_buckets, without = (device_memory("zero2", 2, size, None, STEP).total for size in (wide, SMALL))
    assert with_buckets - without == 2 * 9 * 4


def test_no_set_up_takes_more_from_more_devices():
    big = ModelSize(10**10, 10**10, 2 * 10**10, 2 * 10**10)
    for setup in SETUPS[1:]:
        totals = [device_memory(setup, n, big, TEACHER, STEP).total for n in (2, 4, 8)]
        assert totals == sorted(totals, reverse=True)


def test_each_stage_takes_less_than_the_one_before_where_the_model_is_large():
    big = ModelSize(10**11, 10**11, 2 * 10**11, 2 * 10**11)
    totals = [device_memory(setup, 8, big, None, STEP).total for setup in SETUPS]
    assert totals == sorted(totals, reverse=True)


def test_offloading_moves_the_states_to_the_host():
    device = device_memory("zero3_offload", 4, SMALL, TEACHER, STEP, teacher_place="offload")
    assert device.optimizer == 0
    assert device.host == SMALL.weights + SMALL.trained_weights + 12 * SMALL.trained + TEACHER.weights


@pytest.mark.parametrize(
    ("place", "weights", "host"),
    [("replicate", 4000, 0), ("shard", 1000 + 4000, 0), ("offload", 4000, 4000), ("cache", 0, 0)],
)
def test_places_of_the_teacher(place, weights, host):
    device = device_memory("none", 4, SMALL, TEACHER, STEP, teacher_place=place)
    assert (device.teacher, device.host) == (weights, host)  # what is small enough is gathered whole


def test_a_cached_teacher_runs_no_forward():
    heavy = replace(STEP, teacher=300, peak=700, peak_with_gradients=700)
    device = device_memory("none", 1, SMALL, TEACHER, heavy, teacher_place="cache")
    assert device.step == 450


def test_what_fits_leaves_a_tenth():
    device = device_memory("none", 1, SMALL, None, STEP)
    assert device.fits(int(device.total / 0.9) + 1)
    assert not device.fits(int(device.total / 0.9) - 1)


def test_sizes_of_models(tiny_causal_lm):
    from peft import LoraConfig

    model = tiny_causal_lm()
    size = model_size(model)
    real = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in model.parameters()}
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert size.weights == sum(real.values()) + buffers
    assert size.trained == size.parameters
    assert model_size(model, bytes_each=2).weights - buffers == (size.weights - buffers) // 2

    adapted = model_size(add_adapter(tiny_causal_lm(), LoraConfig(r=2, target_modules="all-linear")))
    assert adapted.trained_weights == 4 * adapted.trained < adapted.weights


@pytest.mark.parametrize("quantisation", ["4bit", "8bit"])
def test_packed_weights_are_as_bitsandbytes_packs_them(tiny_causal_lm, tmp_path, quantisation):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    from sinkd_llm.models import load_model

    model = tiny_causal_lm(hidden=128)
    model.save_pretrained(tmp_path)
    config = (
        BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        if quantisation == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    packed = load_model(tmp_path, quantization_config=config)
    beside = ("quant_map", "quant_state", "weight_format")  # tables and notes of bitsandbytes, a few hundred bytes
    stored = {name: t for name, t in packed.state_dict().items() if not any(word in name for word in beside)}
    real = sum({t.data_ptr(): t.numel() * t.element_size() for t in stored.values()}.values())
    estimated = model_size(model, quantisation, bytes_each=4).weights
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert estimated - buffers == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize(
    ("name", "size"), [("adamw_torch_fused", 8), ("adamw_8bit", 2), ("adafactor", 0), ("sgd", 0), ("lion_32bit", 4)]
)
def test_optimizers(name, size):
    assert optimizer_bytes(name) == size
