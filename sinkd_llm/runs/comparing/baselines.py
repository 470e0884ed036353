"""What a distilled student has to beat, and the control of its transport."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from sinkd_llm.evaluation.examination import fit_tfidf
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.objectives import DistillationObjective
from sinkd_llm.report.comparison import CONTROL, GOLD, MAJORITY, TFIDF
from sinkd_llm.report.predictions import Predictions
from sinkd_llm.report.results import METRICS_FILE, read_records
from sinkd_llm.runs.comparing.grid import Cell
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.examining import texts_of
from sinkd_llm.runs.predicting import as_predictions
from sinkd_llm.training.config import SinKDConfig

if TYPE_CHECKING:
    from sinkd_llm.runs.comparing.identity import Arguments

# Of a coupling that pairs each row with itself, but for rounding.
_IDENTITY = 0.999
_DIAGONAL = "sinkhorn/diagonal_mass"


def gold_cells(cells: Iterable[tuple[Cell, "Arguments"]], data: RunData) -> list[Cell]:
    """
    The cells of a variant without their teacher: cross-entropy on the labels that there are, for as many updates.

    Args:
        cells (iterable of `tuple[Cell, Arguments]`): of one variant.
        data ([`RunData`]): its rows.
    """
    objective = {*DistillationObjective().by_name()}
    settings_of_run = {one.name for one in fields(SinKDConfig)}
    weights = {name: 0.0 for name in objective & settings_of_run if name.endswith("_weight")}
    found: dict[str, Cell] = {}
    for cell, (_, training_args, _) in cells:
        if not training_args.has_teacher:  # it learns from nothing else already
            continue
        settings = {name: value for name, value in cell.settings.items() if name not in objective}
        settings |= {"alpha": 0.0, **weights}
        labels = data.train["label"][:] if "label" in data.train.column_names else []
        if NO_LABEL in labels:
            settings |= {"labelled_rows_only": True, "unlabelled_ratio": None}
            if training_args.max_steps < 1:  # fewer rows: as many updates as with all of them, and not as many epochs
                batch = training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps
                settings["max_steps"] = math.ceil(math.ceil(len(labels) / batch) * training_args.num_train_epochs)
        varied = tuple(name for name in cell.varied if name not in objective)
        made = Cell(GOLD, settings, GOLD, varied)
        found.setdefault(made.folder, made)
    return list(found.values())


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
    for cell, (_, training_args, _) in cells:
        changes: dict[str, object] = {}
        if training_args.sinkhorn_weight > 0 and training_args.transport_scope != "sequence":
            changes["transport_scope"] = "sequence"
        if training_args.transported_weight > 0 and training_args.transported_coupling == "transport":
            changes["transported_coupling"] = "identity"
        if not changes:
            without.append(cell.variant)
            continue
        made = Cell(f"{CONTROL} of {cell.variant}", {**cell.settings, **changes}, CONTROL, cell.varied)
        found.setdefault(made.folder, made)
    if not found and without:
        return [], ["No cell has a transport term, so there is no identity control."]
    return list(found.values()), []


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
