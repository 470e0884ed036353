"""Adapters: what cannot be saved as it was trained is refused before training, the rest loads to the same outputs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model, save_student, select_layers
from sinkd_llm.models.adapter_facts import base_weights
from sinkd_llm.models.adapters import add_adapter
from sinkd_llm.models.origin import set_origin
from sinkd_llm.models.outputs import difference, probe_outputs
from tests.support.models import with_adapter

Q_AND_V = ["q_proj", "v_proj"]
CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(target_modules="all-linear"),
    "gaussian": lambda: LoraConfig(target_modules=Q_AND_V, init_lora_weights="gaussian"),
    "orthogonal": lambda: LoraConfig(target_modules=Q_AND_V, init_lora_weights="orthogonal"),
    "pissa": lambda: LoraConfig(target_modules=Q_AND_V, init_lora_weights="pissa"),
    "olora": lambda: LoraConfig(target_modules=Q_AND_V, init_lora_weights="olora"),
    "rslora": lambda: LoraConfig(target_modules=Q_AND_V, use_rslora=True),
    "dora": lambda: LoraConfig(target_modules=Q_AND_V, use_dora=True),
    "bias": lambda: LoraConfig(target_modules=Q_AND_V, bias="all"),
    "embeddings": lambda: LoraConfig(target_modules=["embed_tokens", "q_proj"]),
    "tokens": lambda: LoraConfig(target_modules=Q_AND_V, trainable_token_indices=[5, 6]),
    "parameters": lambda: LoraConfig(target_modules=[], target_parameters=["q_proj.weight"]),
    "modules to save": lambda: LoraConfig(target_modules=Q_AND_V, modules_to_save=["lm_head", "embed_tokens"]),
    "vera": lambda: peft.VeraConfig(target_modules=Q_AND_V),
    "ia3": lambda: peft.IA3Config(target_modules=Q_AND_V, feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(target_modules=Q_AND_V),
    "lokr": lambda: peft.LoKrConfig(target_modules=Q_AND_V),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=Q_AND_V, total_step=100),
    "oft": lambda: peft.OFTConfig(target_modules=Q_AND_V),
    "boft": lambda: peft.BOFTConfig(target_modules=Q_AND_V, boft_block_size=4),
    "hra": lambda: peft.HRAConfig(target_modules=Q_AND_V),
    "ln": lambda: peft.LNTuningConfig(),
    "vblora": lambda: peft.VBLoRAConfig(target_modules=Q_AND_V, vector_length=8, num_vectors=16),
    "randlora": lambda: peft.RandLoraConfig(target_modules=Q_AND_V),
    "trainable tokens": lambda: peft.TrainableTokensConfig(token_indices=[3, 4]),
}


def trained(adapted: Any) -> Any:
    """The adapter after what might be its training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapted


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_saved_adapter_computes_what_it_did_in_memory(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, name: str
) -> None:
    student = trained(add_adapter(select_layers(tiny_causal_lm(layers=3), 2), CONFIGURATIONS[name]()))
    expected = probe_outputs(student)
    save_student(student, tiny_tokenizer, tmp_path, check=False)
    for loaded in (
        AutoModelForCausalLM.from_pretrained(tmp_path),
        load_model(tmp_path),
        load_model(tmp_path, merge_adapter=False),
    ):
        assert difference(expected, probe_outputs(loaded)) < 1e-4


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_base_takes_it_along(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, start: str
) -> None:
    tiny_causal_lm().save_pretrained(tmp_path / "base-model")
    config = LoraConfig(target_modules=Q_AND_V, init_lora_weights=start)
    student = trained(add_adapter(load_model(tmp_path / "base-model"), config))
    save_student(student, tiny_tokenizer, tmp_path / "student")
    assert (tmp_path / "student" / "base" / "model.safetensors").is_file()
    assert difference(probe_outputs(student), probe_outputs(load_model(tmp_path / "student"))) < 1e-4
    assert config.init_lora_weights == start


