"""`report.html`: one page that needs nothing else, made of `results.json` and `metrics.jsonl` alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sinkd_llm.files import write_whole
from sinkd_llm.report.curves import draw_curves, score_metric
from sinkd_llm.report.results import METRICS_FILE, REPORT_FILE, RunRecord, not_readable, read_records
from sinkd_llm.report.table import describe_training, summary, table_columns
from sinkd_llm.units import format_bytes


def write_report(folder: str | Path) -> Path:
    """
    Write `report.html` from the `results.json` and `metrics.jsonl` of a run folder.

    Args:
        folder (`str` or `Path`): of a finished run.

    Returns:
        `Path`: the page.

    Raises:
        InputError: if the folder holds no readable `results.json`.
    """
    folder = Path(folder)
    record = RunRecord.read(folder)
    try:
        page = render_report(record, read_records(folder / METRICS_FILE))
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # JSON of the right keys and other values
        raise not_readable(folder) from error
    path = folder / REPORT_FILE
    write_whole(path, page)
    return path


def render_report(record: RunRecord, logged: Sequence[Mapping[str, Any]]) -> str:
    """
    The page as HTML text: table, curves as inline SVG, settings. No script, no outside file.

    Args:
        record ([`RunRecord`]): of the run.
        logged (`Sequence[Mapping[str, Any]]`): its log records.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    columns = table_columns(record.rows)
    metric = score_metric(record.rows)
    environment = Environment(loader=PackageLoader("sinkd_llm", "report"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja").render(
        results=record,
        header=["", *columns],
        cells=[[row.name, *cells] for row, *cells in zip(record.rows, *columns.values(), strict=True)],
        bars=[row.metrics.get(metric) if metric else None for row in record.rows],
        summary=summary(record.rows),
        curves=draw_curves(record.rows, logged),
        duration=describe_training(record.training),
        memory=format_bytes(record.peak_memory_bytes),
    )
