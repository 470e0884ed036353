"""The results in words and as a table: what a command prints at its end, and what stands at the top of the page."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sinkd_llm.report.results import AFTER, BEFORE, TEACHER, ResultRow, find_row
from sinkd_llm.units import (
    NOT_KNOWN,
    format_bytes,
    format_count,
    format_duration,
    format_rate,
    format_score,
    format_share,
)

if TYPE_CHECKING:
    from rich.table import Table


def table_columns(rows: Sequence[ResultRow]) -> dict[str, list[str]]:
    """What is said of the models, as text: a name, and an entry for each row. What nobody knows is left out."""
    teacher = find_row(rows, TEACHER)
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns = {name: [format_score(row.metrics.get(name)) for row in rows] for name in metrics}
    if teacher is not None and len(rows) > 1:
        columns["of teacher"] = [format_share(row.share_of(teacher)) for row in rows]
    columns["parameters"] = [format_count(row.parameters) for row in rows]
    columns["trained"] = [format_count(row.trainable_parameters) for row in rows]
    columns["on disk"] = [format_bytes(row.size_bytes) for row in rows]
    columns["examples/s"] = [format_rate(row.examples_per_second) for row in rows]
    return {name: cells for name, cells in columns.items() if set(cells) != {NOT_KNOWN}}


def results_table(rows: Sequence[ResultRow]) -> "Table":
    """The results as a `rich` table with a column for each model: however many metrics, it fits into 80 columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row.name, justify="right", no_wrap=True, style="bold" if row.name.endswith("after") else "")
    for name, cells in table_columns(rows).items():
        table.add_row(name, *cells)
    return table


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
