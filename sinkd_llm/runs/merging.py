"""Several teachers of one student: their caches over the answer choices of the same rows become one cache.

Shape suffixes: C choices of a row, K caches.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.inputs.answer_choices import class_names
from sinkd_llm.runs.asking import prints_of
from sinkd_llm.runs.balancing import balance_asked, balanced_answers, balanced_sets
from sinkd_llm.runs.data import RunData
from sinkd_llm.teachers import CachedTeacher
from sinkd_llm.teachers.cache.answers import Said, refuse_another, write_answers
from sinkd_llm.teachers.questions import Answers, Question, questions_of

if TYPE_CHECKING:
    from sinkd_llm.teachers.cache.manifest import Manifest

MEANS = ("probabilities", "logits")
_AT_ONCE = 4096


def merge_caches(
    folder: Path,
    data: RunData,
    caches: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    by: str = "probabilities",
    overwrite: bool = False,
) -> "Manifest":
    """
    Writes one cache of several, balanced if the run asks for it.

    A row has an answer if one of the caches has: a mean is over those that have.

    Args:
        folder (`Path`): of the new cache.
        data ([`RunData`]): the rows that all caches are of.
        caches (sequence of `Path`): their folders, two or more.
        weights (sequence of `float`, *optional*): of each cache, above 0. Default: 1 each.
        by (`str`, *optional*, defaults to `"probabilities"`): `"probabilities"`: `p = sum_k w_k p_k / sum_k w_k`;
            `"logits"`: `log p = sum_k w_k log p_k / sum_k w_k` and a constant; or the name of a column of the task's
            rows, which says by its folder's name or its place, from 0, which cache speaks of a row.
        overwrite (`bool`, *optional*, defaults to `False`): replace another cache in the folder.

    Raises:
        InputError: for fewer than two caches (than one, if the run asks for a balance), as many weights as there are
            no caches, a cache of tokens or of other rows, one that is balanced already, a column that is not there,
            and a value of it that is no cache.
    """
    balanced = balance_asked(data)
    if len(caches) < (1 if balanced else 2):
        raise InputError(
            f"--merge names {len(caches)} cache; give the folders of two or more, or of one with --balance."
        )
    if weights is not None and len(weights) != len(caches):
        raise InputError(f"--merge names {len(caches)} caches and --merge_weights {len(weights)}; give one for each.")
    opened = [CachedTeacher(path) for path in caches]
    for path, teacher in zip(caches, opened, strict=True):
        if not teacher.over_choices:
            raise InputError(
                f"The cache {path} holds tokens, and answer choices are what is merged; write it with "
                "--signal choices."
            )
        if teacher.in_groups and len(opened) > 1:
            raise InputError(
                f"The cache {path} holds what is known of groups of rows, and not of which row it is, so that "
                "there is no mean of it and of another cache; merge caches of rows."
            )
    if any("balance" in teacher.asked for teacher in opened) and balanced:
        raise InputError("A cache to merge is balanced already, and --balance asks for it again; leave it out.")
    ways = {teacher.asked.get("choice_normalisation") for teacher in opened} - {None}
    if len(ways) > 1:
        raise InputError(
            f"The caches hold scores by {' and by '.join(sorted(map(str, ways)))} (choice_normalisation), which mean "
            "different things; merge caches of one kind."
        )
    questions = questions_of(data.train)
    rows = prints_of(data.train, questions)
    for teacher in opened:
        teacher.check_rows(rows)
    # What is balanced is still its teacher's, for the recipes that name it.
    of = opened[0].manifest.teacher if len(opened) == 1 else None
    name = " + ".join(str(path) for path in caches)
    asked = {**({"choice_normalisation": str(next(iter(ways)))} if ways else {}), **balanced}
    if not overwrite:
        refuse_another(folder, rows, task=data.name, teacher=name, asked=asked, of=of)
    said: Said
    if opened[0].in_groups:
        said, _ = balanced_sets(data, questions, opened[0].sets([question.name for question in questions]))
    else:
        said, _ = balanced_answers(data, questions, _joined(opened, data, questions, caches, weights, by))
    classes = class_names(data.train)
    return write_answers(
        folder,
        rows,
        questions,
        said,
        task=data.name,
        teacher=name,
        classes=classes if classes is not None and len(classes) > 1 else None,
        of=of,
        asked=asked,
        overwrite=overwrite,
    )


def _joined(
    opened: Sequence[CachedTeacher],
    data: RunData,
    questions: Sequence[Question],
    caches: Sequence[Path],
    weights: Sequence[float] | None,
    by: str,
) -> Answers:
    """What the caches say together, row by row."""
    chosen = None if by in MEANS else _by_column(data.train, by, caches)
    answers = Answers()
    shares = np.ones(len(caches)) if weights is None else np.asarray(weights, float)
    for start in range(0, len(questions), _AT_ONCE):
        part = questions[start : start + _AT_ONCE]
        found = [teacher.answers([question.name for question in part]) for teacher in opened]
        for i, question in enumerate(part):
            speaking = range(len(opened)) if chosen is None else [chosen[start + i]]
            known = [k for k in speaking if question.name in found[k]]
            if known:
                scores = [found[k][question.name] for k in known]
                answers.add(question, _mean(scores, shares[known], by, question))
    return answers


def _mean(scores_KC: Sequence[Any], share_K: Any, by: str, question: Question) -> Any:
    """The scores of one row."""
    scores_KC = [np.asarray(scores, float)[: len(question.choices)] for scores in scores_KC]
    logs_KC = np.stack([scores - np.logaddexp.reduce(scores) for scores in scores_KC])
    weight_K1 = (share_K / share_K.sum())[:, None]
    if by == "logits" or len(logs_KC) == 1:
        return (weight_K1 * logs_KC).sum(axis=0)
    return np.logaddexp.reduce(logs_KC + np.log(weight_K1), axis=0)


def _by_column(rows: Any, column: str, caches: Sequence[Path]) -> list[int]:
    """Which cache speaks of each row."""
    if column not in rows.column_names:
        raise InputError(
            f"--merge_by is {column!r}: neither {' nor '.join(MEANS)}, nor a column of the rows, which have "
            f"{', '.join(rows.column_names)}."
        )
    called: dict[str, set[int]] = {}
    for k, path in enumerate(caches):
        for value in (str(k), path.name):
            called.setdefault(value, set()).add(k)
    chosen = []
    for name, value in zip(rows["id"], rows[column], strict=True):
        meant = sorted(called.get(str(value), ()))
        if len(meant) != 1:
            what = f"may be {' or '.join(str(caches[k]) for k in meant)}" if meant else "is no cache"
            advice = "; give the folders other names" if meant else ""
            raise InputError(
                f"The column {column!r} of {name} is {value!r}, which {what}; the caches are "
                f"{', '.join(path.name for path in caches)} (or 0 to {len(caches) - 1}){advice}."
            )
        chosen += meant
    return chosen
