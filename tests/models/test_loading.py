"""Loading models from every kind of source, and refusing what is not whole."""

import copy
import dataclasses
import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from sinkd_llm.errors import InputError
from sinkd_llm.models import (
    BUNDLED,
    build_quantization_config,
    count_parameters,
    load_model,
    load_tokenizer,
    resolve_model_source,
)
from sinkd_llm.models import bundled as bundled_module
from sinkd_llm.models import gguf as gguf_module
from sinkd_llm.models.origin import commit_of, origin_of
from tests.support.models import same_weights, with_adapter, write_gguf


@pytest.fixture
def gguf_file(
    tiny_causal_lm: Callable[..., Any],
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, Any]:
    """A GGUF file of a tiny Llama, and that Llama."""
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))
    model = tiny_causal_lm("llama")
    file = tmp_path / "Tiny-Llama.gguf"
    write_gguf(file, model, tiny_tokenizer)
    return file, model


# ---- names


def test_the_kinds_of_source(model_folder: Path, adapter_folder: Path) -> None:
    folder = resolve_model_source(model_folder)
    assert (folder.kind, folder.path, folder.gguf_file) == ("folder", str(model_folder), None)
    assert resolve_model_source(adapter_folder).kind == "adapter"
    hub = resolve_model_source("HuggingFaceTB/SmolLM2-135M", revision="v2")
    assert (hub.kind, hub.path, hub.revision) == ("hub", "HuggingFaceTB/SmolLM2-135M", "v2")
    assert resolve_model_source("gpt2").kind == "hub"
    with pytest.raises(dataclasses.FrozenInstanceError):
        hub.path = "elsewhere"  # type: ignore[misc]


def test_a_folder_is_found_from_elsewhere(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    assert resolve_model_source("./model").path == str(model_folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "Did you mean 'smollm2-135m'"),
        ("Gemma-3-270m", "Did you mean 'gemma3-270m'"),
        ("runs/no/such/folder", "no folder or file 'runs/no/such/folder'.*bundled names"),
        ("/nowhere", "no folder or file"),
        ("nowhere.gguf", "no file 'nowhere.gguf'"),
        ("", "name is empty"),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_model_source(name)


def test_a_hub_id_that_cannot_be_had_says_what_can_be_given() -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(InputError, match=r"'no-such-org/no-such-model'.*hub.*'smollm2-135m'"):
            load("no-such-org/no-such-model")


def test_a_bundled_model_that_is_not_installed_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bundled_module, "find_spec", lambda package: None)
    for name, bundled in BUNDLED.items():
        with pytest.raises(InputError, match="not installed") as caught:
            load_model(name)
        assert str(caught.value).endswith(bundled.install)


def test_parts_are_joined_once_and_checked(tmp_path: Path) -> None:
    parts = []
    for number in range(4):
        parts.append(tmp_path / f"part{number}" / "data" / "x")
        parts[-1].parent.mkdir(parents=True)
        parts[-1].write_bytes(bytes([number]) * 10)
    whole = tmp_path / "cache" / "whole.gguf"
    content = b"".join(part.read_bytes() for part in parts)
    assemble = bundled_module._assemble
    with pytest.raises(InputError, match=r"checksum.*--force-reinstall"):
        assemble(parts, whole, "0" * 64)
    assert list(whole.parent.iterdir()) == []
    assert assemble(parts, whole, hashlib.sha256(content).hexdigest()).read_bytes() == content
    assert list(whole.parent.iterdir()) == [whole]


# ---- the hub, by way of its cache


@pytest.fixture
def in_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Puts a folder where a download of a hub repository would have put it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder: Path, name: str, commit: str = "a" * 40) -> None:
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)

    return put


def test_a_hub_model(model_folder: Path, in_hub_cache: Callable[[Path, str], None], tiny_tokenizer: Any) -> None:
    in_hub_cache(model_folder, "org/name")
    model = load_model("org/name")
    assert same_weights(model, load_model(model_folder))
    assert (origin_of(model).source.kind, model.name_or_path) == ("hub", "org/name")
    assert commit_of(model) == "a" * 40
    assert commit_of(load_model(model_folder)) is None
    assert load_tokenizer("org/name").get_vocab() == tiny_tokenizer.get_vocab()


def test_a_hub_adapter_of_a_hub_model(
    model_folder: Path, adapter_folder: Path, in_hub_cache: Callable[[Path, str], None]
) -> None:
    in_hub_cache(model_folder, "org/name")
    damage_base_name(adapter_folder, "org/name")
    in_hub_cache(adapter_folder, "org/adapter")
    assert same_weights(load_model("org/adapter"), load_model(adapter_folder))
    assert origin_of(load_model("org/adapter", merge_adapter=False)).source.path == "org/name"
    assert load_tokenizer("org/adapter").pad_token == "<pad>"


