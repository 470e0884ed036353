"""Printing: results to stdout, what is happening to stderr, both only from the first process."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# In a log there is no bar; often enough to see that something moves, and not so often that it is all there is.
SECONDS_BETWEEN_LINES = 30.0


def is_main_process() -> bool:
    """Whether this is the first process of the launch, also before torch knows of a launch."""
    return os.environ.get("RANK", "0") in ("", "0")


def say(text: str = "") -> None:
    """A line on what is happening, to stderr (the current one: a progress bar may redirect it)."""
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


def show(content: "str | Table") -> None:
    """A result, to stdout."""
    if not is_main_process():
        return
    from rich.console import Console

    # A pipe or a log has no width of its own, and rich would fold a table at 80 columns there.
    width = None if sys.stdout.isatty() else 120
    console = Console(width=width, highlight=False, soft_wrap=isinstance(content, str))
    console.print(content, markup=False)


@contextmanager
def progress(text: str) -> Iterator[Callable[[int, int], None]]:
    """Says `text`, and yields a callback `(done, total)`: it draws a bar on a terminal, and writes lines to a log."""
    if not sys.stderr.isatty() or not is_main_process():
        say(f"{text} …")
        yield _line_now_and_then(text)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(bar_width=24)]
    with Progress(*columns, MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=None)
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


# What libraries say at import on every machine without a GPU, and no user of this command can or need act on.
_KNOWN_NOISE = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "DeepSpeed": "Setting accelerator to CPU",
}


class _Drop(logging.Filter):
    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


def drop_known_noise() -> None:
    """Drop the messages of `_KNOWN_NOISE`; others of the same libraries are shown as before."""
    for name, beginning in _KNOWN_NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Drop) for f in logger.filters):
            logger.addFilter(_Drop(beginning))
