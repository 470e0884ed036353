"""How flags are shown: their lines, their groups, and which of them only `--help_all` shows."""

import argparse
import shutil

# The group of the flags that come from Transformers.
TRAINER_GROUP = "training (as in transformers.TrainingArguments)"
# What a first run needs of the 130 flags of TrainingArguments; `--help_all` shows the others.
COMMON_TRAINER_FLAGS = {
    *("output_dir", "resume_from_checkpoint", "seed", "report_to"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("train_sampling_strategy", "weight_decay", "bf16", "logging_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "save_total_limit"),
}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """A flag's name as recipes have it, its default, and choices that are too many for a line in its text."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # Every flag also exists with hyphens; saying so 130 times helps nobody.
        if action.option_strings and action.nargs != 0:
            value = "VALUE" if self._has_long_choices(action) else self._format_args(action, "VALUE")
            return f"{action.option_strings[0]} {value}"
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help if action.default in (None, argparse.SUPPRESS) else super()._get_help_string(action)
        return f"{text} One of: %(choices)s." if self._has_long_choices(action) else text

    def _has_long_choices(self, action: argparse.Action) -> bool:
        """Whether the choices of a flag are wider than the terminal; then they stand in its text, which is folded."""
        if not action.option_strings or action.choices is None:
            return False
        line = f"{action.option_strings[0]} {self._format_args(action, 'VALUE')}"
        return len(line) + 4 > shutil.get_terminal_size().columns  # argparse's own margins


def hide_rare_flags(parser: argparse.ArgumentParser) -> None:
    """Leave out of the help of `parser` those flags of Transformers that few runs need."""
    for group in parser._action_groups:
        for action in group._group_actions:
            if group.title == TRAINER_GROUP and action.dest not in COMMON_TRAINER_FLAGS:
                action.help = argparse.SUPPRESS
