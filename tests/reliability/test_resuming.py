"""Going on from a checkpoint: from whole ones of this very run, and from no other."""

import json
import os
import pty
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sinkd_llm.cli import main
from sinkd_llm.integrity import MANIFEST_FILE
from sinkd_llm.training.checkpoints import last_whole
from tests.support.launch import without_adapter

SAVING = ("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2")


@pytest.fixture(scope="module")
def stopped(distill_argv, tmp_path_factory):
    """A run folder with one checkpoint, as a run that was killed leaves it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert main(distill_argv(folder, *SAVING)) == 0
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "results.json").unlink()
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def resume(distill_argv, run, *more, drop=()):
    argv = distill_argv(run, *SAVING, "--resume_from_checkpoint", "true")
    if "--use_peft" in drop:
        argv = without_adapter(argv)
    for flag in drop:
        argv = [word for word in argv if word != flag]
    return main([*argv, *more])


def refusal(capsys):
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    line = captured.splitlines()[-1]
    assert line.startswith("sinkd: error: ")
    return line


def test_the_manifest_says_of_which_run_it_is(stopped):
    content = json.loads((stopped / "checkpoint-2" / MANIFEST_FILE).read_text())
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(
        content["files"]
    )
    facts = content["facts"]
    assert facts["student"]["layers"] == 2
    assert facts["adapter"]["r"] == 4
    assert facts["rows"]["count"] == 64
    assert facts["order"]["seed"] == 3
    assert not (stopped / "checkpoint-2" / "training_args.bin").exists()


@pytest.mark.parametrize(
    ("more", "drop", "message"),
    [
        (["--lora_r", "3"], (), "lora_r: 4 in the checkpoint, 3 now"),
        (["--lora_target_modules", "q_proj"], (), "lora_target_modules: "),
        (["--use_dora", "true"], (), "lora_dora: "),
        ([], ("--use_peft",), "use_peft: the checkpoint holds a LORA adapter, and this run trains none"),
        (["--student_layers", "1"], (), "the student (layers): 2 layers in the checkpoint, 1 layers now"),
        (["--optim", "sgd"], (), "optim: adamw_torch"),
        (["--learning_rate", "0.5"], (), "learning_rate: 0.01 in the checkpoint, 0.5 now"),
        (["--seed", "9", "--data_seed", "3"], (), "seed: 3 in the checkpoint, 9 now"),
        (["--max_train_samples", "48"], (), "the training rows: 64 rows in the checkpoint, 48 now"),
        (["--max_length", "40"], (), "the training rows: other tokens"),
        (["--per_device_train_batch_size", "2"], (), "per_device_train_batch_size: 4 in the checkpoint, 2 now"),
    ],
)
def test_a_checkpoint_of_another_run(run, distill_argv, capsys, more, drop, message):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert resume(distill_argv, run, *more, drop=drop) == 2
    line = refusal(capsys)
    assert f"{run}/checkpoint-2 is of another run: " in line
    assert message in line
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_other_weights_under_the_same_name(run, teacher, distill_argv, tmp_path, capsys):
    other = tmp_path / "teacher"
    shutil.copytree(teacher, other)
    weights = load_file(other / "model.safetensors")
    save_file({n: w * 1.01 for n, w in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    argv = distill_argv(run, *SAVING, "--resume_from_checkpoint", "true")
    argv[argv.index(str(teacher))] = str(other)
    assert main(argv) == 2
    assert "the student: its weights differ" in refusal(capsys)


def test_what_may_differ_is_said(run, distill_argv, capsys):
    assert resume(distill_argv, run, "--alpha", "0.5", "--max_steps", "3") == 0
    said = capsys.readouterr().err
    assert "Settings that differ from before checkpoint-2: " in said
    assert "alpha: 0.9 in the checkpoint, 0.5 now" in said
    assert "max_steps: 4 in the checkpoint, 3 now" in said


def test_one_flipped_bit_in_any_file(run, distill_argv, capsys):
    checkpoint = run / "checkpoint-2"
    for file in sorted(file for file in checkpoint.iterdir() if file.is_file()):
        content = file.read_bytes()
        place = len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert resume(distill_argv, run) == 2, file.name
        line = refusal(capsys)
        assert file.name in line or "trainer_state.json" in line
        assert "disk is full" not in line
        file.write_bytes(content)
    assert resume(distill_argv, run) == 0


STATES = {
    "{}": "names no global_step",
    "[]": "holds no mapping",
    "null": "holds no mapping",
    '{"global_step": "2"}': "global_step is '2'",
    '{"global_step": true}': "global_step is 'True'",
    '{"global_step": -1}': "global_step is '-1'",
    '{"global_step": 3}': "global_step is 3 in checkpoint-2",
    '{"global_step": 2, "log_history": {}}': "log_history is",
    '{"global_step": 2, "log_history": [1]}': "(log_history)",
    '{"global_step": 2, "epoch": "x"}': "epoch is 'x'",
    '{"global_step": 2, "stateful_callbacks": {"TrainerControl": 5}}': "(stateful_callbacks)",
    "[" * 100_000: "is damaged",
}


@pytest.mark.parametrize("state", STATES, ids=[text[:40] for text in STATES])
def test_a_state_of_another_kind_without_a_manifest(run, distill_argv, capsys, state):
    (run / "checkpoint-2" / MANIFEST_FILE).unlink()
    (run / "checkpoint-2" / "trainer_state.json").write_text(state)
    assert resume(distill_argv, run) == 2
    line = refusal(capsys)
    assert "trainer_state.json is damaged" in line
    assert STATES[state] in line


def test_without_a_manifest_the_files_themselves_are_compared(run, distill_argv, capsys):
    (run / "checkpoint-2" / MANIFEST_FILE).unlink()
    assert resume(distill_argv, run, "--lora_r", "3") == 2
    assert "lora_r: 4 in the checkpoint, 3 now" in refusal(capsys)
    assert resume(distill_argv, run, drop=("--use_peft",)) == 2
    assert "use_peft: " in refusal(capsys)
    assert resume(distill_argv, run, "--optim", "sgd") == 2
    assert "is of another kind of optimizer than SGD" in refusal(capsys)
    (run / "checkpoint-2" / "rng_state.pth").unlink()
    assert resume(distill_argv, run) == 2
    assert "rng_state.pth is missing" in refusal(capsys)


def test_a_checkpoint_without_a_manifest_still_resumes(run, distill_argv):
    (run / "checkpoint-2" / MANIFEST_FILE).unlink()
    assert resume(distill_argv, run) == 0
    training = json.loads((run / "results.json").read_text())["training"]
    assert training["resumed_at"] == training["loss_from_step"] == 2
    assert "the training loss is of these alone" in (run / "report.html").read_text()


def test_the_loss_of_a_resumed_run_is_that_of_the_whole(run, distill_argv, tmp_path):
    assert main(distill_argv(tmp_path / "whole", *SAVING)) == 0
    assert resume(distill_argv, run) == 0
    whole, resumed = (json.loads((f / "results.json").read_text())["training"] for f in (tmp_path / "whole", run))
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert resumed["loss_from_step"] == 0
    closing = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in (tmp_path / "whole", run)]
    assert closing[1]["train_loss"] == pytest.approx(closing[0]["train_loss"], rel=1e-6)


def test_a_run_that_ended_at_its_last_checkpoint_trains_no_step_more(distill_argv, tmp_path):
    folder = tmp_path / "run"
    argv = distill_argv(folder, *SAVING, "--lr_scheduler_type", "constant")
    assert main(argv) == 0
    before = load_file(folder / "adapter_model.safetensors")
    loss = json.loads((folder / "results.json").read_text())["training"]["loss"]
    (folder / "results.json").unlink()  # killed while it was scored at the end
    assert main([*argv, "--resume_from_checkpoint", "true"]) == 0
    after = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    training = json.loads((folder / "results.json").read_text())["training"]
    assert (training["steps"], training["resumed_at"]) == (4, 4)
    assert training["loss"] == pytest.approx(loss, rel=1e-6)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 4


@pytest.mark.parametrize(
    ("place", "signum", "code"),
    [("step", signal.SIGTERM, 143), ("evaluation", signal.SIGTERM, 143), ("step", signal.SIGHUP, 129)],
)
def test_a_signal_saves_and_the_run_goes_on(distill_argv, tmp_path, monkeypatch, capsys, place, signum, code):
    from sinkd_llm.training.callbacks import InterruptCallback

    whole, folder = tmp_path / "whole", tmp_path / "run"
    argv = ["--max_steps", "4", "--save_strategy", "no", "--eval_strategy", "steps", "--eval_steps", "2"]
    assert main(distill_argv(whole, *argv)) == 0
    name = "on_step_end" if place == "step" else "on_prediction_step"
    original = getattr(InterruptCallback, name)

    def terminate(self, args, state, control, **kwargs):
        if state.global_step == 2:
            for _ in range(2):  # a launcher and its scheduler
                os.kill(os.getpid(), signum)
        return original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(InterruptCallback, name, terminate)
        assert main(distill_argv(folder, *argv)) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count(f"{signum.name}: finishing this step, then saving.") == 1
    assert "To go on from there:\n  sinkd distill" in said
    assert not (folder / "results.json").exists()
    assert main(distill_argv(folder, *argv, "--resume_from_checkpoint", "true")) == 0
    weights = [load_file(f / "adapter_model.safetensors") for f in (whole, folder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_whose_terminal_is_closed_saves(distill_argv, tmp_path):
    argv = distill_argv(tmp_path / "run", "--max_steps", "100000", "--save_strategy", "no")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "sinkd_llm", *argv])
    seen = b""
    while b"ce " not in seen:  # the first step is logged
        seen += os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    assert last_whole(tmp_path / "run") is not None


def test_a_run_under_nohup_outlives_its_terminal(distill_argv, tmp_path, monkeypatch):
    from sinkd_llm.training.callbacks import InterruptCallback

    original = InterruptCallback.on_step_end

    def hang_up(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGHUP)
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(InterruptCallback, "on_step_end", hang_up)
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(distill_argv(tmp_path / "run", *SAVING)) == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("overwrite", [False, True])
def test_sigterm_before_training_leaves_what_was_there(
    distill_argv, stopped, tmp_path, monkeypatch, capsys, overwrite
):
    from sinkd_llm.runs.scorer import Scorer

    folder = tmp_path / "run"
    if overwrite:
        shutil.copytree(stopped, folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    monkeypatch.setattr(Scorer, "row", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert main(distill_argv(folder, *SAVING, *(["--overwrite_output_dir"] if overwrite else []))) == 143
    assert "sinkd: stopped by SIGTERM" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert folder.exists() == overwrite
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_no_secret_is_kept(distill_argv, tmp_path):
    token = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"
    folder = tmp_path / "run"
    assert main(distill_argv(folder, *SAVING, "--hub_token", token)) == 0
    assert token not in "".join(file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file())
    for file in ("results.json", "report.html"):
        assert "hub_token" not in (folder / file).read_text()
