"""A task of the user's own: its file, and its rows beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

TASK: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "validation": "validation.jsonl"}},
    "training_split": "train",
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "Review: {{text}}\nSentiment:",
    "doc_to_choice": ["negative", "positive"],
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}],
}


def write_task(file: Path, rows: Sequence[dict[str, Any]] = (), **changes: Any) -> Path:
    """Writes `TASK` with some keys changed (`None` drops one), and the same `rows` for each of its splits."""
    task = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in set(task["dataset_kwargs"]["data_files"].values()) if rows else ():
        (file.parent / name).write_text(lines, encoding="utf-8")
    return file
