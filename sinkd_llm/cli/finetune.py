"""`sinkd finetune`: train a model on a task with cross-entropy."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, fine-tune, print the table."""
    from sinkd_llm.cli.flag_table import check_names
    from sinkd_llm.cli.launching import launch

    check_names("finetune", argv)
    if (code := launch("finetune", argv)) is not None:
        return code
    from sinkd_llm.cli.parsing import parse_training
    from sinkd_llm.cli.printing import show_run
    from sinkd_llm.runs import run_finetune

    show_run(run_finetune(*parse_training("finetune", argv), argv=argv))
    return 0
