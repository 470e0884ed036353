"""Recipes: what `env:` may set, and what a mistake in one leaves behind."""

import os

import pytest

from sinkd_llm.cli.parsing import parse_training
from sinkd_llm.errors import InputError


@pytest.fixture
def parse(tmp_path):
    def run(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(f"task: quickstart\noutput_dir: {tmp_path / 'o'}\n{text}", encoding="utf-8")
        return parse_training("finetune", ["--config", str(path)])

    return run


@pytest.mark.parametrize(
    "name",
    [
        *("LD_PRELOAD", "ld_library_path", "PYTHONPATH", "PYTHONSTARTUP", "PATH", "BASH_ENV", "DYLD_INSERT_LIBRARIES"),
        *("CC", "RANK", "ACCELERATE_USE_CPU", "SINKD_DEBUG", "GIT_SSH_COMMAND"),
    ],
)
def test_names_that_decide_which_code_runs_are_refused(parse, name):
    before = dict(os.environ)
    with pytest.raises(InputError, match=f"'env' sets {name}, which decides what code runs"):
        parse(f"env:\n  {name}: x\n")
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env:\n  'A=B': x\n", "'env' holds 'A=B', which cannot name"),
        ("env:\n  '': x\n", "'env' holds '', which cannot name"),
        ('env:\n  "A\\0": x\n', "which cannot name"),
        ('env:\n  A: "x\\0"\n', "'env' sets A to 'x\\x00'"),
        ("env:\n  A: [1]\n", "'env' sets A to [1]"),
        ("env:\n  A: null\n", "'env' sets A to None"),
        ("env:\n  A: 1\n  A: 2\n", "gives the key 'A' again"),
        ("alpha: 0.1\nalpha: 0.2\n", "gives the key 'alpha' again"),
        ("seed: null\n", "recipe.yaml: seed is null, but it takes a whole number"),
        ("lora_r: 0\n", "recipe.yaml: lora_r is 0"),
        ("learning_rate: .nan\n", "recipe.yaml: learning_rate is nan"),
        ("label_smoothing_factor: 0.1\n", "recipe.yaml: label_smoothing_factor is 0.1, which is refused"),
        ("max_steps: " + "9" * 5000 + "\n", "holds a number of 5,000 characters"),
        ("alpha: " + "[" * 10_000 + "\n", "nests more than 50"),
        ("lora_target_modules: [null]\n", "lora_target_modules holds None"),
        ("lora_target_modules: [[a]]\n", "lora_target_modules holds ['a']"),
        ("lr_scheduler_kwargs: {nope: 1}\n", "recipe.yaml: lr_scheduler_kwargs is {'nope': 1}"),
    ],
)
def test_a_refused_recipe_names_the_line_or_key_and_changes_nothing(parse, text, message):
    before = dict(os.environ)
    with pytest.raises(InputError) as raised:
        parse(text)
    assert message in str(raised.value)
    assert len(str(raised.value)) < 1500
    assert dict(os.environ) == before


def test_what_is_refused_later_has_set_no_variable(parse, monkeypatch):
    monkeypatch.setenv("SINKD_TEST_B", "before")
    with pytest.raises(InputError, match="alpha"):
        parse("env:\n  SINKD_TEST_A: x\n  SINKD_TEST_B: x\nalpha: 7\n")
    assert "SINKD_TEST_A" not in os.environ
    assert os.environ["SINKD_TEST_B"] == "before"


@pytest.mark.parametrize("name", ["max_length", "teacher_cache", "data_seed", "add_eos", "eval_steps", "optim_args"])
def test_null_is_the_default_where_it_means_something(parse, name):
    _, training, _ = parse(f"{name}: null\n")
    assert getattr(training, name) is None
