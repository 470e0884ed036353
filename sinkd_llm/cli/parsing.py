"""Flags and YAML to dataclasses: TRL's parser, with errors that a user can act on."""

import argparse
import dataclasses
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from trl import ModelConfig, TrlParser

from sinkd_llm.cli.command_parser import (
    CommandParser,
    refuse_unknown,
    refuse_unknown_keys,
    say_repeated,
    split_config,
)
from sinkd_llm.cli.flag_table import keep_table
from sinkd_llm.cli.help_texts import TRAINER_GROUP, HelpFormatter, hide_rare_flags
from sinkd_llm.cli.recipe_file import environment, environment_of, read_config
from sinkd_llm.errors import InputError, SettingError, plain, shown
from sinkd_llm.objectives import GROUP
from sinkd_llm.quiet import hide_bars_of_transformers
from sinkd_llm.runs.arguments import CacheArguments, EvaluateArguments, LaunchArguments, TaskArguments
from sinkd_llm.terminal import say
from sinkd_llm.training.config import SinKDConfig
from sinkd_llm.training.settings.checks import check_settings
from sinkd_llm.training.settings.combinations import check_revision
from sinkd_llm.training.settings.rules import NEEDS, NEEDS_TEACHER

if TYPE_CHECKING:
    from collections.abc import Iterable

# Where this command line does more than the help of Transformers says.
_HELP = {
    "output_dir": "Where the model, results.json, metrics.jsonl, report.html and checkpoints go. "
    "Default: runs/<command>-<task>.",
    "resume_from_checkpoint": "'true' for the last checkpoint in output_dir, or the folder of one.",
    "model_name_or_path": "The model to train: a hub id, a folder, a *.gguf file or a bundled name. "
    "distill with --student_layers needs none.",
    "dtype": "Load the weights of student and teacher in this type.",
    "use_peft": "Train a LoRA adapter instead of all weights.",
    "lora_target_modules": "LoRA target modules. Default: all linear layers.",
}


