"""Answers as lines of a file: JSON lines, or a table."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sinkd_llm.answering.student import Answer, Student
from sinkd_llm.errors import InputError

FORMATS = ("jsonl", "csv")
# Digits of a probability after the point.
DIGITS = 6


def as_record(answer: Answer) -> dict[str, Any]:
    """
    An answer as it is written: `id`, `choice`, and where choices are ranked `probability`, `decision` if the student
    has a route, and `probabilities` by choice.

    Args:
        answer ([`Answer`]): the answer.
    """
    record: dict[str, Any] = {"id": answer.id, "choice": answer.choice}
    if answer.probability is None:
        return record
    record["probability"] = round(answer.probability, DIGITS)
    if answer.decision is not None:
        record["decision"] = answer.decision
    record["probabilities"] = {word: round(value, DIGITS) for word, value in answer.probabilities.items()}
    return record


def answer_lines(student: Student, answers: Iterable[Answer], form: str, *, plain: bool = False) -> Iterator[str]:
    """
    Answers as text, line by line, each with its line end.

    Args:
        student ([`Student`]): whose they are.
        answers (iterable of [`Answer`]): the answers.
        form (`str`): `"jsonl"` or `"csv"`. A table has a column `p_<choice>` for each choice.
        plain (`bool`, *optional*, defaults to `False`): of JSON, write all but ASCII as escapes, for a terminal.

    Raises:
        InputError: at once, for a table of answers whose choices vary from row to row.
    """
    if form == "jsonl":
        return (f"{json.dumps(as_record(answer), ensure_ascii=plain)}\n" for answer in answers)
    if not student.generates and student.choices is None:
        raise InputError(
            f"The rows of the task {student.task.name!r} have choices of their own, for which a table has no columns; "
            "give --format jsonl."
        )
    return _table(student, answers)


def _table(student: Student, answers: Iterable[Answer]) -> Iterator[str]:
    line = _csv_line()
    head = ["id", "choice"]
    if student.choices is not None:
        head += ["probability", *(["decision"] if student.facts.route is not None else [])]
        head += [f"p_{word}" for word in student.choices]
    yield line(head)
    for answer in answers:
        record = as_record(answer)
        by_choice = record.pop("probabilities", {})
        yield line([*record.values(), *by_choice.values()])


def _csv_line() -> Callable[[list[Any]], str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")

    def line(fields: list[Any]) -> str:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(fields)
        return buffer.getvalue()

    return line
