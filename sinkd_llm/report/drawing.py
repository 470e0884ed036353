"""Drawings for a page: SVG that stands inside it, has a title, and takes its colours from the page, light or dark."""

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sinkd_llm.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import Locator

# What matplotlib draws with, and what stands for it in the page, whose style says how it looks in light and in dark.
_PAGE_COLOURS = {
    "#010101": "currentColor",
    "#020202": "var(--line)",
    "#030303": "var(--soft)",
    **{f"#0404{i:02x}": f"var(--curve-{i})" for i in range(8)},
}
INK, LINE, SOFT, *CURVES = _PAGE_COLOURS
# Inches of one drawing: the height of a plot beside others.
WIDTH, HEIGHT = 5.6, 2.9
# The longest name of a class that stands at an axis.
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Drawing:
    """
    A drawn plot.

    Attributes:
        title (`str`): of the plot.
        svg (`str`): the drawing, to stand inside a page.
        legend (`list[tuple[str, str, str]]`): label, colour and line style of CSS. It is the page's: one inside the
            drawing would not wrap to the width that there is.
        remark (`str`): what to know of it; empty: nothing.
    """

    title: str
    svg: str
    legend: list[tuple[str, str, str]] = field(default_factory=list)
    remark: str = ""


def page_colour(colour: str) -> str:
    """What a colour of a drawing is in CSS."""
    return _PAGE_COLOURS[colour]


def draw(title: str, paint: "Callable[[Axes], object]", size: tuple[float, float] = (WIDTH, HEIGHT)) -> str:
    """
    A plot as SVG.

    Args:
        title (`str`): what it shows, for those who do not see it.
        paint (`Callable`): draws into the axes that it is given, with `INK`, `LINE`, `SOFT` and `CURVES`.
        size (`tuple[float, float]`, *optional*): width and height in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "text.parse_math": False,  # a name with two $ is no formula
        "svg.fonttype": "none",
        "svg.hashsalt": title,  # the same names in the same drawing, so that a page that is made again is the same
        "font.family": "sans-serif",
        "font.size": 9.5,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
    }
    with matplotlib.rc_context(settings):
        # Figure without pyplot: no global state, no window system, safe in a thread.
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), title)


def _for_page(svg: str, title: str) -> str:
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for colour, of_page in _PAGE_COLOURS.items():
        svg = svg.replace(colour, of_page)
    # Names of groups are the same in every drawing, and a page has several.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    named = html.escape(printable(title))
    return svg.replace("<svg ", f'<svg role="img" aria-label="{named}" ', 1).replace(
        ">", f"><title>{named}</title>", 1
    )


def plain_axes(axes: "Axes", grid: str | None = "y") -> None:
    """Axes without a frame."""
    if grid is not None:
        axes.grid(axis=grid, color=LINE, lw=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)


def whole_ticks() -> "Locator":
    """Ticks at whole numbers, 1, 2 or 5 times a power of ten from each other."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins="auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def draw_reliability(of: Sequence[tuple[str, Sequence[Any]]]) -> Drawing | None:
    """
    How often answers are right that a model is so sure of.

    Args:
        of (sequence of `(name, bins)`): models with their [`~sinkd_llm.metrics.calibration.ReliabilityBin`]s.
    """
    models = [(name, bins) for name, bins in of if bins]
    if not models:
        return None
    title = "Reliability: how often answers are right of which the model is so sure"

    def paint(axes: "Axes") -> None:
        axes.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="dashed")
        for (_, bins), colour in zip(models, CURVES, strict=False):
            most = max(one.count for one in bins)
            x, y = [one.confidence for one in bins], [one.accuracy for one in bins]
            axes.plot(x, y, color=colour, lw=1.4)
            # By area, with a least size that is seen.
            axes.scatter(x, y, s=[8 + 60 * one.count / most for one in bins], color=colour, lw=0, zorder=3)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="mean probability of the chosen answer", ylabel="share right")
        plain_axes(axes)

    legend = [(name, page_colour(colour), "solid") for (name, _), colour in zip(models, CURVES, strict=False)]
    legend.append(("as sure as right", page_colour(SOFT), "dashed"))
    return Drawing(
        "Reliability",
        draw(title, paint, (WIDTH, 3.6)),
        legend,
        "Larger points stand for more rows. Below the dashed line a model is surer than it is right. "
        "The probabilities are as training left them, before any calibration.",
    )


def draw_heat_map(
    title: str,
    values: Sequence[Sequence[float]],
    axes_names: tuple[str, str],
    names: tuple[Sequence[str], Sequence[str]] | None = None,
) -> str:
    """
    A matrix as a heat map: the darker the more, from 0 to its largest value.

    Args:
        title (`str`): for those who do not see it.
        values (sequence of sequences): rows from the top, all of the same length.
        axes_names (`tuple[str, str]`): what its rows and its columns are.
        names (`tuple`, *optional*): of the rows and of the columns. Default: their numbers.
    """
    rows, columns = len(values), len(values[0])

    def paint(axes: "Axes") -> None:
        from matplotlib.colors import LinearSegmentedColormap

        # Of one hue that is seen on light and on dark paper; 0 lets the paper through.
        shades = LinearSegmentedColormap.from_list("page", [(0.23, 0.51, 0.73, 0.0), (0.23, 0.51, 0.73, 1.0)])
        # Counted from 1, as the page does.
        edges = (0.5, columns + 0.5, rows + 0.5, 0.5)
        axes.imshow(values, cmap=shades, vmin=0, interpolation="nearest", aspect="equal", extent=edges)
        axes.set(ylabel=axes_names[0], xlabel=axes_names[1])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_color(LINE)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(whole_ticks())
        if names is not None:
            axes.set_yticks(range(1, rows + 1), [_short(name) for name in names[0]])
            axes.set_xticks(range(1, columns + 1), [_short(name) for name in names[1]], rotation=90)

    return draw(title, paint, (WIDTH, WIDTH * max(0.45, min(1.2, rows / columns))))


def _short(name: str) -> str:
    """A name at an axis, on one line."""
    line = " ".join(printable(name).split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"
