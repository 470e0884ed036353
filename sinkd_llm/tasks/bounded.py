"""Templates that may run for ever or fill the memory are rendered in a process of their own, which has bounds.

Neither a loop nor a regular expression can be stopped from within the process that runs it (and outside its main
thread not even by a signal), so the process is ended from outside.
"""

import atexit
import contextlib
import json
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO

# A template that formats a row takes less than a millisecond.
SECONDS = 5.0
MEMORY_BYTES = 1 << 30
# More than any model reads.
MAX_CHARACTERS = 10_000_000
# A busy machine may take long to start a process.
START_SECONDS = 120.0

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sinkd_llm.tasks.bounded import serve; serve()"


class BoundsError(Exception):
    """A template went beyond its time, its memory, or the length of a text."""


class TemplateFailedError(Exception):
    """
    A template failed in the other process.

    Args:
        kind (`str`): `"forbidden"`, `"undefined"`, `"no_text"` or `"other"`.
        message (`str`): what Jinja2 or Python said.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Process:
    """The process, and a thread that waits for its answers."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        if not self.answer(START_SECONDS):
            self.end()
            raise OSError("the process that renders templates did not start")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(b"")  # it has ended

    def answer(self, seconds: float) -> bytes | None:
        """The next line; empty if the process has ended, `None` if there is none in time."""
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def ask(self, request: Any) -> None:
        assert self.process.stdin is not None
        content = pickle.dumps(request)
        # A process that has ended answers with the end of its output.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(struct.pack("<Q", len(content)) + content)
            self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


_lock = threading.Lock()
_process: _Process | None = None


def render_bounded(source: str, row: Mapping[str, Any], null_text: str | None = None) -> str:
    """
    The text of a template in a process with bounds, from any thread.

    Args:
        source (`str`): the template.
        row (`Mapping[str, Any]`): its columns, as they stand in the row.
        null_text (`str`, *optional*): see [`~sinkd_llm.values.for_template`].

    Raises:
        BoundsError: if it takes more than 5 seconds, 1 GB, or writes more than 10 million characters.
        TemplateFailedError: if it fails.
    """
    global _process
    with _lock:
        if _process is None or _process.pid != os.getpid():  # after a fork the pipes are the parent's
            _process = _Process()
        process = _process
        process.ask((source, dict(row), null_text))
        line = process.answer(SECONDS)
        if not line:
            process.end()
            _process = None
            if line is None:
                raise BoundsError(f"runs for more than {SECONDS:g} seconds")
            raise BoundsError(f"needs more than {MEMORY_BYTES >> 30} GB of memory")
    kind, text = json.loads(line)
    if kind == "text":
        return str(text)
    if kind == "bounds":
        raise BoundsError(text)
    raise TemplateFailedError(kind, text)


@atexit.register
def _end() -> None:
    if _process is not None and _process.pid == os.getpid():
        _process.end()


def serve() -> None:
    """The other process: rows in, texts out, until its input ends."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    output = sys.stdout.buffer
    _bound_memory()
    _send(output, ("text", "ready"))
    while (request := _next(sys.stdin.buffer)) is not None:
        if hasattr(signal, "alarm"):
            signal.alarm(int(SECONDS) + 5)  # ends it if the parent is no more
        _send(output, _answer(*request))
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _bound_memory() -> None:
    try:
        import resource
    except ImportError:  # no such bound on Windows
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _next(stream: BinaryIO) -> Any:
    header = stream.read(8)
    return pickle.loads(stream.read(struct.unpack("<Q", header)[0])) if len(header) == 8 else None


def _send(stream: BinaryIO, answer: tuple[str, str]) -> None:
    stream.write(json.dumps(answer).encode("ascii") + b"\n")
    stream.flush()


def _answer(source: str, row: dict[str, Any], null_text: str | None) -> tuple[str, str]:
    from jinja2 import UndefinedError
    from jinja2.sandbox import SecurityError

    from sinkd_llm.tasks.sandbox import evaluate
    from sinkd_llm.values import NoTextError, for_template

    try:
        text = evaluate(source, {name: for_template(value, name, null_text) for name, value in row.items()})
    except MemoryError:
        return "bounds", f"needs more than {MEMORY_BYTES >> 30} GB of memory"
    except NoTextError as error:
        return "no_text", str(error)
    except SecurityError as error:
        return "forbidden", str(error)
    except UndefinedError as error:
        return "undefined", str(error)
    except Exception as error:  # a template is a small program and may fail in any way
        return "other", f"{type(error).__name__}: {error}"
    if len(text) > MAX_CHARACTERS:
        return "bounds", f"writes {len(text):,} characters, more than {MAX_CHARACTERS:,},"
    return "text", text
