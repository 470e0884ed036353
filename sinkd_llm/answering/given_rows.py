"""The rows in what a caller of Python has them in: a list, a stream or a table of another package, none imported."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sinkd_llm.errors import InputError
from sinkd_llm.values import shown


def given_rows(rows: Any) -> Iterable[Any]:
    """
    What holds rows, so that iterating over it gives them: a table of pandas would give the names of its columns.

    Args:
        rows: an iterable of rows, or a table of pandas, Polars or PyArrow.

    Returns:
        iterable: the rows, of a table as mappings of column names to values, made one by one.

    Raises:
        InputError: for a single row, columns without rows, a table with two columns of one name, and what holds none.
    """
    if isinstance(rows, Mapping):
        raise InputError(
            f"rows is {shown(rows)}, which is no list of rows; for a single row give [row], and in place of columns, "
            "one mapping of column names to values for each row."
        )
    form = getattr(rows, "format", None)
    if isinstance(form, Mapping) and form.get("type") not in (
        None,
        "custom",
    ):  # of datasets, as another package's tables
        return iter(rows.with_format(None))
    if hasattr(rows, "itertuples"):  # a table of pandas, and of those that do as pandas does
        return _of_table([*rows.columns], rows.itertuples(index=False, name=None))
    if hasattr(rows, "iter_rows"):  # of Polars
        return _of_table([*rows.columns], rows.iter_rows())
    if hasattr(rows, "to_batches"):  # of PyArrow
        batches = rows.to_batches()
        return _of_table([*rows.column_names], (tuple(row.values()) for batch in batches for row in batch.to_pylist()))
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise InputError(f"rows is {shown(rows)}, which is no list of rows; for a single row give [row].")
    return rows


def _of_table(columns: list[Any], rows: Iterable[tuple[Any, ...]]) -> Iterator[dict[Any, Any]]:
    name, times = max(Counter(columns).items(), key=lambda found: found[1], default=("", 0))
    if times > 1:
        raise InputError(f"rows is a table with {times} columns of the name {shown(name)}; rename all but one.")
    return (dict(zip(columns, row, strict=True)) for row in rows)