def test_a_pickle_from_the_hub_is_refused(model_folder: Path, in_hub_cache: Callable[[Path, str], None]) -> None:
    torch.save(load_model(model_folder).state_dict(), model_folder / "pytorch_model.bin")
    (model_folder / "model.safetensors").unlink()
    in_hub_cache(model_folder, "org/pickle")
    with pytest.raises(InputError, match=r"'org/pickle'.*safetensors"):
        load_model("org/pickle")


# ---- folders


def test_a_folder_loads_as_it_was_saved(model_folder: Path, tiny_causal_lm: Any) -> None:
    model = load_model(model_folder)
    assert same_weights(model, tiny_causal_lm())
    assert not model.training
    assert model.dtype == torch.float32
    assert model.name_or_path == model.config.name_or_path == str(model_folder)
    assert origin_of(model).source == resolve_model_source(model_folder)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype(model_folder: Path, dtype: Any, expected: torch.dtype) -> None:
    assert load_model(model_folder, dtype=dtype).dtype == expected


def test_dtype_auto_is_the_saved_one(tiny_causal_lm: Any, tmp_path: Path) -> None:
    tiny_causal_lm().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path, dtype="auto").dtype == torch.bfloat16
    assert load_model(tmp_path).dtype == torch.float32


def test_an_unknown_dtype_is_refused(model_folder: Path) -> None:
    with pytest.raises(InputError, match=r"'bfloat61'.*Did you mean 'bfloat16'"):
        load_model(model_folder, dtype="bfloat61")


def damage_truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def damage_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damage_gguf_only(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "weights.gguf").write_bytes(b"GGUF")


