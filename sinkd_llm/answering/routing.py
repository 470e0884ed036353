"""
Which rows a student answers itself, and which it passes on: a threshold on its confidence, with a guarantee.

The threshold is found by a fixed-sequence test (Angelopoulos et al., "Learn then Test", arXiv:2110.01052): rows are
tested from the surest down, each time so many more that one mistake more may be among them, as long as the exact
binomial (Clopper-Pearson) lower bound of the share of right answers is the target or more; the last threshold that
passes is taken. The first threshold that is too low passes with a probability of at most 1 - level, and the sequence
ends at the first that does not pass, so that neither a correction for many tests is needed nor rows that are kept back
for a bound. It takes for granted that answers of less confidence are not right more often.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError

ANSWER, ASK = "answer", "ask"
LEVEL = 0.95
# The first test is on about this share of the rows: on fewer a sequence ends at an early mistake, on more it finds no
# threshold for a student that answers less.
_FIRST = 0.3
# Beyond so many mistakes the answers are hardly better than the target, and it would take thousands of rows.
_MOST_MISTAKES = 100


@dataclass(frozen=True)
class Route:
    """
    From which confidence on a student's answer is taken, and what is known of the answers that are.

    Args:
        threshold (`float`): the least probability of a choice with which the student answers, in [0, 1].
        target (`float`): the share of its answers that shall be right, in (0, 1).
        of (`str`): what right is: `"agreement"` with the teacher or `"accuracy"`.
        measured (`dict`, *optional*): by what it was chosen, and how it does on other rows.
    """

    threshold: float
    target: float
    of: str
    measured: Mapping[str, Any] = field(default_factory=dict)

    def decision(self, probability: float) -> str:
        """`"answer"` or `"ask"`, by the probability of the choice that the student makes."""
        return ANSWER if probability >= self.threshold else ASK


@dataclass(frozen=True)
class Answered:
    """
    How a threshold does on rows.

    Args:
        threshold (`float`): rows with this confidence or more are answered.
        rows (`int`): all of them.
        answered (`int`): those that are.
        right (`int`): of these, the answers that are right.
        lower_bound (`float`): of the share of right answers, exact, at the level that was asked for; 0 if no row is
            answered.
    """

    threshold: float
    rows: int
    answered: int
    right: int
    lower_bound: float

    @property
    def coverage(self) -> float:
        """The share of rows that the student answers."""
        return self.answered / self.rows

    @property
    def share_right(self) -> float | None:
        """Of the answered rows; `None` if there is none."""
        return self.right / self.answered if self.answered else None


def lower_bound(right: int, count: int, level: float = LEVEL) -> float:
    """
    The one-sided Clopper-Pearson bound: a smaller share would give so many right answers with a probability of at most
    `1 - level`.

    Args:
        right, count (`int`): right answers, of so many.
        level (`float`, *optional*, defaults to `0.95`): in (0, 1).
    """
    from scipy.special import betaincinv

    return float(betaincinv(right, count - right + 1, 1 - level)) if right else 0.0


def rows_needed(target: float, level: float = LEVEL, mistakes: int = 0) -> int:
    """
    The fewest rows that show that a share is the target or more, if so many of them are wrong: 149 for 98 %.

    Args:
        target, level (`float`): in (0, 1).
        mistakes (`int`, *optional*, defaults to `0`): answers that are wrong.
    """

    def shows(count: int) -> bool:
        return _shows(count - mistakes, count, target, level)

    fewer, step = math.ceil(math.log(1 - level) / math.log(target)) + mistakes - 1, 1
    while not shows(fewer + step):
        fewer, step = fewer + step, 2 * step
    # Right answers make the bound higher, so that from some count on all show it.
    return fewer + 1 + bisect_left(range(fewer + 1, fewer + step), True, key=shows)


def _shows(right: int, count: int, target: float, level: float) -> bool:
    """Whether the lower bound is the target or more; the same as by [`lower_bound`], without its inversion."""
    from scipy.special import betainc

    return right > 0 and bool(betainc(right, count - right + 1, target) <= 1 - level)


def answered_at(
    threshold: float, confidence_N: Sequence[float], right_N: Sequence[bool], level: float = LEVEL
) -> Answered:
    """
    How a threshold does on rows that it was not chosen on.

    Args:
        threshold (`float`): the threshold.
        confidence_N (sequence of `float`): the probability of each row's choice.
        right_N (sequence of `bool`): whether that is right.
        level (`float`, *optional*, defaults to `0.95`): of the bound.
    """
    taken_N = np.asarray(confidence_N) >= threshold
    answered, right = int(taken_N.sum()), int((taken_N & np.asarray(right_N, bool)).sum())
    return Answered(threshold, len(taken_N), answered, right, lower_bound(right, answered, level))


def choose_threshold(
    confidence_N: Sequence[float], right_N: Sequence[bool], target: float, level: float = LEVEL
) -> Answered | None:
    """
    The lowest threshold found for which, with the probability `level`, the share of right answers over all rows like
    these is the target or more.

    Args:
        confidence_N (sequence of `float`): the probability of each row's choice, of rows that the student has not
            seen.
        right_N (sequence of `bool`): whether that is right.
        target (`float`): the share of answers that shall be right, in (0, 1).
        level (`float`, *optional*, defaults to `0.95`): in (0, 1).

    Returns:
        [`Answered`] or `None`: `None` if no threshold can be shown to reach the target.

    Raises:
        InputError: for a target or a level outside of (0, 1), and for fewer rows than could show it if all were right.
    """
    for name, value in (("target", target), ("level", level)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value}; give a share between 0 and 1, such as 0.98.")
    rows, needed = len(confidence_N), rows_needed(target, level)
    if rows < needed:
        raise InputError(
            f"{rows} rows cannot show that {target:.1%} of answers are right at a level of {level:.0%}: that takes "
            f"{needed} rows if all answers are right, and more for every mistake. Take more rows, or a lower target."
        )
    order_N = np.argsort(-np.asarray(confidence_N), kind="stable")
    sorted_N, right_sorted_N = np.asarray(confidence_N)[order_N], np.asarray(right_N, bool)[order_N]
    right_up_to_N = np.cumsum(right_sorted_N)
    counts = _counts(rows, target, level)
    found, tested = None, 0
    for count in counts:
        if count <= tested:  # rows as sure as one another were tested together
            continue
        threshold = float(sorted_N[count - 1])
        # Rows that are as sure as the last one are answered as well.
        tested = int(np.searchsorted(-sorted_N, -threshold, side="right"))
        right = int(right_up_to_N[tested - 1])
        if not _shows(right, tested, target, level):
            break
        found = Answered(threshold, rows, tested, right, lower_bound(right, tested, level))
    return found


def rows_to_show(
    confidence_N: Sequence[float], right_N: Sequence[bool], target: float, level: float = LEVEL
) -> int | None:
    """
    About how many rows would show that a threshold reaches the target, if they were as these are.

    Args:
        confidence_N, right_N, target, level: as for [`choose_threshold`].

    Returns:
        `int` or `None`: `None` if neither all answers nor the surest ones, down to a tenth of them, are right as often
            as the target.
    """
    rows = len(confidence_N)
    right_up_to_N = np.cumsum(np.asarray(right_N, bool)[np.argsort(-np.asarray(confidence_N), kind="stable")])
    found: list[float] = []
    for count in range(max(1, rows // 10), rows + 1):
        wrong = 1 - int(right_up_to_N[count - 1]) / count
        if wrong < 1 - target:
            mistakes = 0
            while (needed := _needed(target, level, mistakes)) * wrong > mistakes and mistakes < _MOST_MISTAKES:
                mistakes += 1
            if needed * wrong <= mistakes:
                found.append(rows * needed / count)
    return math.ceil(min(found)) if found else None


@cache
def _needed(target: float, level: float, mistakes: int) -> int:
    return rows_needed(target, level, mistakes)


def _counts(rows: int, target: float, level: float) -> list[int]:
    """On how many of the surest rows each test is: the fewest for a number of mistakes, then all. No row is seen."""
    fewest, count = [], rows_needed(target, level)
    while count <= rows:
        fewest.append(count)
        count += 1
        while count <= rows and not _shows(count - len(fewest), count, target, level):
            count += 1
    first = max(index for index, count in enumerate(fewest) if index == 0 or count <= _FIRST * rows)
    return [*fewest[first:], rows]
