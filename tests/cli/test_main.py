"""`sinkd`: finding the command, exit codes, and what is printed where."""

import subprocess
import sys
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
            logging.getLogger("sinkd_llm.data").warning("3 prompts\nwere cut")
        return 0

    command(warn_twice)
    for _ in range(2):
        assert cli.main(["env"]) == 0
        assert capsys.readouterr().err == "Note: 3 prompts were cut\n"
