"""`sinkd serve`: a student answers over HTTP."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sinkd_llm.cli.command_parser import CommandParser
from sinkd_llm.cli.student_flags import add_model_flags, add_student, model_settings
from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.serving.limits import ServeLimits
from sinkd_llm.training.settings.texts import plain_help, setting_texts
from sinkd_llm.units import parse_bytes

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def main(argv: Sequence[str]) -> int:
    """Take the address, load the student, and answer until a signal comes."""
    from sinkd_llm.interrupts import termination_raises

    with termination_raises():
        return _serve(_parser().parse_args(list(argv)))


def _serve(args: Namespace) -> int:
    limits = _limits(args)
    _check_packages()
    from sinkd_llm.answering.load import load_student
    from sinkd_llm.serving.app import ServeSettings, StudentServer
    from sinkd_llm.serving.running import bound, read_key, serve
    from sinkd_llm.terminal import say

    key = None if args.api_key_env is None else read_key(args.api_key_env)
    name = args.name or Path(args.student).expanduser().resolve().name
    with bound(args.host, args.port) as listening:
        say(f"Loading {args.student} …")
        student = load_student(args.student, args.task, **model_settings(args))
        serve(StudentServer(student, ServeSettings(name, limits, key)), listening)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="sinkd serve",
        usage="sinkd serve STUDENT [--port PORT] [--flag VALUE ...]",
        description="A student answers over HTTP: POST /v1/decisions, GET /health, GET /metrics.",
    )
    add_student(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="the port; 0: any that is free (default: 8000)")
    parser.add_argument("--name", help="the model's name in replies (default: the name of the folder)")
    parser.add_argument(
        "--api_key_env", metavar="VARIABLE", help="clients send the key in this environment variable as a bearer token"
    )
    limits = parser.add_argument_group("limits")
    texts = setting_texts(ServeLimits)
    for field in fields(ServeLimits):
        whole = isinstance(field.default, int)
        of_bytes = field.name == "max_body_bytes"
        limits.add_argument(
            f"--{field.name}",
            type=str if of_bytes else int if whole else float,
            default=field.default,
            metavar="SIZE" if of_bytes else "N",
            help=f"{plain_help(texts[field.name].text).rstrip('.')} (default: {field.default:,})",
        )
    add_model_flags(parser)
    return parser


def _limits(args: Namespace) -> ServeLimits:
    values: dict[str, Any] = {field.name: getattr(args, field.name) for field in fields(ServeLimits)}
    if isinstance(values["max_body_bytes"], str):
        values["max_body_bytes"] = parse_bytes(values["max_body_bytes"], "--max_body_bytes")
    try:
        return ServeLimits(**values)
    except SettingError as error:
        raise error.said_as(f"--{error.setting}") from error


def _check_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"sinkd serve needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed. "
            "Install it with: pip install 'sinkd-llm[serve]'"
        )
