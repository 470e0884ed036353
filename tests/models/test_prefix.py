"""The beginning that all prompts of a batch share is read once, and changes nothing: against one forward a choice."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator
from sinkd_llm.models.kinds import choices, kind_of, prefix_sharing, tree_attention
from sinkd_llm.models.kinds.choices import score_choices
from sinkd_llm.models.kinds.prefix import common_prefix
from sinkd_llm.models.kinds.prefix_sharing import LEAST_SHARED, KeptPrefix, continues_prefixes
from sinkd_llm.models.kinds.shared_prompt import can_share_prompts
from tests.support.ranking import CACHES, DECODERS, MANY, STATES, assert_same, decoder, note_ways, one_by_one

BEGIN = [5 + (7 * n) % 19 for n in range(LEAST_SHARED + 8)]
# Rows of unlike length; the second one is the beginning and nothing else.
OWN = [[21, 22, 9, 8, 7, 6, 11, 12, 13, 20, 14], [], [9, 8], [22]]
ROWS = [
    {"example_id": str(n), "label": 0, "prompt_ids": BEGIN + own, "answers_ids": MANY if n < 3 else [[21], [22]]}
    for n, own in enumerate(OWN)
]
SHORT = [{**row, "answers_ids": [[21], [22], [7]]} for row in ROWS]


def scored(model: Any, rows: Any = ROWS, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return score_choices(kind_of(model), model, DecoderOnlyCollator(0)(rows), **more).log_likelihood_BC


def exact(family: str, **changes: Any) -> tuple[Any, float]:
    """A decoder in fp64, and how close to be; in fp32 where attention computes in fp32 whatever its weights are."""
    rounds = family in CACHES or changes.get("attn_implementation") == "eager"
    model = decoder(family, **changes)
    return (model, 1e-5) if rounds else (model.double(), 1e-10)


def columns_read(model: Any) -> list[tuple[int, int]]:
    """Rows and columns of what the model reads from now on."""
    read: list[tuple[int, int]] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    return read


@pytest.mark.parametrize("rows", [ROWS, SHORT], ids=["many", "one-token"])
@pytest.mark.parametrize("family", [*DECODERS, "qwen2"])
def test_a_batch(family: str, rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tolerance = exact(family)
    tried = family in STATES or continues_prefixes(model)
    assert tried
    read, ways = columns_read(model), note_ways(monkeypatch)
    found = scored(model, rows)
    longest = max(len(row["prompt_ids"]) for row in rows)
    if family in STATES:
        assert read[0][1] >= longest, "a model that keeps a state reads all"
    else:
        assert read[0] == (1, len(BEGIN))
        assert max(columns for _, columns in read[1:]) < longest - len(BEGIN) + sum(map(len, MANY))
    with torch.no_grad():
        assert_same(found, one_by_one(model, rows), tolerance)
    if rows is ROWS:
        way = "shared_prompt_logits" if family in CACHES else "path_logits" if family in STATES else "tree_logits"
        assert ways == [way]


@pytest.mark.parametrize("family", ["gemma3_text", "llama"])
def test_branches_that_continue_a_cache(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that look back less far keep fewer tokens of the beginning than others."""
    model, tolerance = exact(family)
    monkeypatch.setattr(choices, "takes_trees", lambda *_: False)
    ways = note_ways(monkeypatch)
    with torch.no_grad():
        assert_same(scored(model), one_by_one(model, ROWS), tolerance)
    assert ways == ["shared_prompt_logits"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_attention_that_adds_its_mask(family: str) -> None:
    model, tolerance = exact(family, attn_implementation="eager")
    assert continues_prefixes(model)
    with torch.no_grad():
        assert_same(scored(model), one_by_one(model, ROWS), tolerance)


def test_prompts_that_are_all_the_same() -> None:
    model, tolerance = exact("llama")
    rows = [{**ROWS[1], "answers_ids": answers} for answers in (MANY, MANY[:2])]
    continues_prefixes(model)
    read = columns_read(model)
    found = scored(model, rows)
    assert read[0] == (1, len(BEGIN))
    with torch.no_grad():
        assert_same(found, one_by_one(model, rows), tolerance)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom"])
def test_parts_and_pieces_continue_one_reading(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tolerance = exact(family)
    continues_prefixes(model)
    monkeypatch.setattr(choices, "NODES_AT_A_TIME", 3)
    monkeypatch.setattr(choices, "LOGITS_ON_A_PROCESSOR", 6 * model.get_output_embeddings().weight.shape[0])
    read = columns_read(model)
    found = scored(model)
    assert len(read) > 5
    assert sum(columns >= len(BEGIN) for _, columns in read) == 1
    with torch.no_grad():
        assert_same(found, one_by_one(model, ROWS), tolerance)


def test_an_adapter_is_heeded() -> None:
    from peft import LoraConfig, get_peft_model

    model, tolerance = exact("llama")
    before = scored(model)
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear")).double()
    adapted.eval()
    found = scored(adapted)
    assert (found - before)[:3].abs().max() > 1e-3
    with torch.no_grad():
        assert_same(found, one_by_one(adapted, ROWS), tolerance)
    with adapted.disable_adapter():
        assert torch.equal(scored(adapted), before)


def test_weights_that_change_between_batches() -> None:
    model, tolerance = exact("qwen2")
    before = scored(model)
    for parameter in model.parameters():
        parameter.data *= 0.9  # of which no counter of versions knows
    found = scored(model)
    assert (found - before)[:3].abs().max() > 1e-3
    with torch.no_grad():
        assert_same(found, one_by_one(model, ROWS), tolerance)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom"])
def test_a_beginning_that_is_kept(family: str) -> None:
    """Also where a batch has less of it, or some tokens more."""
    model, tolerance = exact(family)
    continues_prefixes(model)
    read, kept = columns_read(model), KeptPrefix()
    less = [row | {"prompt_ids": BEGIN[:-3] + [20] + row["prompt_ids"]} for row in ROWS]
    more = [row | {"prompt_ids": [*BEGIN, 8, 9, *row["prompt_ids"][-3:]]} for row in ROWS]
    for rows in (ROWS, less, more, ROWS):
        found = scored(model, rows, kept=kept)
        with torch.no_grad():
            assert_same(found, one_by_one(model, rows), tolerance)
    assert sum(shape == (1, len(BEGIN)) for shape in read) == 1


def test_a_beginning_is_kept_for_one_model_and_what_is_like_it() -> None:
    (model, _), (other, tolerance) = exact("llama"), exact("qwen2")
    kept = KeptPrefix()
    scored(model, kept=kept)
    with torch.no_grad():
        assert_same(scored(other, kept=kept), one_by_one(other, ROWS), tolerance)
    assert kept.part(other, BEGIN) is not None
    assert kept.part(model, BEGIN) is None
    assert kept.part(other, BEGIN[1:]) is None
    assert kept.part(other, BEGIN * 2) is None, "so much more pays to be read"


def test_gradients_read_every_prompt_as_a_whole() -> None:
    model, _ = exact("llama")
    read = columns_read(model)
    assert score_choices(kind_of(model), model, DecoderOnlyCollator(0)(ROWS)).log_likelihood_BC.requires_grad
    assert (1, len(BEGIN)) not in read
    assert model not in prefix_sharing._tried


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:1],
        [{**row, "prompt_ids": row["prompt_ids"][9:]} for row in ROWS],
        [*ROWS, {**ROWS[0], "prompt_ids": [9]}],
    ],
    ids=["one-row", "short", "another"],
)
def test_what_is_not_worth_it(rows: Any) -> None:
    model, _ = exact("llama")
    scored(model, rows)
    assert model not in prefix_sharing._tried


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_keys_that_depend_on_where_a_text_ends(rope: str) -> None:
    """Where all texts of a batch are short they do not."""
    size = {"original_max_position_embeddings": 48, "factor": 4.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    kept = size if rope == "longrope" else {"factor": 4.0}
    model, _ = exact(
        "llama",
        rope_parameters={"rope_type": rope, "rope_theta": 10000.0, **kept},
        max_position_embeddings=192 if rope == "longrope" else 48,
    )
    assert can_share_prompts(model, 48)
    assert not can_share_prompts(model, 49)
    scored(model)
    assert model not in prefix_sharing._tried
    short = [row | {"answers_ids": [[21], [22]]} for row in ROWS[1:]]
    with torch.no_grad():
        assert_same(scored(model, short), one_by_one(model, short), 1e-10)
    assert prefix_sharing._tried[model]


def test_dropout_is_drawn_for_each_row() -> None:
    model, _ = exact("llama")
    model.model.layers[0].train()
    scored(model)
    assert model not in prefix_sharing._tried


def test_a_model_that_does_not_continue_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tolerance = exact("llama")
    forward = type(model).forward

    def forgetful(self: Any, input_ids: Any, past_key_values: Any = None, **more: Any) -> Any:
        if past_key_values is not None and len(past_key_values.layers):
            past_key_values.layers[0]._place_ER = past_key_values.layers[0]._place_ER * 0
        return forward(self, input_ids, past_key_values=past_key_values, **more)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "forward", forgetful)
        assert not continues_prefixes(model)
    with torch.no_grad():
        assert_same(scored(model), one_by_one(model, ROWS), tolerance)


