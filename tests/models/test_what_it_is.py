"""What a checkpoint is comes from its `architectures` and its weights; what a model is from its class and its head."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model
from sinkd_llm.models.blueprint import blueprint
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.kinds.experts import has_router_loss
from sinkd_llm.models.origin import new_modules_of
from sinkd_llm.models.wrappers import forward_parameters
from tests.support.models import same_weights
from tests.support.rows import ID_ROWS, collate_ids


def save_as(head: str, config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    getattr(transformers, head)(config).save_pretrained(folder)
    return folder


def change_weights(folder: Path, name: str = "model.safetensors", **weights: Any) -> None:
    stored = load_file(folder / name)
    for key, value in weights.items():
        key = key.replace("__", ".")
        if value is None:
            del stored[key]
        else:
            stored[key] = value
    save_file(stored, folder / name, metadata={"format": "pt"})


# ---- checkpoints


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_with_another_head_is_refused(
    family: str, head: str, tied: bool, tiny_causal_lm: Any, tmp_path: Path
) -> None:
    model = tiny_causal_lm(family, tie_word_embeddings=tied)
    name = type(model).__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + head
    save_as(name, model.config, tmp_path)
    for load in (load_model, blueprint):
        with pytest.raises(InputError, match=f"saved as {name}, so loading it as causal-lm would drop its head"):
            load(tmp_path)
    # A configuration that does not say so: the weights do.
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lacks \d+ of the weights|has no place for"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["BartForSequenceClassification", "BartForQuestionAnswering"])
def test_an_encoder_decoder_with_another_head_is_refused(name: str, tiny_model: Any, tmp_path: Path) -> None:
    save_as(name, tiny_model("bart").config, tmp_path)
    with pytest.raises(InputError, match=f"saved as {name}"):
        load_model(tmp_path)


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering", "MultipleChoice"])
def test_an_encoder_with_another_head_is_refused(head: str, tiny_model: Any, tmp_path: Path) -> None:
    save_as(f"BertFor{head}", tiny_model("bert").config, tmp_path)
    # `classifier` of token classification would pass for that of two classes.
    for labels in (None, ["no", "yes"]):
        with pytest.raises(InputError, match=f"saved as BertFor{head}"):
            load_model(tmp_path, labels=labels)


def test_bases_whose_head_is_their_embedding_are_whole(tiny_model: Any, tiny_causal_lm: Any, tmp_path: Path) -> None:
    for i, model in enumerate((tiny_model("bart"), tiny_causal_lm("gpt2"))):
        model.base_model.save_pretrained(tmp_path / str(i))
        assert same_weights(load_model(tmp_path / str(i)), model)
    tiny_causal_lm("llama").model.save_pretrained(tmp_path / "untied")
    with pytest.raises(InputError, match=r"lacks 1 of the weights.*lm_head"):
        load_model(tmp_path / "untied")


def test_a_pretraining_checkpoint_keeps_its_masked_language_model(tiny_model: Any, tmp_path: Path) -> None:
    save_as("BertForPreTraining", tiny_model("bert").config, tmp_path)
    assert kind_of(load_model(tmp_path)).name == "masked-lm"
    assert new_modules_of(load_model(tmp_path, labels=["a", "b"])) == ("classifier",)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("vit", "ViTForImageClassification"), ("whisper", "WhisperForConditionalGeneration"), ("clip", "CLIPModel")],
)
def test_models_of_images_and_sound_are_refused(model_folder: Path, model_type: str, name: str) -> None:
    (model_folder / "config.json").write_text(json.dumps({"model_type": model_type, "architectures": [name]}))
    with pytest.raises(InputError, match=f"saved as {name}, which is no language model"):
        load_model(model_folder)


@pytest.mark.parametrize(("family", "key"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer")])
def test_fewer_layers_than_the_weights_hold(family: str, key: str, tiny_causal_lm: Any, tmp_path: Path) -> None:
    tiny_causal_lm(family).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: 1}))
    with pytest.raises(InputError, match=r"no place for, e\.g\. .*\.1\."):
        load_model(tmp_path)


def test_what_transformers_computes_anew_may_be_stored(model_folder: Path) -> None:
    before = load_model(model_folder)
    change_weights(model_folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert same_weights(load_model(model_folder), before)
    change_weights(model_folder, value_head__weight=torch.ones(4))
    with pytest.raises(InputError, match=r"no place for, e\.g\. value_head\.weight"):
        load_model(model_folder)


def test_an_adapters_weights_are_all_used(adapter_folder: Path) -> None:
    adapter, weights = "adapter_model.safetensors", load_file(adapter_folder / "adapter_model.safetensors")
    first = sorted(weights)[0]
    other = first.replace("layers.0", "layers.7")
    save_file({**weights, other: weights[first].clone()}, adapter_folder / adapter, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"holds 1 weights that .* has no place for.*layers\.7"):
        load_model(adapter_folder)
    del weights[first]
    save_file(weights, adapter_folder / adapter, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks 1 of the weights"):
        load_model(adapter_folder)


def test_a_head_of_several_labels_at_a_time_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model("bert", num_labels=3, problem_type="multi_label_classification")
    model.save_pretrained(tmp_path)
    for labels in (None, ["a", "b", "c"]):
        with pytest.raises(InputError, match="multi_label_classification"):
            load_model(tmp_path, labels=labels)
    with pytest.raises(InputError, match="multi_label_classification"):
        kind_of(model)


def test_a_changed_file_is_seen(model_folder: Path) -> None:
    from sinkd_llm.integrity import write_manifest

    write_manifest(model_folder)
    load_model(model_folder)
    change_weights(model_folder, model__norm__weight=torch.full((32,), 1.5))
    with pytest.raises(InputError, match=r"the bytes of .*model\.safetensors"):
        load_model(model_folder)


def test_a_student_of_a_quantised_base_says_so(model_folder: Path, caplog: Any) -> None:
    (model_folder / "sinkd_student.json").write_text('{"base_quantisation": "nf4"}')
    load_model(model_folder)
    assert "trained over a base in nf4" in caplog.text
    assert "--load_in_4bit" in caplog.text
    caplog.clear()
    (model_folder / "sinkd_student.json").write_text('{"base_quantisation": null}')
    load_model(model_folder)
    assert not caplog.records


# ---- models


class Tuned(transformers.LlamaForCausalLM):
    """A user's own class."""


