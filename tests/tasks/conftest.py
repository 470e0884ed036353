"""A task file in a folder of its own, from a few keys."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sinkd_llm.tasks import Task
from tests.support import task_files

QUESTION = {"doc_to_text": "Q: {{text}}\nA:", "doc_to_choice": ["no", "yes"], "metric_list": None}


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes `name`, a task of questions, with keys changed by keyword; `None` drops a key."""
    return lambda name="mine.yaml", **changes: task_files.write_task(tmp_path / name, **{**QUESTION, **changes})


@pytest.fixture
def make_task(write_task: Callable[..., Path]) -> Callable[..., Task]:
    """The same, loaded."""
    return lambda **changes: Task(write_task(**changes))
