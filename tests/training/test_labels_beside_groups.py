"""Labelled rows beside whole groups in every batch: which rows, how often, and what is learned from them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sinkd_llm import SinKDTrainer
from sinkd_llm.errors import InputError
from sinkd_llm.training.blank_rows import BlankingCollator, RowsAndBlanks
from sinkd_llm.training.labels_beside_groups import GroupsAndLabels, groups_and_labels, room_for_groups
from tests.support.rows import opinions


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=80),
    room=st.integers(0, 9),
    beside=st.integers(1, 7),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_batch_has_whole_groups_and_labelled_rows(
    rows: list[tuple[int, bool]], room: int, beside: int, seed: int, epoch: int
) -> None:
    group_of, labelled = [group for group, _ in rows], np.array([flag for _, flag in rows])
    labelled[0] = True
    room += max(Counter(group_of).values())
    sampler = GroupsAndLabels(group_of, labelled, room, beside, seed)
    sampler.set_epoch(epoch)
    order, count = list(sampler), len(rows)
    assert len(order) == len(sampler) == len(order) // (room + beside) * (room + beside)
    batches = [order[i : i + room + beside] for i in range(0, len(order), room + beside)]
    where: dict[int, set[int]] = {}
    for number, batch in enumerate(batches):
        assert all(i <= count for i in batch[:room])
        assert all(labelled[i - count - 1] for i in batch[room:])
        for i in batch[:room]:
            if i < count:
                where.setdefault(group_of[i], set()).add(number)
    assert all(len(found) == 1 for found in where.values())
    assert sorted(i for i in order if i < count) == list(range(count))
    times = Counter(i - count - 1 for batch in batches for i in batch[room:])
    turns = [times[i] for i in np.flatnonzero(labelled).tolist()]
    assert max(turns) - min(turns) <= 1
    again = GroupsAndLabels(group_of, labelled, room, beside, seed)
    again.set_epoch(epoch)
    assert list(again) == order


def test_a_row_for_its_label_has_neither_a_name_nor_a_group() -> None:
    rows = [{"example_id": "a", "group": 4, "label": 1}, {"example_id": "b", "group": 4, "label": 0}]
    known = RowsAndBlanks(rows)
    taken = known.__getitems__([1, 2, 4, 3])
    assert taken[0] == rows[1]
    assert [row["example_id"] for row in taken[2:]] == [None, None]
    assert [row["label"] for row in taken[2:]] == [0, 1]
    assert len({row["group"] for row in (taken[0], *taken[2:])}) == 3

    def collate(features: Any) -> Any:
        return {"names": [row["example_id"] for row in features]}

    assert BlankingCollator(collate)(taken) == {"names": ["b", None, None]}


@pytest.mark.parametrize(("ratio", "labelled"), [(0.0, {True}), (1.0, {False}), (0.5, {True, False})])
def test_without_groups_a_share_may_be_all_or_none(
    train: Callable[..., SinKDTrainer], ratio: float, labelled: set[bool]
) -> None:
    choices = [" negative", " positive"]
    made = [
        {**row, "choices": choices, "label": i % 2 if i < 8 else -1, "completion": choices[i % 2] if i < 8 else ""}
        for i, row in enumerate(opinions(16))
    ]
    trainer = train(train_dataset=Dataset.from_list(made), eval_dataset=None, signal="choices", unlabelled_ratio=ratio)
    batches = [batch["labels"] != -100 for batch in trainer.get_train_dataloader()]
    assert {flag for batch in batches for flag in batch.tolist()} == labelled


def test_beside_groups_the_signal_is_over_choices() -> None:
    with pytest.raises(InputError, match="unlabelled_ratio is set, and the signal is over tokens"):
        groups_and_labels(Dataset.from_dict({"group": [0, 0]}), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.01, 0.99])
def test_a_share_that_leaves_no_room_is_refused(ratio: float) -> None:
    class Args:
        per_device_train_batch_size, unlabelled_ratio = 16, ratio

    with pytest.raises(InputError, match=f"unlabelled_ratio is {ratio:g}, and of the 16 rows of a batch"):
        room_for_groups(Args())  # type: ignore[arg-type]
