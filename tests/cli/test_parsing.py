"""Flags and YAML to dataclasses: precedence, types, and errors that say what to do."""

import dataclasses
import os
import shlex
from pathlib import Path

import pytest

from sinkd_llm.cli.parsing import SinKDParser, parse_recipe, parse_training, read_config
from sinkd_llm.errors import InputError
from sinkd_llm.objectives import DistillationObjective
from sinkd_llm.runs import TaskArguments
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.settings.rules import NEEDS_TEACHER
from tests.support.task_files import write_task

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted([*(REPOSITORY / "recipes").glob("*.yaml"), *(REPOSITORY / "sinkd_llm" / "recipes").glob("*.yaml")])
# The shortest `sinkd distill`: enough to reach the checks after the parsing.
ENOUGH = ["--task", "sst2", "--output_dir", "out"]


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return write


def test_flags_win_over_the_file(config):
    file = config("task: sst2\nalpha: 0.5\nsinkhorn_weight: 0.3\nuse_peft: true\nlora_r: 4\n")
    task, training, model = parse_training("distill", [*file, "--sinkhorn_weight", "0"])
    assert (task.task, training.alpha, training.sinkhorn_weight, model.lora_r) == ("sst2", 0.5, 0.0, 4)


def test_the_groups_that_a_task_file_names(tmp_path):
    task = write_task(tmp_path / "tickets.yaml", metadata={"group": "team"})
    words = ["--task", str(task), "--output_dir", "out", "--transported_weight", "10"]
    grouped = [*words, "--transport_scope", "group"]
    for given, column in (
        (grouped, "team"),
        (words, None),
        ([*grouped, "--group_column", "list"], "list"),
        ([*grouped, "--teacher_cache", "cache"], None),  # it knows its own
    ):
        _, training, _ = parse_training("distill", given)
        assert training.group_column == column, given
    _, training, *_ = parse_recipe("cache", [*grouped, "--teacher_cache", "cache"])  # to be written
    assert training.group_column == "team"
    write_task(task, metadata={"group": ["team"]})
    with pytest.raises(InputError, match=r"metadata\.group"):
        parse_training("distill", grouped)


def test_what_a_flag_switches_off_takes_the_recipe_s_settings_with_it(config, capsys):
    file = config("task: sst2\nuse_peft: true\nlora_r: 4\n")
    assert parse_training("distill", [*file, "--use_peft", "false"])[2].lora_r == 16
    assert "lora_r of " in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--lora_r is 8, .* needs --use_peft"):
        parse_training("distill", [*file, "--use_peft", "false", "--lora_r", "8"])


def test_equals_sign_hyphens_and_position_do_not_matter(config):
    _, path = config("task: sst2\n")
    _, training, _ = parse_training("distill", ["--max-steps=7", f"--config={path}"])
    assert training.max_steps == 7


def test_yaml_values_get_the_type_of_their_flag(config):
    text = (
        "task: sst2\nlearning_rate: 1e-4\nmax_steps: '12'\nbf16: no\neval_strategy: no\n"
        "save_strategy: no\nlora_target_modules: [q_proj, v_proj]\nuse_peft: yes\n"
        "max_length: null\nteacher_model_init_kwargs: {device_map: auto}\n"
    )
    _, training, model = parse_training("distill", config(text))
    assert training.learning_rate == 1e-4
    assert training.max_steps == 12
    assert (training.bf16, training.eval_strategy, training.save_strategy) == (False, "no", "no")
    assert model.lora_target_modules == ["q_proj", "v_proj"]
    assert model.use_peft is True
    assert training.max_length is None
    assert training.teacher_model_init_kwargs == {"device_map": "auto"}


def test_env_section_of_the_file(config, monkeypatch):
    monkeypatch.delenv("SINKD_TEST_VARIABLE", raising=False)
    parse_training("distill", config("task: sst2\nenv:\n  SINKD_TEST_VARIABLE: 3\n"))
    assert os.environ.pop("SINKD_TEST_VARIABLE") == "3"


