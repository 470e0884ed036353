"""The flags of the commands that train or score, as a table: help and a mistyped name are answered without torch.

The parsers of these commands are made of dataclasses of Transformers and TRL, whose import takes seconds. The table
holds what those parsers show, and it holds for the versions and the sources that its key is made of. One table comes
with the package, for the versions that are tested; for others it is made by the first command that makes the parsers,
and kept in the user's cache. Texts of other packages are not in it, but read from their source, which is not run.
"""

import argparse
import ast
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sinkd_llm._version import __version__
from sinkd_llm.cli.command_parser import CommandParser, refuse_unknown, refuse_unknown_keys, split_config
from sinkd_llm.cli.help_texts import HelpFormatter, hide_rare_flags
from sinkd_llm.cli.recipe_file import read_config
from sinkd_llm.environment import package_version
from sinkd_llm.files import cache_dir, write_whole

TABLE = Path(__file__).with_name("flags.json")
HELP_FLAGS = {"-h", "--help", "--help_all"}

_PACKAGE = Path(__file__).resolve().parents[1]
# What declares the settings and arranges their flags.
_SOURCES = ("training/config.py", "runs/arguments.py", "cli/parsing.py", "cli/flag_table.py")
_VERSIONS = ("transformers", "trl", "torch")  # TrainingArguments has one default that goes by PyTorch's version
# Class of another package -> where its source is.
_FOREIGN = {
    "TrainingArguments": ("transformers", "training_args.py"),
    "ModelConfig": ("trl", "trainer/model_config.py"),
}
_SHOWN = ("prog", "usage", "description", "epilog")


def check_names(command: str, argv: Sequence[str]) -> None:
    """
    Show the help that `argv` asks for, and refuse names of flags and of a recipe's keys that do not exist.

    Nothing is done where no table holds for the installed versions: the command's own parser does the same later.

    Args:
        command (`str`): `"finetune"`, `"distill"`, `"cache"` or `"evaluate"`.
        argv (`Sequence[str]`): the words after it.

    Raises:
        InputError: for the first wrong name, with the one that was meant, and for a recipe that cannot be read.
        SystemExit: after the help.
    """
    parser = table_parser(command, texts=bool(HELP_FLAGS & {*argv}))
    if parser is None:
        return
    if "--help_all" not in argv:
        hide_rare_flags(parser)
    recipe, words = split_config(parser.prog, argv)
    if recipe is not None:
        config = read_config(recipe)
        config.pop("env", None)
        refuse_unknown_keys(parser, recipe, config)
    _, remaining = parser.parse_known_args(words)
    if remaining:
        refuse_unknown(parser, remaining, more=["--config"])


class _TableParser(CommandParser):
    """A parser that knows names and takes every value: types and choices are the business of the real one."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        pass


def table_parser(command: str, *, texts: bool) -> CommandParser | None:
    """
    A parser with the flags of a command that shows what the command's own parser shows.

    Args:
        command (`str`): one of the table.
        texts (`bool`): with the texts of the flags, which are needed for help alone.

    Returns:
        `CommandParser` or `None`: `None` if no table holds for what is installed, or a text is not to be found.
    """
    key = _key()
    for path in (TABLE, _kept(key)):
        with suppress(OSError, ValueError, KeyError, TypeError, StopIteration):  # not there, or damaged
            table = json.loads(path.read_text(encoding="utf-8"))
            if table["key"] == key:
                return _parser(table, command, {name: _foreign_texts(name) for name in _FOREIGN} if texts else None)
    return None


def _parser(table: dict[str, Any], command: str, foreign: dict[str, dict[str, str]] | None) -> CommandParser:
    entry = table["commands"][command]
    made = _TableParser(add_help=False, formatter_class=HelpFormatter, **entry["shown"])
    for title, flags in entry["groups"]:
        # The first group is argparse's own.
        group = made.add_argument_group(title) if title is not None else made
        for one in flags:
            names, nargs, default, choices, text = table["flags"][one]
            if isinstance(text, dict):
                text = "" if foreign is None else foreign[text["of"]][one.split()[0]]
            options: dict[str, Any] = {"help": text, "dest": one.split()[0]}
            if nargs == "help":
                options["action"] = "help"
            elif nargs == 0:
                options |= {"action": "store_false", "default": default}
            else:
                options |= {"nargs": nargs, "default": default, "choices": choices}
            group.add_argument(*names, **options)
    return made


def keep_table(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Keep the table of the commands' own parsers for later commands, if it is not known and can be written."""
    target = _kept(_key())
    if table_parser("distill", texts=False) is None:
        with suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, table_text(parsers))


def table_text(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """
    The table as it is written, in JSON with one flag a line.

    Args:
        parsers (`dict[str, ArgumentParser]`): each command's own parser, with the help of all flags.
    """
    foreign = {name: _foreign_texts(name) for name in _FOREIGN}
    flags: dict[str, Any] = {}
    commands = {}
    for command, parser in parsers.items():
        groups = [
            (None if group is parser._optionals else group.title, [_entry(flags, a, foreign) for a in members])
            for group in parser._action_groups
            if (members := group._group_actions)
        ]
        commands[command] = {"shown": {name: getattr(parser, name) for name in _SHOWN}, "groups": groups}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row, ensure_ascii=False)}" for name, row in flags.items())
    return (
        f'{{"key": {json.dumps(_key())},\n"commands": {json.dumps(commands, indent=1)},\n"flags": {{\n{lines}\n}}}}\n'
    )


def _entry(flags: dict[str, Any], action: argparse.Action, foreign: dict[str, dict[str, str]]) -> str:
    """Write an action into the table of flags, and give the name under which it stands there."""
    owner = next((name for name, texts in foreign.items() if texts.get(action.dest) == action.help), None)
    is_help = isinstance(action, argparse._HelpAction)
    default = None if action.default in (None, argparse.SUPPRESS) else str(action.default)
    choices: Iterable[Any] | None = action.choices
    row = [
        action.option_strings,
        "help" if is_help else action.nargs,
        default,
        None if choices is None else [str(choice) for choice in choices],
        action.help if owner is None else {"of": owner},
    ]
    # Two flags may set one thing (`--x` and `--no_x`), and a command may show another text than the others.
    name = action.dest
    while flags.setdefault(name, row) != row:
        name += " +"
    return name


def _key() -> str:
    digest = hashlib.sha256(__version__.encode())
    for package in _VERSIONS:
        digest.update(f"|{str(package_version(package)).split('+')[0]}".encode())
    for source in _SOURCES:
        digest.update((_PACKAGE / source).read_text(encoding="utf-8").encode())
    return digest.hexdigest()[:16]


def _kept(key: str) -> Path:
    return cache_dir() / "flags" / f"{key}.json"


def _foreign_texts(name: str) -> dict[str, str]:
    """The help texts of a dataclass of another package, from the literals in its source."""
    package, file = _FOREIGN[name]
    spec = find_spec(package)
    folder = Path(str(spec.origin)).parent if spec is not None else Path()
    tree = ast.parse((folder / file).read_text(encoding="utf-8"))
    declared = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    texts = {}
    for line in declared.body:
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
            continue
        for entry in ast.walk(line):
            if isinstance(entry, ast.Dict):
                for key, value in zip(entry.keys, entry.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "help" and isinstance(value, ast.Constant):
                        texts[line.target.id] = str(value.value)
    return texts
