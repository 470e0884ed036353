"""The JSON files of a model folder: a wrong value is named by file and key, before anything is built of it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BitsAndBytesConfig

from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model, load_tokenizer, resolve_model_source
from sinkd_llm.models.blueprint import blueprint

WRONG = [[], {}, "big", -1, 0, 10**12, 1.5, True, ["x"], {"a": 1}, float("nan")]


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": "big"}, r'config.json: hidden_size is "big", but must be a whole number'),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but must be at most 1000"),
        ({"vocab_size": 10**12}, r"vocab_size is 1000000000000.*largest dimension is \d+"),
        ({"intermediate_size": True}, "intermediate_size is true"),
        ({"max_position_embeddings": 10**18}, "max_position_embeddings"),
        ({"num_labels": 10**9}, "num_labels is 1000000000"),
        ({"pad_token_id": 10**30}, "pad_token_id"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"architectures": "LlamaForCausalLM"}, "architectures.*a list"),
        ({"architectures": [1]}, "architectures.*class names"),
        ({"model_type": None}, "model_type is null"),
        ({"model_type": ["llama"]}, "model_type.*a text"),
        ({"quantization_config": []}, "quantization_config"),
        ({"quantization_config": {"quant_method": "no-such-packing"}}, "packed by 'no-such-packing'"),
        ({"text_config": {"hidden_size": "big"}}, "text_config.hidden_size"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings.*true or false"),
        ({"vocab_size": 4}, "do not fit its config.json"),
        ({"hidden_act": "no-such-function"}, "cannot be read"),
    ],
)
def test_a_wrong_value_is_named(model_folder: Path, values: dict[str, Any], message: str) -> None:
    change(model_folder / "config.json", **values)
    with pytest.raises(InputError, match=message):
        load_model(model_folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["", "[]", "null", "5", '"x"', "{", "[" * 100_000, "\ufeff{}"])
def test_a_file_that_is_no_object_is_named(model_folder: Path, file: str, text: str) -> None:
    (model_folder / file).write_text(text)
    load = load_tokenizer if file.startswith("tokenizer") else load_model
    with pytest.raises(InputError) as caught:
        load(model_folder)
    assert str(model_folder) in str(caught.value)


def test_nothing_but_our_error_comes_of_any_value(model_folder: Path, adapter_folder: Path) -> None:
    """Loads, or refuses with one message; never another error, and no attempt to make room for 10**12 rows."""
    plans: list[tuple[Path, str, Callable[[Path], Any]]] = [
        (model_folder, "config.json", load_model),
        (model_folder, "config.json", blueprint),
        (model_folder, "generation_config.json", load_model),
        (model_folder, "tokenizer_config.json", load_tokenizer),
        (adapter_folder, "adapter_config.json", load_model),
    ]
    cases = [
        (folder / name, load, key, value)
        for folder, name, load in plans
        for key in json.loads((folder / name).read_text())
        for value in WRONG
    ]
    messages = []
    for file, load, key, value in random.Random(0).sample(cases, 150):
        whole = file.read_text()
        file.write_text(json.dumps({**json.loads(whole), key: value}))
        try:
            load(file.parent)
        except InputError as error:
            messages.append(str(error))
        file.write_text(whole)
    assert len(messages) > 75
    assert max(map(len, messages)) < 2000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"r": 10**9}, r"r is 1000000000.*at most"),
        ({"r": "4"}, "r is"),
        ({"r": 0}, "whole number from 1"),
        ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern.q_proj"),
        ({"peft_type": "MAGIC"}, "peft_type.*LORA"),
        ({"target_modules": 5}, "target_modules"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path"),
    ],
)
def test_a_wrong_value_of_an_adapter_is_named(adapter_folder: Path, values: dict, message: str) -> None:
    change(adapter_folder / "adapter_config.json", **values)
    with pytest.raises(InputError, match=message):
        resolve_model_source(adapter_folder)


@pytest.mark.parametrize("mapping", [None, [], {}, {"lm_head.weight": 5}, {"lm_head.weight": "/etc/passwd"}])
def test_an_index_that_names_no_files_of_its_folder(model_folder: Path, mapping: Any) -> None:
    (model_folder / "model.safetensors").unlink()
    (model_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": mapping}))
    with pytest.raises(InputError, match=r"index.json: weight_map is"):
        load_model(model_folder)


def test_adapters_that_name_each_other(adapter_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(adapter_folder, tmp_path / "other")
    change(adapter_folder / "adapter_config.json", base_model_name_or_path=str(tmp_path / "other"))
    change(tmp_path / "other" / "adapter_config.json", base_model_name_or_path=str(adapter_folder))
    for load in (load_model, load_tokenizer):
        with pytest.raises(InputError, match="in turn"):
            load(adapter_folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "aqlm"])
def test_a_quantised_checkpoint_names_the_package_that_it_needs(model_folder: Path, method: str) -> None:
    change(model_folder / "config.json", quantization_config={"quant_method": method, "bits": 4, "group_size": 8})
    with pytest.raises(InputError, match="needs a Python package that is missing here"):
        load_model(model_folder)


def test_the_older_word_for_dtype_and_unknown_arguments(model_folder: Path) -> None:
    import torch

    assert load_model(model_folder, torch_dtype="bfloat16").dtype == torch.bfloat16
    assert blueprint(model_folder, torch_dtype=torch.float16).dtype == torch.float16
    with pytest.raises(InputError, match="Both dtype"):
        load_model(model_folder, dtype="float32", torch_dtype="bfloat16")
    for load in (load_model, blueprint):
        with pytest.raises(InputError, match=r"no argument 'atn_implementation'.*Did you mean 'attn_implementation'"):
            load(model_folder, atn_implementation="sdpa")


@pytest.mark.parametrize("value", [2.0, -0.1, float("nan"), "0.1", [0.1, 3]])
@pytest.mark.parametrize("key", ["attention_dropout", "resid_pdrop", "hidden_dropout_prob", "encoder_layerdrop"])
def test_a_dropout_that_is_no_probability_is_named(model_folder: Path, key: str, value: Any) -> None:
    change(model_folder / "config.json", **{key: value})
    with pytest.raises(InputError, match=rf"config.json: {key} is .*from 0 to 1"):
        resolve_model_source(model_folder)
    for fine in (0, 1, 0.1, None, [0.1, 0.2]):
        change(model_folder / "config.json", **{key: fine})
        resolve_model_source(model_folder)


def test_an_adapters_dropout_is_a_probability(adapter_folder: Path) -> None:
    change(adapter_folder / "adapter_config.json", lora_dropout=2.0)
    with pytest.raises(InputError, match=r"adapter_config.json: lora_dropout is 2.0"):
        resolve_model_source(adapter_folder)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", [{"quant_method": "bitsandbytes"}, {}])
def test_whole_weights_are_not_taken_for_packed_ones(
    model_folder: Path,
    bits: int,
    method: dict[str, str],
) -> None:
    change(model_folder / "config.json", quantization_config={**method, f"load_in_{bits}bit": True})
    with pytest.raises(InputError, match=rf"config.json: quantization_config says .*packed in {bits} bits"):
        load_model(model_folder)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_weights_are_taken(tiny_causal_lm: Callable[..., Any], tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    tiny_causal_lm("llama", hidden=64).save_pretrained(tmp_path / "whole")
    options = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    load_model(tmp_path / "whole", quantization_config=options).save_pretrained(tmp_path / "packed")
    assert resolve_model_source(tmp_path / "packed").kind == "folder"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "pointer of Git LFS"),
        ("<!DOCTYPE html><html><body>Log in</body></html>", "is a web page"),
        ("\n<html>", "is a web page"),
    ],
)
def test_what_was_not_fetched_is_said(
    model_folder: Path,
    content: str,
    message: str,
) -> None:
    (model_folder / "some.gguf").write_text(content)
    with pytest.raises(InputError, match=message):
        load_model(model_folder / "some.gguf")
    for name in ("model.safetensors", "config.json"):
        (model_folder / name).write_text(content)
        with pytest.raises(InputError, match=rf"{name} is .*{message.split()[-1]}"):
            load_model(model_folder)


@pytest.mark.parametrize("content", ["[]", '{"base_quantisation": 3}'])
def test_a_damaged_record_says_whose_it_is(model_folder: Path, content: str) -> None:
    (model_folder / "sinkd_student.json").write_text(content)
    with pytest.raises(InputError, match=r"sinkd_student\.json.*(sinkd_llm|base_quantisation is 3)"):
        load_model(model_folder)


@pytest.mark.parametrize("load", [load_model, blueprint])
def test_a_way_of_attention_that_is_none_names_the_setting(model_folder: Path, load: Any) -> None:
    with pytest.raises(InputError, match=r"attn_implementation is 'nope'.*eager.*sdpa"):
        load(model_folder, attn_implementation="nope")
    for fine in ("eager", "sdpa"):
        load(model_folder, attn_implementation=fine)
