"""
Draws the figures of docs/results.md from `experiments/results`: what a setting does to the score, and what a quantity
does while students are trained.

A figure stands in a section of `experiments/page.yaml`. Files are SVG: the same numbers give the same file.
"""

import io
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

from tools.result_files import ROOT, Result

sys.path.insert(0, str(ROOT / "benchmarks"))
from charts import COLOURS, STYLE

# Values that span this factor are drawn on a logarithmic scale.
_WIDE = 10.0
_INCHES, _NARROWEST = (3.4, 3.1), 5.0
Paint = Callable[[plt.Axes], None]


def figure_of(content: Mapping[str, Any], results: Mapping[str, Result]) -> str | None:
    """
    A figure as SVG; `None` while none of its results is there.

    Args:
        content (`dict`): of page.yaml: what is at the vertical axis (`y`), and either `settings`, from the titles of
            results to the settings that they vary, or `course`, the column of curves.csv that is drawn over the steps,
            with `cells`, those that have it.
        results (`dict`): the section's results that are there, by title.
    """
    if "course" in content:
        panels = {title: _course(one, content["course"], content["cells"]) for title, one in results.items()}
    else:
        varied = content["settings"]
        panels = {title: _setting(one, varied[title]) for title, one in results.items() if title in varied}
    return _drawn(panels, content["y"]) if panels else None


def _setting(result: Result, setting: str) -> Paint:
    """The mean score at each value of a setting, and its standard deviation over seeds."""
    of_value: dict[float, list[float]] = {}
    for row in result.runs():
        if row[setting]:
            of_value.setdefault(float(row[setting]), []).append(float(row[result.about["metric"]]))
    values = sorted(of_value)
    means = [statistics.mean(of_value[value]) for value in values]
    spreads = [statistics.stdev(of_value[value]) for value in values]

    def paint(axis: plt.Axes) -> None:
        axis.errorbar(values, means, yerr=spreads, color=COLOURS[0], marker="o", markersize=5, capsize=3)
        if values[0] > 0 and values[-1] / values[0] >= _WIDE:
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set_xticks(values, [f"{value:g}" for value in values])

    return paint


def _course(result: Result, quantity: str, cells: Sequence[str]) -> Paint:
    """A quantity over the steps, a line for each cell."""

    def paint(axis: plt.Axes) -> None:
        for colour, cell in zip(COLOURS, cells, strict=False):
            points = [(int(row["step"]), float(row[quantity])) for row in result.curves() if row["cell"] == cell]
            axis.plot(*zip(*points, strict=True), color=colour, label=cell)
        axis.set_xlabel("step")
        axis.set_ylim(0, 1)
        axis.legend(frameon=False, fontsize=9)

    return paint


def _drawn(panels: Mapping[str, Paint], y: str) -> str:
    """Panels beside each other, with one vertical axis."""
    width, height = _INCHES
    size = (max(width * len(panels), _NARROWEST), height)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
        for axis, (title, paint) in zip(axes[0], panels.items(), strict=True):
            paint(axis)
            axis.set_title(title, fontsize=12)
        axes[0][0].set_ylabel(y, fontsize=10)
        figure.tight_layout()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
