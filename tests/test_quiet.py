"""What of other libraries is silenced, and what is not."""

import logging
import os
import sys
import warnings

import pytest

from sinkd_llm.quiet import quiet_transformers, quieten_libraries, without_warning


class Shown(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is silenced for a command is heard again after a test."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(warnings, "filters", list(warnings.filters))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def test_known_noise_is_dropped_and_nothing_else() -> None:
    quieten_libraries()
    quieten_libraries()  # a second command in one process
    logger, shown = logging.getLogger("DeepSpeed"), Shown()
    assert len(logger.filters) == 1
    logger.addHandler(shown)
    try:
        logger.warning("Setting accelerator to CPU. If you have a GPU, it was not found.")
        logger.warning("Something that a user should read.")
    finally:
        logger.removeHandler(shown)
    assert shown.texts == ["Something that a user should read."]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["TRANSFORMERS_VERBOSITY"] = "info"
    os.environ.pop("DATASETS_VERBOSITY", None)
    quieten_libraries()
    assert (os.environ["TRANSFORMERS_VERBOSITY"], os.environ["DATASETS_VERBOSITY"]) == ("info", "error")


@pytest.mark.parametrize(("debug", "shown"), [("", ["for the user"]), ("1", ["for a developer", "for the user"])])
def test_what_libraries_tell_one_another_is_for_debugging(
    debug: str, shown: list[str], capsys: pytest.CaptureFixture
) -> None:
    os.environ["SINKD_DEBUG"] = debug
    warnings.resetwarnings()
    quieten_libraries()
    warnings.warn("for a developer", FutureWarning, stacklevel=1)
    warnings.warn("for the user", UserWarning, stacklevel=1)
    said = capsys.readouterr()
    assert said.out == ""
    assert [text for text in ("for a developer", "for the user") if text in said.err] == shown


def test_transformers_speaks_again_afterwards(capsys: pytest.CaptureFixture) -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_progress_bar()
    before = transformers_logging.get_verbosity()
    with quiet_transformers(stderr=True):
        assert not transformers_logging.is_progress_bar_enabled()
        assert transformers_logging.get_verbosity() == logging.ERROR
        print("a bar", file=sys.stderr)
    assert capsys.readouterr().err == ""
    assert transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.get_verbosity() == before


def test_one_warning_is_left_out_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_warning("Could not find"):
            warnings.warn("Could not find a file", UserWarning, stacklevel=1)
            warnings.warn("The disk is full", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["The disk is full"]
