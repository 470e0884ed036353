"""A data set becomes features: checked, cut with a count, many rows once for all runs."""

import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.dataset import tokenize_dataset
from sinkd_llm.inputs.decoder_only import DecoderOnlyTokenizer
from sinkd_llm.inputs.reading import Reading
from tests.support.rows import example


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


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "completion"),
        ([{"messages": [{"role": "user", "content": "a"}]}], r"Of conversations the last message is the completion"),
        ([], "columns|no rows"),
    ],
)
def test_bad_data_sets_say_what_is_wrong(rows: list, message: str, tiny_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=message):
        tokenize_dataset(Dataset.from_list(rows), DecoderOnlyTokenizer(tiny_tokenizer))


def test_a_column_of_the_users_own_may_be_called_as_a_feature(tiny_tokenizer: Any) -> None:
    rows = [{**example(), "prompt_ids": "mine", "answer_ids": 3, "example_id": None, "num_cut": "x"}]
    features = tokenize_dataset(Dataset.from_list(rows), DecoderOnlyTokenizer(tiny_tokenizer))
    assert (
        features.to_list()
        == tokenize_dataset(Dataset.from_list([example()]), DecoderOnlyTokenizer(tiny_tokenizer)).to_list()
    )
    with pytest.raises(InputError, match="prompt_ids without answer_ids"):
        tokenize_dataset(Dataset.from_list([{"prompt_ids": [1]}]), DecoderOnlyTokenizer(tiny_tokenizer))


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
