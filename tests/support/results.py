"""Rows, a record and logs of a run, as a distillation leaves them."""

from sinkd_llm.report.results import ResultRow, RunRecord

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
