"""Parts of splits in the words of `datasets`: `train[:80%]`, `train[80%:]`, `train+validation`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sinkd_llm.errors import InputError, first_line, shown


@dataclass(frozen=True)
class Part:
    """Rows of a split, from `start` up to `stop`."""

    split: str
    start: int
    stop: int


def is_part(spec: str) -> bool:
    """Whether a text names something else than one whole split."""
    return "[" in spec or "+" in spec


def keeps_places(spec: str) -> bool:
    """
    Whether the rows that a text names are counted as in their whole split: `train` or `train[:80%]`.

    Args:
        spec (`str`): as for [`parts_of`].

    Raises:
        InputError: for a text that `datasets` does not understand.
    """
    if not is_part(spec):
        return True
    parts = _read(spec, _AnySplit())
    return len(parts) == 1 and parts[0].start == 0


def names_in(spec: str) -> tuple[str, ...]:
    """
    The splits that a text names, each once: `("train",)` of `"train[:80%]"`.

    Args:
        spec (`str`): as for [`parts_of`].

    Raises:
        InputError: for a text that `datasets` does not understand.
    """
    # Which names there are does not depend on how many rows they have.
    return tuple(dict.fromkeys(part.split for part in _read(spec, _AnySplit())))


def parts_of(spec: str, lengths: Mapping[str, int]) -> list[Part]:
    """
    The rows that a text names, as `datasets` counts them: a share of a row is rounded to the closest one.

    Args:
        spec (`str`): `"train"`, `"train[100:]"`, `"train[:80%]"`, or several with `+` between.
        lengths (`Mapping[str, int]`): the rows of each split that is named.

    Raises:
        InputError: for a text that `datasets` does not understand, and where no row is left.
    """
    parts = _read(spec, dict(lengths))
    if all(part.start >= part.stop for part in parts):
        rows = " and ".join(f"{lengths[name]:,} rows of {name}" for name in names_in(spec))
        raise InputError(f"The split {shown(spec)} holds none of the {rows}; {_EXAMPLES}.")
    return parts


def indices_of(parts: Iterable[Part]) -> list[int]:
    """The places of rows within the one split that all parts are of."""
    return [index for part in parts for index in range(part.start, part.stop)]


def rows_in_both(one: Iterable[Part], other: Iterable[Part]) -> int:
    """How many rows are named by both."""
    others = [*other]
    return sum(
        max(0, min(part.stop, its.stop) - max(part.start, its.start))
        for part in one
        for its in others
        if part.split == its.split
    )


_EXAMPLES = "write a split as train[:80%], train[80%:], train[100:200] or train+validation"


class _AnySplit(dict[str, int]):
    """Splits of any name, with very many rows."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 10**12


def _read(spec: str, lengths: dict[str, int]) -> list[Part]:
    from datasets import ReadInstruction

    try:
        found = ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (AssertionError, ValueError) as error:
        raise InputError(f"The split {shown(spec)} cannot be read ({first_line(error)}); {_EXAMPLES}.") from error
    return [Part(one.splitname, one.from_, one.to) for one in found]
