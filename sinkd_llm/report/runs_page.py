"""One page of several runs: their scores in one table, the settings in which they differ, all curves in one plot."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from sinkd_llm.report.curves import draw_lines, points_of, score_metric
from sinkd_llm.report.drawing import Drawing
from sinkd_llm.report.page import RunFiles
from sinkd_llm.report.results import TEACHER, ResultRow, RunRecord, find_row
from sinkd_llm.report.table import interval_of, quantities
from sinkd_llm.report.templates import render_page
from sinkd_llm.report.terms import MEAN, ROW, TOKEN
from sinkd_llm.secrets import recordable
from sinkd_llm.units import NOT_KNOWN, format_duration, format_score

# What each run has of its own, whatever it is compared for.
_OWN = ("output_dir", "logging_dir", "run_name", "hub_model_id", "overwrite_output_dir")
# A setting that is longer is cut: a page compares, and each run's own page has it whole.
_LONGEST_SETTING = 120


def render_runs(named: Mapping[str, RunFiles]) -> str:
    """
    The page as HTML text.

    Args:
        named (`Mapping[str, RunFiles]`): two runs or more, by the names that the page gives them.
    """
    runs = {name: files.record for name, files in named.items()}
    shown = _scores(runs)
    kinds = [files.supervised for files in named.values()]
    subjects = dict.fromkeys(record.subject for record in runs.values())
    return render_page(
        "runs.html.jinja",
        names=list(runs),
        tasks=list(dict.fromkeys(record.task for record in runs.values())),
        subjects=" and ".join(f"{subject}s" for subject in subjects),
        quantities=shown,
        has_intervals=any(row.intervals for record in runs.values() for row in record.rows[-1:]),
        differing=differing(runs),
        curves=_curves(named, kinds[0] if len(set(kinds)) == 1 else f"{TOKEN} or {ROW}"),
        commands=[(name, record.command_line) for name, record in runs.items()],
    )


def names_of(folders: Sequence[PurePath]) -> list[str]:
    """Short names of different folders: their last parts, as many as it takes to tell them apart."""
    parts = [[part for part in folder.parts if part != folder.anchor] for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(of_one[-count:]) for of_one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _scores(runs: Mapping[str, RunRecord]) -> list[list[str]]:
    """Rows of a table with a column a run: what is said of its trained student, and its teacher's primary score."""
    students = [record.rows[-1] if record.rows else ResultRow("student") for record in runs.values()]
    teachers = [find_row(record.rows, TEACHER) for record in runs.values()]
    said = quantities(students)
    found = {name: [f"{cell.value} {cell.interval}".strip() for cell in cells] for name, cells in said.items()}
    metric = score_metric(students)
    if metric is not None and any(teachers):
        found = {
            metric: found.pop(metric),
            f"teacher's {metric}": [_of(one, metric) for one in teachers],
            **found,
        }
    found["training"] = [format_duration(record.training.get("seconds", 0.0)) for record in runs.values()]
    return [[name, *texts] for name, texts in found.items() if set(texts) != {NOT_KNOWN}]


def _of(row: ResultRow | None, metric: str) -> str:
    if row is None:
        return NOT_KNOWN
    return f"{format_score(row.metrics.get(metric))} {interval_of(row, metric)}".strip()


def differing(runs: Mapping[str, RunRecord]) -> list[list[str]]:
    """The settings that are not the same in all runs: name, and the value of each run. Of mappings the keys differ."""
    every = [_flat(recordable(record.all_settings | record.settings)) for record in runs.values()]
    names = dict.fromkeys(name for settings in every for name in settings if name not in _OWN)
    found = []
    for name in sorted(names):
        values = [_written(settings[name]) if name in settings else NOT_KNOWN for settings in every]
        if len(set(values)) > 1:
            found.append([name, *values])
    return found


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings with those inside mappings as `outer.inner`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inside = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{name}.") if inside else {f"{prefix}{name}": value}
    return found


def _written(value: Any) -> str:
    text = NOT_KNOWN if value is None else str(value)
    return text if len(text) <= _LONGEST_SETTING else text[: _LONGEST_SETTING - 1] + "…"


def _curves(named: Mapping[str, RunFiles], supervised: str) -> list[Drawing]:
    """The loss, and the score where it was logged, of all runs in one drawing each."""
    metric = score_metric([row for files in named.values() for row in files.record.rows])
    plots = (
        ("loss", "Loss", MEAN.format(supervised=supervised)),
        (f"eval_{metric}", f"{metric} on the evaluation rows", ""),
        ("eval_agreement", "Agreement with the teacher on the evaluation rows", "share"),
    )
    drawn = [
        draw_lines(title, unit, {name: points_of(files.logged, key) for name, files in named.items()})
        for key, title, unit in plots
    ]
    return [one for one in drawn if one is not None]
