"""What reaches the user's terminal."""

import logging

import pytest

from sinkd_llm.terminal import drop_known_noise


def test_known_noise_is_dropped_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    drop_known_noise()
    drop_known_noise()  # a second command in one process
    logger = logging.getLogger("DeepSpeed")
    assert len(logger.filters) == 1
    propagate, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.WARNING, logger="DeepSpeed"):
            logger.warning("Setting accelerator to CPU. If you have a GPU, it was not found.")
            logger.warning("Something that a user should read.")
    finally:
        logger.propagate = propagate
    assert [record.getMessage() for record in caplog.records] == ["Something that a user should read."]
