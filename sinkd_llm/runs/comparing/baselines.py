"""What a distilled student has to beat, and the control of its transport."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sinkd_llm.evaluation.examination import fit_tfidf
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.objectives import GROUP, DistillationObjective
from sinkd_llm.objectives.couplings import IDENTITY, TRANSPORT
from sinkd_llm.report.comparison import CONTROL, GOLD, MAJORITY, TFIDF
from sinkd_llm.report.predictions import Predictions
from sinkd_llm.report.results import METRICS_FILE, read_records
from sinkd_llm.runs.comparing.grid import Cell
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.examining import texts_of
from sinkd_llm.runs.predicting import as_predictions
from sinkd_llm.runs.rehearsal import updates_of
from sinkd_llm.teachers.answer_file import file_rows
from sinkd_llm.teachers.cache.layout import IN_GROUPS
from sinkd_llm.teachers.cache.manifest import Manifest
from sinkd_llm.teachers.group_file import finds_groups_by
from sinkd_llm.training.config import SinKDConfig

if TYPE_CHECKING:
    from sinkd_llm.runs.comparing.identity import Arguments

# Of a coupling that pairs each row with itself, but for rounding.
_IDENTITY = 0.999
_DIAGONAL = "sinkhorn/diagonal_mass"


def gold_cells(
    cells: Iterable[tuple[Cell, "Arguments"]], rows_of: Callable[[str, int], RunData], seed: int
) -> list[Cell]:
    """
    The cells of a variant without their teacher: cross-entropy on the labels that there are, for as many updates.

    Args:
        cells (iterable of `tuple[Cell, Arguments]`): of one variant.
        rows_of (`Callable[[str, int], RunData]`): the rows of a cell, by its name, with a seed.
        seed (`int`): of the first run.
    """
    objective = {*DistillationObjective().by_name()}
    settings_of_run = {one.name for one in fields(SinKDConfig)}
    weights = {name: 0.0 for name in objective & settings_of_run if name.endswith("_weight")}
    found: dict[str, Cell] = {}
    for cell, arguments in cells:
        training_args = arguments[1]
        if not training_args.has_teacher:  # it learns from nothing else already
            continue
        settings = {name: value for name, value in cell.settings.items() if name not in objective}
        settings |= {"alpha": 0.0, **weights}
        own_scope = "transport_scope" in cell.settings and training_args.transport_scope == GROUP
        if own_scope:
            settings |= {"transport_scope": DistillationObjective().transport_scope, "group_column": None}
        in_groups = knows_groups(arguments)
        if in_groups:  # of which a loss without transport could learn nothing, so that a run with them is refused
            settings |= _without_teacher(arguments)
        data = rows_of(cell.name, seed)
        labels = data.train["label"][:] if "label" in data.train.column_names else []
        fewer = NO_LABEL in labels
        if fewer or own_scope or in_groups:
            if training_args.max_steps < 1:  # other batches: as many updates as the students have, and not epochs
                settings["max_steps"] = updates_of(data, training_args, 1)[0]
            settings["unlabelled_ratio"] = None
        if fewer:
            settings["labelled_rows_only"] = True
        varied = tuple(name for name in cell.varied if name not in objective)
        made = Cell(GOLD, settings, GOLD, varied)
        found.setdefault(made.folder, made)
    return list(found.values())


def _without_teacher(arguments: "Arguments") -> dict[str, object]:
    """The settings of a run like this one that names no teacher, and fine-tunes on the labels."""
    task_args, training_args, model_args = arguments
    found: dict[str, object] = {
        one.name: one.default
        for args in (task_args, training_args)
        for one in fields(args)
        if one.name.startswith(("teacher_", "balance")) and getattr(args, one.name) != one.default
    }
    if model_args.model_name_or_path is None:  # the student is cut from its teacher
        found["model_name_or_path"] = training_args.teacher_model_name_or_path
        found["model_revision"] = training_args.teacher_model_revision
    # Without a teacher rows without a label are refused even if there are none.
    return {**found, "labelled_rows_only": True}


def knows_groups(arguments: "Arguments") -> bool:
    """
    Whether a run's teacher speaks of groups of rows, and not of each row.

    Args:
        arguments (`tuple`): of the run.

    Raises:
        InputError: for a cache or a file that is not there, or says nothing of the rows' groups.
    """
    task_args, training_args, _ = arguments
    if training_args.teacher_cache is not None:
        return Manifest.load(Path(training_args.teacher_cache).expanduser()).layout.content == IN_GROUPS
    if training_args.teacher_file is not None:
        file = Path(training_args.teacher_file).expanduser()
        changed = file.stat().st_mtime_ns if file.is_file() else 0
        return _file_knows_groups(file, changed, task_args.id_column, training_args.group_column)
    return training_args.teacher_rows_per_request > 1


@cache
def _file_knows_groups(file: Path, changed: int, id_column: str | None, group_column: str | None) -> bool:
    """Read once for all cells, as long as the file has not `changed`."""
    return finds_groups_by(file_rows(file), id_column, group_column) is not None


def control_cells(cells: Iterable[tuple[Cell, "Arguments"]]) -> tuple[list[Cell], list[str]]:
    """
    The same cells with each row paired with its own teacher row: what of a gain is due to transport.

    A transport problem of one row has one plan, the identity, so SinKD becomes the L1 distance of right pairs.
    Whether every problem has one row shows in training: see [`is_identity`].

    Returns:
        `tuple[list[Cell], list[str]]`: the controls, and what to say of cells that have none.
    """
    found: dict[str, Cell] = {}
    without: list[str] = []
    in_groups: dict[str, None] = {}
    for cell, arguments in cells:
        training_args = arguments[1]
        changes: dict[str, object] = {}
        if training_args.sinkhorn_weight > 0 and training_args.transport_scope != "sequence":
            changes["transport_scope"] = "sequence"
            if training_args.group_column is not None:
                changes["group_column"] = None
        if training_args.transported_weight > 0 and training_args.transported_coupling == TRANSPORT:
            changes["transported_coupling"] = IDENTITY
        if not changes:
            without.append(cell.variant)
        elif knows_groups(arguments):
            in_groups[cell.variant] = None
        else:
            made = Cell(f"{CONTROL} of {cell.variant}", {**cell.settings, **changes}, CONTROL, cell.varied)
            found.setdefault(made.folder, made)
    notes = [
        f"There is no {CONTROL} of {variant}: its teacher's rows are known per group, and not which one is whose."
        for variant in in_groups
    ]
    if not found and not notes and without:
        notes = [f"No cell has a transport term, so there is no {CONTROL}."]
    return list(found.values()), notes


def is_identity(folders: Sequence[Path]) -> bool:
    """Whether the plans of some finished runs were the identity, as far as they were logged."""
    seen = [
        record[_DIAGONAL]
        for folder in folders
        for record in read_records(folder / METRICS_FILE)
        if isinstance(record.get(_DIAGONAL), int | float)
    ]
    return all(mass >= _IDENTITY for mass in seen)


def answers_without_model(data: RunData) -> dict[str, Predictions]:
    """
    What the most frequent label, and a logistic regression over TF-IDF, say of the rows for evaluation.

    Args:
        data ([`RunData`]): the rows, whose labels are learnt from.

    Returns:
        `dict[str, Predictions]`: by name; nothing where answers are written, or no labels are there to learn from.
    """
    train, rows, task = data.train, data.evaluation, data.task
    if task is None or rows is None or "label" not in train.column_names:
        return {}
    labels = [None if label == NO_LABEL else int(label) for label in train["label"]]
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        return {}
    said = {MAJORITY: [counts.most_common(1)[0][0]] * len(rows)}
    if (predict := fit_tfidf(texts_of(train), labels)) is not None:
        said[TFIDF] = predict(texts_of(rows))
    return {
        name: as_predictions(task, rows, chosen, task.compute_metrics(chosen, rows["label"][:], rows=rows))
        for name, chosen in said.items()
    }


def why_without_model(data: RunData, found: Mapping[str, Predictions]) -> list[str]:
    """
    Why what [`answers_without_model`] has found is not all, in sentences.

    Args:
        data ([`RunData`]): the rows.
        found (`Mapping[str, Predictions]`): by name.
    """
    if MAJORITY not in found:
        labels = data.train["label"][:] if "label" in data.train.column_names else None
        why = "the answers are written, and there are no choices" if labels is None else "no training row has a label"
        return [f"There is no {MAJORITY} and no {TFIDF}: {why}."]
    if TFIDF not in found:
        return [f"There is no {TFIDF}: the labels of the training rows are of one class, or their texts have no word."]
    return []
