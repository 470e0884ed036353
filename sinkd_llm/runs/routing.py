"""`route`: from which confidence on a student's answer is taken, and what is passed on to a larger model."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sinkd_llm.answering.calibration import NONE, Calibration, cross_fitted
from sinkd_llm.answering.facts import StudentFacts
from sinkd_llm.answering.load import facts_of, load_student
from sinkd_llm.answering.routing import (
    LEVEL,
    Answered,
    Route,
    answered_at,
    choose_threshold,
    rows_needed,
    rows_to_show,
)
from sinkd_llm.answering.student import Student
from sinkd_llm.answering.timing import TIMED, latencies_ms
from sinkd_llm.errors import InputError
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.report.results import RESULTS_FILE, RunRecord
from sinkd_llm.runs.asking_evaluation import answers_of_evaluation, by_position, evaluation_splits
from sinkd_llm.runs.calibrating import own_folder
from sinkd_llm.runs.unseen_rows import Unseen, examples_of, unseen_rows
from sinkd_llm.teachers.answer_file import answers_in, file_rows
from sinkd_llm.teachers.questions import questions_of
from sinkd_llm.terminal import progress, say

if TYPE_CHECKING:
    from datasets import Dataset

AGREEMENT, ACCURACY = "agreement", "accuracy"
# With these a teacher read something else than its student does, so that it would choose otherwise over the same rows.
_OTHER_PROMPT = ("teacher_task", "teacher_num_fewshot")


@dataclass(frozen=True)
class RouteResult:
    """
    A route, and what it is worth.

    Args:
        route ([`Route`]): the threshold.
        chosen ([`Answered`]): how it does on the rows that it was chosen on; its bound is the guarantee.
        checked ([`Answered`], *optional*): how it does on the rows for evaluation; `None` if right is not known there.
        source (`str`): what the rows are that it was chosen on, in words.
        student_ms (`float`): milliseconds that the student takes for a row alone, the median.
        calibrated (`bool`): whether the student is.
        crossed (`int`): on how many of the rows that the route was chosen on its scales and shifts of classes were
            fitted. Each of these was answered by those that the other four fifths of the rows give, and the guarantee
            is not exact where there is one.
    """

    route: Route
    chosen: Answered
    checked: Answered | None
    source: str
    student_ms: float
    calibrated: bool
    crossed: int


@dataclass(frozen=True)
class _Part:
    """Rows, and what they are in words."""

    rows: "Dataset"
    source: str


@termination_raises()
def run_route(
    student_dir: str,
    task: str | None = None,
    *,
    of: str | None = None,
    target: float = 0.98,
    level: float = LEVEL,
    teacher_file: str | None = None,
    teacher_model: str | None = None,
    data_dir: str | None = None,
    rows: str | None = None,
    batch_size: int = 32,
    **loading: Any,
) -> RouteResult:
    """
    Choose from which confidence on a student answers, and keep that in its folder.

    Args:
        student_dir, task, data_dir, rows, batch_size, loading: as for [`run_calibrate`].
        of (`str`, *optional*): `"agreement"` with the teacher or `"accuracy"`. Default: agreement, where what the
            teacher chooses is given or the run's record says where it is.
        target (`float`, *optional*, defaults to `0.98`): the share of answers that shall be right, in (0, 1).
        level (`float`, *optional*, defaults to `0.95`): the probability with which it is, in (0, 1).
        teacher_file (`str`, *optional*): a file of the teacher's answers, as for distillation.
        teacher_model (`str`, *optional*): the teacher, a model that answers the rows now.

    Raises:
        InputError: if it is not known what the teacher chooses, if there are too few rows, or if no threshold can be
            shown to reach the target; and as [`run_calibrate`].
    """
    for name, value in (("--target", target), ("--level", level)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value:g}; give a share between 0 and 1, such as 0.98.")
    if teacher_file is not None and teacher_model is not None:
        raise InputError("--teacher_file and --teacher_model_name_or_path are both given; a student has one teacher.")
    with own_folder(student_dir) as folder:
        answered, facts = facts_of(folder, task)
        of, teacher_file, teacher_model = _what_is_right(folder, facts, of, teacher_file, teacher_model)
        unseen = unseen_rows(answered, facts, rows, data_dir, student_dir)
        say(f"Loading {student_dir} …")
        student = load_student(folder, task, **loading)
        parts = [_Part(unseen.rows, unseen.source)]
        if unseen.evaluation is not None:
            parts.append(_Part(unseen.evaluation, "rows for evaluation"))
        if of == ACCURACY:
            right = [[int(label) for label in part.rows["label"]] for part in parts]
        elif teacher_file is not None:
            right = _in_file(teacher_file, parts, unseen.split, student)
        else:
            right = _by_model(str(teacher_model), parts, student, batch_size)
        fitted = _fitted_on(student.facts.calibration, unseen)
        crossed = sum(right[0][index] >= 0 for index in fitted)
        chosen, checked = _chosen(student, parts, right, target, level, batch_size, fitted if crossed else [])
        timed = examples_of(unseen.rows.select(range(min(TIMED, len(unseen.rows)))))
        ((milliseconds, _),) = latencies_ms([student], timed)
        measured = {
            "level": level,
            "source": unseen.source,
            "crossed": crossed,
            "chosen": asdict(chosen),
            "checked": None if checked is None else asdict(checked),
            "student_ms": milliseconds,
        }
        route = Route(chosen.threshold, target, of, measured)
        replace(student.facts, route=route).write(folder)
    calibrated = student.facts.calibration is not None
    return RouteResult(route, chosen, checked, unseen.source, milliseconds, calibrated, crossed)


def _what_is_right(
    folder: Path, facts: StudentFacts, of: str | None, file: str | None, model: str | None
) -> tuple[str, str | None, str | None]:
    """
    Agreement or accuracy, and the file of the teacher's answers or the teacher, if either is asked.

    Raises:
        InputError: if what is not said could mean both: accuracy does not take the place of agreement because the
            teacher is not found.
    """
    why_not = ""
    if of != ACCURACY and file is None and model is None:
        file, model, why_not = _recorded_teacher(folder)
    if file is None and model is None:
        stored = facts.route.of if facts.route is not None else None
        if of == AGREEMENT or (of is None and (why_not or stored == AGREEMENT)):
            missing = f" ({why_not})" if why_not else ""
            raise InputError(
                "It is not known what the teacher chooses for rows that the student was not trained on"
                f"{missing}: give its answers as --teacher_file, or the teacher as --teacher_model_name_or_path, or "
                "--of accuracy, which needs labels alone."
            )
        if of is None:
            say("No teacher of the student is known: right is what the labels say (--of accuracy).")
        return ACCURACY, None, None
    return AGREEMENT if of is None else of, file, model


def _fitted_on(calibration: Calibration | None, unseen: Unseen) -> Sequence[int]:
    """
    The rows on which scales and shifts of classes were fitted, whose choices these make better than those of others.

    A temperature is one number, changes no choice and hardly which rows are the surest.
    """
    if calibration is None or calibration.vector is None:
        return []
    measured = calibration.measured
    if "row_prints" in measured:
        return unseen.known(measured["row_prints"])
    # An earlier version did not keep which rows they were.
    return range(len(unseen.rows)) if measured.get("source") == unseen.source else []


def _chosen(
    student: Student,
    parts: "Sequence[_Part]",
    right: list[list[int]],
    target: float,
    level: float,
    batch_size: int,
    fitted: Sequence[int],
) -> tuple[Answered, Answered | None]:
    """The threshold on the rows of the first part, and how it does on those of the second, if these are known."""
    known = [i for i, choice in enumerate(right[0]) if choice >= 0]
    source = parts[0].source
    if len(known) < rows_needed(target, level):
        raise InputError(
            f"There are {len(known):,} {source} of which it is known what is right, and to show that {target:.1%} are "
            f"right at a level of {level:.0%} takes {rows_needed(target, level):,} if all of them are, and more for "
            "every mistake: give more with --rows, or a lower --target."
        )
    if fitted:
        probabilities = _crossed(student, parts[0], batch_size, fitted)
        confidence, agrees = _judged([probabilities[i] for i in known], [right[0][i] for i in known])
    else:
        confidence, agrees = _confidence(student, parts[0], right[0], known, batch_size)
    chosen = choose_threshold(confidence, agrees, target, level)
    if chosen is None:
        wanted = rows_to_show(confidence, agrees, target, level)
        raise InputError(
            f"No confidence can be shown to give {target:.1%} right answers at a level of {level:.0%}: over all "
            f"{len(known):,} {source} the student is right in {np.mean(agrees):.1%}, and "
            + (
                "its surest answers are not right more often than the target either. Give a lower --target, or train "
                "the student further."
                if wanted is None
                else f"rows like these would show it from about {wanted:,} on. Give more with --rows, train with a "
                "larger --heldout_share, or give a lower --target."
            )
        )
    if len(right) == 1 or not (known := [i for i, choice in enumerate(right[1]) if choice >= 0]):
        return chosen, None
    return chosen, answered_at(chosen.threshold, *_confidence(student, parts[1], right[1], known, batch_size), level)


def _recorded_teacher(folder: Path) -> tuple[str | None, str | None, str]:
    """
    The file of answers or the model that the student's run learned from; else why it is not taken, if there was one.

    A path that is not absolute was one from where the run was started, which is here or a folder above the student.
    """
    if not (folder / RESULTS_FILE).is_file():
        return None, None, ""
    settings = RunRecord.read(folder).all_settings
    file, model = settings.get("teacher_file"), settings.get("teacher_model_name_or_path")
    named = file if isinstance(file, str) else model if isinstance(model, str) else None
    if named is None:
        return None, None, ""
    of_model = named is not file
    if of_model and (other := next((name for name in _OTHER_PROMPT if settings.get(name)), None)) is not None:
        return None, None, f"{named}, of which it learned, read another prompt there: {other}"
    bases = (Path(), *folder.resolve().parents)
    found = next((place for base in bases if (place := base / Path(named).expanduser()).exists()), None)
    if found is None and of_model and _is_stored(named, settings.get("teacher_model_revision")):
        return None, named, ""
    if found is None:
        return None, None, f"{named}, of which it learned, is not there"
    return (None, str(found), "") if of_model else (str(found), None, "")


def _is_stored(model: str, revision: Any) -> bool:
    """Whether a name is of a bundled model, or of one of the hub, main branch, that is on this machine."""
    from sinkd_llm.models.names import CONFIG, resolve_model_source, stored_file

    try:
        source = resolve_model_source(model)
    except InputError:
        return False
    if source.kind != "hub":
        return True
    return revision in (None, "main") and stored_file(source, CONFIG) is not None


def _in_file(file: str, wanted: "Sequence[_Part]", split: str | None, student: Student) -> list[list[int]]:
    """The index of the choice that a file of answers has for each row of each part, -1 where it says nothing."""
    rows, held_out = file_rows(Path(os.path.expanduser(file))), student.facts.held_out
    own = None if held_out is None else held_out.id_column
    unseen, *evaluation = (part.rows for part in wanted)
    found = answers_in(rows, questions_of(unseen), split, own)
    if by_position(found, own) and (split is None or own is not None):
        other = "the rows of --rows are others" if split is None else "the ids of the rows do not say it"
        raise InputError(
            f"{found.source} finds rows by their position (the column {found.found_by!r}), which is that of a "
            f"training row, and {other}; give the file a column 'id' with the rows' own ids, or 'text'."
        )
    said: list[Mapping[str, Any]] = [found.answers]
    splits = evaluation_splits(student.task, None, 0.0 if held_out is None else held_out.validation_share)
    taught = [question for question in questions_of(unseen) if question.name in found.answers]
    said += [answers_of_evaluation(rows, taught, questions_of(part), own, splits) for part in evaluation]
    return [
        [int(np.argmax(answers[name])) if name in answers else -1 for name in part.rows["id"][:]]
        for part, answers in zip(wanted, said, strict=True)
    ]


def _by_model(model: str, wanted: "Sequence[_Part]", student: Student, batch_size: int) -> list[list[int]]:
    """The index of the choice that a teacher makes for each row of each part."""
    say(f"Loading {model} …")
    teacher = load_student(model, student.task)
    found = []
    for part in wanted:
        with progress(f"The teacher answers {len(part.rows):,} {part.source}") as on_progress:
            scores = teacher.all_log_probabilities(examples_of(part.rows), batch_size, on_progress)
        found.append([int(np.argmax(row)) for row in scores])
    return found


def _confidence(
    student: Student, part: _Part, right: Sequence[int], known: Sequence[int], batch_size: int
) -> tuple[list[float], list[bool]]:
    """Of the rows of which it is known what is right: what [`_judged`] says of the student's probabilities."""
    scores = _scores(student, part.rows.select(known), part.source, batch_size)
    return _judged((student.facts.calibration or NONE).apply(scores), [right[i] for i in known])


