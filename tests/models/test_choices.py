"""Log-likelihoods of choices, of all kinds of models, against one forward a choice."""

from typing import Any

import pytest
import torch

from sinkd_llm.inputs.by_kind import row_collator
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator
from sinkd_llm.inputs.encoder_decoder import EncoderDecoderCollator
from sinkd_llm.models.kinds import choices, kind_of, shared_prompt, tree_attention
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.models.kinds.shared_prompt import can_share_prompts
from sinkd_llm.models.kinds.tree_attention import takes_trees
from tests.support.ranking import CACHES, DECODERS, MANY, TREES, assert_same, decoder, note_ways, one_by_one, spread

# Prompts of unlike length, so that there is padding; choices of which one begins another, of one token, and only one.
ROWS = [
    {"example_id": "a", "label": 0, "prompt_ids": list(range(5, 30)), "answers_ids": MANY},
    {"example_id": "b", "label": 1, "prompt_ids": [21, 22], "answers_ids": MANY},
    {"example_id": "c", "label": 0, "prompt_ids": list(range(5, 17)), "answers_ids": [[21], [22]]},
    {"example_id": "d", "label": 0, "prompt_ids": [9, 8, 7], "answers_ids": [[4, 5, 6]]},
]


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return note_ways(monkeypatch)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("multiple", [None, 16])
@torch.no_grad()
def test_a_decoder(family: str, multiple: int | None, tiny_causal_lm: Any, forwards: list[str]) -> None:
    model = decoder(family)
    scores = score_choices(kind_of(model), model, DecoderOnlyCollator(0, multiple)(ROWS))
    assert_same(scores.log_likelihood_BC, one_by_one(model, ROWS))
    assert scores.length_BC[2].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert (scores.log_likelihood_BC[0] - scores.log_likelihood_BC[1]).abs().max() > 0.1
    way = "tree_logits" if family in TREES else "shared_prompt_logits" if family in CACHES else "path_logits"
    assert forwards == [way]


@torch.no_grad()
def test_attention_that_adds_its_mask(tiny_causal_lm: Any, forwards: list[str]) -> None:
    model = spread(tiny_causal_lm("llama", seed=5, attn_implementation="eager"))
    scores = score_choices(kind_of(model), model, DecoderOnlyCollator(0)(ROWS))
    assert_same(scores.log_likelihood_BC, one_by_one(model, ROWS))
    assert forwards == ["tree_logits"]


@pytest.mark.parametrize("family", ["t5", "bart", "mbart"])
@torch.no_grad()
def test_an_encoder_decoder(family: str, tiny_model: Any) -> None:
    model = spread(tiny_model(family, "Seq2SeqLM", seed=5))
    read = []
    model.get_encoder().register_forward_hook(lambda *_: read.append(1))
    if family == "mbart":  # its decoder begins with the answer's last token, a language
        rows = [{**row, "answers_ids": [[*ids, 3] for ids in row["answers_ids"]]} for row in ROWS]
    else:
        rows = ROWS
    found = score_choices(kind_of(model), model, EncoderDecoderCollator(0)(rows))
    assert len(read) == 1
    assert_same(found.log_likelihood_BC, one_by_one(model, rows))


