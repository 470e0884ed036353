"""What the columns of a teacher's file say of a row: an answer, or a probability for each choice.

Shape suffixes: C choices of a row.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.teachers.answer_texts import choice_meant, choice_words, folded, matched
from sinkd_llm.values import listed, plain, shown

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
# The logarithms of C probabilities, the index of the answer, an answer that is no choice, or nothing.
Said = np.ndarray | int | str | None
# What a row says of these choices; the text is the row's place, for messages.
Teller = Callable[[Row, tuple[str, ...], str], Said]

# By rank: a file with an answer beside its probabilities, or with a label beside a prediction, is read for the first.
ANSWER_COLUMNS = ("answer", "prediction", "label")
PROBABILITY_COLUMNS = ("probabilities", "probs")
# How far from 1 probabilities may sum, and be normalised; the last digits of 1e-3 itself are lost in a sum.
TOLERANCE = 1e-3 + 1e-9
# The most that rounding of many choices may take away: other sums are of probabilities that are not all there.
_MOST_ROUNDED = 0.2
# Fewer decimals are no rounded output of a model, but a text that somebody has typed.
_LEAST_DECIMALS = 2
# So many indices of which none is the first are seldom chance.
_ENOUGH = 20
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,15}(\.0*)?", flags=re.ASCII)


def named(columns: Iterable[str], *wanted: str) -> list[str]:
    """The columns with one of these names, in the order of the names; case and white space around do not count."""
    return [column for name in wanted for column in columns if column.strip().casefold() == name]


def is_missing(value: Any) -> bool:
    """Whether there is no value: a null, or a text of white space. NaN is a value, and a wrong one."""
    value = plain(value)
    return value is None or (isinstance(value, str) and not value.strip())


def text_of(value: Any) -> str:
    """A value as a text without white space around it; what is missing is empty, 7.0 is 7, and no word is special."""
    value = plain(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def whole_number(text: str) -> int | None:
    """The whole number that a text spells, `7` or `7.0`; `None` for any other text."""
    return int(float(text)) if _WHOLE_NUMBER.fullmatch(text) else None


def find_teller(
    columns: list[str], asked: Sequence[tuple[Row, tuple[str, ...], str]], source: str
) -> tuple[Teller, str, list[str]]:
    """
    The columns that say something, and how they are read.

    Args:
        columns (`list[str]`): the columns that may say it.
        asked (`Sequence[tuple]`): the rows of the file that were found, each with its choices and its place.
        source (`str`): the file, for messages.

    Returns:
        `tuple`: what reads a row; what it reads, as a part of a sentence; and the columns that could have said it too.

    Raises:
        InputError: where no column says anything, where columns are there for some of the choices alone, and where
            the whole numbers of a column may be answers or their indices.
    """
    choices = asked[0][1]
    lists, answers = named(columns, *PROBABILITY_COLUMNS), named(columns, *ANSWER_COLUMNS)
    own = by_choice(columns, choices)
    by_index = [named(columns, f"prob_{index}")[:1] for index in range(len(choices) + 1)]
    numbered = [column for found in by_index for column in found]
    if lists:
        return ListColumn(lists[0]), f"the probabilities of the column {lists[0]!r}", [*lists[1:], *answers]
    if None not in own:
        read = [str(column) for column in own]
        return _ChoiceColumns(columns), f"the probabilities of the columns {listed(read)}", answers
    if len(numbered) == len(choices) and not by_index[-1]:
        return _NumberedColumns(numbered), f"the probabilities of the columns {listed(numbered)}", answers
    if answers:
        indices = _are_indices(answers[0], asked)
        said = f"the {'indices' if indices else 'texts'} of the column {answers[0]!r}"
        return _AnswerColumn(answers[0], indices), said, answers[1:]
    if numbered:
        raise InputError(
            f"The file {source} has the columns {listed(numbered)}, but {asked[0][2]} is for a row of {len(choices)} "
            f"choices; name prob_0 to prob_{len(choices) - 1}, one for each of {choice_words(choices)}."
        )
    if any(own):
        missing = [choice.strip() for choice, column in zip(choices, own, strict=True) if column is None]
        others = [name for name in columns if name not in own]
        hint = "" if len(missing) > 1 else nearest(missing[0], others)
        raise InputError(
            f"The file {source} has no column for {listed(missing)}, though it has "
            f"{listed([column for column in own if column])}; give one for each choice.{hint}"
        )
    raise InputError(
        f"The file {source} has no column that says an answer; its columns are {listed(columns)}. Name one 'answer' "
        "(the text of a choice, or its index) or 'probabilities' (a list, or choice to probability), or give a column "
        f"for each choice, named by it: {choice_words(choices)}."
    )


def by_choice(columns: Sequence[str], choices: tuple[str, ...]) -> list[str | None]:
    """The column of each choice: the first that is named by it, or by it after `p_`; `None` for one without."""
    places: dict[str, str] = {}
    for column in columns:
        places.setdefault(folded(column), column)
    words = [folded(choice) for choice in choices]
    if len(set(words)) < len(words):
        return [None] * len(words)
    return [places.get(word, places.get(f"p {word}")) for word in words]


def _are_indices(column: str, asked: Sequence[tuple[Row, tuple[str, ...], str]]) -> bool:
    """Whether a column holds indices of choices: whole numbers that are not the choices themselves."""
    values = [(text_of(row[column]), choices, where) for row, choices, where in asked if column in row]
    values = [one for one in values if one[0]]
    numbers = [whole_number(text) for text, _, _ in values]
    words = [choice_meant(text, choices) is not None for text, choices, _ in values]
    if not values or None in numbers or all(words):
        return False
    if not any(words):
        _check_begins_at_0(column, numbers, values)
        return True
    in_range = [number in range(len(one[1])) for number, one in zip(numbers, values, strict=True)]
    if not all(in_range):
        return False
    place = words.index(False)
    text, choices, where = values[place]
    raise InputError(
        f"The answer {text!r} in the column {column!r} on {where} is none of the choices {choice_words(choices)}, and "
        f"as an index it would be {shown(choices[numbers[place] or 0].strip())}, though other answers are choices: "
        "the numbers have two readings. Correct the answer or leave its row out, or give the probabilities."
    )


def _check_begins_at_0(
    column: str, numbers: list[int | None], values: Sequence[tuple[str, tuple[str, ...], str]]
) -> None:
    """Indices that count from 1 would each be the next choice: refused where one is the number of the choices, and
    doubted where many are given and none is 0."""
    if 0 in numbers:
        return
    last = [place for place, (_, choices, _) in enumerate(values) if numbers[place] == len(choices)]
    if not last and len(values) >= _ENOUGH:
        logger.warning(
            "None of the %s indices of the column %r is 0, the choice %s; if they count from 1, subtract 1 from each, "
            "or write the choices' texts.",
            f"{len(values):,}",
            column,
            shown(values[0][1][0].strip()),
        )
    if not last:
        return
    _, choices, where = values[last[0]]
    raise InputError(
        f"The indices of the column {column!r} count from 1: none is 0, and on {where} there is {len(choices)}, where "
        f"the choices are {len(choices)}, of which {shown(choices[0].strip())} is 0 and "
        f"{shown(choices[-1].strip())} is {len(choices) - 1}; subtract 1 from each, or write the choices' texts."
    )


class _AnswerColumn:
    """One answer: the text of a choice, or its index."""

    def __init__(self, column: str, indices: bool) -> None:
        self._column, self._indices = column, indices

    def __call__(self, row: Row, choices: tuple[str, ...], where: str) -> Said:
        text = text_of(row.get(self._column))
        if not text:
            return None
        if self._indices:
            number = whole_number(text)
            return number if number in range(len(choices)) else text
        meant = matched(text, choices)
        return text if meant is None else meant


class ListColumn:
    """
    One column with all the probabilities, or other numbers: a list, or a mapping of choices, or either as a JSON text.

    Args:
        column (`str`): its name.
        number (`str`, *optional*, defaults to `"probability"`): what is given for each choice, for messages.
    """

    def __init__(self, column: str, number: str = "probability") -> None:
        self._column, self._number = column, number

    def __call__(self, row: Row, choices: tuple[str, ...], where: str) -> Said:
        values = self.values(row, choices, where)
        return None if values is None else log_probabilities(values, choices, where)

    def values(self, row: Row, choices: tuple[str, ...], where: str) -> Sequence[Any] | None:
        """The numbers in the order of the choices; `None` where there is nothing."""
        value, place = row.get(self._column), f"The column {self._column!r} on {where}"
        if is_missing(value):
            return None
        if isinstance(value, str):
            try:
                value = json.loads(value, object_pairs_hook=_Pairs)
            except (ValueError, RecursionError):
                value = None
            if not isinstance(value, list):
                raise InputError(
                    f"{place} is {shown(row[self._column])}, which is no JSON list of numbers and no JSON object of "
                    'choices; write [0.9, 0.1] or {"a choice": 0.9, …}.'
                )
        value = _Pairs(value.items()) if isinstance(value, Mapping) else value
        if isinstance(value, _Pairs):
            return self._of_pairs(value, choices, place)
        if not isinstance(value, list | tuple) or len(value) != len(choices):
            raise InputError(
                f"{place} is {shown(value)}, but the row has {len(choices)} choices: {choice_words(choices)}; give "
                f"a {self._number} for each, in this order."
            )
        return value

    def _of_pairs(self, pairs: "_Pairs", choices: tuple[str, ...], place: str) -> list[Any] | None:
        """In the order of the choices; a choice that is not named has 0."""
        found: dict[int, Any] = {}
        for key, value in pairs:
            index = choice_meant(str(key), choices)
            if index is None:
                # Parquet gives each row all the keys of the column, and no value where the row had none.
                if is_missing(value):
                    continue
                raise InputError(
                    f"{place} has a {self._number} for {shown(key)}, which is none of the choices "
                    f"{choice_words(choices)}; name the choices as the task does."
                )
            if index in found:
                raise InputError(f"{place} names the choice {shown(choices[index].strip())} twice; keep one of both.")
            found[index] = 0.0 if is_missing(value) else value
        return [found.get(index, 0.0) for index in range(len(choices))] if found else None


class _Pairs(list[tuple[Any, Any]]):
    """The pairs of a JSON object, which may name a key twice."""


class _ChoiceColumns:
    """A column for each choice, named by it."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._found: dict[tuple[str, ...], list[str | None]] = {}

    def __call__(self, row: Row, choices: tuple[str, ...], where: str) -> Said:
        if choices not in self._found:
            self._found[choices] = by_choice(self._columns, choices)
        read = self._found[choices]
        if None in read:
            raise InputError(
                f"There is no column with the probability of {shown(choices[read.index(None)].strip())}, which is a "
                f"choice of the row of {where}; where rows have different choices, give a column 'probabilities' with "
                "a list."
            )
        return log_probabilities([row.get(str(column)) for column in read], choices, where)


