"""Readers for benchmark files that are no tables: TREC's lines, CLINC150's splits in one file, nested passages.

Each gives the rows of the hub's data set of the same name, so that a task reads both alike.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.row_files import Rows, not_empty, read_json, read_text
from sinkd_llm.row_streams import parse_json
from sinkd_llm.values import listed, shown


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


def read_clinc(path: Path, member: str) -> Rows:
    """
    One split of CLINC150, whose file is an object of splits, each a list of pairs `[text, intent]`.

    Args:
        path (`Path`): the file.
        member (`str`): the name of the split in the file, such as `"oos_val"`.

    Returns:
        `Rows`: columns `text` and `intent` (a name such as `"pay_bill"`).

    Raises:
        InputError: if the file is missing, empty or broken, is no object of splits or has none of this name, or a row
            is no pair of texts.
    """
    splits = parse_json(read_text(path), 1, path)
    if not isinstance(splits, dict) or not splits:
        raise InputError(
            f"The file {path} holds {shown(splits)}, not an object of splits, "
            '{"train": [["text", "intent"], …], …}; check that data_dir holds this task\'s files.'
        )
    if member not in splits:
        raise InputError(
            f"The file {path} has no split {member!r}; it has {listed(list(map(str, splits)))}. Take the file that "
            "has all splits."
        )
    pairs = splits[member]
    if not isinstance(pairs, list):
        raise InputError(f"The split {member!r} of {path} is {shown(pairs)}, not a list of pairs [text, intent].")
    rows, places = [], []
    for index, pair in enumerate(pairs):
        place = f"row {index} of {member!r} in {path}"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise InputError(f"{place[0].upper()}{place[1:]} is {shown(pair)}, not a pair of texts [text, intent].")
        rows.append({"text": pair[0], "intent": pair[1]})
        places.append(place)
    return not_empty(Rows(rows, f"{path}, split {member!r}", places))


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
    "clinc": read_clinc,
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
