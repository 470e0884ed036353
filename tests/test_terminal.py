"""What reaches the user's terminal."""

import logging

import pytest

from sinkd_llm import terminal
from sinkd_llm.terminal import drop_known_noise, progress


class Shown(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def test_known_noise_is_dropped_and_nothing_else() -> None:
    drop_known_noise()
    drop_known_noise()  # a second command in one process
    logger, shown = logging.getLogger("DeepSpeed"), Shown()
    assert len(logger.filters) == 1
    logger.addHandler(shown)
    try:
        logger.warning("Setting accelerator to CPU. If you have a GPU, it was not found.")
        logger.warning("Something that a user should read.")
    finally:
        logger.removeHandler(shown)
    assert shown.texts == ["Something that a user should read."]


def test_a_log_gets_a_line_of_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with progress("Caching 6400 examples") as seen:
        for done in range(0, 6401, 800):
            clock[0] += 11
            seen(done, 6400)
    assert capsys.readouterr().err.splitlines() == [
        "Caching 6400 examples …",
        "Caching 6400 examples: 1,600 done",
        "Caching 6400 examples: 4,000 done",
    ]
