"""Quantities as text, and back: bytes, counts, durations, rates, shares, scores. `–` stands for what is not known."""

import re

from sinkd_llm.errors import InputError, shown

NOT_KNOWN = "–"
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def format_score(value: float | None) -> str:
    """`0.912`."""
    return NOT_KNOWN if value is None else f"{value:.3f}"


def format_milliseconds(value: float | None) -> str:
    """`8.31 ms`, `250 ms`."""
    return NOT_KNOWN if value is None else f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def format_share(value: float | None) -> str:
    """A share in [0, 1] as `91.2 %`."""
    return NOT_KNOWN if value is None else f"{100 * value:.1f} %"


def format_rate(value: float | None) -> str:
    """So many a second: `8.3`, `250`."""
    return NOT_KNOWN if not value else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def format_count(value: int | None) -> str:
    """`134.5 M`."""
    if not value:
        return NOT_KNOWN
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return str(value)


def format_bytes(value: int | None) -> str:
    """`1.4 GB`, in powers of 1000."""
    if not value:
        return NOT_KNOWN
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {unit}" if value < 10 * size else f"{value / size:.0f} {unit}"
    return f"{value} B"


def parse_bytes(text: str, flag: str) -> int:
    """
    `24GB`, `80 GiB`, `512M` as bytes.

    Args:
        text (`str`): a number with a unit.
        flag (`str`): what was given so, for the message.

    Raises:
        InputError: naming the flag, for anything else.
    """
    # Up to 15 digits: more bytes than any device has, and a number that Python counts exactly.
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?i?)b?\s*", text.lower(), re.ASCII)
    if match is None or match.group(2) == "i" or float(match.group(1)) * _BYTES[match.group(2)] < 1:
        raise InputError(f"{flag} is {shown(text)}; give a number with a unit: 24GB, 80GiB, 512MB.")
    return int(float(match.group(1)) * _BYTES[match.group(2)])


def format_duration(seconds: float) -> str:
    """`2 h 5 min`, `4 min 2 s`, `9 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
