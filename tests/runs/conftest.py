"""The teacher, the recipe and the command of comparisons whose runs are stand-ins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm.report.comparison import Comparison
from tests.support.models import decoder, save, word_tokenizer
from tests.support.stand_in_runs import comparer, recipe_of


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("teacher"), decoder(layers=3), word_tokenizer())


@pytest.fixture
def recipe(tmp_path: Path, teacher: Path) -> dict[str, Any]:
    return recipe_of(tmp_path, teacher)


@pytest.fixture
def compare(tmp_path: Path, recipe: dict[str, Any]) -> Callable[..., Comparison]:
    return comparer(tmp_path, recipe)
