"""`calibrate`: how sure a student should be, found on rows that it has not seen."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sinkd_llm.answering.calibration import NONE, Calibration, NothingToFitError, fit_best
from sinkd_llm.answering.facts import StudentFacts
from sinkd_llm.answering.load import facts_of, load_student
from sinkd_llm.errors import InputError
from sinkd_llm.integrity import ANSWERS_FILE
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.locks import folder_lock
from sinkd_llm.metrics.calibration import brier_score, expected_calibration_error, log_loss
from sinkd_llm.runs.unseen_rows import examples_of, unseen_rows
from sinkd_llm.terminal import progress, say


@dataclass(frozen=True)
class CalibrateResult:
    """
    What a calibration changes.

    Args:
        calibration ([`Calibration`]): what was found.
        rows (`int`): that it was fitted on.
        source (`str`): what these are, in words.
        before, after (`dict[str, float]`): `log_loss`, `brier` and `ece` of these rows without it, and with one that
            was fitted on other rows.
        kept (`bool`): whether it helps, and is kept with the student.
        drops_route (`bool`): whether the student had a route, which was chosen on other probabilities.
        problem (`str`, *optional*): why nothing could be fitted to these rows.
        earlier (`bool`): whether the student had a calibration that is for such rows.
    """

    calibration: Calibration
    rows: int
    source: str
    before: dict[str, float]
    after: dict[str, float]
    kept: bool
    drops_route: bool
    problem: str | None = None
    earlier: bool = False


@termination_raises()
def run_calibrate(
    student_dir: str,
    task: str | None = None,
    *,
    data_dir: str | None = None,
    rows: str | None = None,
    batch_size: int = 32,
    **loading: Any,
) -> CalibrateResult:
    """
    Fit a calibration of a student on labelled rows that it has not seen, and keep it in its folder if it helps.

    Args:
        student_dir (`str`): the folder of a run, or of an export.
        task (`str`, *optional*): its task, where its folder does not say it, or does not know where its data lies.
        data_dir (`str`, *optional*): the folder of the task's data.
        rows (`str`, *optional*): a file of labelled rows in place of the training rows that the run held out.
        batch_size (`int`, *optional*, defaults to `32`): rows that are read together.
        loading: more keyword arguments of [`load_model`].

    Raises:
        InputError: for a student that is no folder, and as [`unseen_rows`] and [`Calibration.fit`].
    """
    with own_folder(student_dir) as folder:
        return _calibrate(folder, task, data_dir, rows, batch_size, loading)


def _calibrate(
    folder: Path, task: str | None, data_dir: str | None, rows: str | None, batch_size: int, loading: dict[str, Any]
) -> CalibrateResult:
    unseen = unseen_rows(*facts_of(folder, task), rows, data_dir, str(folder))
    say(f"Loading {folder} …")
    student = load_student(folder, task, **loading)
    examples, labels = examples_of(unseen.rows), [int(label) for label in unseen.rows["label"]]
    with progress(f"Answering {len(examples):,} {unseen.source}") as on_progress:
        log_probabilities = student.all_log_probabilities(examples, batch_size, on_progress)
    before = scores_of(NONE.apply(log_probabilities), labels)
    same_choices = len({example.choices for example in examples}) == 1
    facts = _without_vector_of_places(student.facts, same_choices, folder)
    earlier = facts.calibration is not None
    try:
        found, crossed = fit_best(log_probabilities, labels, same_choices=same_choices)
    except NothingToFitError as error:
        return CalibrateResult(NONE, len(labels), unseen.source, before, before, False, False, str(error), earlier)
    after = scores_of(crossed, labels)
    measured = {"rows": len(labels), "source": unseen.source, "before": before, "after": after}
    if found.vector is not None:
        measured["row_prints"] = unseen.prints_to_keep()
    found = replace(found, measured=measured)
    kept = after["log_loss"] < before["log_loss"]
    drops_route = kept and facts.route is not None
    if kept:
        replace(facts, calibration=found, route=None).write(folder)
    return CalibrateResult(found, len(labels), unseen.source, before, after, kept, drops_route, None, earlier)


def _without_vector_of_places(facts: StudentFacts, same_choices: bool, folder: Path) -> StudentFacts:
    """What a folder keeps, after a vector that an earlier version fitted to rows with different choices is dropped."""
    if same_choices or facts.calibration is None or facts.calibration.vector is None:
        return facts
    route = "" if facts.route is None else " So is the route, which was chosen with them: run 'sinkd route' again."
    say(
        "Note: the choices of the rows are different, and the student has scales and shifts of classes, which are for "
        f"rows with the same choices. They are dropped from {folder}/{ANSWERS_FILE}.{route}"
    )
    facts = replace(facts, calibration=None, route=None)
    facts.write(folder)
    return facts


@contextmanager
def own_folder(student_dir: str) -> Iterator[Path]:
    """
    The folder of a student that something is to be kept in; nobody else writes to it meanwhile.

    Raises:
        InputError: if it is none, or another process writes to it.
    """
    folder = Path(student_dir).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"{student_dir} is no folder; give the folder of a run or of an export, where what is found out is kept."
        )
    with folder_lock(folder, "wait until it has ended"):
        yield folder


def scores_of(probabilities_NC: Sequence[Sequence[float]], labels_N: Sequence[int]) -> dict[str, float]:
    """Log-loss, Brier score and expected calibration error of probabilities, for each of which 0 is best."""
    return {
        "log_loss": log_loss(probabilities_NC, labels_N),
        "brier": brier_score(probabilities_NC, labels_N),
        "ece": expected_calibration_error(probabilities_NC, labels_N),
    }
