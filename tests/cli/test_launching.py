"""`--accelerate_config`: what is launched, what is refused, and one real launch of two processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import sinkd_llm.cli as cli
from sinkd_llm.cli import launching
from sinkd_llm.cli.launching import config_files, find_config, launch
from sinkd_llm.errors import InputError
from tests.support.launch import ranks

REPOSITORY = Path(__file__).resolve().parents[2]
DS_CONFIGS = REPOSITORY / "ds_configs"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that reach accelerate's launcher, in place of a launch."""
    from accelerate.commands import launch as accelerate_launch

    seen: list[Any] = []
    monkeypatch.setattr(accelerate_launch, "launch_command", seen.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name in ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # whatever the launch sets is undone
        monkeypatch.delenv(name)
    return seen


# ---- the files


@pytest.mark.parametrize("file", sorted(DS_CONFIGS.glob("*.yaml")), ids=lambda f: f.stem)
def test_accelerate_reads_every_configuration(file: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    config = load_config_from_file(str(file))
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (1, -1, None)
    # Set here, it would contradict the trainer's own (and prepare_deepspeed of others dies of it).
    assert "gradient_accumulation_steps" not in config.deepspeed_config
    args, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(file), "--num_processes", "2", "none.py"])
    )
    started_by_torch = args.use_deepspeed or args.use_fsdp or args.multi_gpu
    assert started_by_torch, "accelerate's simple launcher starts one process, whatever is asked for"


