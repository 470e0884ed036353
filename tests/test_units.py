"""Quantities as text, and back."""

import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.units import format_bytes, format_count, format_duration, parse_bytes


@pytest.mark.parametrize(("value", "text"), [(0, "–"), (999, "999"), (1500, "1.5 k"), (2e9, "2.0 B")])
def test_counts(value, text):
    assert format_count(int(value)) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (500, "500 B"), (5_300_000, "5.3 MB"), (26e9, "26 GB")])
def test_bytes(value, text):
    assert format_bytes(value if value is None else int(value)) == text


@pytest.mark.parametrize(("value", "text"), [(4.4, "4 s"), (125, "2 min 5 s"), (3720, "1 h 2 min")])
def test_durations(value, text):
    assert format_duration(value) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24e9), ("80 GiB", 80 * 2**30), ("512M", 512e6), ("1.5tb", 1.5e12), ("100", 100), ("3kib", 3072)],
)
def test_bytes_in_words(text, size):
    assert parse_bytes(text, "--memory") == size


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "0.0001", "١GB", "", "GB", "24 apples", "-3GB", "0GB", "4i"])
def test_bytes_that_are_none(text):
    with pytest.raises(InputError, match="--memory is"):
        parse_bytes(text, "--memory")
