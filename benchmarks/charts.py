"""The charts: dark on white, so that they read the same on a light and a dark page, in letters that bear 800 pixels.

Files are SVG without a date or random names: the same numbers give the same file.
"""

from collections.abc import Mapping

import matplotlib as mpl
import matplotlib.pyplot as plt
from common import RESULTS
from matplotlib.patches import Patch

# Told apart in print and by the colour-blind (Okabe and Ito).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#444444")
STYLE = {
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "sinkd-llm",
    "svg.fonttype": "path",
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
}
Bars = Mapping[str, Mapping[str, float | None]]


def bars(
    name: str, panels: Mapping[str, Bars], *, y: str, x: str = "", log: bool = False, limit: float | None = None
) -> None:
    """Groups of bars, a panel beside the other, into `results/<name>.svg`.

    Args:
        panels (`dict`): title of a panel to group to contender to value. `None` leaves a gap.
        y, x (`str`): what the axes show, with the unit.
        log (`bool`): whether the values are on a logarithmic scale.
        limit (`float`, *optional*): a value to draw a line at.
    """
    contenders = list(dict.fromkeys(c for groups in panels.values() for group in groups.values() for c in group))
    width = 0.84 / len(contenders)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(10, 4.4), sharey=True, squeeze=False)
        for axis, (title, groups) in zip(axes[0], panels.items(), strict=True):
            for place, contender in enumerate(contenders):
                found = [(at, group[contender]) for at, group in enumerate(groups.values()) if group.get(contender)]
                offset = (place - (len(contenders) - 1) / 2) * width
                places, heights = [at + offset for at, _ in found], [value for _, value in found]
                axis.bar(places, heights, 0.92 * width, label=contender, color=COLOURS[place])
            axis.set_xticks(range(len(groups)), list(groups))
            axis.set_title(title, fontsize=12)
            axis.set_xlabel(x)
            axis.tick_params(axis="x", length=0)
            if log:
                axis.set_yscale("log")
            if limit is not None:
                axis.axhline(limit, color="#444444", linestyle="--", linewidth=1)
        axes[0][0].set_ylabel(y)
        save(figure, name, contenders)


def lines(
    name: str,
    panels: Mapping[str, Mapping[str, list[tuple[float, float]]]],
    *,
    y: str,
    x: Mapping[str, str],
) -> None:
    """Lines on two logarithmic scales, a panel beside the other, into `results/<name>.svg`.

    Args:
        panels (`dict`): title of a panel to contender to points.
        y (`str`), x (`dict`): what the axes show, with the unit; `x` of each panel.
    """
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    with mpl.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure, axes = plt.subplots(rows, columns, figsize=(10, 3.2 * rows + 0.6), squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for place, (title, contenders) in enumerate(panels.items()):
            axis = axes.flat[place]
            for contender, points in contenders.items():
                axis.plot(*zip(*points, strict=True), marker="o", label=contender)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            ends = [edge(value for points in contenders.values() for value, _ in points) for edge in (min, max)]
            axis.set_xticks(ends, [f"{value:,.0f}" for value in ends])
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}" if value < 100 else f"{value:,.0f}")
            axis.set_title(title, fontsize=12)
            axis.set_xlabel(x[title])
            if place % columns == 0:
                axis.set_ylabel(y)
        save(figure, name, list(dict.fromkeys(c for contenders in panels.values() for c in contenders)))


def save(figure: plt.Figure, name: str, contenders: list[str]) -> None:
    """Adds the legend above the panels where there are several contenders, and writes the file."""
    if len(contenders) > 1:
        handles = [Patch(color=colour) for colour in COLOURS[: len(contenders)]]
        figure.legend(handles, contenders, loc="outside upper center", ncols=min(len(contenders), 4), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.92 if 1 < len(contenders) <= 4 else 0.86 if contenders[1:] else 1))
    RESULTS.mkdir(exist_ok=True)
    figure.savefig(RESULTS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