@pytest.mark.parametrize("stage", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_the_json_and_the_yaml_of_a_stage_are_the_same(stage: str) -> None:
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    settings = HfDeepSpeedConfig(str(DS_CONFIGS / f"{stage}.json"))
    accelerate = yaml.safe_load((DS_CONFIGS / f"{stage}.yaml").read_text())["deepspeed_config"]
    assert settings.get_value("zero_optimization.stage") == accelerate["zero_stage"] == int(stage[4])
    for part in ("param", "optimizer"):
        wanted = accelerate.get(f"offload_{part}_device", "none")
        assert settings.get_value(f"zero_optimization.offload_{part}.device", "none") == wanted
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert settings.get_value(key) == "auto"
    assert settings.get_value("optimizer") is None  # the trainer's own, which runs everywhere


@pytest.mark.parametrize("file", sorted(DS_CONFIGS.glob("*.json")), ids=lambda f: f.stem)
def test_the_trainer_fills_every_json_in(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    from sinkd_llm import SinKDConfig

    args = SinKDConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=3, gradient_accumulation_steps=5, max_grad_norm=0.7
    )
    config = HfTrainerDeepSpeedConfig(str(file))
    config.trainer_config_process(args)
    assert config.mismatches == []
    assert config.get_value("train_micro_batch_size_per_gpu") == 3
    assert config.get_value("gradient_accumulation_steps") == 5
    assert config.get_value("gradient_clipping") == 0.7


def test_names_are_those_of_the_folder() -> None:
    assert set(config_files()) == {"cpu", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload"}
    assert find_config("zero3") == DS_CONFIGS / "zero3.yaml"
    assert find_config(str(DS_CONFIGS / "ddp.yaml")) == DS_CONFIGS / "ddp.yaml"


# ---- what is launched


def test_flags_start_the_same_command_in_processes(launched: list[Any]) -> None:
    argv = ["--task", "sst2", "--accelerate_config", "zero3", "--num_processes", "4", "--alpha", "0.5"]
    assert launch("distill", argv) == 0
    (args,) = launched
    assert args.config_file == str(DS_CONFIGS / "zero3.yaml")
    assert args.num_processes == 4
    assert args.main_process_port == 0
    assert (args.module, args.training_script) == (True, "sinkd_llm")
    assert args.training_script_args == ["distill", *argv]


def test_the_configuration_may_stand_in_the_recipe_and_flags_win(launched: list[Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("accelerate_config: zero2\nnum_processes: 3\n")
    assert launch("finetune", ["--config", str(recipe)]) == 0
    assert launch("finetune", ["--config", str(recipe), "--num-processes=5", "--accelerate-config", "fsdp2"]) == 0
    assert [(Path(args.config_file).stem, args.num_processes) for args in launched] == [("zero2", 3), ("fsdp2", 5)]


def test_the_configuration_for_cpus_keeps_the_processes_off_the_gpus(
    launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    launch("distill", ["--accelerate_config", "cpu", "--num_processes", "2"])
    assert os.environ["ACCELERATE_USE_CPU"] == "true"
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_without_a_number_there_is_a_process_a_gpu(launched: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_gpus", lambda: 8)
    launch("distill", ["--accelerate_config", "ddp"])
    assert launched[0].num_processes == 8


def test_inside_a_launch_or_for_help_nothing_is_launched(launched: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["--accelerate_config", "zero3", "--num_processes", "2"]
    assert launch("distill", ["--task", "sst2"]) is None
    assert launch("distill", [*argv, "--help"]) is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch("distill", argv) is None
    assert launched == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_processes", "2"], "--num_processes needs --accelerate_config"),
        (["--accelerate_config", "zero4", "--num_processes", "2"], "Did you mean 'zero"),
        (["--accelerate_config", "zero3", "--num_processes", "two"], "num_processes is 'two'"),
        (["--accelerate_config", "zero3", "--num_processes", "0"], "num_processes is '0'"),
        (["--accelerate_config", "ddp"], "give --num_processes"),
        (["--accelerate_config", str(DS_CONFIGS / "zero3.json"), "--num_processes", "2"], "is not an accelerate"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    argv: list[str], message: str, launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "_gpus", lambda: 0)
    with pytest.raises(InputError, match=message):
        launch("distill", argv)
    assert launched == []


def test_the_deepspeed_launchers_own_flag_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--local_rank=1", "--version"]) == 0


def test_the_exit_code_is_that_of_the_first_process_that_failed(
    launched: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands import launch as accelerate_launch
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def fail(code: int) -> Any:
        def failing(args: Any) -> None:
            failure = ProcessFailure(local_rank=0, pid=1, exitcode=code, error_file="")
            raise ChildFailedError("sinkd_llm", {0: failure})

        return failing

    for code, expected in ((2, 2), (130, 130), (-9, 1)):
        monkeypatch.setattr(accelerate_launch, "launch_command", fail(code))
        assert launch("distill", ["--accelerate_config", "ddp", "--num_processes", "2"]) == expected


def test_only_another_process_names_itself_in_its_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["nonsense"]) == 2
    assert waited == []
    assert capsys.readouterr().err.startswith("sinkd: error: there is no command")
    monkeypatch.setenv("RANK", "3")
    assert cli.main(["nonsense"]) == 2
    assert waited == [10]
    assert capsys.readouterr().err.startswith("sinkd: error in process 3: there is no command")


# ---- for real


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_two_processes_leave_one_run(tmp_path: Path, tiny_causal_lm: Any, tiny_tokenizer: Any) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    tiny_causal_lm(layers=4).save_pretrained(teacher)
    tiny_tokenizer.save_pretrained(teacher)
    out.mkdir()
    # Of an earlier run: both processes must agree to replace it.
    (out / "results.json").write_text('{"command": "distill", "rows": []}')
    words = ["--accelerate_config", "cpu", "--num_processes", "2", "--output_dir", str(out), "--overwrite_output_dir"]
    words += ["--task", "quickstart", "--teacher_model_name_or_path", str(teacher), "--student_layers", "2"]
    words += ["--use_peft", "--lora_r", "4", "--max_train_samples", "32", "--max_eval_samples", "15"]
    words += ["--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4", "--max_steps", "2"]
    words += ["--logging_steps", "1", "--save_strategy", "no", "--max_length", "64"]
    done = subprocess.run(
        [sys.executable, "-m", "sinkd_llm", "distill", *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("student after") == 1
    assert done.stderr.count("Training on 32 rows") == 1
    results = json.loads((out / "results.json").read_text())
    assert [row["num_examples"] for row in results["rows"]] == [15, 15, 15]
    assert "--accelerate_config cpu" in results["command_line"]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2]
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 2


@pytest.mark.distributed
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("signum", "code", "heard"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_ctrl_c_and_sigterm_save_in_every_process_and_the_run_goes_on(
    signum: int, code: int, heard: str, tmp_path: Path, tiny_causal_lm: Any, tiny_tokenizer: Any, zygote: Any
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    tiny_causal_lm().save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    words = ["finetune", "--accelerate_config", "cpu", "--num_processes", "2", "--output_dir", str(out)]
    words += ["--task", "quickstart", "--model_name_or_path", str(model), "--max_train_samples", "32"]
    words += ["--max_eval_samples", "4", "--per_device_train_batch_size", "2", "--logging_steps", "1"]
    words += ["--save_strategy", "no", "--max_length", "64"]
    # A terminal sends Ctrl-C to the processes of the launcher's own session.
    running = subprocess.Popen(
        [sys.executable, "-m", "sinkd_llm", *words, "--max_steps", "100000"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    try:
        deadline = time.monotonic() + 400
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
            assert running.poll() is None, running.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        # SIGTERM is sent to the process that was started.
        (os.killpg if signum == signal.SIGINT else os.kill)(running.pid, signum)
        said = running.communicate(timeout=120)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == code, said
    assert said.count(f"{heard}: finishing this step") == 1
    assert said.count("To go on from there:\n  sinkd finetune --accelerate_config cpu --num_processes 2") == 1
    (checkpoint,) = out.glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    # The launcher is the same as before: what it starts with these words is a warm process's children here.
    resumed = [*words, "--max_steps", str(step + 1), "--resume_from_checkpoint", "true"]
    log, cpu = tmp_path / "log", {"ACCELERATE_USE_CPU": "true"}
    answer = zygote(resumed, log, env=[{**rank, **cpu} for rank in ranks()], together=True, limit=400)
    assert answer["codes"] == [0, 0], log.read_text()
    assert json.loads((out / "results.json").read_text())["training"]["resumed_at"] == step
