"""Supervised logits against the plain forward of Transformers."""

from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds import kind_of
from tests.support.models import DECODERS
from tests.support.rows import ID_ROWS, collate_ids


@pytest.mark.parametrize("model_type", DECODERS)
def test_left_padding_equals_no_padding(model_type: str, tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm(model_type)
    supervised = kind_of(model).supervised_rows(model, collate_ids(ID_ROWS))
    assert supervised.labels_N.tolist() == [11, 14, 15, 16, 20, 21]
    assert supervised.example_N.tolist() == [0, 1, 1, 1, 2, 2]
    assert supervised.position_N.tolist() == [0, 0, 1, 2, 0, 1]
    expected = []
    for row in ID_ROWS:
        tokens = torch.tensor([row["prompt_ids"] + row["answer_ids"]])
        logits = model(input_ids=tokens).logits[0]
        expected.append(logits[len(row["prompt_ids"]) - 1 : -1])
    torch.testing.assert_close(supervised.logits_NV, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_the_order_of_the_batch_does_not_matter(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    forward = kind_of(model).supervised_rows(model, collate_ids(ID_ROWS))
    backward = kind_of(model).supervised_rows(model, collate_ids(ID_ROWS[::-1]))
    for e in range(3):
        torch.testing.assert_close(
            forward.logits_NV[forward.example_N == e],
            backward.logits_NV[backward.example_N == 2 - e],
            rtol=1e-4,
            atol=1e-5,
        )


def test_the_head_runs_only_where_answers_are(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    widths = []
    model.lm_head.register_forward_hook(lambda _, args, __: widths.append(args[0].shape[1]))
    rows = [{**row, "answer_ids": row["answer_ids"][:1]} for row in ID_ROWS]
    kind_of(model).supervised_rows(model, collate_ids(rows))
    assert widths == [1]


def test_right_padding_gives_the_same_rows(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    left = collate_ids(ID_ROWS)
    right = {key: value.clone() for key, value in left.items() if isinstance(value, torch.Tensor)}
    for b, length in enumerate(left["attention_mask"].sum(dim=1).tolist()):
        shift = left["input_ids"].shape[1] - length
        for tensor in right.values():
            tensor[b] = tensor[b].roll(-shift)
    a = kind_of(model).supervised_rows(model, left)
    b = kind_of(model).supervised_rows(model, right)
    torch.testing.assert_close(a.logits_NV, b.logits_NV, rtol=1e-4, atol=1e-5)


def test_no_supervised_token_gives_no_row_and_zero_gradients(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    batch = collate_ids(ID_ROWS)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    supervised = kind_of(model).supervised_rows(model, batch)
    assert supervised.logits_NV.shape == (0, model.config.vocab_size)
    supervised.logits_NV.sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and not g.any() for g in gradients)


def test_a_bert_with_a_causal_head_but_an_encoders_mask_is_refused() -> None:
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(InputError, match="looks ahead"):
        kind_of(BertLMHeadModel(config))
