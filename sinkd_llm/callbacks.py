"""Trainer callbacks: progress on the terminal, `metrics.jsonl`, and a Ctrl-C that loses nothing."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sinkd_llm.files import write_whole
from sinkd_llm.report import LOSS_TERMS, format_duration, read_records
from sinkd_llm.terminal import say

Write = Callable[[str], None]


def describe_logs(logs: Mapping[str, Any]) -> str:
    """The loss terms, or the evaluation scores, of a log record in one short line."""
    shown = {name: logs[name] for name in LOSS_TERMS if name in logs}
    if not shown:
        hidden = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
        shown = {k: v for k, v in logs.items() if k.startswith("eval_") and k not in hidden}
    return "  ".join(f"{name} {value:.4g}" for name, value in shown.items() if isinstance(value, int | float))


class RichProgressCallback(TrainerCallback):
    """
    A progress bar with the step, the loss terms and the time left, in place of Transformers' own.

    Without a terminal it prints one plain line per log record. Only the first process prints.

    Args:
        interactive (`bool`, *optional*): draw a bar. Default: if stderr is a terminal.
        write (`Callable[[str], None]`, *optional*): where plain lines go. Default: stderr.
    """

    def __init__(self, interactive: bool | None = None, write: Write = say) -> None:
        self.interactive = sys.stderr.isatty() if interactive is None else interactive
        self.write = write
        self._progress: Any = None
        self._task: Any = None
        self._eval_task: Any = None
        self._started = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started, self._first_step = time.monotonic(), state.global_step
        if not (state.is_world_process_zero and self.interactive):
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[logs]}"),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("training", total=state.max_steps, completed=state.global_step, logs="")
        self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._progress is None:
            return
        if self._eval_task is None:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self._eval_task = self._progress.add_task("evaluating", total=total, logs="")
        self._progress.advance(self._eval_task)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._progress is not None and self._eval_task is not None:
            self._progress.remove_task(self._eval_task)
            self._eval_task = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        text = describe_logs(logs or {})
        if not text or not state.is_world_process_zero:
            return
        if self._progress is None:
            self.write(f"step {state.global_step}/{state.max_steps}  {text}{self._time_left(state)}")
        elif "loss" in (logs or {}):
            self._progress.update(self._task, logs=text)
        else:
            self._progress.console.print(f"step {state.global_step}  {text}", highlight=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back; called at the end of training and again after an exception."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._eval_task = None

    def _time_left(self, state: TrainerState) -> str:
        done = state.global_step - self._first_step
        left = state.max_steps - state.global_step
        if done <= 0 or left <= 0:
            return ""
        return f"  {format_duration((time.monotonic() - self._started) / done * left)} left"


class MetricsFileCallback(TrainerCallback):
    """
    Appends every log record to a JSON-lines file, with its step.

    When training begins at a later step (a resumed run), the records after that step, which the
    interrupted run wrote past its checkpoint, are dropped first: no step appears twice.

    Args:
        path (`str` or `Path`): the file; its folder is made.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # `train_runtime` marks the closing record of a run, here of the part before the resumption.
        kept = [
            record
            for record in read_records(self.path)
            if record.get("step", 0) <= state.global_step and "train_runtime" not in record
        ]
        write_whole(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _any_process(flag: bool, device: Any) -> bool:
    """Whether `flag` is set in one of the processes: they stop after the same step, or wait for each other forever."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag
    flags = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags)


class InterruptCallback(TrainerCallback):
    """
    Makes Ctrl-C save before it stops.

    The first Ctrl-C lets the running step finish, saves a checkpoint, stops training and prints
    `resume_command`; the second stops at once. The handler that was there before comes back when
    training ends. Outside the main thread, where Python allows no handler, it does nothing.

    Args:
        resume_command (`str`): the command line that goes on from the checkpoint.
        write (`Callable[[str], None]`, *optional*): where messages go. Default: stderr.

    Attributes:
        interrupted (`bool`): whether training was stopped this way.
    """

    def __init__(self, resume_command: str, write: Write = say) -> None:
        self.resume_command = resume_command
        self.write = write
        self.interrupted = False
        self._requested = False
        self._previous: Any = None
        self._installed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._requested:
            self.restore()
            raise KeyboardInterrupt("stopped at once, without saving")
        self._requested = True
        self.write("Ctrl-C: finishing this step, then saving. Press it again to stop at once.")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # The last step needs no stopping: training is over, and the model is saved right after it.
        if _any_process(self._requested, args.device) and state.global_step < state.max_steps:
            self.interrupted = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        if not self.interrupted or not state.is_world_process_zero:
            return
        saved = f"Saved {args.output_dir}/checkpoint-{state.global_step}"
        if args.save_only_model:
            self.write(f"{saved} (model only: save_only_model is on, so it cannot be resumed).")
        else:
            self.write(f"{saved}. To go on from there:\n  {self.resume_command}")

    def restore(self) -> None:
        """Put the previous handler back; called at the end of training and after an exception."""
        if self._installed:
            signal.signal(signal.SIGINT, self._previous)
            self._installed = False
