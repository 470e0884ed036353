"""`sinkd evaluate --output` and `sinkd cache --output`: checked first, written whole, never over what is read."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sinkd_llm.cli import main
from tests.support.models import save
from tests.support.task_files import write_task


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_causal_lm, tiny_tokenizer):
    root = tmp_path_factory.mktemp("world")
    save(root / "model", tiny_causal_lm(layers=2), tiny_tokenizer)
    rows = [{"text": f"film {i}", "label": i % 2} for i in range(6)]
    files = {"data_files": {"train": "rows.jsonl", "validation": "rows.jsonl"}}
    write_task(root / "task" / "mine.yaml", rows, dataset_kwargs=files)
    return root


def evaluate(world, output):
    argv = ["--model_name_or_path", str(world / "model"), "--task", str(world / "task" / "mine.yaml")]
    return main(["evaluate", *argv, "--output", str(output)])


def error(capsys):
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    return captured.splitlines()[-1]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("task/rows.jsonl", "is a data file"),
        ("task/mine.yaml", "is the task file"),
        ("model/model.safetensors", "is a file of the model"),
        ("task", "is a folder"),
        ("task/rows.jsonl/scores.json", "which is a file"),
    ],
)
def test_nothing_that_is_read_is_written_over(world, place, message, capsys):
    before = {file: file.read_bytes() for file in world.rglob("*") if file.is_file()}
    assert evaluate(world, world / place) == 2
    line = error(capsys)
    assert line.startswith("sinkd: error: --output ")
    assert message in line
    assert {file: file.read_bytes() for file in world.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "results.json", "notes.txt"])
def test_what_is_not_read_is_not_written_over_either(world, tmp_path, name, capsys):
    other = tmp_path / name
    other.write_bytes(b'{"rows": []}')
    assert evaluate(world, other) == 2
    assert "holds something else than the scores" in error(capsys)
    assert other.read_bytes() == b'{"rows": []}'


def test_a_link_to_nothing_and_a_full_device_are_named(world, tmp_path, capsys):
    (tmp_path / "link").symlink_to("nowhere")
    assert evaluate(world, tmp_path / "link") == 2
    assert "is a link to nowhere, which is not there" in error(capsys)
    if os.path.exists("/dev/full"):
        assert evaluate(world, "/dev/full") == 2
        assert "/dev/full: No space left on device" in error(capsys)


def test_a_full_disk_leaves_the_earlier_scores(world, tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "scores.json"
    assert evaluate(world, output) == 0
    before = output.read_bytes()
    assert len(json.loads(before)["predictions"]) == 6

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("sinkd_llm.files.os.fsync", full)
        assert evaluate(world, output) == 2
    assert f"{output}: " in error(capsys)
    assert output.read_bytes() == before
    assert [file.name for file in output.parent.iterdir()] == ["scores.json"]
    assert evaluate(world, output) == 0  # its own earlier scores may be replaced


def cache(world, output, *more, model=None):
    argv = ["--teacher_model_name_or_path", str(model or world / "model"), "--task", str(world / "task" / "mine.yaml")]
    return main(["cache", *argv, "--use_cpu", "true", "--top_k", "8", "--output", str(output), *more])


def test_a_cache_is_not_written_where_it_is_read_from(world, tmp_path, capsys):
    before = {file: file.read_bytes() for file in world.rglob("*") if file.is_file()}
    for place in ("model", "model/cache", "task", "", "task/../model/"):
        assert cache(world, f"{world}/{place}", "--overwrite") == 2
        assert "sinkd: error: " in error(capsys)
    assert {file: file.read_bytes() for file in world.rglob("*") if file.is_file()} == before


def test_a_teacher_that_fails_leaves_the_old_cache(world, tmp_path, capsys):
    folder, broken = tmp_path / "cache", tmp_path / "broken"
    assert cache(world, folder) == 0
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    shutil.copytree(world / "model", broken)
    weights = load_file(broken / "model.safetensors")
    for value in (3e38, torch.nan):
        weights["model.norm.weight"][:] = value
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        assert cache(world, folder, "--overwrite", model=broken) == 2
        assert "sinkd: error: " in error(capsys)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert cache(world, tmp_path / "fresh" / "cache", model=broken) == 2
    assert not (tmp_path / "fresh").exists()
    assert cache(world, folder, "--overwrite", "--top_k", "4") == 0
    assert json.loads((folder / "manifest.json").read_text())["layout"]["k"] == 4
