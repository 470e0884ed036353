"""Prompt templates: sandboxed Jinja2 that renders as lm-evaluation-harness does, but for null, which has no text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import SecurityError

from sinkd_llm.errors import InputError, nearest
from sinkd_llm.tasks import sandbox
from sinkd_llm.tasks.bounded import BoundsError, TemplateFailedError, render_bounded
from sinkd_llm.values import NoTextError, check_text, for_template, plain, without_text


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
            tree = sandbox.parsed(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise self._syntax_error(error.lineno, error.message or "") from error
        except (RecursionError, ValueError) as error:  # nested thousands deep; a number of thousands of digits
            raise self._syntax_error(1, str(error) or type(error).__name__) from error
        if sandbox.depth(tree) > sandbox.MAX_DEPTH:
            raise self._syntax_error(1, f"expressions are nested more than {sandbox.MAX_DEPTH} deep")
        for node in tree.find_all(nodes.Getattr):
            if node.attr.startswith("_"):
                raise self._forbidden(f"line {node.lineno} reads the attribute {node.attr!r}")
        known = {"filter": sandbox.environment().filters, "test": sandbox.environment().tests}
        for used in tree.find_all((nodes.Filter, nodes.Test)):
            kind = type(used).__name__.lower()
            if used.name not in known[kind]:
                hint = nearest(used.name, list(known[kind]))
                raise self._syntax_error(used.lineno, f"No {kind} named {used.name!r}.{hint}")

    def columns(self) -> set[str]:
        """Names that the template reads from a row."""
        return set(sandbox.columns(self.source))

    def lone_column(self) -> str | None:
        """
        The only column that the template reads, if it says nothing of what a null in it means: then a null makes all
        that it writes meaningless, also in `{{'yes' if label else 'no'}}`.
        """
        names = self.columns()
        tree = sandbox.parsed(self.source)
        decides = any(tree.find_all(nodes.Or)) or any(
            node.name in ("none", "defined", "undefined", "default", "d")
            for node in tree.find_all((nodes.Filter, nodes.Test))
        )
        return next(iter(names)) if len(names) == 1 and not decides else None

    def render(self, row: Mapping[str, Any], where: str, null_text: str | None = None) -> str:
        """
        The text for one row.

        Args:
            row (`Mapping[str, Any]`): column name to value.
            where (`str`): which row it is, for messages.
            null_text (`str`, *optional*): what a null is as text. By default it has none, and writing it is an error.

        Raises:
            InputError: if the row lacks a column, or writes one that is null; if the template fails, reaches for
                internals, or takes more than 5 seconds or 1 GB.
        """
        used = {name: row[name] for name in sandbox.columns(self.source) if name in row}
        try:
            if sandbox.is_bounded(self.source):
                text = sandbox.evaluate(
                    self.source, {name: for_template(value, name, null_text) for name, value in used.items()}
                )
            else:
                text = render_bounded(self.source, used, null_text)
        except SecurityError as error:
            raise self._failure("forbidden", str(error), row, where) from error
        except jinja2.UndefinedError as error:
            raise self._failure("undefined", str(error), row, where) from error
        except NoTextError as error:
            raise self._failure("no_text", str(error), row, where) from error
        except TemplateFailedError as error:
            raise self._failure(error.kind, str(error), row, where) from error
        except BoundsError as error:
            raise InputError(
                f"{self.place} {error} on {where}; drop the loop, regular expression or multiplication that does it."
            ) from error
        except Exception as error:  # a template is a small program and may fail in any way
            raise self._failure("other", f"{type(error).__name__}: {error}", row, where) from error
        return check_text(text, self.place, where)

    def _failure(self, kind: str, message: str, row: Mapping[str, Any], where: str) -> InputError:
        message = " ".join(message[:300].split()).rstrip(".")
        if kind == "forbidden":
            return self._forbidden(message)
        if kind == "no_text":
            return self.no_text(message, where)
        missing = sorted(self.columns() - set(row))
        if kind == "undefined" and missing:
            return self.missing_column(missing[0], row, where)
        null = [name for name in sorted(self.columns() & set(row)) if without_text(plain(row[name])) is not None]
        hint = f" ({', '.join(map(repr, null))} is {without_text(plain(row[null[0]]))} there)" if null else ""
        return InputError(f"{self.place} fails on {where}: {message}{hint}.")

    def no_text(self, reason: str, where: str) -> InputError:
        return InputError(
            f"{self.place} has no text for {where}: {reason}; correct the row, or say in the template what stands "
            f"there instead, such as {{{{column or ''}}}}."
        )

    def missing_column(self, column: str, row: Mapping[str, Any], where: str) -> InputError:
        hint = nearest(column, list(map(str, row)))
        return InputError(
            f"The column {column!r}, which {self.place} needs, is not in {where}.{hint} "
            f"Its columns are {', '.join(map(str, row))}."
        )

    def _syntax_error(self, line: int, message: str) -> InputError:
        return InputError(
            f"Template syntax error in {self.key}, line {line} of the template, in {self.path}: {message}"
        )

    def _forbidden(self, what: str) -> InputError:
        return InputError(
            f"{self.place} is refused: {what}. A template may use the columns of a row and Jinja2's "
            "filters, not Python's internals."
        )
