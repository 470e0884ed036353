"""Progress, `metrics.jsonl`, Ctrl-C."""

import json
import os
import signal
import threading

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from sinkd_llm.training.callbacks import InterruptCallback, MetricsFileCallback, RichProgressCallback, describe_logs


@pytest.fixture
def args(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True)


def at(step, max_steps=20, first=True):
    return TrainerState(global_step=step, max_steps=max_steps, is_world_process_zero=first)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_logs_in_one_line():
    logs = {"loss": 1.23456, "grad_norm": 3.0, "ce": 0.5, "kl": 0.25, "epoch": 1.0, "sinkhorn": 1e-5}
    assert describe_logs(logs) == "loss 1.235  ce 0.5  kl 0.25  sinkhorn 1e-05"
    logs = {"eval_loss": 0.5, "eval_acc": 0.75, "eval_runtime": 3.0, "epoch": 1.0}
    assert describe_logs(logs) == "eval_loss 0.5  eval_acc 0.75"
    assert describe_logs({"train_runtime": 3.0}) == ""


def test_without_a_terminal_one_plain_line_a_record(args):
    lines = []
    callback = RichProgressCallback(interactive=False, write=lines.append)
    callback.on_train_begin(args, at(0), TrainerControl())
    callback.on_step_end(args, at(10), TrainerControl())
    callback.on_log(args, at(10), TrainerControl(), logs={"loss": 1.0, "ce": 0.5})
    callback.on_log(args, at(20), TrainerControl(), logs={"train_runtime": 3.0})
    callback.on_train_end(args, at(20), TrainerControl())
    assert len(lines) == 1
    assert lines[0].startswith("step 10/20  loss 1  ce 0.5  ")
    assert lines[0].endswith(" left")


def test_only_the_first_process_prints(args):
    lines = []
    callback = RichProgressCallback(interactive=False, write=lines.append)
    callback.on_train_begin(args, at(0, first=False), TrainerControl())
    callback.on_log(args, at(10, first=False), TrainerControl(), logs={"loss": 1.0})
    assert lines == []


def test_the_bar_is_drawn_and_taken_away(args, capsys):
    callback = RichProgressCallback(interactive=True)
    callback.on_train_begin(args, at(0), TrainerControl())
    callback.on_step_end(args, at(10), TrainerControl())
    callback.on_log(args, at(10), TrainerControl(), logs={"loss": 1.0})
    callback.on_prediction_step(args, at(10), TrainerControl(), eval_dataloader=[1, 2])
    callback.on_evaluate(args, at(10), TrainerControl())
    callback.on_log(args, at(10), TrainerControl(), logs={"eval_acc": 0.5})
    callback.on_train_end(args, at(20), TrainerControl())
    callback.close()  # a second time, as after an exception
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "10/20" in captured.err
    assert "eval_acc 0.5" in captured.err


def test_metrics_file_has_a_line_a_record(args, tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    callback = MetricsFileCallback(path)
    callback.on_train_begin(args, at(0), TrainerControl())
    callback.on_log(args, at(10), TrainerControl(), logs={"loss": 1.0})
    callback.on_log(args, at(20), TrainerControl(), logs={"loss": 0.5})
    callback.on_log(args, at(20, first=False), TrainerControl(), logs={"loss": 9.0})
    assert read(path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}]


def test_metrics_file_of_a_resumed_run_has_no_step_twice(args, tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = [{"step": s, "loss": float(s)} for s in (5, 10, 15)] + [{"step": 10, "train_runtime": 1.0}]
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 20, "lo')
    callback = MetricsFileCallback(path)
    callback.on_train_begin(args, at(10), TrainerControl())
    callback.on_log(args, at(15), TrainerControl(), logs={"loss": 0.1})
    assert read(path) == [{"step": 5, "loss": 5.0}, {"step": 10, "loss": 10.0}, {"step": 15, "loss": 0.1}]


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_first_ctrl_c_saves_stops_and_says_how_to_go_on(args):
    lines, before = [], signal.getsignal(signal.SIGINT)
    callback = InterruptCallback("sinkd distill --resume", write=lines.append)
    callback.on_train_begin(args, at(0), TrainerControl())
    control = callback.on_step_end(args, at(1), TrainerControl())
    assert not control.should_save
    press_ctrl_c()
    control = callback.on_step_end(args, at(2), TrainerControl())
    assert control.should_save
    assert control.should_training_stop
    callback.on_train_end(args, at(2), control)
    assert callback.interrupted
    assert signal.getsignal(signal.SIGINT) is before
    assert len(lines) == 2
    assert "checkpoint-2" in lines[1]
    assert "sinkd distill --resume" in lines[1]


def test_second_ctrl_c_stops_at_once_and_gives_the_handler_back(args):
    before = signal.getsignal(signal.SIGINT)
    callback = InterruptCallback("", write=lambda text: None)
    callback.on_train_begin(args, at(0), TrainerControl())
    press_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("other_process_asked", [False, True])
def test_processes_stop_after_the_same_step(args, monkeypatch, other_process_asked):
    def all_reduce(flags, op):
        flags |= int(other_process_asked)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    callback = InterruptCallback("", write=lambda text: None)
    control = callback.on_step_end(args, at(2), TrainerControl())
    assert control.should_save is other_process_asked
    assert callback.interrupted is other_process_asked


def test_ctrl_c_in_the_last_step_lets_the_run_finish(args):
    lines = []
    callback = InterruptCallback("", write=lines.append)
    callback.on_train_begin(args, at(0), TrainerControl())
    press_ctrl_c()
    control = callback.on_step_end(args, at(20), TrainerControl())
    callback.on_train_end(args, at(20), control)
    assert not callback.interrupted
    assert not control.should_training_stop
    assert len(lines) == 1


def test_save_only_model_is_said_not_to_resume(args):
    args.save_only_model = True
    lines = []
    callback = InterruptCallback("resume me", write=lines.append)
    callback.on_train_begin(args, at(0), TrainerControl())
    press_ctrl_c()
    callback.on_train_end(args, at(2), callback.on_step_end(args, at(2), TrainerControl()))
    assert "cannot be resumed" in lines[-1]
    assert "resume me" not in lines[-1]


def test_outside_the_main_thread_it_does_nothing(args):
    before, errors = signal.getsignal(signal.SIGINT), []

    def work():
        try:
            callback = InterruptCallback("")
            callback.on_train_begin(args, at(0), TrainerControl())
            callback.on_train_end(args, at(1), TrainerControl())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert errors == []
    assert signal.getsignal(signal.SIGINT) is before
