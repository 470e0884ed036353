"""Settings: from Python, a recipe and flags alike, a value is used, or refused by the name of its setting."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from trl import ModelConfig

from sinkd_llm import SinKDConfig
from sinkd_llm.cli.parsing import parse_training
from sinkd_llm.runs import TaskArguments
from tests.support import values
from tests.support.properties import attempt, examples

FIELDS = {f.name for kind in (SinKDConfig, ModelConfig, TaskArguments) for f in dataclasses.fields(kind) if f.init}
OURS = sorted({f.name for f in dataclasses.fields(SinKDConfig) if f.init} - {"output_dir"})
ODD_NAMES = ("LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP", "A=B", "A\x00B", "", "FINE", "1")
names = st.sampled_from(sorted(FIELDS))


@contextlib.contextmanager
def same_environment() -> Iterator[None]:
    """Takes back what settings put into the environment for accelerate."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)


def check(arguments: Any) -> None:
    """Asserts that what was accepted holds no number that nothing can be computed with."""
    for settings in arguments:
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name, None)
            if isinstance(value, float):
                assert math.isfinite(value), (field.name, value)


@examples(60, 300)
@example(name="num_train_epochs", value=math.nan)
@example(name="seed", value=-1)
@example(name="weight_decay", value=math.nan)
@example(name="sinkhorn_epsilon", value=1e-300)
@example(name="lr_scheduler_kwargs", value={"nope": 1})
@given(name=st.sampled_from(OURS), value=values.python_values)
def test_python(name: str, value: Any, folder: Callable[[], Path], count: Any) -> None:
    settings = {"output_dir": str(folder()), "report_to": [], name: value}
    with same_environment():
        args, message = attempt(lambda: SinKDConfig(**settings))
    if message is not None:
        assert name in message, (name, value, message)
        count("refused")
    else:
        check([args])
        count("answered")


def parse(argv: list[str], name: str, count: Any) -> None:
    environment = dict(os.environ)
    with same_environment():
        arguments, message = attempt(lambda: parse_training("distill", argv))
        if message is not None:
            assert name in message.replace("-", "_"), (argv, message)
            assert dict(os.environ) == environment, "a refused command has changed the environment"
            count("refused")
        else:
            check(arguments)
            count("answered")


@examples(60, 300)
@example(name="per_device_train_batch_size", value="0")
@example(name="fsdp", value="full_shard")
@example(name="metric_for_best_model", value="nope")
@given(name=names, value=values.flag_values)
def test_flags(name: str, value: str, folder: Callable[[], Path], count: Any) -> None:
    argv = ["--task", "quickstart", "--teacher_model_name_or_path", "x", "--output_dir", str(folder())]
    parse([*argv, f"--{name}={value}"], name, count)


@examples(60, 300)
@example(name="learning_rate", value=None)
@example(name="seed", value=2**63)
@given(name=names, value=values.json_values | st.sampled_from(["9" * 5_000, 2**63, [], {}, "a=b"]))
def test_recipes(name: str, value: Any, folder: Callable[[], Path], count: Any) -> None:
    where = folder()
    recipe = {"task": "quickstart", "teacher_model_name_or_path": "x", "output_dir": str(where), name: value}
    recipe_file = where / "recipe.yaml"
    text = yaml.safe_dump(recipe, allow_unicode=True)
    recipe_file.write_text(text, encoding="utf-8", errors="surrogatepass")
    parse(["--config", str(recipe_file)], name, count)


@examples(20, 80)
@given(name=st.sampled_from(ODD_NAMES), value=values.json_scalars)
def test_environment_of_a_recipe(name: str, value: Any, folder: Callable[[], Path], count: Any) -> None:
    where = folder()
    recipe = {"task": "quickstart", "teacher_model_name_or_path": "x", "env": {name: value}}
    text = yaml.safe_dump(recipe, allow_unicode=True)
    (where / "recipe.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    environment = dict(os.environ)
    argv = ["--config", str(where / "recipe.yaml"), "--output_dir", str(where)]
    with same_environment():
        _, message = attempt(lambda: parse_training("distill", argv))
        if message is not None:
            assert dict(os.environ) == environment
            count("refused")
        else:
            assert name in ("FINE", "1")
            count("answered")
