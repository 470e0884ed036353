"""Several rows in one request: the list that is asked, and the answers that come back.

Models that are asked for a list leave one out, answer one twice or two together, begin with a sentence, change the
order, or (small ones) repeat the texts or the choices. A list with an answer for each row says which is whose; another
one is a set of answers without pairs.

Shape suffixes: C choices of a row, M teacher rows of a group.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.answer_texts import choice_meant, choice_words, choices_in, matched, without_thoughts
from sinkd_llm.teachers.questions import Question

# What is written for a row of the answer beside the choice: number, full stop, line end, quotes, "The answer is".
_LINE = 12
# So many of the first choices in their order, to the end of either list, are copied: of lists of random classes one in
# 256 is so by chance, at most.
_COPIED = 4
_FENCE = re.compile(r"^\s*```\w*\s*$", flags=re.MULTILINE)
# "3. fee", "**3)** fee", "- Text 3: fee", "3 and 4. fee", "3-4: fee"
_NUMBERED = re.compile(
    r"^[\s>*_#-]*(?:(?:text|no\.?|number|answer)\s*)?"
    r"(\d{1,5})(?:\s*(-|–|,|&|and)\s*(\d{1,5}))?[*_]*\s*[.):=–-]+[*_]*\s*(.*)$",
    flags=re.IGNORECASE,
)
# Numbered answers on one line.
_INSIDE = re.compile(r"(?:(?<=[^\d\s])[,;]|(?<!and)(?<![,&–-]))\s+(?=\d{1,5}\s*[.):]\s)")
# What stands between a text that is repeated and its answer, and what an answer is called in JSON.
_LAST = re.compile(r"\s*(?::|->|=>|→|\||\s[-–]\s)\s*")
_ANSWER_NAMES = ("answer", "choice", "label")


@dataclass(frozen=True)
class ListQuestion(Question):
    """
    Rows that are asked in one request.

    Args:
        rows (`tuple[Question, ...]`): in the order of their numbers in the prompt, at least one, with equal choices.
    """

    rows: tuple[Question, ...] = ()

    def longest_answer(self, length: Callable[[str], int] = len) -> int:
        return len(self.rows) * (super().longest_answer(length) + _LINE)


def list_questions(questions: Sequence[Question], size: int) -> list[ListQuestion]:
    """
    Rows as lists of `size` rows and one with the rest, in an order of their names alone: rows that stand beside each
    other in the data are often of one class, and a list of one class tells a model what the next answer should be.

    Args:
        questions (`Sequence[Question]`): the rows, at least one.
        size (`int`): rows of a list, at least 1.

    Raises:
        InputError: for rows with different choices.
    """
    for question in questions:
        if question.choices != questions[0].choices:
            raise InputError(
                f"teacher_rows_per_request is {size}, and the rows {questions[0].name} and {question.name} have "
                f"different choices ({choice_words(questions[0].choices, 4)}, and "
                f"{choice_words(question.choices, 4)}), of which a request has one list. Ask for single rows."
            )
    order = sorted(questions, key=lambda question: hashlib.blake2b(question.name.encode("utf-8", "replace")).digest())
    return [_together(order[start : start + size]) for start in range(0, len(order), size)]


def _together(rows: Sequence[Question]) -> ListQuestion:
    texts = [" ".join((row.prompt if row.text is None else row.text).split()) for row in rows]
    lines = [
        f"Below are {len(rows)} numbered texts. Give each of them the one choice that fits it best.",
        "Answer with one line for each text: its number, a full stop and the choice as it is written here. Write "
        "nothing else.",
        "",
        "Choices:",
        *(choice.strip() for choice in rows[0].choices),
        "",
        "Texts:",
        *(f"{number}. {text}" for number, text in enumerate(texts, 1)),
        "",
        "Answers:\n",
    ]
    name = rows[0].name + (f" (a list with {len(rows) - 1} more rows)" if len(rows) > 1 else "")
    return ListQuestion(name, "\n".join(lines), rows[0].choices, rows=tuple(rows))


@dataclass(frozen=True)
class ListAnswers:
    """
    What a reply says of the rows of a list.

    Attributes:
        choices (`tuple[int | None, ...]`): the choices that are answered, `None` for an answer that is no choice; of
            pairs one for each row, in their order.
        paired (`bool`): whether there is an answer for each row, and it is known which is whose.
        other (`tuple[str, ...]`): the answers that are no choice.
        copied (`bool`): the reply repeats the list of choices from its beginning, and answers nothing.
    """

    choices: tuple[int | None, ...]
    paired: bool
    other: tuple[str, ...]
    copied: bool = False


def list_answers(text: str, choices: tuple[str, ...], rows: int) -> ListAnswers:
    """
    Reads a reply: numbered lines, a JSON list or object, one answer a line, or choices on one line. What a reasoning
    model thought before it is left out.

    Where there are numbers, what has none is no answer (a sentence before the list). Rows are paired where each number
    from 1 to `rows` has one answer, in any order, or where as many answers without numbers are there as rows.

    Args:
        text (`str`): the reply.
        choices (`tuple[str, ...]`): of the rows.
        rows (`int`): of the list.
    """
    said = _entries(_FENCE.sub("", without_thoughts(text)), choices, rows)
    if any(number is None for number, _ in said):
        said = _without_frame(said, choices, rows)
        found = [_meant(answer, choices) for _, answer in said]
        paired = len(said) == rows
    else:
        # An answer that is given twice alike is given once.
        once = {(number, meant if (meant := _meant(answer, choices)) is not None else answer): answer
                for number, answer in said}  # fmt: skip
        said = sorted(((number, answer) for (number, _), answer in once.items()), key=lambda one: one[0] or 0)
        found = [_meant(answer, choices) for _, answer in said]
        paired = [number for number, _ in said] == [*range(1, rows + 1)]
    first = min(len(found), len(choices))
    if first >= _COPIED and found[:first] == [*range(first)]:
        return ListAnswers((), False, (), copied=True)
    other = tuple(answer for (_, answer), index in zip(said, found, strict=True) if index is None)
    return ListAnswers(tuple(found), paired, other)


_Entry = tuple[int | None, str]


def _meant(answer: str, choices: tuple[str, ...]) -> int | None:
    """The choice that an answer is; of a text that is repeated with its answer, what stands last."""
    index = matched(answer, choices)
    if index is None and len(parts := _LAST.split(answer)) > 1:
        index = choice_meant(_bare(parts[-1]), choices)
    return index


def _entries(text: str, choices: tuple[str, ...], rows: int) -> list[_Entry]:
    """The answers with their numbers: all have one, or none has."""
    parsed = _of_json(text)
    if parsed is not None:
        return parsed
    lines = [part for line in text.splitlines() for part in _INSIDE.split(line) if _bare(part)]
    numbered: list[_Entry] = []
    for line in lines:
        found = _NUMBERED.match(line)
        if found is None or choice_meant(_bare(line), choices) is not None:  # "3-star" is a choice
            continue
        first, to, last = int(found[1]), found[2], int(found[3] or found[1])
        several = range(first, last + 1) if to in ("-", "–") and last <= rows else sorted({first, last})
        numbered += [(number, _bare(found[4])) for number in several if _bare(found[4])]
    return numbered or [(None, _bare(part)) for line in lines for part in _answers_on(line, choices)]


def _answers_on(line: str, choices: tuple[str, ...]) -> list[str]:
    """The answers on a line without numbers: several where it is choices between commas and the like, and no more."""
    said = choices_in(_bare(line), choices)
    if len(said) < 2 or None in said or choice_meant(_bare(line), choices) is not None:
        return [line]
    return [choices[index] for index in said if index is not None]


def _bare(text: str) -> str:
    """An answer without the marks of a list and of emphasis."""
    return text.strip().lstrip("-*•> ").strip("*_`\"' ,[]")


def _of_json(text: str) -> list[_Entry] | None:
    """A JSON list of answers (or of objects with one), or an object of numbers and answers, wherever in the text."""
    for opening, closing in (("[", "]"), ("{", "}")):
        start, stop = text.find(opening), text.rfind(closing)
        if not 0 <= start < stop:
            continue
        try:
            content = json.loads(text[start : stop + 1], object_pairs_hook=tuple)
        except (ValueError, RecursionError):
            continue
        entries = [_json_entry(one) for one in content]
        known = [entry for entry in entries if entry is not None]
        if known and len(known) == len(entries) and len({number is None for number, _ in known}) == 1:
            return known
    return None


def _json_entry(value: Any) -> _Entry | None:
    """
    An answer; a number with its answer; or an object that has both, the answer last or under a name of it. Objects
    are tuples of their pairs.
    """
    if value is None or isinstance(value, str):
        return None, (value or "").strip()
    if not isinstance(value, tuple) or not value:
        return None
    if not isinstance(value[0], tuple):  # a pair of an object
        key, answer = value
        return (int(key), answer.strip()) if isinstance(answer, str) and key.isdecimal() else None
    numbers = [int(part) for _, part in value if str(part).isdecimal()]
    named = [part for name, part in value if isinstance(part, str) and name.casefold() in _ANSWER_NAMES]
    texts = named or [part for _, part in value if isinstance(part, str) and not part.isdecimal()]
    return (numbers[0] if numbers else None, texts[-1].strip()) if texts else None


def _without_frame(said: list[_Entry], choices: tuple[str, ...], rows: int) -> list[_Entry]:
    """Lines without numbers: where there are too many, those before the first and after the last choice are none."""
    if len(said) <= rows:
        return said
    known = [place for place, (_, answer) in enumerate(said) if _meant(answer, choices) is not None]
    return said[known[0] : known[-1] + 1] if known else said
