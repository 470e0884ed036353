"""What `sinkd evaluate` prints of several tasks and of the classes of one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sinkd_llm.report.results import ClassTable, ResultRow
from sinkd_llm.report.table import interval_of
from sinkd_llm.terminal import printable
from sinkd_llm.units import NOT_KNOWN, format_score

if TYPE_CHECKING:
    from rich.table import Table

# With more classes a table of them is no longer read; the file has them all.
MOST_CLASSES = 20
# Below so many columns of the terminal, what is said of probabilities is left out.
_NARROW = 76


def tasks_table(
    rows: Mapping[str, ResultRow], metrics: Mapping[str, Sequence[str]], averages: Mapping[str, float], width: int
) -> "Table":
    """
    One row a task, then the averages.

    Args:
        rows (`Mapping[str, ResultRow]`): by the names of the tasks.
        metrics (`Mapping[str, Sequence[str]]`): those of each task, the primary one first; each has a line.
        averages (`Mapping[str, float]`): by their names.
        width (`int`): columns of the terminal.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("", overflow="fold")
    table.add_column("", no_wrap=True)
    beside = {"log-loss": "log_loss", "ECE": "ece"} if width >= _NARROW else {}
    for name in ("score", "95 %", *beside, "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for task, row in rows.items():
        for place, metric in enumerate(metrics[task]):
            once = [*(format_score(row.metrics.get(name)) for name in beside.values()), f"{row.num_examples:,}"]
            score = format_score(row.metrics.get(metric)), interval_of(row, metric)
            table.add_row("" if place else printable(task), metric, *score, *([""] * len(once) if place else once))
    if averages:
        table.add_section()
    for name, value in averages.items():
        table.add_row(name, "average", format_score(value), *[""] * (2 + len(beside)))
    return table


def classes_table(classes: ClassTable) -> "Table":
    """Precision, recall and F1 of each class, its rows, and the class for which most of them are taken by mistake."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("class", overflow="fold", ratio=1)
    for name in ("precision", "recall", "F1", "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("most often taken for", overflow="fold", ratio=1)
    for place, name in enumerate(classes.names):
        wrong = [(count, chosen) for right, chosen, count in classes.confusion if right == place != chosen]
        count, chosen = max(wrong, key=lambda cell: (cell[0], -cell[1]), default=(0, place))
        taken = f"{printable(classes.names[chosen])} ({count})" if count else NOT_KNOWN
        scores = [format_score(values[place]) for values in (classes.precision, classes.recall, classes.f1)]
        table.add_row(printable(name), *scores, str(classes.support[place]), taken)
    return table
