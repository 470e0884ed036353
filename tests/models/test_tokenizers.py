"""Tokenizers: ready to batch, and refused when teacher and student do not share one."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

from sinkd_llm.errors import InputError
from sinkd_llm.models import check_same_tokenizer, load_model, load_tokenizer
from sinkd_llm.models.tokenizers import _say_once
from tests.support import models
from tests.support.models import with_adapter


@pytest.fixture
def tokenizer_folder(tiny_tokenizer: Any, tiny_causal_lm: Any, tmp_path: Path) -> Path:
    tiny_causal_lm().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return tmp_path


def other(tokenizer: Any, **changes: Any) -> Any:
    """A copy of `tokenizer` whose serialised backend went through `changes` (old text: new text)."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    text = tokenizer.backend_tokenizer.to_str()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(text), pad_token="<pad>", eos_token="<eos>")


def test_a_tokenizer_pads_on_the_left(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    batch = tokenizer(["good", "good bad"], padding=True)
    assert batch.attention_mask[0][0] == 0
    assert batch.input_ids[0][0] == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "SequenceClassification"), ("roberta", "MaskedLM"), ("t5", ""), ("bart", "")]
)
def test_other_kinds_are_padded_on_the_right(family: str, head: str, tmp_path: Path) -> None:
    """BERT counts positions from the first token on: a text that is padded on the left is another text to it."""
    model, tokenizer = models.encoder_or_encoder_decoder(family, head).eval(), models.marked_tokenizer(family)
    tokenizer.padding_side = "left"
    loaded = load_tokenizer(models.save(tmp_path / "model", model, tokenizer))
    assert loaded.padding_side == "right"
    if family == "bert":
        rows = ["good film", "the film was not good but the plot was great"]
        alone = model(**loaded(rows[:1], return_tensors="pt")).logits
        together = model(**loaded(rows, padding=True, return_tensors="pt")).logits
        torch.testing.assert_close(together[:1], alone)
        adapted = with_adapter(load_model(tmp_path / "model"), target_modules=["query"], task_type="SEQ_CLS")
        adapted.save_pretrained(tmp_path / "adapter")
        loaded.save_pretrained(tmp_path / "adapter")
        assert load_tokenizer(tmp_path / "adapter").padding_side == "right"


def test_without_a_pad_token_it_pads_with_the_end_token_and_says_so_once(
    tiny_tokenizer: Any, tokenizer_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = copy.deepcopy(tiny_tokenizer)
    bare.pad_token = None
    bare.save_pretrained(tokenizer_folder)
    _say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert load_tokenizer(tokenizer_folder).pad_token == "<eos>"
    said = [record for record in caplog.records if "no pad token" in record.message]
    assert len(said) == 1
    bare.eos_token = None
    bare.save_pretrained(tokenizer_folder)
    with pytest.raises(InputError, match="neither a pad nor an end-of-sequence token"):
        load_tokenizer(tokenizer_folder)


def test_a_folder_without_a_tokenizer_is_refused(tokenizer_folder: Path) -> None:
    for file in tokenizer_folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="a model but no tokenizer"):
        load_tokenizer(tokenizer_folder)


def test_a_damaged_tokenizer_is_refused(tokenizer_folder: Path) -> None:
    (tokenizer_folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_tokenizer(tokenizer_folder)


def test_an_adapter_without_a_tokenizer_uses_its_bases(
    tokenizer_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    with_adapter(load_model(tokenizer_folder)).save_pretrained(tmp_path / "adapter")
    assert load_tokenizer(tmp_path / "adapter").get_vocab() == tiny_tokenizer.get_vocab()


def test_the_same_tokenizer_is_accepted(tiny_tokenizer: Any) -> None:
    check_same_tokenizer(tiny_tokenizer, tiny_tokenizer)
    check_same_tokenizer(tiny_tokenizer, other(tiny_tokenizer))


def test_a_token_that_differs_is_named(tiny_tokenizer: Any) -> None:
    index = tiny_tokenizer.convert_tokens_to_ids("!")
    with pytest.raises(InputError, match=rf"token {index} is '!' to the teacher and '¡¡'"):
        check_same_tokenizer(tiny_tokenizer, other(tiny_tokenizer, **{'"!":': '"¡¡":'}))


def test_added_tokens_behind_the_end_are_accepted(tiny_tokenizer: Any) -> None:
    grown = other(tiny_tokenizer)
    grown.add_special_tokens({"additional_special_tokens": ["<image>", "<tool>"]})
    check_same_tokenizer(tiny_tokenizer, grown)
    check_same_tokenizer(grown, tiny_tokenizer)


def test_a_reserved_id_may_have_been_named(tiny_tokenizer: Any) -> None:
    def with_special(token: str) -> Any:
        grown = other(tiny_tokenizer)
        grown.add_special_tokens({"additional_special_tokens": [token]})
        return grown

    check_same_tokenizer(with_special("<reserved_0>"), with_special("<tool>"))
    with pytest.raises(InputError, match="'<image>' to the teacher and '<tool>' to the student"):
        check_same_tokenizer(with_special("<image>"), with_special("<tool>"))


def test_a_larger_vocabulary_is_refused(tiny_tokenizer: Any) -> None:
    last = max(tiny_tokenizer.get_vocab().values())
    more = other(tiny_tokenizer, **{f":{last}}}": f':{last},"zzz":{last + 1}}}'})
    with pytest.raises(InputError, match=r"only the student knows 1 tokens.*'zzz'"):
        check_same_tokenizer(tiny_tokenizer, more)
    with pytest.raises(InputError, match=r"only the teacher knows 1 tokens.*'zzz'"):
        check_same_tokenizer(more, tiny_tokenizer)


def test_one_vocabulary_with_other_rules_is_refused(tiny_tokenizer: Any) -> None:
    lower = other(tiny_tokenizer)
    lower.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(InputError, match="vocabularies agree, but the teacher splits"):
        check_same_tokenizer(tiny_tokenizer, lower)


@pytest.mark.real_model
def test_smollm2_against_another(smollm2: tuple[Any, Any], tiny_tokenizer: Any) -> None:
    check_same_tokenizer(smollm2[1], load_tokenizer("smollm2-135m"))
    with pytest.raises(InputError, match="different tokenizers"):
        check_same_tokenizer(smollm2[1], tiny_tokenizer)
