"""`--dry_run`: what a training run would read and take, found out without writing anything."""

import copy
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback

from sinkd_llm.environment import peak_memory_bytes
from sinkd_llm.inputs.over_choices import NO_LABEL
from sinkd_llm.memory import NotCountedError
from sinkd_llm.objectives import GROUP
from sinkd_llm.runs.arguments import TaskArguments
from sinkd_llm.runs.asking import cache_answers, check_use
from sinkd_llm.runs.data import RunData
from sinkd_llm.runs.folder import source_size_bytes
from sinkd_llm.runs.memory import estimate_memory
from sinkd_llm.runs.training import PreparedRun, check_distill, check_finetune, load_trainer, prepare_run
from sinkd_llm.terminal import say
from sinkd_llm.training.grouped_rows import group_values, numbers_of, packed_sizes
from sinkd_llm.training.labelled_mix import MixedRows
from sinkd_llm.training.labels_beside_groups import room_for_groups
from sinkd_llm.units import format_bytes, format_duration

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from sinkd_llm.training.config import SinKDConfig

# Rows that are shown.
_SHOWN = 3
# Updates that are measured: the first one is slower than all others, and does not count.
_MEASURED = 4
# No further update is begun after so long.
_MOST_SECONDS = 20.0
# Weights of student and teacher together that are loaded in seconds; larger ones are left on the disk.
_CHEAP_BYTES = 2 * 10**9


@dataclass(frozen=True)
class Rehearsal:
    """
    What a run would do.

    Attributes:
        command (`str`): `"finetune"` or `"distill"`.
        examples (`list[dict]`): the first rows to train on, as they are rendered.
        lines (`dict[str, str]`): a name to what was found, in words.
        updates (`int`): of the whole run.
        seconds (`float`, *optional*): of an update, where it was measured.
        classifies (`bool`): whether the model to train has a classification head, which reads no prompt.
    """

    command: str
    examples: list[dict[str, Any]]
    lines: dict[str, str]
    updates: int
    seconds: float | None
    classifies: bool = False


def rehearse(
    command: str,
    task_args: TaskArguments,
    training_args: "SinKDConfig",
    model_args: "ModelConfig",
    *,
    processes: int = 1,
    argv: Sequence[str] | None = None,
) -> Rehearsal:
    """
    Check a run as far as that goes without starting it. Neither `output_dir` nor anything else is written.

    Where the models are small and on this disk, some updates are done on some of the rows and thrown away, and the
    time of the run is predicted from them. A server is not asked.

    Args:
        command (`str`): `"finetune"` or `"distill"`.
        task_args, training_args, model_args: as in [`run_distill`].
        processes (`int`, *optional*, defaults to `1`): of the run, which share its rows.
        argv (`Sequence[str]`, *optional*): the flags this came from, which name the recipe.

    Raises:
        InputError: for what the run itself would refuse before it trains.
    """
    if command == "distill":
        check_distill(training_args, model_args)
    else:
        check_finetune(training_args, model_args, task_args)
    run = prepare_run(command, task_args, training_args, model_args, argv)
    if command == "distill":
        check_use(run.data, training_args)
    updates, exactly = updates_of(run.data, training_args, processes)
    try:
        found = estimate_memory(task_args, copy.copy(training_args), copy.copy(model_args), run.data)
        device = found.device("none", 1, checkpointing=found.checkpointing)
        memory = f"{format_bytes(device.total)} on one device, estimated from the model's shapes ({found.batch})"
    except NotCountedError:
        memory = ""
    seconds, how = _measured(run, training_args, model_args)
    if not memory:
        memory = (
            f"{format_bytes(peak_memory_bytes())}, the most that this process held in the measured updates"
            if seconds is not None
            else "not known: answer choices are compared, which the estimate does not count"
        )
    predicted = how
    if seconds is not None:
        predicted = f"about {format_duration(seconds * updates)} for the training alone: {how}"
    rows = run.data.train
    lines = {
        "data": _rows_in_words(run.data),
        "updates": f"{'' if exactly else 'about '}{updates:,}, each of {_rows_of_update(training_args, processes)}",
        "memory": memory,
        "time": predicted,
        "output": f"{run.output_dir} (not made)" if not run.output_dir.exists() else str(run.output_dir),
    }
    shown = [rows[i] for i in range(min(_SHOWN, len(rows)))]
    return Rehearsal(command, shown, lines, updates, seconds, _classifies(run.data, training_args, model_args))


