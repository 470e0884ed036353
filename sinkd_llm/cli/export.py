"""`sinkd export`: a student in another program's format, compared with the student before it counts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sinkd_llm.cli.command_parser import CommandParser

if TYPE_CHECKING:
    from rich.table import Table

    from sinkd_llm.runs.export import ExportResult

FORMATS = {
    "merged": "a plain model folder for Transformers, with adapters folded in",
    "adapter": "the LoRA adapter alone, for PEFT; its base is named",
    "onnx": "ONNX Runtime in fp32, for encoders",
    "onnx-int8": "ONNX Runtime in eight bits, for encoders",
    "gguf": "llama.cpp, for decoders (Llama, Qwen2, Qwen3)",
}
NUMBERS = ("f32", "f16", "q8_0")


def main(argv: Sequence[str]) -> int:
    """Parse `argv`, export, and print what changed."""
    from sinkd_llm.cli.student_flags import model_settings

    args = _parser().parse_args(list(argv))
    from sinkd_llm.runs.export import run_export
    from sinkd_llm.terminal import show

    result = run_export(
        args.student,
        args.output,
        args.format,
        task=args.task,
        data_dir=args.data_dir,
        rows=args.rows,
        check=args.check,
        threads=args.threads,
        numbers=args.gguf_type,
        allow_differences=args.allow_differences,
        **model_settings(args),
    )
    show(table(result))
    show(said(result))
    return 0


def _parser() -> CommandParser:
    from sinkd_llm.cli.student_flags import add_model_flags, add_student

    parser = CommandParser(
        prog="sinkd export",
        usage="sinkd export STUDENT --format FORMAT --output DIR [--flag VALUE ...]",
        description="A student in another program's format. It counts when it answers rows as the student does.",
    )
    add_student(parser)
    described = "; ".join(f"{name}: {text}" for name, text in FORMATS.items())
    parser.add_argument("--format", required=True, choices=list(FORMATS), help=described)
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or one of an earlier export")
    parser.add_argument("--check", type=int, default=256, metavar="N", help="compare on at most N rows (default: 256)")
    parser.add_argument(
        "--rows", metavar="FILE", help="compare on these rows, without labels (default: the task's evaluation rows)"
    )
    parser.add_argument("--data_dir", help="the folder of the task's data, for its evaluation rows")
    parser.add_argument("--threads", type=int, help="processor threads to measure both with (default: torch's)")
    parser.add_argument(
        "--gguf_type", choices=NUMBERS, default="f16", help="numbers in the matrices of a GGUF file (default: f16)"
    )
    parser.add_argument(
        "--allow_differences", action="store_true", help="keep an export that answers otherwise than the student"
    )
    add_model_flags(parser)
    return parser


def table(result: "ExportResult") -> "Table":
    """The student and its export side by side, in less than 80 columns."""
    from rich import box
    from rich.table import Table

    from sinkd_llm.units import NOT_KNOWN, format_bytes, format_milliseconds

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "on disk", "latency p50", "latency p95"):
        made.add_column(title, justify="left" if not title else "right")
    for name, profile in (("student", result.before), (result.format, result.after)):
        times = profile.latency_ms
        shown = (NOT_KNOWN, NOT_KNOWN) if times is None else tuple(map(format_milliseconds, times))
        made.add_row(name, format_bytes(profile.size_bytes), *shown)
    return made


def said(result: "ExportResult") -> str:
    """How the export was compared, and where it is."""
    found = result.comparison
    largest = "" if found.largest is None else f"; log-probabilities differ by up to {found.largest:.2g}"
    route = "The student's route is left out, whose guarantee is about the probabilities that it was chosen on."
    if result.route_command is not None:
        route += f" This chooses one for the export:\n    {result.route_command}"
    return (
        f"{found.differing} of {found.rows} rows get another answer ({found.share:.1%}){largest}.\n"
        f"{'' if result.without_route is None else route + chr(10)}The export is in {result.folder}"
    )