@pytest.mark.parametrize(
    ("argv", "folder"),
    [
        (["--task", "sst2"], "runs/distill-sst2"),
        (["--task", "my/own.yaml"], "runs/distill-own"),
        (["--dataset_name", "trl-lib/tldr"], "runs/distill-tldr"),
        (["--task", "sst2", "--output_dir", "here"], "here"),
    ],
)
def test_default_output_dir_names_command_and_task(argv, folder):
    assert parse_training("distill", argv)[1].output_dir == folder


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sinkhorn_wight", "1"], "unknown flag --sinkhorn_wight. Did you mean '--sinkhorn_weight'?"),
        (["--sinkhorn_w", "1"], "unknown flag --sinkhorn_w"),  # no silent abbreviations
        (["recipe.yaml"], "did you mean --config recipe.yaml?"),
        (["--alpha", "much"], "--alpha: invalid float value: 'much'"),
        (["--divergence", "klx"], "--divergence: invalid choice: 'klx'"),
        (["--alpha", "1.5"], "alpha"),
        (["--config"], "--config needs a file"),
        (["--config", "absent.yaml"], "There is no recipe absent.yaml: it does not exist"),
        (["--report_to", "no_such_tracker"], "report_to names 'no_such_tracker'"),
        (["--load_in_4bit", "--load_in_8bit"], "--load_in_8bit and --load_in_4bit are both set"),
        (["--lora_r", "8"], "--lora_r is 8, which would have no effect: it needs --use_peft."),
        (
            ["--model_name_or_path", "smollm2-135m", "--model_revision", "v1"],
            "--model_revision is 'v1', which would have",
        ),
        (["--optim", "adamw_torchh"], "in all). Did you mean 'adamw_torch'? "),
        (["--eval_strategy", "steps", "--load_best_model_at_end", "--save_strategy", "epoch"], "strategy"),
    ],
)
def test_wrong_flags_are_input_errors(argv, message):
    with pytest.raises(InputError) as raised:
        parse_training("distill", [*ENOUGH, *argv])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alhpa: 0.5\n", "unknown key 'alhpa'. Did you mean 'alpha'?"),
        ("help: true\n", "unknown key 'help'"),
        ("alpha: much\n", "alpha: invalid float value: 'much'"),
        ("max_steps: 1.5\n", "max_steps: invalid int value: '1.5'"),
        ("divergence: klx\n", "divergence: invalid choice: 'klx'"),
        ("fused: true\n", "fused: invalid choice: 'true'"),
        ("learning_rate: [1, 2]\n", "learning_rate is [1, 2], but it takes one value"),
        ("alpha: {a: 1}\n", "but it takes one value"),
        ("- a\n- b\n", "should hold keys and values, one 'key: value' a line, but it holds a list"),
        ("", "should hold keys and values, one 'key: value' a line, but it is empty"),
        ("task: sst2\n  alpha: 1\n", "is not valid YAML at line 2"),
        ("env: 3\n", "'env' is not a mapping"),
    ],
)
def test_wrong_files_are_input_errors(config, text, message):
    with pytest.raises(InputError) as raised:
        parse_training("distill", [*ENOUGH, *config(text)])
    assert message in str(raised.value)


def test_a_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"task: caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_config(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give --task"),
        ({"task": "sst2", "dataset_name": "x"}, "not both"),
        ({"dataset_name": "x", "data_dir": "y"}, "--data_dir belongs to --task"),
        ({"task": "sst2", "max_train_samples": 0}, "max_train_samples is 0"),
    ],
)
def test_task_arguments_that_contradict(arguments, message):
    with pytest.raises(InputError, match=message):
        TaskArguments(**arguments)


def test_help_shows_the_common_flags_and_help_all_the_others(capsys):
    for flag, shown in (("--help", False), ("--help_all", True)):
        with pytest.raises(SystemExit) as stopped:
            parse_training("distill", [flag])
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert "--sinkhorn_weight VALUE" in printed
        assert "--learning_rate VALUE" in printed
        assert ("--adam_beta2 VALUE" in printed) is shown


def test_choices_that_are_wider_than_the_terminal_stand_in_the_text_of_the_flag(monkeypatch, capsys):
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse_training("distill", ["--help_all"])
    printed = " ".join(capsys.readouterr().out.split())
    for flag, choices in (("--optim", OptimizerNames), ("--lr_scheduler_type", SchedulerType)):
        text = printed.split(f" {flag} VALUE ")[1].split(" --")[0]
        assert text.endswith(f"One of: {', '.join(choice.value for choice in choices)}.")
    assert "--divergence {kl,rkl,js,tvd,none} " in printed  # short ones stand beside the flag


NO_EFFECT = "no effect: finetune has no teacher"


