"""The curves of a run: its loss terms, scores and diagnostics over the steps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sinkd_llm.report.drawing import CURVES, SOFT, Drawing, draw, page_colour, plain_axes, whole_ticks
from sinkd_llm.report.results import BEFORE, LOSSES, TEACHER, ResultRow
from sinkd_llm.report.terms import COST, ENTROPY, LEARNING_RATE, LOSS, PLAN, TOKEN, Plot, score_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]

# With fewer points each is marked.
_FEW_POINTS = 25


def score_metric(rows: Sequence[ResultRow]) -> str | None:
    """The metric that is drawn: the first one that is a score."""
    return next((name for row in rows for name in row.metrics if name not in LOSSES), None)


def draw_curves(
    rows: Sequence[ResultRow], records: Sequence[Mapping[str, Any]], supervised: str = TOKEN
) -> list[Drawing]:
    """
    All plots that there are records for.

    Args:
        rows (`Sequence[ResultRow]`): the models; scores of the teacher and the untrained student are drawn as lines.
        records (`Sequence[Mapping[str, Any]]`): of `metrics.jsonl`.
        supervised (`str`, *optional*): over what losses are means: `TOKEN` or `ROW`.
    """
    metric = score_metric(rows)
    compared = [row for row in rows if row.name in (TEACHER, BEFORE)]
    references = {row.name: row.metrics[metric] for row in compared if metric is not None and metric in row.metrics}
    drawn = [
        draw_plot(LOSS, records, supervised=supervised),
        draw_plot(score_plot(metric), records, references),
        *(draw_plot(plot, records, supervised=supervised) for plot in (PLAN, COST, ENTROPY, LEARNING_RATE)),
    ]
    return [curve for curve in drawn if curve is not None]


def draw_plot(
    plot: Plot,
    records: Sequence[Mapping[str, Any]],
    references: Mapping[str, float] | None = None,
    supervised: str = TOKEN,
) -> Drawing | None:
    """One plot of a run's records; `None` without data."""
    series = {label: points_of(records, name) for name, label in plot.labels.items()}
    return draw_lines(plot.title, plot.unit.format(supervised=supervised), series, references)


def points_of(records: Sequence[Mapping[str, Any]], name: str) -> Points:
    """The steps at which a quantity was logged, and its values."""
    return [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]


def draw_lines(
    title: str, unit: str, series: Mapping[str, Points], references: Mapping[str, float] | None = None
) -> Drawing | None:
    """
    Quantities over the steps; `None` without a point.

    Args:
        title, unit (`str`): of the plot, and of its values.
        series (`Mapping[str, Points]`): the points of each quantity, by what it is called.
        references (`Mapping[str, float]`, *optional*): values that do not change.
    """
    shown = {label: points for label, points in series.items() if points}
    if not shown:
        return None
    coloured = list(zip(shown.items(), _cycled(len(shown)), strict=True))
    lines = list(zip((references or {}).items(), ("dashed", "dotted"), strict=False))

    def paint(axes: "Axes") -> None:
        for (_, points), (colour, style) in coloured:
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < _FEW_POINTS else ""
            axes.plot(steps, values, color=colour, lw=1.6, ls=style, marker=marker, ms=3.2)
        for (_, value), style in lines:
            axes.axhline(value, color=SOFT, lw=1.1, ls=style)
        axes.xaxis.set_major_locator(whole_ticks())
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.margins(x=0.02)
        plain_axes(axes)

    legend = [(label, page_colour(colour), style) for (label, _), (colour, style) in coloured]
    legend += [(label, page_colour(SOFT), style) for (label, _), style in lines]
    named = f"{title}: {', '.join(label for label, _, _ in legend)}, over the steps of training"
    return Drawing(title, draw(named, paint), legend)


def _cycled(number: int) -> list[tuple[str, str]]:
    """Colours with line styles, so that as many lines can be told apart as there are."""
    every = [(colour, style) for style in ("solid", "dashed", "dotted") for colour in CURVES]
    return [every[i % len(every)] for i in range(number)]
