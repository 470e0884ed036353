"""What the values of a row are as text: the one place that knows what has none."""

import math
from collections.abc import Mapping
from typing import Any

from sinkd_llm.errors import InputError

# Longer values are shortened in messages.
SHOWN = 60


class NoTextError(Exception):
    """A template writes a value that has no text; no `ValueError`, which Jinja's number filters would swallow."""


class Null:
    """
    Stands in a template for a value without text: false, equal to none, and an error where it becomes text.

    Args:
        column (`str`): where it comes from: `text`, `answers[0]`; empty for the result of a call.
        what (`str`): what it is: `null`, `NaN`, `bytes`.
        text (`str`, *optional*): its text, where a null may have one (names that no model reads).
    """

    def __init__(self, column: str, what: str, text: str | None = None) -> None:
        self._column, self._what, self._text = column, what, text

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __hash__(self) -> int:
        return hash(None)

    def __str__(self) -> str:
        if self._text is None:
            name = f"its column {self._column!r}" if self._column else "a call in it"
            raise NoTextError(f"{name} is {self._what}")
        return self._text

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __int__(self) -> int:
        return int(str(self))

    def __float__(self) -> float:
        return float(str(self))


def plain(value: Any) -> Any:
    """A scalar of numpy or pandas as Python's own; `None` for what these and YAML call missing, but NaN as it is."""
    kind = type(value)
    if kind.__name__ in ("NAType", "NaTType"):
        return None
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return value


def without_text(value: Any) -> str | None:
    """What a value is that has no text: `"null"`, `"NaN"`, `"infinite"` or `"bytes"`; `None` if it has one."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    return "bytes" if isinstance(value, bytes | bytearray | memoryview) else None


def for_template(value: Any, column: str, null_text: str | None = None) -> Any:
    """
    A row's value as a template may use it: what has no text, at any depth, as [`Null`].

    Args:
        value: the value.
        column (`str`): its column, for the message.
        null_text (`str`, *optional*): the text of a null. By default it has none.
    """
    if isinstance(value, str | int):
        return value
    value = plain(value)
    what = without_text(value)
    if what is not None:
        return Null(column, what, null_text)
    if isinstance(value, Mapping):
        return {key: for_template(item, f"{column}.{key}", null_text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_template(item, f"{column}[{i}]", null_text) for i, item in enumerate(value)]
    return value


def check_text(text: str, place: str, where: str) -> str:
    """
    The text itself, if it can be written as UTF-8.

    Raises:
        InputError: if it holds half of a surrogate pair, such as JSON's `"\\ud800"` alone.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place} gives text for {where} that cannot be encoded: character {error.start} is U+"
            f"{ord(text[error.start]):04X}, half of a surrogate pair; write the whole character, or drop it."
        ) from error
    return text


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    try:
        text = repr(value)
    except (NoTextError, ValueError, RecursionError):  # a number of thousands of digits has no repr
        text = "a number of thousands of digits" if isinstance(value, int) else f"a {type(value).__name__}"
    if len(text) <= SHOWN:
        return text
    return f"{text[:SHOWN]}… ({len(text):,} characters)"


def listed(words: "list[str] | tuple[str, ...]", most: int = 8) -> str:
    """Words for a message: each shortened, and a count of those that are too many."""
    kept = [shown(word) for word in words[:most]]
    return ", ".join(kept) + (f", … ({len(words):,} in all)" if len(words) > most else "")
