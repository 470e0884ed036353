"""Mistakes on any command line: one message, which names the flag that was meant, or none."""

import re

import pytest

from sinkd_llm.cli import COMMANDS, main
from sinkd_llm.cli.parsing import all_parsers
from sinkd_llm.training.settings.rules import OTHER_NAMES

TRAINING = ["distill", "--task", "quickstart", "--teacher_model_name_or_path", "x"]


def refused(capsys, argv):
    """The one line that a refused command prints."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("sinkd: error: ")
    return lines[0].removeprefix("sinkd: error: ")


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--lr", "--learning_rate"),
        ("--beta", "--sinkhorn_weight"),
        ("--batch_size", "--per_device_train_batch_size"),
        ("--epochs", "--num_train_epochs"),
        ("--model", "--model_name_or_path"),
        ("--student", "--model_name_or_path"),
        ("--teacher", "--teacher_model_name_or_path"),
        ("--data", "--data_dir"),
        ("--dataset", "--dataset_name"),
        ("--lora_rank", "--lora_r"),
        ("--lora-rank", "--lora_r"),
        ("--warmup_ratio", "--warmup_steps"),
        ("--torch_dtype", "--dtype"),
        ("--recipe", "--config"),
        ("--output", "--output_dir"),
        ("-o", "--output_dir"),
        ("--temp", "--temperature"),
        ("--T", "--temperature"),
        ("--steps", "--max_steps"),
        ("--bs", "--per_device_train_batch_size"),
        ("--wd", "--weight_decay"),
        ("--warmup", "--warmup_steps"),
        ("--dry", "--dry_run"),
        ("--learning_rat", "--learning_rate"),
    ],
)
def test_other_tools_names_lead_to_the_flag_that_is_meant(capsys, flag, meant):
    assert f"unknown flag {flag}. Did you mean '{meant}'?" in refused(capsys, [*TRAINING, flag, "1"])


@pytest.mark.parametrize("flag", ["--verbose", "--quiet", "--foo", "--x", "--device"])
def test_where_nothing_is_meant_nothing_is_suggested(capsys, flag):
    assert "Did you mean" not in refused(capsys, [*TRAINING, flag, "1"])


def test_a_key_of_a_recipe_likewise(capsys, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: quickstart\nlr: 1e-4\n")
    message = refused(capsys, ["distill", "--config", str(recipe)])
    assert message == f"{recipe} has the unknown key 'lr'. Did you mean 'learning_rate'?"


@pytest.mark.parametrize(
    ("command", "flag", "meant"),
    [
        ("evaluate", "--bs", "--batch_size"),
        ("evaluate", "--output_dir", "--output"),
        ("evaluate", "--limit", "--max_eval_samples"),
        ("cache", "--teacher", "--teacher_model_name_or_path"),
        ("finetune", "--num-epochs", "--num_train_epochs"),
    ],
)
def test_a_name_leads_to_the_flag_that_the_command_has(capsys, command, flag, meant):
    assert f"unknown flag {flag}. Did you mean '{meant}'?" in refused(capsys, [command, flag, "1"])


def test_every_name_leads_to_a_flag_of_some_command():
    flags = {flag for parser in all_parsers().values() for flag in parser._option_string_actions}
    flags |= {"--config", "--limit", "--num_devices", "--estimate", "--validation_share"}
    missing = {f"--{name}" for names in OTHER_NAMES.values() for name in names} - flags
    assert not missing


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*TRAINING, "--lora_r", "0"], "--lora_r is 0; give a whole number from 1 to"),
        ([*TRAINING, "--lr_scheduler_kwargs", '{"a": }'], "--lr_scheduler_kwargs takes a mapping, but it is"),
        ([*TRAINING, "--teacher_model_init_kwargs", "dtype=x"], 'write \'{"dtype": "bfloat16"}\''),
        ([*TRAINING, "--output_dir", ""], "--output_dir is empty"),
        ([*TRAINING, "--output_dir="], "--output_dir is empty"),
        ([*TRAINING, "--config"], "--config needs a file"),
        ([*TRAINING, "--config="], "--config needs a file"),
        ([*TRAINING, "--alpha"], "--alpha: expected one argument"),
        ([*TRAINING, "--alpha="], "--alpha: invalid float value: ''"),
        ([*TRAINING, "--alpha", "nan"], "--alpha is nan; give a number from 0 to 1"),
        ([*TRAINING, "--max-steps", "9" * 5000], "--max_steps: invalid int value: '999"),
        ([*TRAINING, "--seed", "9223372036854775808"], "--seed is 9223372036854775808"),
        ([*TRAINING, "--report_to", "foo"], "--report_to names 'foo', which is no tracker that Transformers knows"),
        ([*TRAINING, "–alpha", "1"], "begins with a dash that is no hyphen; write --alpha with two hyphens"),
        ([*TRAINING, "—alpha=1"], "begins with a dash that is no hyphen; write --alpha with two hyphens"),
        ([*TRAINING, "recipe.yaml"], "did you mean --config recipe.yaml?"),
        ([*TRAINING, "--data_dir", "a\0b"], "--data_dir holds a NUL"),
        ([*TRAINING, "--config", "a\0b"], "holds a NUL"),
        ([*TRAINING, "--accelerate_config", "zero9"], "no accelerate configuration 'zero9'"),
        ([*TRAINING, "--accelerate_config", "zero3", "--num_processes", "²"], "num_processes is '²'"),
        ([*TRAINING, "--fsdp", "full_shard"], "--fsdp needs a launcher"),
        (["evaluate", "--verbose"], "unknown flag --verbose. 'sinkd evaluate --help' shows the flags."),
        (["evaluate", "--model", "x"], "Did you mean '--model_name_or_path'?"),
        (["quickstart", "--max_steps", "x"], "--max_steps: invalid int value: 'x'"),
        (["quickstart", "--max_steps", "0"], "--max_steps is 0"),
        (["quickstart", "--seed", "-1"], "--seed is -1"),
        (["tasks", "show"], "the following arguments are required: name"),
        (["tasks", "show", "quickstart", "--limit", "0"], "--limit is 0; give 1 or more"),
        (["tasks", "show", "quickstart", "--limit", "x" * 9000], "--limit: invalid int value"),
        (["tasks", "nope"], "invalid choice: 'nope'"),
        (["env", "--estimate"], "--estimate: expected one argument"),
        (["x" * 9000], "there is no command 'xxx"),
        (["\x1b[31mred\x07"], "there is no command '\\x1b[31mred\\x07'"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else "",
)
def test_mistakes_are_one_message_that_names_the_flag(capsys, argv, message):
    said = refused(capsys, argv)
    assert message in said
    assert len(said) < 1500
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", said)


@pytest.mark.parametrize(
    "command",
    [name for name in COMMANDS if name not in ("objectives", "quickstart", "recipes", "report", "tasks", "env")],
)
def test_a_command_without_its_flags_says_which(capsys, command):
    assert "--" in refused(capsys, [command])


def test_the_last_of_two_values_counts_and_that_is_said(capsys):
    from sinkd_llm.cli.parsing import parse_training

    _, training, _ = parse_training("distill", [*TRAINING[1:], "--output_dir", "o", "--alpha", "0.1", "--alpha=0.2"])
    assert training.alpha == 0.2
    assert capsys.readouterr().err == "Note: --alpha is given 2 times; the last one counts.\n"
