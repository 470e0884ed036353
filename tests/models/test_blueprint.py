"""A model's shape without its weights is the shape of the model that is loaded."""

import pytest
import torch

from sinkd_llm.errors import InputError
from sinkd_llm.models import load_model
from sinkd_llm.models.blueprint import blueprint
from sinkd_llm.models.origin import new_modules_of


def shapes(model):
    return {name: (tuple(p.shape), p.dtype) for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_a_folder(tiny_causal_lm, tmp_path, dtype):
    tiny_causal_lm().to(torch.bfloat16).save_pretrained(tmp_path)
    planned = blueprint(tmp_path, dtype=dtype)
    assert all(p.is_meta for p in planned.parameters())
    assert shapes(planned) == shapes(load_model(tmp_path, dtype=dtype))


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_other_families_and_a_new_head(tiny_model, tmp_path, family):
    tiny_model(family, "MaskedLM").save_pretrained(tmp_path)
    labels = ("a", "b", "c") if family == "bert" else None
    planned, loaded = blueprint(tmp_path, labels=labels), load_model(tmp_path, labels=labels)
    assert shapes(planned) == shapes(loaded)
    assert new_modules_of(planned) == new_modules_of(loaded)


@pytest.mark.real_model
def test_a_bundled_gguf_file(smollm2):
    planned = blueprint("smollm2-135m")
    assert shapes(planned) == shapes(smollm2[0])


def test_an_unreadable_configuration(tiny_causal_lm, tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(InputError, match="cannot be read"):
        blueprint(tmp_path)
