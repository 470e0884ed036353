"""`sinkd distill`: train a student to follow a teacher; and what `sinkd finetune` has in common with it."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, distil, print the table."""
    return train("distill", argv)


def train(command: str, argv: Sequence[str]) -> int:
    """
    Run a command that trains: in processes of a launch, as a rehearsal, or here.

    Args:
        command (`str`): `"distill"` or `"finetune"`.
        argv (`Sequence[str]`): its flags.
    """
    from sinkd_llm.cli.flag_table import check_names
    from sinkd_llm.cli.launching import launch

    check_names(command, argv)
    if (code := launch(command, argv)) is not None:
        return code
    from sinkd_llm.cli.parsing import parse_recipe
    from sinkd_llm.cli.printing import show_rehearsal, show_run
    from sinkd_llm.runs import run_distill, run_finetune
    from sinkd_llm.runs.rehearsal import rehearse

    task_args, training_args, model_args, launching = parse_recipe(command, argv)
    if launching.dry_run:
        processes = launching.num_processes or 1
        show_rehearsal(rehearse(command, task_args, training_args, model_args, processes=processes, argv=argv))
        return 0
    run = {"distill": run_distill, "finetune": run_finetune}[command]
    show_run(run(task_args, training_args, model_args, argv=argv))
    return 0
