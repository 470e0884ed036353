"""`sinkd`: finds the command, runs it, and turns a user's mistake into one line and exit code 2.

A command's module is imported when the command is used, so that `sinkd --help` does not wait for
torch.
"""

import argparse
import errno
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module

from sinkd_llm._version import __version__
from sinkd_llm.environment import is_debugging
from sinkd_llm.errors import InputError, first_line, nearest, shown
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.quiet import quieten_libraries
from sinkd_llm.terminal import (
    drop_output,
    flush_output,
    is_main_process,
    say,
    say_error,
    show_warnings_once,
    write_everything,
)

COMMANDS = {
    "quickstart": "fine-tune a small real model and distil it, in minutes on a laptop",
    "finetune": "train a model on a task with cross-entropy, for example a teacher",
    "cache": "run a teacher once over a recipe's rows, to train without it",
    "distill": "train a student to follow a teacher: CE + divergence + SinKD",
    "compare": "distil with many settings and seeds; which differences are real?",
    "evaluate": "score a model on a task by ranking the answers",
    "report": "make the page of a run again, or one page of several runs",
    "calibrate": "make a student's probabilities as frequent as they say",
    "route": "from which confidence on a student answers itself",
    "predict": "answer new rows with a student: a file, or piped in",
    "export": "write a student for ONNX Runtime, llama.cpp, Transformers or PEFT",
    "serve": "answer rows over HTTP with a student",
    "objectives": "which loss for which data, and what a loss can be made of",
    "recipes": "list the recipes that come with the package, or print one",
    "tasks": "list the tasks, show rendered rows, or check a task of your own",
    "env": "show versions, devices and what is missing",
}

# What a system says of a file -> what to do about it.
_ADVICE = {
    errno.ENOSPC: "free space, or choose a folder on another disk",
    errno.EDQUOT: "your share of the disk is full: free space, or choose another folder",
    errno.EACCES: "check who may read and write it",
    errno.EPERM: "check who may read and write it",
    errno.EROFS: "choose a folder that can be written to",
    errno.EISDIR: "give a file, not a folder",
    errno.ENOTDIR: "a part of the path is a file; check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "close other programs, or raise the limit (ulimit -n)",
    errno.EIO: "the disk reports a fault; use another one",
    errno.ELOOP: "its links lead in a circle; check them",
}
# Longer messages hide what is said; the middle, which is mostly a value, is left out.
_LONGEST = 1500


def main(argv: Sequence[str] | None = None) -> int:
    """Run `sinkd` with `argv` (default: the process's own) and return its exit code.

    0: done; 2: the input was wrong, one line on stderr says what to do; 130: interrupted. Anything
    else is a bug of this library and keeps its traceback, as everything does under `SINKD_DEBUG=1`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("--local_rank="):
        del arguments[0]  # from the `deepspeed` launcher, which sets LOCAL_RANK too
    if "_ARGCOMPLETE" in os.environ:  # a shell asks how a word may go on
        from sinkd_llm.cli.completing import complete

        complete(COMMANDS)
    debug = is_debugging()
    quieten_libraries()
    write_everything()
    try:
        try:
            return _dispatch(arguments)
        finally:
            flush_output()  # after --help too, which leaves by SystemExit
    except BrokenPipeError:
        # The reader of the output (`| head`) has all that it wanted.
        drop_output(sys.stdout)
        return 0
    except (InputError, OSError) as error:
        # OSError: a file that cannot be read or written, a full disk, a hub that cannot be reached.
        if debug:
            raise
        _print_error(_one_line(error))
        return 2
    except KeyboardInterrupt as error:
        if debug:
            raise
        say(f"\nsinkd: {str(error) or 'interrupted'}")
        return getattr(error, "exit_code", 130)
    except (RuntimeError, MemoryError) as error:
        if debug or not is_memory_full(error):
            raise
        _print_error(
            f"the memory of the device is full ({first_line(error)}). Lower per_device_train_batch_size or "
            "max_length; 'sinkd env --estimate RECIPE.yaml' says what a run needs."
        )
        return 2


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
            f"there is no command {shown(command)}.{nearest(command, list(COMMANDS))} "
            f"The commands are {', '.join(COMMANDS)}; 'sinkd --help' says what they do."
        )
    show_warnings_once()
    return int(import_module(f"sinkd_llm.cli.{command}").main(arguments[1:]))


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{text}" for name, text in COMMANDS.items())
    return argparse.ArgumentParser(
        prog="sinkd",
        usage="sinkd [--version] COMMAND [--config FILE.yaml] [--flag VALUE ...]",
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
    say_error(f"sinkd: error{who}: {text}")


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        advice = _ADVICE.get(error.errno or 0)
        text = f"{_file_name(error.filename)}: {error.strerror}" + (f"; {advice}." if advice else "")
    elif isinstance(error, OSError) and error.errno in _ADVICE and error.strerror:
        text = f"{error.strerror}; {_ADVICE[error.errno]}."
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} … {text[-half:]}"
    return text


def _file_name(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, (bytes, os.PathLike)) else str(name)
