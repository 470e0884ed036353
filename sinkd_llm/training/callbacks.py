"""Trainer callbacks: progress on the terminal, `metrics.jsonl`, and a Ctrl-C that loses nothing."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from sinkd_llm.interrupts import INTERRUPTED_CODE, Interrupted, leave_terminal, terminating_signals
from sinkd_llm.report.results import append_record, begin_records
from sinkd_llm.report.terms import LOSS
from sinkd_llm.terminal import say
from sinkd_llm.units import format_duration

Write = Callable[[str], None]


def describe_logs(logs: Mapping[str, Any]) -> str:
    """The loss terms, or the evaluation scores, of a log record in one short line."""
    shown = {name: logs[name] for name in LOSS.labels if name in logs}
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
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.interactive = on_terminal if interactive is None else interactive
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
        if state.is_world_process_zero:
            begin_records(self.path, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and state.is_world_process_zero:
            append_record(self.path, state.global_step, logs)


def _any_process(code: int, device: Any) -> int:
    """The largest `code` of all processes: they stop after the same step, or wait for each other forever."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return code
    codes = torch.tensor([code], device=device)
    torch.distributed.all_reduce(codes, op=torch.distributed.ReduceOp.MAX)
    return int(codes)


class InterruptCallback(TrainerCallback):
    """
    Makes Ctrl-C, SIGTERM, which schedulers send before they kill, and SIGHUP, of a terminal that is gone, save before
    they stop.

    The first one lets the running step finish, saves a checkpoint, stops training and prints `resume_command`. An
    evaluation ends where it is, unless several processes share it.
    A second Ctrl-C stops at once; a second SIGTERM does not: a launcher and its scheduler may both send it. Where
    SIGHUP is ignored, as under `nohup`, the run goes on. The handlers that were there before come back when training
    ends. Outside the main thread, where Python allows no handler, it does nothing.

    Args:
        resume_command (`str`): the command line that goes on from the checkpoint.
        write (`Callable[[str], None]`, *optional*): where messages go. Default: stderr.
        save (`Callable[[], None]`, *optional*): writes a checkpoint of the current step, for an evaluation that is
            stopped.

    Attributes:
        interrupted (`bool`): whether training was stopped this way.
        exit_code (`int`): what the command should end with then: 130 after Ctrl-C, 143 after SIGTERM, 129
            after SIGHUP.
    """

    def __init__(self, resume_command: str, write: Write = say, save: Callable[[], None] | None = None) -> None:
        self.resume_command = resume_command
        self.write = write
        self.save = save
        self.interrupted = False
        self.exit_code = INTERRUPTED_CODE
        self._requested = 0  # the exit code of what was asked for
        self._previous: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signals = (signal.SIGINT, *terminating_signals())
            self._previous = {number: signal.signal(number, self._handle) for number in signals}

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGINT:
            leave_terminal(signum)
            if not self._requested:
                self._requested = 128 + signum
                self.write(f"{signal.Signals(signum).name}: finishing this step, then saving.")
            return
        if self._requested:
            self.restore()
            raise KeyboardInterrupt("stopped at once, without saving")
        self._requested = INTERRUPTED_CODE
        self.write("Ctrl-C: finishing this step, then saving. Press it again to stop at once.")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # The last step needs no stopping: training is over, and the model is saved right after it.
        if state.global_step < state.max_steps and self._is_asked(args):
            control.should_save = True
            control.should_training_stop = True
            if args.save_strategy == SaveStrategy.BEST:
                # The score of an evaluation would say whether to save. Otherwise one that is due begins, for it draws
                # random numbers, and the resumed run has to draw the numbers of a run that was not stopped.
                control.should_evaluate = False
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        training = 0 < state.global_step < state.max_steps and bool(self._previous)
        if training and self._is_asked(args):  # while it was running
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        alone = args.world_size == 1 and self.save is not None
        if not (alone and self._requested and self._previous and 0 < state.global_step < state.max_steps):
            return
        self.interrupted, self.exit_code = True, self._requested
        assert self.save is not None
        self.save()
        self._say_where(args, state)
        self.restore()
        raise Interrupted("training was stopped; nothing is lost", self.exit_code)

    def _is_asked(self, args: TrainingArguments) -> bool:
        code = _any_process(self._requested, args.device)
        if code:
            self.interrupted = True
            self.exit_code = code
        return bool(code)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore()
        if self.interrupted and state.is_world_process_zero:
            self._say_where(args, state)

    def _say_where(self, args: TrainingArguments, state: TrainerState) -> None:
        saved = f"Saved {args.output_dir}/checkpoint-{state.global_step}"
        if args.save_only_model:
            self.write(f"{saved} (model only: save_only_model is on, so it cannot be resumed).")
        else:
            self.write(f"{saved}. To go on from there:\n  {self.resume_command}")

    def restore(self) -> None:
        """Put the previous handlers back; called at the end of training and after an exception."""
        for signum, previous in self._previous.items():
            signal.signal(signum, previous)
        self._previous = {}
