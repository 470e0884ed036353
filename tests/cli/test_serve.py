"""`sinkd serve`: what is refused before anything is loaded, and after; a port of 0."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from sinkd_llm.cli import main
from sinkd_llm.serving.running import bound
from tests.support.students import save_student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("serve") / "student", "classifier")


def test_it_serves_until_ctrl_c(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ""

    def end() -> None:
        nonlocal said
        while "Serving" not in said:
            time.sleep(0.05)
            said += capsys.readouterr().err
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=end)
    thread.start()
    assert main(["serve", str(student), "--port", "0", "--max_body_bytes", "2MB", "--name", "tiny"]) == 0
    thread.join(20)
    assert "Serving tiny at http://127.0.0.1:" in said
    assert "every request has had its reply" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max_batch", "0"], "--max_batch is 0; give a whole number from 1 to 4,096"),
        (["--max_batch", "many"], "--max_batch"),
        (["--timeout_s", "nan"], "--timeout_s is nan"),
        (["--max_queue", "10"], "--max_rows is 256, and only 10 rows may wait"),
        (["--max_body_bytes", "large"], "--max_body_bytes is 'large'; give a number with a unit"),
        (["--port", "70000"], "--port is 70000"),
        (["--port", "http"], "--port"),
        (["--host", "no.such.host.invalid"], "--host is 'no.such.host.invalid'"),
        (["--api_key_env", "NOT_SET_ANYWHERE"], "--api_key_env names no environment variable"),
        (["--prot", "1"], "Did you mean '--port'?"),
    ],
)
def test_wrong_flags(student: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(student), *flags]) == 2
    assert message in capsys.readouterr().err


def test_no_student_and_a_taken_port(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve", str(tmp_path / "nowhere"), "--port", "0"]) == 2
    assert "There is no folder" in capsys.readouterr().err
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        assert main(["serve", str(student), "--port", str(port)]) == 2
        said = capsys.readouterr().err
        assert f"127.0.0.1:{port} cannot be listened on" in said
        assert "Loading" not in said


def test_a_package_that_is_missing(
    student: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkd_llm.cli.serve._PACKAGES", ("fastapi", "no_such_package"))
    assert main(["serve", str(student)]) == 2
    assert "pip install 'sinkd-llm[serve]'" in capsys.readouterr().err
