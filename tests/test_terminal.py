"""What reaches the user's terminal."""

import logging

from sinkd_llm.terminal import drop_known_noise


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
