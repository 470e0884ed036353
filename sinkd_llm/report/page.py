"""`report.html`: one page that needs nothing else, made of the records in the folder of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from sinkd_llm.files import write_whole
from sinkd_llm.metrics.calibration import ReliabilityBin, reliability
from sinkd_llm.report.classes import classes_of
from sinkd_llm.report.curves import draw_curves, score_metric
from sinkd_llm.report.drawing import draw_reliability
from sinkd_llm.report.model_files import NO_MODEL, ModelFiles
from sinkd_llm.report.predictions import EVALUATION, PREDICTIONS_FILE, TEACHER, Predictions, read_predictions
from sinkd_llm.report.results import METRICS_FILE, OF_PROBABILITIES, REPORT_FILE, RunRecord, not_readable, read_records
from sinkd_llm.report.rows_shown import row_lists
from sinkd_llm.report.table import describe_rows, describe_training, quantities, summary
from sinkd_llm.report.templates import render_page
from sinkd_llm.report.terms import ROW, TOKEN
from sinkd_llm.report.transport_plan import KeptPlan, PlanView, read_plan, view_of
from sinkd_llm.secrets import recordable
from sinkd_llm.units import NOT_KNOWN, format_bytes, format_score, format_share

# Of more classes the others are folded away.
_WEAKEST = 15
_TERMS = {"sinkhorn": "SinKD", "transported": "the transported cross-entropy"}


@dataclass(frozen=True)
class RunFiles:
    """
    What the folder of a run holds beside its model.

    Attributes:
        record ([`RunRecord`]): of `results.json`.
        logged (sequence of `Mapping`): the log records of `metrics.jsonl`.
        answers (`Mapping[str, Predictions]`): of `predictions.json`; empty for a run of an earlier version, and for
            rows without a task.
        plan ([`KeptPlan`], *optional*): a transport plan, if one was kept.
        model ([`ModelFiles`]): what is known of the model; nothing where none lies there.
    """

    record: RunRecord
    logged: Sequence[Mapping[str, Any]] = ()
    answers: Mapping[str, Predictions] = field(default_factory=dict)
    plan: KeptPlan | None = None
    model: ModelFiles = NO_MODEL

    @classmethod
    def read(cls, folder: str | Path) -> "RunFiles":
        """
        Of a folder.

        Raises:
            InputError: if it holds no readable `results.json`, or another of its files is damaged.
        """
        folder = Path(folder)
        record, logged = RunRecord.read(folder), read_records(folder / METRICS_FILE)
        answers = read_predictions(folder) if (folder / PREDICTIONS_FILE).exists() else {}
        return cls(record, logged, answers, read_plan(folder), ModelFiles.read(folder) or NO_MODEL)

    @property
    def supervised(self) -> str:
        """Over what its losses are means: `TOKEN` or `ROW`."""
        return ROW if self.model.is_classifier else TOKEN


def write_report(folder: str | Path) -> Path:
    """
    Write `report.html` from the other files of a run folder.

    Args:
        folder (`str` or `Path`): of a finished run.

    Returns:
        `Path`: the page.

    Raises:
        InputError: as of [`RunFiles.read`].
    """
    folder = Path(folder)
    files = RunFiles.read(folder)
    try:
        page = render_report(files)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # JSON of the right keys and others
        raise not_readable(folder) from error
    path = folder / REPORT_FILE
    write_whole(path, page)
    return path


def render_report(files: RunFiles) -> str:
    """The page as HTML text: tables, drawings as inline SVG, rows, settings. It works without script."""
    record = files.record
    rows, subject = record.shown_rows(), record.subject
    said, metric = quantities(rows), score_metric(rows)
    classes = classes_of(rows)
    plan = view_of(files.plan) if files.plan is not None else None
    return render_page(
        "page.html.jinja",
        results=record,
        subject=subject,
        header=["", *(row.name for row in rows)],
        quantities=list(said.items()),
        bar_metric=metric,
        bars=[row.metrics.get(metric) if metric else None for row in rows],
        has_intervals=any(row.intervals for row in rows),
        evaluation=record.evaluation,
        uncalibrated=[name for name in OF_PROBABILITIES if name in said],
        summary=summary(rows),
        curves=draw_curves(rows, files.logged, files.supervised),
        reliability=draw_reliability(reliability_of(files.answers, f"{subject} after")),
        classes=classes,
        class_cells=[_class_cells(astuple(line)) for line in classes.lines] if classes else [],
        weakest=_WEAKEST,
        lists=row_lists(files.answers, subject),
        plan=plan,
        plan_term=_TERMS.get(plan.kept.term, plan.kept.term) if plan else "",
        plan_cells=_plan_cells(plan) if plan else [],
        layers=_layers(record.layers),
        settings=recordable(record.settings),
        all_settings=recordable(record.all_settings),
        duration=describe_training(record.training),
        rows_in_words=describe_rows(record.training),
        memory=format_bytes(record.peak_memory_bytes),
    )


def reliability_of(answers: Mapping[str, Predictions], trained: str) -> list[tuple[str, list[ReliabilityBin]]]:
    """How often the models are right that are so sure, as far as their probabilities are known."""
    found = []
    for name, of in ((trained, EVALUATION), (TEACHER, TEACHER)):
        one = answers.get(of)
        if one is not None and one.probabilities and all(isinstance(label, int) for label in one.references):
            found.append((name, reliability(one.probabilities, one.references)))
    return found


def _class_cells(line: tuple[Any, ...]) -> list[str]:
    name, support, *scores = line
    return [name, str(support), *(format_score(score) for score in scores if score is not None)]


def _plan_cells(plan: PlanView) -> list[list[str]]:
    cells = []
    for line in plan.lines:
        partners = "\n".join(f"{number} ({format_share(share)}) {what}" for number, what, share in line.partners)
        own = [format_share(line.own)] if plan.kept.same_rows else []
        text = line.text if not line.name else f"{line.text} ({line.name})"
        cells.append([str(line.number), line.gold or NOT_KNOWN, text, *own, partners or NOT_KNOWN])
    return cells


def _layers(layers: Mapping[str, Any] | None) -> list[tuple[str, list[bool]]]:
    """For each part of the model that the student was cut from, which of its layers the student has."""
    if layers is None or not {"kept", "of"} <= layers.keys():
        return []
    return [(part, [i in layers["kept"][part] for i in range(total)]) for part, total in layers["of"].items()]
