"""Shallower students: which layers, whose weights, and a configuration that rebuilds them."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model, save_student, select_layers
from sinkd_llm.models.kinds import decoder_input_ids
from sinkd_llm.models.layers import kept_layers
from sinkd_llm.models.origin import origin_of
from sinkd_llm.models.outputs import probe_outputs
from tests.support.models import DECODERS, same_weights, with_adapter

STACKS = {"gpt2": "transformer.h", "gpt_neo": "transformer.h", "opt": "model.decoder.layers"}
IDS = torch.arange(2, 14)[None]


def stack(model: Any, family: str) -> Any:
    return model.get_submodule(STACKS.get(family, f"{model.base_model_prefix}.layers"))


@pytest.mark.parametrize(
    ("number", "total", "kept"),
    [
        (10, 30, [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]),
        (6, 12, [0, 2, 4, 7, 9, 11]),
        (3, 4, [0, 2, 3]),
        (2, 12, [0, 11]),
        (1, 12, [0]),
        (5, 5, [0, 1, 2, 3, 4]),
        (1, 1, [0]),
    ],
)
def test_which_layers_are_kept(number: int, total: int, kept: list[int]) -> None:
    assert kept_layers(number, total) == kept


def test_kept_layers_are_spread_evenly_at_every_size() -> None:
    for total in range(2, 40):
        for number in range(2, total + 1):
            kept = kept_layers(number, total)
            assert len(kept) == number
            assert (kept[0], kept[-1]) == (0, total - 1)
            gaps = [b - a for a, b in itertools.pairwise(kept)]
            assert min(gaps) >= 1
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("number", [0, -1, 5])
def test_a_number_out_of_range_is_refused(tiny_causal_lm: Callable[..., Any], number: int) -> None:
    with pytest.raises(InputError, match=f"Cannot take {number} layers from a model that has 4"):
        select_layers(tiny_causal_lm(layers=4), number)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.int64(2), [0, 3]),
        (torch.tensor(2), [0, 3]),
        (np.array([0, 2]), [0, 2]),
        (torch.tensor([2]), [2]),
        ([np.int64(0), torch.tensor(2)], [0, 2]),
        (range(2), [0, 1]),
    ],
)
def test_whole_numbers_may_be_of_any_type(tiny_causal_lm: Callable[..., Any], given: Any, kept: list[int]) -> None:
    teacher = tiny_causal_lm(layers=4)
    layers = select_layers(teacher, given).model.layers
    assert len(layers) == len(kept)
    assert all(same_weights(ours, teacher.model.layers[of]) for ours, of in zip(layers, kept, strict=True))


@pytest.mark.parametrize(
    "given",
    [None, 2.0, "2", True, [0, True], [0, 2.0], [[0], [2]], np.array([True]), torch.tensor(2.0), {0, 2}],
)
def test_what_is_no_whole_number_is_refused(tiny_causal_lm: Callable[..., Any], given: Any) -> None:
    with pytest.raises(InputError, match="give a whole number"):
        select_layers(tiny_causal_lm(layers=4), given)


@pytest.mark.parametrize("given", ["smollm2-135m", None, Path("runs/teacher")])
def test_a_name_is_no_model(given: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which is no model in memory; give one, such as load_model"):
        select_layers(given, 2)
    with pytest.raises(InputError, match="which is no model in memory"):
        save_student(given, None, tmp_path)


def test_an_encoder_decoder_that_cannot_generate_is_refused(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("t5", layers=3)
    model.generation_config.decoder_start_token_id = model.generation_config.bos_token_id = None
    with pytest.raises(InputError, match=r"cannot generate \(.*decoder_start_token_id.*generation_config"):
        select_layers(model, 2)
    del model.config.decoder_start_token_id
    with pytest.raises(InputError, match="cannot say what its decoder reads first"):
        decoder_input_ids(model, IDS)


@pytest.mark.parametrize("family", DECODERS)
def test_a_student_is_an_ordinary_model(tiny_causal_lm: Callable[..., Any], family: str, tmp_path: Path) -> None:
    teacher = tiny_causal_lm(family, layers=4)
    before = copy.deepcopy(teacher)
    student = select_layers(teacher, 3)
    student.eval()

    assert len(stack(student, family)) == student.config.num_hidden_layers == 3
    for ours, theirs in zip(stack(student, family), [0, 2, 3], strict=True):
        assert same_weights(ours, stack(teacher, family)[theirs])

    # The key-value cache is indexed by layer: generation must agree with a forward without it.
    with torch.no_grad():
        expected = student(IDS, use_cache=False).logits
        past = student(IDS[:, :-1], use_cache=True).past_key_values
        assert len(past) == 3
        last = student(IDS[:, -1:], past_key_values=past).logits[:, -1]
    assert torch.allclose(last, expected[:, -1], atol=1e-5)

    student.save_pretrained(tmp_path)
    reloaded = load_model(tmp_path)
    assert same_weights(reloaded, student)
    assert torch.equal(reloaded(IDS).logits, student(IDS).logits)
    assert type(reloaded.config) is type(teacher.config)

    # The teacher is left as it was, and shares nothing.
    assert same_weights(teacher, before)
    assert teacher.config.to_dict() == before.config.to_dict()
    assert len(stack(teacher, family)) == 4
    ours = {parameter.data_ptr() for parameter in student.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in teacher.parameters()}
    student(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("family", DECODERS)
def test_all_layers_give_the_same_model(tiny_causal_lm: Callable[..., Any], family: str) -> None:
    teacher = tiny_causal_lm(family, layers=4)
    student = select_layers(teacher, 4)
    assert torch.equal(student(IDS).logits, teacher(IDS).logits)


def test_one_layer(tiny_causal_lm: Callable[..., Any]) -> None:
    student = select_layers(tiny_causal_lm(layers=4), 1)
    assert len(student.model.layers) == 1
    assert torch.isfinite(student(IDS).logits).all()


def test_lists_with_one_entry_a_layer_are_cut(tiny_causal_lm: Callable[..., Any]) -> None:
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(tiny_causal_lm("gemma3_text", layers=4).config)
    sliding, full = "sliding_attention", "full_attention"
    config.layer_types = [sliding, full, full, sliding]
    config.eos_token_id = [1, 2, 3, 4]  # as long as the layer list, and about something else
    student = select_layers(AutoModelForCausalLM.from_config(config), 3)
    assert student.config.layer_types == [sliding, full, sliding]
    assert student.config.eos_token_id == [1, 2, 3, 4]

    neo = select_layers(tiny_causal_lm("gpt_neo", layers=4), 3)
    assert neo.config.attention_layers == ["global", "global", "local"]
    assert neo.config.attention_types == [[["global", "global", "local"], 1]]


def test_layers_of_several_kinds_are_cut_if_the_configuration_can_say_so() -> None:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    size = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    }
    by_list = Qwen2MoeForCausalLM(Qwen2MoeConfig(**size, mlp_only_layers=[0, 2]))
    assert select_layers(by_list, 3).config.mlp_only_layers == [0, 1]
    by_step = Qwen2MoeForCausalLM(Qwen2MoeConfig(**size, decoder_sparse_step=2))
    with pytest.raises(InputError, match="not of one kind"):
        select_layers(by_step, 3)
    assert len(by_step.model.layers) == 4


def small(family: str, **changes: Any) -> Any:
    """A tiny random decoder of four layers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    size |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**size, **changes})).eval()


