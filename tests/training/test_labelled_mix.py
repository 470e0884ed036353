"""Rows with and without labels share batches as asked: every row has its turn, in an order of seed and epoch alone."""

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sinkd_llm.errors import InputError
from sinkd_llm.training.blank_rows import BlankingCollator, RowsAndBlanks, spread_without_repeats
from sinkd_llm.training.labelled_mix import MixedRows

DRAW = random.Random(2)
LABELLED = [DRAW.random() < 0.2 for _ in range(1000)]
LENGTHS = [DRAW.randint(5, 60) for _ in range(1000)]


def batches(sampler: MixedRows) -> list[list[int]]:
    order = list(sampler)
    return [order[at : at + sampler.batch] for at in range(0, len(order), sampler.batch)]


@settings(max_examples=150, deadline=None)
@given(
    is_labelled=st.lists(st.booleans(), min_size=1, max_size=150),
    with_lengths=st.booleans(),
    batch=st.integers(2, 40),
    ratio=st.floats(0.01, 0.99),
    epoch=st.integers(0, 3),
)
def test_the_share_the_turns_and_the_length(
    is_labelled: list[bool], with_lengths: bool, batch: int, ratio: float, epoch: int
) -> None:
    lengths = [1 + i * 7 % 31 for i in range(len(is_labelled))] if with_lengths else None
    sampler = MixedRows(is_labelled, lengths, batch, ratio, seed=5)
    sampler.set_epoch(epoch)
    order, cut = list(sampler), batches(sampler)
    assert len(order) == len(sampler)
    shown = Counter(order)
    unlabelled = [i for i, labelled in enumerate(is_labelled) if not labelled]
    labelled = [i for i, labelled in enumerate(is_labelled) if labelled]
    assert all(shown[i] == 1 for i in unlabelled)
    if not unlabelled or not labelled:
        assert shown == Counter(range(len(is_labelled)))
        return
    turns = [shown[i] for i in labelled]
    assert max(turns) - min(turns) <= 1
    wanted = min(max(round(ratio * batch), 1), batch - 1)
    for rows in cut:
        without = sum(not is_labelled[i] for i in rows)
        if len(rows) == batch and rows is not cut[-1]:
            assert without == wanted
        assert 0 < without < len(rows)
        repeated = Counter(i for i in rows if is_labelled[i]).most_common(1)[0][1]
        assert repeated == 1 or len(labelled) < batch - wanted
    # The last batch has the share, too, as far as whole rows allow.
    without = sum(not is_labelled[i] for i in cut[-1])
    assert len(cut[-1]) - without == max(round(without * (batch - wanted) / wanted), 1)
    if lengths is not None and len(order) >= batch:
        whole = order[: len(order) // batch * batch] if len(cut[-1]) < batch else order
        assert max(lengths[i] for i in order[:batch]) == max(lengths[i] for i in whole)


@pytest.mark.parametrize(("ratio", "kept"), [(0, True), (1, False)])
def test_at_the_ends_only_one_sort_is_shown(ratio: float, kept: bool) -> None:
    order = list(MixedRows(LABELLED, LENGTHS, 16, ratio, 0))
    assert sorted(order) == [i for i, labelled in enumerate(LABELLED) if labelled is kept]


def test_a_batch_of_one_row_cannot_hold_both() -> None:
    with pytest.raises(InputError, match="a batch has one row"):
        MixedRows([True, False], None, 1, 0.5, 0)
    assert sorted(MixedRows([False, False], None, 1, 0.5, 0)) == [0, 1]


def test_labelled_rows_that_an_epoch_has_no_room_for_come_in_the_next() -> None:
    sampler = MixedRows([True] * 100 + [False] * 20, None, 4, 0.5, 0)
    shown: Counter[int] = Counter()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        shown.update(i for i in sampler if i < 100)
        turns = [shown[i] for i in range(100)]
        assert max(turns) - min(turns) <= 1
    assert set(shown.values()) == {2}


def padded(sampler: MixedRows) -> float:
    cut = [[LENGTHS[i] for i in rows] for rows in batches(sampler)]
    return sum(max(lengths) * len(lengths) for lengths in cut) / sum(sum(lengths) for lengths in cut)


@pytest.mark.parametrize("labelled", [10, 200])
def test_little_of_a_batch_is_padding(labelled: int) -> None:
    flags = [i < labelled for i in range(1000)]
    assert padded(MixedRows(flags, None, 16, 0.75, 0)) > 1.6
    assert padded(MixedRows(flags, LENGTHS, 16, 0.75, 0)) < (1.2 if labelled == 200 else 1.4)


def test_batches_do_not_go_from_long_to_short_and_both_halves_of_one_have_labelled_rows() -> None:
    longest = [max(LENGTHS[i] for i in rows) for rows in batches(MixedRows(LABELLED, LENGTHS, 10, 0.8, 0))]
    assert 0.3 < sum(b > a for a, b in pairwise(longest)) / len(longest) < 0.7
    flags, alike = [i % 5 == 0 for i in range(1000)], [5 + i // 5 % 56 for i in range(1000)]
    for lengths in (None, alike):
        cut = batches(MixedRows(flags, lengths, 10, 0.5, 0))
        first_half = sum(flags[i] for rows in cut for i in rows[:5])
        assert 0.4 < first_half / sum(flags[i] for rows in cut for i in rows) < 0.6


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_each_epoch_and_each_seed_mixes_anew_and_nothing_else_does(lengths: list[int] | None) -> None:
    sampler = MixedRows(LABELLED, lengths, 16, 0.5, seed=3)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(MixedRows(LABELLED, lengths, 16, 0.5, seed=4)) != first
    labelled = [i for i in first if LABELLED[i]]
    rows = sum(LABELLED)
    assert labelled[:rows] != labelled[rows : 2 * rows]


def collated(features: Any) -> dict[str, Any]:
    return {"labels": torch.tensor([row["n"] for row in features])}


def loader(process: int, processes: int, batch: int) -> Any:
    rows = [{"n": n} for n in range(len(LENGTHS))]
    sampler = MixedRows(LABELLED, LENGTHS, batch * processes, 0.75, 0)
    data: Any = RowsAndBlanks(rows)
    prepared = prepare_data_loader(
        DataLoader(data, batch_size=batch, sampler=sampler, collate_fn=BlankingCollator(collated)),
        num_processes=processes,
        process_index=process,
        put_on_device=False,
    )
    return spread_without_repeats(prepared, rows) if processes > 1 else prepared


def test_the_ranks_of_a_step_have_a_part_of_one_order() -> None:
    of_ranks = [list(loader(process, 3, 7)) for process in range(3)]
    rows = [int(n) for step in zip(*of_ranks, strict=True) for part in step for n in part["labels"] if n >= 0]
    assert rows == list(MixedRows(LABELLED, LENGTHS, 21, 0.75, 0))


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
