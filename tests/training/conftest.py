"""What the tests of a training step share: a tiny student with a tiny teacher."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm import SinKDTrainer
from tests.training.test_trainer import changed_trainer, rows


@pytest.fixture
def train(tmp_path: Path, tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., SinKDTrainer]:
    """Builds a trainer of a two-layer student with a teacher, that saves after every update."""

    def build(teacher: bool = True, **changes: Any) -> SinKDTrainer:
        arguments: dict[str, Any] = {
            "model": changes.pop("model", None) or tiny_causal_lm(seed=1),
            "teacher_model": tiny_causal_lm(seed=2, layers=4, hidden=48) if teacher else None,
            "processing_class": tiny_tokenizer,
            "train_dataset": rows(),
            "eval_dataset": rows(8, 100),
        }
        for name in ("compute_metrics", "callbacks", "data_collator"):
            if name in changes:
                arguments[name] = changes.pop(name)
        settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, **changes}
        return changed_trainer(tmp_path, arguments, settings)

    return build
