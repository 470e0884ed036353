"""The folder of a run: overwriting, checkpoints, sizes."""

import json

import pytest
import torch
from safetensors.torch import save_file

from sinkd_llm.errors import InputError
from sinkd_llm.runs.folder import (
    checkpoint_problem,
    checkpoints,
    find_checkpoint,
    prepare_output_dir,
    weights_size_bytes,
)


@pytest.fixture
def make_checkpoint(tmp_path):
    def make(step):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({"weight": torch.zeros(64)}, folder / "adapter_model.safetensors")
        torch.save({"state": {}}, folder / "optimizer.pt")
        torch.save({"last_epoch": 1}, folder / "scheduler.pt")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        return folder

    return make


def test_checkpoints_are_in_the_order_of_their_steps(make_checkpoint, tmp_path):
    for step in (100, 20, 3):
        make_checkpoint(step)
    (tmp_path / "run" / "checkpoint-old").mkdir()
    assert [c.name for c in checkpoints(tmp_path / "run")] == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


@pytest.mark.parametrize("value", ["true", "True", True, "last"])
def test_true_is_the_last_checkpoint(make_checkpoint, tmp_path, value):
    make_checkpoint(5)
    last = make_checkpoint(10)
    assert find_checkpoint(value, tmp_path / "run") == last


@pytest.mark.parametrize("value", [None, "", "false", False])
def test_no_resumption(value, tmp_path):
    assert find_checkpoint(value, tmp_path) is None


def test_a_path_is_taken_as_it_is(make_checkpoint, tmp_path):
    first = make_checkpoint(5)
    make_checkpoint(10)
    assert find_checkpoint(str(first), tmp_path / "elsewhere") == first


@pytest.mark.parametrize(
    ("value", "message"),
    [("true", "no checkpoint in"), ("absent/checkpoint-3", "it does not exist")],
)
def test_a_missing_checkpoint(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        find_checkpoint(value, tmp_path)


def test_a_run_folder_is_not_a_checkpoint(make_checkpoint, tmp_path):
    make_checkpoint(5)
    with pytest.raises(InputError, match=r"give one of its checkpoints: .*checkpoint-5"):
        find_checkpoint(str(tmp_path / "run"), tmp_path / "run")


DAMAGES = {
    "no state": (lambda c: (c / "trainer_state.json").unlink(), "half written"),
    "cut state": (lambda c: (c / "trainer_state.json").write_text('{"glo'), "damaged"),
    "no weights": (lambda c: (c / "adapter_model.safetensors").unlink(), "half written"),
    "no optimizer": (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "cut weights": (lambda c: cut(c / "adapter_model.safetensors"), "damaged or half written"),
    "cut optimizer": (lambda c: cut(c / "optimizer.pt"), "damaged or half written"),
}


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_half_written_checkpoint_and_the_last_whole_one(make_checkpoint, tmp_path, damage):
    whole, broken = make_checkpoint(5), make_checkpoint(10)
    assert checkpoint_problem(broken) is None
    act, message = DAMAGES[damage]
    act(broken)
    with pytest.raises(InputError, match=message) as raised:
        find_checkpoint("true", tmp_path / "run")
    assert f"resume from {whole}, the last whole one" in str(raised.value)


def test_a_finished_run_is_not_overwritten(tmp_path):
    folder = prepare_output_dir(tmp_path / "run", overwrite=False, resuming=False)
    (folder / "results.json").write_text("{}")
    with pytest.raises(InputError, match="holds a finished run"):
        prepare_output_dir(folder, overwrite=False, resuming=False)
    prepare_output_dir(folder, overwrite=False, resuming=True)
    assert (folder / "results.json").exists()


def test_an_unfinished_run_is_not_lost(make_checkpoint, tmp_path):
    make_checkpoint(5)
    with pytest.raises(InputError, match="checkpoint-5 of an unfinished run"):
        prepare_output_dir(tmp_path / "run", overwrite=False, resuming=False)


def test_overwriting_deletes_what_runs_write_and_nothing_else(make_checkpoint, tmp_path):
    folder = make_checkpoint(5).parent
    for name in ("results.json", "metrics.jsonl", "report.html", "notes.txt"):
        (folder / name).write_text("{}")
    prepare_output_dir(folder, overwrite=True, resuming=False)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_an_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        prepare_output_dir(tmp_path / "run", overwrite=False, resuming=False)


def test_sizes_leave_checkpoints_out(make_checkpoint, tmp_path):
    folder = make_checkpoint(5).parent
    assert weights_size_bytes(folder) is None
    (folder / "base").mkdir()
    (folder / "model.safetensors").write_bytes(b"0" * 10)
    (folder / "base" / "model.safetensors").write_bytes(b"0" * 7)
    assert weights_size_bytes(folder) == 17
    assert weights_size_bytes(folder / "model.safetensors") == 10
    assert weights_size_bytes("organisation/model") is None
