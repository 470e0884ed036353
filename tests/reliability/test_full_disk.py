"""A disk that is full while a checkpoint or the model is written: the previous checkpoint is whole, and named."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sinkd_llm.cli import main
from sinkd_llm.training.checkpoints import checkpoint_problem, checkpoints, last_whole
from tests.support.launch import without_adapter

SAVING = ("--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    return captured.splitlines()[-1]


@pytest.fixture(params=[760, 960])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """
    A file system with room for one checkpoint of 0.6 MB and not for two.

    The second one fails at its weights on the smaller disk, and at its optimizer on the larger one.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk(small_disk, distill_argv, capsys):
    folder = small_disk / "run"
    argv = without_adapter(distill_argv(folder, *SAVING))  # whole weights: larger files
    assert main(argv) == 2
    line = error_line(capsys)
    assert line.startswith("sinkd: error: ")
    assert "checkpoint-4 could not be written" in line
    assert f"{folder}/checkpoint-2 is whole: free some space and go on with: sinkd distill" in line
    assert line.endswith("--resume_from_checkpoint true")
    # The half-written one is gone, and its space with it; with save_total_limit 1 the previous one is still there.
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-2"]
    assert checkpoint_problem(checkpoints(folder)[0]) is None

    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 0
    assert (folder / "results.json").exists()


def full_disk_at(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    save = torch.save

    def failing(content, path, *args, **kwargs):
        if str(path).endswith(ending):
            Path(path).write_bytes(b"PK half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", failing)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_full_disk_at_any_file_of_a_checkpoint(distill_argv, tmp_path, monkeypatch, capsys, name):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        full_disk_at(patch, f"checkpoint-4/{name}")
        assert main(distill_argv(folder, *SAVING)) == 2
    line = error_line(capsys)
    assert "checkpoint-4 could not be written (No space left on device)" in line
    assert f"{folder}/checkpoint-2 is whole" in line
    assert [c.name for c in checkpoints(folder)] == ["checkpoint-2"]
    assert main(distill_argv(folder, *SAVING, "--resume_from_checkpoint", "true")) == 0


def test_a_full_disk_at_the_first_checkpoint(distill_argv, tmp_path, monkeypatch, capsys):
    full_disk_at(monkeypatch, "checkpoint-2/optimizer.pt")
    assert main(distill_argv(tmp_path / "run", *SAVING)) == 2
    assert "No checkpoint of this run is whole: free some space and start it again" in error_line(capsys)


def test_a_full_disk_when_the_model_is_saved(distill_argv, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        patch.setattr("sinkd_llm.training.saving_trainer.save_student", lambda *_, **__: (_ for _ in ()).throw(fail))
        assert main(distill_argv(folder, *SAVING)) == 2
    line = error_line(capsys)
    assert f"{folder} could not be written (No space left on device). {folder}/checkpoint-6 is whole" in line
    assert last_whole(folder) == folder / "checkpoint-6"
    assert main(distill_argv(folder, *SAVING, "--resume_from_checkpoint", "true")) == 0
    assert (folder / "results.json").exists()


def test_a_full_disk_at_the_records(distill_argv, tmp_path, monkeypatch, capsys):
    from sinkd_llm.training.callbacks import MetricsFileCallback

    on_log = MetricsFileCallback.on_log

    def full(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return on_log(self, args, state, control, **kwargs)

    monkeypatch.setattr(MetricsFileCallback, "on_log", full)
    folder = tmp_path / "run"
    assert main(distill_argv(folder, *SAVING)) == 2
    assert f"{folder}/checkpoint-4 is whole: free some space and go on with: sinkd distill" in error_line(capsys)
