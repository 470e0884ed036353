"""A real server on the loopback under load: nothing is lost, and nothing grows."""

import gc
import json
import random
import resource
import socket
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

import pytest

from sinkd_llm.serving.limits import ServeLimits
from tests.support.served import running
from tests.support.students import save_onnx_student

TEXTS = ("good film", "awful plot", "great", "the food was not good but the plot is great", "bad")
WRONG = (b"{", b'{"texts": []}', b'{"texts": [1]}', b"\xff\xfe", b'{"texts": ["' + b"x" * 3000 + b'"]}')
THREADS, REQUESTS = 8, 100


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_onnx_student(tmp_path_factory.mktemp("load") / "student")


def post(connection: HTTPConnection, body: bytes) -> tuple[int, dict]:
    connection.request("POST", "/v1/decisions", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def leave_early(port: int, body: bytes, sent: int) -> None:
    """Ask, and go before the answer, perhaps in the middle of the body."""
    head = "POST /v1/decisions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:sent])


class Client(threading.Thread):
    """Asks again and again, and keeps what it got."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__()
        self.port, self.random, self.found = port, random.Random(seed), Counter[str]()

    def run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        for number in range(REQUESTS):
            kind = self.random.random()
            ids = [f"{number}-{i}" for i in range(self.random.randint(1, 4))]
            rows = [{"id": name, "text": self.random.choice(TEXTS)} for name in ids]
            if kind < 0.1:
                body = json.dumps({"rows": rows}).encode()
                leave_early(self.port, body, self.random.choice((len(body), len(body) // 2)))
                self.found["left"] += 1
                continue
            if kind < 0.2:
                status, _ = post(connection, self.random.choice(WRONG))
                assert 400 <= status < 500
                self.found["refused"] += 1
                continue
            status, content = post(connection, json.dumps({"rows": rows}).encode())
            assert status == 200, content
            assert [answer["id"] for answer in content["answers"]] == ids
            self.found["answered"] += 1
            self.found["rows"] += len(ids)
        connection.close()
        self.found["done"] += 1


def numbers(port: int) -> dict[str, float]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    lines = [line.rpartition(" ") for line in connection.getresponse().read().decode().splitlines() if line[0] != "#"]
    connection.close()
    return {name: float(value) for name, _, value in lines}


def load(port: int, seed: int) -> Counter[str]:
    clients = [Client(port, seed + i) for i in range(THREADS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    found: Counter[str] = sum((client.found for client in clients), Counter())
    assert found["done"] == THREADS  # no assertion failed in a thread
    return found


def test_nothing_is_lost_and_nothing_grows(student: Path) -> None:
    with running(student, ServeLimits(max_body_bytes=2000)) as (server, port):
        found = load(port, 0)
        gc.collect()
        threads, memory = threading.active_count(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found += load(port, 100)
        assert found["answered"] + found["refused"] + found["left"] == 2 * THREADS * REQUESTS
        for _ in range(200):  # of those that left, the last may still be on their way
            counted = numbers(port)
            if server.batcher.waiting == 0 and server.open_requests == 0:
                break
            time.sleep(0.02)
        assert server.batcher.waiting == server.open_requests == 0
        path = 'sinkd_requests_total{path="/v1/decisions",status='
        assert counted[f'{path}"200"}}'] >= found["answered"]
        assert sum(counted[f'{path}"{status}"}}'] for status in (400, 413, 422)) == found["refused"]
        assert counted["sinkd_rows_total"] >= found["rows"]
        assert counted["sinkd_batch_rows_count"] < counted["sinkd_batch_rows_sum"]  # rows did share batches
        assert threading.active_count() <= threads
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        assert grown < 30_000, f"{grown:,} kB more after {2 * THREADS * REQUESTS:,} requests than after half of them"


def test_health_is_answered_while_the_model_works(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(student, ServeLimits(max_batch=1, max_queue=4, max_rows=2)) as (server, port):
        answer, go = server.student.answer_batch, threading.Event()
        monkeypatch.setattr(server.student, "answer_batch", lambda *given: go.wait(20) and answer(*given))
        body = json.dumps({"texts": ["good", "bad"]}).encode()
        connections = [HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(2)]
        for connection in connections:
            connection.request("POST", "/v1/decisions", body, {"Content-Type": "application/json"})
        while server.batcher.waiting < 3:
            time.sleep(0.005)
        for _ in range(20):
            health = HTTPConnection("127.0.0.1", port, timeout=2)
            health.request("GET", "/health")
            assert health.getresponse().status == 200
            health.close()
        status, content = post(HTTPConnection("127.0.0.1", port, timeout=10), body)
        assert (status, content["error"]["type"]) == (429, "queue_full")
        # One goes, and its rows with it: there is room again.
        connections[1].close()
        while server.batcher.waiting > 1:
            time.sleep(0.005)
        go.set()
        assert connections[0].getresponse().status == 200
        assert post(HTTPConnection("127.0.0.1", port, timeout=10), body)[0] == 200


def test_what_waits_is_answered_at_the_end(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(student, ServeLimits(max_batch=2)) as (server, port):
        answer = server.student.answer_batch
        monkeypatch.setattr(server.student, "answer_batch", lambda *given: time.sleep(0.05) or answer(*given))
        body = json.dumps({"texts": ["good"] * 10}).encode()
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/decisions", body, {"Content-Type": "application/json"})
        while server.batcher.waiting == 0:
            time.sleep(0.001)
    reply = connection.getresponse()
    assert reply.status == 200
    assert len(json.loads(reply.read())["answers"]) == 10
    with pytest.raises(OSError, match=r"refused|reset"):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def raw(port: int, *parts: bytes) -> bytes:
    """All that comes back until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        found = b""
        try:
            for part in parts:
                client.sendall(part)
            while part := client.recv(65536):
                found += part
        except ConnectionError:
            pass
        return found


def test_what_never_ends_is_ended(student: Path) -> None:
    start = b"POST /v1/decisions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with running(student, ServeLimits(max_body_bytes=2000, timeout_s=0.5)) as (server, port):
        assert b"slow_body" in raw(port, start + b"Content-Length: 100\r\n\r\n{")
        endless = (b"%x\r\n" % 10_000 + b"x" * 10_000 + b"\r\n" for _ in range(5000))
        # A client that is still sending may lose the reply with the connection.
        raw(port, start + b"Transfer-Encoding: chunked\r\n\r\n", *endless)
        assert numbers(port)['sinkd_errors_total{type="body_too_large"}'] == 1
        headers = [b"X-%d: %s\r\n" % (i, b"y" * 10_000) for i in range(1000)]
        assert raw(port, start, *headers)[:12] in (b"", b"HTTP/1.1 400")
        assert b"400 Bad Request" in raw(port, b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert server.open_requests == 0
        large = b'"' + b"x" * 20_000 + b'"'
        assert post(HTTPConnection("127.0.0.1", port, timeout=20), large)[1]["error"]["given"] == len(large)