@pytest.mark.parametrize(
    ("flags", "recipe", "said"),
    [
        (["--alpha", "0.5"], "", "Note: --alpha has "),
        (["--alpha=0.9"], "", "Note: --alpha has "),  # as it is without the flag, and without effect all the same
        (["--sinkhorn-weight", "1", "--alpha", "1"], "", "Note: --alpha, --sinkhorn_weight have "),
        ([], "vocabulary: verbalizers\n", "Note: vocabulary of "),
        (["--alpha", "1"], "alpha: 0.5\ntemperature: 1\n", "Note: --alpha and temperature of "),
        (["--learning_rate", "1"], "student_layers: 2\nmax_length: 64\n", None),
    ],
)
def test_finetune_says_what_has_no_effect_without_a_teacher(config, capsys, flags, recipe, said):
    given = [*ENOUGH, *config(f"seed: 1\n{recipe}"), *flags]
    parse_training("finetune", given)
    error = capsys.readouterr().err
    assert error == "" if said is None else (error.startswith(said) and NO_EFFECT in error and error.count("\n") == 1)
    parse_training("distill", given)
    parse_training("finetune", [*given, "--teacher_model_name_or_path", "x"])  # which is refused as a whole
    assert capsys.readouterr().err == ""


def test_every_setting_of_the_objective_needs_a_teacher():
    # Cross-entropy alone is computed from hidden states, too.
    names = {*DistillationObjective().by_name()} - {"fused"}
    assert names <= set(NEEDS_TEACHER) <= {field.name for field in dataclasses.fields(SinKDConfig)}
    teacher = {field.name for field in dataclasses.fields(SinKDConfig) if field.name.startswith("teacher_")}
    named = {"teacher_model_name_or_path", "teacher_cache", "teacher_file", "teacher_url"}
    assert teacher - set(NEEDS_TEACHER) == named


def test_no_flag_is_defined_twice():
    # Two dataclasses with one field name would make argparse refuse; `config` is TRL's own.
    parser = SinKDParser((TaskArguments,), prog="x")
    assert "config" not in {action.dest for action in parser._actions}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses_as_its_own_command_says(path):
    command = "finetune" if "teacher" in path.stem else "distill"
    lines = [
        line.lstrip("# ").removeprefix("Also: ")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    ]
    line = next(line for line in lines if line.startswith(f"sinkd {command} --config") and path.name in line)
    words = shlex.split(line)[2:]
    words[1] = str(path)
    task, training, model = parse_training(command, [*words, "--output_dir", "out"])
    assert task.task is not None
    settings = read_config(str(path))
    assert {"max_steps", "num_train_epochs"} & settings.keys()  # says itself how long it is
    assert "data_dir" not in settings  # where the data is, is the user's to say
    assert model.model_name_or_path is not None or training.student_layers is not None


def test_the_sst2_students_differ_in_the_objective_alone():
    names = [REPOSITORY / "recipes" / f"sst2_student_{objective}.yaml" for objective in ("ce", "kl", "sinkd")]
    objective = {"alpha", "divergence", "sinkhorn_weight", "output_dir"}
    budgets = [{k: v for k, v in read_config(str(p)).items() if k not in objective} for p in names]
    assert budgets[0] == budgets[1] == budgets[2]


def test_the_zero3_recipe_is_the_sinkd_recipe_in_two_processes():
    single, launched = (
        read_config(str(next(p for p in RECIPES if p.stem == f"sst2_student_{name}"))) for name in ("sinkd", "zero3")
    )
    assert launched.pop("num_processes") * launched.pop("per_device_train_batch_size") == single.pop(
        "per_device_train_batch_size"
    )
    launch = {"accelerate_config": "zero3", "teacher_deepspeed": "auto", "output_dir": "runs/sst2-student-zero3"}
    assert launched == {**single, **launch}


def test_the_cached_recipe_is_the_sinkd_recipe_with_a_cache():
    plain, cached = (
        read_config(str(next(p for p in RECIPES if p.stem == f"sst2_student_{name}"))) for name in ("sinkd", "cached")
    )
    # no row is cached that the run does not see
    assert cached.pop("max_train_samples") == cached["max_steps"] * cached["per_device_train_batch_size"]
    assert cached == {**plain, "teacher_cache": "runs/sst2-cache", "output_dir": "runs/sst2-student-cached"}