def _classifies(data: RunData, args: "SinKDConfig", model_args: "ModelConfig") -> bool:
    """Whether the student has a classification head; one that is cut from a teacher has the teacher's."""
    from sinkd_llm.inputs.answer_choices import class_names
    from sinkd_llm.models.blueprint import blueprint
    from sinkd_llm.models.kinds import kind_of

    name, revision, kind = model_args.model_name_or_path, model_args.model_revision, args.model_kind
    if name is None:
        name, revision, kind = args.teacher_model_name_or_path, args.teacher_model_revision, None
    if name is None or "choices" not in data.train.column_names:
        return False
    model = blueprint(
        name,
        revision=revision or "main",
        trust_remote_code=args.trust_remote_code,
        kind=kind,
        labels=class_names(data.train),
    )
    return kind_of(model).scores_classes


def _rows_in_words(data: RunData) -> str:
    labelled = _labelled(data.train)
    words = f"{len(data.train):,} rows to train on"
    if not labelled.all():
        words += f" ({int(labelled.sum()):,} with a label, {int((~labelled).sum()):,} without)"
    return f"{words}, {len(data.evaluation) if data.evaluation is not None else 0:,} to evaluate on"


def _labelled(rows: Any) -> Any:
    """Of each row, whether it has a label; rows without choices have their completion."""
    if "label" not in rows.column_names:
        return np.ones(len(rows), dtype=bool)
    return np.asarray([label != NO_LABEL for label in rows["label"][:]])


def _rows_of_update(args: "SinKDConfig", processes: int) -> str:
    steps = args.gradient_accumulation_steps
    rows = args.per_device_train_batch_size * steps * processes
    parts = [f"{steps} micro-batches"] * (steps > 1) + [f"{processes} processes"] * (processes > 1)
    return f"{rows} rows" + (f" ({', '.join(parts)} of {args.per_device_train_batch_size})" if parts else "")


def updates_of(data: RunData, args: "SinKDConfig", processes: int) -> tuple[int, bool]:
    """
    The updates of a run, and whether that is exact: whole groups of rows fill batches unevenly, and how they do is not
    known where the groups are the teacher's alone.

    Args:
        data ([`RunData`]): its rows.
        args ([`SinKDConfig`]): its settings.
        processes (`int`): that share the rows.
    """
    if args.max_steps > 0:
        return args.max_steps, True
    batch, rows, labelled = args.per_device_train_batch_size * processes, len(data.train), _labelled(data.train)
    if args.unlabelled_ratio is not None and not labelled.all():
        rows = len(MixedRows(labelled, None, batch, args.unlabelled_ratio, args.sample_seed))
    batches = rows // batch if args.dataloader_drop_last else math.ceil(rows / batch)
    packed = _batches_of_groups(data.train, args) if args.transport_scope == GROUP else None
    if packed is not None:
        batches = math.ceil(packed / processes)
    each = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return math.ceil(args.num_train_epochs * each), args.transport_scope != GROUP or packed is not None


def _batches_of_groups(rows: "Dataset", args: "SinKDConfig") -> int | None:
    """Into how many batches whole groups are packed; `None` where no column has them, or one is too large."""
    if args.group_column is None or args.group_column not in rows.column_names:
        return None
    groups, room = numbers_of(group_values(rows, args.group_column)), room_for_groups(args)
    sizes, counts = np.unique(np.unique(groups, return_counts=True)[1], return_counts=True)
    if not len(sizes) or sizes[-1] > room:
        return None
    return len(packed_sizes(dict(zip(sizes.tolist(), counts.tolist(), strict=True)), room))


