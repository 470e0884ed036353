"""Readers for benchmark files that are no tables: TREC's lines, and the nested passages of MultiRC and ReCoRD.

Each gives the rows of the hub's data set of the same name, so that a task reads both alike.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.row_files import Rows, not_empty, read_json, read_text


def read_trec(path: Path) -> Rows:
    """
    TREC's question classes, lines such as `DESC:manner How did serfdom develop ?`.

    The original file is Latin-1 with one byte (0xF0) that stands for a space; the hub's copy has that space.

    Returns:
        `Rows`: columns `text`, `coarse_label` (`"DESC"`) and `fine_label` (`"DESC:manner"`).

    Raises:
        InputError: if the file is missing or empty, or a line has no label or no question.
    """
    rows, places = [], []
    for number, line in enumerate(read_text(path, fallback="latin-1").replace("\xf0", " ").split("\n"), 1):
        if not line.strip():
            continue
        fine_label, _, text = line.strip().partition(" ")
        coarse_label, colon, _ = fine_label.partition(":")
        if not (coarse_label and colon and text.strip()):
            raise InputError(
                f"Line {number} of {path} is {line.strip()[:60]!r}, not COARSE:fine and a question; the file may be "
                "cut off, or be in another format."
            )
        rows.append({"text": text.strip(), "coarse_label": coarse_label, "fine_label": fine_label})
        places.append(f"line {number} of {path}")
    return not_empty(Rows(rows, str(path), places))


def read_multirc(path: Path) -> Rows:
    """
    MultiRC's passages, one row for each proposed answer.

    Returns:
        `Rows`: columns `paragraph`, `question`, `answer`, `idx` (of `paragraph`, `question` and `answer`) and `label`
        (0 or 1; none in a file without labels).

    Raises:
        InputError: if the file is missing, empty or broken, or a passage, question or answer lacks a field.
    """
    rows, places = [], []
    for passage, place in _passages(path):
        content = _get(passage, "passage", place, dict)
        for q, question in enumerate(_get(content, "questions", place, list)):
            question_place = f"question {q} on {place}"
            for a, answer in enumerate(_get(question, "answers", question_place, list)):
                answer_place = f"answer {a} to {question_place}"
                row = {
                    "paragraph": _get(content, "text", place, str),
                    "question": _get(question, "question", question_place, str),
                    "answer": _get(answer, "text", answer_place, str),
                    "idx": {
                        "paragraph": _get(passage, "idx", place, int),
                        "question": _get(question, "idx", question_place, int),
                        "answer": _get(answer, "idx", answer_place, int),
                    },
                }
                if "label" in answer:
                    row["label"] = answer["label"]
                rows.append(row)
                places.append(answer_place)
    return not_empty(Rows(rows, str(path), places))


def read_record(path: Path) -> Rows:
    """
    ReCoRD's passages, one row for each query.

    Returns:
        `Rows`: columns `passage`, `query`, `entities` (texts, as often as they are marked), `answers` (different
        texts; none in a file without them) and `idx` (of `passage` and `query`).

    Raises:
        InputError: if the file is missing, empty or broken, or a passage, entity or query lacks a field.
    """
    rows, places = [], []
    for passage, place in _passages(path):
        content = _get(passage, "passage", place, dict)
        text = _get(content, "text", place, str)
        spans = [
            (_get(entity, "start", f"entity {e} of {place}", int), _get(entity, "end", f"entity {e} of {place}", int))
            for e, entity in enumerate(_get(content, "entities", place, list))
        ]
        for q, query in enumerate(_get(passage, "qas", place, list)):
            query_place = f"query {q} on {place}"
            row = {
                "passage": text,
                "query": _get(query, "query", query_place, str),
                "entities": [text[start : end + 1] for start, end in spans],  # the end is inclusive
                "idx": {
                    "passage": _get(passage, "idx", place, int),
                    "query": _get(query, "idx", query_place, int),
                },
            }
            if "answers" in query:
                answers = enumerate(_get(query, "answers", query_place, list))
                row["answers"] = sorted(
                    {_get(answer, "text", f"answer {a} to {query_place}", str) for a, answer in answers}
                )
            rows.append(row)
            places.append(query_place)
    return not_empty(Rows(rows, str(path), places))


BENCHMARK_READERS: dict[str, Callable[..., Rows]] = {
    "trec": read_trec,
    "multirc": read_multirc,
    "record": read_record,
}


def _passages(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    lines = read_json(path)
    return ((row, lines.where(index)) for index, row in enumerate(lines.rows))


def _get(item: Any, key: str, place: str, kind: type) -> Any:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind):
        words = {dict: "a JSON object", list: "a list", str: "text", int: "a whole number"}
        raise InputError(f"{place[0].upper()}{place[1:]} has no {key!r} ({words[kind]}); the row may be cut off.")
    return value
