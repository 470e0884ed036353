"""Rows of like length share a batch: each row once, in an order of seed and epoch alone, on however many processes."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sinkd_llm import SinKDConfig, SinKDTrainer
from sinkd_llm.training.blank_rows import BlankingCollator, RowsAndBlanks, spread_without_repeats
from sinkd_llm.training.row_order import LikeLengths, row_lengths

DRAW = random.Random(1)
LENGTHS = [DRAW.randint(5, 60) for _ in range(1000)]


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200), update=st.integers(1, 64), seed=st.integers(0, 9)
)
def test_every_row_comes_once_an_epoch(lengths: list[int], update: int, seed: int) -> None:
    order = list(LikeLengths(lengths, update, seed))
    assert sorted(order) == list(range(len(lengths)))
    if len(lengths) >= update:
        assert max(lengths[i] for i in order[:update]) == max(
            lengths[i] for i in order[: len(order) // update * update]
        )


def padded(order: list[int], batch: int) -> float:
    """Tokens with padding, by tokens."""
    batches = [[LENGTHS[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    return sum(max(lengths) * len(lengths) for lengths in batches) / sum(LENGTHS)


def test_little_of_a_batch_is_padding() -> None:
    assert padded(list(range(1000)), 16) > 1.6
    assert padded(list(LikeLengths(LENGTHS, 16, 0)), 16) < 1.12
    assert padded(list(LikeLengths(LENGTHS, 64, 0)), 16) < 1.12  # windows of four micro-batches


def test_each_epoch_and_each_seed_mixes_anew_and_nothing_else_does() -> None:
    sampler = LikeLengths(LENGTHS, 16, seed=3)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(LikeLengths(LENGTHS, 16, seed=4)) != first


def test_rows_of_one_length_are_shuffled_and_updates_do_not_go_from_long_to_short() -> None:
    alike = list(LikeLengths([7] * 64, 8, 0))
    assert alike != sorted(alike)
    assert alike != sorted(alike, reverse=True)
    order = list(LikeLengths(LENGTHS, 10, 0))
    longest = [max(LENGTHS[i] for i in order[at : at + 10]) for at in range(0, 1000, 10)]
    rises = sum(b > a for a, b in pairwise(longest))
    assert 30 < rises < 70


def test_what_the_last_smaller_update_is_made_of_favours_no_length() -> None:
    lengths = list(range(1, 14))
    last: set[int] = set()
    for seed in range(200):
        last.update(list(LikeLengths(lengths, 4, seed))[-1:])
    assert len(last) == 13


def collated(features: Any) -> dict[str, Any]:
    return {"labels": torch.tensor([row["n"] for row in features])}


def loader(process: int, processes: int, batch: int) -> Any:
    rows = [{"n": n} for n in range(len(LENGTHS))]
    sampler = LikeLengths(LENGTHS, batch * processes, 0)
    data: Any = RowsAndBlanks(rows)
    prepared = prepare_data_loader(
        DataLoader(data, batch_size=batch, sampler=sampler, collate_fn=BlankingCollator(collated)),
        num_processes=processes,
        process_index=process,
        put_on_device=False,
    )
    return spread_without_repeats(prepared, rows) if processes > 1 else prepared


def test_the_ranks_of_a_step_have_like_lengths_and_a_part_of_one_order() -> None:
    of_ranks = [list(loader(process, 3, 7)) for process in range(3)]
    rows = [int(n) for step in zip(*of_ranks, strict=True) for part in step for n in part["labels"] if n >= 0]
    assert rows == list(LikeLengths(LENGTHS, 21, 0))
    spread = []
    for step in list(zip(*of_ranks, strict=True))[:-1]:
        longest = [max(LENGTHS[int(n)] for n in part["labels"]) for part in step]
        spread.append(max(longest) - min(longest))
    assert sum(spread) / len(spread) < 6


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_that_goes_on_in_the_second_epoch_has_its_order(processes: int) -> None:
    whole = loader(0, processes, 8)
    whole.set_epoch(1)
    expected = [batch["labels"].tolist() for batch in whole][5:]
    fresh = loader(0, processes, 8)
    fresh.set_epoch(1)  # as `_run_epoch` does before Transformers leaves batches out and tells the rest
    left = skip_first_batches(fresh, 5)
    left.set_epoch(1)
    assert [batch["labels"].tolist() for batch in left] == expected


def test_lengths_are_the_students(tiny_causal_lm: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    rows = [{"prompt": "good " * n, "completion": " film" * (1 + n % 3)} for n in range(1, 41)]
    from datasets import Dataset

    trainer = SinKDTrainer(
        tiny_causal_lm(),
        args=SinKDConfig(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer,
    )
    features: Any = trainer.train_dataset
    both = [len(row["prompt_ids"]) + len(row["answer_ids"]) for row in features]
    assert row_lengths(features, with_answers=True) == both
    assert row_lengths(features.select([3, 1]), with_answers=False) == [len(features[i]["prompt_ids"]) for i in (3, 1)]
    taken = [batch["attention_mask"].sum(dim=1).tolist() for batch in trainer.get_train_dataloader()]
    order = list(LikeLengths(both, 4, trainer.args.seed))
    assert [n for batch in taken for n in batch] == [both[i] for i in order]
    assert len(order) == 40
