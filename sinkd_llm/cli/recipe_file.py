"""A recipe: the YAML file of `--config`, with the environment variables that it sets."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from sinkd_llm.cli.shipped import find_recipe
from sinkd_llm.errors import InputError, shown
from sinkd_llm.training.settings.rules import REFUSED_ENVIRONMENT
from sinkd_llm.yaml_files import read_yaml_mapping


def read_config(path: str, flag: str = "--config") -> dict[str, Any]:
    """
    The settings of a recipe.

    Args:
        path (`str`): the file, or the name of a recipe that comes with the package.
        flag (`str`, *optional*, defaults to `"--config"`): what named it, for messages.

    Raises:
        InputError: if the file is missing, not UTF-8, not YAML, or not a mapping; see [`read_yaml_mapping`].
    """
    if not path.strip():
        raise InputError(
            f"{flag} needs a file or the name of a recipe: {flag} sst2_student_sinkd ('sinkd recipes' lists them)."
        )
    if "\x00" in path:
        raise InputError(f"{flag} is {shown(path)}, which holds a NUL character; no path has one.")
    return read_yaml_mapping(find_recipe(path), "recipe")


def environment_of(path: str, config: dict[str, Any]) -> dict[str, str]:
    """
    Take the variables of `env:` out of a recipe's settings. Nothing is set yet.

    Args:
        path (`str`): the recipe, for messages.
        config (`dict[str, Any]`): its settings; `env` is removed.

    Raises:
        InputError: if `env` is no mapping, a name or value cannot be set, or a name decides which code runs.
    """
    given = config.pop("env", None)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"{path}: 'env' is not a mapping; write 'env:' and NAME: value below.")
    for name, value in given.items():
        if not name or "=" in name or "\x00" in name or not name.isprintable():
            raise InputError(f"{path}: 'env' holds {shown(name)}, which cannot name an environment variable.")
        if any(fnmatchcase(name.upper(), pattern) for pattern in REFUSED_ENVIRONMENT):
            raise InputError(
                f"{path}: 'env' sets {name}, which decides what code runs or belongs to the launcher; set it in the "
                "shell, where you see it."
            )
        if value is None or isinstance(value, (dict, list)) or "\x00" in str(value):
            raise InputError(f"{path}: 'env' sets {name} to {shown(value)}; give text, a number, or true or false.")
    return {name: _as_text(value) for name, value in given.items()}


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables; where what follows fails, they are as they were before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    except BaseException:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        raise
