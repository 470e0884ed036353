"""What a written answer means: one of a row's choices, or none of them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from unicodedata import normalize

from sinkd_llm.values import shown

# Of the answers that are no choice, those that a message names.
MOST_NAMED = 5


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


@lru_cache(maxsize=4096)
def _places(choices: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    return _unique(choice.strip() for choice in choices), _unique(map(folded, choices))


def _unique(words: Iterable[str]) -> dict[str, int]:
    """Where each word is that stands there once."""
    found = list(words)
    counts = Counter(found)
    return {word: index for index, word in enumerate(found) if counts[word] == 1}


def named_answers(counts: Mapping[str, int]) -> str:
    """
    Answers that are no choice, for a message: the five most frequent, each with how often it was given.

    Args:
        counts (`Mapping[str, int]`): each answer and how often it was given; equally frequent ones keep their order.
    """
    first = [f"{shown(answer)} ({count:,} ×)" for answer, count in Counter(counts).most_common(MOST_NAMED)]
    more = f", and {len(counts) - MOST_NAMED:,} others" if len(counts) > MOST_NAMED else ""
    return ", ".join(first) + more
