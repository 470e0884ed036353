"""What a label means: one of the choices in words, or the index of one. Read here and nowhere else.

A value that is one of the words is that word. A number that is none of them is an index, but only where no reading as
a word would differ: ratings 1 to 5 beside the words "1" to "5" are words, and a 0 among them is an error.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unicodedata import normalize

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.values import listed, plain, shown

# As JSON, CSV and pandas write a label that is not there.
_MISSING_WORDS = frozenset({"", "nan", "none", "null", "<na>", "-1", "-1.0"})
_BOOLEANS = {"true": True, "false": False}
# Choices that mean true and false whatever their order.
_BOOLEAN_WORDS = (("true", "false"), ("yes", "no"))
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,15}(\.0*)?", flags=re.ASCII)
READINGS = ("words", "indices")
# No index, and Python does not write numbers of thousands of digits.
_LARGEST = 10**15


@dataclass(frozen=True)
class Target:
    """
    What `doc_to_target` gives for a row.

    Args:
        value: a column's value, a template's text, or the number of the task file.
        words (`tuple[str, ...]`): the row's choices.
        where (`str`): which row it is, for messages.
    """

    value: Any
    words: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class LabelReader:
    """
    Reads the labels of the rows of a split.

    Args:
        task (`str`): its name, for messages.
        place (`str`): where `doc_to_target` stands, for messages.
        reading (`str`, *optional*): `"words"` or `"indices"`, what numbers are, if the task file
            (`metadata.labels_are`) or the data set (class labels) says it.
        from_template (`bool`, *optional*): the values are a template's texts. A number that a template computes is an
            index, as in lm-evaluation-harness, unless the rows show otherwise.
        same_choices (`bool`, *optional*): every row has the same choices.
        column (`str`, *optional*): the column that `doc_to_target` names, for messages.
    """

    task: str
    place: str
    reading: str | None = None
    from_template: bool = False
    same_choices: bool = True
    column: str | None = None

    def read(self, targets: Sequence[Target]) -> list[int | None]:
        """
        The index of each row's gold choice; `None` for a row without a label.

        Raises:
            InputError: for a label that is none of the choices and no index, a boolean beside choices that mean
                neither, and a number that could be a word or the index of another one.
        """
        found = [self._readings(target) for target in targets]
        reading = self.reading or self._agreed(targets, found)
        labels: list[int | None] = []
        for target, readings in zip(targets, found, strict=True):
            if readings is None:
                labels.append(None)
                continue
            word, index = readings
            if reading == "indices" and _number(target.value) is not None:
                word = None
            elif reading == "words" and _number(target.value) is not None:
                index = None
            label = index if word is None else word
            if label is None:
                raise self._outside(target)
            labels.append(label)
        return labels

    def _readings(self, target: Target) -> tuple[int | None, int | None] | None:
        """The label as a word, and as an index; `None` for a row without a label."""
        value = plain(target.value)
        if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _BOOLEANS):
            return self._boolean(value, target), None
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if not isinstance(value, str | int | float) or (isinstance(value, int) and abs(value) > _LARGEST):
            raise self._outside(target)
        key: str | int | float = value
        word, index = _word(key, target.words, exact=self.from_template), _index(key, len(target.words))
        if word is None and says_no_label(value):
            return None
        if word is None and index is None:
            raise self._outside(target)
        return word, index

    def _boolean(self, value: bool | str, target: Target) -> int | None:
        truth = value if isinstance(value, bool) else _BOOLEANS[value.strip().lower()]
        if isinstance(value, str) and (word := _word(value, target.words, exact=True)) is not None:
            return word
        lowered = [word.strip().lower() for word in target.words]
        for true, false in _BOOLEAN_WORDS:
            if lowered.count(true) == lowered.count(false) == 1:
                return lowered.index(true if truth else false)
        raise InputError(
            f"The label {value!r} of {target.where} is true or false, but the choices of the task {self.task!r} "
            f'({listed(target.words)}) do not say which is which; write {self.place} as a template, such as "{{{{ '
            f"{target.words[-1]!r} if label | string | lower == 'true' else {target.words[0]!r} }}}}\"."
        )

    def _agreed(self, targets: Sequence[Target], found: Sequence[tuple[int | None, int | None] | None]) -> str | None:
        """What the numbers of all rows together are, where one alone has two readings that differ."""
        read = ((t, r) for t, r in zip(targets, found, strict=True) if r is not None)
        numbers = [(target, readings) for target, readings in read if _number(target.value) is not None]
        differing = [t for t, (word, index) in numbers if None not in (word, index) and word != index]
        only_indices = [t for t, (word, index) in numbers if word is None]
        only_words = [t for t, (word, index) in numbers if index is None]
        if self.same_choices and not self.from_template:
            # A label that is one of the words is the word, so an index among them is no other row's index.
            if only_indices and (differing or only_words or _shifted(only_indices[0].words)):
                raise self._ambiguous(only_indices[0], index_only=True)
            return "words" if differing else None
        if not differing:
            return None
        if only_indices and not only_words:
            return "indices"
        if only_words and not only_indices:
            return "words"
        raise self._ambiguous(differing[0])

    def _outside(self, target: Target) -> InputError:
        words, value = target.words, target.value
        hint = nearest(value[:100], [word[:100] for word in words]) if isinstance(value, str) else ""
        if self.from_template and _number(value) is not None:
            value = int(value)  # a template's number, without quotes
        if _number(value) == len(words):
            hint = f' Labels that are counted from 1 take doc_to_target: "{{{{{self.column or "label"} - 1}}}}".'
        return InputError(
            f"The label {shown(value)} of {target.where} is outside the choices of the task {self.task!r}: it "
            f"should be one of {listed(words)} or an index from 0 to {len(words) - 1}.{hint}"
        )

    def _ambiguous(self, target: Target, index_only: bool = False) -> InputError:
        value, words = shown(plain(target.value)), target.words
        index = _index(plain(target.value), len(words))
        if index_only:
            said = f"is none of the words {listed(words)}, and as an index it would be the word {words[index or 0]!r}"
        else:
            said = f"is one of the words {listed(words)}, and also the index of the word {words[index or 0]!r}"
        return InputError(
            f"The label {value} of {target.where} {said}, so the numbers of {self.place} have two readings; say which "
            "one is meant with metadata: {labels_are: words} or {labels_are: indices}."
        )


def is_missing(value: Any) -> bool:
    """Whether a column's value says that there is no label: null, NaN or no text."""
    value = plain(value)
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def says_no_label(value: Any) -> bool:
    """Whether a label as a file writes it says that there is none: as [`is_missing`], and -1 and words for null."""
    return is_missing(value) or str(plain(value)).strip().lower() in _MISSING_WORDS


