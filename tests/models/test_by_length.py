"""An encoder's rows in parts of like length: which parts, and that they compute what one forward does."""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sinkd_llm.models.kinds import by_length
from sinkd_llm.models.kinds.by_length import logits_by_length, parts_by_length


def cost(lengths: list[int], parts: list[list[int]], of_a_part: int) -> int:
    return sum(len(rows) * max(lengths[row] for row in rows) + of_a_part for rows in parts)


def test_no_way_to_part_the_rows_costs_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_length, "_COST_OF_A_PART", 7)
    for seed in range(30):
        lengths = random.Random(seed).choices(range(1, 20), k=7)
        parts = parts_by_length(lengths)
        assert sorted(row for rows in parts for row in rows) == list(range(7))
        order = sorted(range(7), key=lengths.__getitem__)
        every_way = [
            [order[i:j] for i, j in itertools.pairwise([0, *cuts, 7])]
            for n in range(7)
            for cuts in itertools.combinations(range(1, 7), n)
        ]
        assert cost(lengths, parts, 7) == min(cost(lengths, way, 7) for way in every_way)


def test_rows_of_like_length_and_no_rows_stay_together() -> None:
    assert parts_by_length([9] * 32) == [list(range(32))]
    assert parts_by_length([]) == []


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_logits_and_gradients_are_those_of_one_forward(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    monkeypatch.setattr(by_length, "_COST_OF_A_PART", 2)
    model = tiny_model(family).double().eval()
    lengths = [3, 11, 4, 20, 5, 3]
    mask_SL = (torch.arange(20) < torch.tensor(lengths)[:, None]).long()
    ids_SL = torch.randint(5, 60, mask_SL.shape, generator=torch.Generator().manual_seed(0)) * mask_SL
    inputs = {"input_ids": ids_SL, "attention_mask": mask_SL}
    calls = []
    model.register_forward_pre_hook(lambda *_, **__: calls.append(1))
    found = logits_by_length(model, inputs)[0]
    assert len(calls) == len(parts_by_length(lengths)) > 1
    weight = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = model(**inputs).logits
    (expected * weight).sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_the_embeddings_of_all_parts_have_one_gradient(tiny_model: Callable[..., Any]) -> None:
    """It is as large as the vocabulary, and was most of what a part costs."""
    model = tiny_model("modernbert")  # whose words are its only embeddings
    lengths = [3, 3, 90, 90]
    mask_SL = (torch.arange(90) < torch.tensor(lengths)[:, None]).long()
    calls = []
    model.register_forward_pre_hook(lambda *_, **__: calls.append(1))
    logits = logits_by_length(model, {"input_ids": 7 * mask_SL, "attention_mask": mask_SL})[0]
    with torch.profiler.profile() as profile:
        logits.sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    assert len(calls) == 2
    assert counts["aten::embedding_dense_backward"] == 1
    assert not model.get_input_embeddings()._forward_hooks
