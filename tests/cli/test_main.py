"""`sinkd`: finding the command, exit codes, and what is printed where."""

import contextlib
import errno
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import sinkd_llm.cli as cli
from sinkd_llm import __version__
from sinkd_llm.errors import InputError


@pytest.fixture
def command(monkeypatch):
    """Replaces the command `env` by a function of the test."""

    def install(function):
        monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(main=function))

    return install


def raiser(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(argv, capsys):
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in printed


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sinkd {__version__}\n"


def test_unknown_command_names_the_nearest(capsys):
    assert cli.main(["distil"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("sinkd: error: there is no command 'distil'. Did you mean 'distill'?")
    assert captured.err.count("\n") == 1


def test_arguments_and_exit_code_are_passed_through(command):
    seen = []
    command(lambda argv: seen.append(argv) or 3)
    assert cli.main(["env", "--flag", "value"]) == 3
    assert seen == [["--flag", "value"]]


def test_input_error_is_one_line_and_exit_code_2(command, capsys):
    command(raiser(InputError("the file\n  has no rows; give one with rows.")))
    assert cli.main(["env"]) == 2
    assert capsys.readouterr().err == "sinkd: error: the file has no rows; give one with rows.\n"


def test_os_error_names_the_file(command, capsys, tmp_path):
    command(lambda argv: (tmp_path / "absent").read_text())
    assert cli.main(["env"]) == 2
    assert capsys.readouterr().err == f"sinkd: error: {tmp_path / 'absent'}: No such file or directory\n"


def test_interrupt_is_130(command, capsys):
    command(raiser(KeyboardInterrupt()))
    assert cli.main(["env"]) == 130
    assert capsys.readouterr().err == "\nsinkd: interrupted\n"


def test_a_bug_keeps_its_traceback(command):
    command(raiser(ZeroDivisionError("bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["env"])


@pytest.mark.parametrize("error", [InputError("wrong"), FileNotFoundError("gone"), KeyboardInterrupt()])
def test_debug_keeps_every_traceback(command, monkeypatch, error):
    monkeypatch.setenv("SINKD_DEBUG", "1")
    command(raiser(error))
    with pytest.raises(type(error)):
        cli.main(["env"])


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from sinkd_llm.cli import main; main(['--help']); "
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'matplotlib', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_sinkd_llm():
    done = subprocess.run([sys.executable, "-m", "sinkd_llm", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_warning_is_shown_once_a_command(command, capsys):
    import logging

    def warn_twice(argv):
        for _ in range(2):
            logging.getLogger("sinkd_llm.inputs.dataset").warning("3 prompts\nwere cut")
        return 0

    command(warn_twice)
    for _ in range(2):
        assert cli.main(["env"]) == 0
        assert capsys.readouterr().err == "Note: 3 prompts were cut\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "x/y: No space left on device; free space"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free space"),
        (PermissionError(errno.EACCES, "Permission denied", b"x"), "x: Permission denied; check who may"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "the memory of the device is full (CUDA out of"),
        (MemoryError(), "the memory of the device is full (MemoryError)"),
        (InputError("a" * 100_000), "aaa"),
        (InputError("name \x1b[31m\x07 hf_" + "a1" * 17), "name \\x1b[31m\\x07 ***"),
    ],
)
def test_what_the_machine_says_comes_with_advice(command, capsys, error, message):
    command(raiser(error))
    assert cli.main(["env"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sinkd: error: {message}")
    assert said.count("\n") == 1
    assert len(said) < 1600


def test_a_warning_of_a_library_does_nothing_to_the_terminal(command, capsys):
    command(lambda argv: warnings.warn("of \x1b[2J", stacklevel=1) or 0)
    assert cli.main(["env"]) == 0
    assert "of \\x1b[2J" in capsys.readouterr().err


def sinkd(*argv, **options):
    command = [sys.executable, "-m", "sinkd_llm", *argv]
    return subprocess.run(command, capture_output=True, check=False, **options)


@pytest.mark.parametrize("argv", [["--help"], ["tasks", "list"], ["env", "--help"]])
def test_a_reader_that_goes_away_is_no_error(argv):
    line = f"{shlex.quote(sys.executable)} -m sinkd_llm {shlex.join(argv)} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("argv", ["--help", "tasks list", "--version"])
def test_a_full_disk_under_the_output_is_one_message(argv):
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m sinkd_llm {argv} > /dev/full"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("sinkd: error: standard output: No space left on device")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("argv", [["tasks"], ["tasks", "show", "quickstart"], ["é\udcff"]])
def test_a_terminal_without_unicode_loses_nothing(argv, encoding):
    done = sinkd(*argv, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if "é" not in argv[0] else 2)
    if argv == ["tasks"]:
        assert "sst2" in done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_the_help_of_every_setting_loses_nothing_either(zygote, tmp_path, encoding):
    out, err = tmp_path / "out", tmp_path / "err"
    answer = zygote(["distill", "--help_all"], out, err=str(err), encoding=encoding)
    assert "Traceback" not in err.read_text(encoding)
    assert answer["codes"] == [0]
    assert "--alpha" in out.read_text(encoding)


@pytest.mark.parametrize(
    "argv",
    [
        *("--help", "tasks", "tasks check quickstart", "env"),
        *(f"{command} --help" for command in (*cli.COMMANDS, "tasks list", "tasks show", "tasks check")),
        *(f"{command} --help_all" for command in ("finetune", "cache", "distill")),
    ],
)
def test_what_is_printed_fits_a_terminal_of_80_columns(argv, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):  # of argparse, after the help
        assert cli.main(argv.split()) == 0
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in screen.getvalue().splitlines()]
    assert len(lines) > 3
    # An address has no place to be folded at.
    assert max(len(line) for line in lines if "://" not in line) <= 80
