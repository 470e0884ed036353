"""Rows of a data set that are known in groups: their numbers, in features and batches, and an order that keeps each
group in one batch."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.contract import GROUP_NUMBER
from sinkd_llm.values import plain, shown, without_text

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


def with_group_numbers(features: "Dataset", rows: "Dataset", column: str, batch: int) -> "Dataset":
    """
    Features with the number of each row's group: equal for equal values, the same on all processes and in every run.

    Args:
        features ([`~datasets.Dataset`]): the tokenised rows.
        rows ([`~datasets.Dataset`]): the rows themselves, in the same order.
        column (`str`): what says of which group a row is: text, whole numbers or booleans. A row without a value
            (null, NaN or empty text) is a group by itself.
        batch (`int`): rows of a batch, in which the largest group has room.

    Raises:
        InputError: for rows without the column, a value of another sort, and a group that is larger than a batch.
    """
    if column not in rows.column_names:
        raise InputError(
            f"group_column is {column!r}, and the training rows have the columns {', '.join(rows.column_names)}; give "
            "one of these."
        )
    values = group_values(rows, column)
    return _numbered(
        features, numbers_of(values), batch, lambda row: f"{shown(values[row])} of group_column {column!r}"
    )


def with_teacher_groups(
    features: "Dataset", theirs: Indices, batch: int, values: Sequence[str | int | None] | None = None
) -> "Dataset":
    """
    Features with the number of the group by which the teacher's rows of each row are known.

    Args:
        features ([`~datasets.Dataset`]): the tokenised rows.
        theirs (`np.ndarray`): the group of each row, [`~sinkd_llm.teachers.Teacher.groups_of`].
        batch (`int`): as in [`with_group_numbers`].
        values (sequence, *optional*): the group of each row as the data have it, [`group_values`].

    Raises:
        InputError: for a group of the data that is none of the teacher's, and as [`with_group_numbers`].
    """
    names = features["example_id"]
    if values is not None:
        _check_same(theirs, numbers_of(values), values, names)

    def called(row: int) -> str:
        of_row = f"of the row {names[row]}, as the teacher knows it,"
        return of_row if values is None or values[row] is None else f"{shown(values[row])} {of_row}"

    return _numbered(features, theirs, batch, called)


def group_values(rows: "Dataset", column: str) -> list[str | int | None]:
    """
    The group of each row, `None` for a row without one.

    Raises:
        InputError: for a value that is no name.
    """
    return [_value(value, column, i) for i, value in enumerate(rows[column])]


def numbers_of(values: Sequence[str | int | None]) -> Indices:
    """Equal numbers for equal values, and another number for each row without one."""
    known: dict[object, int] = {}
    numbers = [known.setdefault(i if value is None else (value,), len(known)) for i, value in enumerate(values)]
    return np.asarray(numbers, np.int64)


def _check_same(theirs: Indices, ours: Indices, values: Sequence[str | int | None], names: Sequence[str]) -> None:
    """Refuses groups of the teacher's that are parts or mixtures of those of the data."""
    (_, t, t_counts), (_, o, o_counts) = (
        np.unique(numbers, return_inverse=True, return_counts=True) for numbers in (theirs, ours)
    )
    _, both, both_counts = np.unique(t * len(o_counts) + o, return_inverse=True, return_counts=True)
    together = t_counts[t]
    wrong = np.flatnonzero((together > 1) & ((both_counts[both] != together) | (o_counts[o] != together)))
    if len(wrong):
        here = np.flatnonzero(t == t[wrong[0]]).tolist()
        found = list(dict.fromkeys(shown(values[row]) for row in here))
        raise InputError(
            f"The rows {', '.join(names[row] for row in here[:3])} … are a group of the teacher's, and by "
            f"group_column they are of {' and '.join(found[:3])}, with other rows: the teacher was asked "
            "with other groups. Leave group_column out, which takes the teacher's, or write the cache again."
        )


def _numbered(features: "Dataset", numbers: Indices, batch: int, called: Callable[[int], str]) -> "Dataset":
    _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    largest = int(counts.argmax())
    if counts[largest] > batch:
        raise InputError(
            f"The group {called(int(first[largest]))} has {counts[largest]} rows, and a batch has room for {batch} "
            "(per_device_train_batch_size, or the share of it that unlabelled_ratio leaves). It cannot be cut, "
            f"because each of its teacher rows may be of any of its rows: make room for {counts[largest]} or more "
            "(with fewer gradient_accumulation_steps for the same update), or make smaller groups."
        )
    if counts[largest] == 1:
        logger.warning(
            "No two training rows are of one group: every row is a transport problem by itself, which is no transport."
        )
    if GROUP_NUMBER in features.column_names:  # rows that came as features, with the column under this very name
        features = features.remove_columns(GROUP_NUMBER)
    return features.add_column(GROUP_NUMBER, numbers)


