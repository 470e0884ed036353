"""`sinkd distill`: train a student to follow a teacher."""

from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, distil, print the table."""
    from sinkd_llm.cli.flag_table import check_names
    from sinkd_llm.cli.launching import launch

    check_names("distill", argv)
    if (code := launch("distill", argv)) is not None:
        return code
    from sinkd_llm.cli.parsing import parse_training
    from sinkd_llm.cli.printing import show_run
    from sinkd_llm.runs import run_distill

    show_run(run_distill(*parse_training("distill", argv), argv=argv))
    return 0
