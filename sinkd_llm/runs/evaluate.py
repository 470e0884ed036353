"""Scoring models on a task, for `sinkd evaluate` and before and after training."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.environment import default_device
from sinkd_llm.errors import InputError
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.report.results import TEACHER, ResultRow
from sinkd_llm.runs.data import RunData, task_split
from sinkd_llm.runs.folder import weights_size_bytes
from sinkd_llm.terminal import progress, say

if TYPE_CHECKING:
    from datasets import Dataset

    from sinkd_llm.evaluation import TaskScore
    from sinkd_llm.tasks import Task
    from sinkd_llm.training.config import SinKDConfig
    from sinkd_llm.training.trainer import SinKDTrainer


@dataclass
class EvaluateResult:
    """What `sinkd evaluate` gives."""

    row: ResultRow
    score: "TaskScore"
    ids: list[str]


@termination_raises()
def run_evaluate(
    model_name_or_path: str,
    task: str,
    *,
    data_dir: str | None = None,
    split: str = "validation",
    max_eval_samples: int | None = None,
    batch_size: int = 32,
    max_length: int | None = 1024,
    apply_chat_template: bool = False,
    add_eos: bool | None = None,
    **loading: Any,
) -> EvaluateResult:
    """
    Score a model on a split of a task by ranking the answers, or by generating them.

    Args:
        model_name_or_path (`str`): a hub id, a folder, a GGUF file or a bundled name.
        task (`str`): a task's name or YAML file.
        data_dir, split, max_eval_samples: which rows.
        batch_size, max_length, apply_chat_template, add_eos: see [`evaluate_task`].
        loading: more keyword arguments of [`load_model`].
    """
    from sinkd_llm.evaluation import evaluate_task
    from sinkd_llm.models import count_parameters, load_model, load_tokenizer
    from sinkd_llm.tasks import load_task

    loaded_task = load_task(task)
    dataset = task_split(loaded_task, split, data_dir, max_eval_samples)
    say(f"Loading {model_name_or_path} …")
    tokenizer_keys = ("revision", "trust_remote_code")
    tokenizer = load_tokenizer(model_name_or_path, **{k: v for k, v in loading.items() if k in tokenizer_keys})
    model = load_model(model_name_or_path, **loading)
    if loading.get("quantization_config") is None:
        model.to(default_device())
    with progress(f"Scoring {len(dataset)} rows of {loaded_task.name}") as on_progress:
        score = evaluate_task(
            model,
            tokenizer,
            loaded_task,
            dataset,
            batch_size=batch_size,
            max_length=max_length,
            apply_chat_template=apply_chat_template,
            add_eos=add_eos,
            on_progress=on_progress,
        )
    row = ResultRow(
        name=Path(model_name_or_path).name or model_name_or_path,
        metrics=score.metrics,
        parameters=count_parameters(model)[0],
        size_bytes=source_size_bytes(model_name_or_path),
        num_examples=score.num_examples,
        seconds=score.seconds,
    )
    return EvaluateResult(row, score, list(dataset["id"]))


def source_size_bytes(name_or_path: str) -> int | None:
    """Bytes on disk of the weights behind a model name; `None` for the hub."""
    from sinkd_llm.models import resolve_model_source

    source = resolve_model_source(name_or_path)
    return weights_size_bytes(Path(source.path) / (source.gguf_file or ""))


def score_task(
    name: str, model: Any, tokenizer: Any, task: "Task", rows: "Dataset", args: "SinKDConfig"
) -> "TaskScore":
    """A model's score on a task's rows, as a training run takes it; `name` is what the progress line calls it."""
    from sinkd_llm.evaluation import evaluate_task
    from sinkd_llm.models.partitioning import on_device

    with progress(f"Scoring {len(rows)} rows: {name}") as on_progress, on_device(model, args.device):
        return evaluate_task(
            model,
            tokenizer,
            task,
            rows,
            batch_size=args.per_device_eval_batch_size,
            max_length=args.max_length,
            apply_chat_template=args.apply_chat_template,
            add_eos=args.add_eos,
            on_progress=on_progress,
            device=args.device,
            share=True,
        )


def score_record(row: ResultRow, data: RunData, predictions: list[Any]) -> dict[str, Any]:
    """What a teacher cache keeps of the teacher's score: see [`Scorer.recorded`]."""
    choices = predictions if compares_answers(data.task) else None
    return {"rows": _rows_hash(data), "predictions": choices, **asdict(row)}


def compares_answers(task: "Task | None") -> bool:
    """Whether student and teacher choose from the same answers; two in free text are hardly ever the same."""
    return task is not None and task.output_type != "generate_until"


def _rows_hash(data: RunData) -> str:
    digest = hashlib.blake2b(data.name.encode(), digest_size=16)
    columns = [c for c in ("id", "prompt", "completion") if c in data.evaluation.column_names]  # type: ignore[union-attr]
    for row in data.evaluation.select_columns(columns):  # type: ignore[union-attr]
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


class Scorer:
    """Scores models on the evaluation rows: as their task asks, or else what the trainer reports."""

    def __init__(self, trainer: "SinKDTrainer", data: RunData) -> None:
        self.trainer, self.data = trainer, data
        self.teacher_predictions: list[Any] | None = None

    def recorded(self, record: dict[str, Any] | None) -> ResultRow | None:
        """
        The teacher's row, if it was scored on these very rows when it was cached. The students that are scored after
        it are compared with what it predicted then.
        """
        if record is None or self.data.evaluation is None or record["rows"] != _rows_hash(self.data):
            return None
        predictions = record.get("predictions")
        if predictions is not None and len(predictions) != len(self.data.evaluation):
            raise InputError(
                f"the teacher cache records {len(predictions)} predictions of {len(self.data.evaluation)} rows: its "
                "manifest.json is damaged; write the cache again with --overwrite."
            )
        self.teacher_predictions = predictions
        known = ResultRow.__dataclass_fields__
        return ResultRow(**{name: value for name, value in record.items() if name in known})

    def row(self, name: str, model: Any, size_bytes: int | None = None) -> ResultRow:
        from sinkd_llm.models import count_parameters

        row = ResultRow(name, {}, *count_parameters(model), size_bytes)
        rows = self.data.evaluation
        if rows is None:
            return row
        if self.data.task is None:
            if name != TEACHER:
                say(f"Scoring {len(rows)} rows: {name} …")
                metrics = self.trainer.evaluate()
                timing = ("runtime", "samples_per_second", "steps_per_second")
                kept = {k.removeprefix("eval_"): v for k, v in metrics.items() if k != "epoch"}
                row.metrics = {k: v for k, v in kept.items() if k not in timing}
                row.num_examples, row.seconds = len(rows), metrics.get("eval_runtime", 0.0)
            return row
        score = score_task(name, model, self.trainer.processing_class, self.data.task, rows, self.trainer.args)
        row.metrics = dict(score.metrics)
        row.num_examples, row.seconds = score.num_examples, score.seconds
        if not compares_answers(self.data.task):
            return row
        if name == TEACHER:
            self.teacher_predictions = score.predictions
        elif self.teacher_predictions is not None:
            pairs = zip(score.predictions, self.teacher_predictions, strict=True)
            row.metrics["agreement"] = sum(a == b for a, b in pairs) / len(rows)
        return row
