"""Completion in the shell by argcomplete: commands, their flags, and the values that have names.

`eval "$(register-python-argcomplete sinkd)"` switches it on in bash and zsh. Nothing here is imported unless a shell
asks.
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Iterable
from importlib import import_module

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter
from argcomplete.lexers import split_line

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.cli.flag_table import table_parser
from sinkd_llm.cli.launching import config_names
from sinkd_llm.cli.shipped import recipes

_YAML = FilesCompleter(("yaml", "yml"))
_Names = Callable[[], Iterable[str]]


def complete(commands: Collection[str]) -> None:
    """
    Write what may stand at the cursor to where the shell reads it, and end the process.

    Args:
        commands (collection of `str`): what follows `sinkd`.

    Raises:
        SystemExit: always.
    """
    words = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    start = int(os.environ["_ARGCOMPLETE"])  # 1, or more after `python -m`
    if len(words) <= start:
        parser = argparse.ArgumentParser(prog="sinkd")
        parser.add_argument("command", choices=list(commands))
        _write(parser)
    os.environ["_ARGCOMPLETE"] = str(start + 1)
    command = words[start]
    if command not in commands:
        sys.exit(0)
    known = table_parser(command, texts=False)
    if known is not None:
        known.add_argument("--config")
        _write(known)
    # The first parser of the command completes in place of parsing.
    CommandParser.instead = _write
    import_module(f"sinkd_llm.cli.{command}").main([])
    sys.exit(0)


def _write(parser: argparse.ArgumentParser) -> None:
    CommandParser.instead = None
    _add_completers(parser)
    # Every flag also exists with hyphens.
    hyphens = [flag for flag in parser._option_string_actions if "-" in flag.removeprefix("--")]
    argcomplete.autocomplete(parser, exit_method=sys.exit, exclude=hyphens)


def _add_completers(parser: argparse.ArgumentParser) -> None:
    completers: dict[str, _Names] = {
        **dict.fromkeys(("config", "estimate"), recipes),
        **dict.fromkeys(("task", "teacher_task"), _tasks),
        **dict.fromkeys(("model_name_or_path", "teacher_model_name_or_path"), _models),
        "accelerate_config": config_names,
    }
    of_command: dict[str, _Names] = {
        "sinkd tasks show": _tasks,
        "sinkd tasks check": _tasks,
        "sinkd recipes show": recipes,
    }
    for one in _with_subparsers(parser):
        for action in one._actions:
            names = completers.get(action.dest) if action.option_strings else of_command.get(one.prog)
            if names is not None:
                files = DirectoriesCompleter() if names is _models else _YAML
                action.completer = _NamesAnd(names, files)  # type: ignore[attr-defined]


def _with_subparsers(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


class _NamesAnd:
    """Known names, and files or folders."""

    def __init__(self, names: _Names, files: Callable[..., Iterable[str]]) -> None:
        self.names, self.files = names, files

    def __call__(self, prefix: str, **context: object) -> list[str]:
        return [*(name for name in self.names() if name.startswith(prefix)), *self.files(prefix, **context)]


def _tasks() -> Iterable[str]:
    from sinkd_llm.tasks.registry import task_names

    return task_names()


def _models() -> Iterable[str]:
    from sinkd_llm.models.bundled import BUNDLED

    return BUNDLED
