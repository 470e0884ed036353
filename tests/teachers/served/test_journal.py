"""A run that is killed loses nothing that was answered, and asks nothing twice."""

import json
import os
import signal
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from sinkd_llm.errors import InputError
from sinkd_llm.teachers.questions import Question
from sinkd_llm.teachers.served.asking import ask
from sinkd_llm.teachers.served.journal import Journal
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import Way
from tests.support.language_server import LanguageServer, language_server

SCORES = Way("scores", "toy", "toy")
QUESTIONS = [Question(f"row-{i}", f"Film {i} was", (" good", " very bad")) for i in range(12)]
CONCURRENCY = 3


def prompts(state: LanguageServer) -> Counter[str]:
    return Counter(body["prompt"] for _, body, _ in state.requests)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed_nothing_is_asked_twice(number: int, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def hang(number: int, body: dict[str, Any]) -> Any:
        return (200, {}, b"hang") if number >= 10 else None

    with language_server(fault=hang) as state:
        server = Server(state.url, concurrency=CONCURRENCY)
        # A copy of this process, which has imported everything already.
        process = get_context("fork").Process(target=ask, args=(server, SCORES, QUESTIONS, path))
        process.start()
        try:
            deadline = time.monotonic() + 60
            while len(state.requests) < 10 + CONCURRENCY and time.monotonic() < deadline:
                time.sleep(0.01)
            # These were sent before the others hung: what came back is on disk, or in the hands of the last few.
            kept = path.read_text().count("\n")
            assert len(state.requests) == 10 + CONCURRENCY
            assert kept == 10
        finally:
            assert process.pid is not None
            os.kill(process.pid, number)
            process.join(60)
            ended = process.exitcode
            process.kill()  # one that did not end would keep the pipes of this process open
        assert ended not in (0, None)
        state.fault = lambda number, body: None
        with path.open("ab") as stream:
            stream.write(b'{"key": "0123", "row": "row-7", "sai')
        before = prompts(state)
        progress: list[tuple[int, int]] = []
        said = ask(server, SCORES, QUESTIONS, path, lambda done, total: progress.append((done, total)))
        answered = {json.loads(line)["row"] for line in path.read_text().splitlines()}
        counts = prompts(state)
    assert len(said.answers) == 12 == len(answered)
    assert sum(counts.values()) == 24 + CONCURRENCY
    # Only the requests that had no answer when the run was killed were sent again.
    assert sum(count == 2 for count in counts.values()) == CONCURRENCY
    assert sum(before.values()) == 10 + CONCURRENCY
    assert progress[0][0] > 10
    assert progress[-1] == (24, 24)
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})


def test_a_whole_journal_needs_no_server(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with language_server() as state:
        server = Server(state.url, choice_normalisation="sum")
        first = ask(server, SCORES, QUESTIONS, path)
        url = state.url
    assert len(state.requests) == 24
    again = ask(Server(url, choice_normalisation="sum"), SCORES, QUESTIONS, path)
    for name, scores in first.answers.items():
        np.testing.assert_array_equal(again.answers[name], scores)
    # The same answers give the other normalisation, too.
    by_token = ask(Server(url, choice_normalisation="token"), SCORES, QUESTIONS, path)
    np.testing.assert_allclose(by_token.answers["row-3"], first.answers["row-3"] / [1, 2], rtol=1e-6)


def test_no_more_requests_are_under_way_than_allowed_and_each_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    kept_when_asked: list[int] = []

    together = Barrier(CONCURRENCY, timeout=10)  # no reply before so many are asked for

    def fault(number: int, body: dict[str, Any]) -> Any:
        together.wait()
        kept_when_asked.append(number - path.read_text().count("\n"))
        return None

    with language_server(fault=fault) as state:
        ask(Server(state.url, concurrency=CONCURRENCY), SCORES, QUESTIONS, path)
    assert state.most_under_way == CONCURRENCY
    # Requests before this one whose answers are not on disk: those that are under way beside it.
    assert max(kept_when_asked) < CONCURRENCY


def test_rows_that_ask_the_same_are_asked_once(tmp_path: Path) -> None:
    rows = [Question("a", "It was", (" good", " bad")), Question("b", "It was", (" good", " bad"))]
    with language_server() as state:
        said = ask(Server(state.url), SCORES, rows, tmp_path / "journal.jsonl")
    assert len(state.requests) == 2
    np.testing.assert_array_equal(said.answers["a"], said.answers["b"])


def test_what_another_question_was_answered_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    row = Question("a", "It was", (" good", " bad"))
    with language_server() as state:
        ask(Server(state.url), SCORES, [row], path)
        ask(Server(state.url), SCORES, [Question("a", "It is", row.choices)], path)
        assert len(state.requests) == 4
        ask(Server(state.url), SCORES, [Question("a", "It was", (" good", " odd"))], path)
        assert len(state.requests) == 6
        ask(Server(state.url), Way("answers", "toy", "toy", chat=False), [row], path)
        assert len(state.requests) == 7


def test_a_damaged_journal_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with language_server() as state:
        ask(Server(state.url), SCORES, QUESTIONS[:2], path)
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], lines[1][:20], *lines[2:], ""]))
        with pytest.raises(InputError, match=r"Line 2 of .* is no answer of a server that was kept"):
            ask(Server(state.url), SCORES, QUESTIONS[:2], path)
    path.write_text('{"id": 1}\n')
    with pytest.raises(InputError, match="Line 1"):
        ask(Server(state.url), SCORES, QUESTIONS[:2], path)
    assert path.read_text() == '{"id": 1}\n'


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with language_server() as state:
        server = Server(state.url)
        with Journal(path, server, SCORES), pytest.raises(InputError, match=r"Another process is asking .*; wait"):
            ask(server, SCORES, QUESTIONS, path)
        assert state.requests == []
        assert len(ask(server, SCORES, QUESTIONS, path).answers) == 12
    assert [file.name for file in tmp_path.iterdir()] == ["journal.jsonl"]
