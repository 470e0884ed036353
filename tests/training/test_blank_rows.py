"""Rows that fill up the batches of several processes are in no batch that counts."""

from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, SequentialSampler

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.pair import TEACHER
from sinkd_llm.training.blank_rows import (
    BlankingCollator,
    PaddedSampler,
    RowsAndBlanks,
    check_not_empty,
    spread_without_repeats,
)


def collated(features: Any) -> dict[str, Any]:
    """A batch of rows that are numbers."""
    numbers = [row["n"] for row in features]
    return {
        "labels": torch.tensor(numbers),
        "example_id": [str(n) for n in numbers],
        TEACHER: {"labels": torch.tensor(numbers)},
    }


@settings(max_examples=80, deadline=None)
@given(rows=st.integers(1, 40), batch=st.integers(1, 7), processes=st.integers(2, 5), drop_last=st.booleans())
def test_every_row_comes_once_and_all_processes_take_the_same_steps(
    rows: int, batch: int, processes: int, drop_last: bool
) -> None:
    data = RowsAndBlanks([{"n": n} for n in range(rows)])
    steps, alone = [], list(range(rows))
    for process in range(processes):
        loader = prepare_data_loader(
            DataLoader(data, batch_size=batch, drop_last=drop_last, collate_fn=BlankingCollator(collated)),
            num_processes=processes,
            process_index=process,
            put_on_device=False,
        )
        steps.append(list(spread_without_repeats(loader, data.rows)))
        assert len(loader) == len(steps[-1])
    assert len({len(batches) for batches in steps}) == 1
    whole = batch * processes
    kept = rows // whole * whole if drop_last else rows
    for at, together in enumerate(zip(*steps, strict=True)):
        real = [int(n) for part in together for n in part["labels"] if n != -100]
        assert real == alone[at * whole : min((at + 1) * whole, kept)]  # the batch of one process, in its order
        for part in together:
            count = int((part["labels"] != -100).sum())
            assert len(part["labels"]) == max(count, 1)
            assert part["example_id"] == [str(int(n)) for n in part["labels"] if n != -100]
            assert torch.equal(part[TEACHER]["labels"], part["labels"])
    assert sum(int((part["labels"] != -100).sum()) for batches in steps for part in batches) == kept


def test_a_sampler_that_is_shuffled_anew_is_told_the_epoch() -> None:
    class Shuffled(SequentialSampler):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    inner = Shuffled([0, 1, 2])
    padded = PaddedSampler(inner, 3, 4)
    padded.set_epoch(5)
    assert inner.epoch == 5
    assert list(padded) == [0, 1, 2, 3]
    assert len(padded) == 4
    PaddedSampler(SequentialSampler([0]), 1, 4).set_epoch(1)  # one that is not, is left alone


def test_ways_of_dealing_out_that_cannot_be_are_refused() -> None:
    data = RowsAndBlanks([{"n": n} for n in range(8)])
    whole = DataLoader(data, batch_size=4)
    split = prepare_data_loader(whole, num_processes=2, process_index=0, put_on_device=False, split_batches=True)
    with pytest.raises(InputError, match="split_batches"):
        spread_without_repeats(split, data.rows)
    dispatched = prepare_data_loader(
        DataLoader(data, batch_size=2), num_processes=2, process_index=0, dispatch_batches=True, put_on_device=True
    )
    with pytest.raises(InputError, match="dispatch_batches"):
        spread_without_repeats(dispatched, data.rows)
    shared = DataLoader(data, batch_size=2)  # of processes that work on one batch together
    assert spread_without_repeats(shared, data.rows) is shared


def test_too_few_rows_for_all_devices() -> None:
    check_not_empty([1], 3, 2, 2)
    with pytest.raises(InputError, match=r"3 training rows, a batch takes 4 \(2 on each of 2 devices\)"):
        check_not_empty([], 3, 2, 2)
