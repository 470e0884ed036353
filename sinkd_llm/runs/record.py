"""What is recorded of a finished run in its folder, and the pages that are made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkd_llm.environment import describe_device, peak_memory_bytes, versions
from sinkd_llm.report.predictions import Predictions, write_predictions
from sinkd_llm.report.results import ResultRow, RunRecord
from sinkd_llm.report.transport_plan import write_plan
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.reporting import write_run_pages
from sinkd_llm.runs.unseen_rows import write_facts
from sinkd_llm.secrets import recordable, recordable_command
from sinkd_llm.tasks.unlabelled import without_label

if TYPE_CHECKING:
    from trl import ModelConfig

    from sinkd_llm.training.config import SinKDConfig
    from sinkd_llm.training.trainer import SinKDTrainer

# Follows from other settings or from the machine, or says nothing about the result.
_DERIVED = ("do_eval", "dataloader_pin_memory", "overwrite_output_dir", "dataset_train_split", "dataset_test_split")


def write_records(
    output_dir: Path,
    command: str,
    argv: Sequence[str] | None,
    data: RunData,
    rows: list[ResultRow],
    answers: Mapping[str, Predictions],
    training: dict[str, float],
    arguments: "tuple[TaskArguments, SinKDConfig, ModelConfig]",
    trainer: "SinKDTrainer",
) -> None:
    """
    Write what a finished run leaves beside its model: what the student answers, predictions, a transport plan,
    `results.json` (scores, time, memory, settings, versions, the command line, the student's layers), its page and its
    model card.
    """
    from sinkd_llm.models.origin import noted_layers
    from sinkd_llm.models.wrappers import unwrap

    write_facts(output_dir, data, trainer.args)
    write_predictions(output_dir, answers)
    if trainer.last_plan is not None:
        write_plan(output_dir, trainer.last_plan.kept(data.train))
    training_args, layers = arguments[1], noted_layers(unwrap(trainer.model))
    labelled = len(data.train) - int(without_label(data.train).sum())
    everything = every_setting(arguments)
    # Against constructed defaults, not the defaults of the fields: TrainingArguments fills many in by itself.
    defaults = every_setting((None, type(training_args)(output_dir=training_args.output_dir), type(arguments[2])()))
    defaults |= {one.name: one.default for one in fields(type(arguments[0]))}
    objective = training_args.objective().by_name() if command == "distill" else {}
    changed = {k: v for k, v in everything.items() if v is not None and v != defaults.get(k) and k not in _DERIVED}
    count = len(data.evaluation) if data.evaluation is not None else 0
    RunRecord(
        command=command,
        command_line=recordable_command(["sinkd", command, *argv]) if argv is not None else "Python",
        task=recordable(data.name),
        seed=training_args.seed,
        finished=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        device=describe_device(training_args.device),
        peak_memory_bytes=peak_memory_bytes(),
        evaluation=f"{count} rows" + (f"; {how_answered(trainer.model)}" if data.task is not None else ""),
        training={**training, "rows": len(data.train), "labelled_rows": labelled},
        rows=rows,
        settings=recordable(dict(sorted((changed | objective).items()))),
        all_settings=recordable(dict(sorted(everything.items()))),
        versions=versions(),
        layers=layers.as_dict() if layers is not None else None,
    ).write(output_dir)
    write_run_pages(output_dir)


def how_answered(model: Any) -> str:
    """How the answers of a model are chosen when it is scored, in words."""
    from sinkd_llm.models.kinds import kind_of, output_size

    if not kind_of(model).scores_classes:
        return "answers ranked by summed log-likelihood; acc_norm: by log-likelihood per character"
    if output_size(model) == 1:
        return "the answer is the one that is nearest to the predicted number; acc_norm: accuracy"
    return "the answer is the class of the highest probability; acc_norm: accuracy"


def every_setting(arguments: "tuple[TaskArguments | None, SinKDConfig, ModelConfig]") -> dict[str, Any]:
    """All settings of a run, by name."""
    task_args, training_args, model_args = arguments
    task_settings = asdict(task_args) if task_args is not None else {}
    return {**task_settings, **training_args.to_dict(), **asdict(model_args)}
