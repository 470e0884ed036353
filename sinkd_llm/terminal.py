"""Printing: results to stdout, what is happening to stderr, both only from the first process."""

import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from sinkd_llm.secrets import masked_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# In a log there is no bar; often enough to see that something moves, and not so often that it is all there is.
SECONDS_BETWEEN_LINES = 30.0
# Characters in a line of a column whose words may be broken, where a terminal is too narrow.
_FOLDED = 12


def is_main_process() -> bool:
    """Whether this is the first process of the launch, also before torch knows of a launch."""
    return os.environ.get("RANK", "0") in ("", "0")


# What acts on a terminal, or makes text read otherwise than it is: the control characters but newline and tab, marks
# that reverse the writing direction, other line ends, and halves of characters, which no encoding takes.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

# For terminals that cannot show them.
_PLAIN = {
    "…": "...",
    "–": "-",
    "—": "-",
    "─": "-",
    "→": ">",
    "✓": "+",
    "✗": "-",
    "·": ".",
    "±": "+-",
    "×": "x",
    "≤": "<=",
}


def printable(text: object) -> str:
    """`text` with what would act on a terminal written out: ESC as `\\x1b`. Newlines and tabs stay."""
    return _UNPRINTABLE.sub(lambda found: _written_out(found.group()), str(text))


def _written_out(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def encodable(text: str, stream: IO[str] | None) -> str:
    """`text` as `stream` can take it: where its encoding lacks a character, a plainer one or its number stands."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        characters = [c if _fits(c, encoding) else _PLAIN.get(c, c) for c in text]
        return "".join(characters).encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:  # a stream of the user's own, with an encoding that Python does not know
        return text


def _fits(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def say(text: str = "") -> None:
    """A line on what is happening, to stderr (the current one: a progress bar may redirect it)."""
    if is_main_process():
        _write(sys.stderr, masked_text(printable(text)) + "\n")


def say_error(text: str) -> None:
    """A line to stderr from whichever process has something to say, on one line."""
    _write(sys.stderr, masked_text(printable(text)).replace("\n", "\\n") + "\n")


def show(content: "str | Table") -> None:
    """A result, to stdout. A reader that went away (`| head`) does not stop the command."""
    if not is_main_process() or sys.stdout is None:
        return
    if isinstance(content, str):
        _write(sys.stdout, printable(content) + "\n")
        return
    console = _console()
    _make_printable(content)
    # Where the terminal is narrower than the table, its lines are folded by the terminal: nothing is left out.
    console.width = max(console.width, _narrowest(content, console))
    with console.capture() as captured:
        console.print(content)
    _write(sys.stdout, captured.get())


def columns() -> int:
    """How wide a table to stdout may be: as the terminal is, as `COLUMNS` says, or 120 in a pipe or a log."""
    return int(_console().width)


def _console() -> "Console":
    from rich.console import Console

    # A pipe or a log has no width of its own but what COLUMNS says; rich would fold a table at 80 columns there.
    own = sys.stdout is not None and sys.stdout.isatty()
    width = None if own or os.environ.get("COLUMNS", "").isdecimal() else 120
    # Text of tables is text: `[bold]` and `:smile:` in a file name mean nothing.
    return Console(width=width, highlight=False, markup=False, emoji=False)


def _narrowest(table: "Table", console: "Console") -> int:
    """Columns of a terminal that the table needs: a column with `overflow="fold"` may break its longest words."""
    folding = [column for column in table.columns if column.overflow == "fold" and column.max_width is None]
    for column in folding:
        column.max_width = _FOLDED
    try:
        return console.measure(table, options=console.options.update(max_width=100_000)).minimum
    finally:
        for column in folding:
            column.max_width = None


def _make_printable(table: "Table") -> None:
    """Write out what would act on a terminal; and give columns that may not be folded their whole width."""
    from rich.cells import cell_len

    for column in table.columns:
        column.header = printable(column.header) if isinstance(column.header, str) else column.header
        # rich has no public way to change a cell.
        column._cells[:] = [printable(cell) if isinstance(cell, str) else cell for cell in column._cells]
        if column.no_wrap:
            texts = [cell for cell in (column.header, *column._cells) if isinstance(cell, str)]
            lengths = [cell_len(line) for text in texts for line in text.splitlines()]
            column.min_width = max([column.min_width or 0, *lengths])


def _write(stream: IO[str] | None, text: str) -> None:
    """Write and flush. What a closed pipe no longer takes is dropped, with all that comes after it."""
    if stream is None:  # closed by whoever started the command (`>&-`)
        return
    try:
        stream.write(encodable(text, stream))
        stream.flush()
    except BrokenPipeError:
        drop_output(stream)
    except OSError as error:
        drop_output(stream)
        if stream is not sys.stderr:  # where nothing could be said of it
            raise OSError(error.errno, error.strerror, "standard output") from error


def write_everything() -> None:
    """Let what other packages print to stdout and stderr be written out where an encoding lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Find out now, and not when Python ends, that the output cannot be written."""
    if sys.stdout is not None:
        _write(sys.stdout, "")


def drop_output(stream: IO[str]) -> None:
    """Let a stream whose reader is gone write to nowhere, so that Python does not fail at closing it."""
    with suppress(OSError, ValueError):  # not a file of the system, as in tests and notebooks
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """Says `text`, and yields a callback `(done, total)`: it draws a bar on a terminal, and writes lines to a log."""
    if sys.stderr is None or not sys.stderr.isatty() or not is_main_process():
        say(f"{text} …")
        yield _line_now_and_then(text)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)]
    with Progress(*columns, MofNCompleteColumn(), TimeRemainingColumn(), console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(encodable(printable(text), sys.stderr), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line_now_and_then(text: str) -> Callable[[int, int], None]:
    said = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= SECONDS_BETWEEN_LINES and done < total:
            said = now
            say(f"{text}: {done:,} done")

    return line


class _WarnOnce(logging.Handler):
    """Prints the warnings of this package, each text once: rows are tokenised for every score."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text not in self.seen:
            self.seen.add(text)
            say(f"Note: {text}")


def show_warnings_once() -> None:
    """Show what the package's loggers warn of, for one command; an earlier command's handler goes."""
    logger = logging.getLogger("sinkd_llm")
    for handler in [h for h in logger.handlers if isinstance(h, _WarnOnce)]:
        logger.removeHandler(handler)
    logger.addHandler(_WarnOnce())
