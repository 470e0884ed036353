"""A cache of what was answered for rows: by a server, in a file, or by several teachers together."""

import hashlib
import json
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
from sinkd_llm.teachers.cache.reader import CachedTeacher
from sinkd_llm.teachers.cache.writer import CacheWriter, RowGroups, RowOrder
from sinkd_llm.teachers.questions import AnswerSet, Question

# Answers are small: a shard is closed by its number of rows.
_AT_ONCE = 8192
# Two log-scores that are nearer are the same: their last bits depend on the processor.
_SAME_NATS = 1e-4
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
    own_folder: bool = False,
) -> Manifest:
    """
    Writes a cache over the answer choices. It knows which answers it holds: what was begun is continued, and what is
    whole is kept, if the answers are the same.

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
        overwrite (`bool`, *optional*, defaults to `False`): replace another cache in the folder. A whole cache whose
            answers are all among these is replaced in any case, if its teacher's score is over no more rows than
            `score`: a server has answered more since, or says something else of the rows for evaluation.
        own_folder (`bool`, *optional*, defaults to `False`): whether no user has named the folder, so that other
            answers, too, are replaced.

    Raises:
        InputError: if no row has an answer; and as [`CacheWriter`], also for a folder with other answers.
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
    identity = replace(identity, answers=_answers_hash(said_of, score))
    layout = CacheLayout(content, width, width, (), "float32")
    manifest = Manifest(
        identity, RowsIdentity(task, ordered.hash, len(questions), "", None, None, False, None), layout,
        versions=versions(),
    )  # fmt: skip
    overwrite = overwrite or _gives_way(folder, manifest, rows, questions, answers, score, own_folder)
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


def _gives_way(
    folder: Path,
    wanted: Manifest,
    rows: Any,
    questions: Sequence[Question],
    answers: Said,
    score: Mapping[str, Any] | None,
    own_folder: bool,
) -> bool:
    """
    Whether the cache in a folder is replaced without being told to: all that it says of training rows is still said,
    and the teacher is scored on as many rows.
    """
    if not (folder / MANIFEST).is_file():
        return False
    try:
        found = Manifest.load(folder)
        if own_folder or wanted.teacher.answers == found.teacher.answers:
            return own_folder and bool(wanted.differences(found))
        wanted = replace(wanted, teacher=replace(wanted.teacher, answers=found.teacher.answers))
        if wanted.layout.content == IN_GROUPS:  # more groups have another hash; the rows are compared here
            wanted = replace(wanted, rows=replace(wanted.rows, hash=found.rows.hash))
        if not found.complete or wanted.differences(found) or _scored(score) < _scored(found.teacher_score):
            return False
        before = CachedTeacher(folder)
        before.check_rows(rows)
        return _says_only(before, [question.name for question in questions], answers)
    except InputError:
        return own_folder  # what is damaged, the writer refuses by itself


def _scored(score: Mapping[str, Any] | None) -> int:
    """Over how many rows a score of the teacher is."""
    return 0 if score is None else int(score.get("num_examples", len(score["predictions"] or ())))


def _says_only(before: CachedTeacher, names: Sequence[str], answers: Said) -> bool:
    """Whether all that a cache says is among these answers."""
    if isinstance(answers, Mapping):
        return all(
            name in answers and _same(scores_C[: len(answers[name])], answers[name])
            for name, scores_C in before.answers(names).items()
        )
    now = {one.names: one for one in answers}
    return all(
        (one := now.get(was.names)) is not None
        and was.paired == one.paired
        and _same(was.scores_MC, one.scores_MC)
        and _same(was.times_M, one.times_M)
        for was in before.sets(names)
    )


def _same(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=0, atol=_SAME_NATS)


def _answers_hash(said_of: "_Stored", score: Mapping[str, Any] | None) -> str:
    """Of what is said of the rows, whose names have a hash of their own, and of the teacher's score."""
    digest = hashlib.blake2b(digest_size=16)
    for row, (scores_MC, times_M) in sorted(said_of.items()):
        digest.update(np.array([row, *scores_MC.shape], "<i8").tobytes())
        digest.update(scores_MC.astype("<f4").tobytes() + times_M.astype("<f4").tobytes())
    digest.update(json.dumps(score, sort_keys=True).encode())
    return digest.hexdigest()


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
    known = replace(of or replace(found.teacher, name=teacher, loading=of_answers), answers=found.teacher.answers)
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
