"""The order in which training takes its rows: rows of like length together, so that little of a batch is padding."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LikeLengths(Sampler[int]):
    """
    The indices of rows in an order in which an update's rows are of like length.

    Rows are drawn at random first and sorted by length within random parts of the data set, as in
    `transformers.Trainer`, so that rows of one length, and so their labels, are mixed anew every epoch. Updates then
    follow each other in random order, for a run of long rows after a run of short ones would pull the student to and
    fro; only the update with the longest row comes first, so that too little memory shows at once. What is left over
    for the last, smaller update is drawn at random, so that `drop_last` favours no length.

    The order depends on the arguments and on the epoch alone: it is the same on all processes, and in a run that goes
    on from a checkpoint.

    Args:
        lengths (sequence of `int`): tokens of each row.
        update (`int`): rows of an update, of all processes and micro-batches together, 1 or more. The micro-batches
            that processes take side by side follow each other in it.
        seed (`int`): of the order.
    """

    def __init__(self, lengths: Sequence[int], update: int, seed: int) -> None:
        self.lengths, self.update, self.seed, self.epoch = lengths, update, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows: list[int] = torch.randperm(len(self), generator=generator).tolist()
        whole = len(rows) - len(rows) % self.update
        rest = sorted(rows[whole:], key=self.lengths.__getitem__, reverse=True)
        if whole:
            grouped = get_length_grouped_indices(
                [self.lengths[row] for row in rows[:whole]], self.update, generator=generator
            )
            later = torch.randperm(whole // self.update - 1, generator=generator) + 1
            for u in (0, *later.tolist()):
                yield from (rows[i] for i in grouped[u * self.update : (u + 1) * self.update])
        yield from rest


def row_lengths(features: Any, with_answers: bool) -> list[int]:
    """
    Tokens of each row that the student reads as one sequence.

    Args:
        features ([`~datasets.Dataset`]): of [`~sinkd_llm.inputs.dataset.tokenize_dataset`].
        with_answers (`bool`): whether prompt and answer are one sequence.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    # Of rows with all their choices, the choices differ little.
    columns = ["prompt_ids", *(["answer_ids"] if with_answers and "answer_ids" in features.column_names else [])]
    lengths: list[int] = []
    for table in features.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
        counts = [pc.list_value_length(pa.table(table)[column]).to_numpy() for column in columns]
        lengths += np.sum(counts, axis=0).tolist()
    return lengths
