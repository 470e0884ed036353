"""Is an export the student? Both answer the same rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sinkd_llm.answering.student import Student
from sinkd_llm.errors import InputError
from sinkd_llm.tasks.rendering import Example

# Largest difference of a log-probability that rounding in fp32 explains: in nats, and of one below -1 as a share.
ROUNDING = 1e-3
# Largest share of rows that may get another choice from an export in fewer bits.
MOST_DIFFERING = 0.05
BATCH = 32


@dataclass(frozen=True)
class Said:
    """
    What a student says of some rows.

    Args:
        choices (`list[str]`): its answer to each row.
        log_probabilities (`list[list[float]]`): of the choices of each row, before calibration; none where answers are
            written.
    """

    choices: list[str]
    log_probabilities: list[list[float]]


@dataclass(frozen=True)
class Comparison:
    """
    How an export differs from its student.

    Args:
        rows (`int`): rows that both answered.
        differing (`int`): rows to which they gave another answer.
        largest (`float`, *optional*): difference of a choice's log-probability, in nats; `None` of written answers.
        beyond_rounding (`bool`): whether more differs than rounding explains.
    """

    rows: int
    differing: int
    largest: float | None
    beyond_rounding: bool

    @property
    def share(self) -> float:
        """Of rows that get another answer, in [0, 1]."""
        return self.differing / self.rows


def said_of(
    student: Student, examples: Sequence[Example], on_progress: Callable[[int, int], None] | None = None
) -> Said:
    """
    What a student says of rows.

    Args:
        student ([`Student`]): any.
        examples (sequence of [`Example`]): at least one.
        on_progress (`Callable[[int, int], None]`, *optional*): called with rows done and rows in all.
    """
    choices: list[str] = []
    log_probabilities: list[list[float]] = []
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        if student.generates:
            choices += [answer.choice for answer in student.answer_batch([e.id for e in batch], batch)]
        else:
            found = student.log_probabilities(batch)
            log_probabilities += found
            choices += [e.choices[int(np.argmax(row))] for e, row in zip(batch, found, strict=True)]
        if on_progress is not None:
            on_progress(start + len(batch), len(examples))
    return Said(choices, log_probabilities)


def compare(before: Said, after: Said) -> Comparison:
    """How the answers of an export differ from the answers of its student to the same rows."""
    differing = sum(one != other for one, other in zip(before.choices, after.choices, strict=True))
    largest, beyond = None, False
    if before.log_probabilities:
        pairs = [
            (one, other)
            for row, others in zip(before.log_probabilities, after.log_probabilities, strict=True)
            for one, other in zip(row, others, strict=True)
        ]
        largest = max(abs(one - other) for one, other in pairs)
        beyond = any(not math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING) for one, other in pairs)
    else:
        beyond = differing > 0
    return Comparison(len(before.choices), differing, largest, beyond)


def check_same(found: Comparison, exact: bool, allowed: bool) -> None:
    """
    Refuses an export that answers otherwise than its student.

    Args:
        found ([`Comparison`]): of the two.
        exact (`bool`): whether the format keeps fp32, so that rounding alone may differ.
        allowed (`bool`): whether the user takes any difference.

    Raises:
        InputError: saying how much differs, and what to do.
    """
    bad = found.beyond_rounding if exact else found.share > MOST_DIFFERING
    if not bad or allowed:
        return
    log = "" if found.largest is None else f", and log-probabilities differ by up to {found.largest:.2g}"
    limit = (
        f"a log-probability may differ by {ROUNDING:g}, which rounding explains"
        if exact
        else f"at most {MOST_DIFFERING:.0%} of the rows may get another answer"
    )
    raise InputError(
        f"The export gives another answer to {found.differing} of {found.rows} rows{log}; {limit}. Nothing was "
        "written. Give --allow_differences to keep it all the same, or another --format."
    )
