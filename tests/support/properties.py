"""How many inputs a property is tried with, and what may become of one."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from sinkd_llm.errors import InputError

FACTOR = int(os.environ.get("SINKD_FUZZ", "0"))


def examples(few: int, many: int) -> Any:
    """Hypothesis settings for `few` inputs, or `many` of them times `$SINKD_FUZZ`."""
    return settings(
        max_examples=many * FACTOR if FACTOR else few,
        deadline=None,
        derandomize=not FACTOR,  # `make test` is the same every time
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `call` gives, and the message with which it refuses; every other error is a failure."""
    try:
        return call(), None
    except InputError as error:
        message = str(error)
    assert 0 < len(message) < 2_000, f"a message of {len(message)} characters: {message[:200]}"
    return None, message
