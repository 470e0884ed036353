"""Everything that silences other libraries, and what of their messages is shown all the same."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

from sinkd_llm.environment import is_debugging
from sinkd_llm.terminal import say

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL reports its use from here too
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
}
# What libraries say at import on every machine without a GPU, and no user of this command can or need act on.
_KNOWN_NOISE = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "DeepSpeed": "Setting accelerator to CPU",
}


def quieten_libraries() -> None:
    """
    For one command, before any library is imported: no bars, no advice, no known noise; warnings go through `say`.

    Variables that the user has set keep their value. Under `SINKD_DEBUG=1` the warnings that libraries give to one
    another are shown.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not is_debugging():
        # What one library tells another about its next version is not for the user of this command.
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
    warnings.showwarning = _show_warning
    for name, beginning in _KNOWN_NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Drop) for f in logger.filters):
            logger.addFilter(_Drop(beginning))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    if file is None:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n"))
    else:
        file.write(warnings.formatwarning(message, category, filename, lineno, line))


class _Drop(logging.Filter):
    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


def hide_bars_of_transformers() -> None:
    """No "writing shards" and the like: this package's own bars say what counts. Imports Transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def hide_failures_of_torchrun() -> None:
    """A process that failed has said why: no traceback of torch's launcher, except under `SINKD_DEBUG=1`."""
    if not is_debugging():
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def quiet_transformers(*, stderr: bool = False) -> Iterator[None]:
    """
    Without Transformers' progress bars and warnings; what matters in them is checked and raised.

    Args:
        stderr (`bool`, *optional*, defaults to `False`): drop everything else on stderr, too: some bars are plain
            tqdm, which only listens to the stream.
    """
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()) if stderr else contextlib.nullcontext():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def without_warning(beginning: str) -> Iterator[None]:
    """Without the Python warnings that begin so (a regular expression)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=beginning)
        yield