INDEXED: dict[str, dict[str, Any]] = {
    "diffllama": {},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_inner": 64, "scale_attn_by_inverse_layer_idx": True},
    "gemma2": {"head_dim": 8, "sliding_window": 4},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "smollm3": {"no_rope_layer_interval": 2},
    "cohere2": {"sliding_window": 4},
    "mixtral": {"num_local_experts": 2},
    "bloom": {"n_layer": 4, "n_head": 4},
    "falcon": {"alibi": True},
}


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("family", INDEXED)
def test_a_cut_student_computes_what_it_does_when_it_is_loaded(family: str, number: int, tmp_path: Path) -> None:
    teacher = small(family, **INDEXED[family])
    student = select_layers(teacher, number)
    student.save_pretrained(tmp_path)
    assert torch.equal(probe_outputs(load_model(tmp_path)), probe_outputs(student))
    if number == 4:
        assert torch.equal(probe_outputs(student), probe_outputs(teacher))


def test_what_a_layer_computes_from_its_index_follows_its_new_place() -> None:
    student = select_layers(small("diffllama"), 2)
    fresh = type(student)(student.config)
    constants = [layer.self_attn.lambda_init for layer in student.model.layers]
    assert constants == [layer.self_attn.lambda_init for layer in fresh.model.layers]


def test_a_quantised_cut_takes_the_constants_of_its_new_places(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    small("diffllama", hidden_size=64).save_pretrained(tmp_path / "teacher")
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    student = select_layers(load_model(tmp_path / "teacher", quantization_config=packed), 2)
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1]
    assert type(student.model.layers[1].self_attn.q_proj).__name__ == "Linear4bit"
    student.save_pretrained(tmp_path / "student")
    loaded = type(student).from_pretrained(tmp_path / "student")
    assert torch.allclose(probe_outputs(loaded), probe_outputs(student), atol=1e-5)


