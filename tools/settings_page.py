"""Writes docs/settings.md from the docstrings of the settings: `python -m tools.settings_page`."""

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from sinkd_llm import SinKDConfig
from sinkd_llm.runs.arguments import CacheArguments, EvaluateArguments, LaunchArguments, TaskArguments
from sinkd_llm.training.settings.checks import accepted
from sinkd_llm.training.settings.optional_terms import OptionalTermArguments
from sinkd_llm.training.settings.texts import setting_texts

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
_INTRODUCTION = """\
# Settings

<!-- Made by `python -m tools.settings_page` from the docstrings of the settings: change those. -->

A setting has one name everywhere: `--alpha 0.5` on the command line, `alpha: 0.5` in a recipe,
`SinKDConfig(alpha=0.5)` in Python. `sinkd distill --help` shows the same texts as this page. The training commands
take the fields of TRL's `ModelConfig` and of `transformers.TrainingArguments` as well; for what a value may be, see
[the command line](command_line.md#what-a-setting-may-be). A setting without a default is unset (`null`).
"""
# Title, what takes the settings, and the dataclass.
_SECTIONS = (
    ("Task and data", "`sinkd finetune`, `sinkd distill` and `sinkd cache`", TaskArguments),
    ("Distillation", "`sinkd finetune`, `sinkd distill` and `sinkd cache`", SinKDConfig),
    (
        "Distillation: terms that are off by default",
        "`sinkd finetune`, `sinkd distill` and `sinkd cache`",
        OptionalTermArguments,
    ),
    ("How a command runs", "`sinkd finetune` and `sinkd distill`", LaunchArguments),
    ("Teacher cache", "`sinkd cache`", CacheArguments),
    ("Evaluation", "`sinkd evaluate`", EvaluateArguments),
)


def page() -> str:
    """The whole of docs/settings.md."""
    parts = [_INTRODUCTION]
    for title, taken_by, settings in _SECTIONS:
        parts.append(f"## {title}\n\n`{settings.__name__}`, taken by {taken_by}.\n")
        parts.extend(_tables(settings))
    return "\n".join(parts)


def _tables(settings: type) -> Iterator[str]:
    texts, takes = setting_texts(settings), accepted(settings)
    groups: dict[str, list[str]] = {text.group: [] for text in texts.values()}
    for field in fields(settings):
        if field.name not in settings.__annotations__:
            continue
        text = texts.get(field.name)
        # A text that belongs to another dataclass comes with the field.
        words = _links_as_code(text.text) if text is not None else field.metadata["help"].replace("%%", "%")
        default = "" if field.default is None else f"`{_written(field.default)}`"
        cells = (f"`{field.name}`", default, takes[field.name], words)
        groups[text.group if text is not None else ""].append(" | ".join(cell.replace("|", "\\|") for cell in cells))
    for group, rows in groups.items():
        if group:
            yield f"### {group[0].upper()}{group[1:]}\n"
        yield "\n".join(["| setting | default | takes | |", "|---|---|---|---|", *(f"| {row} |" for row in rows), ""])


def _links_as_code(text: str) -> str:
    return re.sub(r"\[`(?:~(?:\w+\.)*)?([^`]+)`\]", r"`\1`", text)


def _written(value: object) -> str:
    """A default as a recipe has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