def _crossed(student: Student, part: _Part, batch_size: int, fitted: Sequence[int]) -> list[list[float]]:
    """
    The probabilities of all rows; of those that the scales and shifts were fitted on by others, of the other folds.

    All rows have labels to fit on, also those of which it is not known what the teacher chooses.
    """
    scores, labels = _scores(student, part.rows, part.source, batch_size), [int(one) for one in part.rows["label"]]
    try:
        crossed = cross_fitted(Calibration.fit_vector, scores, labels)
    except InputError as error:
        raise InputError(
            f"The student's scales and shifts of classes were fitted on {len(fitted):,} of the {len(labels):,} "
            f"{part.source}, and others, by which these rows could be answered, cannot be fitted: {error} Give rows "
            "that it was not calibrated on (--rows)."
        ) from error
    found = (student.facts.calibration or NONE).apply(scores)
    for index in fitted:
        found[index] = crossed[index]
    return found


def _scores(student: Student, rows: "Dataset", source: str, batch_size: int) -> list[list[float]]:
    """The student's log-probabilities of the choices of each row."""
    with progress(f"Answering {len(rows):,} {source}") as on_progress:
        return student.all_log_probabilities(examples_of(rows), batch_size, on_progress)


def _judged(probabilities: Sequence[Sequence[float]], right: Sequence[int]) -> tuple[list[float], list[bool]]:
    """The probability of the student's choice of each row, and whether the choice is the right one."""
    agrees = [int(np.argmax(row)) == index for row, index in zip(probabilities, right, strict=True)]
    return [max(row) for row in probabilities], agrees