class Unheard(transformers.LlamaPreTrainedModel):
    """A decoder none of whose ancestors is a language model of Transformers."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = transformers.LlamaModel(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **_: Any) -> Any:
        hidden = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids).last_hidden_state
        return transformers.modeling_outputs.CausalLMOutput(logits=self.lm_head(hidden))


class UnheardForTokenClassification(Unheard):
    """Its name says that its output is something else."""


def test_a_class_of_the_users_own_is_asked_for_its_ancestors_and_head(tiny_causal_lm: Any) -> None:
    config = tiny_causal_lm("llama").config
    for known in (Tuned, Unheard):
        assert kind_of(known(config)).name == "causal-lm"
    for unknown in (
        UnheardForTokenClassification,
        transformers.LlamaModel,
        transformers.LlamaForSequenceClassification,
    ):
        with pytest.raises(InputError, match="ForCausalLM"):
            kind_of(unknown(config))


CODE = """
import torch, transformers
class OddConfig(transformers.LlamaConfig):
    model_type = "odd-words"
class OddWriter(transformers.LlamaPreTrainedModel):
    config_class = OddConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = transformers.LlamaModel(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
    def forward(self, input_ids, attention_mask=None, position_ids=None, **more):
        hidden = self.model(input_ids, attention_mask=attention_mask, position_ids=position_ids).last_hidden_state
        return transformers.modeling_outputs.CausalLMOutput(logits=self.lm_head(hidden))
"""


def test_code_that_comes_with_a_model_may_call_it_as_it_likes(
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    expected = load_model(model_folder)
    (model_folder / "odd.py").write_text(CODE)
    config = json.loads((model_folder / "config.json").read_text())
    config |= {"model_type": "odd-words", "architectures": ["OddWriter"]}
    config["auto_map"] = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddWriter"}
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="trust_remote_code"):
        load_model(model_folder)
    model = load_model(model_folder, trust_remote_code=True)
    assert type(model).__name__ == "OddWriter"
    assert kind_of(model).name == "causal-lm"
    assert same_weights(model, expected)
    shutil.rmtree(model_folder)


def test_a_compiled_model_is_given_what_its_forward_takes(tiny_causal_lm: Any) -> None:

    model = tiny_causal_lm("gpt2")  # absolute positions: without position_ids padding would count
    seen: list[dict[str, Any]] = []
    compiled = torch.compile(model, backend="eager")
    expected = kind_of(model).supervised_rows(model, collate_ids(ID_ROWS)).logits_NV
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given), with_kwargs=True)
    assert forward_parameters(compiled) == forward_parameters(model) >= {"position_ids", "logits_to_keep"}
    logits_NV = kind_of(compiled).supervised_rows(compiled, collate_ids(ID_ROWS)).logits_NV
    assert {"position_ids", "logits_to_keep"} <= seen[-1].keys()
    torch.testing.assert_close(logits_NV, expected)


def test_a_forward_that_was_put_in_place_of_a_models_own(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("gpt2")
    own = model.forward
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)  # as accelerate's mixed precision does
    assert "position_ids" in forward_parameters(model)


def test_which_models_have_a_router(tiny_causal_lm: Any) -> None:
    assert has_router_loss(transformers.MixtralConfig())
    assert has_router_loss(transformers.Qwen3MoeConfig())
    assert not has_router_loss(tiny_causal_lm("llama").config)


def test_a_head_of_several_numbers_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    model = tiny_model("bert", num_labels=2, problem_type="regression")
    model.save_pretrained(tmp_path / "two")
    for labels in (None, ["a", "b"], ["a", "b", "c"]):
        with pytest.raises(InputError, match=r"predicts 2 numbers \(problem_type: regression"):
            load_model(tmp_path / "two", labels=labels)
    with pytest.raises(InputError, match="predicts 2 numbers"):
        kind_of(model)
    one = tiny_model("bert", num_labels=1, problem_type="regression")
    assert kind_of(one).scores_classes
    one.save_pretrained(tmp_path / "one")
    fresh = load_model(tmp_path / "one", labels=["a", "b", "c"])  # its head gives way to one that classifies
    assert (fresh.config.problem_type, fresh.config.num_labels) == (None, 3)
