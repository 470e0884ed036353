"""A saved student loads by itself, with plain Transformers and PEFT code, wherever it is moved."""

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RwkvConfig,
    RwkvForCausalLM,
)

from sinkd_llm.errors import InputError
from sinkd_llm.files import bytes_under
from sinkd_llm.models import (
    load_model,
    load_tokenizer,
    save_student,
    select_layers,
)
from sinkd_llm.models.adapter_facts import base_weights
from sinkd_llm.models.names import ModelSource
from sinkd_llm.models.origin import set_origin
from sinkd_llm.models.outputs import probe_outputs
from sinkd_llm.models.saving import check_saveable
from tests.support.models import marked_tokenizer, same_weights, with_adapter, write_gguf

IDS = torch.arange(2, 14)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def weight_files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")}


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Moves a folder elsewhere and changes the working directory, as a user might."""

    def move(folder: Path) -> Path:
        target = tmp_path / "elsewhere" / "renamed"
        target.parent.mkdir()
        shutil.move(folder, target)
        monkeypatch.chdir("/")
        return target

    return move


def test_a_full_student(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, moved: Callable[[Path], Path]
) -> None:
    student = select_layers(tiny_causal_lm("gpt2", layers=4), 2)
    save_student(student, tiny_tokenizer, tmp_path / "student")
    folder = moved(tmp_path / "student")
    assert weight_files(folder) == {"model.safetensors"}
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert same_weights(loaded, student)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("good film").input_ids == tiny_tokenizer("good film").input_ids
    assert tokenizer.padding_side == "left"


def test_files_have_the_permissions_of_the_umask(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """safetensors alone would write weights that nobody but their owner can read."""
    before = os.umask(0o027)
    try:
        save_student(with_adapter(tiny_causal_lm()), tiny_tokenizer, tmp_path / "student")
    finally:
        os.umask(before)
    files = [file for file in (tmp_path / "student").rglob("*") if file.is_file()]
    assert {"model.safetensors", "adapter_model.safetensors", "config.json"} <= {file.name for file in files}
    assert {oct(stat.S_IMODE(file.stat().st_mode)) for file in files} == {"0o640"}


@pytest.mark.parametrize(("family", "head"), [("bert", "SequenceClassification"), ("t5", "ConditionalGeneration")])
def test_plain_code_pads_the_rows_of_an_encoder_where_it_was_trained_to_have_padding(
    tiny_model: Callable[..., Any], tmp_path: Path, family: str, head: str
) -> None:
    """BERT counts positions from the first token on: a row that is padded on the left is another row to it."""
    given = marked_tokenizer(family)
    own = PreTrainedTokenizerFast(
        tokenizer_object=given.backend_tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )
    model = tiny_model(family, head)
    save_student(model, own, tmp_path / "student")
    assert own.padding_side == "left"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.padding_side == "right"
    if family == "bert":
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
        rows = ["good film", "the film was not good but the plot was great"]
        alone = loaded(**tokenizer(rows[:1], return_tensors="pt")).logits
        together = loaded(**tokenizer(rows, padding=True, return_tensors="pt")).logits
        torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_of_a_nameless_base_takes_it_along(
    tiny_causal_lm: Any,
    tiny_tokenizer: Any,
    tmp_path: Path,
    moved: Callable[[Path], Path],
    family: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    targets = ["c_attn", "c_proj"] if family == "gpt2" else "all-linear"
    student = select_layers(tiny_causal_lm(family, layers=4), 3)
    student = with_adapter(student, target_modules=targets, fan_in_fan_out=family == "gpt2")
    expected, before = logits(student), student.state_dict()
    capfd.readouterr()
    save_student(student, tiny_tokenizer, tmp_path / "student")
    assert capfd.readouterr().err == ""
    assert student.state_dict().keys() == before.keys()
    assert torch.equal(logits(student), expected)

    folder = moved(tmp_path / "student")
    assert weight_files(folder) == {"adapter_model.safetensors", "base/model.safetensors"}
    assert not any(str(tmp_path) in file.read_text() for file in folder.rglob("*.json"))

    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert not torch.allclose(logits(base), expected, atol=1e-2)
    assert torch.equal(logits(PeftModel.from_pretrained(base, folder)), expected)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tiny_tokenizer.get_vocab()

    assert torch.allclose(logits(load_model(folder)), expected, atol=1e-5)
    assert torch.equal(logits(load_model(folder, merge_adapter=False)), expected)
    assert load_tokenizer(folder).get_vocab() == tiny_tokenizer.get_vocab()


def test_auto_peft_finds_the_base_in_the_folder_and_fails_at_once_elsewhere(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = with_adapter(select_layers(tiny_causal_lm(), 1))
    save_student(student, tiny_tokenizer, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(".")), logits(student))
    monkeypatch.chdir("/")
    with pytest.raises((OSError, ValueError), match=r"\./base"):
        AutoPeftModelForCausalLM.from_pretrained(tmp_path)


def test_a_student_that_was_loaded_again_still_takes_its_base_along(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    save_student(with_adapter(select_layers(tiny_causal_lm(), 1)), tiny_tokenizer, tmp_path / "1")
    again = load_model(tmp_path / "1", merge_adapter=False)
    save_student(again, tiny_tokenizer, tmp_path / "2")
    shutil.rmtree(tmp_path / "1")
    assert torch.equal(logits(load_model(tmp_path / "2", merge_adapter=False)), logits(again))


def test_an_adapter_of_a_folder_saves_only_itself(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_causal_lm().save_pretrained(tmp_path / "base-model")
    monkeypatch.chdir(tmp_path)
    for load in (load_model, AutoModelForCausalLM.from_pretrained):
        monkeypatch.chdir(tmp_path)
        student = with_adapter(load("base-model"))
        save_student(student, tiny_tokenizer, "student")
        monkeypatch.chdir("/")
        folder = tmp_path / "student"
        assert weight_files(folder) == {"adapter_model.safetensors"}
        for loaded in (
            AutoModelForCausalLM.from_pretrained(folder),
            AutoPeftModelForCausalLM.from_pretrained(folder),
            load_model(folder, merge_adapter=False),
        ):
            assert torch.equal(logits(loaded), logits(student))
        assert load_tokenizer(folder).get_vocab() == tiny_tokenizer.get_vocab()


def test_an_adapter_of_a_hub_model_names_it_with_its_revision(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_causal_lm()
    set_origin(model, ModelSource("org/name", "hub", "org/name", revision="v2"))
    save_student(with_adapter(model), tiny_tokenizer, tmp_path)
    assert weight_files(tmp_path) == {"adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "v2")
    with pytest.raises(InputError, match="needs its base model 'org/name'"):
        load_model(tmp_path)


def test_an_adapter_of_a_gguf_file_takes_its_base_along(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    write_gguf(file, tiny_causal_lm(), tiny_tokenizer)
    student = with_adapter(load_model(file))
    expected = logits(student)
    save_student(student, tiny_tokenizer, tmp_path / "student")
    file.unlink()
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "student")), expected)


def test_a_gguf_model_that_transformers_loaded_is_refused_with_the_way_out(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_causal_lm(), tiny_tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for student in (model, with_adapter(model)):
        with pytest.raises(InputError, match=r"sinkd_llm\.load_model"):
            save_student(student, tiny_tokenizer, tmp_path / "student")


def test_modules_to_save_and_grown_embeddings(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    student = select_layers(tiny_causal_lm(layers=3), 2)
    student.resize_token_embeddings(len(tiny_tokenizer) + 8)
    student = with_adapter(student, modules_to_save=["lm_head"])
    torch.nn.init.normal_(student.get_base_model().lm_head.modules_to_save["default"].weight)
    save_student(student, tiny_tokenizer, tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(student))
    assert torch.allclose(logits(load_model(tmp_path)), logits(student), atol=1e-5)
    stored = load_file(tmp_path / "base" / "model.safetensors").keys()
    assert stored == AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict().keys()


def test_a_gathered_state_is_saved_instead_of_the_models_own(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    student = with_adapter(select_layers(tiny_causal_lm(layers=3), 2))
    expected = logits(student)
    gathered = {name: value.clone() for name, value in student.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    save_student(student, tiny_tokenizer, tmp_path, state_dict=gathered)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), expected)


def test_gathered_weights_are_compared_with_what_was_written(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinkd_llm.models import saving

    student = tiny_causal_lm()
    gathered = {name: value.clone() for name, value in student.state_dict().items()}
    monkeypatch.setattr(saving, "_write", lambda model, folder, *_: model.save_pretrained(folder))
    save_student(student, tiny_tokenizer, tmp_path / "same", state_dict=gathered)
    gathered["model.norm.weight"] = gathered["model.norm.weight"] + 1
    with pytest.raises(InputError, match=r"has another model\.norm\.weight"):
        save_student(student, tiny_tokenizer, tmp_path / "other", state_dict=gathered)


def test_a_sharded_base(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained
    monkeypatch.setattr(
        PreTrainedModel,
        "save_pretrained",
        lambda self, *args, **options: save(self, *args, max_shard_size="20KB", **options),
    )
    student = with_adapter(select_layers(tiny_causal_lm(layers=3), 2))
    save_student(student, tiny_tokenizer, tmp_path)
    assert len(list((tmp_path / "base").glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(student))
    assert torch.equal(logits(load_model(tmp_path, merge_adapter=False)), logits(student))


def test_a_quantised_base_goes_along_quantised(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    tiny_causal_lm(layers=4, hidden=64).save_pretrained(tmp_path / "model")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = select_layers(load_model(tmp_path / "model", quantization_config=quantization), 2)
    student = with_adapter(base)
    save_student(student, tiny_tokenizer, tmp_path / "student")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert loaded.is_loaded_in_4bit
    assert torch.allclose(logits(loaded), logits(student), atol=1e-5)
    assert torch.allclose(logits(load_model(tmp_path / "student")), logits(student), atol=1e-5)


def test_what_an_earlier_student_left_is_removed(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    full = tiny_causal_lm(seed=1)
    adapted = with_adapter(select_layers(tiny_causal_lm(), 1))
    for student in (full, adapted, full):
        save_student(student, tiny_tokenizer, tmp_path)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(student))
    assert weight_files(tmp_path) == {"model.safetensors"}
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_saving_to_a_file_is_refused(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(InputError, match="it is a file"):
        save_student(tiny_causal_lm(), tiny_tokenizer, tmp_path / "x")


def held(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_somebody_elses_model_is_never_replaced(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    tiny_causal_lm(seed=1).save_pretrained(tmp_path / "full")
    with_adapter(tiny_causal_lm()).save_pretrained(tmp_path / "adapter")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").write_bytes(b"theirs")
    for folder in sorted(tmp_path.iterdir()):
        before = held(folder)
        with pytest.raises(InputError, match=r"holds a model already .* Give another folder"):
            save_student(tiny_causal_lm(), tiny_tokenizer, folder)
        assert held(folder) == before


def test_only_what_an_earlier_save_wrote_is_removed(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    save_student(with_adapter(select_layers(tiny_causal_lm(), 1)), tiny_tokenizer, tmp_path)
    (tmp_path / "base" / "notes.txt").write_text("mine")
    (tmp_path / "README.md").write_text("mine, too")
    save_student(tiny_causal_lm(), tiny_tokenizer, tmp_path)
    assert (tmp_path / "base" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "README.md").read_text() == "mine, too"
    assert weight_files(tmp_path) == {"model.safetensors"}
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("moves", [0, 1, 4, 9])
def test_a_save_that_fails_leaves_the_folder_as_it_was(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    import os

    save_student(tiny_causal_lm(seed=1), tiny_tokenizer, tmp_path)
    before, replace, calls = held(tmp_path), os.replace, itertools.count()

    def fails_once(*places: Any) -> None:
        if next(calls) == moves:
            raise OSError(28, "No space left on device")
        replace(*places)

    monkeypatch.setattr("sinkd_llm.models.placing.os.replace", fails_once)
    with pytest.raises(OSError, match="No space left"):
        save_student(with_adapter(select_layers(tiny_causal_lm(), 1)), tiny_tokenizer, tmp_path)
    assert held(tmp_path) == before


def test_a_save_that_fails_while_it_writes_makes_no_folder(
    tiny_causal_lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tokenizer:
        padding_side, model_max_length = "left", 512

        def save_pretrained(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_student(tiny_causal_lm(), Tokenizer(), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_a_student_that_does_not_load_as_it_was_is_not_saved(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    save_student(tiny_causal_lm(seed=1), tiny_tokenizer, tmp_path)
    before = held(tmp_path)
    student = tiny_causal_lm()
    student.model.norm.variance_epsilon = 1.0  # what its configuration does not say
    with pytest.raises(InputError, match=r"computes other outputs .* \d+\.\d% .* It is kept in") as caught:
        save_student(student, tiny_tokenizer, tmp_path)
    kept = next(tmp_path.glob("unlike-the-student-*"))
    assert str(kept) in str(caught.value)
    assert "the run's last checkpoint, if it wrote any," in str(caught.value)
    assert (kept / "model.safetensors").is_file()
    shutil.rmtree(kept)
    assert held(tmp_path) == before
    save_student(student, tiny_tokenizer, tmp_path, check=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_precision_is_compared(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, dtype: str) -> None:
    student = with_adapter(select_layers(tiny_causal_lm(layers=3).to(getattr(torch, dtype)), 2))
    save_student(student, tiny_tokenizer, tmp_path)
    assert load_model(tmp_path, dtype="auto").dtype == getattr(torch, dtype)


@pytest.mark.parametrize("family", ["t5", "bart", "bert", "distilbert"])
def test_every_kind_is_compared(tiny_model: Any, marked_tokenizer: Any, tmp_path: Path, family: str) -> None:
    save_student(tiny_model(family), marked_tokenizer(family), tmp_path)
    student = tiny_model(family)
    for name, module in student.named_modules():
        if name.lower().endswith("norm"):
            setattr(module, "eps" if hasattr(module, "eps") else "variance_epsilon", 10.0)
    with pytest.raises(InputError, match="computes other outputs"):
        save_student(student, marked_tokenizer(family), tmp_path)


def test_a_student_that_reads_padding_knowingly_is_compared_and_saved(
    tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = RwkvConfig(vocab_size=len(tiny_tokenizer), hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    torch.manual_seed(0)
    RwkvForCausalLM(config).save_pretrained(tmp_path / "base")
    student = load_model(tmp_path / "base", probe=False)
    save_student(student, tiny_tokenizer, tmp_path / "student")
    assert same_weights(load_model(tmp_path / "student", probe=False), student)
    expected = logits(adapted := with_adapter(student, target_modules=["key", "value"]))
    save_student(adapted, tiny_tokenizer, tmp_path / "adapted")
    assert torch.allclose(logits(load_model(tmp_path / "adapted", probe=False)), expected, atol=1e-5)
    assert "not compared" not in caplog.text
    with pytest.raises(InputError, match="depends on padding"):
        load_model(tmp_path / "student")


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_regression_with_outputs_near_zero_is_not_taken_for_another(
    family: str, tiny_model: Any, marked_tokenizer: Any, tmp_path: Path
) -> None:
    for seed in range(4):
        model = tiny_model(family, seed=seed, hidden=384, num_labels=1, problem_type="regression").bfloat16()
        with torch.no_grad():  # so that the first two rows, taken alone, are all rounding
            model.classifier.bias -= probe_outputs(model)[:2].mean().to(model.dtype)
        student = with_adapter(model, target_modules=["query", "value", "q_lin", "v_lin"], task_type="SEQ_CLS")
        save_student(student, marked_tokenizer(family), tmp_path / str(seed))


def test_a_weight_that_is_no_number_is_not_saved(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    student = tiny_causal_lm()
    with torch.no_grad():
        student.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        save_student(student, tiny_tokenizer, tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("change", ["resized", "trained", "one row"])
@pytest.mark.parametrize("loader", [load_model, AutoModelForCausalLM.from_pretrained])
def test_a_base_that_was_changed_in_memory_goes_along(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, change: str, loader: Callable[[Path], Any]
) -> None:
    tiny_causal_lm(vocab=460).save_pretrained(tmp_path / "base-model")
    base = loader(tmp_path / "base-model")
    with torch.no_grad():
        if change == "resized":
            base.resize_token_embeddings(len(tiny_tokenizer))
        elif change == "trained":
            base.model.norm.weight += 0.01
        else:
            base.model.embed_tokens.weight[17] += 0.1  # a token that no made-up row holds
    student = with_adapter(base)
    save_student(student, tiny_tokenizer, tmp_path / "student")
    assert (tmp_path / "student" / "base").is_dir()
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "student")), logits(student))
    same = base_weights(load_model(tmp_path / "student", merge_adapter=False))
    assert all(torch.equal(same[name], value) for name, value in base_weights(student).items())


def test_an_adapter_saved_over_its_own_base_takes_it_along(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    save_student(tiny_causal_lm(), tiny_tokenizer, tmp_path)
    student = with_adapter(load_model(tmp_path))
    save_student(student, tiny_tokenizer, tmp_path)
    assert torch.equal(logits(load_model(tmp_path, merge_adapter=False)), logits(student))


def test_generation_settings_without_effect_are_unset(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = tiny_causal_lm()
    student.generation_config.temperature, student.generation_config.top_p = 0.6, 0.9
    save_student(student, tiny_tokenizer, tmp_path)
    assert "temperature=0.6, which has no effect" in caplog.text
    assert load_model(tmp_path).generation_config.top_p is None


def test_generation_settings_that_contradict_each_other_are_refused_before_training(tiny_causal_lm: Any) -> None:
    student = tiny_causal_lm()
    student.generation_config.num_return_sequences = 3
    with pytest.raises(InputError, match=r"generation_config cannot be saved: .*num_return_sequences"):
        check_saveable(student)


def test_the_folder_says_how_its_student_was_trained(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    def record(model: Any, name: str) -> Any:
        save_student(model, tiny_tokenizer, tmp_path / name)
        return json.loads((tmp_path / name / "sinkd_student.json").read_text())

    plain = record(tiny_causal_lm(hidden=64), "plain")
    assert (plain["base_quantisation"], plain["merged_in"]) == (None, None)
    assert set(plain["files"]) == held(tmp_path / "plain").keys()
    for bits, name in (
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"load_in_8bit": True}, "int8"),
    ):
        base = load_model(tmp_path / "plain", quantization_config=BitsAndBytesConfig(**bits))
        assert record(with_adapter(base), name)["base_quantisation"] == name
    dora = with_adapter(tiny_causal_lm().to(torch.bfloat16), use_dora=True)
    assert record(dora, "dora")["merged_in"] == "bfloat16"


def test_a_file_that_changes_after_the_save_is_noticed(
    tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    save_student(tiny_causal_lm(), tiny_tokenizer, tmp_path)
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(tmp_path)


@pytest.mark.real_model
def test_a_student_of_smollm2_loads_in_a_process_that_knows_nothing(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = smollm2
    student = with_adapter(select_layers(model, 3))
    save_student(student, tokenizer, tmp_path / "student")
    assert bytes_under(tmp_path / "student") < 4 * model.num_parameters() / 2
    code = (
        "import torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"folder = {str(tmp_path / 'student')!r}\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "ids = AutoTokenizer.from_pretrained(folder)('A great film', return_tensors='pt')\n"
        "print(model(**ids).logits[0, -1].double().sum().item())\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    ids = tokenizer("A great film", return_tensors="pt")
    with torch.no_grad():
        expected = student(**ids).logits[0, -1].double().sum().item()
    assert float(ran.stdout) == pytest.approx(expected, rel=1e-4)


def test_a_tokenizer_without_a_length_gets_the_model_s_context(tmp_path, tiny_model, marked_tokenizer):
    from transformers import AutoTokenizer

    model, tokenizer = tiny_model("bert"), marked_tokenizer("bert")
    assert tokenizer.model_max_length > 10**20
    save_student(model, tokenizer, tmp_path / "student", check=False)
    assert AutoTokenizer.from_pretrained(tmp_path / "student").model_max_length == model.config.max_position_embeddings
    assert tokenizer.model_max_length > 10**20
    tokenizer.model_max_length = 17
    save_student(model, tokenizer, tmp_path / "other", check=False)
    assert AutoTokenizer.from_pretrained(tmp_path / "other").model_max_length == 17
    tokenizer.model_max_length = int(1e30)
