"""Writing a cache: shard by shard, so that a killed run goes on where its last whole shard ends.

Shape suffixes: N supervised tokens of a batch, V vocabulary.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.locks import LOCK_FILES, folder_lock
from sinkd_llm.teachers.cache.arrays import problem_of_file, write_arrays
from sinkd_llm.teachers.cache.identity import row_prints
from sinkd_llm.teachers.cache.layout import Arrays
from sinkd_llm.teachers.cache.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from datasets import Dataset

INDEX = "index.safetensors"
# Where the successor of a cache is written, inside its folder, until it is whole.
NEW = ".new"
SHARD_BYTES = 32 * 2**20
SHARD_EXAMPLES = 8192
# Rows of a batch whose whole distribution is sorted, to say what another K would keep.
_SAMPLED_ROWS = 4


class RowOrder:
    """The rows of a cache in caching order: longest first, so that what does not fit into memory fails at once.

    Args:
        features ([`~datasets.Dataset`]): tokenised rows.
        present (`np.ndarray`, *optional*): over answer choices, of which rows the teacher speaks. Default: of all.

    Attributes:
        order (`np.ndarray`): the data set's row numbers in caching order.
        hash (`str`): of the rows in the data set's order.
    """

    def __init__(self, features: "Dataset", present: "np.ndarray[Any, Any] | None" = None) -> None:
        parts = list(row_prints(features))
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(part.keys.tobytes() + part.prints.tobytes())
        self.hash = digest.hexdigest()
        self.keys, self.prints, self.counts = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("keys", "prints", "counts")
        )
        if present is not None:
            self.counts = present.astype(np.int64)
        self.order = np.argsort(-np.concatenate([part.lengths for part in parts]), kind="stable")
        self._refuse_repeated(features)

    def index(self) -> Arrays:
        """Where each example's rows are, sorted by the example's key."""
        first = np.zeros(len(self.order), np.uint64)
        first[self.order] = np.concatenate([[0], np.cumsum(self.counts[self.order])[:-1]])
        by_key = np.argsort(self.keys)
        small = int(self.counts.sum()) < 2**32
        return {
            "key": self.keys[by_key],
            "print": self.prints[by_key],
            "first": first[by_key].astype(np.uint32 if small else np.uint64),
            "count": self.counts[by_key].astype(np.uint32 if self.counts.max(initial=0) >= 2**16 else np.uint16),
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

    Args:
        folder (`Path`): new, empty, or with an unfinished cache of the same identity, which is continued.
        manifest ([`Manifest`]): the identity; its shards are the shards of the folder, if there are any.
        ordered ([`RowOrder`]): the rows.
        shard_bytes (`int`): a shard is closed at this size.
        overwrite (`bool`, *optional*, defaults to `False`): whether to replace the cache that is in `folder`. It
            stays until the new one is whole.

    Raises:
        InputError: if the folder holds another cache or other files, or another process writes to it.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        ordered: RowOrder,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
    ) -> None:
        self.folder, self.manifest, self.ordered, self.shard_bytes = folder, manifest, ordered, shard_bytes
        self.overwrite = overwrite
        self._final = folder
        self._began = False
        self._buffer: list[Arrays] = []
        self._examples = self._bytes = 0
        self._sums = self._new_sums()

    def __enter__(self) -> "CacheWriter":
        refuse_other_files(self._final)
        with ExitStack() as held:
            held.enter_context(folder_lock(self._final, "wait, or give another folder"))
            _finish_replacing(self._final, self.manifest)
            if self.overwrite and (self._final / MANIFEST).exists():
                self.folder = self._final / NEW
                self._drop_another_successor()
                self.folder.mkdir(exist_ok=True)
            self._continue()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self._began and not self.done:
            # Nothing was cached, so that nothing is left, neither.
            with suppress(OSError):
                (self.folder / MANIFEST).unlink(missing_ok=True)
                if self.folder != self._final:
                    self.folder.rmdir()
        self._held.close()

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
        """Examples that are in whole shards, in caching order."""
        return int(self.manifest.shards[-1]["stop"]) if self.manifest.shards else 0

    @property
    def added(self) -> int:
        """Examples that are in shards or on their way there."""
        return self.done + self._examples

    def batches(self, size: int) -> Iterator[list[int]]:
        """The data set's row numbers of each batch that is still to be added."""
        for start in range(self.done, len(self.ordered.order), size):
            yield self.ordered.order[start : start + size].tolist()

    def add(self, rows: list[int], logits_NV: Tensor, example_N: Tensor) -> None:
        """The teacher's logits of the next batch, in the order of `rows` and of each row's answer."""
        counts = torch.bincount(example_N.cpu(), minlength=len(rows)).numpy()
        expected = self.ordered.counts[rows]
        if not (example_N.diff() >= 0).all() or not np.array_equal(counts, expected):
            raise RuntimeError(f"the teacher gave {counts.tolist()} rows for answers of {expected.tolist()} tokens")
        arrays = self.manifest.layout.encode(logits_NV)
        self._buffer.append(arrays)
        self._examples += len(rows)
        self._bytes += sum(array.nbytes for array in arrays.values())
        self._add_sums(logits_NV, arrays)
        if self._bytes >= self.shard_bytes or self._examples >= SHARD_EXAMPLES:
            self._close_shard()

    def finish(self, teacher_score: dict[str, Any] | None = None) -> Manifest:
        """The last shard and the index; from here on the cache can be read."""
        self._close_shard()
        if self.done != len(self.ordered.order):
            raise RuntimeError(f"{self.done} of {len(self.ordered.order)} examples were added")
        index = write_arrays(self.folder / INDEX, self.ordered.index())
        self.manifest.teacher_score = teacher_score
        self.manifest.index = index
        self.manifest.save(self.folder)
        if self.folder != self._final:
            _replace(self._final, self.manifest)
            self.folder = self._final
        return self.manifest

    def _continue(self) -> None:
        if not (self.folder / MANIFEST).exists():
            self.manifest.save(self.folder)
            self._began = True
            return
        found = Manifest.load(self.folder)
        if differences := self.manifest.differences(found):
            raise InputError(
                f"{self.folder} holds a cache of something else ({'; '.join(differences)}); give another --output, or "
                "--overwrite to replace it."
            )
        recorded = found.teacher
        if recorded.classes is None:
            found.teacher = self.manifest.teacher  # the same teacher; an earlier version did not record its classes
        whole = 0
        while whole < len(found.shards) and problem_of_file(self.folder, found.shards[whole]) is None:
            whole += 1
        if found.index and whole == len(found.shards) and problem_of_file(self.folder, found.index) is None:
            if found.teacher != recorded:
                found.save(self.folder)
            self.manifest = found
            return
        found.shards, found.index = found.shards[:whole], None
        self.manifest = found
        self.manifest.save(self.folder)

    def _close_shard(self) -> None:
        if not self._buffer:
            return
        arrays = {name: np.concatenate([part[name] for part in self._buffer]) for name in self._buffer[0]}
        name = f"shard-{len(self.manifest.shards):05d}.safetensors"
        # First the file, then its record: a file without a record is written again, over the old one.
        record = write_arrays(self.folder / name, arrays)
        stop = self.done + self._examples
        tokens = len(arrays["logits"])
        self.manifest.shards.append({**record, "start": self.done, "stop": stop, "tokens": tokens, **self._sums})
        self.manifest.save(self.folder)
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


