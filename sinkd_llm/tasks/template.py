"""Prompt templates: sandboxed Jinja2 that renders as lm-evaluation-harness does.

A template is data from a task file, often somebody else's, so it runs in Jinja2's immutable sandbox:
it can format a row, but not reach Python's internals.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from sinkd_llm.errors import InputError, nearest


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    # Undefined names are errors and a trailing newline stays: both as in lm-evaluation-harness, whose
    # one filter of its own is `regex_replace`.
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = _regex_replace
    return environment


@lru_cache(maxsize=256)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@dataclass(frozen=True)
class Template:
    """
    One template of a task file.

    Args:
        source (`str`): Jinja2 text.
        key (`str`): the key of the task file it stands under, for messages.
        path (`str`): the task file, for messages.
    """

    source: str
    key: str
    path: str

    @property
    def place(self) -> str:
        return f"{self.key} in {self.path}"

    @property
    def has_markup(self) -> bool:
        return any(mark in self.source for mark in ("{{", "{%", "{#"))

    def check(self) -> None:
        """Raises `InputError` for a syntax error or an attribute that no template may reach."""
        try:
            tree = _environment().parse(self.source)
            _compiled(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"Template syntax error in {self.key}, line {error.lineno} of the template, in {self.path}: "
                f"{error.message}"
            ) from error
        for node in tree.find_all(nodes.Getattr):
            if node.attr.startswith("_"):
                raise self._forbidden(f"line {node.lineno} reads the attribute {node.attr!r}")

    def columns(self) -> set[str]:
        """Names that the template reads from a row."""
        names = meta.find_undeclared_variables(_environment().parse(self.source))
        return names - set(_environment().globals)

    def render(self, row: Mapping[str, Any], where: str) -> str:
        """
        The text for one row.

        Args:
            row (`Mapping[str, Any]`): column name to value.
            where (`str`): which row it is, for messages.

        Raises:
            InputError: if the row lacks a column, or the template fails or reaches for internals.
        """
        try:
            return _compiled(self.source).render(**row)
        except SecurityError as error:
            raise self._forbidden(str(error).rstrip(".")) from error
        except jinja2.UndefinedError as error:
            missing = sorted(self.columns() - set(row))
            if missing:
                raise self.missing_column(missing[0], row, where) from error
            raise InputError(f"{self.place} fails on {where}: {error}.") from error
        except Exception as error:  # a template is a small program and may fail in any way
            raise InputError(f"{self.place} fails on {where}: {type(error).__name__}: {error}.") from error

    def missing_column(self, column: str, row: Mapping[str, Any], where: str) -> InputError:
        hint = nearest(column, list(row))
        return InputError(
            f"The column {column!r}, which {self.place} needs, is not in {where}.{hint} "
            f"Its columns are {', '.join(row)}."
        )

    def _forbidden(self, what: str) -> InputError:
        return InputError(
            f"{self.place} is refused: {what}. A template may use the columns of a row and Jinja2's "
            "filters, not Python's internals."
        )
