"""A sample of the rows of a split."""

import random
from array import array

from sinkd_llm.errors import InputError
from sinkd_llm.values import shown


def drawn_rows(count: int, limit: int | None, seed: int | None) -> "array[int]":
    """The indices of the rows to keep; see [`Task.load`]."""
    indices = array("q", range(count))
    if limit is not None and seed is not None:
        random.Random(seed).shuffle(indices)
    return indices[:limit]


def check_sample(limit: object, seed: object) -> None:
    for name, value in (("limit", limit), ("seed", seed)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise InputError(f"{name} is {shown(value)}, but it should be a whole number.")
    if isinstance(limit, int) and limit < 1:
        raise InputError(f"limit is {limit}, but at least one row is needed.")
