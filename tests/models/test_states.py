"""The mean hidden state of a prompt, of every kind of model, against a forward of each row by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models.head_forms import describe_head
from sinkd_llm.models.kinds import kind_of
from sinkd_llm.models.kinds.packing import packed
from sinkd_llm.models.states import body_of, last_states, state_width
from tests.support.models import with_adapter
from tests.support.rows import batch_for, opinions

# Padded on the left. A later turn is no part of the prompt.
IDS = [[0, 5, 6, 7, 8, 9], [0, 0, 0, 0, 11, 12], [3, 4, 9, 6, 7, 5]]
LABELS = [[-100, -100, -100, -100, 8, 9], [-100] * 5 + [12], [-100, -100, 9, -100, 7, -100]]
PROMPTS = [[5, 6, 7], [11], [3, 4]]


@pytest.mark.parametrize("layout", ["padded", "packed", "adapter", "with its head left to the loss"])
def test_a_decoder_s_state_is_of_what_stands_before_the_first_answer(
    layout: str, tiny_causal_lm: Callable[..., Any]
) -> None:
    model = tiny_causal_lm(seed=1)
    if layout == "adapter":
        model = with_adapter(model)
    batch = {
        **{"input_ids": torch.tensor(IDS), "labels": torch.tensor(LABELS)},
        "attention_mask": torch.tensor(IDS).ne(0).long(),
    }
    if layout == "packed":
        batch = packed(batch)
    head = describe_head(model) if layout.startswith("with") else None
    rows = kind_of(model).supervised_rows(model, batch, head, states=True)
    body = body_of(model)
    expected = [body(torch.tensor([ids])).last_hidden_state[0].mean(dim=0) for ids in PROMPTS]
    torch.testing.assert_close(rows.states_SH, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert rows.states_SH.shape[1] == state_width(model)
    assert kind_of(model).supervised_rows(model, batch, head).states_SH is None
    rows.states_SH.sum().backward()
    assert not body._forward_hooks


@pytest.mark.parametrize(
    ("family", "head"), [("t5", ""), ("bart", ""), ("bert", "SequenceClassification"), ("roberta", "MaskedLM")]
)
def test_an_encoder_s_state_is_of_all_it_reads(
    family: str, head: str, tiny_model: Callable[..., Any], marked_tokenizer: Callable[[str], Any]
) -> None:
    model = tiny_model(family, head or "SequenceClassification", seed=1).eval()
    rows = [{**row, "prompt": row["prompt"] + " good film" * (18 * i)} for i, row in enumerate(opinions(3))]
    batch = batch_for(model, marked_tokenizer(family), rows)
    found = kind_of(model).supervised_rows(model, batch, states=True).states_SH
    for i, mask in enumerate(batch["attention_mask"]):
        alone = {name: batch[name][i : i + 1, : int(mask.sum())] for name in ("input_ids", "attention_mask")}
        state = body_of(model)(**alone).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(found[i], state, rtol=1e-4, atol=1e-5)


def test_a_model_without_a_body_and_a_compiled_one_are_refused(tiny_causal_lm: Callable[..., Any]) -> None:
    model = tiny_causal_lm(seed=1)
    with pytest.raises(InputError, match="does not say which of its modules is below its head"):
        body_of(model.model)
    with pytest.raises(InputError, match="compiled"), last_states(torch.compile(model)):
        pass
