"""`sinkd finetune`: train a model on a task with cross-entropy."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, fine-tune, print the table."""
    from sinkd_llm.cli.flag_table import check_names
    from sinkd_llm.cli.launching import launch

    check_names("finetune", argv)
    if (code := launch("finetune", argv)) is not None:
        return code
    from sinkd_llm.cli.parsing import parse_recipe
    from sinkd_llm.cli.printing import show_rehearsal, show_run
    from sinkd_llm.runs import run_finetune
    from sinkd_llm.runs.rehearsal import rehearse

    task_args, training_args, model_args, launching = parse_recipe("finetune", argv)
    if launching.dry_run:
        processes = launching.num_processes or 1
        show_rehearsal(rehearse("finetune", task_args, training_args, model_args, processes=processes, argv=argv))
    else:
        show_run(run_finetune(task_args, training_args, model_args, argv=argv))
    return 0
