"""`sinkd route`: which rows a student answers itself, and which it passes on to a larger model."""

from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.cli.student_flags import (
    add_model_flags,
    add_student,
    add_unseen_flags,
    check_batch_size,
    model_settings,
)
from sinkd_llm.errors import InputError
from sinkd_llm.units import format_duration

if TYPE_CHECKING:
    from sinkd_llm.answering.routing import Answered
    from sinkd_llm.runs.routing import RouteResult


def main(argv: Sequence[str]) -> int:
    """Choose a threshold, and show what it is worth."""
    args = _parser().parse_args(list(argv))
    check_batch_size(args)
    for name in ("teacher_ms", "teacher_price"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"--{name} is {value:g}; give a number, 0 or more.")
    from sinkd_llm.runs.routing import run_route

    result = run_route(
        args.student,
        args.task,
        of=args.of,
        target=args.target,
        level=args.level,
        teacher_file=args.teacher_file,
        teacher_model=args.teacher_model_name_or_path,
        data_dir=args.data_dir,
        rows=args.rows,
        batch_size=args.batch_size,
        **model_settings(args),
    )
    _show(result, args)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="sinkd route",
        usage="sinkd route STUDENT [--target 0.98] [--flag VALUE ...]",
        description="Choose from which confidence on a student answers, so that so many of its answers are right.",
    )
    add_student(parser)
    parser.add_argument("--target", type=float, default=0.98, help="share of answers to be right (default: 0.98)")
    parser.add_argument("--level", type=float, default=0.95, help="how sure that shall be (default: 0.95)")
    parser.add_argument(
        "--of",
        choices=("agreement", "accuracy"),
        help="what right is: as the teacher, or as the labels (default: agreement, where a teacher is known)",
    )
    parser.add_argument("--teacher_file", metavar="FILE", help="the teacher's answers (default: of the student's run)")
    parser.add_argument(
        "--teacher_model_name_or_path", metavar="MODEL", help="the teacher itself (default: of the student's run)"
    )
    parser.add_argument("--teacher_ms", type=float, metavar="MS", help="milliseconds that the teacher takes for a row")
    parser.add_argument("--teacher_price", type=float, metavar="P", help="what a thousand rows of the teacher cost")
    add_unseen_flags(parser)
    add_model_flags(parser)
    return parser


def _show(result: "RouteResult", args: Namespace) -> None:
    from rich import box
    from rich.table import Table

    from sinkd_llm.terminal import show

    route = result.route
    right = "as the teacher" if route.of == "agreement" else "right"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("rows")
    for name in ("answered", right, "at least"):
        table.add_column(name, justify="right")
    name = "the estimate" if result.crossed else "the guarantee"
    table.add_row(name, f"{result.chosen.rows:,} {result.source}", *_cells(result.chosen))
    if result.checked is not None:
        table.add_row("its check", f"{result.checked.rows:,} rows for evaluation", *_cells(result.checked))
    show(table)
    show(
        f"From a confidence of {route.threshold:.4f} on the student answers: at least {route.target:.1%} of its "
        f"answers are {right}, at a level of {'about ' if result.crossed else ''}{args.level:.0%}."
    )
    if result.crossed:
        # Of very many rows not all are known again.
        every = result.crossed == result.chosen.rows
        fitted = "these" if every else f"at least {result.crossed:,} of these {result.chosen.rows:,}"
        show(
            f"The student's scales and shifts of classes were fitted on {fitted} rows: each of these was answered by "
            "those that the other four fifths give, so that the level is about right, and not guaranteed. For a "
            "guarantee, choose the route on labelled rows of their own (--rows)."
        )
    share = None if result.checked is None else result.checked.share_right
    if share is not None and share < route.target:
        show(
            f"The check is below the target: {share:.2%} of the answers to the rows for evaluation are {right}. The "
            f"threshold is for rows like the {result.source}; if the rows to be answered are others, choose the "
            "threshold on labelled rows like these (--rows)."
        )
    if result.checked is None:
        show("It is not known what is right for the rows for evaluation, so that nothing checks the threshold.")
    for line in _costs(result, args):
        show(line)
    if not result.calibrated:
        show("The student is not calibrated; 'sinkd calibrate' makes its confidence mean what it says.")
    show(f"The threshold is stored in {args.student}/sinkd_answers.json; 'sinkd predict' gives each row's decision.")


def _cells(answered: "Answered") -> tuple[str, str, str]:
    share = answered.share_right
    return (
        f"{answered.coverage:.1%}",
        "–" if share is None else f"{share:.2%} ({answered.right:,} of {answered.answered:,})",
        f"{answered.lower_bound:.2%}",
    )


def _costs(result: "RouteResult", args: Namespace) -> list[str]:
    """What a thousand rows cost, and what is passed on of them."""
    answered = result.checked or result.chosen
    passed = 1 - answered.coverage
    own = f"The student takes {result.student_ms:.3g} ms for a row alone."
    like = f"the {answered.rows:,} {result.source if result.checked is None else 'rows for evaluation'}"
    lines = [f"Of 1,000 rows like {like}, {1000 * passed:,.0f} are passed on. {own}"]
    if args.teacher_ms is not None:
        together = result.student_ms + passed * args.teacher_ms
        alone = format_duration(args.teacher_ms)
        lines.append(f"1,000 rows take {format_duration(together)} in place of {alone} of the teacher alone.")
    if args.teacher_price is not None:
        lines.append(
            f"1,000 rows cost {passed * args.teacher_price:,.4g} of the teacher in place of {args.teacher_price:,.4g}."
        )
    return lines
