"""Trainers of two short steps, one accumulation window by hand, and a task that only counts."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sinkd_llm import SinKDConfig, SinKDTrainer

ONLY_SINKD = {"alpha": 1.0, "divergence": "none", "sinkhorn_temperature": 0.3}


def short_config(folder: Path, **changes: Any) -> SinKDConfig:
    """Two updates on the CPU into `folder/out`, each logged, nothing saved or shown; `changes` are settings."""
    settings: dict[str, Any] = {
        **{"output_dir": str(folder / "out"), "max_steps": 2, "per_device_train_batch_size": 8},
        **{"learning_rate": 1e-2, "logging_steps": 1, "disable_tqdm": True, "save_strategy": "no"},
        **{"use_cpu": True, "report_to": "none"},
    }
    return SinKDConfig(**{**settings, **changes})


def changed_trainer(folder: Path, arguments: dict[str, Any], changes: dict[str, Any]) -> SinKDTrainer:
    """A trainer of two short steps; `changes` are arguments of its own or settings."""
    for name in ("model", "teacher_model", "processing_class", "train_dataset", "eval_dataset", "peft_config"):
        if name in changes:
            arguments[name] = changes.pop(name)
    return SinKDTrainer(args=short_config(folder, **changes), **arguments)


def gradients(trainer: SinKDTrainer, batches: list[dict[str, Any]]) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one accumulation window, through the trainer's own training step."""
    model = trainer.model
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = len(batches)
    count = trainer._get_num_items_in_batch(batches, torch.device("cpu"))
    loss = sum(float(trainer.training_step(model, batch, count)) for batch in batches)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


def microbatches(trainer: SinKDTrainer, sizes: list[int]) -> list[dict[str, Any]]:
    features, batches, start = list(trainer.train_dataset), [], 0
    for size in sizes:
        batches.append(trainer.data_collator(features[start : start + size]))
        start += size
    return batches


class AccuracyTask:
    """Stands for a task: accuracy is all that is asked of it."""

    output_type = "multiple_choice"
    config: ClassVar[dict[str, Any]] = {}
    choices = None
    metric_names = ("acc",)

    def as_scored(self, rows: Any) -> Any:
        return rows

    def compute_metrics(
        self, predictions: list[int], references: list[int], rows: Any = None, numbers: Any = None
    ) -> dict[str, float]:
        assert rows is not None
        assert numbers is None, "no head of one output is scored by accuracy"
        return {"acc": float(np.mean(np.equal(predictions, references)))}
