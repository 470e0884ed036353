"""A teacher that ran earlier: its signal comes from files, and no model is loaded.

Shape suffixes: N supervised tokens of a batch, B rows of a batch, M teacher rows of its groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sinkd_llm.errors import InputError
from sinkd_llm.models.kinds.class_heads import class_words
from sinkd_llm.models.wrappers import unwrap
from sinkd_llm.objectives import TeacherSets
from sinkd_llm.teachers.cache.arrays import map_arrays, problem_of_file
from sinkd_llm.teachers.cache.identity import example_key, row_prints
from sinkd_llm.teachers.cache.in_groups import answer_sets, check_objective, found_in, group_numbers
from sinkd_llm.teachers.cache.layout import IN_GROUPS
from sinkd_llm.teachers.cache.manifest import Manifest
from sinkd_llm.teachers.cache.suits import check_kept, check_reading, check_same_teacher
from sinkd_llm.teachers.choices import TeacherChoices, choice_counts, named_keys, row_keys
from sinkd_llm.teachers.contract import GROUP_NUMBER, TeacherRows
from sinkd_llm.teachers.fit import check_class_order
from sinkd_llm.teachers.questions import AnswerSet

if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from sinkd_llm.objectives import DistillationObjective

# A cache up to this size is read once and checked before training; a larger one shard by shard, when it is needed.
CHECKED_AT_ONCE_BYTES = 2**30


class CachedTeacher:
    """
    A [`~sinkd_llm.teachers.contract.Teacher`] that ran earlier: its signal is found by the ids of the examples.

    Shards and index are memory-mapped: what is read is what a batch needs, and its pages are given back. Memory does
    not grow with the rows.

    Args:
        folder (`str` or `Path`): what `sinkd cache` wrote.

    Raises:
        InputError: if it is no cache, not complete, or its files are not those that were written.
    """

    needs_all_ranks = False
    knows_training_rows_only = True
    model = None

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = Manifest.load(self.folder)
        if self.manifest.index is None:
            raise InputError(
                f"{self.folder} is not complete: {self.manifest.done} of {self.manifest.rows.examples} examples "
                "are cached. Start the same 'sinkd cache' again; it goes on from there."
            )
        checks = self.manifest.bytes <= CHECKED_AT_ONCE_BYTES
        for record in (*self.manifest.shards, self.manifest.index):
            # The index is always read: every look-up needs it.
            self._refuse(problem_of_file(self.folder, record, read=checks or record is self.manifest.index))
        self._unchecked = set() if checks else set(range(len(self.manifest.shards)))
        self._index = map_arrays(self.folder / self.manifest.index["file"]).arrays
        self._shards = [map_arrays(self.folder / shard["file"]) for shard in self.manifest.shards]
        self._check_arrays()
        tokens = [shard["tokens"] for shard in self.manifest.shards]
        self._starts = np.concatenate([[0], np.cumsum(tokens)]).astype(np.int64)
        self.over_choices = self.manifest.layout.over_choices
        # Over answer choices a student reads the rows with a tokenizer of its own.
        self.context_length = None if self.over_choices else self.manifest.rows.cut_at
        self.scores_classes = self.manifest.teacher.scores_classes
        self.outputs = self.manifest.teacher.outputs
        self.classes = self.manifest.teacher.classes or None
        self.recorded_score = self.manifest.teacher_score
        self._choices = TeacherChoices.recorded(self.recorded_score)

    def _check_arrays(self) -> None:
        """Refuses arrays that are not what the manifest says: they could be read, and rows would be other rows."""
        index, examples, total = self._index, self.manifest.rows.examples, self.manifest.tokens
        of_groups = ("place", "paired") if self.in_groups else ()
        for name in ("key", "print", "first", "count", *of_groups):
            array = index.get(name)
            if array is None or array.shape != (examples,) or array.dtype.kind != "u":
                self._refuse(f"the index has no {name} of {examples} examples")
        ends = index["first"].astype(np.int64) + index["count"].astype(np.int64)
        if len(ends) and (ends.max() > total or (index["key"][1:] < index["key"][:-1]).any()):
            self._refuse("the index names rows that are not there")
        if self.in_groups and (index["place"] >= index["count"])[index["paired"] > 0].any():
            self._refuse("the index names pairs that are not there")
        expected = self.manifest.layout.shapes
        for shard, mapped in zip(self.manifest.shards, self._shards, strict=True):
            found = {name: (array.dtype.str.lstrip("<|=>"), array.shape[1:]) for name, array in mapped.arrays.items()}
            rows = {len(array) for array in mapped.arrays.values()}
            if found != expected or rows != {shard["tokens"]}:
                self._refuse(f"{shard['file']} does not hold {shard['tokens']} rows of this layout")

    @property
    def in_groups(self) -> bool:
        """Whether its rows are known per group, and not one for each row."""
        return self.manifest.layout.content == IN_GROUPS

    def signal(self, batch: Mapping[str, Any]) -> TeacherRows:
        """
        The rows of the supervised tokens of a batch, in the order of all kinds: example by example, and each
        answer from its beginning. See [`~sinkd_llm.teachers.contract.Teacher`].

        Args:
            batch (`Mapping`): its `example_id` names the examples, and the signal goes where its `labels` are. Of
                rows that are known per group it holds whole groups, and their numbers ([`GROUP_NUMBER`]). Over answer
                choices a row whose name is `None` is there for its label, and has no row here.

        Raises:
            InputError: naming the examples that are not in the cache.
        """
        example_ids, device = batch["example_id"], batch["labels"].device
        if None in example_ids:
            return self._of_named(batch)
        entry = self._entries([example_key(name) for name in example_ids], example_ids)
        if self.in_groups:
            return self._sets(entry, batch)
        counts = self._index["count"][entry].astype(np.int64)
        position = np.concatenate([np.arange(n) for n in counts] or [np.zeros(0, np.int64)])
        rows = np.repeat(self._index["first"][entry].astype(np.int64), counts) + position
        signal = self.manifest.layout.decode(self._read(rows), device)
        row_N = torch.from_numpy(np.flatnonzero(counts)).to(device) if self.over_choices else None
        return TeacherRows(signal, torch.from_numpy(position).to(device), row_N)

    def _of_named(self, batch: Mapping[str, Any]) -> TeacherRows:
        """The rows of the examples that have a name."""
        names = batch["example_id"]
        named_K = torch.tensor([i for i, name in enumerate(names) if name is not None], dtype=torch.long)
        part = {"example_id": [name for name in names if name is not None], "labels": batch["labels"]}
        if GROUP_NUMBER in batch:
            part[GROUP_NUMBER] = batch[GROUP_NUMBER][named_K.to(batch[GROUP_NUMBER].device)]
        found = self.signal(part)
        assert found.row_N is not None  # over answer choices
        return replace(found, row_N=named_K.to(found.row_N.device)[found.row_N])

    def _sets(self, entry_B: "np.ndarray[Any, Any]", batch: Mapping[str, Any]) -> TeacherRows:
        found, device = found_in(self._index, entry_B), batch["labels"].device
        arrays = self._read(found.row_M)
        # On the CPU, where the sizes of groups are needed.
        group_M = batch[GROUP_NUMBER].cpu()[torch.from_numpy(found.member_M)]
        times_M, paired_M = torch.from_numpy(arrays["times"]), torch.from_numpy(found.paired_M)
        row_N = torch.from_numpy(found.taught_N).to(device)
        signal = self.manifest.layout.decode(arrays, device)
        return TeacherRows(signal, torch.zeros_like(row_N), row_N, TeacherSets(group_M, times_M, paired_M))

    def count(self, batch: Mapping[str, Any]) -> int:
        """See [`~sinkd_llm.teachers.contract.Teacher`]."""
        names = [name for name in batch["example_id"] if name is not None]
        entry = self._entries([example_key(name) for name in names], names)
        counts = self._index["count"][entry]
        return int((counts > 0).sum() if self.in_groups else counts.sum())

    def groups_of(self, features: "Dataset") -> "np.ndarray[Any, Any] | None":
        """See [`~sinkd_llm.teachers.contract.Teacher`]."""
        if not self.in_groups:
            return None
        return group_numbers(
            self._index, np.concatenate([self._entries(part.keys, part.names) for part in row_prints(features)])
        )

    @property
    def asked(self) -> dict[str, str]:
        """How the teacher was loaded and asked."""
        return self.manifest.teacher.loading

    def answers(self, names: Sequence[str]) -> dict[str, "np.ndarray[Any, Any]"]:
        """
        Over answer choices: the log-scores of the rows of these names that have any, -inf where a row has fewer
        choices. Of rows that are known per group these are the rows whose own is known.

        Raises:
            InputError: naming rows that are not in the cache.
        """
        entry = self._entries([example_key(name) for name in names], names)
        has_own, place = self._index["count"][entry] > 0, np.zeros(len(entry), np.int64)
        if self.in_groups:
            has_own &= self._index["paired"][entry] > 0
            place = self._index["place"][entry].astype(np.int64)
        known = np.flatnonzero(has_own)
        scores = self._read((self._index["first"][entry].astype(np.int64) + place)[known])["logits"]
        return {names[i]: row for i, row in zip(known.tolist(), scores, strict=True)}

    def sets(self, names: Sequence[str]) -> list[AnswerSet]:
        """
        Of rows that are known per group: what there is of the groups of these names, in the order of their first rows.

        Raises:
            InputError: naming rows that are not in the cache.
        """
        entry = self._entries([example_key(name) for name in names], names)
        return answer_sets(self._index, entry, names, self._read)

    def check_finite(self, batch: Mapping[str, Any]) -> None:
        """Only finite logits are cached."""

    def choices(self, batch: Mapping[str, Any]) -> Tensor:
        """
        The choices that were recorded when the teacher was scored, `[B]`; -1 of rows that were not scored then.

        Raises:
            InputError: if one of them is no choice of its row.
        """
        if self.over_choices:
            keys = named_keys(self.recorded_score, batch["example_id"], batch["row_print"])
        else:
            keys = row_keys(batch)
        chosen = self._choices.of(keys, choice_counts(batch))
        return torch.tensor(chosen, device=batch["label"].device)

    def check_rows(self, features: "Dataset") -> None:
        """
        Makes sure that every row is in the cache, with the same tokens.

        Raises:
            InputError: naming the first that is not.
        """
        for part in row_prints(features):
            entry = self._entries(part.keys, part.names)
            differ = self._index["print"][entry] ^ part.prints
            for shift, what in ((np.uint64(32), "answer"), (np.uint64(0), "prompt")):
                wrong = np.flatnonzero((differ >> shift) & np.uint64(0xFFFFFFFF))
                if len(wrong):
                    task = self.manifest.rows.task
                    self._refuse_rows(
                        [part.names[i] for i in wrong],
                        f"have another {what} than when task {task!r} was cached in",
                    )

    def check_fits(
        self, student: Any, tokenizer: Any, reading: Mapping[str, Any], classes: Sequence[str] | None = None
    ) -> None:
        """
        Makes sure that a run reads its rows as the cache did, and that its student scores the same things. See
        [`~sinkd_llm.teachers.contract.Teacher`].

        Raises:
            InputError: with everything that differs.
        """
        if self.over_choices:
            return
        check_reading(self.manifest, self.folder, student, tokenizer, reading)
        if self.manifest.teacher.classes is not None:
            check_class_order(self.classes, class_words(unwrap(student).config), classes)

    def check_teacher(self, name: str | None, revision: str, quantised: str | None = None) -> None:
        """
        Makes sure that the teacher that a run names is the cached one; one that is not on this machine is
        compared by its name.

        Args:
            name (`str`, *optional*): of the teacher, if the run has one.
            revision (`str`): of it.
            quantised (`str`, *optional*): `"4bit"` or `"8bit"` if the run asks for such a teacher. A run that does
                not may train from a cache of either, for it loads none.

        Raises:
            InputError: if it is another.
        """
        check_same_teacher(self.manifest, self.folder, name, revision, quantised)

    def check_objective(
        self, objective: "DistillationObjective", verbalizer_ids: Tensor | None, tolerance: float
    ) -> None:
        """
        Makes sure that the loss can be computed from what is kept, and warns where it is known less well than
        `tolerance`, see [`Manifest.width_warning`].

        Raises:
            InputError: saying how to cache it.
        """
        if self.in_groups:
            check_objective(objective, bool(self._index["paired"].any()), str(self.folder))
        check_kept(self.manifest, self.folder, objective, verbalizer_ids, tolerance)

    def place(self, accelerator: "Accelerator", placement: str) -> None:
        """Files stay where they are."""

    def _entries(self, keys: Any, names: Sequence[str]) -> "np.ndarray[Any, Any]":
        """Places in the index."""
        wanted = np.asarray(keys, np.uint64)
        known = self._index["key"]
        entry = np.searchsorted(known, wanted)
        missing = (entry == len(known)) | (known[np.minimum(entry, len(known) - 1)] != wanted)
        if missing.any():
            self._refuse_rows([names[i] for i in np.flatnonzero(missing).tolist()], "are not in")
        return entry

    def _read(self, rows: "np.ndarray[Any, Any]") -> dict[str, "np.ndarray[Any, Any]"]:
        shard_N = np.searchsorted(self._starts, rows, side="right") - 1
        needed = np.unique(shard_N).tolist()
        for s in needed:
            if s in self._unchecked:
                self._refuse(problem_of_file(self.folder, self.manifest.shards[s]))
                self._unchecked.discard(s)
        layout = self._shards[needed[0] if needed else 0].arrays  # no supervised token: empty rows of the right width
        out = {name: np.empty((len(rows), *array.shape[1:]), array.dtype) for name, array in layout.items()}
        for s in needed:
            here = np.flatnonzero(shard_N == s)
            for name, array in self._shards[s].arrays.items():
                out[name][here] = array[rows[here] - self._starts[s]]
            self._shards[s].release()
        return out

    def _refuse_rows(self, names: Sequence[str], what: str) -> None:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(
            f"Rows {what} the teacher cache {self.folder}: {shown}. Train on the rows that were cached (a "
            "sample of --max_train_samples is drawn with --data_seed, or without one with --seed), or cache the "
            "teacher again with this recipe."
        )

    def _refuse(self, problem: str | None) -> None:
        if problem is not None:
            raise InputError(
                f"The teacher cache {self.folder} is damaged: {problem}. Start the same 'sinkd cache' again; it "
                "writes again what is missing."
            )
