"""`evaluate`: load a model and score it on a task."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.environment import default_device
from sinkd_llm.interrupts import termination_raises
from sinkd_llm.report.results import ResultRow
from sinkd_llm.runs.folder import source_size_bytes
from sinkd_llm.runs.task_rows import task_split
from sinkd_llm.terminal import progress, say

if TYPE_CHECKING:
    from sinkd_llm.evaluation import TaskScore


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
