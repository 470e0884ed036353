"""Limits of a server: their ranges, and which go together."""

from typing import Any

import pytest

from sinkd_llm.errors import SettingError
from sinkd_llm.serving.limits import ServeLimits


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_batch", 0),
        ("max_batch", 2.5),
        ("max_batch", True),
        ("max_wait_ms", -1),
        ("max_wait_ms", float("nan")),
        ("max_queue", 10**9),
        ("max_body_bytes", 10),
        ("max_choices", 1),
        ("timeout_s", 0),
        ("timeout_s", float("inf")),
        ("timeout_s", "30"),
    ],
)
def test_a_limit_out_of_its_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"{name} is .*; give a (whole )?number from") as error:
        ServeLimits(**{name: value})
    assert error.value.setting == name


def test_a_request_has_to_fit_into_the_queue() -> None:
    with pytest.raises(SettingError, match="max_rows is 256, and only 100 rows"):
        ServeLimits(max_queue=100)
    assert ServeLimits(max_queue=100, max_rows=100, max_wait_ms=0).max_rows == 100
