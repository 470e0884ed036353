"""Holds settings against their table, by type, range and meaning, wherever they come from."""

import json
import numbers
import os
import types
from collections.abc import Sequence
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sinkd_llm.errors import SettingError, nearest, plain, shown
from sinkd_llm.secrets import MASK, is_secret_name
from sinkd_llm.training.settings.rules import CHOICES, NEEDS, NO_EFFECT, RANGES, REFUSED_VALUES, is_finite

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
_ABSTRACT: dict[type, Any] = {int: numbers.Integral, float: numbers.Real, str: (str, os.PathLike), list: (list, tuple)}
# What Transformers and TRL themselves put in, in place of what was given: a copy of checked settings is checked again.
_COMPLETED = {"fsdp": "bool", "accelerator_config": "AcceleratorConfig", "lora_target_modules": "str"}
# Transformers' parser loses the default of a list, and Transformers takes `None` for it.
_NULL_TOO = ("debug",)
# Longer text is neither a name, nor a path that a system opens, nor a setting.
_LONGEST_TEXT = 4096
_LONGEST_NAME = 255
# Of more choices than these a message shows the first ones and the nearest.
MOST_CHOICES = 16
FIRST_CHOICES = 6


class _Kinds:
    """What a type hint accepts."""

    def __init__(self, hint: Any, metadata: Any) -> None:
        self.types: list[type] = []
        self.element: _Kinds | None = None
        self.values: list[Any] = list(metadata.get("choices") or [])
        self.others: list[type] = []
        self.null = False
        for part in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
            origin = get_origin(part) or part
            if part is type(None):
                self.null = True
            elif origin is Literal:
                self.others.extend(type(value) for value in get_args(part))
            elif isinstance(origin, type) and issubclass(origin, Enum):
                self.values.extend(member.value for member in origin)
                self.types.append(str)
            elif origin in _WORDS:
                self.types.append(origin)
                if origin is list and get_args(part):
                    self.element = _Kinds(get_args(part)[0], {})
            elif isinstance(origin, type):
                self.others.append(origin)

    def takes(self, value: Any) -> bool:
        if any(isinstance(value, kind) for kind in self.others):
            return True
        if isinstance(value, bool):
            return bool in self.types
        return any(isinstance(value, _ABSTRACT.get(kind, kind)) for kind in self.types)

    def in_words(self) -> str:
        if self.values:
            return f"one of {', '.join(map(str, self.values))}"
        # A number that is whole is a number.
        kinds = [kind for kind in self.types if not (kind is int and float in self.types)]
        words = [_WORDS[kind] for kind in dict.fromkeys(kinds)]
        return " or ".join(words or [f"a {kind.__name__}" for kind in self.others])


@cache
def _kinds(arguments: Any) -> dict[str, _Kinds]:
    hints = get_type_hints(arguments)
    return {field.name: _Kinds(hints[field.name], field.metadata) for field in fields(arguments) if field.init}


def accepted(settings: type) -> dict[str, str]:
    """
    What each setting takes, in words: its choices, its numbers or its type.

    Args:
        settings (`type`): a dataclass of settings.
    """
    words = {}
    for name, kinds in _kinds(settings).items():
        if name in RANGES:
            numbers = RANGES[name].numbers()
            words[name] = f"a list, each {numbers}" if kinds.element is not None else numbers
        else:
            words[name] = kinds.in_words()
    return words


def check_settings(arguments: Any) -> None:
    """
    Check each setting by itself.

    Args:
        arguments (`Any`): a dataclass of settings: [`SinKDConfig`], TRL's `ModelConfig`, the arguments of a command.

    Raises:
        SettingError: for the first value that has the wrong type, is no choice or out of range, or would have no
            effect here. `None` is refused where it means nothing.
    """
    defaults = {field.name: field.default for field in fields(arguments)}
    kind: Any = type(arguments)
    for name, kinds in _kinds(kind).items():
        value = getattr(arguments, name)
        check_type(name, value, kinds.null or name in _NULL_TOO, defaults.get(name), kinds)
        if value is None or (isinstance(value, str) and value == defaults.get(name)):
            continue
        if isinstance(value, str):
            _check_text(name, value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, str):
                    _check_text(name, item)
        _check_choice(name, value, kinds)
        _check_range(name, value)
        _check_effect(name, value)
    for name, switch in NEEDS.items():
        if name in defaults and getattr(arguments, name) != defaults[name] and not getattr(arguments, switch):
            given = shown(plain(getattr(arguments, name)))
            raise SettingError(name, f"is {given}, which would have no effect: it needs --{switch}.")


def check_type(name: str, value: Any, null: bool, default: Any, kinds: Any) -> None:
    """Refuse a value of another type than the setting has."""
    if value is None:
        if not null and default is not None:
            raise SettingError(
                name,
                f"is null, but it takes {kinds.in_words()}; leave it out for the default, {shown(plain(default))}.",
            )
        return
    if type(value).__name__ == _COMPLETED.get(name):
        return
    if not kinds.takes(value):
        raise SettingError(name, f"is {_shown(name, value)}, but it takes {kinds.in_words()}.")
    if isinstance(value, (list, tuple)) and kinds.element is not None:
        for item in value:
            if not kinds.element.takes(item):
                raise SettingError(
                    name,
                    f"holds {_shown(name, item)}, but it is a list of which each item is {kinds.element.in_words()}.",
                )


