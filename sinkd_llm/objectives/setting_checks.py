"""What the settings of the loss may be, where Python code gives them."""

from dataclasses import fields
from typing import Any

from sinkd_llm.ranges import OF_THE_LOSS

_WHY = {"transport_group_size": ": a group of one row has nothing to transport"}


def check_numbers(settings: Any) -> None:
    """
    Holds each setting that is a number against its range.

    Args:
        settings (`Any`): a dataclass of settings.

    Raises:
        `ValueError`: for the first one out of its range, or of another type.
    """
    for setting in fields(settings):
        if (numbers := OF_THE_LOSS.get(setting.name)) is not None:
            numbers.check(setting.name, getattr(settings, setting.name), _WHY.get(setting.name, ""))


def check_kind(name: str, value: object, kind: type) -> None:
    """
    Refuses settings that are not the dataclass that has them.

    Raises:
        `ValueError`: with what to give.
    """
    if isinstance(value, kind):
        return
    how = f"give {kind.__name__}(...)"
    if isinstance(value, dict):
        how = f"give {kind.__name__}(**{name})"
    elif value is None:
        how = "leave it out for the defaults"
    raise ValueError(f"{name} must be a {kind.__name__}, got {type(value).__name__}; {how}.")
