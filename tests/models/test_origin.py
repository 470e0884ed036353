"""What a loaded model remembers of where it comes from, and how its weights are packed or spread."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from sinkd_llm.models import load_model, resolve_model_source
from sinkd_llm.models.names import ModelSource
from sinkd_llm.models.origin import commit_of, modules_of, name_of, new_modules_of, note_held, origin_of, set_origin
from sinkd_llm.models.partitioning import held_part, is_part, whole_shape, whole_value
from sinkd_llm.models.quantisation import is_quantised, quantisation_asked_for, quantisation_of
from tests.support.models import with_adapter


def test_a_model_of_the_user_has_no_origin(tiny_causal_lm: Callable[..., Any]) -> None:
    model = tiny_causal_lm()
    assert origin_of(model) is name_of(model) is commit_of(model) is None
    assert new_modules_of(model) == ()


def test_an_adapter_gives_the_origin_of_its_base(model_folder: Path) -> None:
    model = with_adapter(load_model(model_folder))
    origin = origin_of(model)
    assert origin is not None
    assert origin.source == resolve_model_source(model_folder)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (ModelSource("org/x", "hub", "org/x"), "org/x"),
        (ModelSource("x", "folder", "/models/x"), "/models/x"),
        (ModelSource("~/x.gguf", "gguf", "/models", "x.gguf"), "~/x.gguf"),
        (ModelSource("smollm2-135m", "bundled", "/site-packages/x"), "smollm2-135m"),
        (None, ""),
    ],
)
def test_other_libraries_keep_the_name_that_a_user_knows(
    tiny_causal_lm: Callable[..., Any], source: ModelSource | None, name: str
) -> None:
    model = tiny_causal_lm()
    set_origin(model, source, ("classifier",))
    assert model.name_or_path == model.config.name_or_path == name
    note_held(model, False)
    origin = origin_of(model)
    assert origin is not None
    assert (origin.source, origin.new_modules, origin.held_before_spreading) == (source, ("classifier",), False)


def test_modules_are_named_by_their_beginning() -> None:
    assert modules_of(["classifier.out_proj.weight", "classifier.dense.bias", "bert.pooler.dense.weight"]) == (
        "classifier",
        "pooler",
    )


@pytest.mark.parametrize(
    ("asked", "method", "said"),
    [
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), "bitsandbytes", "nf4"),
        ({"load_in_4bit": True}, "bitsandbytes", "fp4"),
        (BitsAndBytesConfig(load_in_8bit=True), "bitsandbytes", "int8"),
        ({"quant_method": "gptq"}, "gptq", "gptq"),
        (None, "gguf", "gguf"),
        (None, None, None),
    ],
)
def test_how_weights_are_packed(
    tiny_causal_lm: Callable[..., Any], asked: Any, method: str | None, said: str | None
) -> None:
    model = tiny_causal_lm()
    model.quantization_method, model.config.quantization_config = method, asked
    assert quantisation_of(model) == quantisation_of(torch.nn.DataParallel(model)) == said
    assert is_quantised(model) == (said is not None)
    assert quantisation_asked_for(asked) == (said if method == "bitsandbytes" else None)


def test_weights_of_deepspeed_and_fsdp_are_parts() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 3))
    assert not is_part(weight)
    assert whole_shape(weight) == (2, 3)
    assert torch.equal(held_part(weight), weight)  # type: ignore[arg-type]
    assert whole_value(weight) is weight
    empty: Any = torch.nn.Parameter(torch.empty(0))
    empty.ds_id, empty.ds_shape, empty.ds_tensor = 1, torch.Size((4, 3)), torch.ones(6)
    assert is_part(empty)
    assert whole_shape(empty) == (4, 3)
    assert held_part(empty).numel() == 6  # type: ignore[union-attr]
    spread: Any = SimpleNamespace(full_tensor=lambda: torch.ones(4), shape=(4,))
    assert is_part(spread)
    assert whole_value(spread).shape == (4,)
