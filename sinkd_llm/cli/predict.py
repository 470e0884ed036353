"""`sinkd predict`: a student answers new rows, of a file or piped in, as they come."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.cli.student_flags import add_batch_size, add_model_flags, add_student, check_batch_size, model_settings
from sinkd_llm.errors import InputError

if TYPE_CHECKING:
    from sinkd_llm.answering.student import Answer, Student

STDOUT = "-"


def main(argv: Sequence[str]) -> int:
    """Load the student, look through the rows, and write an answer for each."""
    from sinkd_llm.interrupts import termination_raises

    with termination_raises():
        return _answer(_parser().parse_args(list(argv)))


def _answer(args: Namespace) -> int:
    from sinkd_llm.answering.answer_rows import answer_lines
    from sinkd_llm.answering.load import load_student
    from sinkd_llm.answering.new_rows import new_rows
    from sinkd_llm.terminal import say

    check_batch_size(args)
    output = None if args.output == STDOUT else Path(os.path.expanduser(args.output))
    if output is not None:
        _check_output(output, args)
    say(f"Loading {args.student} …")
    student = load_student(args.student, args.task, **model_settings(args))
    with new_rows(args.rows, student.task, student.columns, args.input_format) as rows:
        # What is wrong with a row is said before the first answer is written.
        count = sum(1 for _ in student.examples(rows))
        with _progress(count, output) as seen:
            plain = output is None and sys.stdout is not None and sys.stdout.isatty()
            answers = seen(student.answers(rows, args.batch_size))
            lines = answer_lines(student, answers, args.format, plain=plain)
            if output is None:
                _print(lines)
            else:
                _write(lines, output, args)
    _say_result(student, count, output)
    return 0


def _parser() -> CommandParser:
    from sinkd_llm.answering.answer_rows import FORMATS
    from sinkd_llm.answering.new_rows import FORMATS as INPUT_FORMATS

    parser = CommandParser(
        prog="sinkd predict",
        usage="sinkd predict STUDENT ROWS [--output FILE] [--flag VALUE ...]",
        description="A student answers new rows: one line for each, with the probabilities of all choices.",
    )
    add_student(parser)
    parser.add_argument("rows", metavar="ROWS", help="a .csv, .tsv, .jsonl, .json, .parquet or .txt file; - for stdin")
    parser.add_argument("--output", default=STDOUT, metavar="FILE", help="write here (default: standard output)")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that --output names")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the answers (default: jsonl)")
    parser.add_argument(
        "--input_format", choices=INPUT_FORMATS, help="what ROWS holds (default: by its name, or its first line)"
    )
    add_batch_size(parser)
    add_model_flags(parser)
    return parser


def _check_output(output: Path, args: Namespace) -> None:
    """Fail before the rows are answered, not after; nothing is written."""
    flag = f"--output {output}"
    if output.is_dir():
        raise InputError(f"{flag} is a folder; give a file name, such as {output}/answers.{args.format}.")
    rows, student = Path(os.path.expanduser(args.rows)), Path(os.path.expanduser(args.student))
    if output.exists():
        if rows.exists() and os.path.samefile(output, rows):
            raise InputError(f"{flag} is the file of the rows to answer, which would be lost; give another.")
        if output.is_file() and output.stat().st_size and not args.overwrite:
            raise InputError(f"{flag} is there already; give another file, or --overwrite to replace it.")
    above = [place for place in output.absolute().parents if place.exists()]
    if student.is_dir() and any(os.path.samefile(place, student) for place in above):
        raise InputError(f"{flag} lies in the folder of the student; give a file elsewhere.")
    if not above[0].is_dir():
        raise InputError(f"{flag} lies below {above[0]}, which is a file; give another place.")


@contextmanager
def _progress(count: int, output: Path | None) -> Iterator[Callable[[Iterable["Answer"]], Iterator["Answer"]]]:
    """What counts answers as they pass; without a bar where answers are written to the same terminal."""
    from sinkd_llm.terminal import progress, say

    if output is None and sys.stdout is not None and sys.stdout.isatty():
        say(f"Answering {count:,} rows …")
        yield iter
        return
    with progress(f"Answering {count:,} rows") as on_progress:

        def seen(answers: Iterable["Answer"]) -> Iterator["Answer"]:
            for done, answer in enumerate(answers, 1):
                yield answer
                on_progress(done, count)

        yield seen


def _write(lines: Iterable[str], output: Path, args: Namespace) -> None:
    from sinkd_llm.files import whole_file

    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as stream:
        _check_output(output, args)  # another process may have written it since
        stream.writelines(line.encode("utf-8", "backslashreplace") for line in lines)


def _print(lines: Iterable[str]) -> None:
    from sinkd_llm.terminal import encodable, printable

    if sys.stdout is None:
        raise InputError("Standard output is closed; give --output.")
    on_terminal = sys.stdout.isatty()
    for line in lines:
        sys.stdout.write(encodable(printable(line) if on_terminal else line, sys.stdout))


def _say_result(student: "Student", count: int, output: Path | None) -> None:
    from sinkd_llm.terminal import say

    if cut := student.num_cut:
        say(f"Note: {cut:,} of {count:,} rows were longer than the student reads, and lost what it has no room for.")
    if output is not None:
        say(f"{count:,} answers are in {output}")
