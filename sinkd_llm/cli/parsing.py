"""Flags and YAML to dataclasses: TRL's parser, with errors that a user can act on."""

import argparse
import dataclasses
import os
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from transformers import TrainingArguments
from transformers.utils.logging import disable_progress_bar
from trl import ModelConfig, TrlParser

from sinkd_llm.cli.launching import LaunchArguments
from sinkd_llm.config import SinKDConfig
from sinkd_llm.errors import InputError, nearest
from sinkd_llm.runs.data import TaskArguments

if TYPE_CHECKING:
    from collections.abc import Iterable

# What a first run needs of the 130 flags of TrainingArguments; `--help_all` shows the others.
COMMON_TRAINER_FLAGS = {
    *("output_dir", "resume_from_checkpoint", "seed", "report_to"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("weight_decay", "bf16", "logging_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit"),
}

# Where this command line does more than the help of Transformers says.
_HELP = {
    "output_dir": "Where the model, results.json, metrics.jsonl, report.html and checkpoints go. "
    "Default: runs/<command>-<task>.",
    "resume_from_checkpoint": "'true' for the last checkpoint in output_dir, or the folder of one.",
    "model_name_or_path": "The model to train: a hub id, a folder, a *.gguf file or a bundled name. "
    "distill with --student_layers can do without.",
    "dtype": "Load the weights of student and teacher in this type.",
    "use_peft": "Train a LoRA adapter instead of all weights.",
    "lora_target_modules": "LoRA target modules. Default: all linear layers.",
    "student_layers": "Build the student from this many evenly spaced layers of the model that "
    "--model_name_or_path names, or of the teacher if it names none.",
}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        # Every flag also exists with hyphens; saying so 130 times helps nobody.
        if action.option_strings and action.nargs != 0:
            value = self._format_args(action, "VALUE")
            return f"{action.option_strings[0]} {value}"
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)


class SinKDParser(TrlParser):
    """TRL's parser over dataclasses, `--config file.yaml` included.

    Flags win over the file. A key that is in no dataclass, from either side, is an [`InputError`]
    that names the nearest right one; so are a value of the wrong type, and a file that is missing,
    broken or not a mapping. TRL itself takes the values of the file as they are.
    """

    def __init__(self, dataclass_types: "Iterable[Any]", **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _HelpFormatter)
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (--\w+)\S*: ", r"\1: ", message)
        raise InputError(f"{message}. '{self.prog} --help' shows the flags.")

    def parse(self, argv: Sequence[str], default_output_dir: str | None = None) -> tuple[Any, ...]:
        """The dataclasses for `argv`; `{task}` in `default_output_dir` becomes the task's name."""
        disable_progress_bar()  # of Transformers: "writing shards" and the like; ours says what counts
        config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        config_parser.add_argument("--config", nargs="?", const="")
        known, arguments = config_parser.parse_known_args(list(argv))
        if known.config is not None:
            self._use_config(known.config)
        namespace, remaining = self.parse_known_args(arguments)
        if remaining:
            self._refuse_unknown(remaining)
        if default_output_dir is not None and namespace.output_dir is None:
            name = Path(str(namespace.task or namespace.dataset_name or "run")).stem
            self.set_defaults(output_dir=default_output_dir.format(task=name))
        try:
            return self.parse_args_into_dataclasses(args=arguments, look_for_args_file=False)
        except InputError:
            raise
        except ValueError as error:
            # TrainingArguments and ModelConfig refuse combinations of values with it.
            raise InputError(" ".join(str(error).split())) from error
        except PackageNotFoundError as error:
            # A flag asks for a package that is not here (--deepspeed); the name is a whole sentence.
            raise InputError(f"{' '.join(error.name.split())} 'sinkd env' shows the extras.") from error

    def _use_config(self, path: str) -> None:
        config = read_config(path)
        environment = config.pop("env", None) or {}
        if not isinstance(environment, dict):
            raise InputError(f"{path}: 'env' is not a mapping; write 'env:' and NAME: value below.")
        os.environ.update({str(name): str(value) for name, value in environment.items()})
        actions = {action.dest: action for action in self._actions if action.option_strings}
        values = {}
        for key, value in config.items():
            if key not in actions or key in ("help", "help_all"):
                raise InputError(f"{path} has the unknown key {key!r}.{nearest(str(key), list(actions))}")
            values[key] = self._config_value(path, actions[key], value)
        self.set_defaults_with_config(**values)

    def _config_value(self, path: str, action: argparse.Action, value: Any) -> Any:
        """`value` as the flag would have given it: argparse checks flags, but not defaults."""
        many = action.nargs == "+"
        # A mapping, and a list for a flag that takes text (report_to), are left to the dataclass.
        if value is None or isinstance(value, dict) or (isinstance(value, list) and not many):
            if isinstance(value, (dict, list)) and action.type is not str:
                raise InputError(f"{path}: {action.dest} is {value!r}, but it takes one value.")
            return value
        values = []
        for item in value if isinstance(value, list) else [value]:
            # YAML 1.1 reads 1e-4 as text, which the flag's own conversion takes; and `no`, which
            # is a choice of eval_strategy, as false.
            text = str(item)
            if isinstance(item, bool):
                text = text.lower() if action.choices is None else ("yes" if item else "no")
            try:
                values.append(self._get_value(action, text))
                self._check_value(action, values[-1])
            except argparse.ArgumentError as error:
                raise InputError(f"{path}: {action.dest}: {error.message}.") from error
        return values if many else values[0]

    def _refuse_unknown(self, remaining: list[str]) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        wrong = next((word for word in remaining if word.startswith("--")), remaining[0])
        if not wrong.startswith("-"):
            hint = f"--config {wrong}" if wrong.endswith((".yaml", ".yml")) else "--name value"
            raise InputError(f"{wrong!r} belongs to no flag; did you mean {hint}?")
        name = wrong.split("=")[0]
        suggestion = nearest(name, [flag for flag in flags if "-" not in flag[2:]])
        raise InputError(f"unknown flag {name}.{suggestion} '{self.prog} --help_all' shows every flag.")


