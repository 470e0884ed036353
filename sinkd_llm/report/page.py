"""What a run says at its end: the results table, and `report.html`, one page that needs nothing else.

The page is made from `results.json` and `metrics.jsonl` alone, so it can be made again later, in
another place, from a folder that was copied there: `write_report(folder)`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.errors import InputError
from sinkd_llm.files import write_whole
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
    from matplotlib.axes import Axes
    from rich.table import Table

RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.jsonl"
REPORT_FILE = "report.html"

TEACHER, BEFORE, AFTER = "teacher", "student before", "student after"

# Lower is better: no share of the teacher's score, and no bar in the page.
LOSSES = ("loss", "eval_loss", "perplexity")

LOSS_TERMS = {
    "loss": "total loss",
    "ce": "cross-entropy",
    "kl": "KL",
    "rkl": "reverse KL",
    "js": "Jensen-Shannon",
    "tvd": "total variation",
    "mse": "squared error",
    "teacher_mse": "squared error to the teacher",
    "sinkhorn": "SinKD",
}
DIAGNOSTICS = {
    "sinkhorn/diagonal_mass": "diagonal mass of the plan",
    "sinkhorn/plan_entropy": "entropy of the plan",
    "sinkhorn/row_error": "row-marginal error",
}
COLOURS = ("#1f5f8b", "#c8553d", "#588157", "#8a5a9e", "#b8860b", "#5c6b73", "#2a9d8f")


@dataclass
class ResultRow:
    """
    One model in the results table.

    Attributes:
        name (`str`): `"teacher"`, `"student before"`, `"student after"`, or what the command calls it.
        metrics (`dict[str, float]`): its scores, the most important one first.
        parameters (`int`): parameters in all.
        trainable_parameters (`int`): those that this run trained.
        size_bytes (`int`, *optional*): bytes of its files on disk; `None` if it was not saved or is on
            the hub.
        num_examples (`int`): rows scored.
        seconds (`float`): time of scoring them.
    """

    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    parameters: int = 0
    trainable_parameters: int = 0
    size_bytes: int | None = None
    num_examples: int = 0
    seconds: float = 0.0

    @property
    def examples_per_second(self) -> float | None:
        return self.num_examples / self.seconds if self.seconds > 0 else None

    def share_of(self, teacher: "ResultRow | None") -> float | None:
        """This row's first metric as a share of the teacher's, or `None` where that means nothing."""
        metric = next(iter(self.metrics), None)
        if teacher is None or metric is None or metric in LOSSES:
            return None
        reference = teacher.metrics.get(metric, 0.0)
        return self.metrics[metric] / reference if reference > 0 else None

    def as_dict(self, teacher: "ResultRow | None" = None) -> dict[str, Any]:
        return asdict(self) | {
            "examples_per_second": self.examples_per_second,
            "share_of_teacher": self.share_of(teacher),
        }


def find_row(rows: Sequence[ResultRow], name: str) -> ResultRow | None:
    """The row called `name`, if there is one."""
    return next((row for row in rows if row.name == name), None)


def table_cells(rows: Sequence[ResultRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the results table, as text; columns that say nothing are left out."""
    teacher = find_row(rows, TEACHER)
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns: dict[str, list[str]] = {"": [row.name for row in rows]}
    for name in metrics:
        columns[name] = [format_score(row.metrics.get(name)) for row in rows]
    if teacher is not None and len(rows) > 1:
        columns["of teacher"] = [format_share(row.share_of(teacher)) for row in rows]
    columns["parameters"] = [format_count(row.parameters) for row in rows]
    columns["trained"] = [format_count(row.trainable_parameters) for row in rows]
    columns["on disk"] = [format_bytes(row.size_bytes) for row in rows]
    columns["examples/s"] = [format_rate(row.examples_per_second) for row in rows]
    kept = {name: cells for name, cells in columns.items() if not name or set(cells) != {NOT_KNOWN}}
    return list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)]