@pytest.mark.parametrize("name", ["dora", "vera"])
def test_what_transformers_cannot_load_beside_a_base_is_saved_folded_in(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path, name: str
) -> None:
    student = trained(add_adapter(tiny_causal_lm(), CONFIGURATIONS[name]()))
    save_student(student, tiny_tokenizer, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert hasattr(student, "peft_config")  # the one in memory stays as it is


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_tied_embeddings_is_refused(tiny_causal_lm: Callable[..., Any], target: str) -> None:
    student = tiny_causal_lm(tie_word_embeddings=True)
    with pytest.raises(InputError, match=f"{target} shares its weight with .* --lora_target_modules"):
        add_adapter(student, LoraConfig(target_modules=[target, "q_proj"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["nothing"]}, "--lora_target_modules"),
        ({"lora_bias": True}, "cannot be folded into .*lora_bias"),
        ({"init_lora_weights": "eva"}, "initialize_lora_eva_weights"),
        ({"init_lora_weights": "corda"}, "preprocess_corda"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
        ({"r": 0}, r"--lora_r \(r of"),
        ({"target_modules": ["q_proj", "v_porj"]}, r"no module 'v_porj', which --lora_target_modules .* 'v_proj'"),
        ({"modules_to_save": ["lm_haed"]}, r"no module 'lm_haed', which --lora_modules_to_save .* 'lm_head'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tiny_causal_lm: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        add_adapter(tiny_causal_lm(), LoraConfig(**{"target_modules": Q_AND_V, **changes}))


def test_what_is_no_configuration_is_refused(tiny_causal_lm: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="`peft_config` is a dict"):
        add_adapter(tiny_causal_lm(), {"r": 8})


def test_methods_that_are_no_adapter_of_layers_are_refused(tiny_causal_lm: Callable[..., Any]) -> None:
    for config in (peft.PolyConfig(target_modules=Q_AND_V), peft.XLoraConfig(), peft.AdaptionPromptConfig()):
        with pytest.raises(InputError, match=r"cannot be folded in|does not fit"):
            add_adapter(tiny_causal_lm(), config)


def test_a_refusal_of_peft_leaves_the_student_as_it_was(tiny_causal_lm: Callable[..., Any]) -> None:
    student = tiny_causal_lm()
    names = [name for name, _ in student.named_modules()]
    with pytest.raises(InputError):
        add_adapter(
            student, LoraConfig(target_modules=["q_proj"], init_lora_weights="gaussian", rank_pattern={".*": 0})
        )
    assert [name for name, _ in student.named_modules()] == names


@pytest.mark.parametrize("new_head", [True, False])
def test_a_head_that_is_trained_whole_takes_no_adapter(
    tiny_model: Callable[..., Any], marked_tokenizer: Any, tmp_path: Path, new_head: bool
) -> None:
    student = tiny_model("distilbert")
    if new_head:
        set_origin(student, None, ("classifier", "pre_classifier"))
    student = trained(add_adapter(student, LoraConfig(target_modules="all-linear", lora_dropout=0.05)))
    student.train()(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert student.get_base_model().pre_classifier.modules_to_save["default"].weight.grad is not None
    save_student(student, marked_tokenizer("distilbert"), tmp_path)


def test_mamba_takes_the_default_adapter(tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    student = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8))
    adapted = add_adapter(student, LoraConfig(target_modules="all-linear", lora_dropout=0.05))
    targets = {name.rsplit(".", 1)[-1] for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert targets == {"in_proj", "x_proj", "dt_proj"}
    assert "leaves out_proj and conv1d out" in caplog.text


def test_experts_in_one_tensor_take_the_default_adapter(
    tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(
        **size,
        vocab_size=len(tiny_tokenizer),
        num_key_value_heads=2,
        num_local_experts=2,
        bos_token_id=None,
        eos_token_id=1,
    )
    student = add_adapter(MixtralForCausalLM(config), LoraConfig(target_modules="all-linear", lora_dropout=0.05, r=4))
    assert "--lora_dropout 0.05 is set to 0" in caplog.text
    save_student(trained(student), tiny_tokenizer, tmp_path)


def test_a_peft_model_of_several_adapters_is_refused(tiny_causal_lm: Callable[..., Any]) -> None:
    student = with_adapter(tiny_causal_lm())
    student.add_adapter("second", LoraConfig(target_modules=Q_AND_V, task_type="CAUSAL_LM"))
    with pytest.raises(InputError, match="adapters default, second"):
        add_adapter(student, None)
    mixed = get_peft_model(tiny_causal_lm(), LoraConfig(target_modules=Q_AND_V), mixed=True)
    with pytest.raises(InputError, match="PeftMixedModel"):
        add_adapter(mixed, None)


def test_a_peft_model_that_is_merged_or_switched_off_is_refused(tiny_causal_lm: Callable[..., Any]) -> None:
    student = with_adapter(tiny_causal_lm())
    student.merge_adapter()
    with pytest.raises(InputError, match="unmerge_adapter"):
        add_adapter(student, None)
    student.unmerge_adapter()
    assert add_adapter(student, None) is student
    student.base_model.disable_adapter_layers()
    with pytest.raises(InputError, match="switched off"):
        add_adapter(student, None)


def test_an_adapter_that_transformers_put_on_is_refused(tiny_causal_lm: Callable[..., Any]) -> None:
    student = tiny_causal_lm()
    student.add_adapter(LoraConfig(target_modules=Q_AND_V))
    for config in (None, LoraConfig(target_modules=Q_AND_V)):
        with pytest.raises(InputError, match="merge_adapter=False"):
            add_adapter(student, config)


def test_an_adapter_of_another_name_is_saved_as_the_only_one(
    tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    student = get_peft_model(tiny_causal_lm(), LoraConfig(target_modules=Q_AND_V), adapter_name="mine")
    save_student(trained(add_adapter(student, None)), tiny_tokenizer, tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    assert difference(probe_outputs(student), probe_outputs(load_model(tmp_path))) < 1e-4


def test_dora_over_a_quantised_base_is_refused(tiny_causal_lm: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny_causal_lm(hidden=64).save_pretrained(tmp_path)
    base = load_model(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(InputError, match="DoRA is saved folded into its base"):
        add_adapter(base, LoraConfig(target_modules=Q_AND_V, use_dora=True))


@pytest.mark.parametrize("name", ["lora", "embeddings", "tokens", "modules to save", "vera", "ln", "parameters"])
def test_the_weights_of_the_base_are_found_below_every_adapter(tiny_causal_lm: Callable[..., Any], name: str) -> None:
    base = tiny_causal_lm()
    expected = copy.deepcopy(base.state_dict())
    found = base_weights(add_adapter(base, CONFIGURATIONS[name]()))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_cut_keeps_an_adapter_that_was_loaded_with_peft(tiny_causal_lm: Callable[..., Any], tmp_path: Path) -> None:
    with_adapter(tiny_causal_lm(layers=4)).save_pretrained(tmp_path)
    teacher = PeftModel.from_pretrained(tiny_causal_lm(layers=4), tmp_path)
    expected = probe_outputs(select_layers(copy.deepcopy(teacher).merge_and_unload(), 4))
    assert difference(expected, probe_outputs(select_layers(teacher, 4))) < 1e-5


def test_a_cut_leaves_an_adapter_out_that_is_switched_off(tiny_causal_lm: Callable[..., Any]) -> None:
    teacher = with_adapter(tiny_causal_lm(layers=4))
    teacher.base_model.disable_adapter_layers()
    assert difference(probe_outputs(teacher), probe_outputs(select_layers(teacher, 4))) < 1e-5
    hidden = tiny_causal_lm(layers=4)
    hidden.add_adapter(LoraConfig(target_modules=Q_AND_V))
    with pytest.raises(InputError, match="Transformers put into it"):
        select_layers(hidden, 2)