def _value(value: Any, column: str, row: int) -> str | int | None:
    value = plain(value)
    if without_text(value) in ("null", "NaN") or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)  # whole numbers beside nulls, as pandas stores them
    if isinstance(value, str | int):
        return value
    raise InputError(
        f"group_column is {column!r}, and row {row} has the value {shown(value)} in it; a group has a name: give "
        "text or a whole number, or null for a row without a group."
    )


@dataclass(frozen=True)
class GroupCollator:
    """
    What another collator makes of training rows, with the number of each row's group, `[B]`.

    Args:
        collator (`Callable`): the other one.
    """

    collator: Callable[[Sequence[dict[str, Any]]], Mapping[str, Any]]

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collator(features))
        if GROUP_NUMBER in features[0]:  # rows for evaluation have none
            batch[GROUP_NUMBER] = torch.tensor([row[GROUP_NUMBER] for row in features])
        return batch


class WholeGroups(Sampler[int]):
    """
    The indices of rows in an order of which every `batch` following ones hold whole groups.

    Groups are packed into batches by size, the largest first, each into the fullest batch that has room. What is left
    of a batch is filled with the index after the last row, which stands for a blank row
    ([`~sinkd_llm.training.blank_rows.RowsAndBlanks`]). Which sizes share a batch is the same in every epoch, so that
    epochs have equally many batches; which groups of a size they are, and the order of the batches, are drawn anew.

    The order depends on the arguments and on the epoch alone: it is the same on all processes, and in a run that goes
    on from a checkpoint.

    Args:
        group_of (sequence or array of `int`): the number of each row's group.
        batch (`int`): rows of a batch, at least the rows of the largest group.
        seed (`int`): of the order, 0 or more.
    """

    def __init__(self, group_of: "Sequence[int] | Indices", batch: int, seed: int) -> None:
        _, number_of, counts = np.unique(np.asarray(group_of), return_inverse=True, return_counts=True)
        by_group = np.argsort(number_of, kind="stable")
        starts = np.cumsum(counts) - counts
        # The rows of all groups of a size, `[groups, size]`.
        self.groups = {
            int(size): by_group[starts[counts == size][:, None] + np.arange(size)] for size in np.unique(counts)
        }
        self.batch, self.seed, self.epoch = batch, seed, 0
        self.blank = len(number_of)
        self.batches = packed_sizes({size: len(groups) for size, groups in self.groups.items()}, batch)

    def __len__(self) -> int:
        return len(self.batches) * self.batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self.seed, self.epoch))
        turns = {size: iter(draw.permutation(groups)) for size, groups in self.groups.items()}
        for place in draw.permutation(len(self.batches)):
            rows = [row for size in self.batches[place] for row in next(turns[size]).tolist()]
            yield from rows
            yield from [self.blank] * (self.batch - len(rows))


def whole_groups(features: "Dataset", batch: int, seed: int) -> WholeGroups:
    """
    The order of features with group numbers.

    Args:
        features ([`~datasets.Dataset`]): of [`with_group_numbers`].
        batch, seed: see [`WholeGroups`].
    """
    return WholeGroups(np.asarray(features.with_format("numpy")[GROUP_NUMBER][:]), batch, seed)


def packed_sizes(counts: Mapping[int, int], batch: int) -> list[list[int]]:
    """
    Sizes of groups packed into batches, by best fit in decreasing order (Johnson, 1973: at most 11/9 of the fewest
    batches, and 4).

    Args:
        counts (`Mapping[int, int]`): how many groups there are of each size.
        batch (`int`): what the sizes of a batch add up to at most; no size is larger.

    Returns:
        `list[list[int]]`: the sizes in each batch.
    """
    open_by_room: dict[int, list[list[int]]] = {}
    batches: list[list[int]] = []
    for size in sorted(counts, reverse=True):
        left = counts[size]
        for room in sorted(room for room in open_by_room if room >= size):
            while left and open_by_room[room]:
                taken, fitting = open_by_room[room].pop(), min(room // size, left)
                taken += [size] * fitting
                left -= fitting
                open_by_room.setdefault(room - fitting * size, []).append(taken)
        while left:
            fitting = min(batch // size, left)
            batches.append([size] * fitting)
            left -= fitting
            open_by_room.setdefault(batch - fitting * size, []).append(batches[-1])
    return batches
