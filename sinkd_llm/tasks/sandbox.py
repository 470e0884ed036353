"""The sandbox of prompt templates: immutable Jinja2, and which templates take time and memory in proportion to a row.

A template is data from a task file, often somebody else's: it can format a row, but not reach Python's internals. A
template that could run for ever or fill the memory is rendered in a process of its own: see `bounded.py`.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sinkd_llm.values import NoTextError, Null

# How many times larger than the values of its row a template may make its text, if it runs in this process.
MAX_GROWTH = 10_000
# Numbers and texts in a template up to here cost nothing.
SMALL = 10_000
# Python compiles some hundred levels of nesting; no prompt has twenty.
MAX_DEPTH = 100
# Work in proportion to their input, without arguments that say how much.
_FILTERS = frozenset(
    {
        *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last"),
        *("length", "list", "lower", "map", "max", "min", "reject", "replace", "reverse", "round", "select", "sort"),
        *("string", "sum", "title", "trim", "truncate", "unique", "upper", "wordcount"),
    }
)
_METHODS = frozenset(
    {
        *("capitalize", "count", "endswith", "find", "get", "index", "items", "keys", "lower", "lstrip", "rstrip"),
        *("split", "splitlines", "startswith", "strip", "title", "upper", "values"),
    }
)
_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Slice),
    *(nodes.CondExpr, nodes.If, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Test),
    *(nodes.Concat, nodes.Add, nodes.Sub, nodes.Div, nodes.Neg, nodes.Pos, nodes.Assign),
    *(nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword),
)


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


def _text(value: Any) -> Any:
    """What `{{…}}` writes; lm-evaluation-harness would write null as the word None."""
    if value is None:
        raise NoTextError("an expression in it is null")
    return value


def _json_value(value: Any) -> str:
    """What `tojson` writes for a value that JSON does not have: a null without text is an error by its column."""
    if isinstance(value, Null):
        return str(value)
    raise TypeError(f"an object of type {type(value).__name__} is no JSON")


class _Environment(ImmutableSandboxedEnvironment):
    def call(self, *args: Any, **kwargs: Any) -> Any:
        """A call's result, such as the result of `column.get('key')`; null has no text here, too."""
        result = super().call(*args, **kwargs)
        return Null("", "null") if result is None else result


@lru_cache(maxsize=1)
def environment() -> ImmutableSandboxedEnvironment:
    # Undefined names are errors and a trailing newline stays: both as in lm-evaluation-harness, whose
    # one filter of its own is `regex_replace`.
    made = _Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_text, optimized=False)
    made.filters["regex_replace"] = _regex_replace
    made.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _json_value}
    made.tests["none"] = lambda value: value is None or isinstance(value, Null)
    return made


@lru_cache(maxsize=256)
def parsed(source: str) -> nodes.Template:
    """The tree of a template; raises `jinja2.TemplateSyntaxError`."""
    return environment().parse(source)


@lru_cache(maxsize=256)
def _compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


def evaluate(source: str, values: Mapping[str, Any]) -> str:
    """The text of a template over values of [`for_template`]; raises what Jinja2 and the template raise."""
    return _compiled(source).render(**values)


@lru_cache(maxsize=256)
def columns(source: str) -> frozenset[str]:
    """Names that the template reads and does not set itself."""
    # Jinja's own search folds constants on the way, and a template may hold a constant of gigabytes.
    names = list(parsed(source).find_all(nodes.Name))
    stored = {name.name for name in names if name.ctx != "load"}
    return frozenset({name.name for name in names if name.ctx == "load"} - stored - set(environment().globals))


@lru_cache(maxsize=256)
def is_bounded(source: str) -> bool:
    """Whether time and memory of a template are in proportion to its row, so that it may run in this process."""
    growth = 1.0
    for node in _all(parsed(source)):
        factor = _growth(node)
        if factor is None:
            return False
        growth *= factor
    return growth <= MAX_GROWTH


def _all(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _all(child)


def depth(tree: nodes.Node) -> int:
    """How many nodes lie in each other."""
    deepest, level = 0, [tree]
    while level:
        deepest += 1
        level = [child for node in level for child in node.iter_child_nodes()]
    return deepest


def _growth(node: nodes.Node) -> float | None:
    """How many times larger its result may be than its input; `None` for what knows no bound."""
    if isinstance(node, nodes.Const):
        value = node.value
        size = len(value) if isinstance(value, str) else abs(value or 0)
        return 1.0 if size <= SMALL else None
    if isinstance(node, nodes.Mul):
        factors = [side.value for side in (node.left, node.right) if isinstance(side, nodes.Const)]
        numbers = [abs(factor) for factor in factors if isinstance(factor, int | float)]
        return max(1.0, numbers[0]) if len(numbers) == 1 else None
    if isinstance(node, nodes.Filter):
        return _filter_growth(node)
    if isinstance(node, nodes.Call):
        known = isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS
        return 1.0 if known and node.dyn_args is None and node.dyn_kwargs is None else None
    if isinstance(node, nodes.Concat):
        return float(len(node.nodes))
    if isinstance(node, nodes.Add):
        return 2.0
    return 1.0 if isinstance(node, _NODES) else None


def _filter_growth(node: nodes.Filter) -> float | None:
    if node.name not in _FILTERS or node.node is None or node.dyn_args is not None or node.dyn_kwargs is not None:
        return None
    texts = [
        len(arg.value) if isinstance(arg, nodes.Const) and isinstance(arg.value, str) else -1 for arg in node.args
    ]
    if node.name == "join":
        return None if -1 in texts or node.kwargs else 1.0 + sum(texts)
    if node.name == "replace":
        if -1 in texts[:2] or len(texts) < 2 or node.kwargs:
            return None
        return max(1.0, texts[1] / max(1, texts[0])) if texts[0] else None
    if node.name in ("map", "select", "reject"):
        # A filter by name may be any, and tests of membership compare each with each.
        names = [arg.value for arg in node.args if isinstance(arg, nodes.Const)]
        known = node.name == "map" and names in (["trim"], ["lower"], ["upper"], ["string"], ["int"], ["float"])
        return 1.0 if known or (not node.args and not node.kwargs and node.name != "map") else None
    return 1.0
