"""The runs of a comparison, each a process of its own: one that fails does not end the others."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

# Between two looks at the processes, in seconds.
_PAUSE = 0.2
_PACKAGE = Path(__file__).resolve().parents[2]
# Of what a failed process said, so many lines are kept.
KEPT_LINES = 12


class Process(Protocol):
    """What is needed of a process: `subprocess.Popen` has it."""

    def poll(self) -> int | None:
        """Its exit code, or `None` while it runs."""

    def terminate(self) -> None:
        """Asks it to end; a training run saves a checkpoint first."""


@dataclass(frozen=True)
class Command:
    """
    A command of `sinkd` to run.

    Attributes:
        argv (`list[str]`): its words.
        log (`Path`): the file that takes what it prints; its folder is made.
    """

    argv: list[str]
    log: Path


@dataclass
class Ended:
    """
    A command that has ended.

    Attributes:
        index (`int`): which of the commands.
        code (`int`): its exit code; minus the signal that killed it.
        seconds (`float`): how long it took.
        said (`list[str]`): its last lines.
    """

    index: int
    code: int
    seconds: float
    said: list[str] = field(default_factory=list)


def start_process(command: Command, environment: dict[str, str]) -> Process:
    """
    Starts `sinkd` with a command's words, in a process and a session of its own: Ctrl-C goes to the comparison, which
    passes it on. A file of the current folder named like a module, as `dis.py`, is no module of the process, unless it
    is one of this process too.
    """
    # A checkout that is not installed is found only by its place in the path, which -P takes away.
    by_folder = bool(sys.path) and Path(sys.path[0]).resolve() == _PACKAGE.parent
    with command.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *([] if by_folder else ["-P"]), "-m", "sinkd_llm", *command.argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )


Start = Callable[[Command, dict[str, str]], Process]


def run_commands(commands: Sequence[Command], jobs: int, start: Start = start_process) -> Iterator[Ended]:
    """
    Run commands, `jobs` at a time, and yield each when it has ended.

    When the caller is interrupted, those that run are asked to end, and are waited for.

    Args:
        commands (`Sequence[Command]`): in the order in which they are started.
        jobs (`int`): how many run together, 1 or more.
        start (`Callable`, *optional*): starts one; tests give another.
    """
    environment = dict(os.environ)
    if jobs > 1:  # threads of several processes on the same cores slow each other down
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    waiting = list(enumerate(commands))[::-1]
    running: list[tuple[int, Process, float]] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index, command = waiting.pop()
                command.log.parent.mkdir(parents=True, exist_ok=True)
                running.append((index, start(command, environment), time.monotonic()))
            ended = [entry for entry in running if entry[1].poll() is not None]
            for entry in ended:
                running.remove(entry)
                index, process, started = entry
                code = process.poll()
                assert code is not None
                yield Ended(index, code, time.monotonic() - started, last_lines(commands[index].log))
            if not ended:
                time.sleep(_PAUSE)
    finally:
        for _, process, _ in running:
            process.terminate()
        while any(process.poll() is None for _, process, _ in running):
            time.sleep(_PAUSE)


def last_lines(log: Path) -> list[str]:
    """The last lines of a log that hold text; of a line that was written over, as a progress bar is, its end."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.rstrip().rpartition("\r")[2] for line in text.split("\n"))
    return [line for line in lines if line.strip()][-KEPT_LINES:]
