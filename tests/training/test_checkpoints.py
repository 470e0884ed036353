"""Checkpoints: which are whole, which one goes on, and what a failed write leaves."""

import errno

import pytest
from safetensors import SafetensorError

from sinkd_llm.errors import InputError
from sinkd_llm.training.checkpoints import (
    NotSavedError,
    checkpoint_problem,
    checkpoints,
    find_checkpoint,
    last_whole,
    saving_checkpoint,
    write_failure,
)


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
    "cut random state": (lambda c: cut(c / "rng_state.pth"), "damaged or half written"),
    "cut optimizer": (lambda c: cut(c / "optimizer.pt"), "damaged or half written"),
}


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_half_written_checkpoint_and_the_last_whole_one(make_checkpoint, tmp_path, damage, capsys):
    whole, broken = make_checkpoint(5), make_checkpoint(10)
    assert checkpoint_problem(broken) is None
    act, message = DAMAGES[damage]
    act(broken)
    assert message in str(checkpoint_problem(broken))
    # By name it is refused, and `true` means the last whole one.
    with pytest.raises(InputError, match=message) as raised:
        find_checkpoint(str(broken), tmp_path / "run")
    assert f"resume from {whole}, the last whole one" in str(raised.value)
    assert find_checkpoint("true", tmp_path / "run") == whole
    said = capsys.readouterr().err
    assert "checkpoint-10 is skipped: " in said
    assert message in said
    assert "Going on from checkpoint-5, the last whole one." in said


def test_no_checkpoint_is_whole(make_checkpoint, tmp_path):
    (make_checkpoint(5) / "trainer_state.json").unlink()
    with pytest.raises(InputError, match=r"no checkpoint .* is whole \(checkpoint-5: .*--overwrite_output_dir"):
        find_checkpoint("true", tmp_path / "run")
    assert last_whole(tmp_path / "run") is None


def test_a_checkpoint_that_is_written_over_counts_as_half_written_meanwhile(make_checkpoint):
    folder = make_checkpoint(5)
    with saving_checkpoint(folder, writes_state=True):
        assert "half written" in str(checkpoint_problem(folder))
        (folder / "trainer_state.json").write_text('{"global_step": 5}')
        (folder / "adapter_model.safetensors").chmod(0o600)
    assert checkpoint_problem(folder) is None
    # Who may read the state may read the weights.
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (Exception("No space left on device (os error 28)"), "No space left on device"),  # tokenizers
        (RuntimeError("[enforce fail at inline_container.cc:783] . unexpected pos"), "the disk is full"),
    ],
)
def test_a_full_disk_removes_the_half_and_names_the_whole_one(make_checkpoint, tmp_path, error, reason):
    whole, half = make_checkpoint(5), tmp_path / "run" / "checkpoint-10"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    with pytest.raises(NotSavedError) as raised, saving_checkpoint(half, writes_state=True):
        raise error
    assert reason in str(raised.value)
    assert f"{whole} is whole: free some space and go on from there" in str(raised.value)
    assert not half.exists()
    assert checkpoint_problem(whole) is None


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "absent"),
        RuntimeError("CUDA out of memory"),
        Exception("absent (os error 2)"),
        RuntimeError("[enforce fail at inline_container.cc:145] . PytorchStreamReader failed reading file data/0"),
    ],
)
def test_other_errors_pass_as_they_are(tmp_path, error):
    assert write_failure(error) is None
    with pytest.raises(type(error)), saving_checkpoint(tmp_path / "checkpoint-1", writes_state=True):
        raise error
