"""Weights that are no numbers, padding that is read, tokens that are seen too early: found on the model itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model
from sinkd_llm.models.finite import check_finite_weights
from sinkd_llm.models.probes import check_reading
from tests.support.models import DECODERS, ENCODER_DECODERS, ENCODERS

# ---- finite weights


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_no_number_is_named(tiny_causal_lm: Any, value: float, dtype: torch.dtype) -> None:
    model = tiny_causal_lm("llama").to(dtype)
    check_finite_weights(model, "fine")
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight of 'mine' holds NaN or infinity"):
        check_finite_weights(model, "mine")


def test_large_weights_are_numbers(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    model.lm_head.weight.data.fill_(3e38)  # the sum of them is not
    check_finite_weights(model, "large")
    check_finite_weights(model.to("meta"), "not here")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_weight_is_found_by_its_scale(tiny_causal_lm: Any, tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    model = tiny_causal_lm("llama", hidden=64)
    config = transformers.BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model.save_pretrained(tmp_path / "fine")
    load_model(tmp_path / "fine", quantization_config=config)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("inf")
    model.save_pretrained(tmp_path / "wrong")
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.up_proj\.weight"):
        load_model(tmp_path / "wrong", quantization_config=config)


def test_folders_and_adapters_are_asked(model_folder: Path, adapter_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    for folder, name in ((adapter_folder, "adapter_model.safetensors"), (model_folder, "model.safetensors")):
        weights = load_file(folder / name)
        next(iter(weights.values())).view(-1)[0] = float("nan")
        save_file(weights, folder / name, metadata={"format": "pt"})
        with pytest.raises(InputError, match="holds NaN or infinity"):
            load_model(folder)


def test_a_mask_in_a_buffer_may_be_infinite(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    model.register_buffer("never_said", torch.tensor([0.0, float("-inf")]))
    check_finite_weights(model, "masked")
    model.never_said[0] = float("nan")
    with pytest.raises(InputError, match="never_said"):
        check_finite_weights(model, "masked")


# ---- padding and later tokens


@pytest.mark.parametrize("model_type", DECODERS)
def test_decoders_read_as_they_should(model_type: str, tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm(model_type).train()
    check_reading(model, model_type)
    assert model.training


@pytest.mark.parametrize("model_type", [*ENCODER_DECODERS, *ENCODERS])
def test_encoders_and_encoder_decoders_read_as_they_should(model_type: str, tiny_model: Any) -> None:
    check_reading(tiny_model(model_type), model_type)


REGRESSION = {"num_labels": 1, "problem_type": "regression"}


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_head_of_few_outputs_is_not_refused_for_rounding(family: str, outputs: int, tiny_model: Any) -> None:
    # At this size a batch of another shape rounds otherwise; one of size 32 gives the same numbers to the last bit.
    for seed in range(5):
        model = tiny_model(family, seed=seed, hidden=384, **(REGRESSION if outputs == 1 else {"num_labels": outputs}))
        check_reading(model, family)
        with torch.no_grad():  # the outputs of one text may be as near to each other, or to 0, as they like
            logits_V = _logits_of_the_probe(model)
            head = [module for module in model.modules() if getattr(module, "out_features", None) == outputs][-1]
            head.bias -= logits_V
        check_reading(model, family)
        with torch.no_grad():  # a head that says nearly the same of every text
            head.weight *= 1e-6
            head.bias.fill_(2.5)
        if outputs == 1:
            check_reading(model, family)


def _logits_of_the_probe(model: Any) -> torch.Tensor:
    """What the model says of the first text that `check_reading` gives it: `[V]`."""
    said: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda _, args, output: said.append(output.logits[0]))
    check_reading(model, "mine")
    hook.remove()
    return said[0]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("hidden", [32, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_regression_that_reads_padding_is_refused(
    family: str, hidden: int, dtype: torch.dtype, tiny_model: Any
) -> None:
    for seed in range(3):
        model = tiny_model(family, seed=seed, hidden=hidden, **REGRESSION).to(dtype)
        check_reading(model, family)
        # Its head reads the mean over all positions, padding too, as a state would.
        model.base_model.register_forward_hook(_mean_in_every_place)
        with pytest.raises(InputError, match="depends on padding"):
            check_reading(model, "mine")


def test_a_regression_that_mixes_padding_in_is_refused() -> None:
    for hidden in (32, 384):
        torch.manual_seed(0)
        config = transformers.FNetConfig(**{**SIZE, "hidden_size": hidden}, intermediate_size=64, **REGRESSION)
        with pytest.raises(InputError, match=r"'mine' \(FNetForSequenceClassification\) depends on padding"):
            check_reading(transformers.FNetForSequenceClassification(config).eval(), "mine")


def _mean_in_every_place(_: Any, args: Any, output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state.mean(dim=1, keepdim=True).expand_as(output.last_hidden_state)
    if getattr(output, "pooler_output", None) is not None:
        output.pooler_output = output.last_hidden_state[:, 0]
    return output


SIZE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}


RWKV = transformers.RwkvConfig(**SIZE, attention_hidden_size=32)
XLNET = transformers.XLNetConfig(vocab_size=300, d_model=32, n_layer=2, n_head=4, d_inner=64)
FNET = transformers.FNetConfig(**SIZE, intermediate_size=64)
MAMBA = transformers.MambaConfig(**SIZE, state_size=4)
GRIFFIN = transformers.RecurrentGemmaConfig(**{**SIZE, "num_hidden_layers": 3}, intermediate_size=64, lru_width=32)


@pytest.mark.parametrize(
    ("name", "config", "fault"),
    [
        ("RwkvForCausalLM", RWKV, "depends on padding"),
        (
            "XLNetLMHeadModel",
            transformers.XLNetConfig(vocab_size=300, d_model=32, n_layer=2, n_head=4, d_inner=64),
            "sees later tokens",
        ),
        ("FNetForMaskedLM", FNET, "depends on padding"),
    ],
)
def test_models_that_read_otherwise_are_refused(name: str, config: Any, fault: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with pytest.raises(InputError, match=rf"'mine' \({name}\) {fault}"):
        check_reading(model, "mine")
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=fault):
        load_model(tmp_path)
    assert type(load_model(tmp_path, probe=False)) is type(model)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("MambaForCausalLM", MAMBA),
        ("RecurrentGemmaForCausalLM", GRIFFIN),
    ],
)
def test_states_that_mask_padding_pass(name: str, config: Any) -> None:
    torch.manual_seed(0)
    check_reading(getattr(transformers, name)(config).eval(), name)


def test_a_decoder_that_looks_ahead_is_found_whatever_its_name(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, args, output: output + output.mean(dim=1, keepdim=True))
    with pytest.raises(InputError, match="sees later tokens"):
        check_reading(model, "mine")


def test_a_trainer_asks_models_that_were_made_in_python(tiny_tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    from sinkd_llm import SinKDConfig, SinKDTrainer

    size = {**SIZE, "vocab_size": len(tiny_tokenizer)}
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(**size, attention_hidden_size=32))
    rows = Dataset.from_list([{"id": "a", "prompt": "good", "completion": " film"}] * 4)
    settings = SinKDConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    with pytest.raises(InputError, match="depends on padding"):
        SinKDTrainer(model=model, args=settings, train_dataset=rows, processing_class=tiny_tokenizer)


# ---- vocabularies


def test_a_model_that_lacks_tokens_of_its_tokenizer(tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    import copy

    from sinkd_llm.inputs.by_kind import row_tokenizer
    from sinkd_llm.inputs.reading import Reading

    row_tokenizer(tiny_causal_lm("llama"), tiny_tokenizer, Reading())
    with pytest.raises(InputError, match=rf"embeddings for 300 tokens, but its tokenizer gives {len(tiny_tokenizer)}"):
        row_tokenizer(tiny_causal_lm("llama", vocab=300), tiny_tokenizer, Reading())
    grown = copy.deepcopy(tiny_tokenizer)
    grown.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    row_tokenizer(tiny_causal_lm("llama"), grown, Reading())  # text never gives it
    grown.add_special_tokens({"pad_token": "<padding>"})
    with pytest.raises(InputError, match="'<padding>'"):
        row_tokenizer(tiny_causal_lm("llama"), grown, Reading())


def test_positions_from_a_table_are_named_as_the_cause() -> None:
    config = transformers.BartConfig(
        vocab_size=420, d_model=32, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=32, init_std=0.5
    )
    torch.manual_seed(0)
    with pytest.raises(InputError, match=r"depends on padding.*positions up in a table.*padding on the left"):
        check_reading(transformers.BartForCausalLM(config), "bart")


def test_weights_of_several_dtypes_are_refused_where_they_fail(tiny_causal_lm: Any) -> None:
    from peft import LoraConfig, get_peft_model

    mixed = tiny_causal_lm("llama")
    mixed.model.layers[1].to(torch.bfloat16)
    with pytest.raises(InputError, match=r"several dtypes.*embed_tokens.weight is float32.*layers\.1\..* is bfloat16"):
        check_reading(mixed, "The student", torch.float32)
    check_reading(mixed, "The student", torch.bfloat16)  # autocast converts them
    check_reading(mixed, "The student")  # whether the run uses it is not known
    adapted = get_peft_model(tiny_causal_lm("llama").to(torch.bfloat16), LoraConfig(target_modules=["q_proj"]))
    assert len({weight.dtype for weight in adapted.parameters()}) == 2
    check_reading(adapted, "The student", torch.float32)
