"""What reaches the user's terminal."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sinkd_llm import terminal
from sinkd_llm.terminal import progress


def test_a_log_gets_a_line_of_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with progress("Caching 6400 examples") as seen:
        for done in range(0, 6401, 800):
            clock[0] += 11
            seen(done, 6400)
    assert capsys.readouterr().err.splitlines() == [
        "Caching 6400 examples …",
        "Caching 6400 examples: 1,600 done",
        "Caching 6400 examples: 4,000 done",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b2J\x7f\r", "\\x9b2J\\x7f\\x0d"),
        ("a\u202eb\u2066c\u2028", "a\\u202eb\\u2066c\\u2028"),
        ("\udcff", "\\udcff"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("café ✓ 日本", "café ✓ 日本"),
    ],
)
def test_what_acts_on_a_terminal_is_written_out(text: str, shown: str) -> None:
    assert terminal.printable(text) == shown


def test_say_and_show_write_no_control_characters(capsys: pytest.CaptureFixture) -> None:
    from rich.table import Table

    table = Table("name\x1b]0;x\x07", "rows")
    table.add_row("\x1b[2J[bold]:smile:\x9b", "1")
    terminal.say("\x1b[31ma")
    terminal.show("\x1b[31mb")
    terminal.show(table)
    captured = capsys.readouterr()
    assert captured.err == "\\x1b[31ma\n"
    assert captured.out.startswith("\\x1b[31mb\n")
    assert not set("\x1b\x07\x9b") & set(captured.out)
    assert "\\x1b[2J[bold]:smile:\\x9b" in captured.out  # and text is neither style nor picture


def test_a_secret_is_not_said(capsys: pytest.CaptureFixture) -> None:
    terminal.say("the hub refused hf_" + "a1" * 17)
    assert capsys.readouterr().err == "the hub refused ***\n"


@pytest.mark.parametrize(("encoding", "text"), [("ascii", "50 % ... - \\xe9"), ("latin-1", "50 % ... - é")])
def test_a_terminal_without_unicode_gets_plainer_characters(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str
) -> None:
    from rich.table import Table

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.show("50 % … – é")
    table = Table("answers")
    table.add_row("✓ é …")
    terminal.show(table)
    written = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert written.startswith(text + "\n")
    assert "+ " in written.splitlines()[-2]


def test_a_table_wider_than_its_terminal_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "20")
    table = Table()
    table.add_column("name", no_wrap=True)
    table.add_column("number", no_wrap=True)
    table.add_row("a name of some length", "123,456,789")
    terminal.show(table)
    assert "a name of some length" in screen.getvalue()
    assert "123,456,789" in screen.getvalue()


def test_a_pipe_is_as_wide_as_columns_says_and_a_column_may_fold_its_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from rich.table import Table

    word = "".join(chr(ord("a") + i % 26) for i in range(150))
    for columns, width in (("40", 40), ("", 120), ("wide", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        table = Table("name", box=None)
        table.add_column("words", overflow="fold")
        table.add_row("first", word)
        terminal.show(table)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) == width
        assert word in "".join(line[6:].strip() for line in lines[1:])


def test_a_closed_pipe_ends_the_output_and_not_the_command() -> None:
    code = "from sinkd_llm.terminal import show\nfor i in range(100000): show('line')\nopen('done', 'w').close()"
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        _, errors = process.communicate()
        assert (process.returncode, errors) == (0, b"")
        assert Path(folder, "done").exists()
