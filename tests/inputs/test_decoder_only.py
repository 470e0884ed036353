"""How decoder-only models read rows: tokens of prompt and answer, templates, cutting, padding on the left."""

import copy
from typing import Any

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator, DecoderOnlyTokenizer
from sinkd_llm.inputs.reading import Reading
from tests.support.rows import example

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chat_tokenizer(tiny_tokenizer: Any) -> Any:
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


def test_a_chat_template_that_refuses_a_turn_is_named_with_the_row(chat_tokenizer: Any) -> None:
    chat_tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + CHAT_TEMPLATE
    )
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    row = {"id": "r7", "prompt": turns, "completion": [{"role": "assistant", "content": "a"}]}
    with pytest.raises(InputError, match=r"refuses r7 \(System role not supported\), whose turns are system, user"):
        DecoderOnlyTokenizer(chat_tokenizer).features([row])


def test_a_conversation_without_messages_is_said_to_have_none(chat_tokenizer: Any) -> None:
    answer = [{"role": "assistant", "content": "a"}]
    row = {"id": "r7", "prompt": [{"role": "user", "content": "q"}], "completion": []}
    with pytest.raises(InputError, match="The completion of r7 is a conversation without messages; give"):
        DecoderOnlyTokenizer(chat_tokenizer).features([row])
    chat_tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{% endif %}" + CHAT_TEMPLATE
    with pytest.raises(InputError, match="The prompt of r7 is a conversation without messages, which"):
        DecoderOnlyTokenizer(chat_tokenizer).features([{**row, "prompt": [], "completion": answer}])


def test_bos_survives_the_cut(tiny_tokenizer: Any) -> None:
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


def test_an_empty_prompt_still_has_a_token_that_predicts_the_answer(tiny_tokenizer: Any) -> None:
    features = DecoderOnlyTokenizer(tiny_tokenizer).features([example("")], 0)[0]
    assert len(features["prompt_ids"]) == 1


def test_tokens_that_the_tokenizer_lacks(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-sequence token to close the answers"):
        DecoderOnlyTokenizer(tokenizer).features([{"prompt": "a", "completion": " b"}])
    with pytest.raises(InputError, match="The prompt of x-0 is empty, and the tokenizer has no begin or end token"):
        DecoderOnlyTokenizer(tokenizer).features([example("")])


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
