"""Rows that cannot be read are refused by their names."""

from typing import Any

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.decoder_only import DecoderOnlyTokenizer
from tests.support.rows import example


def test_an_unlabelled_row_is_refused_by_name(tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="x-0 has no label"):
        DecoderOnlyTokenizer(tiny_tokenizer).features([example(label=-1)], 0)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "The prompt of x-0 is null, not text"),
        ({"prompt": 5}, r"The prompt of x-0 is 5 \(int\), not text"),
        ({"completion": None, "choices": None}, "The completion of x-0 is null"),
        ({"completion": float("nan")}, "The completion of x-0 is NaN"),
        ({"completion": 1.5}, r"The completion of x-0 is 1.5 \(float\)"),
        ({"prompt": "a\ud800"}, r"gives text for x-0 that cannot be encoded: character 1 is U\+D800"),
        ({"prompt": [{"role": "user", "content": None}]}, r"Message 0 of the prompt of x-0 \(user\) has no content"),
        ({"prompt": [{"role": "user", "content": 5}]}, r"Message 0 .* has the content 5 \(int\), not text"),
        ({"prompt": [{"content": "a"}]}, "Message 0 of the prompt of x-0 is {'content': 'a'}; a message looks like"),
        ({"prompt": ["a"]}, "Message 0 of the prompt of x-0 is 'a'"),
        ({"prompt": [{"role": "user", "content": "a"}]}, "is a conversation and its completion text"),
        ({"id": None, "completion": None, "choices": None}, "The completion of row 3 is null"),
        (
            {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
            "x-0 has choices, and its prompt is a conversation",
        ),
        ({"choices": None}, "The choices of x-0 are None; give a list of texts"),
        (
            {"completion": " great"},
            "The completion of x-0 is ' great', and its label says that the choice ' positive'",
        ),
        ({"choices": [1, 2]}, r"The choices of x-0 are \[1, 2\]"),
        ({"choices": ["a", "a "]}, "The choices of x-0 hold 'a' more than once"),
        ({"choices": "yes"}, "The choices of x-0 are 'yes'"),
        ({"label": None}, r"x-0 has no label \(null\)"),
        ({"label": float("nan")}, r"x-0 has no label \(nan\)"),
        ({"label": 2}, "The label of x-0 is 2; it should be the index of one of its 2 choices, from 0 to 1"),
        ({"label": "positive"}, "The label of x-0 is 'positive'"),
        ({"label": "x" * 100_000}, r"The label of x-0 is 'x+… \(100,002 characters\)"),
    ],
)
def test_bad_rows_are_named(change: dict, message: str, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        DecoderOnlyTokenizer(tiny_tokenizer).features([{**example(), **change}], 3)
    assert len(str(caught.value)) < 400


def test_choices_need_a_label_and_a_label_needs_no_choices(tiny_tokenizer: Any) -> None:
    row = example()
    del row["label"]
    with pytest.raises(InputError, match="x-0 has choices, but no label; give a column 'label'"):
        DecoderOnlyTokenizer(tiny_tokenizer).features([row])
    for label in (-1, None, "positive", 7):
        features = DecoderOnlyTokenizer(tiny_tokenizer).features([{"prompt": "a", "completion": " b", "label": label}])
        assert features[0]["answer_ids"]
    assert DecoderOnlyTokenizer(tiny_tokenizer).features([{**example(), "label": 1.0}], ranking=True)[0]["label"] == 1


def test_a_completion_may_be_left_out_beside_choices_and_is_the_label_in_any_unicode_form(tiny_tokenizer: Any) -> None:
    def features(**change: Any) -> Any:
        return DecoderOnlyTokenizer(tiny_tokenizer).features([{**example(), **change}])

    assert features(completion=None) == features(completion="") == features()
    features(choices=[" bad", " caf\xe9"], completion=" cafe\u0301")
