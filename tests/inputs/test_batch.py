"""Batches for ranking: which choices share a sequence."""

from sinkd_llm.inputs.decoder_only import DecoderOnlyCollator


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
