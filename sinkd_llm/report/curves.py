"""The curves of a run as SVG: its loss terms, scores and diagnostics over the steps."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sinkd_llm.report.results import BEFORE, LOSSES, TEACHER, ResultRow
from sinkd_llm.report.terms import COST, ENTROPY, LEARNING_RATE, LOSS, PLAN, Plot, score_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1f5f8b", "#c8553d", "#588157", "#8a5a9e", "#b8860b", "#5c6b73", "#2a9d8f")
_REFERENCE = "#444444"
# With fewer points each is marked.
_FEW_POINTS = 25


@dataclass(frozen=True)
class Curve:
    """
    A drawn plot.

    Attributes:
        title (`str`): of the plot.
        svg (`str`): the drawing, to stand inside a page.
        legend (`list[tuple[str, str, str]]`): label, colour and line style of CSS. It is the page's: one inside the
            drawing would not wrap to the width that there is.
    """

    title: str
    svg: str
    legend: list[tuple[str, str, str]]


def score_metric(rows: Sequence[ResultRow]) -> str | None:
    """The metric that is drawn: the first one that is a score."""
    return next((name for row in rows for name in row.metrics if name not in LOSSES), None)


def draw_curves(rows: Sequence[ResultRow], records: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """
    All plots that there are records for.

    Args:
        rows (`Sequence[ResultRow]`): the models; scores of the teacher and the untrained student are drawn as lines.
        records (`Sequence[Mapping[str, Any]]`): of `metrics.jsonl`.
    """
    metric = score_metric(rows)
    compared = [row for row in rows if row.name in (TEACHER, BEFORE)]
    references = {row.name: row.metrics[metric] for row in compared if metric is not None and metric in row.metrics}
    drawn = [
        draw(LOSS, records),
        draw(score_plot(metric), records, references),
        *(draw(plot, records) for plot in (PLAN, COST, ENTROPY, LEARNING_RATE)),
    ]
    return [curve for curve in drawn if curve is not None]


def draw(
    plot: Plot, records: Sequence[Mapping[str, Any]], references: Mapping[str, float] | None = None
) -> Curve | None:
    """One plot; `None` without data."""
    series = {}
    for name, label in plot.labels.items():
        points = [(record["step"], record[name]) for record in records if isinstance(record.get(name), int | float)]
        if points:
            series[label] = points
    if not series:
        return None
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5}):
        # Figure without pyplot: no global state, no window system, safe in a thread.
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        legend = []
        for (label, points), colour in zip(series.items(), _COLOURS, strict=False):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, lw=1.6, marker="o" if len(points) < _FEW_POINTS else "", ms=3.2)
            legend.append((label, colour, "solid"))
        for (label, value), style in zip((references or {}).items(), ("dashed", "dotted"), strict=False):
            axes.axhline(value, color=_REFERENCE, lw=1.1, ls=style)
            legend.append((label, _REFERENCE, style))
        _finish(axes, plot.unit)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return Curve(plot.title, svg[svg.index("<svg") :], legend)


def _finish(axes: "Axes", unit: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.margins(x=0.02)
    axes.grid(axis="y", color="#e3e3e0", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
