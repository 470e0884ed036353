"""Writes docs/objectives.md from the table of what a loss can be made of: `python -m tools.objectives_page`."""

from collections.abc import Sequence
from pathlib import Path

from sinkd_llm.objectives.catalogue import NEEDS, advice, parts
from tools.markdown import table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "objectives.md"
_INTRODUCTION = """\
# Which loss for which data?

<!-- Made by `python -m tools.objectives_page` from sinkd_llm/objectives/catalogue.py: change that. -->

A loss is a weighted sum of the parts below. Start from the data that you have.
"""
_PARTS = """
## The parts

A name is what the part is called in the log, which has divergences and `transported` with their [temperature
factor](method.md#the-temperature-factor). q and s_i are the student's distributions of a row, p and t_j the
teacher's, both at the temperature of the part. A control has its equation so that a comparison can show what a plan is
worth. [The method](method.md) has the equations in full.
"""


def page() -> str:
    """The whole of docs/objectives.md."""
    chosen = [(one.data, _code(one.parts), one.settings, one.remark) for one in advice()]
    made = [(f"`{one.name}`", one.setting, f"`{one.equation}`", ", ".join(one.needs), one.purpose) for one in parts()]
    return "\n".join(
        [
            _INTRODUCTION,
            *table(("data", "parts", "settings", ""), chosen),
            _PARTS,
            *table(("part", "switched on by", "of a row, or of a problem of n rows", "needs", "what it is for"), made),
            "\nWhat is needed:\n",
            *(f"- *{name}*: {meaning}." for name, meaning in NEEDS.items()),
            "",
        ]
    )


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
