"""The lines of a UTF-8 file, one at a time: what is no text is refused with what it is, or with its line."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

from sinkd_llm.errors import InputError

_UNPACK = "unpack it first, and name the file inside"
_CONVERT = (
    "write it as JSON lines, for example with pandas: pandas.{}(…).to_json('rows.jsonl', orient='records', lines=True)"
)
# What other files begin with, what they are, and what to do.
_OTHER_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack the archive, or save the spreadsheet as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet or document", "save it as CSV in UTF-8"),
    (b"PAR1", "a Parquet file", _CONVERT.format("read_parquet")),
    (b"ARROW1", "an Arrow file", _CONVERT.format("read_feather")),
    (b"SQLite format 3", "a database", _CONVERT.format("read_sql")),
    (b"%PDF", "a PDF", "give a table of rows"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself with 'git lfs pull'"),
    (b"<!DOCTYPE html", "a web page", "download the file itself (the page's raw or download link)"),
    (b"<!doctype html", "a web page", "download the file itself (the page's raw or download link)"),
    (b"<html", "a web page", "download the file itself (the page's raw or download link)"),
    # Before UTF-16, whose mark begins the same way.
    *((mark, "UTF-32", "convert it with iconv -f utf-32 -t utf-8") for mark in (b"\xff\xfe\0\0", b"\0\0\xfe\xff")),
    *((mark, "UTF-16", "convert it with iconv -f utf-16 -t utf-8") for mark in (b"\xff\xfe", b"\xfe\xff")),
)
_LONGEST_MARK = max(len(beginning) for beginning, _, _ in _OTHER_FORMATS)


# Bytes that no text has in UTF-8 or in an older encoding of one byte a character; ESC is a part of some encodings.
_CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")


class NotUtf8Error(InputError):
    """A line is not UTF-8."""


def text_lines(path: Path) -> Iterator[str]:
    """
    The lines of a file, each with its `"\\n"`, without a byte order mark; no more than one is held.

    Only `"\\n"` ends a line, for a sentence may contain `"\\r"` or Unicode's other line ends; in a file without any,
    `"\\r"` does, as on an old Mac.

    Args:
        path (`Path`): the file.

    Raises:
        InputError: if the file is missing, cannot be read, or is no text.
        NotUtf8Error: for a line that is not UTF-8.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}; check the path.")
    try:
        with path.open("rb") as stream:
            _refuse_other_formats(stream.peek(_LONGEST_MARK), path)
            for number, line in enumerate(stream, 1):
                text = _decoded(line, number, path)
                if number == 1 and not line.endswith(b"\n"):  # the only one
                    yield from io.StringIO(text.replace("\r", "\n"), newline="\n")
                else:
                    yield text
    except OSError as error:
        raise InputError(
            f"The file {path} cannot be read ({error.strerror or error}); check its permissions."
        ) from error


def _refuse_other_formats(content: bytes, path: Path) -> None:
    for beginning, kind, advice in _OTHER_FORMATS:
        if content.startswith(beginning):
            raise InputError(f"The file {path} is {kind}, not text; {advice}.")


def _decoded(line: bytes, number: int, path: Path) -> str:
    if b"\0" in line:
        raise InputError(
            f"Line {number} of {path} holds NUL bytes, so the file is no text, is UTF-16 without its mark, or was "
            "damaged; write it again as UTF-8."
        )
    try:
        # Spreadsheet programs put a byte order mark in front.
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        if controls := len(_CONTROLS.findall(line)):
            raise InputError(
                f"Line {number} of {path} is no text in any encoding: it holds {controls:,} control bytes beside "
                f"others that are not UTF-8 (byte {error.object[error.start]:#04x}). Give a table that is text (CSV, "
                "JSON lines), or a Parquet file that is named so."
            ) from error
        raise NotUtf8Error(
            f"Line {number} of {path} is not UTF-8 (byte {error.object[error.start]:#04x}); convert the file, "
            "for example with iconv -f latin1 -t utf-8."
        ) from error
