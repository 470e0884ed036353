"""A student behind HTTP on the loopback, as `sinkd serve` runs it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinkd_llm import load_student
from sinkd_llm.serving.app import ServeSettings, StudentServer
from sinkd_llm.serving.limits import ServeLimits
from sinkd_llm.serving.running import bound, http_server


@contextmanager
def running(student: Path, limits: ServeLimits | None = None) -> Iterator[tuple[StudentServer, int]]:
    """The server of a student, in a thread of this process, and its port."""
    server = StudentServer(load_student(student), ServeSettings("tiny", limits or ServeLimits()))
    process = http_server(server)
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=process.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            while not server.batcher.ready:
                time.sleep(0.01)
            yield server, port
        finally:
            process.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
