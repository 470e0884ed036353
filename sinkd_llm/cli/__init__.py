"""`sinkd`: finds the command, runs it, and turns a user's mistake into one line and exit code 2.

A command's module is imported when the command is used, so that `sinkd --help` does not wait for
torch.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from importlib import import_module

from sinkd_llm._version import __version__
from sinkd_llm.errors import InputError, nearest
from sinkd_llm.terminal import drop_known_noise, is_main_process, say, show_warnings_once

COMMANDS = {
    "quickstart": "fine-tune a small real model and distil it, in minutes on a laptop",
    "finetune": "train a model on a task with cross-entropy: how teachers are made",
    "cache": "run a teacher once over a recipe's rows, to train without it in memory",
    "distill": "train a student to follow a teacher: CE + divergence + SinKD",
    "evaluate": "score a model on a task by ranking the answers",
    "tasks": "list the tasks, show their rendered rows, or check one of your own",
    "env": "show versions, devices and what is missing",
}

QUIET_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL reports its use from here too
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `sinkd` with `argv` (default: the process's own) and return its exit code.

    0: done; 2: the input was wrong, one line on stderr says what to do; 130: interrupted; 143: SIGTERM. Anything
    else is a bug of this library and keeps its traceback, as everything does under `SINKD_DEBUG=1`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("--local_rank="):
        del arguments[0]  # from the `deepspeed` launcher, which sets LOCAL_RANK too
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    debug = os.environ.get("SINKD_DEBUG", "") not in ("", "0")
    if not debug:
        # What one library tells another about its next version is not for the user of this command.
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
    try:
        return _dispatch(arguments)
    except (InputError, OSError) as error:
        # OSError: a file that cannot be read or written, a full disk, a hub that cannot be reached.
        if debug or isinstance(error, BrokenPipeError):
            raise
        _print_error(_one_line(error))
        return 2
    except KeyboardInterrupt as error:
        if debug:
            raise
        say(f"\nsinkd: {str(error) or 'interrupted'}")
        return getattr(error, "exit_code", 130)


def _dispatch(arguments: list[str]) -> int:
    parser = _parser()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        parser.print_help()
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"sinkd {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        raise InputError(
            f"there is no command {command!r}.{nearest(command, list(COMMANDS))} "
            f"The commands are {', '.join(COMMANDS)}; 'sinkd --help' says what they do."
        )
    show_warnings_once()
    drop_known_noise()
    return int(import_module(f"sinkd_llm.cli.{command}").main(arguments[1:]))


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{text}" for name, text in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="sinkd",
        usage="sinkd [--help] [--version] COMMAND [--config FILE.yaml] [--flag VALUE ...]",
        description="Distil large language models into small ones by the Sinkhorn distance.",
        epilog=f"commands:\n{lines}\n\n'sinkd COMMAND --help' shows a command's flags. Start with "
        "'sinkd quickstart'.\nSINKD_DEBUG=1 shows the traceback of every error.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _print_error(text: str) -> None:
    """A mistake is found by every process of a launch, and is said by the first."""
    who = ""
    if not is_main_process():
        # The launcher ends this process when the first one fails. If that does not come, the error was here alone.
        time.sleep(10)
        who = f" in process {os.environ['RANK']}"
    print(f"sinkd: error{who}: {text}", file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
