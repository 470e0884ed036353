"""The answers that a run learns from, balanced to a prior over all rows, before any of them is learned from.

Shape suffixes: R rows, C choices.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.errors import InputError
from sinkd_llm.evaluation.examination import examine
from sinkd_llm.inputs.answer_choices import choice_sets
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.runs.data import RunData
from sinkd_llm.teachers.balance import Balance, balance, prior_of, remarks
from sinkd_llm.teachers.questions import Answers, AnswerSet, Question, bounded, rows_of_pairs
from sinkd_llm.terminal import say

if TYPE_CHECKING:
    from sinkd_llm.runs.arguments import TaskArguments

_AT_ONCE = 4096


def balanced_answers(
    data: RunData,
    questions: Sequence[Question],
    answers: Mapping[str, Any],
    held_out: Sequence[Question] = (),
    theirs: Mapping[str, Any] | None = None,
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """
    What a teacher says, balanced as the run asks for; as it is where it asks for nothing.

    The weights of the classes follow from the training rows alone. The rows for evaluation get the same weights.

    Args:
        data ([`RunData`]): the rows, and the arguments with the prior, the method and its strength.
        questions (sequence of [`Question`]): of the training rows.
        answers (`Mapping`): what the teacher says of them, by name.
        held_out, theirs: the same of the rows for evaluation.

    Returns:
        `tuple`: `answers` and `theirs`, balanced.

    Raises:
        InputError: for rows with different choices, and as [`balance`] and [`prior_of`].
    """
    theirs, arguments = theirs or {}, data.arguments
    if arguments is None or arguments.balance is None:
        return answers, theirs
    choices, prior_C = _prior(data, arguments.balance)
    kept = [question for question in questions if question.name in answers]

    def parts() -> Iterator[Any]:
        for start in range(0, len(kept), _AT_ONCE):
            yield np.stack([answers[question.name] for question in kept[start : start + _AT_ONCE]])

    found = balance(parts, prior_C, method=arguments.balance_method, strength=arguments.balance_strength)
    _say(found, arguments, choices, len(kept))
    if found.changes_nothing:
        return answers, theirs
    balanced = _applied(found, kept, answers), _applied(found, held_out, theirs)
    _say_compared(data, (kept, answers, balanced[0]), (held_out, theirs, balanced[1]))
    return balanced


def balanced_sets(
    data: RunData,
    questions: Sequence[Question],
    sets: Sequence[AnswerSet],
    held_out: Sequence[Question] = (),
    theirs: Mapping[str, Any] | None = None,
) -> tuple[Sequence[AnswerSet], Mapping[str, Any]]:
    """
    What a teacher says of groups of rows, balanced as [`balanced_answers`]: each of its rows counts as often as it
    stands for a row of its group.

    Args:
        data, questions, held_out, theirs: as for [`balanced_answers`].
        sets (sequence of [`AnswerSet`]): what it says of the training rows.

    Returns:
        `tuple`: `sets` and `theirs`, balanced.

    Raises:
        InputError: as [`balanced_answers`].
    """
    theirs, arguments = theirs or {}, data.arguments
    if arguments is None or arguments.balance is None:
        return sets, theirs
    choices, prior_C = _prior(data, arguments.balance)
    found = balance(
        lambda: (one.scores_MC for one in sets),
        prior_C,
        method=arguments.balance_method,
        strength=arguments.balance_strength,
        masses=lambda: (one.mass_M for one in sets),
    )
    _say(found, arguments, choices, sum(len(one.names) for one in sets))
    if found.changes_nothing:
        return sets, theirs
    balanced = [replace(one, scores_MC=bounded(found.applied(one.scores_MC))) for one in sets]
    also = _applied(found, held_out, theirs)
    _say_compared(data, (questions, rows_of_pairs(sets), rows_of_pairs(balanced)), (held_out, theirs, also))
    return balanced, also


def balance_asked(data: RunData) -> dict[str, str]:
    """What a cache says of how its answers were balanced; empty where they were not."""
    arguments = data.arguments
    if arguments is None or arguments.balance is None:
        return {}
    _, prior_C = _prior(data, arguments.balance)
    # A file may change, and so may labels.
    shares = hashlib.blake2b(np.round(prior_C, 12).tobytes(), digest_size=4).hexdigest()
    return {"balance": f"{arguments.balance_method} {arguments.balance} {shares} {arguments.balance_strength:g}"}


def _prior(data: RunData, given: str) -> tuple[tuple[str, ...], Any]:
    """The choices of all rows, and the share of each."""
    sets = choice_sets(data.train) if "choices" in data.train.column_names else set()
    if len(sets) != 1:
        raise InputError(
            f"balance is {given}, and the rows have {len(sets)} different lists of choices: the shares of classes are "
            "those of one list; leave it out."
        )
    (choices,) = sets
    return choices, prior_of(given, choices, (label for label in data.train["label"][:] if label != NO_LABEL))


def _applied(found: Balance, asked: Sequence[Question], answers: Mapping[str, Any]) -> Answers:
    balanced = Answers()
    for question in asked:
        if question.name in answers:
            balanced.add(question, found.applied(np.asarray(answers[question.name], float)))
    return balanced


def _say(found: Balance, arguments: "TaskArguments", choices: tuple[str, ...], rows: int) -> None:
    """What was done, by the classes that it changes most, and what to know of it."""
    for line in _sentences(found, arguments, choices):
        say(line)
    if not found.changes_nothing:
        for line in remarks(rows, found, choices):
            say(line)


def _sentences(found: Balance, arguments: "TaskArguments", choices: tuple[str, ...]) -> list[str]:
    if arguments.balance_strength == 0:
        return ["balance_strength is 0: the teacher's answers are left as they are; give up to 1 to balance them."]
    if found.changes_nothing:
        return [f"The teacher's answers follow the prior {arguments.balance} already, and are left as they are."]
    moved = np.argsort(-np.abs(np.log(found.before_C / found.prior_C)))[:3].tolist()
    shares = "; ".join(f"{choices[c].strip()}: {found.before_C[c]:.1%} → {found.after_C[c]:.1%}" for c in moved)
    lines = [
        f"The teacher's answers are balanced to the prior {arguments.balance} ({arguments.balance_method}, "
        f"{found.steps} step{'s' if found.steps != 1 else ''}): of its mean probabilities, {shares}."
    ]
    if arguments.balance_method == "sinkhorn" and found.error > 1e-3:
        lines.append(
            f"The largest distance of a class to its share is still {found.error:.3f}: the teacher is too sure of too "
            "many rows for this prior. Answers without probabilities cannot be balanced."
        )
    return lines


# Rows that were asked, and what is said of them before and after.
_Side = tuple[Sequence[Question], Mapping[str, Any], Mapping[str, Any]]


def _say_compared(data: RunData, training: _Side, evaluation: _Side) -> None:
    sides = (("training", data.train, training), ("evaluation", data.evaluation, evaluation))
    for what, rows, (asked, before, after) in sides:
        if rows is not None and (sentence := _compared(what, asked, rows, before, after)):
            say(sentence)


def _compared(
    what: str, asked: Sequence[Question], rows: Any, before: Mapping[str, Any], after: Mapping[str, Any]
) -> str | None:
    """Score and calibration error before and after, over the rows that have an answer and a label."""
    labels = dict(zip(rows["id"][:], rows["label"][:], strict=True)) if "id" in rows.column_names else {}
    known = [q.name for q in asked if q.name in before and labels.get(q.name, NO_LABEL) != NO_LABEL]
    if not known:
        return None
    gold = [labels[name] for name in known]
    was, now = (examine([said[name] for name in known], gold).taught for said in (before, after))
    return (
        f"On {len(known):,} labelled rows for {what}: score {was.score:.3f} → {now.score:.3f}, calibration error "
        f"{was.calibration_error:.3f} → {now.calibration_error:.3f}."
    )
