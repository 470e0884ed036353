"""What several commands print: lines that fit a terminal, and the end of a training run."""

import textwrap
from typing import TYPE_CHECKING

from sinkd_llm.environment import peak_memory_bytes
from sinkd_llm.report.results import METRICS_FILE, REPORT_FILE, RESULTS_FILE
from sinkd_llm.report.table import describe_training, results_table, summary
from sinkd_llm.terminal import show
from sinkd_llm.units import format_bytes

if TYPE_CHECKING:
    from sinkd_llm.runs import RunResult


# Of a terminal as it opens, and of what is pasted into a report.
WIDTH = 80


def show_wrapped(text: str, indent: str = "  ") -> None:
    """Text to stdout, folded between words; what is one word (a path, a command) stays whole."""
    show(
        "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))
    )


def show_run(result: "RunResult") -> None:
    """The results table, one sentence on it, and where everything is."""
    show("")
    show(results_table(result.rows))
    if text := summary(result.rows):
        show(text)
    memory = format_bytes(peak_memory_bytes())
    show(
        f"{describe_training(result.training)}, peak memory {memory}. "
        f"Model, {RESULTS_FILE}, {METRICS_FILE} and {REPORT_FILE} are in {result.output_dir}"
    )
