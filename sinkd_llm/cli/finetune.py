"""`sinkd finetune`: train a model on a task with cross-entropy."""

from collections.abc import Sequence

from sinkd_llm.cli.distill import train


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, fine-tune, print the table."""
    return train("finetune", argv)
