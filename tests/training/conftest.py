"""What the tests of a training step share: a tiny student with a tiny teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm import SinKDTrainer
from tests.support.rows import opinions
from tests.support.trainers import changed_trainer


@pytest.fixture
def train(tmp_path: Path, tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., SinKDTrainer]:
    """Builds a trainer: a two-layer student, a four-layer teacher of another width."""

    def build(teacher: bool = True, **changes: Any) -> SinKDTrainer:
        arguments: dict[str, Any] = {
            "model": changes.pop("model", None) or tiny_causal_lm(seed=1),
            "teacher_model": tiny_causal_lm(seed=2, layers=4, hidden=48) if teacher else None,
            "processing_class": tiny_tokenizer,
            "train_dataset": opinions(),
            "eval_dataset": opinions(8, 100),
        }
        for name in ("compute_metrics", "callbacks", "data_collator"):
            if name in changes:
                arguments[name] = changes.pop(name)
        return changed_trainer(tmp_path, arguments, changes)

    return build


@pytest.fixture
def train_and_save(train: Callable[..., SinKDTrainer]) -> Callable[..., SinKDTrainer]:
    """The same for four updates, saved after each."""

    def build(teacher: bool = True, **changes: Any) -> SinKDTrainer:
        return train(teacher, **{"max_steps": 4, "save_strategy": "steps", "save_steps": 1, **changes})

    return build