def test_a_model_that_lies_in_parts_is_not_run_once_more_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = exact("llama")
    monkeypatch.setattr(prefix_sharing, "is_partitioned", lambda _: True)
    scored(model)
    assert model not in prefix_sharing._tried


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba"])
@pytest.mark.parametrize("other", [0, 40], ids=["the-other-has-none", "both"])
def test_ranks_share_together(family: str, other: int) -> None:
    """Each has another beginning, and other choices; all make as many forwards, or none shares."""
    model, tolerance = exact(family)
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    told: list[int] = []

    def numbers(own: int, *more: int, device: Any) -> list[list[int]]:
        if not more:  # parts of the batch
            return [[own], [2]]
        told.append(own)
        return [[own, *more], [other, True]]

    made = []
    for rows in (ROWS, [{**row, "prompt_ids": [7, *row["prompt_ids"]]} for row in SHORT]):
        prefix_sharing._tried.pop(model, None)
        tree_attention._forms.pop(model, None)
        calls.clear()
        found = scored(model, rows, ranks=SimpleNamespace(numbers=numbers))
        made.append(len(calls))
        with torch.no_grad():
            assert_same(found, one_by_one(model, rows), tolerance)
    assert told == ([0, 0] if family == "mamba" else [len(BEGIN), len(BEGIN) + 1])
    assert made[0] == made[1]
    assert (model in prefix_sharing._tried) == (bool(other) and family != "mamba")


