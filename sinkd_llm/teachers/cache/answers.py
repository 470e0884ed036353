"""A cache of what was answered for rows: by a server, in a file, or by several teachers together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sinkd_llm.environment import versions
from sinkd_llm.errors import InputError
from sinkd_llm.teachers.cache.layout import OVER_CHOICES, CacheLayout
from sinkd_llm.teachers.cache.manifest import Manifest, RowsIdentity, TeacherIdentity
from sinkd_llm.teachers.cache.writer import CacheWriter, RowOrder
from sinkd_llm.teachers.questions import Question

# Answers are small: a shard is closed by its number of rows.
_AT_ONCE = 8192


def write_answers(
    folder: Path,
    rows: Any,
    questions: Sequence[Question],
    answers: Mapping[str, Any],
    *,
    task: str,
    teacher: str,
    classes: tuple[str, ...] | None = None,
    asked: Mapping[str, str] | None = None,
    score: dict[str, Any] | None = None,
    of: TeacherIdentity | None = None,
    overwrite: bool = False,
) -> Manifest:
    """
    Writes a cache over the answer choices.

    Args:
        folder (`Path`): new, empty, or an unfinished cache of the same.
        rows ([`~datasets.Dataset`]): `example_id` and `row_print` of each question, in the same order.
        questions (sequence of [`Question`]): the rows.
        answers (`Mapping`): a question's name to its C log-scores; rows without are kept as such.
        task, teacher (`str`): what they are called.
        classes (`tuple[str, ...]`, *optional*): the choices, where all rows have the same.
        asked (`Mapping[str, str]`, *optional*): the settings that say how the teacher was asked.
        of ([`TeacherIdentity`], *optional*): of a cache whose answers these were; what is `asked` is added to it, and
            `teacher` and `classes` are not looked at.
        score (`dict`, *optional*): how good the teacher is, see [`Manifest`].
        overwrite (`bool`, *optional*, defaults to `False`): replace another cache in the folder.

    Raises:
        InputError: if no row has an answer, and as [`CacheWriter`].
    """
    present = np.array([question.name in answers for question in questions], bool)
    if not present.any():
        raise InputError(
            f"{teacher} says nothing of any of the {len(questions)} training rows, so there is nothing to learn from "
            "it; check that the teacher was asked about these rows."
        )
    width = max(len(question.choices) for question in questions)
    ordered = RowOrder(rows, present)
    identity = TeacherIdentity(teacher, "", None, OVER_CHOICES, width, True, dict(asked or {}), classes)
    if of is not None:
        identity = replace(of, loading={**of.loading, **(asked or {})})
    layout = CacheLayout(OVER_CHOICES, width, width, (), "float32")
    manifest = Manifest(
        identity, RowsIdentity(task, ordered.hash, len(questions), "", None, None, False, None), layout,
        versions=versions(),
    )  # fmt: skip
    with CacheWriter(folder, manifest, ordered, overwrite=overwrite) as writer:
        if not writer.manifest.complete:
            for numbers in writer.batches(_AT_ONCE):
                kept = [i for i, row in enumerate(numbers) if present[row]]
                scores = np.full((len(kept), width), -np.inf, np.float32)
                for k, i in enumerate(kept):
                    said = answers[questions[numbers[i]].name]
                    scores[k, : len(said)] = said
                writer.add(numbers, torch.from_numpy(scores), torch.tensor(kept, dtype=torch.long))
            writer.finish(score)
        return writer.manifest
