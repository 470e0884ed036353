"""A model and an adapter on it, in folders as users have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm.models import load_model
from tests.support.models import save, with_adapter


@pytest.fixture
def model_folder(tiny_causal_lm: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path) -> Path:
    return save(tmp_path / "model", tiny_causal_lm(), tiny_tokenizer)


@pytest.fixture
def adapter_folder(model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    with_adapter(load_model(model_folder)).save_pretrained(folder)
    return folder