def _check_text(name: str, value: str) -> None:
    if not value.strip():
        raise SettingError(name, f"is empty ({value!r}); give a value, or leave it out.")
    if "\x00" in value:
        raise SettingError(name, f"holds a NUL character ({shown(value)}), which no name or path has; remove it.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise SettingError(name, f"is {shown(value)}, which is not UTF-8 text; rename what it names.")
    if not value.lstrip().startswith(("{", "[")) and (
        len(value.encode()) > _LONGEST_TEXT or any(len(part.encode()) > _LONGEST_NAME for part in value.split("/"))
    ):
        raise SettingError(name, f"has {len(value):,} characters ({shown(value)}); no name or path is so long.")
    if is_secret_name(name) and value == MASK:
        raise SettingError(name, f"is {MASK!r}, which stands for a secret in what is printed; give the secret itself.")


def _check_choice(name: str, value: Any, kinds: _Kinds) -> None:
    value = plain(value)
    if isinstance(value, (list, tuple, dict)) and not kinds.element:
        return
    for item in value if isinstance(value, (list, tuple)) else (value,):
        known = kinds.values or (kinds.element.values if kinds.element else []) or CHOICES.get(name, ())
        item = plain(item)
        if known and item not in known:
            close = nearest(str(item), [str(choice) for choice in known], 0.6)
            raise SettingError(name, f"is {shown(item)}; it takes one of {listed_choices(known)}.{close}")
        if isinstance(item, str) and (name, item) in REFUSED_VALUES:
            raise SettingError(name, f"is {item}, which is refused: {REFUSED_VALUES[name, item]}.")


def listed_choices(known: Sequence[Any]) -> str:
    """The choices of a setting for a message: all, or the first of very many."""
    words = [str(choice) for choice in known]
    if len(words) <= MOST_CHOICES:
        return ", ".join(words)
    return f"{', '.join(words[:FIRST_CHOICES])}, … ({len(words)} in all)"


def _check_range(name: str, value: Any) -> None:
    for item in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(item, bool) or not isinstance(item, numbers.Real):
            continue
        if name in RANGES:
            problem = RANGES[name].refusal(item)
            if problem is not None:
                raise SettingError(name, problem)
        elif not is_finite(item):
            raise SettingError(name, f"is {item}, which is no number to compute with.")


def _check_effect(name: str, value: Any) -> None:
    if name in NO_EFFECT:
        allowed, reason = NO_EFFECT[name]
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            raise SettingError(name, f"is {shown(plain(value))}, which is refused: {reason}.")


def mapping_of(name: str, value: Any, example: str, file: bool = False) -> dict[str, Any] | None:
    """
    A setting that is a mapping, from Python, a recipe, or JSON text on the command line.

    Args:
        name (`str`): the setting.
        value (`Any`): a mapping, text, or `None`.
        example (`str`): how it is written, for messages.
        file (`bool`, *optional*): whether text without a brace is the path of a JSON file.

    Returns:
        `dict` or `None`: the mapping; `None` for no value.

    Raises:
        SettingError: for text that is no JSON, a file that is missing or no JSON, and anything but a mapping.
    """
    if value is None or isinstance(value, dict):
        mapping = value
    elif isinstance(value, str):
        text, source = value, ""
        if file and not value.lstrip().startswith(("{", "[")):
            text, source = _content(name, value), f" the file {shown(value)} holds"
        mapping = _json(name, text, source, example)
    else:
        return None
    if mapping is not None and not is_finite(mapping):
        raise SettingError(name, f"is {_shown(name, mapping)}, which holds a number that is not finite; give another.")
    return mapping


def _json(name: str, text: str, source: str, example: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is given twice")
        return found

    try:
        mapping = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        said = "it nests too deep" if isinstance(error, RecursionError) else _json_problem(error)
        what = source or f" it is {_shown(name, text)},"
        raise SettingError(name, f"takes a mapping, but{what} which is no JSON ({said}); write {example}.") from error
    if not isinstance(mapping, dict):
        raise SettingError(name, f"is {_shown(name, mapping)}, but it takes a mapping; write {example}.")
    return mapping


def _json_problem(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.lower()} at character {error.pos + 1}"
    return "a number has too many digits" if "integer string conversion" in str(error) else str(error)


def _content(name: str, path: str) -> str:
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as stream:
            return stream.read()
    except UnicodeDecodeError as error:
        raise SettingError(name, f"names {shown(path)}, which is not UTF-8 text but should be JSON.") from error
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise SettingError(
            name, f"names the file {shown(path)}, which cannot be read ({said}); check the path."
        ) from error


def check_names(name: str, given: Any, known: Any, where: str = "") -> None:
    """Refuse a key of a mapping setting that nothing reads."""
    for key in given:
        if key not in known:
            close = nearest(str(key), [str(k) for k in known], 0.6)
            raise SettingError(
                name, f"has the unknown key {shown(key)}{where}; it takes {', '.join(sorted(map(str, known)))}.{close}"
            )


def _shown(name: str, value: Any) -> str:
    return MASK if is_secret_name(name) else shown(plain(value))
