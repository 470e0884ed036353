"""How long a student takes for a row by itself."""

import time
from collections.abc import Sequence

import numpy as np

from sinkd_llm.answering.student import Student
from sinkd_llm.tasks.rendering import Example

# Rows that are answered one by one to measure the time; the first few warm up.
TIMED, _WARMING = 64, 3


def latencies_ms(students: Sequence[Student], examples: Sequence[Example]) -> list[tuple[float, float]]:
    """
    The median and the 95th percentile of the time that a row takes by itself, in milliseconds, of each student.

    They answer by turns, so that whatever else the machine does meets all of them.

    Args:
        students (sequence of [`Student`]): what is timed.
        examples (sequence of [`Example`]): rendered rows, of which at most 64 are answered.
    """
    times: list[list[float]] = [[] for _ in students]
    warming = examples[:_WARMING]
    for index, example in enumerate([*warming, *examples[:TIMED]]):
        for student, its in zip(students, times, strict=True):
            started = time.perf_counter()
            student.answer_batch([example.id], [example])
            if index >= len(warming):
                its.append(1000 * (time.perf_counter() - started))
    return [(float(np.percentile(its, 50)), float(np.percentile(its, 95))) for its in times]