def damage_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def damage_checkpoints(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "checkpoint-20").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (damage_checkpoints, "no config.json.*checkpoint-20"),
        (lambda f: (f / "config.json").write_text("{"), "not readable JSON.*half written"),
        (lambda f: (f / "config.json").write_text("{}"), "names no 'model_type'"),
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors.*interrupted"),
        (damage_truncate, "damaged or cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged or cut short"),
        (damage_pickle, "only pytorch_model.bin: a pickle file can run code"),
        (damage_gguf_only, "weights.gguf"),
        (damage_shard, "lacks model-00001-of-00002.safetensors"),
    ],
)
def test_a_damaged_folder_is_refused(model_folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(model_folder)
    with pytest.raises(InputError, match=message):
        load_model(model_folder)


def test_weights_that_transformers_would_make_up_are_refused(model_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of the weights.*layers.1.mlp.up_proj"):
        load_model(model_folder)


def test_weights_of_another_size_are_refused(model_folder: Path) -> None:
    config = json.loads((model_folder / "config.json").read_text())
    config["intermediate_size"] += 1
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"layers.0.mlp.down_proj.weight is stored as \(32, 64\).*\(32, 65\)"):
        load_model(model_folder)


def test_an_unknown_architecture_is_refused(model_folder: Path) -> None:
    (model_folder / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(InputError, match="no-such-type"):
        load_model(model_folder)


def test_an_encoder_decoder_is_loaded_whole_and_not_as_a_decoder(tmp_path: Path) -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
    )
    model = BartForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is BartForConditionalGeneration
    assert same_weights(loaded, model)
    with pytest.raises(InputError, match="an encoder-decoder"):
        load_model(tmp_path, kind="causal-lm")


# ---- adapters


def test_an_adapter_is_merged_into_an_ordinary_model(model_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedModel

    expected = with_adapter(load_model(model_folder))
    ids = torch.arange(12)[None]
    merged = load_model(adapter_folder)
    assert isinstance(merged, PreTrainedModel)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert torch.allclose(merged(ids).logits, expected(ids).logits, atol=1e-5)
    assert not torch.allclose(merged(ids).logits, load_model(model_folder)(ids).logits, atol=1e-2)
    assert origin_of(merged).source is None
    assert merged.name_or_path == ""
    merged.save_pretrained(tmp_path / "merged")
    assert same_weights(load_model(tmp_path / "merged"), merged)


def test_an_adapter_can_stay_trainable(model_folder: Path, adapter_folder: Path) -> None:
    model = load_model(adapter_folder, merge_adapter=False)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert origin_of(model).source == resolve_model_source(model_folder)


def damage_base_name(folder: Path, name: str | None) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    (folder / "adapter_config.json").write_text(json.dumps(config))


def damage_adapter_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: damage_base_name(f, None), "without its base model.*--resume_from_checkpoint"),
        (lambda f: damage_base_name(f, ""), "without its base model"),
        (lambda f: damage_base_name(f, "./base"), "without its base model"),
        (lambda f: damage_base_name(f, "/gone/away"), "needs its base model '/gone/away'"),
        (lambda f: damage_base_name(f, str(f)), "names its own folder"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (damage_adapter_pickle, "only adapter_model.bin: a pickle"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"xx"), "damaged"),
        (lambda f: (f / "adapter_config.json").write_text("["), "not readable JSON"),
        (lambda f: (f / "model.safetensors").touch(), "both a full model and an adapter"),
    ],
)
def test_a_damaged_adapter_is_refused(adapter_folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(adapter_folder)
    with pytest.raises(InputError, match=message):
        load_model(adapter_folder)


def test_an_adapter_of_another_size_is_refused(adapter_folder: Path, tiny_causal_lm: Any, tmp_path: Path) -> None:
    tiny_causal_lm(hidden=64).save_pretrained(tmp_path / "wide")
    damage_base_name(adapter_folder, str(tmp_path / "wide"))
    with pytest.raises(InputError, match="does not fit its base model"):
        load_model(adapter_folder)


# ---- GGUF


def test_the_header_of_a_gguf_file_is_read_once(
    gguf_file: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gguf

    monkeypatch.setattr(gguf_module, "_TOLD_FROM", 0)
    reads = []
    dequantize, plain = gguf.dequantize, gguf.GGUFReader.__init__
    monkeypatch.setattr(gguf.GGUFReader, "__init__", lambda *args: reads.append(1) or plain(*args))
    gguf_module.converted_model(resolve_model_source(gguf_file[0]), "float32")
    assert len(reads) == 1
    said = capsys.readouterr().err
    assert said.startswith("Converting Tiny-Llama.gguf (")
    assert "to an ordinary model, once, in about " in said
    assert gguf.dequantize is dequantize


def test_a_gguf_file_becomes_an_ordinary_model(
    gguf_file: tuple[Path, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, original = gguf_file
    model = load_model(file)
    assert capfd.readouterr().err == ""
    assert same_weights(model, original)
    for mark in ("is_quantized", "hf_quantizer", "quantization_method"):
        assert not getattr(model, mark, None)
    assert not hasattr(model.config, "quantization_config")
    assert "Title" not in str(model.config)
    assert model.name_or_path == str(file)

    copied = copy.deepcopy(model)
    ids = torch.arange(8)[None]
    copied(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(copied.parameters(), lr=0.1).step()
    assert not same_weights(copied, model)
    copied.save_pretrained(tmp_path / "trained")
    assert same_weights(load_model(tmp_path / "trained"), copied)
    with_adapter(model)


def test_whichever_process_of_a_launch_comes_first_converts(gguf_file: tuple[Path, Any]) -> None:
    """Transformers saves in process 0 alone, and would leave an empty folder behind for all the others."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    file, original = gguf_file
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        assert same_weights(load_model(file), original)
    finally:
        torch.distributed.destroy_process_group()


def test_a_gguf_file_is_converted_once_a_version_and_dtype(
    gguf_file: tuple[Path, Any], tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    file, _ = gguf_file
    load_model(file)
    load_model(file)
    load_model(file, dtype="auto")
    assert load_model(file, dtype="bfloat16").dtype == torch.bfloat16
    folders = list((tmp_path / "cache" / "gguf").iterdir())
    assert len(folders) == 1
    assert {path.name for path in folders[0].iterdir() if path.is_dir()} == {"float32", "bfloat16"}
    # Who may read the configuration may read the weights.
    modes = [(folders[0] / "float32" / name).stat().st_mode for name in ("config.json", "model.safetensors")]
    assert modes[0] == modes[1]

    other = tiny_causal_lm("llama", seed=9)
    write_gguf(file, other, tiny_tokenizer)
    assert same_weights(load_model(file), other)


def test_the_tokenizer_of_a_gguf_file(gguf_file: tuple[Path, Any], tiny_tokenizer: Any) -> None:
    tokenizer = load_tokenizer(gguf_file[0])
    assert tokenizer.get_vocab().items() >= tiny_tokenizer.get_vocab().items()
    text = "Review: good film\nSentiment: positive"
    assert tokenizer(text).input_ids == tiny_tokenizer(text).input_ids
    assert tokenizer.padding_side == "left"
    # Digits are split from the spaces before them: the file asks for SmolLM's rules.
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in split] == ["a", "ĠĠ", "1", "2"]


def test_a_gguf_file_can_be_quantised(gguf_file: tuple[Path, Any]) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model = load_model(gguf_file[0], quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    assert model.is_loaded_in_4bit


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + bytes(200), b"PK\x03\x04 something else"])
def test_a_file_that_is_no_gguf_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(InputError, match="GGUF"):
        load_model(file)
    assert not list(tmp_path.glob("cache/gguf/*/float32*/"))


def test_a_truncated_gguf_file_is_refused(gguf_file: tuple[Path, Any]) -> None:
    file, _ = gguf_file
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(InputError, match="damaged or cut short"):
        load_model(file)


def test_a_whole_gguf_file_that_cannot_be_converted_is_not_called_damaged(
    gguf_file: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = gguf_file

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("GGUF model with architecture strange is not supported yet.")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(InputError, match=r"a whole GGUF file, but .*architecture strange is not supported") as caught:
        load_model(file)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (ImportError("needs the package gguf"), InputError, r"needs a Python package that is missing here: .*gguf"),
        (MemoryError(), MemoryError, ""),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), RuntimeError, "can't allocate memory"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (OSError(errno.ENOSPC, "No space left on device"), InputError, r"Cannot write .*No space left on device"),
        (SafetensorError("I/O error: No space left"), InputError, r"Cannot write .*No space left"),
        (TypeError("no such thing"), InputError, r"a whole GGUF file, but .*TypeError: no such thing"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_failed_conversion_says_what_failed(
    gguf_file: tuple[Path, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    expected: type[BaseException],
    said: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", fail)
    with pytest.raises(expected, match=said) as caught:
        load_model(gguf_file[0])
    assert "damaged" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("gguf/*/float32*/")), "a part of a conversion stayed"


def test_a_gguf_file_that_may_not_be_read_is_said(
    gguf_file: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = gguf_file

    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(InputError, match=r"Llama\.gguf cannot be read: Permission denied"):
        load_model(file)


def test_a_gguf_file_without_one_of_its_weights_is_refused(
    gguf_file: tuple[Path, Any], tiny_causal_lm: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, model = gguf_file
    monkeypatch.setattr(model.config, "num_hidden_layers", 3)  # the file says one more than it holds
    write_gguf(file, model, tiny_tokenizer)
    with pytest.raises(InputError, match=r"lacks \d+ of the weights.*layers\.2"):
        load_model(file)


def test_a_cache_that_cannot_be_written_names_the_variable(
    gguf_file: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match="SINKD_CACHE_DIR"):
        load_model(gguf_file[0])


# ---- quantisation, counting


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_keeps_its_adapter_beside_it(adapter_folder: Path, model_folder: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel
    from trl import ModelConfig

    arguments = ModelConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantization = build_quantization_config(arguments)
    model = load_model(model_folder, quantization_config=quantization)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == (torch.uint8 if bits == 4 else torch.int8)
    assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
    assert count_parameters(model)[0] == count_parameters(load_model(model_folder))[0]

    adapted = load_model(adapter_folder, quantization_config=quantization)
    assert isinstance(adapted, PeftModel)
    assert not any(parameter.requires_grad for parameter in adapted.parameters())


def test_quantisation_config() -> None:
    from trl import ModelConfig

    assert build_quantization_config(ModelConfig()) is None
    config = build_quantization_config(ModelConfig(load_in_4bit=True, dtype="bfloat16"))
    assert config is not None
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    with pytest.raises(InputError, match="'auto' leaves open"):
        build_quantization_config(ModelConfig(load_in_4bit=True, dtype="auto"))


def test_quantisation_without_bitsandbytes_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trl import ModelConfig

    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match=r"pip install bitsandbytes"):
        build_quantization_config(ModelConfig(load_in_8bit=True))


def test_counting(tiny_causal_lm: Any, tmp_path: Path) -> None:
    model = tiny_causal_lm()
    total, trainable = count_parameters(model)
    assert total == trainable == model.num_parameters()
    adapted = with_adapter(model)
    added = 2 * 4 * (32 + 32) + 2 * 4 * (32 + 16)  # two layers, rank 4: q_proj and v_proj
    assert count_parameters(adapted) == (total, added)
    assert count_parameters(adapted, adapters=True) == (total + added, added)
    assert count_parameters(adapted.merge_and_unload())[0] == total
    whole = with_adapter(tiny_causal_lm(tie_word_embeddings=False), modules_to_save=["lm_head"])
    head = whole.get_base_model().lm_head.weight.numel()
    assert count_parameters(whole) == (count_parameters(whole.merge_and_unload())[0], added + head)
    tied = tiny_causal_lm("gpt2")
    untied = tied.lm_head.weight.numel()
    assert count_parameters(tied)[0] == sum(p.numel() for p in tied.state_dict().values()) - untied


# ---- the real one


@pytest.mark.real_model
def test_smollm2(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    assert count_parameters(model)[0] == 134_515_008
    assert model.name_or_path == "smollm2-135m"
    assert origin_of(model).source.kind == "bundled"
    assert tokenizer.chat_template
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = model(**ids).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
