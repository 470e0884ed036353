"""Whole commands: exit 0 with a right result, or exit 2 with one message; what they read is as it was before."""

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from trl import ModelConfig

from sinkd_llm import SinKDConfig
from sinkd_llm.runs import TaskArguments
from tests.support import values
from tests.support.properties import examples
from tests.support.world import World, assert_right_run, damage, places

SETTINGS = (SinKDConfig, ModelConfig, TaskArguments)
# These make a run long, or say where it writes.
LEFT_OUT = {"max_steps", "num_train_epochs", "output_dir"}
FLAGS = sorted({f.name for kind in SETTINGS for f in dataclasses.fields(kind) if f.init} - LEFT_OUT)
GOOD = st.sampled_from(["1", "2", "0.1", "true", "false", "no", "steps", "epoch", "3", "0.5", "none", "1e-3"])
SECRET = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"
COMMANDS = ("distill", "finetune", "evaluate", "cache", "tasks", "env", "quickstart", "--help", "--config", "-h")
ARGUMENTS = ("show", "check", "list", "--task", "sst2", "--limit", "-1", "--estimate", "--seed", "x.yaml")
OTHER_RUN = {"lora_r": "3", "student_layers": "1", "seed": "9", "optim": "sgd", "max_train_samples": "3"}
WORD_FOR = {"max_train_samples": "rows", "student_layers": "layers", "lora_r": "lora"}
SAVING = ("--save_strategy", "steps", "--save_steps", "1")


def run(sinkd: Any, argv: list[str], folder: Path, count: Any) -> bool:
    """Runs a training command; whether it was answered."""
    answer = sinkd(argv)
    if answer.code == 2:
        count("refused")
        assert not (folder / "results.json").exists()
        return False
    assert_right_run(folder)
    count("answered")
    return True


@examples(6, 50)
@example(name="learning_rate", value="1e30")
@example(name="weight_decay", value="nan")
@example(name="temperature", value="1e30")
@example(name="sinkhorn_epsilon", value="1e-30")
@example(name="hub_token", value=SECRET)
@given(name=st.sampled_from(FLAGS), value=values.flag_values | GOOD | GOOD)
def test_any_flag_of_distill(name: str, value: str, world: World, sinkd: Any, count: Any) -> None:
    folder = world.new_folder()
    value = value.replace("\x00", "")  # no argument of a process can hold it
    before = set(world.scratch.iterdir())
    if run(sinkd, world.distill(f"--{name}={value}", output=folder), folder, count):
        everything = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
        assert SECRET.encode() not in everything, "a secret was written"
    else:
        new = set(world.scratch.iterdir()) - before - {folder}
        assert not new, f"a refused command has left {new}"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("command", "more"),
    [
        *(("finetune", ()), ("finetune", ("--overwrite_output_dir",)), ("distill", ())),
        *(("distill", ("--overwrite_output_dir",)), ("distill", ("--resume_from_checkpoint", "true"))),
        *(("cache", ()), ("cache", ("--overwrite",)), ("evaluate", ())),
    ],
)
def test_no_output_is_written_over_an_input(
    command: str, more: tuple[str, ...], world: World, sinkd: Any, count: Any
) -> None:
    for name, place in places(world).items():
        if command == "evaluate":
            argv = ["evaluate", "--model_name_or_path", str(world.base), "--task", str(world.task), "--output", place]
        else:
            argv = world.distill(*more)
            argv[argv.index("--output_dir") + 1] = place
            argv[0] = command
            if command == "finetune":
                argv[1:5] = ["--model_name_or_path", str(world.base)]
            if command == "cache":
                argv[argv.index("--output_dir")] = "--output"
        answer = sinkd(argv)
        # A new file beside others, as `--output model/new`, harms nobody; a run's folder inside a model does.
        assert answer.code == 2 or (command == "evaluate" and name == "inside"), f"{name}: {answer}"
        (world.base / "new").unlink(missing_ok=True)
        count("refused" if answer.code else "answered")


