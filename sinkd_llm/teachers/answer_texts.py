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
_ESCAPED = re.compile(r"\\([*_`\-])")
# Words before a choice that leave it out.
_DENIED = re.compile(
    r"\b(?:no|not|never|neither|nor|none|cannot|cant|isnt|but|except|exclud\w*|wrong|incorrect|unlikely|without|rather)\b"
    r"|n['’]t\b",
    flags=re.IGNORECASE,
)
# What stands directly after a choice and takes it back: "positive: no", "card is wrong", "card: 10%".
_TAKEN_BACK = re.compile(
    r"[\s:,|()–—-]*(?:(?:is|was|would be|seems)\s+)?(?:no|not|wrong|incorrect|false|unlikely|\d+)\b"
)
_REASON = re.compile(r"\b(?:because|since)\b")
# Between words; "-1" is a number.
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010-\u2015](?=[^\W\d_])")


def folded(text: str) -> str:
    """A text without what writers change: its case, the white space around and between words, `_` or a hyphen for a
    space, soft hyphens, and the code points of a letter with an accent (Unicode's normal forms)."""
    plain = normalize("NFC", text).replace("\u00ad", "").replace("_", " ")
    return " ".join(_HYPHEN.sub(" ", plain).casefold().split())


class SameNames:
    """
    Names as another program may write them: with other code points for the same letters (NFC, NFD).

    Args:
        names (iterable of `str`): those that are known.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._known = {*names}
        forms = Counter(normalize("NFC", name) for name in self._known)
        self._by_form = {form: name for name in self._known if forms[form := normalize("NFC", name)] == 1}

    def of(self, name: str) -> str:
        """The known name that is equal, or else the one with the same normal form; the name itself if none is."""
        return name if name in self._known else self._by_form.get(normalize("NFC", name), name)


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

    It is the one that [`choice_meant`] says; else the longest that the answer begins with, before a reason or an
    explanation that names no other ("Positive, because …"); else the one that stands alone after the last colon ("The
    answer is: positive"). What a reasoning model thought before, and marks of emphasis and quotes around the answer,
    are left out.

    Args:
        text (`str`): the answer.
        choices (`tuple[str, ...]`): of the row.

    Returns:
        `int`: the index; `None` for an answer that is none of them, or could be two.
    """
    text = _ESCAPED.sub(r"\1", without_thoughts(text))
    for form in (text, text.strip(_MARKS)):
        if (index := choice_meant(form, choices)) is not None:
            return index
    if len({part for part in choices_in(text, choices) if part is not None}) > 1:
        return None
    known = [folded(choice) for choice in choices]
    if (first := _beginning(folded(text.strip(_MARKS).replace("\n", "| ")), known)) is not None:
        return first
    before, last = _after_colon(text, choices)
    if last is None or _DENIED.search(before) or any(_has(before, known[c]) for c in range(len(known)) if c != last):
        return None
    return last


def _beginning(said: str, known: list[str]) -> int | None:
    """The longest choice that a folded answer begins with, if what follows explains it and names no other one."""
    begins = [c for c, choice in enumerate(known) if choice and said.startswith(choice)]
    longest = max((len(known[c]) for c in begins), default=0)
    found = [c for c in begins if len(known[c]) == longest]
    if len(found) != 1:
        return None
    choice, rest = known[found[0]], said[longest:]
    # After a letter or a number a word explains nothing: "A cat", "1 or more".
    word = len(choice) > 1 and not choice.isdecimal()
    # A mark ends the choice where no word goes on directly after it: "card.lost", "1:5", "4.5".
    if re.match(r"[^\w\s-]+(?=\s|$)" + r"|\s" * word, rest) is None or _TAKEN_BACK.match(rest):
        return None
    explained = _REASON.split(rest, maxsplit=1)[0] if word else rest
    # Its own words may come again, and so may a choice that is a part of it.
    others = [other for other in known if other and not _has(choice, other)]
    return None if any(_has(explained, other) for other in others) else found[0]


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
