"""What a written answer means: one of a row's choices, or none of them."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from unicodedata import normalize

from sinkd_llm.values import listed, shown

# Of the answers that are no choice, those that a message names.
MOST_NAMED = 5
_BETWEEN = re.compile(r"[,;|/]|\b(?:and|or)\b", flags=re.IGNORECASE)
_THOUGHT = re.compile(r"^.*</think(?:ing)?>\s*", flags=re.IGNORECASE | re.DOTALL)
# Emphasis of Markdown, and quotes.
_MARKS = "*_`\"'“”‘’«» \t\r\n"
_DENIED = re.compile(r"\b(?:not|never|neither|nor)\b|n['’]t\b", flags=re.IGNORECASE)


def folded(text: str) -> str:
    """A text without what writers change: its case, the white space around and between words, `_` for a space, and the
    code points of a letter with an accent (Unicode's normal forms)."""
    return " ".join(normalize("NFC", text).replace("_", " ").casefold().split())


def choice_meant(answer: str, choices: tuple[str, ...]) -> int | None:
    """
    The index of the choice that an answer is.

    An answer is a choice if both are equal without the white space around them, or else as [`folded`] texts, unless
    two choices are equal in this way.

    Args:
        answer (`str`): what was written.
        choices (`tuple[str, ...]`): the row's choices, with or without their delimiters.

    Returns:
        `int`, *optional*: `None` for an answer that is no choice.
    """
    exact, by_folded = _places(choices)
    return exact.get(answer.strip(), by_folded.get(folded(answer)))


def matched(text: str, choices: tuple[str, ...]) -> int | None:
    """
    Which choice a written answer is, of a server or in a file.

    It is the one that [`choice_meant`] says; else the longest that the answer begins with, as whole words ("Positive,
    because …"); else the one that stands alone after the last colon ("The answer is: positive"). What a reasoning
    model thought before, and marks of emphasis and quotes around the answer, are left out.

    Args:
        text (`str`): the answer.
        choices (`tuple[str, ...]`): of the row.

    Returns:
        `int`: the index; `None` for an answer that is none of them, or could be two.
    """
    text = without_thoughts(text)
    for form in (text, text.strip(_MARKS)):
        if (index := choice_meant(form, choices)) is not None:
            return index
    if len({part for part in choices_in(text, choices) if part is not None}) > 1:
        return None
    before, last = _after_colon(text, choices)
    said, known = folded(text.strip(_MARKS)), [folded(choice) for choice in choices]
    begins = [c for c, choice in enumerate(known) if choice and said.startswith(choice) and _ends(said, len(choice))]
    longest = max((len(known[c]) for c in begins), default=0)
    found = {c for c in begins if len(known[c]) == longest}
    if last is not None:
        others = {c for c, choice in enumerate(known) if c != last and choice and _has(before, choice)}
        found = {*found, last, *others} if not _DENIED.search(before) else set()
    return found.pop() if len(found) == 1 else None


def choices_in(text: str, choices: tuple[str, ...]) -> list[int | None]:
    """What the parts of a line are, between commas, semicolons, bars, slashes, *and* and *or*: choices, or none."""
    return [choice_meant(part, choices) for part in _BETWEEN.split(text) if part.strip()]


def without_thoughts(text: str) -> str:
    """An answer without what a reasoning model thought before it, also where the server took the opening mark away."""
    return _THOUGHT.sub("", text)


def choice_words(choices: Iterable[str], most: int = 8) -> str:
    """Choices for a message, without their delimiters."""
    return listed([choice.strip() for choice in choices], most)


def _after_colon(text: str, choices: tuple[str, ...]) -> tuple[str, int | None]:
    """The folded words before the last colon, and the choice that stands alone after it, if one does."""
    before, colon, after = text.rpartition(":")
    if not colon or not before.strip(_MARKS) or (before[-1:].isdigit() and after[:1].isdigit()):
        return "", None
    after = after.strip(_MARKS)
    index = choice_meant(after, choices)
    return folded(before), choice_meant(after.rstrip(f".!{_MARKS}"), choices) if index is None else index


def _has(text: str, words: str) -> bool:
    """Whether a text has these words, as whole ones."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _ends(text: str, place: int) -> bool:
    """Whether a word or a number ends before this place: the 4 of "4.5" does not."""
    if place >= len(text):
        return True
    if text[place - 1].isdigit() and text[place] in ".," and text[place + 1 : place + 2].isdigit():
        return False
    return not (text[place - 1].isalnum() and text[place].isalnum())


@lru_cache(maxsize=4096)
def _places(choices: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    return _unique(choice.strip() for choice in choices), _unique(map(folded, choices))


def _unique(words: Iterable[str]) -> dict[str, int]:
    """Where each word is that stands there once."""
    found = list(words)
    counts = Counter(found)
    return {word: index for index, word in enumerate(found) if counts[word] == 1}


def named_answers(counts: Mapping[str, int], most: int = MOST_NAMED) -> str:
    """
    Answers that are no choice, for a message: the most frequent, each with how often it was given.

    Args:
        counts (`Mapping[str, int]`): each answer and how often it was given; equally frequent ones keep their order.
        most (`int`, *optional*, defaults to 5): so many are named.
    """
    first = [f"{shown(answer)} ({count:,} ×)" for answer, count in Counter(counts).most_common(most)]
    more = f", and {len(counts) - most:,} others" if len(counts) > most else ""
    return ", ".join(first) + more
