"""Batches for ranking: prompts, and trees that rows share."""

import pickle

from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator
from sinkd_llm.inputs.encoder_decoder import EncoderDecoderCollator
from sinkd_llm.inputs.masked import MaskCollator

ANSWERS = [[7], [8, 9], [8, 10], [11, 12]]
ROW = {"example_id": "a", "label": 0, "prompt_ids": [5, 6], "answers_ids": ANSWERS}
SHORT = {**ROW, "example_id": "b", "prompt_ids": [5], "answers_ids": [[7], [8]]}


def test_a_decoder_reads_prompts_and_trees() -> None:
    batch = DecoderOnlyCollator(0)([ROW, SHORT])
    assert batch["input_ids"].tolist() == [[5, 6], [0, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["example_id"] == ["a", "b"]
    assert [tree.choices for tree in batch["trees"]] == [((7,), (8, 9), (8, 10), (11, 12)), ((7,), (8,))]
    assert DecoderOnlyCollator(0, 8)([ROW])["input_ids"].shape == (1, 8)


def test_rows_with_the_same_choices_share_a_tree_also_from_another_process() -> None:
    batch = DecoderOnlyCollator(0)([ROW, {**ROW, "prompt_ids": [4], "answers_ids": [[*ids] for ids in ANSWERS]}])
    assert batch["trees"][0] is batch["trees"][1]
    sent = pickle.loads(pickle.dumps(batch["trees"]))
    assert sent[0] is sent[1]
    assert sent[0].choices == batch["trees"][0].choices


def test_an_encoder_decoder_reads_prompts_and_what_stands_around_answers() -> None:
    batch = EncoderDecoderCollator(0, None, (1,), (2,))([ROW, SHORT])
    assert batch["input_ids"].tolist() == [[5, 6], [5, 0]]
    assert batch["around_answers"] == ((1,), (2,))
    assert "labels" not in batch


def test_a_mask_is_the_place_of_every_choice() -> None:
    row = {**ROW, "prompt_ids": [5, 3, 6], "answers_ids": [[7], [8]]}
    assert MaskCollator(0, None, 3)([row])["labels"].tolist() == [[-100, 7, -100]]
