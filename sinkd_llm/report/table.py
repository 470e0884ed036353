"""The results in words and as a table: what a command prints at its end, and what stands at the top of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinkd_llm.report.results import AFTER, BEFORE, TEACHER, ResultRow, find_row
from sinkd_llm.terminal import columns, printable
from sinkd_llm.units import (
    NOT_KNOWN,
    format_bytes,
    format_count,
    format_duration,
    format_milliseconds,
    format_rate,
    format_score,
    format_share,
)

if TYPE_CHECKING:
    from rich.table import Table

# Columns of the terminal between two columns of a table.
_GAP = 2
_USUAL_WORD = 8


@dataclass(frozen=True)
class Cell:
    """
    What is said of a model.

    Attributes:
        value (`str`): a score, a number of bytes, …; `–` if it is not known.
        interval (`str`): the 95 % interval of a score; empty where there is none.
    """

    value: str
    interval: str = ""


def quantities(rows: Sequence[ResultRow]) -> dict[str, list[Cell]]:
    """What is said of the models: what it is called, and a cell for each row. What nobody knows is left out."""
    teacher = find_row(rows, TEACHER)
    found = {
        name: [Cell(format_score(row.metrics.get(name)), interval_of(row, name)) for row in rows]
        for name in dict.fromkeys(name for row in rows for name in row.metrics)
    }
    said = {
        "of teacher": [format_share(row.share_of(teacher)) for row in rows if teacher is not None and len(rows) > 1],
        "parameters": [format_count(row.parameters) for row in rows],
        "trained": [format_count(row.trainable_parameters) for row in rows],
        "on disk": [format_bytes(row.size_bytes) for row in rows],
        "peak memory": [format_bytes(row.peak_memory_bytes) for row in rows],
        "latency p50": [format_milliseconds(row.latency_ms_p50) for row in rows],
        "latency p95": [format_milliseconds(row.latency_ms_p95) for row in rows],
        "examples/s": [format_rate(row.examples_per_second) for row in rows],
    }
    return found | {
        name: [Cell(text) for text in texts] for name, texts in said.items() if texts and set(texts) != {NOT_KNOWN}
    }


def interval_of(row: ResultRow, metric: str) -> str:
    """`[0.654, 0.778]`; empty where it is not known."""
    if metric not in row.metrics or metric not in row.intervals:
        return ""
    low, high = row.intervals[metric]
    return f"[{format_score(low)}, {format_score(high)}]"


def results_table(rows: Sequence[ResultRow], width: int | None = None) -> "Table":
    """
    The results as a `rich` table with a column for each model, that is no wider than the terminal.

    Where there is less room, intervals stand on a second line, then they are left out; then names are folded, and
    models that have no room beside each other stand below each other.

    Args:
        rows (`Sequence[ResultRow]`): the models.
        width (`int`, *optional*): columns of the terminal. Default: of this one.
    """
    width = columns() if width is None else width
    said = {printable(name): cells for name, cells in quantities(rows).items()}
    names = [printable(row.name) for row in rows]
    for beside in (" ", "\n", None):
        texts = {name: [_text(cell, beside) for cell in cells] for name, cells in said.items()}
        table = _table(names, texts, None)
        if _width(table) <= width:
            return table
    # The names of what is said take a third at most; each model needs room for its longest value, and for its name
    # without breaking its words, if these are no longer than usual.
    values = max((cell_width(text) for cells in texts.values() for text in cells), default=1)
    words = min(max((cell_width(word) for name in names for word in name.split()), default=1), _USUAL_WORD)
    first = min(max(map(cell_width, texts), default=0), max(width // 3, _USUAL_WORD))
    beside_each_other = max(1, (width - first) // (max(values, words) + _GAP))
    if beside_each_other >= len(rows):
        return _table(names, texts, (first, (width - first) // max(len(rows), 1) - _GAP))
    return _table_below(names, texts, (first, (width - first) // beside_each_other - _GAP), beside_each_other)


def _text(cell: Cell, beside: str | None) -> str:
    return cell.value if beside is None or not cell.interval else f"{cell.value}{beside}{cell.interval}"


def _table(names: Sequence[str], texts: Mapping[str, Sequence[str]], widths: tuple[int, int] | None) -> "Table":
    """
    Args:
        names (`Sequence[str]`): of the models.
        texts (`Mapping[str, Sequence[str]]`): what is said of them.
        widths (`tuple[int, int]`, *optional*): the most columns of the terminal for the names of what is said, and for
            each model; longer names are folded. Default: as many as they need.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    first, each = widths or (None, None)
    folded: dict[str, Any] = {"no_wrap": True} if widths is None else {"no_wrap": False, "overflow": "fold"}
    table.add_column("", max_width=first, **folded)
    for name in names:
        style = "bold" if name.endswith("after") else ""
        table.add_column(name, justify="right", style=style, max_width=each, **folded)
    for name, cells in texts.items():
        table.add_row(name, *cells)
    return table


def _table_below(
    names: Sequence[str], texts: Mapping[str, Sequence[str]], widths: tuple[int, int], number: int
) -> "Table":
    """So many models beside each other, and the next ones below, each under its name."""
    table = _table(names[:number], {name: cells[:number] for name, cells in texts.items()}, widths)
    for start in range(number, len(names), number):
        table.add_section()
        table.add_row("", *names[start : start + number], style="bold", end_section=True)
        for name, cells in texts.items():
            table.add_row(name, *cells[start : start + number])
    return table


def _width(table: "Table") -> int:
    from rich.console import Console

    console = Console(width=10_000)
    return console.measure(table, options=console.options).maximum


def cell_width(text: str) -> int:
    """Columns of a terminal that a text takes; wide characters take two."""
    from rich.cells import cell_len

    return max(map(cell_len, text.splitlines()), default=0)


def summary(rows: Sequence[ResultRow]) -> str | None:
    """One plain sentence on what the student kept of its teacher, if the rows allow it."""
    teacher, before, after = (find_row(rows, name) for name in (TEACHER, BEFORE, AFTER))
    share = after.share_of(teacher) if after is not None else None
    if teacher is None or after is None or share is None or after.primary_metric is None:
        return None
    metric = after.primary_metric
    text = (
        f"The student scores {metric} {format_score(after.metrics[metric])}, "
        f"{format_share(share)} of its teacher's {format_score(teacher.metrics[metric])}"
    )
    if teacher.parameters:
        text += f", with {format_share(after.parameters / teacher.parameters)} of its parameters"
    if before is not None and metric in before.metrics:
        text += f"; before training it scored {format_score(before.metrics[metric])}"
    return text + "."


def describe_training(training: Mapping[str, float]) -> str:
    """`200 steps in 4 min 2 s`; of a resumed run, the time of its last part, and of the loss too, where it is so."""
    steps, resumed_at = int(training["steps"]), int(training["resumed_at"])
    part = f", the last {steps - resumed_at}" if resumed_at else ""
    loss = "; the training loss is of these alone" if resumed_at and training.get("loss_from_step") else ""
    return f"{steps} steps{part} in {format_duration(training['seconds'])}{loss}"


def describe_rows(training: Mapping[str, float]) -> str:
    """`4,096 training rows, 512 of them labelled`; empty for a run of an earlier version, which did not count them."""
    if "rows" not in training:
        return ""
    rows, labelled = int(training["rows"]), int(training.get("labelled_rows", training["rows"]))
    of_them = "" if labelled == rows else f", {labelled:,} of them labelled" if labelled else " without labels"
    return f"{rows:,} training rows{of_them}"
