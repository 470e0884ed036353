"""Equal numbers of batches for all processes without training on a row twice.

Processes that train together make equally many steps, so the last batch of an epoch has to be divided among all of
them, however few rows it has. Accelerate fills it up with rows from the beginning of the epoch, which then count
twice. Here it is filled up with *blank* rows: none of their tokens is supervised, so that they are in no term of the
loss, in no transport problem, and in no count.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader, Dataset, Sampler

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.pair import TEACHER
from sinkd_llm.models.kinds import IGNORE_INDEX
from sinkd_llm.teachers.contract import GROUP_NUMBER

_BLANK = "blank"


class RowsAndBlanks(Dataset[dict[str, Any]]):
    """
    Rows, and a blank row under the index after the last. Under the further indices are all rows once more, for their
    labels alone: without the name by which a teacher knows them, and out of their groups.

    Args:
        rows (`Sequence`): tokenised rows, at least one.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        count = len(self.rows)
        if index < count:
            row: dict[str, Any] = self.rows[index]
            return row
        if index == count:
            return {**self.rows[0], _BLANK: True}
        return {**self.rows[index - count - 1], "example_id": None, GROUP_NUMBER: -index}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        real = [index for index in indices if index < len(self.rows)]
        many = getattr(self.rows, "__getitems__", None)  # one look-up for a whole batch
        found = iter(many(real) if many and real else [self.rows[index] for index in real])
        return [next(found) if index < len(self.rows) else self[index] for index in indices]


class PaddedSampler(Sampler[int]):
    """
    The indices of a sampler, and then the index of a blank row, up to a multiple of `multiple`.

    Args:
        sampler (`Sampler`): of the rows, each of which it gives at most once.
        rows (`int`): how many there are: the index of a blank row.
        multiple (`int`): rows of all processes together, 1 or more.
    """

    def __init__(self, sampler: Any, rows: int, multiple: int) -> None:
        self.sampler, self.rows, self.multiple = sampler, rows, multiple

    def __iter__(self) -> Iterator[int]:
        yield from self.sampler
        yield from [self.rows] * (len(self) - len(self.sampler))

    def __len__(self) -> int:
        return len(self.sampler) + -len(self.sampler) % self.multiple

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


@dataclass(frozen=True)
class BlankingCollator:
    """
    A collator that leaves blank rows out, and makes a batch of nothing else one without a supervised token.

    Every process has to run the model, so such a batch still holds a row.

    Args:
        collator (`Callable`): from rows to a batch.
    """

    collator: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Any]:
        real = [row for row in features if _BLANK not in row]
        if real:
            return self.collator(real)
        return blanked(self.collator([{k: v for k, v in features[0].items() if k != _BLANK}]))


def blanked(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch without a supervised token, for the student and for a teacher that reads rows in another way."""
    out = {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)}
    if "example_id" in batch:
        out["example_id"] = []
    if TEACHER in batch:
        out[TEACHER] = blanked(batch[TEACHER])
    return out


def spread_without_repeats(loader: DataLoader[Any], rows: Sized) -> DataLoader[Any]:
    """
    Fills the last batches of a prepared loader over [`RowsAndBlanks`] with blank rows.

    Args:
        loader (`DataLoader`): as Accelerate has prepared it for several processes.
        rows (`Sized`): the rows that it draws from.

    Raises:
        InputError: if one process reads the rows for all (`dispatch_batches`), or one batch is cut into
            batches of the processes (`split_batches`).
    """
    shard = loader.batch_sampler
    if not isinstance(shard, BatchSamplerShard):
        if hasattr(loader, "set_sampler") and hasattr(loader, "base_dataloader"):
            raise InputError(
                "accelerator_config.dispatch_batches is on, but a batch holds the names of its examples, which one "
                "process cannot send to the others; leave it out, so that every process reads its own rows."
            )
        return loader  # the processes share every batch
    if shard.split_batches:
        raise InputError(
            "accelerator_config.split_batches is on, with which per_device_train_batch_size would be the batch of all "
            "devices together; leave it out, and give the rows of one device."
        )
    if not shard.drop_last:
        inner: Any = shard.batch_sampler
        inner.sampler = PaddedSampler(inner.sampler, len(rows), shard.num_processes * (shard.batch_size or 1))
    return loader


def check_not_empty(loader: Sized, rows: int, per_device: int, processes: int) -> None:
    """
    Refuses a loader without a batch, which would train nothing and end in success.

    Raises:
        InputError: saying how many rows there are and how many a batch takes.
    """
    if len(loader):
        return
    together = f" ({per_device} on each of {processes} devices)" if processes > 1 else ""
    raise InputError(
        f"There are {rows} training rows, a batch takes {per_device * processes}{together}, and dataloader_drop_last "
        "leaves out a batch that is not full, so nothing would be trained; lower per_device_train_batch_size, or "
        "leave dataloader_drop_last out."
    )
