"""New rows to answer: of a file, or of standard input, read as a stream."""

import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from sinkd_llm.errors import InputError
from sinkd_llm.row_streams import RowStream
from sinkd_llm.tasks.task import Task
from sinkd_llm.tasks.unlabelled import SUFFIXES, unlabelled_rows
from sinkd_llm.terminal import say
from sinkd_llm.text_lines import text_lines
from sinkd_llm.values import listed, shown

STDIN = "-"
FORMATS = tuple(suffix[1:] for suffix in SUFFIXES)
_WORDS = {"jsonl": "JSON lines", "json": "a JSON array", "csv": "a table", "txt": "one text a line"}
# What may part the names of a header line, and quotes around them.
_BETWEEN_NAMES = re.compile(r"""["']?[,;|\t]["']?""")


@contextmanager
def new_rows(source: str, task: Task, columns: Collection[str], form: str | None = None) -> Iterator[RowStream]:
    """
    The rows of a file, with the columns of the task's rows as far as they can be told. Every pass reads the file.

    What is piped in is kept in a temporary file while the rows are used: a table is read twice, for it is known only
    at its end whether its quotes are quotes.

    Args:
        source (`str`): the path of the file, or `"-"` for standard input.
        task ([`Task`]): what is asked of the rows.
        columns (collection of `str`): what it reads of a row.
        form (`str`, *optional*): what the file holds, one of `FORMATS`. Default: the end of its name says it, or its
            first line.

    Raises:
        InputError: if there is no such file, and for one that cannot be read; see [`~sinkd_llm.row_streams`].
    """
    if form is not None and form not in FORMATS:
        raise InputError(f"input_format is {shown(form)}; it takes one of {', '.join(FORMATS)}.")
    if source == STDIN:
        if sys.stdin is None or sys.stdin.closed:
            raise InputError("Standard input is closed; give a file, or pipe the rows in.")
        with _kept(sys.stdin.buffer, "standard input") as file:
            yield _rows_of(file, task, columns, form)
        return
    file = Path(os.path.expanduser(source))
    if file.is_dir():
        raise InputError(f"{source} is a folder; give a file of rows in it.")
    if file.exists() and not file.is_file():  # a pipe, as a shell makes of <(command)
        with file.open("rb") as stream, _kept(stream, file.name) as copy:
            yield _rows_of(copy, task, columns, form)
        return
    if not file.is_file():
        raise InputError(f"There is no file {source} of rows to answer; check the path, or give - to pipe rows in.")
    suffix = file.suffix.lower()
    yield _rows_of(file, task, columns, form or (suffix[1:] if suffix in SUFFIXES else None))


@contextmanager
def _kept(stream: BinaryIO, name: str) -> Iterator[Path]:
    with TemporaryDirectory(prefix="sinkd-rows-") as folder:
        file = Path(folder) / name
        with file.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
        try:
            yield file
        except InputError as error:
            # A message names the file that was read, which is gone when it is read.
            raise InputError(str(error).replace(str(file), name)) from error


def _rows_of(file: Path, task: Task, columns: Collection[str], form: str | None) -> RowStream:
    if form is None:
        form = _form_of(file, task.name, columns)
        say(f"{file.name} is read as {_WORDS[form]}")
    return unlabelled_rows(file, task.config, task.path, {*columns}, f".{form}")


def _form_of(file: Path, task: str, columns: Collection[str]) -> str:
    """What a file holds whose name does not say it, by its first line with anything on it."""
    first = next((line.strip() for line in text_lines(file) if line.strip()), None)
    if first is None:
        raise InputError(f"The file {file.name} is empty; give at least one row.")
    if first.startswith("{") and _is_json(first):
        return "jsonl"
    if first.startswith("[") and first[1:].lstrip()[:1] in ("", "{"):
        return "json"
    if {name.strip("\"' ") for name in _BETWEEN_NAMES.split(first)} & {*columns}:
        return "csv"
    if len(columns) == 1:
        return "txt"
    raise InputError(
        f"It cannot be told what the file {file.name} holds, which begins with {shown(first)}: the task {task!r} "
        f"reads the columns {listed(sorted(columns))} of a row. Give JSON lines or a table with these names, or say "
        f"what it is with --input_format ({', '.join(FORMATS)})."
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
