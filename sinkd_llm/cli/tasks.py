"""`sinkd tasks`: list the tasks, or show what a task's rows look like once rendered."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from sinkd_llm.errors import InputError

if TYPE_CHECKING:
    from sinkd_llm.tasks import Task


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}. '{self.prog} --help' shows how.")


def main(argv: Sequence[str]) -> int:
    """Run `sinkd tasks list` (the default) or `sinkd tasks show NAME`."""
    parser = _Parser(prog="sinkd tasks", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="list|show")
    commands.add_parser("list", help="the built-in tasks, their prompts and metrics")
    show_parser = commands.add_parser("show", help="rendered examples of a task")
    show_parser.add_argument("name", help="a task's name, a prompt's name, or a YAML file")
    show_parser.add_argument("--data_dir", help="folder in the original GLUE/SuperGLUE formats")
    show_parser.add_argument("--split", default="train", choices=["train", "validation", "test"], help="which rows")
    show_parser.add_argument("--limit", type=int, default=3, help="how many rows (default: 3)")
    args = parser.parse_args(list(argv))
    if args.command == "show":
        return _show(args.name, args.data_dir, args.split, args.limit)
    return _list()


def _list() -> int:
    from rich import box
    from rich.table import Table

    from sinkd_llm.tasks import list_tasks
    from sinkd_llm.terminal import show

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("task", "prompts", "answers", "metrics", "what is asked"):
        table.add_column(name, no_wrap=name != "what is asked")
    for task in list_tasks():
        answers = " / ".join(c.strip() for c in task.choices) if task.choices else "vary"
        row = ("\n".join(task.prompts), answers, ", ".join(task.metrics), task.description)
        table.add_row(task.name, *row)
    show(table)
    show("Every prompt is a name for --task. 'sinkd tasks show NAME' renders a few rows.")
    return 0


def _show(name: str, data_dir: str | None, split: str, limit: int) -> int:
    from sinkd_llm.tasks import load_task
    from sinkd_llm.terminal import show

    if limit < 1:
        raise InputError(f"--limit is {limit}; give 1 or more.")
    task: Task = load_task(name)
    rows = task.load(split, data_dir, limit=limit)
    show(f"{task.name}: metrics {', '.join(task.metric_names)}")
    for row in rows:
        show(f"\n── {row['id']}")
        show(row["prompt"])
        # Quoted, because the space in front of an answer is part of it.
        for index, choice in enumerate(row["choices"]):
            show(f"  {'→' if index == row['label'] else ' '} {choice!r}")
        if row["label"] == -1:
            show("    (no label)")
    return 0