def refuse_other_files(folder: Path) -> None:
    """
    Refuse a folder that holds something, but no cache. Nothing is written.

    Raises:
        InputError: naming what it holds.
    """
    if not folder.is_dir() or _is_cache(folder):
        return
    ours = (*LOCK_FILES, NEW)
    strange = [f.name for f in folder.iterdir() if f.name not in ours and not f.name.endswith(".part")]
    if strange:
        raise InputError(f"{folder} holds {sorted(strange)[0]} but no teacher cache; give a new or empty folder.")


def _is_cache(folder: Path) -> bool:
    """Whether a folder has a manifest of a cache; one that is damaged counts where shards are beside it."""
    path = folder / MANIFEST
    if not path.is_file():
        # A process may have been killed while it put a new cache in the place of an old one.
        return folder.name != NEW and _is_cache(folder / NEW)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and content:
        return {"layout", "shards"} & content.keys() != set()
    return (folder / "shard-00000.safetensors").is_file()


def remove_cache(folder: Path) -> None:
    """Delete the cache in `folder`, its manifest first, and what was begun to replace it; other files stay."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for pattern in ("shard-*.safetensors", INDEX, "*.part"):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(folder / NEW, ignore_errors=True)


def _replace(folder: Path, new: Manifest) -> None:
    """Put the whole cache in `NEW` in the place of the one beside it; called again, it goes on after a kill."""
    (folder / MANIFEST).unlink(missing_ok=True)
    assert new.index is not None
    names = [record["file"] for record in (*new.shards, new.index)]
    for name in names:
        if (folder / NEW / name).exists():
            os.replace(folder / NEW / name, folder / name)
    for file in [*folder.glob("shard-*.safetensors"), *folder.glob("*.part")]:
        if file.name not in names:
            file.unlink()
    os.replace(folder / NEW / MANIFEST, folder / MANIFEST)
    shutil.rmtree(folder / NEW, ignore_errors=True)


def _finish_replacing(folder: Path, wanted: Manifest) -> None:
    """A process that was killed while it put a whole new cache in the place of the old one has left both in parts."""
    if not (folder / NEW / MANIFEST).exists():
        return
    try:
        new = Manifest.load(folder / NEW)
    except InputError:
        return
    if new.complete and (not (folder / MANIFEST).exists() or not wanted.differences(new)):
        _replace(folder, new)
