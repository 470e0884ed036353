"""`sinkd calibrate`: probabilities of a student that are as frequent as they say."""

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

if TYPE_CHECKING:
    from sinkd_llm.runs.calibrating import CalibrateResult


def main(argv: Sequence[str]) -> int:
    """Fit, show what it changed, and say where it is kept."""
    args = _parser().parse_args(list(argv))
    check_batch_size(args)
    from sinkd_llm.runs.calibrating import run_calibrate
    from sinkd_llm.terminal import say

    result = run_calibrate(
        args.student,
        args.task,
        data_dir=args.data_dir,
        rows=args.rows,
        batch_size=args.batch_size,
        **model_settings(args),
    )
    if result.problem is not None:
        say(f"Note: {result.problem} Nothing was stored.{_earlier(result)}")
        return 0
    _show(result)
    if not result.kept:
        say(
            "Note: on rows that it was not fitted on, the calibration does not lower the log-loss: the student's own "
            f"probabilities are no worse, and nothing was stored.{_earlier(result)}"
        )
        return 0
    say(f"The calibration is stored in {args.student}/sinkd_answers.json, and is applied from now on.")
    if result.drops_route:
        say("Note: the route was chosen on other probabilities and is dropped; run 'sinkd route' again.")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="sinkd calibrate",
        usage="sinkd calibrate STUDENT [--data_dir DIR] [--rows FILE] [--flag VALUE ...]",
        description="Fit how sure a student should be, on labelled rows that it has not seen.",
    )
    add_student(parser)
    add_unseen_flags(parser)
    add_model_flags(parser)
    return parser


def _earlier(result: "CalibrateResult") -> str:
    return " The calibration that the student has already stays as it is." if result.earlier else ""


def _show(result: "CalibrateResult") -> None:
    from rich import box
    from rich.table import Table

    from sinkd_llm.terminal import show

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("log-loss", "Brier score", "ECE"):
        table.add_column(name, justify="right")
    for name, scores in (("before", result.before), ("after", result.after)):
        table.add_row(name, *(f"{scores[key]:.4f}" for key in ("log_loss", "brier", "ece")))
    show(table)
    found = result.calibration
    if found.vector is None:
        show(f"temperature {found.temperature:.4g}")
    else:
        scales, biases = found.vector.scale, found.vector.bias
        show(
            f"a scale from {min(scales):.3g} to {max(scales):.3g} and a shift from {min(biases):+.3g} to "
            f"{max(biases):+.3g} for each of {len(scales)} classes, which is better than a temperature here"
        )
    show(
        f"{result.rows:,} {result.source}; 'after' is on rows that it was not fitted on (cross-validation). 0 is best."
    )
