"""Answers are tokenised apart from their prompts only where that gives the tokens that both give together."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from sinkd_llm.inputs.boundary import Boundary
from sinkd_llm.inputs.decoder_only import DecoderOnlyTokenizer

LETTERS = "ab12:. \u2581"
MERGES = [("a", "b"), ("\u2581", "a"), ("\u2581a", "b"), ("b", "\u2581"), (":", "\u2581"), ("1", "2"), ("\u0120", "a")]


def tokenizer(cutter: Any, normalizer: Any = None, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    alphabet = [*LETTERS, "\u0120", "<unk>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*alphabet, *map("".join, MERGES)]))}
    model = BPE(vocabulary, MERGES, unk_token="<unk>", ignore_merges=ignore_merges)
    backend = Tokenizer(model)
    if cutter is not None:
        backend.pre_tokenizer = cutter
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")


SPACES = normalizers.Replace(" ", "\u2581")
CUTTERS = {
    "bytes": tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "digits": tokenizer(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])),
    "none": tokenizer(None, SPACES),
    "none, whole words first": tokenizer(None, SPACES, ignore_merges=True),
    "prefix": tokenizer(None, normalizers.Sequence([normalizers.Prepend("\u2581"), SPACES])),
    "words": tokenizer(pre_tokenizers.Metaspace()),
    "runs of letters and spaces": tokenizer(pre_tokenizers.Split(Regex("[ab ]+"), "isolated"), SPACES),
}


def both_together(one: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Prompt and answer, from the tokens of the prompt and of the whole."""
    prompt_ids, whole, alone = (
        one(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer, answer)
    )
    return prompt_ids, whole[len(prompt_ids) :] if whole[: len(prompt_ids)] == prompt_ids else alone


@pytest.mark.parametrize("name", CUTTERS)
@settings(max_examples=150, deadline=None)
@given(prompt=st.text("ab12:. ", max_size=8), answers=st.lists(st.text("ab12. ", min_size=1, max_size=6), min_size=1))
def test_the_tokens_are_those_of_prompt_and_answer_together(name: str, prompt: str, answers: list[str]) -> None:
    prompt, read = prompt.rstrip(), DecoderOnlyTokenizer(CUTTERS[name])
    (encoded,) = read._encode_rows([{}], [(prompt, answers)])
    expected = [both_together(CUTTERS[name], prompt, answer) for answer in answers]
    assert encoded == (expected[0][0], [answer_ids for _, answer_ids in expected])


@pytest.mark.parametrize(
    ("name", "parted"),
    [("bytes", True), ("digits", True), ("none", True), ("none, whole words first", False), ("prefix", False)],
)
def test_which_tokenizers_let_an_answer_be_read_alone(name: str, parted: bool) -> None:
    assert Boundary(CUTTERS[name]).parts("a:", " ab") is parted


def test_what_an_answer_and_a_prompt_have_to_look_like() -> None:
    boundary = Boundary(CUTTERS["bytes"])
    assert boundary.parts("", " ab")
    assert not boundary.parts("a:", "ab")
    assert not boundary.parts("a:", "  ab")
    assert not boundary.parts("a\n", " ab")


def test_a_token_that_takes_the_space_after_it_along() -> None:
    one = tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
    one.add_tokens([AddedToken("<end>", rstrip=True, normalized=False)])
    assert not Boundary(one).parts("a<end>", " ab")
    (encoded,) = DecoderOnlyTokenizer(one)._encode_rows([{}], [("a<end>", [" ab"])])
    prompt_ids, answer_ids = both_together(one, "a<end>", " ab")
    assert encoded == (prompt_ids, [answer_ids])


def test_a_row_does_not_change_the_answers_of_another(tiny_tokenizer: Any) -> None:
    rows = [{"prompt": "good film:", "completion": None, "choices": [" good", " bad"], "label": i % 2} for i in (0, 1)]
    features = DecoderOnlyTokenizer(tiny_tokenizer).features(rows, ranking=True)
    features[0]["answers_ids"][0].append(99)
    assert features[1]["answers_ids"][0][-1] != 99
    assert features[1]["answers_ids"] == DecoderOnlyTokenizer(tiny_tokenizer).choice_ids(rows[1:])[0]
