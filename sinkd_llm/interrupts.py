"""SIGTERM, which schedulers send, and SIGHUP, of a terminal that is gone, end a command as Ctrl-C does."""

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What shells report of a process that a signal ended: 128 and the signal's number.
INTERRUPTED_CODE = 128 + signal.SIGINT
TERMINATED_CODE = 128 + signal.SIGTERM
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class Interrupted(KeyboardInterrupt):
    """
    A command was stopped from outside, and has left everything whole.

    Args:
        message (`str`): what to say.
        exit_code (`int`, *optional*, defaults to 130): of the command: 130 after Ctrl-C, 143 after SIGTERM, 129 after
            SIGHUP.
    """

    def __init__(self, message: str, exit_code: int = INTERRUPTED_CODE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def terminating_signals() -> list[int]:
    """SIGTERM, and SIGHUP unless it is ignored, as `nohup` makes it for runs that shall outlive their terminal."""
    hangup = [_HANGUP] if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN else []
    return [signal.SIGTERM, *hangup]


def leave_terminal(signum: int) -> None:
    """After SIGHUP, send the output that went to a terminal nowhere: writing to one that is gone is an error."""
    if signum != _HANGUP:
        return
    for stream in (sys.stdout, sys.stderr):
        try:
            # A terminal that is gone does not say any more that it is one, but is still a character device.
            if stream is not None and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):
            continue  # it has no file, so it is no terminal


@contextmanager
def termination_raises() -> Iterator[None]:
    """Inside, in the main thread, SIGTERM and SIGHUP raise [`Interrupted`]: what is being written is put in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        # Launchers and schedulers may both send it; the second one must not stop what the first one puts in order.
        for other in previous:
            signal.signal(other, signal.SIG_IGN)
        leave_terminal(signum)
        raise Interrupted(f"stopped by {signal.Signals(signum).name}", 128 + signum)

    previous = {number: signal.signal(number, stop) for number in terminating_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
