"""Rows with choices, decoders that tell right from wrong positions and masks, and one forward a choice."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sinkd_llm.models.kinds import choices
from tests.support import models

# Random weights of the usual size give nearly uniform predictions, which would hide a wrong position or mask.
SPREAD = 8.0
MANY = [[7, 8, 9], [10], [7, 23, 12], [7, 8], [7, 8, 9, 4, 5], [13, 14], [13, 17, 18, 19, 20], [13, 17, 6]]
TREES: dict[str, Any] = {
    "llama": {},
    "gpt2": {},
    "opt": {},
    # Windows shorter than the prompts, in every other layer.
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}
# Their attention counts places, or makes positions of the mask.
CACHES: dict[str, Any] = {"gpt_neo": {"window_size": 8}, "bloom": {"n_head": 4, "n_layer": 2}}
STATES: dict[str, Any] = {"mamba": {"state_size": 4, "expand": 2}}
DECODERS = {**TREES, **CACHES, **STATES}


def spread(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SPREAD)
    return model


def decoder(family: str, **changes: Any) -> Any:
    return spread(models.decoder(family, seed=5, **DECODERS.get(family, {}), **changes))


def one_by_one(model: Any, rows: Sequence[Any]) -> list[list[Tensor]]:
    """Each choice in a forward of its own, without padding."""
    scores: list[list[Tensor]] = []
    for row in rows:
        scores.append([])
        for answer in row["answers_ids"]:
            prompt = row["prompt_ids"]
            if model.config.is_encoder_decoder:
                logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).logits[0]
            else:
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            log_probs = logits.log_softmax(dim=-1)
            scores[-1].append(sum((log_probs[t, token] for t, token in enumerate(answer)), log_probs.new_zeros(())))
    return scores


def assert_same(found_BC: Tensor, expected: Sequence[Sequence[Tensor]], tolerance: float = 1e-5) -> None:
    for row, values in zip(found_BC, expected, strict=True):
        torch.testing.assert_close(row[: len(values)], torch.stack([*values]), atol=tolerance, rtol=tolerance)
        assert (row[len(values) :] == -torch.inf).all()


def note_ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the ways in which choices are scored from now on."""
    used: list[str] = []
    for name in ("tree_logits", "shared_prompt_logits", "path_logits"):
        way = getattr(choices, name)
        monkeypatch.setattr(choices, name, lambda *args, way=way, name=name: (used.append(name), way(*args))[1])
    return used
