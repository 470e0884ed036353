"""`sinkd tasks`: list the tasks, show a task's rows as they are rendered, or check a task of your own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.errors import InputError
from sinkd_llm.training.settings.rules import RANGES

if TYPE_CHECKING:
    from sinkd_llm.runs.task_check import TaskCheck
    from sinkd_llm.tasks import Task, TaskInfo

DEFAULT_TOKENIZER = "smollm2-135m"
# A check shows the most common answers; beyond these a line says nothing.
MOST_LABELS = 6


def main(argv: Sequence[str]) -> int:
    """Run `sinkd tasks list` (the default), `sinkd tasks show NAME` or `sinkd tasks check NAME`."""
    parser = CommandParser(prog="sinkd tasks", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="list|show|check")
    commands.add_parser("list", help="the built-in tasks, their prompts and metrics")
    show_parser = commands.add_parser("show", help="rendered examples of a task")
    show_parser.add_argument("name", help="a task's name, a prompt's name, or a YAML file")
    show_parser.add_argument("--data_dir", help="folder in the original GLUE/SuperGLUE formats")
    show_parser.add_argument("--split", default="train", choices=["train", "validation", "test"], help="which rows")
    show_parser.add_argument("--limit", type=int, default=3, help="how many rows (default: 3)")
    check_parser = commands.add_parser("check", help="is a task fit to train on: labels, answers, lengths, an example")
    check_parser.add_argument("name", help="a YAML file, or the name of a task or prompt")
    check_parser.add_argument(
        "--data_dir", help="folder in the original GLUE/SuperGLUE formats, or with the task's files"
    )
    check_parser.add_argument("--split", choices=["train", "validation", "test"], help="only this one")
    check_parser.add_argument(
        "--model_name_or_path",
        help=f"the model to train, whose kind and tokenizer read rows (default: {DEFAULT_TOKENIZER}, if installed)",
    )
    check_parser.add_argument(
        "--model_kind",
        metavar="KIND",  # checked where a model is loaded: the names are imported with torch
        help="the kind of model to train it as, as in 'sinkd finetune'",
    )
    check_parser.add_argument(
        "--allow_unlabelled",
        nargs="?",
        choices=["true", "false"],
        const="true",
        default="false",
        help="training rows may have no label: their teacher answers them, as in 'sinkd distill'",
    )
    args = parser.parse_args(list(argv))
    if args.command == "show":
        return _show(args.name, args.data_dir, args.split, args.limit)
    if args.command == "check":
        unlabelled = args.allow_unlabelled == "true"
        return _check(args.name, args.data_dir, args.split, args.model_name_or_path, args.model_kind, unlabelled)
    return _list()


def _list() -> int:
    from rich import box
    from rich.table import Table

    from sinkd_llm.tasks import list_tasks
    from sinkd_llm.terminal import show

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("task and its prompts", no_wrap=True)
    table.add_column("what is asked; answers; metrics")
    for task in list_tasks():
        table.add_row("\n".join(task.prompts), f"{task.description}\n{_answers(task)}; {', '.join(task.metrics)}")
    show(table)
    show("Every prompt is a name for --task. 'sinkd tasks show NAME' renders a few rows.")
    return 0


def _answers(task: "TaskInfo") -> str:
    if task.choices is None:
        return "answers of each row's own" if task.output_type == "multiple_choice" else "free text"
    words = [choice.strip() for choice in task.choices]
    return " / ".join(words if len(words) <= 4 else (words[0], words[1], "…", words[-1]))


def _show(name: str, data_dir: str | None, split: str, limit: int) -> int:
    from sinkd_llm.cli.printing import show_row
    from sinkd_llm.tasks import load_task
    from sinkd_llm.terminal import show

    if (problem := RANGES["limit"].refusal(limit)) is not None:
        raise InputError(f"--limit {problem}")
    task: Task = load_task(name)
    rows = task.load(split, data_dir, limit=limit)
    show(f"{task.name}: metrics {', '.join(task.metric_names)}")
    for row in rows:
        show_row(row)
    return 0


def _check(
    name: str, data_dir: str | None, split: str | None, model: str | None, kind: str | None, unlabelled: bool
) -> int:
    from sinkd_llm.cli.printing import show_row
    from sinkd_llm.models.blueprint import blueprint
    from sinkd_llm.runs.task_check import check_task
    from sinkd_llm.tasks import load_task
    from sinkd_llm.terminal import say, show

    task: Task = load_task(name)
    model, tokenizer = _tokenizer(model)
    say(f"Rendering the rows of {task.name} …")
    check = check_task(
        task,
        tokenizer,
        model_of=lambda classes: blueprint(str(model), kind=kind, labels=classes),
        data_dir=data_dir,
        splits=[split] if split else None,
        allow_unlabelled=unlabelled,
    )
    show(f"{task.name}: metrics {', '.join(task.metric_names)}" + (f", tokens of {model}" if model else ""))
    _show_splits(check)
    for found in check.splits[:1]:
        show_row(found.example, classified=check.classifies)
    for warning in check.warnings:
        show(f"\nwarning: {warning}")
    if check.problems:
        raise InputError(f"The task {task.name!r} is not fit to train on. {' '.join(check.problems)}")
    show(f"\nThe task {task.name} can be trained on.")
    return 0


def _tokenizer(model: str | None) -> tuple[str | None, Any]:
    from sinkd_llm.models import BUNDLED, load_tokenizer
    from sinkd_llm.terminal import say

    if model is None:
        if BUNDLED[DEFAULT_TOKENIZER].locate() is None:
            say(f"No tokens are counted: give --model_name_or_path, or {BUNDLED[DEFAULT_TOKENIZER].install}")
            return None, None
        model = DEFAULT_TOKENIZER
    return model, load_tokenizer(model)


def _show_splits(check: "TaskCheck") -> None:
    from rich import box
    from rich.table import Table

    from sinkd_llm.cli.printing import show_list
    from sinkd_llm.terminal import show

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    tokens = ("text tokens",) if check.classifies else ("prompt tokens", "answer tokens")
    for column in ("split", "rows", "choices", *tokens):
        table.add_column(column, no_wrap=column in ("split", "rows"))
    labels = []
    for found in check.splits:
        common = sorted(found.labels, key=lambda name: -found.labels[name])[:MOST_LABELS]
        said = [f"{name} {found.labels[name]} ({found.labels[name] / found.num_rows:.0%})" for name in common]
        if len(found.labels) > MOST_LABELS:
            said.append(f"and {len(found.labels) - MOST_LABELS} rarer ones")
        if said:
            labels.append((found.split, said))
        counts = (found.num_choices, found.prompt_tokens, found.answer_tokens)[: 1 + len(tokens)]
        ranges = [str(value or "–") for value in counts]
        table.add_row(found.split, f"{found.num_rows:,}", *ranges)
    show(table)
    for split, said in labels:  # below it: a column would be too narrow for words of a task's own
        show_list(f"labels of {split}:", said)
    show("Counts are the same for every row, or smallest / median / largest.")
