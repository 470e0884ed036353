"""Pages made of templates: what users and data wrote is text there, whatever it holds, and no page loads anything."""

import base64
import hashlib
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sinkd_llm.secrets import masked_text, without_home
from sinkd_llm.terminal import printable
from sinkd_llm.units import format_count, format_score, format_share

SCRIPT = "page.js.jinja"
_GENERATOR = '<meta name="generator" content="sinkd-llm">'


def render_page(template: str, **values: Any) -> str:
    """
    A page as HTML text that needs no other file and no network: its policy forbids both, and any script but its own.

    Args:
        template (`str`): its name, beside this module.
        values: of the names in it. Text is escaped, and its control characters are written out; only what is marked
            as safe there is HTML.
    """
    environment = _environment(autoescape=True)
    script = environment.get_template(SCRIPT).render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return environment.get_template(template).render(script=script, policy=policy, **values)


def is_page(path: Path) -> bool:
    """Whether a file is a page that [`render_page`] made."""
    with path.open("rb") as file:
        return _GENERATOR.encode() in file.read(4096)


def render_text(template: str, **values: Any) -> str:
    """A text made of a template, in which control characters of values are written out."""
    return _environment(autoescape=False).get_template(template).render(**values)


def _environment(autoescape: bool) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sinkd_llm", "report"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "score": format_score,
        "share": format_share,
        "count": format_count,
        "clean": lambda text: without_home(masked_text(str(text))),
        "md": in_markdown,
        "fenced": fenced,
    }
    environment.filters |= filters
    return environment


def in_markdown(text: object) -> str:
    """A text within a line or a cell of Markdown, in which it is neither HTML nor Markdown."""
    line = " ".join(without_home(masked_text(printable(text))).split())
    return re.sub(r"([\\`*_{}\[\]#|~!])", r"\\\1", html.escape(line, quote=False))


def fenced(text: object, language: str = "") -> str:
    """A text, or code in a language, as a block of Markdown as it stands, whatever it holds."""
    content = printable(text)
    fence = "`" * (max((len(run) for run in re.findall(r"`+", content)), default=0) + 1)
    fence = max(fence, "```", key=len)
    return f"{fence}{language}\n{content}\n{fence}"


def _shown(value: Any) -> Any:
    """A value of a template: text is made harmless; HTML of our own, which is marked, stays."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
