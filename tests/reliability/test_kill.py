"""`kill -9` at any moment loses nothing: the resumed run ends bitwise where the uninterrupted one does."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sinkd_llm.training.checkpoints import checkpoint_problem, checkpoints, last_whole
from tests.support.zygote import PLACES

STEPS = 22
SAVING = ("--max_steps", str(STEPS), "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1")


def records(folder: Path) -> dict[int, float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {r["step"]: r["loss"] for r in map(json.loads, lines) if "loss" in r}


@pytest.mark.timeout(1200)
def test_ten_kills_and_the_same_weights(zygote, distill_argv, tmp_path):
    log = tmp_path / "log"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = zygote(distill_argv(whole, *SAVING), log)
    assert uninterrupted["codes"] == [0], log.read_text()

    draw = random.Random(7)
    # Each of the places once, in random order, one or two saves further on each time; then three from outside.
    step, count, half_written = 2, 0, 0
    places: list[str | None] = list(PLACES)
    draw.shuffle(places)
    for place in [*places, None, None, None]:
        more = ["--resume_from_checkpoint", "true"] if last_whole(killed) else ["--overwrite_output_dir"]
        argv = distill_argv(killed, *SAVING, *more)
        if place is None:
            # From outside, at a random moment of a run that takes about as long as the first one did.
            answer = zygote(argv, log, after=draw.uniform(0.2, 0.8) * uninterrupted["seconds"])
            if answer["codes"] == [0]:  # it was faster this time
                (killed / "results.json").unlink()
                shutil.rmtree(checkpoints(killed)[-1])
        else:
            answer = zygote(argv, log, die={"at": place, "step": step + (place == "training_step")})
            step += 2
        assert answer["codes"] in ([-signal.SIGKILL], [0]), log.read_text()
        assert place is None or answer["codes"] == [-signal.SIGKILL], (place, log.read_text())
        count += answer["codes"] == [-signal.SIGKILL]
        half_written += any(checkpoint_problem(c) for c in checkpoints(killed))
        # With save_total_limit 1 the one checkpoint is deleted only after its successor is whole.
        # (of a run that was faster than its kill, this test itself has just removed it).
        assert step <= 4 or answer["codes"] == [0] or last_whole(killed) is not None
    assert count >= 7
    assert half_written >= 4
    assert "is skipped: " in log.read_text()

    assert zygote(distill_argv(killed, *SAVING, "--resume_from_checkpoint", "true"), log)["codes"] == [0]
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (whole, killed)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert records(killed) == records(whole)
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, killed)]
    assert [row["metrics"] for row in results[0]["rows"]] == [row["metrics"] for row in results[1]["rows"]]
