"""A cache of what was answered for rows: by a server, in a file, or by several teachers together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sinkd_llm.environment import versions
from sinkd_llm.errors import InputError
from sinkd_llm.teachers.cache.folder import NEW, refuse_differences
from sinkd_llm.teachers.cache.layout import IN_GROUPS, OVER_CHOICES, CacheLayout
from sinkd_llm.teachers.cache.manifest import MANIFEST, Manifest, RowsIdentity, TeacherIdentity
from sinkd_llm.teachers.cache.writer import CacheWriter, RowGroups, RowOrder
from sinkd_llm.teachers.questions import AnswerSet, Question

# Answers are small: a shard is closed by its number of rows.
_AT_ONCE = 8192


# What is said of how a teacher was asked only where it turned out to speak of groups.
_OF_ANSWERS = {"group_column", "rows_per_request"}
# What is known of the rows: scores by a row's name, or the sets of groups.
Said = Mapping[str, Any] | Sequence[AnswerSet]


def write_answers(
    folder: Path,
    rows: Any,
    questions: Sequence[Question],
    answers: Said,
    *,
    task: str,
    teacher: str,
    classes: tuple[str, ...] | None = None,
    asked: Mapping[str, str] | None = None,
    score: dict[str, Any] | None = None,
    of: TeacherIdentity | None = None,
    overwrite: bool = False,
    named_by_rows: bool = False,
) -> Manifest:
    """
    Writes a cache over the answer choices.

    Args:
        folder (`Path`): new, empty, or an unfinished cache of the same.
        rows ([`~datasets.Dataset`]): `example_id` and `row_print` of each question, in the same order.
        questions (sequence of [`Question`]): the rows.
        answers (`Mapping` or sequence of [`AnswerSet`]): a question's name to its C log-scores, or what is said of
            groups of questions; rows without are kept as such.
        task, teacher (`str`): what they are called.
        classes (`tuple[str, ...]`, *optional*): the choices, where all rows have the same.
        asked (`Mapping[str, str]`, *optional*): the settings that say how the teacher was asked.
        of ([`TeacherIdentity`], *optional*): of a cache whose answers these were; what is `asked` is added to it, and
            `teacher` and `classes` are not looked at.
        score (`dict`, *optional*): how good the teacher is, see [`Manifest`].
        overwrite (`bool`, *optional*, defaults to `False`): replace another cache in the folder. A whole cache of the
            same with fewer teacher rows is replaced in any case: a server has answered more since.
        named_by_rows (`bool`, *optional*, defaults to `False`): whether a cache in the folder can only be of these
            rows, so that other groups are groups of which more is known.

    Raises:
        InputError: if no row has an answer, and as [`CacheWriter`].
    """
    if isinstance(answers, Mapping):
        content, groups, said_of = OVER_CHOICES, None, _by_row(questions, answers)
    else:
        content, (groups, said_of) = IN_GROUPS, _by_group(questions, answers)
    if not said_of:
        raise InputError(
            f"{teacher} says nothing of any of the {len(questions):,} training rows, so there is nothing to learn "
            "from it; check that its answers are about these rows, and that they are choices of theirs."
        )
    width = max(len(question.choices) for question in questions)
    counts = [len(said_of[row][1]) if row in said_of else 0 for row in range(len(questions))]
    ordered = RowOrder(rows, np.array(counts, np.int64), groups)
    identity = TeacherIdentity(teacher, "", None, OVER_CHOICES, width, True, dict(asked or {}), classes)
    if of is not None:
        identity = replace(of, loading={**of.loading, **(asked or {})})
    layout = CacheLayout(content, width, width, (), "float32")
    manifest = Manifest(
        identity, RowsIdentity(task, ordered.hash, len(questions), "", None, None, False, None), layout,
        versions=versions(),
    )  # fmt: skip
    overwrite = overwrite or _has_fewer(folder, manifest, int(ordered.counts.sum()), named_by_rows)
    with CacheWriter(folder, manifest, ordered, overwrite=overwrite) as writer:
        if not writer.manifest.complete:
            for numbers in writer.batches(_AT_ONCE):
                kept = [(i, *said_of[row]) for i, row in enumerate(numbers) if row in said_of]
                example_N = np.concatenate([np.empty(0), *(np.full(len(times_M), i) for i, _, times_M in kept)])
                times_N = np.concatenate([np.empty(0), *(times_M for _, _, times_M in kept)])
                scores_NC, start = np.full((len(times_N), width), -np.inf, np.float32), 0
                for _, scores_MC, times_M in kept:
                    scores_NC[start : start + len(times_M), : scores_MC.shape[1]] = scores_MC
                    start += len(times_M)
                examples_N = torch.from_numpy(example_N.astype(np.int64))
                writer.add(numbers, torch.from_numpy(scores_NC), examples_N, None if groups is None else times_N)
            writer.finish(score)
        return writer.manifest


def _has_fewer(folder: Path, wanted: Manifest, rows: int, named_by_rows: bool) -> bool:
    """Whether a folder has a whole cache of the same with fewer teacher rows."""
    if not (folder / MANIFEST).is_file():
        return False
    found = Manifest.load(folder)
    if named_by_rows and wanted.layout.content == IN_GROUPS:
        wanted = replace(wanted, rows=replace(wanted.rows, hash=found.rows.hash))
    return found.complete and not wanted.differences(found) and sum(one["tokens"] for one in found.shards) < rows


def refuse_another(
    folder: Path,
    rows: Any,
    *,
    task: str,
    teacher: str,
    asked: Mapping[str, str],
    of: TeacherIdentity | None = None,
) -> None:
    """
    Refuses a folder with a cache of something else, as far as that is known before there are answers.

    Args:
        folder, rows, task, teacher, of: as for [`write_answers`].
        asked (`Mapping[str, str]`): the settings that are known by now.

    Raises:
        InputError: as [`CacheWriter`], naming what differs.
    """
    if not (folder / MANIFEST).is_file() or (folder / NEW).exists():
        return  # nothing is there, or what will be is known when the folder is opened
    found = Manifest.load(folder)
    of_answers = {name: value for name, value in found.teacher.loading.items() if name in _OF_ANSWERS}
    known = of or replace(found.teacher, name=teacher, loading=of_answers)
    wanted = Manifest(
        replace(known, loading={**known.loading, **asked}),
        replace(found.rows, task=task, examples=len(rows)),
        found.layout,
    )
    if found.layout.content == OVER_CHOICES:
        # The groups are a part of the hash, but with any the layout is another one, too.
        wanted.rows = replace(wanted.rows, hash=RowOrder(rows).hash)
    refuse_differences(folder, wanted, found)


# By the number of the row with which they are stored: scores `[M, C]`, and how often each is there.
_Stored = dict[int, tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]]


def _by_row(questions: Sequence[Question], answers: Mapping[str, Any]) -> _Stored:
    once = np.ones(1)
    return {
        row: (np.asarray(answers[question.name])[None], once)
        for row, question in enumerate(questions)
        if question.name in answers
    }


def _by_group(questions: Sequence[Question], sets: Sequence[AnswerSet]) -> tuple[RowGroups, _Stored]:
    number = {question.name: row for row, question in enumerate(questions)}
    E = len(questions)
    groups = RowGroups(np.arange(E), np.zeros(E, np.int64), np.zeros(E, bool))
    stored: _Stored = {}
    for said in sets:
        members = [number[name] for name in said.names]
        groups.carrier[members], groups.place[members] = members[0], np.arange(len(members))
        groups.paired[members] = said.paired
        stored[members[0]] = said.scores_MC, said.times_M
    return groups, stored
