"""Columns of the data that rows keep as they are: their own ids, and what says of which group or source they are."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.row_files import Rows
from sinkd_llm.tasks.rendering import Example
from sinkd_llm.values import listed, shown


def column_names(keep: Any) -> list[str]:
    """
    The columns to keep, as they were given.

    Raises:
        InputError: for anything but a sequence of names; one name alone is a text, and its letters are no columns.
    """
    if isinstance(keep, str) or not isinstance(keep, Sequence) or not all(isinstance(name, str) for name in keep):
        hint = f"; for one column give [{shown(keep)}]" if isinstance(keep, str) else ', such as ["topic"]'
        raise InputError(f"keep is {shown(keep)}, which is no list of columns{hint}.")
    return list(keep)


def check_columns(rows: Rows, names: Sequence[str]) -> None:
    """
    Refuses a column that no row has.

    Args:
        rows ([`~sinkd_llm.row_files.Rows`]): of a split.
        names (sequence of `str`): of the columns.

    Raises:
        InputError: with the columns that there are.
    """
    for name in names:
        if not any(name in row for row in rows.rows):
            columns = list(dict.fromkeys(column for row in rows.rows for column in row))
            raise InputError(
                f"The rows of {rows.source} have no column {shown(name)}, only {listed(columns)}."
                f"{nearest(name, columns)}"
            )


def check_ids(examples: Sequence[Example], places: Sequence[str], column: str) -> None:
    """
    Refuses an id that two rows have.

    Args:
        examples (sequence of [`Example`]): of a split, with ids of their own.
        places (sequence of `str`): where each stands, for messages.
        column (`str`): that holds the ids.

    Raises:
        InputError: by the places of the two.
    """
    first: dict[str, str] = {}
    for example, place in zip(examples, places, strict=True):
        if first.setdefault(example.id, place) != place:
            raise InputError(
                f"The id {shown(example.id)} of {place} is also the id of {first[example.id]}; give each row its own "
                f"in the column {shown(column)}."
            )


def without_columns(rows: Any, names: Collection[str]) -> Any:
    """
    Rows without some of their columns.

    Args:
        rows (`Dataset` or `Mapping[str, Sequence]`, *optional*): rows.
        names (collection of `str`): columns that they may have.
    """
    if rows is None or not names:
        return rows
    if isinstance(rows, Mapping):
        return {name: column for name, column in rows.items() if name not in names}
    return rows.remove_columns([name for name in rows.column_names if name in names])