def test_what_prompts_begin_with() -> None:
    ids_BP = torch.tensor([[0, 0, 4, 5, 6, 7], [4, 5, 6, 8, 4, 5], [0, 4, 5, 6, 7, 9]])
    mask_BP = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 1, 1, 1, 1, 1]])
    assert common_prefix(ids_BP, mask_BP) == (4, 5, 6)
    assert common_prefix(ids_BP[::2], mask_BP[::2]) == (4, 5, 6, 7)
    assert common_prefix(torch.tensor([[4, 5], [5, 4]]), torch.ones(2, 2).long()) == ()


@pytest.mark.real_model
def test_smollm2_after_examples(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    shots = [("The sky is blue.", "true"), ("Fish live in trees.", "false"), ("Ice is cold.", "true")]
    begin = "Is the sentence true or false?\n\n" + "".join(f"{text}\nAnswer: {word}\n\n" for text, word in shots)
    rows = [
        {
            "example_id": text,
            "label": 0,
            "prompt_ids": tokenizer(f"{begin}{text}\nAnswer:")["input_ids"],
            "answers_ids": [tokenizer(word)["input_ids"] for word in (" true", " not at all true")],
        }
        for text in ("Fire is cold.", "Two and two make four, as everybody knows who has learnt to count.")
    ]
    continues_prefixes(model)
    found = scored(model, rows)
    with torch.no_grad():
        assert_same(found, one_by_one(model, rows), 1e-4)