class _Clock(TrainerCallback):
    """When each update ended; no further one is begun after some time."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.began = time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.ends:
            self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())
        control.should_training_stop = self.ends[-1] - self.began > _MOST_SECONDS

    @property
    def seconds(self) -> float:
        if len(self.ends) == 1:
            return self.ends[0] - self.began
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def _measured(run: PreparedRun, args: "SinKDConfig", model_args: "ModelConfig") -> tuple[float | None, str]:
    """Seconds of an update, and how they are known or why they are not."""
    if args.teacher_url is not None and args.teacher_cache is None:
        return None, "not measured: the server of the teacher is not asked for a rehearsal"
    names = {model_args.model_name_or_path}
    names |= set() if args.teacher_cache is not None and None not in names else {args.teacher_model_name_or_path}
    sizes = [source_size_bytes(name) for name in names if name is not None]
    if any(size is None for size in sizes):
        return None, "not measured: a model is on the hub, and nothing is downloaded for a rehearsal"
    if (total := sum(size or 0 for size in sizes)) > _CHEAP_BYTES:
        return None, (
            f"not measured: the weights are {format_bytes(total)}, which only the run itself loads; --max_steps 5 "
            "with an --output_dir of its own measures it"
        )
    say("Measuring some updates, which are thrown away …")
    with tempfile.TemporaryDirectory() as folder:
        return _measured_in(Path(folder), run, args, model_args)


def _measured_in(
    folder: Path, run: PreparedRun, args: "SinKDConfig", model_args: "ModelConfig"
) -> tuple[float | None, str]:
    tried, data = copy.copy(args), run.data
    changes: Mapping[str, Any] = {
        "output_dir": str(folder / "run"),
        "max_steps": _MEASURED,
        "logging_steps": _MEASURED + 1,
        "report_to": [],
        **{"save_strategy": "no", "eval_strategy": "no", "resume_from_checkpoint": None},
        **{"push_to_hub": False, "eval_on_start": False, "load_best_model_at_end": False},
        "metric_for_best_model": None,
    }
    for name, value in changes.items():
        setattr(tried, name, value)
    if args.teacher_file is not None and args.teacher_cache is None:
        cache_answers(folder / "answers", data, tried)
        tried.teacher_cache = str(folder / "answers")
    # Micro-batches that share no transport problem take as long as one after the other.
    repeated = 1 if args.transport_accumulation else args.gradient_accumulation_steps
    if not args.transport_accumulation:
        tried.gradient_accumulation_steps = 1
    rows = data.train
    if args.transport_scope != GROUP:  # whose rows belong together
        micro = args.per_device_train_batch_size * tried.gradient_accumulation_steps
        rows = rows.select(_spread(_labelled(rows), micro * _MEASURED))
    few = RunData(data.name, data.task, rows, None, data.asked, None, data.arguments)
    trainer = load_trainer(PreparedRun(run.command, folder / "run", None, few, ""), tried, copy.copy(model_args))
    clock = _Clock()
    trainer.add_callback(clock)
    trainer.train()
    seconds = clock.seconds * repeated
    counted = max(len(clock.ends) - 1, 1)
    return seconds, f"{seconds:.2g} s an update, measured here over {counted} of them on {args.device.type}"


def _spread(labelled: Any, count: int) -> list[int]:
    """So many rows from all over the data, some with a label and some without if there are both."""
    kept: list[int] = []
    sorts = [indices for indices in (np.flatnonzero(labelled), np.flatnonzero(~labelled)) if len(indices)]
    for indices in sorts:
        most = max(round(count * len(indices) / len(labelled)), count // (2 * _MEASURED), 1)
        kept += indices[np.unique(np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int))].tolist()
    return sorted(kept)
