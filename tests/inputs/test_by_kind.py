"""The tokenizer and the collator of each kind."""

import copy
from typing import Any

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.by_kind import row_collator, row_tokenizer
from sinkd_llm.inputs.reading import Reading
from sinkd_llm.models.kinds import KINDS

# A model of each kind: its type and its head.
MODELS = {
    "causal-lm": ("llama", ""),
    "seq2seq-lm": ("t5", ""),
    "sequence-classification": ("bert", "SequenceClassification"),
    "masked-lm": ("bert", "MaskedLM"),
}


@pytest.fixture
def model_of(tiny_causal_lm: Any, tiny_model: Any) -> Any:
    def build(kind: str) -> Any:
        model_type, head = MODELS[kind]
        return tiny_model(model_type, head) if KINDS[kind].body != "decoder" else tiny_causal_lm(model_type)

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_tokenizer_and_collator_of_a_kind_stand_in_one_file(
    kind: str, model_of: Any, tiny_tokenizer: Any, marked_tokenizer: Any
) -> None:
    tokenizer = tiny_tokenizer if kind == "causal-lm" else marked_tokenizer(MODELS[kind][0])
    made = row_tokenizer(model_of(kind), tokenizer, Reading()), row_collator(model_of(kind), tokenizer)
    files = {type(part).__module__.rsplit(".", 1)[-1] for part in made}
    assert files == {type(KINDS[kind]).__module__.rsplit(".", 1)[-1]}  # and the kind's own file has the same name


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_without_a_token_to_pad_with_is_refused(kind: str, model_of: Any, marked_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(marked_tokenizer("bert"))
    tokenizer.pad_token = None
    with pytest.raises(InputError, match="no token to pad a batch with"):
        row_collator(model_of(kind), tokenizer)
