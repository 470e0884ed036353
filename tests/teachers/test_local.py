"""What a teacher gives beside its logits: hidden states, which another rank makes the same logits of."""

from typing import Any

import pytest
import torch

from sinkd_llm.teachers import LocalTeacher
from tests.support.models import DECODERS, ENCODER_DECODERS, ENCODERS
from tests.support.rows import CHOICE_ROWS, ID_ROWS, batch_for, collate_ids


def check(teacher: LocalTeacher, batch: dict[str, Any]) -> None:
    rows = teacher.supervised_rows(batch, with_hidden=True)
    assert rows.hidden_NH is not None
    assert rows.hidden_NH.shape == (len(rows.labels_N), 32)
    torch.testing.assert_close(teacher.logits(rows.hidden_NH), rows.logits_NV, rtol=1e-5, atol=1e-6)
    plain = teacher.supervised_rows(batch)
    assert plain.hidden_NH is None
    assert torch.equal(plain.logits_NV, rows.logits_NV)


@pytest.mark.parametrize("family", DECODERS)
def test_the_hidden_states_of_a_decoder_give_its_logits(family: str, tiny_causal_lm: Any) -> None:
    check(LocalTeacher(tiny_causal_lm(family)), collate_ids(ID_ROWS))


@pytest.mark.parametrize("family", [*ENCODER_DECODERS, *ENCODERS])
def test_the_hidden_states_of_the_other_families_give_their_logits(
    family: str, tiny_model: Any, marked_tokenizer: Any
) -> None:
    model, tokenizer = tiny_model(family, "MaskedLM"), marked_tokenizer(family)
    check(LocalTeacher(model), batch_for(model, tokenizer, CHOICE_ROWS))


@pytest.mark.parametrize("cap", [30.0, 1e4, None])
def test_logits_that_are_changed_behind_the_head_are_not_those_of_hidden_states(
    cap: float | None, tiny_causal_lm: Any
) -> None:
    model = tiny_causal_lm("gemma2")
    model.config.final_logit_softcapping = cap
    rows = LocalTeacher(model).supervised_rows(collate_ids(ID_ROWS), with_hidden=True)
    assert (rows.hidden_NH is None) == (cap is not None)  # even one that hardly bends logits as small as these


def test_an_added_bias_is_seen(tiny_model: Any, marked_tokenizer: Any) -> None:
    model, tokenizer = tiny_model("bart"), marked_tokenizer("bart")
    model.final_logits_bias += 0.1
    rows = LocalTeacher(model).supervised_rows(batch_for(model, tokenizer, CHOICE_ROWS), with_hidden=True)
    assert rows.hidden_NH is None


def test_no_hidden_states_where_logits_are_smaller(
    tiny_model: Any, tiny_causal_lm: Any, marked_tokenizer: Any
) -> None:
    model, tokenizer = tiny_model("bert"), marked_tokenizer("bert")
    rows = LocalTeacher(model).supervised_rows(batch_for(model, tokenizer, CHOICE_ROWS[:1]), with_hidden=True)
    assert rows.hidden_NH is None  # two classes
    wide = LocalTeacher(tiny_causal_lm("llama", hidden=64, vocab=48))
    assert wide.supervised_rows(collate_ids(ID_ROWS), with_hidden=True).hidden_NH is None


def test_a_batch_without_supervised_tokens_has_empty_hidden_states(tiny_causal_lm: Any) -> None:
    batch = collate_ids(ID_ROWS)
    batch["labels"][:] = -100
    rows = LocalTeacher(tiny_causal_lm("llama")).supervised_rows(batch, with_hidden=True)
    assert rows.hidden_NH is not None
    assert rows.hidden_NH.shape == (0, 32)
