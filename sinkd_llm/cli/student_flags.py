"""The flags that the commands of a student in use share: predict, calibrate, route, export, serve."""

from argparse import Namespace
from typing import Any

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.errors import InputError


def add_student(parser: CommandParser) -> None:
    """The student, by its place on the command line."""
    text = "the folder of a run or of an export, or with --task any model"
    parser.add_argument("student", metavar="STUDENT", help=text)


def add_batch_size(parser: CommandParser) -> None:
    """`--batch_size`."""
    parser.add_argument("--batch_size", type=int, default=32, help="rows that are read together (default: 32)")


def add_model_flags(parser: CommandParser) -> None:
    """The flags of a command that loads a student."""
    parser.add_argument("--task", help="a task's name or YAML file, for a model that no run with a task wrote")
    parser.add_argument(
        "--model_kind", metavar="KIND", help="load the model as one of this kind (default: what it is)"
    )
    parser.add_argument("--dtype", help="load the weights in this type (default: float32)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run model code that comes with the weights")


def model_settings(args: Namespace) -> dict[str, Any]:
    """What the flags of [`add_model_flags`] ask of [`load_student`]."""
    given = {"kind": args.model_kind, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code or None}
    return {name: value for name, value in given.items() if value is not None}


def add_unseen_flags(parser: CommandParser) -> None:
    """The flags of a command that reads labelled rows which a student has not seen."""
    parser.add_argument("--data_dir", metavar="DIR", help="the folder of the task's data, instead of the hub")
    parser.add_argument(
        "--rows",
        metavar="FILE",
        help="labelled rows that the student has not seen, in a file as the task's own; with --task for a task of "
        "your own (default: the training rows that heldout_share left out)",
    )
    add_batch_size(parser)


def check_batch_size(args: Namespace) -> None:
    """Refuses a `--batch_size` below 1."""
    if args.batch_size < 1:
        raise InputError(f"--batch_size is {args.batch_size}; give 1 or more.")
