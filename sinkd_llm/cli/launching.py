"""`--accelerate_config`: a training command that starts itself in several processes."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.cli.recipe_file import read_config
from sinkd_llm.cli.shipped import shipped_files
from sinkd_llm.errors import InputError, first_line, nearest, shown
from sinkd_llm.interrupts import leave_terminal, terminating_signals
from sinkd_llm.quiet import hide_failures_of_torchrun
from sinkd_llm.training.settings.rules import RANGES

FOLDER = "ds_configs"


def launch(command: str, argv: Sequence[str]) -> int | None:
    """
    Runs `sinkd <command> <argv>` in several processes if `argv`, or its `--config` file, asks for it.

    Returns:
        `int` or `None`: the exit code of the first process that failed, or 0; `None` if nothing was asked for, if
        it is a `--dry_run`, or if this is one of the processes of a launch already.

    Raises:
        InputError: if there is no such configuration, or nothing says how many processes.
    """
    if "LOCAL_RANK" in os.environ or {"--help", "-h", "--help_all"} & set(argv):
        return None
    config, number, dry = _asked(argv)
    if dry:
        return None
    if config is None:
        if number is not None:
            raise InputError(
                "--num_processes needs --accelerate_config, which says how the processes share the work: "
                f"{', '.join(config_names())}."
            )
        return None
    return _launch(find_config(config), number, [command, *argv])


def _asked(argv: Sequence[str]) -> tuple[str | None, int | None, bool]:
    """`accelerate_config`, `num_processes` and `dry_run`, read without torch: a launcher need not wait for it."""
    parser = CommandParser(add_help=False)
    parser.add_argument("--config")
    for name in ("accelerate_config", "num_processes"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name)
    parser.add_argument("--dry_run", "--dry-run", dest="dry_run", nargs="?", const="true")
    try:
        known, _ = parser.parse_known_args(list(argv))
    except InputError:  # a flag without its value: the command's own parser says it better
        return None, None, False
    values = read_config(known.config) if known.config else {}
    config = known.accelerate_config or values.get("accelerate_config")
    dry = str(known.dry_run if known.dry_run is not None else values.get("dry_run")).lower() in ("true", "yes", "1")
    number = known.num_processes if known.num_processes is not None else values.get("num_processes")
    if number is None:
        return None if config is None else str(config), None, dry
    try:
        processes = int(str(number))
    except ValueError:
        processes = 0
    if RANGES["num_processes"].refusal(processes) is not None:
        raise InputError(f"num_processes is {shown(number)}; {RANGES['num_processes'].in_words()}.")
    return None if config is None else str(config), processes, dry


def config_files() -> dict[str, Path]:
    """The accelerate configurations of `ds_configs/`, by name."""
    return shipped_files(FOLDER)


def config_names() -> list[str]:
    """Names that `--accelerate_config` knows."""
    return sorted(config_files())


def find_config(name: str) -> Path:
    """
    The accelerate configuration that a name or a path means.

    Raises:
        InputError: if there is none.
    """
    files = config_files()
    if name in files:
        return files[name]
    path = Path(name).expanduser()
    if path.is_file():
        return path
    raise InputError(
        f"there is no accelerate configuration {shown(name)}.{nearest(name, list(files), 0.6)} "
        f"Give one of {', '.join(files)}, or the path of a file that `accelerate config` wrote."
    )


def _launch(config: Path, num_processes: int | None, words: list[str]) -> int:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        settings: Any = load_config_from_file(str(config))
    except Exception as error:  # accelerate checks little: a broken file fails in many ways
        raise InputError(f"{config} is not an accelerate configuration ({first_line(error)}).") from error
    number = num_processes or (settings.num_processes if settings.num_processes > 0 else _gpus())
    if number < 1:
        raise InputError(
            f"--accelerate_config {config.stem} does not say how many processes to start, and there are no GPUs to "
            "count; give --num_processes."
        )
    options = ["--config_file", str(config), "--num_processes", str(number)]
    if settings.num_machines == 1 and settings.main_process_port is None:
        options += ["--main_process_port", "0"]  # any that is free: two runs on one machine do not meet
    if getattr(settings, "use_cpu", False):
        os.environ["ACCELERATE_USE_CPU"] = "true"  # accelerate's own launcher reads it from the file and drops it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // number)))  # torchrun's is 1
    hide_failures_of_torchrun()
    arguments = launch_command_parser().parse_args([*options, "--module", "sinkd_llm", *words])
    # On Ctrl-C, SIGTERM and SIGHUP every process saves; torch's launcher must not end them before.
    arguments.signals_to_handle = "SIGQUIT"
    try:
        with _interrupts_passed_on():
            launch_command(arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 1  # a negative one is the signal that ended it
    return 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


@contextlib.contextmanager
def _interrupts_passed_on() -> Iterator[None]:
    """Torch starts each process in a session of its own, where Ctrl-C of the terminal does not come."""
    import psutil

    def pass_on(signum: int, frame: FrameType | None) -> None:
        leave_terminal(signum)
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signum)

    # SIGTERM comes to this process alone: schedulers send it before they kill.
    signals = (signal.SIGINT, *terminating_signals())
    previous = {number: signal.signal(number, pass_on) for number in signals}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