def results_table(rows: Sequence[ResultRow], title: str | None = None) -> "Table":
    """The results as a `rich` table for the terminal."""
    from rich import box
    from rich.table import Table

    header, cells = table_cells(rows)
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row, style="bold" if row[0].endswith("after") else "")
    return table


def summary(rows: Sequence[ResultRow]) -> str | None:
    """One plain sentence on what the student kept of its teacher, if the rows allow it."""
    teacher, before, after = (find_row(rows, name) for name in (TEACHER, BEFORE, AFTER))
    share = after.share_of(teacher) if after is not None else None
    if teacher is None or after is None or share is None:
        return None
    metric = next(iter(after.metrics))
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


def read_records(path: Path) -> list[dict[str, Any]]:
    """The log records of `metrics.jsonl`; an unfinished last line of a killed run, and what is none, are left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step", 0), int | float):
            records.append(record)
    return records


def write_report(folder: str | Path) -> Path:
    """Write `report.html` from the `results.json` and `metrics.jsonl` of a run folder.

    Raises [`InputError`] if the folder holds no readable `results.json`.
    """
    folder = Path(folder)
    try:
        results = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
        page = render_report(results, read_records(folder / METRICS_FILE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder} holds no readable {RESULTS_FILE}, so it is no finished run.") from error
    path = folder / REPORT_FILE
    write_whole(path, page)
    return path


def render_report(results: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML text: table, curves as inline SVG, settings. No script, no outside file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    known = set(ResultRow.__dataclass_fields__)
    rows = [ResultRow(**{k: v for k, v in row.items() if k in known}) for row in results["rows"]]
    header, cells = table_cells(rows)
    metric = next((name for row in rows for name in row.metrics if name not in LOSSES), None)
    environment = Environment(loader=PackageLoader("sinkd_llm", "report"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja").render(
        results=results,
        header=header,
        cells=cells,
        bars=[row.metrics.get(metric) if metric else None for row in rows],
        summary=summary(rows),
        curves=[curve for curve in _curves(rows, metric, records) if curve is not None],
        duration=describe_training(results["training"]),
        memory=format_bytes(results["peak_memory_bytes"]),
    )


def _curves(
    rows: Sequence[ResultRow], metric: str | None, records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any] | None]:
    teacher, before = find_row(rows, TEACHER), find_row(rows, BEFORE)
    references = {
        row.name: row.metrics[metric]
        for row in (teacher, before)
        if metric is not None and row is not None and metric in row.metrics
    }
    scores = {f"eval_{metric}": metric or "", "eval_teacher_agreement": "agreement with the teacher"}
    return [
        _curve("Loss terms", "mean per supervised token", records, LOSS_TERMS),
        _curve("Score on the evaluation rows", "", records, scores, references),
        _curve("The transport plan", "share, 0 to 1", records, DIAGNOSTICS),
        _curve("Learning rate", "", records, {"learning_rate": "learning rate"}),
    ]


def _curve(
    title: str,
    unit: str,
    records: Sequence[Mapping[str, Any]],
    names: Mapping[str, str],
    references: Mapping[str, float] | None = None,
) -> dict[str, Any] | None:
    """One plot: title, inline SVG and legend (label, colour, line style of CSS); `None` without data."""
    series = {}
    for key, label in names.items():
        points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
        if points:
            series[label] = points
    if not series:
        return None
    import io

    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.5}):
        # Figure without pyplot: no global state, no window system, safe in a thread.
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        legend = []
        for (label, points), colour in zip(series.items(), COLOURS, strict=False):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, color=colour, lw=1.6, marker="o" if len(points) < 25 else "", ms=3.2)
            legend.append((label, colour, "solid"))
        for (label, value), style in zip((references or {}).items(), ("dashed", "dotted"), strict=False):
            axes.axhline(value, color="#444444", lw=1.1, ls=style)
            legend.append((label, "#444444", style))
        _finish(axes, unit)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    # The legend is the page's: one inside the drawing would not wrap to the width that there is.
    return {"title": title, "svg": svg[svg.index("<svg") :], "legend": legend}


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