def read_config(path: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises [`InputError`] if the file is missing, not UTF-8, not YAML, or not a mapping.
    """
    if not path:
        raise InputError("--config needs a file: --config recipes/sst2_student_sinkd.yaml.")
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"the configuration file {path} does not exist or is not a file.")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InputError(f"{path}{where} is not valid YAML: {problem}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a mapping; it has one 'flag_name: value' a line.")
    return config


def parse_training(command: str, argv: Sequence[str]) -> tuple[TaskArguments, SinKDConfig, ModelConfig]:
    """The arguments of `sinkd finetune` and `sinkd distill`."""
    task_args, training_args, model_args, _ = parse_recipe(command, argv, LaunchArguments, "several processes")
    return task_args, training_args, model_args


def parse_recipe(command: str, argv: Sequence[str], own: type, title: str) -> tuple[Any, ...]:
    """The arguments of a command that takes training recipes; the flags of `own` stand under `title` in its help."""
    parser = SinKDParser(
        (TaskArguments, SinKDConfig, ModelConfig, own),
        prog=f"sinkd {command}",
        usage=f"sinkd {command} [--config FILE.yaml] [--flag VALUE ...]",
        epilog="Every flag may stand in the --config file without its dashes; flags win.",
    )
    parser.add_argument("--help_all", action="help", help="show all flags, those of TrainingArguments too")
    _arrange_help(parser, {title: own}, every_flag="--help_all" in argv)
    arguments = parser.parse(argv, default_output_dir=f"runs/{command}-{{task}}")
    _check_trackers(arguments[1])
    return arguments


def _check_trackers(training_args: SinKDConfig) -> None:
    from transformers.integrations import get_available_reporting_integrations

    available = get_available_reporting_integrations()
    for name in training_args.report_to or []:
        if name not in available:
            raise InputError(
                f"report_to names {name!r}, which is not installed here, or no tracker that Transformers "
                f"knows; pip install {name}, or choose from {', '.join([*available, 'none'])}."
            )


def _arrange_help(parser: SinKDParser, special: dict[str, Any], every_flag: bool) -> None:
    """Sort the flags into titled groups, and leave those out that few runs need."""
    shared = {field.name for field in dataclasses.fields(TrainingArguments)}
    groups = {
        "task and data": TaskArguments,
        "model (as in trl.ModelConfig)": ModelConfig,
        "distillation (SinKDConfig)": SinKDConfig,
        **special,
        "training (as in transformers.TrainingArguments)": TrainingArguments,
    }
    optional = parser._optionals._group_actions
    for title, dataclass_type in groups.items():
        group = parser.add_argument_group(title)
        names = {field.name for field in dataclasses.fields(dataclass_type)}
        own = names if dataclass_type is TrainingArguments else names - shared
        # argparse has no public way to move a flag, and HfArgumentParser puts all into one group.
        group._group_actions.extend(action for action in optional if action.dest in own)
        optional[:] = [action for action in optional if action.dest not in own]
        for action in group._group_actions:
            action.help = _HELP.get(action.dest, action.help)
            if action.dest in shared - COMMON_TRAINER_FLAGS and not every_flag:
                action.help = argparse.SUPPRESS
