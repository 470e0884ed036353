"""What the parsers of all commands share: one message for a mistake, and the flag that was meant."""

import argparse
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, ClassVar, NoReturn

from sinkd_llm.errors import InputError, nearest, plain, shown
from sinkd_llm.terminal import say
from sinkd_llm.training.settings.checks import MOST_CHOICES, listed_choices
from sinkd_llm.training.settings.rules import OTHER_NAMES

# What a word processor makes of two hyphens, or of one.
_DASHES = "‐‑‒–—―−﹘﹣－"


class CommandParser(argparse.ArgumentParser):
    """`argparse`, with every mistake as an [`InputError`] that names the flag, and no flag taken for another."""

    # What is done with a parser in place of parsing: where a shell asks how a word may go on.
    instead: ClassVar[Callable[[argparse.ArgumentParser], None] | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `argparse`."""
        if CommandParser.instead is not None:
            CommandParser.instead(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        end = "?" if "Did you mean" in message else "."
        raise InputError(f"{flag_message(message)}{end} {help_hint(self)}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `argparse`; an unknown flag is an [`InputError`] that names the nearest right one."""
        known, rest = self.parse_known_args(args, namespace)
        if rest:
            refuse_unknown(self, rest)
        say_repeated(self, args or [])
        return known

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            raise short(error, arg_string) from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            choices = list(action.choices or ())
            if len(choices) > MOST_CHOICES:
                close = nearest(str(value), [str(plain(choice)) for choice in choices], 0.6)
                said = f"{shown(plain(value))} is no choice; it takes one of {listed_choices(choices)}"
                raise argparse.ArgumentError(action, f"{said}{close and '.' + close.removesuffix('?')}") from error
            raise short(error, value) from error


def short(error: argparse.ArgumentError, value: Any) -> argparse.ArgumentError:
    """The error with a value of any length written on one line."""
    if len(str(value)) > len(shown(value)):
        error.message = error.message.replace(repr(value), shown(value)).replace(str(value), shown(value))
    return error


def flag_message(message: str) -> str:
    """A message of `argparse` that begins with the flag as it is written in recipes and in Python."""
    return re.sub(r"^argument (--\w+)\S*: ", r"\1: ", message)


def help_hint(parser: argparse.ArgumentParser) -> str:
    """Where the flags are shown."""
    return f"'{parser.prog} --help' shows the flags."


def refuse_unknown(parser: argparse.ArgumentParser, remaining: Sequence[str], more: Sequence[str] = ()) -> NoReturn:
    """
    Raise the error for words that are no flag of `parser`, with the flag that was meant if there is one.

    Args:
        parser (`argparse.ArgumentParser`): whose flags there are.
        remaining (`Sequence[str]`): what it did not take.
        more (`Sequence[str]`, *optional*): flags that are taken beside the parser's.
    """
    flags = {flag for action in parser._actions for flag in action.option_strings}.union(more)
    wrong = next((word for word in remaining if word.startswith("-")), remaining[0])
    if wrong[:1] in _DASHES:
        name = wrong.lstrip(_DASHES).split("=")[0]
        meant = f"--{name}" if f"--{name}" in flags else "a flag"
        raise InputError(f"{shown(wrong)} begins with a dash that is no hyphen; write {meant} with two hyphens (--).")
    if not wrong.startswith("-"):
        is_recipe = "--config" in flags and wrong.endswith((".yaml", ".yml"))
        hint = f"--config {wrong}" if is_recipe else "--name value"
        raise InputError(f"{shown(wrong)} belongs to no flag; did you mean {hint}?")
    name = wrong.split("=")[0]
    every = "--help_all' shows every flag" if "--help_all" in flags else "--help' shows the flags"
    raise InputError(f"unknown flag {shown(name)[1:-1]}.{meant_flag(name, flags)} '{parser.prog} {every}.")


def split_config(prog: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """
    The file that `--config` names, and all other words.

    Args:
        prog (`str`): the command, for messages.
        argv (`Sequence[str]`): its words.
    """
    parser = CommandParser(prog=prog, add_help=False)
    parser.add_argument("--config", nargs="?", const="")
    known, words = parser.parse_known_args(list(argv))
    return known.config, words


def refuse_unknown_keys(parser: argparse.ArgumentParser, path: str, config: Iterable[Any]) -> None:
    """
    Raise the error for the first key of a recipe that is no flag of `parser`.

    Args:
        parser (`argparse.ArgumentParser`): whose flags there are.
        path (`str`): the recipe, for messages.
        config (`Iterable`): its keys.
    """
    actions = {action.dest for action in parser._actions if action.option_strings}
    for key in config:
        if key not in actions or key in ("help", "help_all"):
            meant = meant_flag(str(key), parser._option_string_actions).replace("'--", "'")
            raise InputError(f"{path} has the unknown key {shown(key)}.{meant}")


def meant_flag(name: str, flags: Collection[str]) -> str:
    """` Did you mean '--x'?`: the flag for what other tools call `name`, or one that is spelt much the same."""
    bare = name.lstrip("-").replace("-", "_")
    others = OTHER_NAMES.get(bare, OTHER_NAMES.get(bare.lower()))
    if others is not None:
        meant = next((other for other in others if f"--{other}" in flags), None)
        return "" if meant is None else f" Did you mean '--{meant}'?"
    known = sorted(flag[2:] for flag in flags if flag.startswith("--") and "-" not in flag[2:])
    close = nearest(bare, known, 0.75)
    return close.replace("'", "'--", 1) if close else ""


def say_repeated(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Say which of several values of one flag counts."""
    values: dict[str, list[str]] = {}
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        action = parser._option_string_actions.get(name)
        if action is None:
            continue
        if not equals:
            following = words[position + 1] if position + 1 < len(words) else ""
            value = "" if following.startswith("--") else following
        values.setdefault(action.dest, []).append(value)
    for dest, given in values.items():
        if len(set(given)) > 1:
            say(f"Note: --{dest} is given {len(given)} times; the last one counts.")
