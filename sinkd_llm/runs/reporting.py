"""The page and the model card of a run, made of what its folder holds."""

from dataclasses import replace
from pathlib import Path

from sinkd_llm.answering.calibration import Calibration
from sinkd_llm.answering.facts import StudentFacts
from sinkd_llm.answering.routing import Route
from sinkd_llm.errors import InputError
from sinkd_llm.report.model_card import CardFacts, facts_of_files, write_card
from sinkd_llm.report.page import RunFiles, write_report
from sinkd_llm.tasks.rendering import RowRenderer
from sinkd_llm.tasks.task import Task
from sinkd_llm.tasks.unlabelled import unlabelled_example
from sinkd_llm.units import format_score, format_share


def write_run_pages(folder: Path) -> tuple[Path, bool]:
    """
    Write `report.html` and, where a student lies, `README.md` of a run's folder.

    Args:
        folder (`Path`): of a finished run.

    Returns:
        `tuple[Path, bool]`: the page, and whether the card was written: a README that somebody has written or changed
        stays, and without a model there is none.

    Raises:
        InputError: if a record of the run is missing or damaged.
    """
    page = write_report(folder)
    facts = card_facts(folder)
    return page, facts is not None and write_card(folder, RunFiles.read(folder), facts)


def card_facts(folder: Path) -> CardFacts | None:
    """
    What the folder of a student says for its card; `None` where no model lies.

    Raises:
        InputError: if its configuration or `sinkd_answers.json` is damaged.
    """
    found = facts_of_files(folder)
    if found is None or (facts := StudentFacts.load(folder)) is None:
        return found
    said = " ".join((_calibration_in_words(facts.calibration), _route_in_words(facts.route))).strip()
    return replace(found, task=facts.task, columns=_columns(facts.load_task(folder)), calibration=said)


def _columns(task: Task) -> tuple[str, ...]:
    """The columns of a row, if texts in them make one that can be answered; else none."""
    renderer = RowRenderer(task.config, task.origins)
    columns = renderer.columns_read()
    try:
        unlabelled_example(dict.fromkeys(columns, "a text"), "the row", 0, renderer, task.name, columns)
    except InputError:  # a list of choices, a number: what a row looks like only the data show
        return ()
    return tuple(sorted(columns))


def _calibration_in_words(calibration: Calibration | None) -> str:
    if calibration is None:
        return ""
    how = f"a temperature of {calibration.temperature:.3g}" if calibration.vector is None else "a scale a class"
    measured = calibration.measured
    text = f"Its probabilities are calibrated with {how}"
    if {"rows", "before", "after"} <= measured.keys():
        before, after = (format_score(measured[when].get("ece")) for when in ("before", "after"))
        text += (
            f", fitted on {measured['rows']:,} rows that it had not seen: expected calibration error {before} before, "
            f"{after} after"
        )
    return f"{text}."


def _route_in_words(route: Route | None) -> str:
    if route is None:
        return ""
    return (
        f"With a confidence of {format_score(route.threshold)} or more it answers; other rows are for the large "
        f"model. The target was {format_share(route.target)} {route.of}."
    )
