"""Writes sinkd_llm/cli/flags.json from the parsers of the commands: `python -m tools.flag_table`."""

from sinkd_llm.cli.flag_table import TABLE, table_text
from sinkd_llm.cli.parsing import all_parsers


def text() -> str:
    """The whole of the table."""
    return table_text(all_parsers())


if __name__ == "__main__":
    TABLE.write_text(text(), encoding="utf-8")
