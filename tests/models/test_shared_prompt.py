"""Answers that continue from the prompt's cache against one forward over prompt and answer."""

from typing import Any

import pytest
import torch

from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator
from sinkd_llm.models.kinds import can_share_prompts, kind_of, shared_prompt, shared_prompt_logits
from sinkd_llm.models.kinds.choices import score_choices

# Random weights of the usual size give nearly uniform predictions, which would hide a wrong position or mask.
SPREAD = 8.0
# Prompts of unlike length, so that there is padding; answers of unlike length, one of a single token.
ROWS = [
    {"example_id": "a", "label": 0, "prompt_ids": list(range(5, 35)), "answers_ids": [[7, 8, 9], [10], [7, 23, 12]]},
    {"example_id": "b", "label": 1, "prompt_ids": [40, 41], "answers_ids": [[13, 14], [15, 16], [13, 17, 18, 19, 20]]},
    {"example_id": "c", "label": 0, "prompt_ids": list(range(50, 62)), "answers_ids": [[21], [22]]},
]
MODELS = {
    "llama": {},
    "gpt2": {},
    "opt": {},
    "qwen3": {},
    # Windows shorter than the prompts, in every other layer, as in Gemma 3 and GPT-Neo.
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neo": {"window_size": 8},
    "bloom": {},
}


def spread(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SPREAD)
    return model


def model_of(model_type: str, tiny_causal_lm: Any) -> Any:
    changes = dict(MODELS[model_type])
    if model_type == "bloom":
        changes |= {"n_head": 4, "n_layer": 2}
    return spread(tiny_causal_lm(model_type, seed=5, **changes))


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("multiple", [None, 16])
def test_log_likelihoods_are_those_of_one_forward(model_type: str, multiple: int | None, tiny_causal_lm: Any) -> None:
    model = model_of(model_type, tiny_causal_lm)
    batch = DecoderOnlyCollator(0, multiple)(ROWS)
    kind = kind_of(model)
    assert can_share_prompts(model)
    assert len(batch["labels"]) > len(ROWS)
    with torch.no_grad():
        expected = score_choices(kind, model, batch, share_prompts=False)
        got = score_choices(kind, model, batch)
    spread_of_scores = expected.log_likelihood_BC[0, 0] - expected.log_likelihood_BC[1, 0]
    assert abs(spread_of_scores) > 0.1
    torch.testing.assert_close(got.log_likelihood_BC, expected.log_likelihood_BC, atol=1e-5, rtol=1e-5)
    assert torch.equal(got.length_BC, expected.length_BC)


@pytest.mark.parametrize("model_type", ["gpt2", "gemma3_text"])
def test_rows_come_in_order_and_in_parts_of_bounded_size(
    model_type: str, tiny_causal_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(model_type, tiny_causal_lm)
    batch = DecoderOnlyCollator(0)(ROWS)
    sequences, vocabulary = len(batch["labels"]), model.config.vocab_size
    prompt_S = torch.tensor([0, 0, 1, 1, 2])  # choices that differ in their last token alone share a sequence
    monkeypatch.setattr(shared_prompt, "LOGITS_AT_A_TIME", 2 * 5 * vocabulary)  # two answers of five tokens
    parts = list(shared_prompt_logits(model, batch, prompt_S))
    assert (sequences, len(parts)) == (5, 3)
    assert all(len(part.logits_NV) <= 10 for part in parts)
    with torch.no_grad():
        whole = kind_of(model).supervised_rows(model, batch)
    for name in ("labels_N", "example_N", "position_N"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    torch.testing.assert_close(torch.cat([part.logits_NV for part in parts]), whole.logits_NV, atol=1e-4, rtol=1e-5)


def test_choices_of_one_token_stay_at_one_forward(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    score_choices(kind_of(model), model, DecoderOnlyCollator(0)([ROWS[2]]))
    assert len(calls) == 1


def test_a_model_without_keys_and_values_is_run_whole(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("mamba", state_size=4, expand=2)
    assert not can_share_prompts(model)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    scores = score_choices(kind_of(model), model, DecoderOnlyCollator(0)(ROWS))
    assert torch.isfinite(scores.log_likelihood_BC[0]).all()
    assert len(calls) == 1
