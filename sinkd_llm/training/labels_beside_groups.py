"""The order in which training takes whole groups of rows, and labelled rows beside them in every batch."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from sinkd_llm.errors import SettingError
from sinkd_llm.inputs.over_choices import LABELS
from sinkd_llm.models.kinds import IGNORE_INDEX
from sinkd_llm.teachers.contract import GROUP_NUMBER
from sinkd_llm.training.grouped_rows import Indices, WholeGroups
from sinkd_llm.training.labelled_mix import Turns

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig


class GroupsAndLabels(Sampler[int]):
    """
    The indices of rows in an order of which every `batch` following ones hold whole groups and some labelled rows.

    An epoch shows every group once, as [`WholeGroups`] does. The labelled rows fill the rest of each batch, for their
    labels alone: also where such a row is of a group, it is shown besides, outside of its group and without a teacher
    ([`~sinkd_llm.training.blank_rows.RowsAndBlanks`]). Each has its next turn only when all have had theirs.

    The order depends on the arguments and on the epoch alone, as of [`WholeGroups`].

    Args:
        group_of (sequence or array of `int`): the number of each row's group.
        is_labelled (array of `bool`): of each row, some of them true.
        room (`int`): rows of a batch that are whole groups, at least the rows of the largest group.
        labels_a_batch (`int`): rows of a batch that are for their labels, 1 or more.
        seed (`int`): of the order, 0 or more.
    """

    def __init__(
        self,
        group_of: "Sequence[int] | Indices",
        is_labelled: "np.ndarray[Any, np.dtype[np.bool_]]",
        room: int,
        labels_a_batch: int,
        seed: int,
    ) -> None:
        self.groups = WholeGroups(group_of, room, seed)
        self.labelled = np.flatnonzero(is_labelled)
        self.labels_a_batch, self.seed, self.epoch = labels_a_batch, seed, 0

    def __len__(self) -> int:
        return len(self.groups) + len(self.groups.batches) * self.labels_a_batch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.groups.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self.seed, self.epoch, 1))  # 1: not the draws of the groups
        turns = Turns(draw.permutation(self.labelled), draw)
        rows, first = iter(self.groups), self.groups.blank + 1
        for _ in self.groups.batches:
            yield from (next(rows) for _ in range(self.groups.batch))
            yield from (first + row for row in turns.take(self.labels_a_batch).tolist())


def groups_and_labels(rows: Any, args: "SinKDConfig") -> GroupsAndLabels:
    """
    The order of a run's rows with group numbers, with labelled rows beside them as `args.unlabelled_ratio` asks.

    Args:
        rows ([`~datasets.Dataset`]): features over the answer choices, with group numbers.
        args ([`SinKDConfig`]): the settings.

    Raises:
        SettingError: where no row has a label.
    """
    if LABELS not in rows.column_names:
        raise SettingError(
            "unlabelled_ratio",
            "is set, and the signal is over tokens, where every row has its answer; set signal to choices, or leave "
            "it out.",
        )
    numbers = rows.with_format("numpy")
    labelled = np.asarray(numbers[LABELS][:]) != IGNORE_INDEX
    if not labelled.any():
        raise SettingError("unlabelled_ratio", "is set, but no training row has a label; leave it out.")
    room = room_for_groups(args)
    beside = args.per_device_train_batch_size - room
    return GroupsAndLabels(np.asarray(numbers[GROUP_NUMBER][:]), labelled, room, beside, args.sample_seed)


def room_for_groups(args: "SinKDConfig") -> int:
    """
    How many rows of a batch are whole groups: all, or the share of `args.unlabelled_ratio`.

    Raises:
        SettingError: for a share that leaves no row of one of both sorts.
    """
    batch, ratio = args.per_device_train_batch_size, args.unlabelled_ratio
    if ratio is None:
        return batch
    room = round(ratio * batch)
    if not 0 < room < batch:
        raise SettingError(
            "unlabelled_ratio",
            f"is {ratio:g}, and of the {batch} rows of a batch {room} would be whole groups and {batch - room} "
            "labelled rows; give a share that leaves some of both, or leave it out.",
        )
    return room