def test_hooks_that_place_a_model_on_devices_are_kept(tiny_causal_lm: Callable[..., Any]) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    teacher = tiny_causal_lm(layers=4)
    for layer in teacher.model.layers:
        add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    student = select_layers(teacher, 2)
    assert all(hasattr(layer, "_hf_hook") for layer in student.model.layers)
    assert torch.isfinite(student(IDS).logits).all()


def test_frozen_weights_and_the_mode_stay(tiny_causal_lm: Callable[..., Any]) -> None:
    teacher = tiny_causal_lm(layers=4).train()
    teacher.model.embed_tokens.requires_grad_(False)
    student = select_layers(teacher, 2)
    assert student.training
    assert student.model.layers[0].training
    frozen = {name for name, weight in student.named_parameters() if not weight.requires_grad}
    assert frozen == {"model.embed_tokens.weight"}


def test_weights_that_the_configuration_ties_but_that_differ_are_refused(tiny_causal_lm: Callable[..., Any]) -> None:
    teacher = tiny_causal_lm(layers=3, tie_word_embeddings=True)
    teacher.lm_head.weight = torch.nn.Parameter(teacher.lm_head.weight.detach() + 1)
    with pytest.raises(InputError, match=r"ties lm_head\.weight to another weight"):
        select_layers(teacher, 2)


def test_layers_that_do_not_run_without_the_others_are_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "zamba2",
        **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "pad_token_id": 0},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "adapter_rank": 4},
        **{"num_mem_blocks": 1, "mamba_d_state": 8, "mamba_ngroups": 1, "mamba_headdim": 8, "n_mamba_heads": 8},
        layers_block_type=["mamba", "hybrid"] * 2,
    )
    with pytest.raises(InputError, match="do not run"):
        select_layers(AutoModelForCausalLM.from_config(config), 3)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_fewer_encoder_than_decoder_layers_can_generate(
    tiny_model: Callable[..., Any], tmp_path: Path, family: str
) -> None:
    student = select_layers(tiny_model(family, layers=4), 1, 3)
    student.save_pretrained(tmp_path)
    for model in (student, load_model(tmp_path)):
        generated = model.generate(IDS, max_new_tokens=4, num_beams=1)
        assert torch.equal(generated, model.generate(IDS, max_new_tokens=4, num_beams=1, use_cache=False))


def test_tied_embeddings_stay_tied(tiny_causal_lm: Callable[..., Any]) -> None:
    student = select_layers(tiny_causal_lm("gpt2", layers=4), 2)
    assert student.lm_head.weight is student.transformer.wte.weight


def test_an_adapter_is_folded_into_the_student(tiny_causal_lm: Callable[..., Any]) -> None:
    teacher = with_adapter(tiny_causal_lm(layers=4))
    expected = select_layers(copy.deepcopy(teacher).merge_and_unload(), 3)
    student = select_layers(teacher, 3)
    assert same_weights(student, expected)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert len(teacher.get_base_model().model.layers) == 4
    assert hasattr(teacher.get_base_model().model.layers[3].self_attn.q_proj, "lora_A")


def test_a_student_of_a_frozen_teacher_can_be_trained(tiny_causal_lm: Callable[..., Any]) -> None:
    teacher = tiny_causal_lm(layers=4).requires_grad_(False)
    assert all(parameter.requires_grad for parameter in select_layers(teacher, 2).parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_quantised_model_can_be_cut(tiny_causal_lm: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny_causal_lm(layers=4).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=True)
    teacher = load_model(tmp_path, quantization_config=quantization)
    student = select_layers(teacher, 4)
    assert torch.equal(student(IDS).logits, teacher(IDS).logits)
    assert len(select_layers(teacher, 2).model.layers) == 2


def test_a_student_has_no_name(tiny_causal_lm: Callable[..., Any], tmp_path: Path) -> None:
    tiny_causal_lm(layers=4).save_pretrained(tmp_path)
    teacher = load_model(tmp_path)
    student = select_layers(teacher, 2)
    assert origin_of(student).source is None
    assert student.name_or_path == student.config.name_or_path == ""
    assert teacher.name_or_path == str(tmp_path)


def test_an_architecture_without_one_list_of_layers_is_refused() -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    # ALBERT runs the same layer again and again.
    config = AlbertConfig(vocab_size=40, embedding_size=8, hidden_size=8, intermediate_size=8, num_attention_heads=2)
    with pytest.raises(InputError, match="no single list of layers"):
        select_layers(AlbertForMaskedLM(config), 1)


@pytest.mark.real_model
def test_smollm2_of_ten_layers(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    student = select_layers(model, 10)
    assert student.num_parameters() == 63_713_088
    assert len(model.model.layers) == 30
    ids = tokenizer("The film was great.", return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(student(**ids).logits).all()
