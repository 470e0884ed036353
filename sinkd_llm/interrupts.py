"""SIGTERM, which schedulers send before they kill, ends a command as Ctrl-C does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What shells report of a process that a signal ended: 128 and the signal's number.
INTERRUPTED_CODE = 128 + signal.SIGINT
TERMINATED_CODE = 128 + signal.SIGTERM


class Interrupted(KeyboardInterrupt):
    """
    A command was stopped from outside, and has left everything whole.

    Args:
        message (`str`): what to say.
        exit_code (`int`, *optional*, defaults to 130): of the command: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, exit_code: int = INTERRUPTED_CODE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def termination_raises() -> Iterator[None]:
    """Inside, SIGTERM raises [`Interrupted`], so that what is being written is put in order; in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        # Launchers and schedulers may both send it; the second one must not stop what the first one puts in order.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Interrupted("stopped by SIGTERM", TERMINATED_CODE)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
