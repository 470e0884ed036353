"""The order in which training takes rows with and without labels: in every batch a given share of each."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.over_choices import LABELS
from sinkd_llm.models.kinds import IGNORE_INDEX
from sinkd_llm.training.row_order import row_lengths

if TYPE_CHECKING:
    from sinkd_llm.training.config import SinKDConfig

logger = logging.getLogger(__name__)

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
# Batches within which rows are sorted by length, as in `transformers.trainer_pt_utils.get_length_grouped_indices`:
# many enough that their rows are of like length, few enough that an epoch mixes them anew.
_MOST_OF_A_PART, _LEAST_PARTS = 50, 4


class MixedRows(Sampler[int]):
    """
    The indices of rows in an order in which every batch holds the same share of rows without a label.

    An epoch shows every row without a label once, and the labelled rows as often as the share asks for: each has its
    next turn only when all have had theirs, in a new order every time, and no labelled row comes twice in a batch
    unless there are fewer than a batch needs. Where an epoch has not room for all of them, the next one goes on with
    the rest. The last batch may be smaller, with the same share but for rounding; it is drawn at random, so that
    `drop_last` favours no length.

    With `lengths`, the rows of a batch are of like length, as in [`~sinkd_llm.training.row_order.LikeLengths`], and
    the batch with the longest row comes first, so that too little memory shows at once; the others follow in random
    order.

    The order depends on the arguments and on the epoch alone: it is the same on all processes, and in a run that goes
    on from a checkpoint.

    Args:
        is_labelled (sequence or array of `bool`): of each row. Where all or none have a label, an epoch shows each row
            once.
        lengths (sequence of `int`, *optional*): tokens of each row. By default lengths are not looked at.
        batch (`int`): rows of a batch, 1 or more: consecutive ones of the order.
        unlabelled_ratio (`float`): the share of rows without a label in a batch, from 0 (none is shown) to 1 (only
            these are). Between, a batch holds at least one row of each.
        seed (`int`): of the order, 0 or more.

    Raises:
        InputError: for a batch of one row that should hold both.
    """

    def __init__(
        self,
        is_labelled: "Sequence[bool] | np.ndarray[Any, np.dtype[np.bool_]]",
        lengths: Sequence[int] | None,
        batch: int,
        unlabelled_ratio: float,
        seed: int,
    ) -> None:
        flags = np.asarray(is_labelled, dtype=bool)
        self.labelled: Indices = np.flatnonzero(flags)
        self.unlabelled: Indices = np.flatnonzero(~flags)
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.batch, self.seed, self.epoch = batch, seed, 0
        both = len(self.labelled) > 0 and len(self.unlabelled) > 0
        if both and 0 < unlabelled_ratio < 1:
            if batch < 2:
                raise InputError(
                    f"unlabelled_ratio is {unlabelled_ratio:g}, but a batch has one row, which cannot be both with "
                    "and without a label; give a batch of 2 rows or more, or leave unlabelled_ratio out."
                )
            self.unlabelled_a_batch = min(max(round(unlabelled_ratio * batch), 1), batch - 1)
        elif both:
            self.unlabelled_a_batch = batch if unlabelled_ratio == 1 else 0
        else:
            self.unlabelled_a_batch = batch if len(self.unlabelled) else 0
        self.labelled_a_batch = batch - self.unlabelled_a_batch
        # Whole batches, and the rows of each sort in the last, smaller one.
        if self.unlabelled_a_batch:
            self.whole, self.unlabelled_rest = divmod(len(self.unlabelled), self.unlabelled_a_batch)
            share = self.labelled_a_batch / self.unlabelled_a_batch
            least = 1 if self.unlabelled_rest and self.labelled_a_batch else 0
            self.labelled_rest = max(round(self.unlabelled_rest * share), least)
        else:
            self.whole, self.labelled_rest = divmod(len(self.labelled), batch)
            self.unlabelled_rest = 0

    def __len__(self) -> int:
        return self.whole * self.batch + self.unlabelled_rest + self.labelled_rest

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self.seed, self.epoch))
        unlabelled = draw.permutation(self.unlabelled)
        turns = Turns(self._whose_turn(draw), draw)
        # Before the batches: what the smaller one gets must not depend on what they left over.
        rest = np.concatenate([unlabelled[len(unlabelled) - self.unlabelled_rest :], turns.take(self.labelled_rest)])
        batches: list[Indices] = []
        part = self.whole if self.lengths is None else max(min(self.whole // _LEAST_PARTS, _MOST_OF_A_PART), 1)
        for first in range(0, self.whole, max(part, 1)):
            count = min(part, self.whole - first)
            at = first * self.unlabelled_a_batch
            batches += self._part(unlabelled[at : at + count * self.unlabelled_a_batch], count, turns)
        if self.lengths is not None and batches:
            batches = [batches[i] for i in self._longest_first(batches, draw)]
        for rows in (*batches, rest):
            yield from self._by_length(draw.permutation(rows)).tolist()

    def _whose_turn(self, draw: np.random.Generator) -> Indices:
        """The labelled rows, first those that earlier epochs had no room for."""
        wanted = self.whole * self.labelled_a_batch + self.labelled_rest
        if not 0 < wanted < len(self.labelled):
            return draw.permutation(self.labelled)
        one_order = np.random.default_rng(self.seed).permutation(self.labelled)  # of all epochs
        waiting = np.roll(one_order, -(self.epoch * wanted) % len(one_order))
        return np.concatenate([draw.permutation(waiting[:wanted]), waiting[wanted:]])

    def _part(self, unlabelled: Indices, count: int, turns: "Turns") -> list[Indices]:
        """`count` whole batches; with lengths, the longest rows without a label meet the longest labelled ones."""
        mine = self._by_length(unlabelled).reshape(count, self.unlabelled_a_batch)
        theirs = np.empty((count, self.labelled_a_batch), np.int64)
        # So many batches can have different labelled rows. Where a part has more, rows are dealt to every `step`-th of
        # its batches at a time: these span all lengths.
        apart = max(len(self.labelled) // max(self.labelled_a_batch, 1), 1)
        step = -(-count // apart)
        for start in range(step):
            dealt = theirs[start::step]
            theirs[start::step] = self._by_length(turns.take(dealt.size)).reshape(dealt.shape)
        return list(np.concatenate([mine, theirs], axis=1))

    def _by_length(self, rows: Indices) -> Indices:
        return rows if self.lengths is None else rows[np.argsort(-self.lengths[rows], kind="stable")]

    def _longest_first(self, batches: list[Indices], draw: np.random.Generator) -> list[int]:
        assert self.lengths is not None
        longest = int(np.argmax(self.lengths[np.stack(batches)].max(axis=1)))
        others = [i for i in range(len(batches)) if i != longest]
        return [longest, *draw.permutation(others).tolist()] if others else [longest]


class Turns:
    """Rows that have their turns pass after pass, each pass in a new order."""

    def __init__(self, first_pass: Indices, draw: np.random.Generator) -> None:
        self.rows, self.waiting, self.draw = first_pass, first_pass, draw

    def take(self, count: int) -> Indices:
        """The next rows, none twice unless there are fewer than `count`."""
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        while len(taken) < count:
            next_pass = self.draw.permutation(self.rows)
            again = np.isin(next_pass, taken)
            next_pass = np.concatenate([next_pass[~again], next_pass[again]])
            more = count - len(taken)
            taken, self.waiting = np.concatenate([taken, next_pass[:more]]), next_pass[more:]
        return taken


def mixed_rows(rows: Any, args: "SinKDConfig", with_answers: bool) -> MixedRows:
    """
    The order of a run's rows, in the share that `args.unlabelled_ratio` asks for.

    Args:
        rows ([`~datasets.Dataset`]): features over the answer choices.
        args ([`SinKDConfig`]): the settings.
        with_answers (`bool`): as in [`~sinkd_llm.training.row_order.row_lengths`].

    Raises:
        InputError: for rows that all have labels because nothing else could be compared.
    """
    labels = np.asarray(rows.with_format("numpy")[LABELS][:]) if LABELS in rows.column_names else np.zeros(0)
    labelled = labels != IGNORE_INDEX
    if labelled.all():
        raise InputError("unlabelled_ratio is set, but all rows have labels; give rows without, or leave it out.")
    if args.unlabelled_ratio in (0, 1):
        shown = "with" if args.unlabelled_ratio == 0 else "without"
        logger.warning("unlabelled_ratio is %g: only rows %s a label are trained on.", args.unlabelled_ratio, shown)
    grouped = args.train_sampling_strategy == "group_by_length"
    batch = args.train_batch_size * args.world_size
    lengths = row_lengths(rows, with_answers) if grouped else None
    return MixedRows(labelled, lengths, batch, float(args.unlabelled_ratio or 0), args.sample_seed)
