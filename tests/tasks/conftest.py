"""A task file in a folder of its own, from a few keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sinkd_llm.tasks import Task

BASE: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "validation": "validation.jsonl"}},
    "training_split": "train",
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{text}}\nA:",
    "doc_to_choice": ["no", "yes"],
    "doc_to_target": "label",
}


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes `name` with the base keys, changed by keyword; `None` drops a key."""

    def write(name: str = "mine.yaml", **changes: Any) -> Path:
        config = {k: v for k, v in {**BASE, **changes}.items() if v is not None}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_task(write_task: Callable[..., Path]) -> Callable[..., Task]:
    """The same, loaded."""
    return lambda **changes: Task(write_task(**changes))
