"""A server as a process: its address, its key, its signals, and an ONNX student that is served without torch."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from sinkd_llm import load_student
from sinkd_llm.errors import InputError
from sinkd_llm.interrupts import Interrupted
from sinkd_llm.serving.app import ServeSettings, StudentServer
from sinkd_llm.serving.limits import ServeLimits
from sinkd_llm.serving.running import bound, read_key, serve
from tests.support.launch import REPOSITORY
from tests.support.students import save_onnx_student, save_student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("running") / "student", "classifier")


def test_a_port_that_is_taken_is_said_to_be() -> None:
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port} cannot be listened on \(Address already in use\)"):
            bound("127.0.0.1", port)
    bound("127.0.0.1", port).close()  # free again, at once


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("no.such.host.invalid", 0, "this machine does not know"),
        ("", 0, "this machine does not know"),
        ("a" * 300, 0, "this machine does not know"),
        ("192.0.2.1", 0, "none of this machine's"),
        ("127.0.0.1", 65536, "--port is 65536"),
        ("127.0.0.1", -1, "--port is -1"),
    ],
)
def test_addresses_that_are_none(host: str, port: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bound(host, port)


def test_a_key_is_read_and_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TEST", " sesame\n")
    assert read_key("KEY_OF_TEST") == "sesame"
    for value in ("", "  ", "open sesame", "sésame"):
        monkeypatch.setenv("KEY_OF_TEST", value)
        with pytest.raises(InputError, match="--api_key_env") as error:
            read_key("KEY_OF_TEST")
        assert "same" not in str(error.value)
    for name in ("NOT_SET_ANYWHERE", "s3cr3t-key", "", "A B"):
        with pytest.raises(InputError, match="no environment variable") as error:
            read_key(name)
        assert not name or name not in str(error.value)


@pytest.mark.parametrize(
    ("host", "key", "said", "unsaid"),
    [
        ("127.0.0.1", None, "Serving tiny at http://127.0.0.1:", "authentication"),
        ("0.0.0.0", None, "there is no authentication", "encrypted"),
        ("0.0.0.0", "sesame", "not encrypted", "authentication"),
    ],
)
def test_what_is_said_of_the_address(
    host: str, key: str | None, said: str, unsaid: str, student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = StudentServer(load_student(student), ServeSettings("tiny", api_key=key))
    with bound(host, 0) as listening:
        threading.Thread(target=end_when_ready, args=(server,)).start()
        serve(server, listening)
    found = capsys.readouterr().err
    assert said in found
    assert unsaid not in found
    assert "every request has had its reply" in found


def end_when_ready(server: StudentServer, times: int = 1) -> None:
    while not server.batcher.ready and server.batcher.failure is None:
        time.sleep(0.01)
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)


def test_handlers_of_signals_are_given_back(student: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    server = StudentServer(load_student(student), ServeSettings("tiny"))
    with bound("127.0.0.1", 0) as listening:
        threading.Thread(target=end_when_ready, args=(server,)).start()
        serve(server, listening)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_signal_leaves_rows_without_an_answer(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = StudentServer(load_student(student), ServeSettings("tiny", ServeLimits(max_batch=1)))
    with bound("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        go = threading.Event()

        def ask_and_end() -> None:
            while not server.batcher.ready:
                time.sleep(0.01)
            server.student.answer_batch = lambda *given: go.wait(20) and []  # type: ignore[method-assign]
            connection = HTTPConnection("127.0.0.1", port, timeout=20)
            body, headers = b'{"texts": ["good", "bad"]}', {"Content-Type": "application/json"}
            connection.request("POST", "/v1/decisions", body, headers)
            while server.batcher.waiting != 1:
                time.sleep(0.01)
            end_when_ready(server, 2)

        asking = threading.Thread(target=ask_and_end)
        asking.start()
        with pytest.raises(Interrupted, match="stopped at once") as stopped:
            serve(server, listening)
        assert stopped.value.exit_code == 130
        go.set()
        asking.join(20)


def test_a_first_answer_that_fails_ends_the_server(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_student(student)

    def failing(*given: object) -> None:
        raise InputError("no answer")

    monkeypatch.setattr(loaded, "answer_batch", failing)
    with bound("127.0.0.1", 0) as listening, pytest.raises(InputError, match="no answer"):
        serve(StudentServer(loaded, ServeSettings("tiny")), listening)


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "trl", "datasets"):
    sys.modules[name] = None
from sinkd_llm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_an_onnx_student_is_served_without_torch_until_sigterm(tmp_path: Path) -> None:
    folder = save_onnx_student(tmp_path / "onnx")
    argv = [sys.executable, "-c", WITHOUT_TORCH, "serve", str(folder), "--port", "0", "--name", "small"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = ""
        while "Serving" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
        assert found is not None
        connection = HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        status = 503
        while status == 503:
            connection.request("GET", "/health")
            reply = connection.getresponse()
            status, _ = reply.status, reply.read()
        assert status == 200
        connection.request("POST", "/v1/decisions", b'{"texts": ["good"]}', {"Content-Type": "application/json"})
        content = connection.getresponse().read().decode()
        (expected,) = load_student(folder).predict(["good"])
        assert '"model":"small"' in content
        assert f'"choice":"{expected.choice}"' in content
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(30) == 0, said
    assert "every request has had its reply" in said
    with pytest.raises(OSError, match=r"refused"):
        socket.create_connection(("127.0.0.1", int(found[1])), timeout=2)