class SinKDParser(CommandParser, TrlParser):
    """TRL's parser over dataclasses, `--config file.yaml` included.

    Flags win over the file. A key that is in no dataclass, from either side, is an [`InputError`]
    that names the nearest right one; so are a value of the wrong type or out of range, and a file that is
    missing, broken or not a mapping. TRL itself takes the values of the file as they are.
    """

    def __init__(self, dataclass_types: "Iterable[Any]", **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        super().__init__(dataclass_types, **kwargs)
        self._recipe: str | None = None
        self._recipe_keys: set[str] = set()

    def parse(self, argv: Sequence[str], default_output_dir: str | None = None) -> tuple[Any, ...]:
        """
        The dataclasses for `argv`.

        Args:
            argv (`Sequence[str]`): the words after the command.
            default_output_dir (`str`, *optional*): where `{task}` becomes the task's name.

        Raises:
            InputError: for the first mistake, naming the setting as it was given: as a flag, or in the recipe. The
                environment is then as it was before.
        """
        hide_bars_of_transformers()
        recipe, arguments = split_config(self.prog, argv)
        variables = self._use_config(recipe) if recipe is not None else {}
        with environment(variables):
            return self._parse(argv, arguments, default_output_dir)

    def _parse(self, argv: Sequence[str], arguments: list[str], default_output_dir: str | None) -> tuple[Any, ...]:
        namespace, remaining = self.parse_known_args(arguments)
        if remaining:
            refuse_unknown(self, remaining, more=["--config"])
        if default_output_dir is not None and namespace.output_dir is None:
            name = Path(str(namespace.task or namespace.dataset_name or "run")).stem
            self.set_defaults(output_dir=default_output_dir.format(task=name))
        self._set_aside(namespace, arguments)
        self._take_groups_of_task(namespace)
        if getattr(namespace, "load_in_8bit", False) and getattr(namespace, "load_in_4bit", False):
            eight, four = (self._as_given(name, arguments) for name in ("load_in_8bit", "load_in_4bit"))
            raise InputError(f"{eight} and {four} are both set; choose one of them.")
        try:
            parsed = self.parse_args_into_dataclasses(args=arguments, look_for_args_file=False)
            for settings in parsed:
                if isinstance(settings, ModelConfig):  # ours have checked themselves
                    check_settings(settings)
                    check_revision("model_revision", settings.model_revision, settings.model_name_or_path)
        except SettingError as error:
            raise error.said_as(self._as_given(error.setting, arguments)) from error
        except InputError:
            raise
        except ValueError as error:
            # ModelConfig refuses combinations of values with it.
            raise InputError(" ".join(str(error).split())) from error
        say_repeated(self, argv)
        return parsed

    def _set_aside(self, namespace: argparse.Namespace, arguments: Sequence[str]) -> None:
        """What the recipe sets for something that a flag switches off goes with it, with a word."""
        defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
        for name, switch in NEEDS.items():
            recipes = name in self._recipe_keys and not self._is_flag(name, arguments)
            if recipes and self._is_flag(switch, arguments) and not getattr(namespace, switch):
                self.set_defaults(**{name: defaults[name]})
                say(f"Note: {name} of {self._recipe} goes with --{switch}, which is switched off.")

    def _take_groups_of_task(self, namespace: argparse.Namespace) -> None:
        """The column of groups that a task file names, where groups are asked for and no setting says which."""
        if getattr(namespace, "transport_scope", None) != GROUP or not str(namespace.task).endswith((".yaml", ".yml")):
            return
        written = hasattr(namespace, "merge") and not namespace.merge  # `sinkd cache`: the cache may be its output
        of_cache = namespace.teacher_cache is not None and not written
        if namespace.group_column is None and not of_cache and namespace.teacher_rows_per_request <= 1:
            from sinkd_llm.tasks.schema import read_task_file

            config, _ = read_task_file(Path(os.path.expanduser(namespace.task)))
            self.set_defaults(group_column=config.get("metadata", {}).get("group"))

    def say_without_effect(self, settings: Collection[str], argv: Sequence[str], reason: str) -> None:
        """A note that names those of `settings` which were given, on the command line or in the recipe, and why."""
        flags = [f"--{name}" for name in settings if self._is_flag(name, argv)]
        keys = [name for name in settings if name in self._recipe_keys and not self._is_flag(name, argv)]
        given = [", ".join(flags)] * bool(flags) + [f"{', '.join(keys)} of {self._recipe}"] * bool(keys)
        if given:
            verb = "has" if len(flags) + len(keys) == 1 else "have"
            say(f"Note: {' and '.join(given)} {verb} no effect: {reason}.")

    def _is_flag(self, setting: str, arguments: Sequence[str]) -> bool:
        actions = [self._option_string_actions.get(word.split("=")[0]) for word in arguments]
        return any(action is not None and action.dest == setting for action in actions)

    def _as_given(self, setting: str, arguments: Sequence[str]) -> str:
        """A setting as the user wrote it: on the command line, or in the recipe."""
        if self._is_flag(setting, arguments):
            return f"--{setting}"
        return f"{self._recipe}: {setting}" if setting in self._recipe_keys else f"--{setting}"

    def _use_config(self, path: str) -> dict[str, str]:
        """Make the recipe's values the defaults; its environment variables are given back."""
        config = read_config(path)
        variables = environment_of(path, config)
        refuse_unknown_keys(self, path, config)
        actions = {action.dest: action for action in self._actions if action.option_strings}
        values = {key: self._config_value(path, actions[key], value) for key, value in config.items()}
        self._recipe, self._recipe_keys = path, set(values)
        self.set_defaults_with_config(**values)
        return variables

    def _config_value(self, path: str, action: argparse.Action, value: Any) -> Any:
        """`value` as the flag would have given it: argparse checks flags, but not defaults."""
        many = action.nargs == "+"
        # A mapping, and a list for a flag that takes text (report_to), are left to the dataclass.
        if value is None or isinstance(value, dict) or (isinstance(value, list) and not many):
            if isinstance(value, (dict, list)) and (many or action.type is not str):
                raise InputError(f"{path}: {action.dest} is {shown(value)}, but it takes one value.")
            return value
        values = []
        for item in value if isinstance(value, list) else [value]:
            if item is None or isinstance(item, (dict, list)):
                raise InputError(f"{path}: {action.dest} holds {shown(item)}, but each item is one value.")
            # YAML 1.1 reads 1e-4 as text, which the flag's own conversion takes; and `no`, which
            # is a choice of eval_strategy, as false.
            text = str(item)
            if isinstance(item, bool):
                word = "yes" if item else "no"
                choices = [str(plain(choice)) for choice in action.choices or ()]
                text = word if word in choices else text.lower()
            try:
                values.append(self._get_value(action, text))
                self._check_value(action, values[-1])
            except argparse.ArgumentError as error:
                end = "?" if "Did you mean" in error.message else "."
                raise InputError(f"{path}: {action.dest}: {error.message}{end}") from error
        return values if many else values[0]


# Command -> the dataclass that it alone takes, and the title of its flags.
_OWN: dict[str, tuple[type, str]] = {
    "finetune": (LaunchArguments, "how it runs"),
    "distill": (LaunchArguments, "how it runs"),
    "cache": (CacheArguments, "teacher cache"),
}


def parse_training(command: str, argv: Sequence[str]) -> tuple[TaskArguments, SinKDConfig, ModelConfig]:
    """The arguments of `sinkd finetune` and `sinkd distill`."""
    task_args, training_args, model_args, _ = parse_recipe(command, argv)
    return task_args, training_args, model_args


def parse_recipe(command: str, argv: Sequence[str]) -> tuple[Any, ...]:
    """`TaskArguments`, `SinKDConfig`, `ModelConfig` and its own, for a command that takes training recipes."""
    parsers = all_parsers()
    keep_table(parsers)
    parser = parsers[command]
    if "--help_all" not in argv:
        hide_rare_flags(parser)
    parsed = parser.parse(argv, default_output_dir=f"runs/{command}-{{task}}")
    training = next(settings for settings in parsed if isinstance(settings, SinKDConfig))
    # With a teacher the command itself is refused.
    if command == "finetune" and not training.has_teacher:
        reason = "finetune has no teacher, and its loss is of the answers alone; 'sinkd distill' takes one"
        parser.say_without_effect(NEEDS_TEACHER, argv, reason)
    return parsed


def parse_evaluation(argv: Sequence[str]) -> EvaluateArguments:
    """The arguments of `sinkd evaluate`."""
    parsers = all_parsers()
    keep_table(parsers)
    parsed: EvaluateArguments = parsers["evaluate"].parse(argv)[0]
    return parsed


def all_parsers() -> dict[str, SinKDParser]:
    """The parser of each command that is made of dataclasses, with the help of all its flags."""
    evaluate = SinKDParser(
        (EvaluateArguments,),
        prog="sinkd evaluate",
        usage="sinkd evaluate --model_name_or_path MODEL --task TASK [--flag VALUE ...]",
    )
    return {**{command: _recipe_parser(command) for command in _OWN}, "evaluate": evaluate}


def _recipe_parser(command: str) -> SinKDParser:
    own, title = _OWN[command]
    parser = SinKDParser(
        (TaskArguments, SinKDConfig, ModelConfig, own),
        prog=f"sinkd {command}",
        usage=f"sinkd {command} [--config FILE.yaml] [--flag VALUE ...]",
        epilog="Every flag may stand in the --config file without its dashes; flags win.",
    )
    parser.add_argument("--help_all", action="help", help="show all flags, also the flags of TrainingArguments")
    shared = {field.name for field in dataclasses.fields(TrainingArguments)}
    groups = {
        "task and data": TaskArguments,
        "model (as in trl.ModelConfig)": ModelConfig,
        "distillation (SinKDConfig)": SinKDConfig,
        title: own,
        TRAINER_GROUP: TrainingArguments,
    }
    optional = parser._optionals._group_actions
    for name, dataclass_type in groups.items():
        group = parser.add_argument_group(name)
        names = {field.name for field in dataclasses.fields(dataclass_type)}
        its = names if dataclass_type is TrainingArguments else names - shared
        # argparse has no public way to move a flag, and HfArgumentParser puts all into one group.
        group._group_actions.extend(action for action in optional if action.dest in its)
        optional[:] = [action for action in optional if action.dest not in its]
        for action in group._group_actions:
            action.help = _HELP.get(action.dest, action.help)
    return parser