def _number(value: Any) -> float | None:
    """The number that a label is or spells."""
    value = plain(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
        return float(value)
    return None


def _index(value: str | int | float, count: int) -> int | None:
    number = _number(value)
    if number is None or not 0 <= number < count or number != int(number):
        return None
    return int(number)


@lru_cache(maxsize=4096)
def _places(words: tuple[str, ...]) -> dict[str, int]:
    """Where each word is: as it stands, without white space around it, and in Unicode's normal form of one."""
    places: dict[str, int] = {}
    for form in (lambda word: normalize("NFC", word.strip()), str.strip, str):  # the word as it stands wins
        places |= {form(word): i for i, word in enumerate(words)}
    return places


@lru_cache(maxsize=4096)
def _numbers(words: tuple[str, ...]) -> dict[float, int]:
    """Where each word is that spells a number; none for numbers that two words spell."""
    found: dict[float, int] = {}
    double = set()
    for i, word in enumerate(words):
        try:
            number = float(word)
        except ValueError:
            continue
        if number in found:
            double.add(number)
        found[number] = i
    return {number: i for number, i in found.items() if number not in double}


def _word(value: str | int | float, words: tuple[str, ...], exact: bool) -> int | None:
    """Where the value stands among the words; unless `exact`, `5` and `5.0` are one number."""
    places = _places(words)
    text = str(value)
    for form in (text, text.strip(), normalize("NFC", text.strip())):
        if form in places:
            return places[form]
    number = None if exact else _number(value)
    return None if number is None else _numbers(words).get(number)


def _shifted(words: tuple[str, ...]) -> bool:
    """Whether some index is also a word, but of another place."""
    return any(number in range(len(words)) and number != i for number, i in _numbers(words).items())
