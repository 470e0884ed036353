"""What one client may ask of a server, and how rows of several clients share a batch."""

import math
from dataclasses import dataclass, fields
from typing import Any

from sinkd_llm.errors import SettingError, shown

# Setting -> the least and the most that it may be.
_RANGES: dict[str, tuple[float, float]] = {
    "max_batch": (1, 4096),
    "max_wait_ms": (0, 10_000),
    "max_queue": (1, 1_000_000),
    "max_rows": (1, 100_000),
    "max_body_bytes": (1_000, 2**30),
    "max_row_chars": (1, 100_000_000),
    "max_choices": (2, 10_000),
    "timeout_s": (0.1, 3600),
}


@dataclass(frozen=True)
class ServeLimits:
    """
    Limits of a server; what goes beyond them is refused, and the refusal says so.

    Args:
        max_batch (`int`, *optional*, defaults to `32`): the most rows that the model reads together.
        max_wait_ms (`float`, *optional*, defaults to `0.0`): milliseconds that a row waits for others to share its
            batch, while the model is idle. While it works, rows gather by themselves.
        max_queue (`int`, *optional*, defaults to `1024`): the most rows that wait, of all clients; also the most
            requests at the same time.
        max_rows (`int`, *optional*, defaults to `256`): the most rows of a request.
        max_body_bytes (`int`, *optional*, defaults to `1_000_000`): the largest body of a request.
        max_row_chars (`int`, *optional*, defaults to `20_000`): the most characters of a row, its names and choices
            among them.
        max_choices (`int`, *optional*, defaults to `100`): the most choices of a question that brings its own.
        timeout_s (`float`, *optional*, defaults to `30.0`): seconds after which a request that has no answer is given
            up.

    Raises:
        SettingError: naming the setting that is out of its range, or `max_rows` where it is above `max_queue`.
    """

    max_batch: int = 32
    max_wait_ms: float = 0.0
    max_queue: int = 1024
    max_rows: int = 256
    max_body_bytes: int = 1_000_000
    max_row_chars: int = 20_000
    max_choices: int = 100
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _check(field.name, getattr(self, field.name), whole=isinstance(field.default, int))
        if self.max_rows > self.max_queue:
            raise SettingError(
                "max_rows",
                f"is {self.max_rows:,}, and only {self.max_queue:,} rows may wait (max_queue), so that such a request "
                "is never taken; lower max_rows or raise max_queue.",
            )


def _check(name: str, value: Any, *, whole: bool) -> None:
    least, most = _RANGES[name]
    fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not least <= value <= most:
        what = "a whole number" if whole else "a number"
        raise SettingError(name, f"is {shown(value)}; give {what} from {least:,} to {most:,}.")
