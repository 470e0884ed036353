"""What several commands print: lines that fit a terminal, and the end of a training run."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sinkd_llm.environment import peak_memory_bytes
from sinkd_llm.report.results import METRICS_FILE, REPORT_FILE, RESULTS_FILE
from sinkd_llm.report.table import describe_training, results_table, summary
from sinkd_llm.terminal import columns, show
from sinkd_llm.units import format_bytes

if TYPE_CHECKING:
    from sinkd_llm.runs import RunResult
    from sinkd_llm.runs.rehearsal import Rehearsal

# Of a terminal as it opens, and of what is pasted into a report.
WIDTH = 80
# Characters of a prompt that say how it is rendered.
LONGEST_TEXT = 1500
# A space at which no line ends.
_NO_FOLD = "\N{NO-BREAK SPACE}"


def show_wrapped(text: str, indent: str = "  ") -> None:
    """Text to stdout, folded between words; what is one word (a path, a command) stays whole."""
    show(
        "\n".join(textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))
    )


def show_list(name: str, items: Sequence[str], indent: str = "  ") -> None:
    """A named list to stdout, folded between its items alone where these fit a line."""
    whole = ", ".join(" ".join(item.split()).replace(" ", _NO_FOLD) for item in items)
    lines = textwrap.wrap(f"{name} {whole}", min(WIDTH, columns()), subsequent_indent=indent, break_on_hyphens=False)
    show("\n".join(lines).replace(_NO_FOLD, " "))


def show_row(row: Mapping[str, Any], longest: int | None = None, *, classified: bool = False) -> None:
    """
    A row as it is read: its id, its prompt or its texts, its choices, and which of them is right.

    Args:
        row (`Mapping`): of a task, or with `prompt` and `completion`.
        longest (`int`, *optional*): characters of a text that are shown of a longer one. By default all.
        classified (`bool`, *optional*, defaults to `False`): a classification head reads it, which reads the texts of
            the task's `metadata.texts` in the place of the prompt and has classes in the place of answers.
    """
    show(f"\n── {row.get('id', 'a row')}")
    texts = [row[name] for name in ("text", "text_pair") if row.get(name) is not None] if classified else []
    for text in texts or [_text(row["prompt"])]:
        show(_shortened(text, longest))
    for index, choice in enumerate(row.get("choices") or [row["completion"]]):
        said = _shortened(_text(choice), longest)
        # Quoted where the space before an answer is part of it.
        show(f"  {'→' if index == row.get('label', 0) else ' '} {said.strip() if classified else repr(said)}")
    if row.get("label") == -1:
        show("    (no label)")


def _text(said: Any) -> str:
    """A text, or the turns of a conversation one below the other."""
    if isinstance(said, str):
        return said
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in said)


def _shortened(text: str, longest: int | None) -> str:
    if longest is None or len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text):,} characters)"


def show_rehearsal(rehearsal: "Rehearsal") -> None:
    """What `--dry_run` has found: rows as they are rendered, and what the run would take."""
    for row in rehearsal.examples:
        show_row(row, LONGEST_TEXT, classified=rehearsal.classifies)
    show("")
    for name, text in rehearsal.lines.items():
        show_wrapped(f"{name:<10}{text}", indent=" " * 10)
    show_wrapped(f"sinkd {rehearsal.command} --dry_run: nothing was written. Leave the flag out to start.")


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