class _NumberedColumns:
    """A column for each choice, named by its index."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns

    def __call__(self, row: Row, choices: tuple[str, ...], where: str) -> Said:
        if len(choices) != len(self._columns):
            raise InputError(
                f"The row of {where} has {len(choices)} choices, but there are {len(self._columns)} columns of "
                "probabilities; where rows have different choices, give a column 'probabilities' with a list."
            )
        return log_probabilities([row.get(column) for column in self._columns], choices, where)


def log_probabilities(values: Sequence[Any], choices: tuple[str, ...], where: str) -> Said:
    """
    The logarithms of probabilities, after their sum is made 1. It may be off by 1e-3, and by what rounding explains:
    half a unit of the last decimal (of two or more) for each choice, up to 0.2.

    Args:
        values (`Sequence`): a number for each choice, or the text of one, or nothing for all of them.
        choices (`tuple[str, ...]`): C.
        where (`str`): the row's place, for messages.

    Returns:
        `np.ndarray`, *optional*: [C], in natural logarithms, -inf for 0; `None` where there are no values.

    Raises:
        InputError: for some values without the others, for what is no number, NaN, negative or above 1, and for
            another sum.
    """
    if all(map(is_missing, values)):
        return None
    probabilities_C = np.array([number_of(value) for value in values])
    wrong = np.flatnonzero(~((probabilities_C >= 0) & (probabilities_C <= 1 + TOLERANCE))).tolist()
    if wrong:
        # A negative number is the reason where it makes another one exceed 1.
        index = next((i for i in wrong if probabilities_C[i] < 0), wrong[0])
        raise InputError(
            f"The probability of {shown(choices[index].strip())} on {where} is {_said(values[index])}; give a number "
            f"from 0 to 1 for each choice.{_advice(probabilities_C[index])}"
        )
    total = float(probabilities_C.sum())
    tolerance = max(TOLERANCE, _of_rounding(probabilities_C) + 1e-9)
    if abs(total - 1) > tolerance:
        raise InputError(
            f"The probabilities on {where} sum to {total:.6g}, not to 1 within {tolerance:.3g}; give all the choices "
            f"({choice_words(choices)}) their share, or leave the row out."
        )
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probabilities_C / total))


def _of_rounding(probabilities_C: np.ndarray) -> float:
    """By how much a sum may differ from 1 where each number is rounded to the decimals that are there."""
    # Of fp32 numbers the later decimals are those of their binary form.
    decimals = max(-int(Decimal(repr(round(p, 6))).as_tuple().exponent) for p in probabilities_C.tolist())
    if decimals < _LEAST_DECIMALS:
        return 0.0
    return min(_MOST_ROUNDED, len(probabilities_C) * 0.5 * 10.0**-decimals)


def number_of(value: Any) -> float:
    """The number that a value is or spells; NaN for any other."""
    try:
        return math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _said(value: Any) -> str:
    return "missing" if is_missing(value) else shown(plain(value))


def _advice(number: float) -> str:
    if number < 0:
        return " Of log-probabilities, give the exponentials."
    return " Of percentages, give the hundredth part." if 1 < number <= 100 else ""
