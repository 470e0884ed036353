"""Tokenisation, cutting, verbalizer checks and the collator."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.answer_choices import verbalizer_ids
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, DecoderOnlyTokenizer
from sinkd_llm.inputs.reading import Reading

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def example(prompt: str = "Review: good film\nSentiment:", label: int = 1, **more: Any) -> dict:
    choices = more.pop("choices", [" negative", " positive"])
    return {
        "id": more.pop("id", "x-0"),
        "prompt": prompt,
        "choices": choices,
        "label": label,
        "completion": choices[label],
        **more,
    }


@pytest.fixture
def chat_tokenizer(tiny_tokenizer: Any) -> Any:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def test_prompt_and_answer_together_are_the_tokens_of_the_whole_text(tiny_tokenizer: Any) -> None:
    features = DecoderOnlyTokenizer(tiny_tokenizer).features([example()], 0)[0]
    whole = tiny_tokenizer("Review: good film\nSentiment: positive")["input_ids"]
    assert features["prompt_ids"] + features["answer_ids"] == whole
    assert tiny_tokenizer.decode(features["answer_ids"]) == " positive"


def test_white_space_at_the_end_of_the_prompt_goes_to_the_answer(tiny_tokenizer: Any) -> None:
    row = {"prompt": "Review: good film\nSentiment: ", "completion": "positive"}
    features = DecoderOnlyTokenizer(tiny_tokenizer, Reading(add_eos=False)).features([row], 0)[0]
    assert tiny_tokenizer.decode(features["answer_ids"]) == " positive"


def test_prompt_completion_rows_are_closed_by_eos_and_task_rows_are_not(tiny_tokenizer: Any) -> None:
    tokenizer = DecoderOnlyTokenizer(tiny_tokenizer)
    plain = {"prompt": "question:", "completion": " answer"}
    eos = tiny_tokenizer.eos_token_id
    assert tokenizer.features([plain], 0)[0]["answer_ids"][-1] == eos
    assert eos not in tokenizer.features([example()], 0)[0]["answer_ids"]
    forced = DecoderOnlyTokenizer(tiny_tokenizer, Reading(add_eos=True))
    assert forced.features([example()], 0)[0]["answer_ids"][-1] == eos


def test_conversations_are_rendered_by_the_chat_template(chat_tokenizer: Any) -> None:
    row = {
        "prompt": [{"role": "user", "content": "question"}],
        "completion": [{"role": "assistant", "content": "answer"}],
    }
    features = DecoderOnlyTokenizer(chat_tokenizer).features([row], 3)[0]
    assert chat_tokenizer.decode(features["prompt_ids"]) == "<user>question<eos><assistant>"
    assert chat_tokenizer.decode(features["answer_ids"]) == "answer<eos>"
    assert features["example_id"] == "row 3"


def test_plain_prompts_become_a_users_turn_on_request(chat_tokenizer: Any) -> None:
    tokenizer = DecoderOnlyTokenizer(chat_tokenizer, Reading(apply_chat_template=True))
    features = tokenizer.features([example("good film?")], 0)[0]
    assert chat_tokenizer.decode(features["prompt_ids"]) == "<user>good film?<eos><assistant>"
    assert chat_tokenizer.decode(features["answer_ids"]) == "positive"


def test_a_conversation_without_a_template_is_refused(tiny_tokenizer: Any) -> None:
    row = {"prompt": [{"role": "user", "content": "q"}], "completion": []}
    with pytest.raises(InputError, match="no chat template"):
        DecoderOnlyTokenizer(tiny_tokenizer).features([row], 0)[0]


def test_a_long_prompt_is_cut_from_the_left_and_counted(tiny_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = [example("good " * 50 + "film\nSentiment:", id="long"), example(id="short")]
    with caplog.at_level(logging.WARNING):
        features = tokenize_dataset(
            Dataset.from_list(rows), DecoderOnlyTokenizer(tiny_tokenizer, Reading(max_length=20))
        )
    long = features[0]
    assert len(long["prompt_ids"]) + len(long["answer_ids"]) == 20
    assert tiny_tokenizer.decode(long["prompt_ids"]).endswith("film\nSentiment:")
    assert tiny_tokenizer.decode(long["answer_ids"]) == " positive"
    assert "1 of 2 prompts" in caplog.text


def test_bos_survives_the_cut(tiny_tokenizer: Any) -> None:
    import copy

    from tokenizers.processors import TemplateProcessing

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.bos_token = "<eos>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    row = example("good " * 50)
    full = DecoderOnlyTokenizer(tokenizer).features([row], 0)[0]
    cut = DecoderOnlyTokenizer(tokenizer, Reading(max_length=10)).features([row], 0)[0]
    bos = tokenizer.bos_token_id
    for features in (full, cut):
        assert features["prompt_ids"][0] == bos
        assert bos not in features["prompt_ids"][1:] + features["answer_ids"]
    assert len(cut["prompt_ids"]) + len(cut["answer_ids"]) == 10


def test_an_answer_that_leaves_no_room_is_refused(tiny_tokenizer: Any) -> None:
    row = example(choices=[" negative", " good" * 30])
    with pytest.raises(InputError, match="no room for a prompt"):
        DecoderOnlyTokenizer(tiny_tokenizer, Reading(max_length=10)).features([row], 0)[0]


def test_an_unlabelled_row_is_refused_by_name(tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="x-0 has no label"):
        DecoderOnlyTokenizer(tiny_tokenizer).features([example(label=-1)], 0)[0]


def test_an_empty_prompt_still_has_a_token_that_predicts_the_answer(tiny_tokenizer: Any) -> None:
    features = DecoderOnlyTokenizer(tiny_tokenizer).features([example("")], 0)[0]
    assert len(features["prompt_ids"]) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "completion"),
        ([], "columns|no rows"),
    ],
)
def test_bad_data_sets_say_what_is_wrong(rows: list, message: str, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=message):
        tokenize_dataset(Dataset.from_list(rows), DecoderOnlyTokenizer(tiny_tokenizer))


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
    import copy

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
    import copy

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
        ({"choices": None}, "The choices of x-0 are None; give a list of texts"),
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


def test_a_column_of_the_users_own_may_be_called_as_a_feature(tiny_tokenizer: Any) -> None:
    rows = [{**example(), "prompt_ids": "mine", "answer_ids": 3, "example_id": None, "num_cut": "x"}]
    features = tokenize_dataset(Dataset.from_list(rows), DecoderOnlyTokenizer(tiny_tokenizer))
    assert (
        features.to_list()
        == tokenize_dataset(Dataset.from_list([example()]), DecoderOnlyTokenizer(tiny_tokenizer)).to_list()
    )
    with pytest.raises(InputError, match="prompt_ids without answer_ids"):
        tokenize_dataset(Dataset.from_list([{"prompt_ids": [1]}]), DecoderOnlyTokenizer(tiny_tokenizer))


@pytest.mark.parametrize(
    "choices", [[["a", "b"], None], [["a", "b"], ["a", None]], [[1, 2], [3, 4]], ["a", "b"], [None, None]]
)
def test_columns_of_choices_that_are_no_lists_of_texts(choices: list, tiny_tokenizer: Any) -> None:
    rows = Dataset.from_dict({"prompt": ["p", "q"], "completion": ["a", "b"], "label": [0, 1], "choices": choices})
    with pytest.raises(InputError, match=r"The choices of row \d are .*; give a list of texts in every row"):
        tokenize_dataset(rows, DecoderOnlyTokenizer(tiny_tokenizer))


def test_a_chat_template_that_refuses_a_turn_is_named_with_the_row(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    row = {"id": "r7", "prompt": turns, "completion": [{"role": "assistant", "content": "a"}]}
    with pytest.raises(InputError, match=r"refuses r7 \(System role not supported\), whose turns are system, user"):
        DecoderOnlyTokenizer(chat_tokenizer).features([row])


def test_tokens_that_the_tokenizer_lacks(tiny_tokenizer: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token to close the answers"):
        DecoderOnlyTokenizer(tokenizer).features([{"prompt": "a", "completion": " b"}])
    with pytest.raises(InputError, match="The prompt of x-0 is empty, and the tokenizer has no begin or end token"):
        DecoderOnlyTokenizer(tokenizer).features([example("")])


def test_verbalizer_ids_are_the_tokens_of_all_choices(tiny_tokenizer: Any) -> None:
    dataset = Dataset.from_list([example(), example(label=0)])
    ids = verbalizer_ids(dataset, DecoderOnlyTokenizer(tiny_tokenizer))
    expected = {i for c in (" negative", " positive") for i in tiny_tokenizer(c)["input_ids"]}
    assert set(ids.tolist()) == expected
    varying = Dataset.from_list([example(), example(choices=[" yes", " no"])])
    with pytest.raises(InputError, match="2 different lists"):
        verbalizer_ids(varying, DecoderOnlyTokenizer(tiny_tokenizer))


def test_single_token_choices_share_one_sequence() -> None:
    row = {"example_id": "a", "label": 0, "prompt_ids": [5, 6], "answers_ids": [[7], [8], [9]]}
    batch = DecoderOnlyCollator(0)([row])
    assert batch["input_ids"].shape == (1, 3)
    assert batch["choice_sequence"].tolist() == [[0, 0, 0]]


def test_choices_share_a_sequence_only_where_they_agree_before_their_last_token() -> None:
    row = {
        "example_id": "a",
        "label": 0,
        "prompt_ids": [5, 6],
        "answers_ids": [[7], [8, 9], [8, 10], [11, 12]],
    }
    batch = DecoderOnlyCollator(0)([row, {**row, "answers_ids": [[7], [8]]}])
    sequence = batch["choice_sequence"]
    assert sequence[0, 1] == sequence[0, 2] != sequence[0, 3]
    assert sequence[1].tolist()[2:] == [-1, -1]
    assert batch["choice_ids"][0, 0].tolist() == [7, -100]


def test_the_collator_pads_on_the_left_to_a_multiple() -> None:
    rows = [
        {"example_id": "a", "prompt_ids": [5, 6, 7], "answer_ids": [8]},
        {"example_id": "b", "prompt_ids": [5], "answer_ids": [9, 10]},
    ]
    batch = DecoderOnlyCollator(0, pad_to_multiple_of=8)(rows)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 3]
    assert batch["labels"][1].tolist() == [-100] * 6 + [9, 10]
    assert batch["labels"][0, -1] == 8
    assert torch.equal(batch["input_ids"] != 0, batch["attention_mask"].bool())


def test_many_rows_are_tokenised_once_for_all_runs(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINKD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("sinkd_llm.inputs.dataset.CACHED_FROM", 4)
    calls: list[int] = []
    original = DecoderOnlyTokenizer.features

    def counted(self: Any, rows: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(rows))
        return original(self, rows, *args, **kwargs)

    monkeypatch.setattr(DecoderOnlyTokenizer, "features", counted)
    dataset = Dataset.from_list([example(label=i % 2, id=f"x-{i}") for i in range(6)])
    first = tokenize_dataset(dataset, DecoderOnlyTokenizer(tiny_tokenizer))
    again = tokenize_dataset(Dataset.from_list(dataset.to_list()), DecoderOnlyTokenizer(tiny_tokenizer))
    assert calls == [6]
    assert again.to_list() == first.to_list()
    # Everything that the features depend on is in the name of the file.
    tokenize_dataset(dataset, DecoderOnlyTokenizer(tiny_tokenizer), ranking=True)
    tokenize_dataset(dataset, DecoderOnlyTokenizer(tiny_tokenizer, Reading(max_length=9)))
    tokenize_dataset(dataset, DecoderOnlyTokenizer(tiny_tokenizer, Reading(add_eos=True)))
    tokenize_dataset(dataset.select([5, 4, 3, 2, 1]), DecoderOnlyTokenizer(tiny_tokenizer))
    assert calls == [6, 6, 6, 6, 5]
    tokenize_dataset(dataset.select(range(3)), DecoderOnlyTokenizer(tiny_tokenizer))
    assert len(list((tmp_path / "tokenised").glob("*.arrow"))) == 5  # and few rows are not kept
