"""Rows, a record and logs of a run, as a distillation leaves them."""

import json
import random
from dataclasses import replace
from pathlib import Path

from sinkd_llm.report.page import RunFiles
from sinkd_llm.report.predictions import EVALUATION, Predictions, write_predictions
from sinkd_llm.report.predictions import TEACHER as OF_TEACHER
from sinkd_llm.report.results import METRICS_FILE, ClassTable, ResultRow, RunRecord
from sinkd_llm.report.transport_plan import KeptPlan, PlanRow, write_plan

TEACHER = ResultRow("teacher", {"acc": 0.8, "acc_norm": 0.8}, 135_000_000, 0, 540_000_000, 200, 4.0)
BEFORE = ResultRow(
    "student before", {"acc": 0.5, "acc_norm": 0.5, "agreement": 0.6}, 65_000_000, 5_000_000, None, 200, 2.0
)
AFTER = ResultRow(
    "student after", {"acc": 0.72, "acc_norm": 0.7, "agreement": 0.9}, 65_000_000, 5_000_000, 260_000_000, 200, 2.0
)
ROWS = [TEACHER, BEFORE, AFTER]

RECORDS = [
    {"step": 10, "loss": 2.0, "ce": 1.0, "kl": 0.8, "sinkhorn": 0.9, "sinkhorn/diagonal_mass": 0.2},
    {"step": 20, "loss": 1.0, "ce": 0.5, "kl": 0.4, "sinkhorn": 0.5, "sinkhorn/diagonal_mass": 0.6},
    {"step": 20, "eval_acc": 0.72, "eval_agreement": 0.9},
]


def record(rows: list[ResultRow], command_line: str = "sinkd distill --task sst2") -> RunRecord:
    """Of a run that scored `rows`."""
    return RunRecord(
        command="distill",
        command_line=command_line,
        task="sst2",
        seed=0,
        finished="2026-01-01 00:00 UTC",
        device="2 CPU threads",
        peak_memory_bytes=3_200_000_000,
        evaluation="200 rows",
        training={"steps": 20, "resumed_at": 0, "seconds": 125.0, "loss": 1.0},
        rows=rows,
        settings={"alpha": 0.9},
        all_settings={"alpha": 0.9, "seed": 0},
        versions={"torch": "2.0"},
    )


def whole_run(classes: int = 3, rows: int = 60, hostile: bool = False) -> RunFiles:
    """All that a run can leave, of a task with so many classes; `hostile`: with texts that would be more than text."""
    draw = random.Random(0)
    bad = "<script>alert(1)</script>\x1b[31m\u202e" if hostile else ""
    names = [f"class {i} {bad}".strip() for i in range(classes)]
    ids, gold = [f"row-{i}" for i in range(rows)], [draw.randrange(classes) for _ in range(rows)]
    texts = [f"The text of row {i}, which says something about class {label}. {bad}" for i, label in enumerate(gold)]
    student, teacher = (_answers(draw, gold, classes, right) for right in (0.7, 0.85))
    answers = {
        name: Predictions(ids, gold, chosen, {"acc": 0.7}, choices=names, probabilities=sure, texts=texts)
        for name, (chosen, sure) in ((EVALUATION, student), (OF_TEACHER, teacher))
    }
    more = {"log_loss": 0.6, "brier": 0.31, "ece": 0.04, "ece_adaptive": 0.05}
    scored = [
        replace(
            row,
            metrics=row.metrics | more,
            intervals={"acc": (0.65, 0.78), "log_loss": (0.5, 0.7)},
            classes=_class_table(names, gold, chosen) if chosen else None,
            latency_ms_p50=4.2,
            latency_ms_p95=6.1,
            peak_memory_bytes=400_000_000,
        )
        for row, chosen in zip(ROWS, (teacher[0], None, student[0]), strict=True)
    ]
    layers = {"kept": {"layers": [0, 2]}, "of": {"layers": 3}, "in_words": "The student has the layers 0, 2 of 3."}
    sides = [PlanRow(ids[i], texts[i], names[gold[i]]) for i in range(min(16, rows))]
    masses = [[round(draw.random() / rows / len(sides), 6) for _ in sides] for _ in sides]
    plan = KeptPlan("sinkhorn", 20, masses, sides, sides, (rows, rows), True)
    whole = replace(record(scored), layers=layers)
    whole.training |= {"rows": 512, "labelled_rows": 64}
    return RunFiles(whole, RECORDS, answers, plan)


def _answers(draw: random.Random, gold: list[int], classes: int, right: float) -> tuple[list[int], list[list[float]]]:
    chosen = [label if draw.random() < right else draw.randrange(classes) for label in gold]
    sure = [0.5 + draw.random() / 2 for _ in gold]
    left = [(1 - p) / (classes - 1) for p in sure]
    return chosen, [
        [p if i == choice else rest for i in range(classes)]
        for p, rest, choice in zip(sure, left, chosen, strict=True)
    ]


def _class_table(names: list[str], gold: list[int], chosen: list[int]) -> ClassTable:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    labels = list(range(len(names)))
    precision, recall, f1, support = precision_recall_fscore_support(gold, chosen, labels=labels, zero_division=0)
    counts = confusion_matrix(gold, chosen, labels=labels)
    cells = [[i, j, int(counts[i, j])] for i in labels for j in labels if counts[i, j]]
    return ClassTable(names, precision.tolist(), recall.tolist(), f1.tolist(), support.tolist(), cells)


def write_run(folder: Path, files: RunFiles) -> None:
    """The files of a run, without a model."""
    folder.mkdir(parents=True, exist_ok=True)
    files.record.write(folder)
    (folder / METRICS_FILE).write_text("".join(json.dumps(one) + "\n" for one in files.logged))
    write_predictions(folder, files.answers)
    if files.plan is not None:
        write_plan(folder, files.plan)
