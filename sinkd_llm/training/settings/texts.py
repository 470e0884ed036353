"""One text for each setting: what the docstring of its dataclass says is what `--help` and docs/settings.md show."""

import inspect
import re
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, TypeVar

Settings = TypeVar("Settings", bound=type)

_ENTRY = re.compile(r"(?P<indent> +)(?P<name>\w+) \((?P<kind>.*?)\):(?: (?P<text>\S.*))?$")
_GROUP = re.compile(r" +> (?:Parameters that control )?(?P<title>.+)$")
_DEFAULT = re.compile(r"defaults to `(.*)`$")


@dataclass(frozen=True)
class SettingText:
    """
    What a docstring says of a setting.

    Args:
        name (`str`): the setting.
        kind (`str`): its type, as it is written there.
        default (`str`, *optional*): its default, as Python writes it.
        text (`str`): what it does, with the markup of the docstring, on one line.
        group (`str`): the title that it stands under; empty without one.
    """

    name: str
    kind: str
    default: str | None
    text: str
    group: str


def setting_texts(settings: type) -> dict[str, SettingText]:
    """
    The settings that the docstring of a dataclass describes.

    Entries have the form that Transformers and TRL use: `name (type, *optional*, defaults to value): text`, where
    lines that go on are indented further; lines `> Parameters that control …` begin a group.

    Args:
        settings (`type`): the dataclass.
    """
    found: list[tuple[re.Match[str], str, list[str]]] = []  # the entry's first line, its group, its text
    group, inside = "", False
    for line in inspect.cleandoc(settings.__doc__ or "").splitlines():
        entry, title = _ENTRY.match(line), _GROUP.match(line)
        if entry is not None:
            found.append((entry, group, [entry["text"] or ""]))
            inside = True
        elif inside and len(line) - len(line.lstrip()) > len(found[-1][0]["indent"]):
            found[-1][2].append(line.strip())
        else:
            group, inside = title["title"] if title else group, False
    return {entry["name"]: _text(entry, group, lines) for entry, group, lines in found}


def _text(entry: re.Match[str], group: str, lines: list[str]) -> SettingText:
    default = _DEFAULT.search(entry["kind"])
    kind = entry["kind"].split(", *optional*")[0].replace("`", "")
    return SettingText(entry["name"], kind, default[1] if default else None, " ".join(filter(None, lines)), group)


def described(settings: Settings) -> Settings:
    """
    Class decorator: gives each field of a dataclass the help of its docstring, which a parser shows.

    Args:
        settings (`type`): a dataclass whose docstring has an entry for each field that it declares itself. For a field
            of [`as_in`] it may have one, which then stands in place of the other command's text.

    Raises:
        TypeError: for a field without an entry, and for an entry without a field.
    """
    texts = setting_texts(settings)
    # Inherited fields are shared with the class that they come from.
    own = {one.name: one for one in fields(settings) if one.name in settings.__annotations__}
    without = {name for name, one in own.items() if "help" not in one.metadata} - texts.keys()
    if without or texts.keys() - own.keys():
        differing = ", ".join(sorted(without | (texts.keys() - own.keys())))
        raise TypeError(f"The fields of {settings.__name__} and the entries of its docstring differ: {differing}.")
    for name, text in texts.items():
        own[name].metadata = MappingProxyType({**own[name].metadata, "help": plain_help(text.text)})
    return settings


def as_in(settings: type, name: str) -> Any:
    """
    A field with the default, the choices and the text that another dataclass has under this name.

    Args:
        settings (`type`): the dataclass that owns the setting.
        name (`str`): the field there.
    """
    owner = next(one for one in fields(settings) if one.name == name)
    return field(default=owner.default, metadata=owner.metadata)


def plain_help(text: str) -> str:
    """
    The text of a docstring for a terminal: without marks for code and links, `%` written as argparse takes it.

    Args:
        text (`str`): with `` `code` `` and ``[`links`]``, of which the last part of the name stays.
    """
    text = re.sub(r"\[`~(?:\w+\.)*(\w+)`\]", r"\1", text)
    text = re.sub(r"\[`([^`]+)`\]", r"\1", text)
    text = re.sub(r"`([^`]+)`", r"\1", text)
    return text.replace("%", "%%")
