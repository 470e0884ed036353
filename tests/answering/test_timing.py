"""How long a row takes by itself."""

from collections.abc import Sequence
from typing import Any

from sinkd_llm.answering.timing import TIMED, latencies_ms
from sinkd_llm.tasks import Example


class Counting:
    """A student that remembers what it was asked."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def answer_batch(self, ids: Sequence[str], examples: Sequence[Any]) -> list[Any]:
        assert len(examples) == 1
        self.asked.append(f"{self.name}{ids[0]}")
        return []


def examples(count: int) -> list[Example]:
    return [Example(str(i), "text", (" no", " yes"), None, "") for i in range(count)]


def test_students_are_timed_by_turns_after_they_are_warm() -> None:
    asked: list[str] = []
    students: Any = [Counting("a", asked), Counting("b", asked)]
    times = latencies_ms(students, examples(2))
    assert asked == ["a0", "b0", "a1", "b1"] * 2
    assert len(times) == 2
    assert all(0 <= median <= most for median, most in times)


def test_few_rows_are_enough() -> None:
    asked: list[str] = []
    student: Any = Counting("a", asked)
    latencies_ms([student], examples(1000))
    assert TIMED < len(asked) < 2 * TIMED