@torch.no_grad()
def test_a_mask(tiny_model: Any, marked_tokenizer: Any) -> None:
    model, tokenizer = spread(tiny_model("bert", "MaskedLM", seed=5)), marked_tokenizer("bert")
    mask = tokenizer.mask_token_id
    prompts = [[5, 6, 7, mask], [9, mask, 8, 10, 11]]
    rows = [{**ROWS[2], "prompt_ids": prompt, "answers_ids": [[7], [8], [9]]} for prompt in prompts]
    found = score_choices(kind_of(model), model, row_collator(model, tokenizer)(rows)).log_likelihood_BC
    for row, prompt in zip(found, prompts, strict=True):
        log_probs = model(torch.tensor([prompt])).logits[0, prompt.index(mask)].log_softmax(-1)
        torch.testing.assert_close(row, log_probs[[7, 8, 9]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom", "mamba", "t5"])
@torch.no_grad()
def test_parts_and_pieces_change_nothing(
    family: str, tiny_causal_lm: Any, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = spread(tiny_model(family, seed=5)) if family == "t5" else decoder(family)
    kind = kind_of(model)
    batch = (EncoderDecoderCollator if family == "t5" else DecoderOnlyCollator)(0)(ROWS)
    whole = score_choices(kind, model, batch).log_likelihood_BC
    asked: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, __, output: asked.append(output.shape[:-1].numel()))
    monkeypatch.setattr(choices, "NODES_AT_A_TIME", 3)
    monkeypatch.setattr(choices, "LOGITS_ON_A_PROCESSOR", 6 * head.weight.shape[0])
    monkeypatch.setattr(shared_prompt, "LEAST_PATHS_AT_A_TIME", 1)
    torch.testing.assert_close(score_choices(kind, model, batch).log_likelihood_BC, whole, atol=1e-5, rtol=1e-5)
    assert max(asked) <= 6
    assert len(asked) > 4


@torch.no_grad()
def test_each_beginning_is_asked_once(tiny_causal_lm: Any) -> None:
    model = decoder("llama")
    assert takes_trees(model, 60)
    asked: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, output: asked.append(output.shape[:-1].numel()))
    score_choices(kind_of(model), model, DecoderOnlyCollator(0)(ROWS[:2]))
    beginnings = {tuple(answer[:n]) for answer in MANY for n in range(len(answer))}
    assert asked == [2 * len(beginnings)]


def test_the_gradient_goes_through_one_reading_of_the_prompt(tiny_causal_lm: Any) -> None:
    model = decoder("llama").double()
    weights = torch.arange(1.0, len(MANY) + 1).double()
    batch = DecoderOnlyCollator(0)(ROWS[:2])
    gradients = []
    for scores in (
        score_choices(kind_of(model), model, batch).log_likelihood_BC,
        torch.stack([torch.stack(row) for row in one_by_one(model, ROWS[:2])]),
    ):
        model.zero_grad()
        (scores * weights).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_mask_of_a_tree_is_refused_where_a_window_counts_places(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("mistral", sliding_window=30, num_key_value_heads=4)
    assert takes_trees(model, 30)
    assert not takes_trees(model, 31)
    assert not takes_trees(tiny_causal_lm("llama"), 129), "longer than its positions"


@torch.no_grad()
def test_a_model_that_does_not_heed_the_mask_is_found_out(tiny_causal_lm: Any, monkeypatch: Any) -> None:
    model = decoder("llama")
    kind, batch = kind_of(model), DecoderOnlyCollator(0)(ROWS)
    forward = type(model).forward

    def heedless(self: Any, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **more: Any) -> Any:
        if attention_mask.ndim == 4:
            attention_mask = torch.ones_like(input_ids)
        return forward(self, input_ids, attention_mask, position_ids, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "forward", heedless)
        assert not takes_trees(model, 60)
    monkeypatch.setattr(choices, "tree_logits", None)
    assert can_share_prompts(model, 60)
    assert_same(score_choices(kind, model, batch).log_likelihood_BC, one_by_one(model, ROWS))


def test_the_check_leaves_the_modes_of_modules_alone(tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama").train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    assert takes_trees(model, 60)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("rows", [[ROWS[2]], [ROWS[3]]], ids=["one-token", "one-choice"])
def test_choices_that_are_one_text_are_one_forward(rows: Any, tiny_causal_lm: Any) -> None:
    model = tiny_causal_lm("llama")
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    score_choices(kind_of(model), model, DecoderOnlyCollator(0)(rows))
    assert len(calls) == 1
    assert model not in tree_attention._forms


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba"])
@torch.no_grad()
def test_ranks_make_the_same_number_of_forwards(
    family: str, tiny_causal_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank has a large batch in many parts, another one a row of single tokens."""
    model = decoder(family)
    kind = kind_of(model)
    monkeypatch.setattr(choices, "LOGITS_ON_A_PROCESSOR", model.get_output_embeddings().weight.shape[0])
    counts: list[int] = []
    wants: list[int] = []

    class Two:
        def numbers(self, own: int, *more: int, device: Any) -> list[list[int]]:
            if more:  # what prompts begin with
                return [[own, *more], [0, True]]
            wants.append(own)
            return [[own], [4]]

    model.register_forward_pre_hook(lambda *_: counts.append(1))
    made = []
    for rows in (ROWS, [ROWS[2]]):
        tree_attention._forms.pop(model, None)
        counts.clear()
        found = score_choices(kind, model, DecoderOnlyCollator(0)(rows), ranks=Two()).log_likelihood_BC
        made.append(len(counts))
        assert_same(found, one_by_one(model, rows))
    assert wants == [4, 1]
    assert made[0] == made[1]
