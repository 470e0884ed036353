"""Writing a cache: shard by shard, so that a killed run goes on where its last whole shards end.

On several processes each writes shards of its own spans of the rows, and keeps their records in a part of the manifest
of its own; the first process takes the parts over into the manifest.

Shape suffixes: N supervised tokens of a batch, V vocabulary.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sinkd_llm.distributed import Ranks
from sinkd_llm.errors import InputError
from sinkd_llm.locks import folder_lock
from sinkd_llm.teachers.cache.arrays import problem_of_file, write_arrays
from sinkd_llm.teachers.cache.folder import (
    INDEX,
    NEW,
    PARTS,
    drop_leftovers,
    finish_replacing,
    refuse_differences,
    refuse_other_files,
    replace_cache,
)
from sinkd_llm.teachers.cache.identity import row_prints
from sinkd_llm.teachers.cache.layout import Arrays
from sinkd_llm.teachers.cache.manifest import MANIFEST, Manifest
from sinkd_llm.teachers.cache.together import first_alone

if TYPE_CHECKING:
    from datasets import Dataset

SHARD_BYTES = 32 * 2**20
SHARD_EXAMPLES = 8192
# Of each process, where several write: rows are sorted by length, and the processes should get as many tokens each.
_SPANS = 8
# Rows of a batch whose whole distribution is sorted, to say what another K would keep.
_SAMPLED_ROWS = 4


@dataclass(frozen=True, eq=False)
class RowGroups:
    """
    Rows whose teacher rows are known per group: a group's teacher rows are stored once, with one of its rows.

    Args:
        carrier (`np.ndarray`): for each row of the data set, the number of the row with which its group's are stored;
            its own number for a row without a group.
        place (`np.ndarray`): its place in its group, from 0.
        paired (`np.ndarray`): whether the teacher row of this place is its own.
    """

    carrier: "np.ndarray[Any, Any]"
    place: "np.ndarray[Any, Any]"
    paired: "np.ndarray[Any, Any]"


class RowOrder:
    """The rows of a cache in caching order: longest first, so that what does not fit into memory fails at once.

    Args:
        features ([`~datasets.Dataset`]): tokenised rows.
        counts (`np.ndarray`, *optional*): over answer choices, how many teacher rows are stored with each row.
            Default: one.
        groups ([`RowGroups`], *optional*): over answer choices, the groups by which the teacher's rows are known.

    Attributes:
        order (`np.ndarray`): the data set's row numbers in caching order.
        hash (`str`): of the rows in the data set's order.
    """

    def __init__(
        self,
        features: "Dataset",
        counts: "np.ndarray[Any, Any] | None" = None,
        groups: "RowGroups | None" = None,
    ) -> None:
        digest = hashlib.blake2b(digest_size=16)
        parts = []
        for part in row_prints(features):
            digest.update(part.keys.tobytes() + part.prints.tobytes())
            parts.append((part.keys, part.prints, part.counts, part.lengths))  # without names, which are long
        if groups is not None:
            for array in (groups.carrier, groups.place, groups.paired):
                digest.update(array.tobytes())
        self.hash, self.groups = digest.hexdigest(), groups
        self.keys, self.prints, self.counts, lengths = map(np.concatenate, zip(*parts, strict=True))
        if counts is not None:
            self.counts = counts
        self.order = np.argsort(-lengths, kind="stable")
        self._refuse_repeated(features)

    def index(self) -> Arrays:
        """Where each example's rows are, sorted by the example's key."""
        first = np.zeros(len(self.order), np.uint64)
        first[self.order] = np.concatenate([[0], np.cumsum(self.counts[self.order])[:-1]])
        by_key = np.argsort(self.keys)
        small, wide = int(self.counts.sum()) < 2**32, self.counts.max(initial=0) >= 2**16
        counts, of_groups = self.counts, {}
        if self.groups is not None:
            first, counts = first[self.groups.carrier], counts[self.groups.carrier]
            of_groups["place"] = self.groups.place[by_key].astype(np.uint32)
            of_groups["paired"] = self.groups.paired[by_key].astype(np.uint8)
        return {
            "key": self.keys[by_key],
            "print": self.prints[by_key],
            "first": first[by_key].astype(np.uint32 if small else np.uint64),
            "count": counts[by_key].astype(np.uint32 if wide else np.uint16),
            **of_groups,
        }

    def _refuse_repeated(self, features: "Dataset") -> None:
        distinct, times = np.unique(self.keys, return_counts=True)
        if len(distinct) == len(self.keys):
            return
        rows = np.flatnonzero(self.keys == distinct[times > 1][0])[:2].tolist()
        raise InputError(
            f"Rows {rows[0]} and {rows[1]} have the same id {features[rows[0]]['example_id']!r}, and a cache finds a "
            "row by its id; give every row an id of its own, or leave the ids out."
        )


class CacheWriter:
    """
    Writes one cache; a context that holds its folder's lock.

    With `ranks`, all of them enter it, add their batches, and call `finish`, in the same order. What they wrote is the
    same as one process would have written, but for where shards end: the batches are the same.

    Args:
        folder (`Path`): new, empty, or with an unfinished cache of the same identity, which is continued.
        manifest ([`Manifest`]): the identity; its shards are the shards of the folder, if there are any.
        ordered ([`RowOrder`]): the rows.
        shard_bytes (`int`): a shard is closed at this size.
        overwrite (`bool`, *optional*, defaults to `False`): whether to replace the cache that is in `folder`. It
            stays until the new one is whole.
        ranks ([`Ranks`], *optional*): the processes that write it together, to one file system. Default: this one
            alone.

    Raises:
        InputError: if the folder holds another cache or other files, or another process writes to it; on all ranks.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        ordered: RowOrder,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.folder, self.manifest, self.ordered, self.shard_bytes = folder, manifest, ordered, shard_bytes
        self.overwrite, self.ranks = overwrite, ranks
        self._rank, self._processes = (ranks.index, ranks.count) if ranks else (0, 1)
        self._final = folder
        self._part = manifest  # where this process records its shards
        self._began = False
        self._buffer: list[Arrays] = []
        self._start = self._examples = self._bytes = 0
        self._sums = self._new_sums()

    def __enter__(self) -> "CacheWriter":
        with ExitStack() as held:
            self.folder, self.manifest = first_alone(self.ranks, lambda: self._open(held))
            self._held = held.pop_all()
        self._part = self.manifest if self._rank == 0 else replace(self.manifest, shards=[], index=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self._began and not self.done and not any(self.folder.glob(PARTS)):
            # Nothing was cached, so that nothing is left, neither.
            with suppress(OSError):
                (self.folder / MANIFEST).unlink(missing_ok=True)
                if self.folder != self._final:
                    self.folder.rmdir()
        self._held.close()

    def _open(self, held: ExitStack) -> tuple[Path, Manifest]:
        """Takes the folder, and finds what of the cache is there."""
        refuse_other_files(self._final)
        held.enter_context(folder_lock(self._final, "wait, or give another folder"))
        finish_replacing(self._final, self.manifest)
        if self.overwrite and (self._final / MANIFEST).exists():
            self.folder = self._final / NEW
            self._drop_another_successor()
            self.folder.mkdir(exist_ok=True)
        self._continue()
        return self.folder, self.manifest

    def _drop_another_successor(self) -> None:
        """Of what was begun to replace the cache, go on with the same; another is of no use."""
        try:
            same = not self.manifest.differences(Manifest.load(self.folder))
        except InputError:
            same = False
        if not same and self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def done(self) -> int:
        """Examples that are in whole shards, as far as this process knows."""
        return self.manifest.done + (self._part.done if self._part is not self.manifest else 0)

    @property
    def added(self) -> int:
        """Examples that are in shards or on their way there, as far as this process knows."""
        return self.done + self._examples

    def batches(self, size: int) -> Iterator[list[int]]:
        """The data set's row numbers of each batch that this process has still to add, `size` rows or fewer."""
        for start, stop in self._spans(size):
            for first in range(start, stop, size):
                if not self._buffer:
                    self._start = first
                yield self.ordered.order[first : min(first + size, stop)].tolist()
            self._close_shard()

    def _spans(self, size: int) -> list[tuple[int, int]]:
        """The examples `[start, stop)` in caching order that this process adds."""
        gaps = self.manifest.gaps()
        if self.ranks is None:
            return gaps
        left = sum(stop - start for start, stop in gaps)
        # In whole batches: each then has the rows, and the padding, that it has on one process.
        length = min(-(-left // (self._processes * _SPANS * size)), max(SHARD_EXAMPLES // size, 1)) * size
        spans = [(at, min(at + length, stop)) for start, stop in gaps for at in range(start, stop, max(length, 1))]
        # Forth and back, for a span has no shorter rows than the next one.
        turns = (self._rank, 2 * self._processes - 1 - self._rank)
        return [span for i, span in enumerate(spans) if i % (2 * self._processes) in turns]

    def add(
        self, rows: list[int], logits_NV: Tensor, example_N: Tensor, times_N: "np.ndarray[Any, Any] | None" = None
    ) -> None:
        """The teacher's logits of the next batch, in the order of `rows` and of each row's answer; of rows in groups
        also how often a group has each."""
        counts = torch.bincount(example_N.cpu(), minlength=len(rows)).numpy()
        expected = self.ordered.counts[rows]
        if not (example_N.diff() >= 0).all() or not np.array_equal(counts, expected):
            raise RuntimeError(f"the teacher gave {counts.tolist()} rows for answers of {expected.tolist()} tokens")
        arrays = self.manifest.layout.encode(logits_NV)
        if times_N is not None:
            arrays["times"] = times_N.astype(np.float32)
        self._buffer.append(arrays)
        self._examples += len(rows)
        self._bytes += sum(array.nbytes for array in arrays.values())
        self._add_sums(logits_NV, arrays)
        if self._bytes >= self.shard_bytes or self._examples >= SHARD_EXAMPLES:
            self._close_shard()

    def finish(self, teacher_score: dict[str, Any] | None = None) -> Manifest:
        """The last shard and the index; from here on the cache can be read."""
        self._close_shard()
        if self.ranks is not None:
            self.ranks.merged({})  # all shards of all processes are whole
        self.folder, self.manifest = first_alone(self.ranks, lambda: self._complete(teacher_score))
        self._part = self.manifest
        return self.manifest

    def _complete(self, teacher_score: dict[str, Any] | None) -> tuple[Path, Manifest]:
        self.manifest.add_shards(self._records_of_parts())
        if self.manifest.done != len(self.ordered.order):
            raise RuntimeError(f"{self.manifest.done} of {len(self.ordered.order)} examples were added")
        index = write_arrays(self.folder / INDEX, self.ordered.index())
        self.manifest.teacher_score = teacher_score
        self.manifest.index = index
        self.manifest.save(self.folder)
        if self.folder != self._final:
            replace_cache(self._final, self.manifest)
            self.folder = self._final
        drop_leftovers(self.folder, [record["file"] for record in self.manifest.shards])
        return self.folder, self.manifest

    def _records_of_parts(self) -> list[dict[str, Any]]:
        """Of the shards that other processes wrote; a part of another cache, or a damaged one, is of no use."""
        records = []
        for file in sorted(self.folder.glob(PARTS)):
            with suppress(InputError):
                part = Manifest.load(self.folder, file.name)
                if not self.manifest.differences(part):
                    records += part.shards
        return records

    def _continue(self) -> None:
        if not (self.folder / MANIFEST).exists():
            self.manifest.save(self.folder)
            self._began = True
            return
        found = Manifest.load(self.folder)
        refuse_differences(self.folder, self.manifest, found)
        recorded = found.teacher
        if recorded.classes is None:
            found.teacher = self.manifest.teacher  # the same teacher; an earlier version did not record its classes
        self.manifest = found
        whole = [record for record in found.shards if problem_of_file(self.folder, record) is None]
        if found.index and len(whole) == len(found.shards) and problem_of_file(self.folder, found.index) is None:
            if found.teacher != recorded:
                found.save(self.folder)
            return
        found.shards, found.index = whole, None
        parts = self._records_of_parts()
        found.add_shards(record for record in parts if problem_of_file(self.folder, record) is None)
        found.save(self.folder)
        if any(self.folder.glob(PARTS)):
            drop_leftovers(self.folder, [record["file"] for record in found.shards])

    def _close_shard(self) -> None:
        if not self._buffer:
            return
        arrays = {name: np.concatenate([part[name] for part in self._buffer]) for name in self._buffer[0]}
        taken = {record["file"] for part in (self.manifest, self._part) for record in part.shards}
        # Each process has numbers of its own.
        names = (f"shard-{number:05d}.safetensors" for number in count(self._rank, self._processes))
        name = next(name for name in names if name not in taken)
        # First the file, then its record: a file without a record is written again, over the old one.
        record = write_arrays(self.folder / name, arrays)
        stop = self._start + self._examples
        tokens = len(arrays["logits"])
        self._part.add_shards([{**record, "start": self._start, "stop": stop, "tokens": tokens, **self._sums}])
        self._part.save(self.folder, PARTS.replace("*", f"{self._rank:05d}") if self._rank else MANIFEST)
        self._buffer, self._examples, self._bytes, self._sums = [], 0, 0, self._new_sums()

    def _new_sums(self) -> dict[str, Any]:
        temperatures = self.manifest.layout.temperatures
        return {
            "tail_sums": [0.0 for _ in temperatures],
            "sampled_tokens": 0,
            "sampled_tail_sums": [[0.0] * len(self.manifest.tail_at) for _ in temperatures],
        }

    def _add_sums(self, logits_NV: Tensor, arrays: Arrays) -> None:
        """Tail masses: of what is kept, over all rows; of other K, over some rows of each batch."""
        layout = self.manifest.layout
        if not layout.temperatures:
            return
        signal = layout.decode(arrays, "cpu")
        assert not isinstance(signal, Tensor)
        sampled_NV = logits_NV[:: max(1, len(logits_NV) // _SAMPLED_ROWS), : layout.vocabulary_size].float()
        sampled_NV = sampled_NV.sort(dim=-1, descending=True).values
        at = torch.tensor(self.manifest.tail_at, device=sampled_NV.device) - 1
        self._sums["sampled_tokens"] += len(sampled_NV)
        for i, temperature in enumerate(layout.temperatures):
            self._sums["tail_sums"][i] += signal.probabilities(temperature)[1].double().sum().item()
            heads = torch.softmax(sampled_NV / temperature, dim=-1).cumsum(dim=-1)[:, at]
            tails = (1 - heads).clamp(min=0).double().sum(dim=0).tolist()
            old = self._sums["sampled_tail_sums"][i]
            self._sums["sampled_tail_sums"][i] = [a + b for a, b in zip(old, tails, strict=True)]
