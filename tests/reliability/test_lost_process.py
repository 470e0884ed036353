"""One of two processes dies or hangs: the other one ends within seconds, and says which checkpoint goes on."""

import signal

import pytest

from tests.support.launch import ranks


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_the_other_process_stops(zygote, distill_argv, tmp_path, how):
    log, folder = tmp_path / "log", tmp_path / "run"
    saving = ("--save_strategy", "steps", "--save_steps", "2", "--max_steps", "200", "--ddp_backend", "gloo")
    number = signal.SIGKILL if how == "dies" else signal.SIGSTOP
    answer = zygote(
        distill_argv(folder, *saving, "--ddp_timeout", "20"),
        log,
        env=ranks(),
        die={"at": "training_step", "step": 3, "rank": 1, "signal": number},
        first_end_only=how == "hangs",
        limit=300,
    )
    said = log.read_text()
    assert answer["codes"] == [2, -signal.SIGKILL], said
    assert answer["seconds"] < 250, said
    assert "Traceback" not in said
    line = next(line for line in said.splitlines() if "sinkd: error: " in line)
    assert "process 0 of 2 lost contact with another one" in line
    assert "go on from checkpoint-2 with: sinkd distill" in line
    assert line.endswith("--resume_from_checkpoint true")
    assert not (folder / "results.json").exists()
