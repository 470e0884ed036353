"""The choices of a data set: which tokens they are, and whether those tell them apart."""

import copy
from typing import Any

import pytest
from datasets import Dataset

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.answer_choices import verbalizer_ids
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyTokenizer
from sinkd_llm.inputs.reading import Reading
from tests.support.rows import example


def test_words_that_begin_with_the_same_token_train_but_are_no_verbalizer_vocabulary(tiny_tokenizer: Any) -> None:
    for choices in ([" un", " unxyz"], [" card_refund", " card_delivery"]):
        rows = Dataset.from_list([example(choices=choices, label=i) for i in (0, 1)])
        assert len(tokenize_dataset(rows, DecoderOnlyTokenizer(tiny_tokenizer), ranking=True)) == 2
        with pytest.raises(InputError, match=r"begin with the same token .* vocabulary=\"verbalizers\" cannot"):
            verbalizer_ids(rows, DecoderOnlyTokenizer(tiny_tokenizer))


def test_a_choice_that_begins_another_is_warned_of(tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_list([example(choices=[" un", " unxyz"])])
    tokenize_dataset(rows, DecoderOnlyTokenizer(tiny_tokenizer))
    assert "'un' begins the choice 'unxyz'" in caplog.text
    caplog.clear()
    tokenize_dataset(rows, DecoderOnlyTokenizer(tiny_tokenizer, Reading(add_eos=True)))
    assert caplog.text == ""


@pytest.fixture
def lowercasing_tokenizer(tiny_tokenizer: Any) -> Any:
    from tokenizers.normalizers import Lowercase

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    return tokenizer


def test_choices_that_are_the_same_tokens_are_refused(
    lowercasing_tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    choices = [" very good", " Very good"]
    with pytest.raises(InputError, match="'very good' and 'Very good' are the same tokens in this tokenizer"):
        tokenize_dataset(Dataset.from_list([example(choices=choices)]), DecoderOnlyTokenizer(lowercasing_tokenizer))
    varying = Dataset.from_list([example(choices=choices), example(choices=[" yes", " no"])])
    assert len(tokenize_dataset(varying, DecoderOnlyTokenizer(lowercasing_tokenizer), ranking=True)) == 2
    assert "1 of 2 rows that were looked at have two choices that are the same tokens" in caplog.text


def test_a_tokenizer_that_puts_a_space_in_front_takes_one_word_choices(tiny_tokenizer: Any) -> None:
    from tokenizers.normalizers import Prepend, Replace, Sequence

    tokenizer = copy.deepcopy(tiny_tokenizer)  # as the Llama-2 form of tokenizer.json: every text begins with its mark
    tokenizer.backend_tokenizer.normalizer = Sequence([Prepend("_"), Replace(" ", "_")])
    alone = [tokenizer(choice)["input_ids"] for choice in (" negative", " positive")]
    assert alone[0][0] == alone[1][0]
    rows = Dataset.from_list([example(), example(label=0)])
    features = tokenize_dataset(rows, DecoderOnlyTokenizer(tokenizer), ranking=True)[0]
    negative, positive = features["answers_ids"]
    assert negative[0] == positive[0]  # the mark, and the words behind it differ
    assert negative != positive


def test_verbalizer_ids_look_at_every_end_of_a_prompt(tiny_tokenizer: Any) -> None:
    class Merging(DecoderOnlyTokenizer):
        """Its answers are other tokens behind a question."""

        def choice_ids(self, rows: Any, start: int = 0) -> Any:
            return [[[7], [8]] if row["prompt"].endswith("?") else [[5], [6]] for row in rows]

    rows = [example("a:"), example("b:"), example("c?")]
    assert verbalizer_ids(Dataset.from_list(rows), Merging(tiny_tokenizer)).tolist() == [5, 6, 7, 8]


def test_choices_of_several_words_may_share_a_first_token(tiny_tokenizer: Any) -> None:
    rows = [example(choices=[" not good", " not bad"])]
    assert len(tokenize_dataset(Dataset.from_list(rows), DecoderOnlyTokenizer(tiny_tokenizer))) == 1


@pytest.mark.parametrize(
    "choices", [[["a", "b"], None], [["a", "b"], ["a", None]], [[1, 2], [3, 4]], ["a", "b"], [None, None]]
)
def test_columns_of_choices_that_are_no_lists_of_texts(choices: list, tiny_tokenizer: Any) -> None:
    rows = Dataset.from_dict({"prompt": ["p", "q"], "completion": ["a", "b"], "label": [0, 1], "choices": choices})
    with pytest.raises(InputError, match=r"The choices of row \d are .*; give a list of texts in every row"):
        tokenize_dataset(rows, DecoderOnlyTokenizer(tiny_tokenizer))


def test_verbalizer_ids_are_the_tokens_of_all_choices(tiny_tokenizer: Any) -> None:
    dataset = Dataset.from_list([example(), example(label=0)])
    ids = verbalizer_ids(dataset, DecoderOnlyTokenizer(tiny_tokenizer))
    expected = {i for c in (" negative", " positive") for i in tiny_tokenizer(c)["input_ids"]}
    assert set(ids.tolist()) == expected
    varying = Dataset.from_list([example(), example(choices=[" yes", " no"])])
    with pytest.raises(InputError, match="2 different lists"):
        verbalizer_ids(varying, DecoderOnlyTokenizer(tiny_tokenizer))