@pytest.fixture(scope="module")
def student(world: World, sinkd: Any) -> Path:
    """A finished run with its checkpoints."""
    folder = world.inputs.parent / "student"
    assert sinkd(world.distill(*SAVING, output=folder)).code == 0
    return folder


@pytest.fixture(scope="module")
def cache(world: World, sinkd: Any) -> Path:
    """What `sinkd cache` writes of the base."""
    folder = world.inputs.parent / "cache"
    assert sinkd(["cache", *world.distill("--output", str(folder))[1:]]).code == 0
    return folder


@pytest.fixture
def unfinished(student: Path, folder: Callable[[], Path]) -> Callable[[], Path]:
    """Copies of the run as it was after its first step."""

    def copy() -> Path:
        where = folder() / "student"
        shutil.copytree(student / "checkpoint-1", where / "checkpoint-1")
        return where

    return copy


@examples(8, 80)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_model_is_read_right_or_refused(
    seed: int, world: World, sinkd: Any, folder: Callable[[], Path], count: Any
) -> None:
    copy = folder() / "model"
    shutil.copytree(world.base, copy)
    damage(random.Random(seed).choice(sorted(f for f in copy.iterdir() if f.is_file())), seed)
    scores = copy.parent / "scores.json"
    argv = ["--model_name_or_path", str(copy), "--task", str(world.task), "--output", str(scores)]
    answered = sinkd(["evaluate", *argv]).code == 0
    if answered:
        text = scores.read_text(encoding="utf-8")
        assert "NaN" not in text
        assert "Infinity" not in text
    count("answered" if answered else "refused")


@examples(5, 60)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_checkpoint_is_refused(
    seed: int, unfinished: Callable[[], Path], student: Path, world: World, sinkd: Any, count: Any
) -> None:
    copy = unfinished()
    checkpoint = copy / "checkpoint-1"
    file = random.Random(seed).choice(sorted(f for f in checkpoint.iterdir() if f.is_file()))
    damage(file, seed)
    same = file.read_bytes() == (student / "checkpoint-1" / file.name).read_bytes()
    answer = sinkd(world.distill(*SAVING, "--resume_from_checkpoint", str(checkpoint), output=copy))
    assert answer.code == (0 if same else 2), f"{file.name} is damaged, and nobody noticed: {answer}"
    count("answered" if same else "refused")


@pytest.mark.parametrize("name", OTHER_RUN)
def test_a_checkpoint_of_another_run_is_refused_by_name(
    name: str, unfinished: Callable[[], Path], world: World, sinkd: Any, count: Any
) -> None:
    copy = unfinished()
    more = (f"--{name}", OTHER_RUN[name], "--resume_from_checkpoint", "true")
    answer = sinkd(world.distill(*SAVING, *more, output=copy))
    assert answer.code == 2, str(answer)
    assert WORD_FOR.get(name, name) in answer.message.lower(), answer.message
    count("refused")


@examples(6, 50)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_cache_is_refused(
    seed: int, world: World, sinkd: Any, cache: Path, folder: Callable[[], Path], count: Any
) -> None:
    copy = folder() / "cache"
    shutil.copytree(cache, copy)
    file = random.Random(seed).choice(sorted(f for f in copy.rglob("*") if f.is_file()))
    damage(file, seed)
    same = file.read_bytes() == (cache / file.relative_to(copy)).read_bytes()
    output = world.new_folder()
    answered = run(sinkd, world.distill("--teacher_cache", str(copy), output=output), output, count)
    assert answered or not same
    shutil.rmtree(output, ignore_errors=True)


@examples(6, 50)
@given(words=st.lists(st.sampled_from(COMMANDS + ARGUMENTS) | values.words | values.texts, max_size=4))
def test_any_words(words: list[str], sinkd: Any, count: Any) -> None:
    words = [word.replace("\x00", "") for word in words]
    if words[:1] == ["quickstart"]:
        words.append("--seed")  # without its value: not the quickstart itself
    count("answered" if sinkd(words).code == 0 else "refused")


def test_records_of_a_finished_run(student: Path) -> None:
    assert_right_run(student)
    assert json.loads((student / "results.json").read_text())["training"]["steps"] == 2
