"""Servers that are away, refuse, or answer wrongly: one message each, naming the row, and nothing lost."""

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from sinkd_llm.errors import InputError, SettingError
from sinkd_llm.teachers.questions import Question
from sinkd_llm.teachers.served.asking import ServedAnswers, ask, costs
from sinkd_llm.teachers.served.finding import find_way
from sinkd_llm.teachers.served.server import Server
from sinkd_llm.teachers.served.ways import Way
from tests.support.language_server import LanguageServer, Reply, language_server

QUESTIONS = [Question(f"row-{i}", f"Film {i} was", (" good", " very bad")) for i in range(4)]
SCORES = Way("scores", "toy", "toy")
JSON = "application/json"


class Waits(list[float]):
    """Stands in for waiting, and keeps how long it would have been."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def asked(state: LanguageServer, folder: Path, waits: Waits | None = None, **settings: Any) -> ServedAnswers:
    server = Server(state.url, **{"timeout_s": 2.0, "retries": 3, **settings})
    return ask(server, SCORES, QUESTIONS, folder / "journal.jsonl", sleep=Waits() if waits is None else waits)


def once(reply: Reply, *, at: int = 2) -> Callable[[int, dict[str, Any]], Reply | None]:
    return lambda number, body: reply if number == at else None


def always(reply: Reply) -> Callable[[int, dict[str, Any]], Reply | None]:
    return lambda number, body: reply


def refused(status: int, message: str, code: str = "") -> Reply:
    return status, {}, json.dumps({"error": {"message": message, "code": code}}).encode()


PASSING: dict[str, Reply] = {
    "too many": (429, {}, b'{"error": {"message": "slow down"}}'),
    "failing": (500, {}, b"oops"),
    "being started": (503, {}, b'{"error": "Loading model"}'),
    "a gateway's page": (502, {"content-type": "text/html"}, b"<html>bad gateway</html>"),
    "cut": (200, {}, b"cut"),
    "half of the JSON": (200, {}, b'{"choices": [{"te'),
    "a proxy's page": (200, {"content-type": "text/html"}, b"<html>Welcome</html>"),
    "a list": (200, {}, b"[1]"),
    "no reply": (200, {}, b"hang"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_asked_again(fault: str, tmp_path: Path) -> None:
    waits = Waits()
    with language_server(fault=once(PASSING[fault])) as state:
        said = asked(state, tmp_path, waits, timeout_s=1.0 if fault == "no reply" else 2.0)
        assert len(state.requests) == 9
    assert len(said.answers) == 4
    assert len(waits) == 1
    assert 0.5 <= waits[0] <= 1.5


def test_waits_grow_and_the_end_says_what_to_do(tmp_path: Path) -> None:
    waits = Waits()
    with language_server(fault=always(PASSING["too many"])) as state:
        with pytest.raises(
            InputError, match=r"no answer for row-0 in 4 tries: it said 429: slow down.*goes on"
        ) as said:
            asked(state, tmp_path, waits, concurrency=1)
        assert len(state.requests) == 4
    assert "teacher_concurrency" in str(said.value)
    assert all(low <= wait <= low + 1 for low, wait in zip((0.5, 1, 2), waits, strict=True))


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_servers_own_pause_is_kept(form: str, tmp_path: Path) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=31), usegmt=True)
    pause = {"retry-after": "30" if form == "seconds" else later}
    waits = Waits()
    with language_server(fault=once((429, pause, b"{}"))) as state:
        asked(state, tmp_path, waits)
    assert len(waits) == 1
    assert 28 <= waits[0] <= 31.5


def test_nobody_waits_for_a_run_that_ends(tmp_path: Path) -> None:
    """One request is told to come back in eight minutes when another one is refused for good."""
    pause = (429, {"retry-after": "480"}, b"{}")

    def fault(number: int, body: dict[str, Any]) -> Reply | None:
        return pause if " good" in body["prompt"] else refused(401, "no") if "Film 3" in body["prompt"] else None

    start = time.monotonic()
    with language_server(fault=fault) as state:
        server = Server(state.url, concurrency=8)
        with pytest.raises(InputError, match=r"asks for a key|refuses the key"):
            ask(server, SCORES, QUESTIONS, tmp_path / "journal.jsonl")
    assert time.monotonic() - start < 60
    assert len(state.requests) == 8


def test_a_model_that_went_away_with_the_list_of_models(tmp_path: Path) -> None:
    def fault(number: int, body: dict[str, Any]) -> Reply | None:
        return (500, {}, b"oops") if number < 0 else refused(404, "model toy not found")

    with (
        language_server(fault=fault) as state,
        pytest.raises(InputError, match=r"no model 'toy'\. It lists no models"),
    ):
        asked(state, tmp_path)


REFUSED: dict[str, tuple[Reply, str]] = {
    "no key": (refused(401, "who are you"), r"asks for a key \(401\); set the environment variable SINKD_TEACHER_API"),
    "used up": (refused(429, "over", "insufficient_quota"), r"the account is used up \(over\)"),
    "no model": (refused(404, "The model `toy` does not exist"), r"no model 'toy'. It has 'toy-2', 'other'. Did you"),
    "else": (refused(405, "not allowed"), r"refuses the request for row-\d \(405: not allowed\)"),
    "elsewhere": (
        (307, {"location": "https://elsewhere/login"}, b""),
        r"sends requests on to https://elsewhere/login",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_pass_is_said_at_once(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SINKD_TEACHER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    reply, message = REFUSED[fault]
    listed = ("toy-2", "other")
    with language_server(models=listed, fault=lambda number, body: reply if number >= 2 else None) as state:
        with pytest.raises(InputError, match=rf"{message}.* 2 of 8 are answered; they are kept in"):
            asked(state, tmp_path, concurrency=1)
        assert len(state.requests) == 3
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 2


TOO_LONG = refused(400, "This model's maximum context length is 8 tokens", "context_length_exceeded")
MANY = [Question(f"row-{i}", f"Film {i} was", (" good", " very bad")) for i in range(30)]


def test_rows_that_the_server_refuses_have_no_teacher(tmp_path: Path) -> None:
    """Others pass; and a later call asks them again."""

    def fault(number: int, body: dict[str, Any]) -> Reply | None:
        return TOO_LONG if body["prompt"].startswith(("Film 1 ", "Film 3 ")) else None

    with language_server(fault=fault) as state:
        said = asked(state, tmp_path, concurrency=1)
        assert said.answers.keys() == {"row-0", "row-2"}
        # Of a row that was refused once, nothing more is asked.
        assert len(state.requests) == 2 * 2 + 2
        assert said.sentences()[0].startswith(
            "2 of 4 rows have no teacher, because the server refused them or gave them no text: row-1 (400: This model"
        )
        state.fault = lambda number, body: None
        assert len(asked(state, tmp_path).answers) == 4
        assert len(state.requests) == 6 + 4


def test_a_server_that_takes_no_request_any_more(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with language_server(fault=always(TOO_LONG)) as state:
        server = Server(state.url, concurrency=1)
        message = r"The prompt of row-7 is longer than the model .* reads .*shorten it"
        with pytest.raises(InputError, match=message):
            ask(server, SCORES, MANY, path)
        assert len(state.requests) == 8
        with pytest.raises(InputError, match="The prompt of row-0 is longer"):
            ask(server, SCORES, MANY[:1], path)
        # Where one has passed, it is sent again: here it passes, as in data that are sorted by length, and then not.
        state.fault = lambda number, body: TOO_LONG if "Film 0 " not in body["prompt"] else None
        before = len(state.requests)
        assert len(ask(server, SCORES, MANY, path).answers) == 1
        assert len(state.requests) - before == 2 + 29 + 2
        state.fault = always(TOO_LONG)
        with pytest.raises(InputError, match="longer than the model"):
            ask(server, SCORES, MANY, path)


ANSWERS = Way("answers", "toy", "toy")


@pytest.mark.parametrize("empty", ["null", "filtered", "no choices"])
def test_a_reply_without_text_is_no_answer(empty: str, tmp_path: Path) -> None:
    def spoil(number: int, reply: dict[str, Any]) -> None:
        body = state.requests[number][1]
        if "Film 1" in body["messages"][0]["content"] and broken:
            said = {"null": [{"message": {"content": None}}], "no choices": []}
            filtered = [{"message": {"content": ""}, "finish_reason": "content_filter"}]
            reply["choices"] = said.get(empty, filtered)
        elif "Film 2" in body["messages"][0]["content"]:
            reply["choices"] = [{"message": {"content": ""}, "finish_reason": "stop"}]

    broken, waits, path = True, Waits(), tmp_path / "journal.jsonl"
    with language_server(style="chat", spoil=spoil) as state:
        said = ask(Server(state.url), ANSWERS, QUESTIONS, path, sleep=waits)
        assert (said.answers.keys(), said.no_choice) == ({"row-0", "row-3"}, {"": 1})
        assert list(said.refused) == ["row-1"]
        assert "no text: row-1 (its reply has" in said.sentences()[0]
        assert (len(state.requests), len(waits)) == (4 + 2, 2)
        broken = False
        assert "row-1" in ask(Server(state.url), ANSWERS, QUESTIONS, path, sleep=waits).answers
        assert len(state.requests) == 7


def test_answers_that_hold_no_choice_are_not_asked_for_to_the_end(tmp_path: Path) -> None:
    rows = [Question(f"row-{i}", f"Film {i} was", (" good", " bad")) for i in range(200)]
    path = tmp_path / "journal.jsonl"
    with language_server(style="chat", says=lambda prompt, number: "I cannot say") as state:
        server = Server(state.url, concurrency=4)
        message = (
            r"The first 5\d rows .* have no choice: it said 'I cannot say' \(5\d ×\), where the choices are 'good', "
            r"'bad'\. .* let the prompt name the choices .* are answered; they are kept in"
        )
        with pytest.raises(InputError, match=message):
            ask(server, ANSWERS, rows, path)
        sent = len(state.requests)
        assert 50 <= sent < 60
        # A server that was set up anew is tried again with the next rows.
        state.says = lambda prompt, number: "good"
        assert len(ask(server, ANSWERS, rows, path).answers) == 200 - sent
        # One choice among them, and the others are asked.
        state.says = lambda prompt, number: "good" if "Film 199 " in prompt else "I cannot say"
        few = [*rows[:45], rows[199], *rows[45:60]]
        assert len(ask(server, ANSWERS, few, tmp_path / "other.jsonl").answers) == 1


def test_waiting_is_said_now_and_then(tmp_path: Path) -> None:
    lines: list[str] = []
    with language_server(fault=always((503, {"retry-after": "5"}, b'{"error": "Loading model"}'))) as state:
        server = Server(state.url, retries=3, concurrency=4)
        with pytest.raises(InputError, match="in 4 tries"):
            ask(server, SCORES, QUESTIONS, tmp_path / "journal.jsonl", sleep=Waits(), on_wait=lines.append)
    assert len(lines) == 1
    assert lines[0].endswith("gives no answer (it said 503: Loading model); trying again in 5 s (1 of 3)")


def change(**fields: Any) -> Callable[[int, dict[str, Any]], None]:
    """Changes parts of the log-probabilities of the fourth reply."""

    def spoil(number: int, reply: dict[str, Any]) -> None:
        if number == 3:
            parts = reply["choices"][0]["logprobs"]
            for name, value in fields.items():
                parts[name] = value(parts[name]) if callable(value) else value

    return spoil


def last_but_one(value: Any) -> Callable[[list[Any]], list[Any]]:
    """The last token that was asked for stands before one that was generated."""
    return lambda values: [*values[:-2], value, values[-1]]


WRONG: dict[str, tuple[Callable[[int, dict[str, Any]], None], str]] = {
    "NaN": (change(token_logprobs=last_but_one(math.nan)), "log-probability of ' bad' is NaN"),
    "infinite": (change(token_logprobs=last_but_one(-math.inf)), "log-probability of ' bad' is infinite"),
    "above 0": (change(token_logprobs=last_but_one(0.5)), "log-probability of ' bad' is 0.5, above 0"),
    "null": (change(token_logprobs=last_but_one(None)), "log-probability of ' bad' is None"),
    "text": (change(token_logprobs=last_but_one("-1")), "log-probability of ' bad' is '-1'"),
    "other tokens": (change(tokens=last_but_one(" mad")), "other tokens than it was asked for: ' very mad' instead"),
    "too few": (change(token_logprobs=lambda values: values[1:]), r"has 7 tokens and 6 log-probabilities"),
    "none": (change(tokens=None), "its log-probabilities are without tokens"),
    "no answers": (lambda number, reply: reply.update(choices=[]) if number == 3 else None, "has 0 answers where 1"),
    "no logprobs": (
        lambda number, reply: reply["choices"][0].update(logprobs=None) if number == 3 else None,
        "has no log-probabilities",
    ),
    "another text": (
        lambda number, reply: reply["choices"][0].update(text="Film") if number == 3 else None,
        "does not repeat the prompt",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_replies_name_the_row(fault: str, tmp_path: Path) -> None:
    spoil, message = WRONG[fault]
    with language_server(spoil=spoil) as state:
        with pytest.raises(InputError, match=f"unusable reply for row-1: .*{message}"):
            asked(state, tmp_path, concurrency=1)
        before = len(state.requests)
        state.spoil = lambda number, reply: None
        assert len(asked(state, tmp_path).answers) == 4
        # Of the eight, three were kept; what is wrong was not, nor is it asked twice because of its brothers.
        assert len(state.requests) - before == 5


def test_a_server_that_is_not_there() -> None:
    with language_server() as state:
        url = state.url
    waits = Waits()
    with pytest.raises(InputError, match=rf"The server {url} does not answer: it cannot be reached .* Start it"):
        find_way(Server(url), QUESTIONS[0], sleep=waits)
    assert len(waits) == 2


def test_models_are_named() -> None:
    with language_server(models=("toy-a", "toy-b"), model="toy-a") as state:
        with pytest.raises(InputError, match="has several models: 'toy-a', 'toy-b'; give the name of one"):
            find_way(Server(state.url), QUESTIONS[0])
        found = find_way(Server(state.url, model="toy-c"), QUESTIONS[0])
        assert (found.asked_model, found.model) == ("toy-c", "toy-a")
        assert "does not list the model 'toy-c'" in found.remarks[0]
    with language_server(models=()) as state, pytest.raises(InputError, match="lists no models: either this"):
        find_way(Server(state.url), QUESTIONS[0])


def test_another_model_in_the_middle(tmp_path: Path) -> None:
    def spoil(number: int, reply: dict[str, Any]) -> None:
        if number == 5:
            reply["model"] = "toy-2"

    with language_server(spoil=spoil) as state:
        with pytest.raises(InputError, match="answers for row-2 with the model 'toy-2', and before with 'toy'"):
            asked(state, tmp_path, concurrency=1)
        other, path = Way("scores", "toy-2", "toy-2"), tmp_path / "journal.jsonl"
        message = "The model 'toy' has answered 5 of these 8 requests .* and the server's model is now 'toy-2'"
        with pytest.raises(InputError, match=message):
            ask(Server(state.url), other, QUESTIONS, path)
        assert len(state.requests) == 6
        state.spoil = lambda number, reply: reply.update(model="toy-2")
        # What the user names is meant; and rows that the first model has all answered are another matter.
        assert len(ask(Server(state.url, model="toy-2"), other, QUESTIONS, path).answers) == 4
        assert len(ask(Server(state.url), Way("scores", "toy-3", "toy-3"), QUESTIONS[:0], path).answers) == 0
        state.spoil = lambda number, reply: reply.update(model="toy-3")
        assert len(ask(Server(state.url), Way("scores", "toy-3", "toy-3"), QUESTIONS[:2], path).answers) == 2
        assert len(state.requests) == 6 + 8 + 4


def test_the_budget_counts_every_request(tmp_path: Path) -> None:
    with language_server(fault=once(PASSING["failing"], at=1)) as state:
        for answered in (4, 8):
            if answered == 4:
                with pytest.raises(InputError, match=r"5 requests are sent, .* and 4 of 8 are answered; they"):
                    asked(state, tmp_path, max_requests=5, concurrency=3)
                assert len(state.requests) == 5
            else:
                assert len(asked(state, tmp_path, max_requests=5).answers) == 4
    assert len(state.requests) == 9


def test_the_budget_counts_test_requests(tmp_path: Path) -> None:
    with language_server() as state:
        with pytest.raises(InputError, match="teacher_max_requests is 1, and as many were sent to find out"):
            find_way(Server(state.url, max_requests=1), QUESTIONS[0])
        before, server = len(state.requests), Server(state.url, max_requests=4)
        way = find_way(server, QUESTIONS[0])
        assert way.tests == len(state.requests) - before == 2
        with pytest.raises(InputError, match=r"4 requests are sent \(2 of them to find out .* 2 of 8 are answered"):
            ask(server, way, QUESTIONS, tmp_path / "journal.jsonl")
        assert len(state.requests) - before == 4
        assert costs(server, way, QUESTIONS, tmp_path / "journal.jsonl")[:2] == (2, 6)


@pytest.mark.parametrize("way", ["auto", "answers"])
def test_a_server_that_refuses_the_first_row_is_tried_with_others(way: str) -> None:
    def fault(number: int, body: dict[str, Any]) -> Reply | None:
        return refused(400, "content policy") if "Film 0" in json.dumps(body) else None

    with language_server() as state:
        state.fault = fault
        with pytest.raises(InputError, match=r"refuses the request \(400: content policy\)"):
            find_way(Server(state.url, way=way), QUESTIONS[0])
        before = len(state.requests)
        found = find_way(Server(state.url, way=way), QUESTIONS[0], others=[QUESTIONS[0], QUESTIONS[2]])
        assert found.name == {"auto": "scores"}.get(way, way)
        assert found.tests == len(state.requests) - before
        with pytest.raises(InputError, match="teacher_max_requests is 1, and as many were sent"):
            find_way(Server(state.url, way="answers", max_requests=1), QUESTIONS[0], others=[QUESTIONS[2]])


@pytest.mark.parametrize("variable", ["SINKD_TEACHER_API_KEY", "OPENAI_API_KEY"])
def test_the_key_goes_to_the_server_and_nowhere_else(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "plain-word-that-no-pattern-knows"
    monkeypatch.delenv("SINKD_TEACHER_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv(variable, key)
    caplog.set_level(logging.DEBUG)
    with language_server() as state:
        server = Server(state.url)
        said = ask(server, find_way(server, QUESTIONS[0]), QUESTIONS, tmp_path / "journal.jsonl")
        assert all(headers["authorization"] == f"Bearer {key}" for _, _, headers in state.requests)
        state.fault = always(refused(403, f"the key {key} may not"))
        with pytest.raises(InputError, match=rf"refuses the key in the .* variable {variable} \(403: .*\*\*\*"):
            find_way(server, QUESTIONS[0])
        with pytest.raises(InputError) as error:
            ask(server, SCORES, [Question("new", "New was", (" good",))], tmp_path / "journal.jsonl")
    written = (tmp_path / "journal.jsonl").read_text()
    for text in (repr(server), repr(said), str(error.value), repr(error.value.__cause__), written, caplog.text):
        assert key not in text
    monkeypatch.setenv("SINKD_TEACHER_API_KEY", "two\nlines")
    with pytest.raises(InputError, match="variable SINKD_TEACHER_API_KEY holds characters that no key has") as error:
        find_way(server, QUESTIONS[0])
    assert "lines" not in str(error.value).replace("line end", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "127.0.0.1:8000"}, r"^teacher_url is '127.0.0.1:8000'; give an address"),
        ({"url": "ftp://host/v1"}, "^teacher_url is"),
        ({"url": "http://host:99999/v1"}, "^teacher_url is"),
        ({"url": "http://host/v1/chat/completions"}, "^teacher_url ends in '/chat/completions'.*'http://host/v1'"),
        ({"url": "http://host/v1?api_key=abc"}, r"^teacher_url is 'http://host/v1\?api_key=\*\*\*'"),
        ({"model": " "}, "^teacher_model is empty"),
        ({"samples": -1}, "^teacher_samples is -1; give a number of at least 0"),
        ({"concurrency": 0}, "^teacher_concurrency is 0"),
        ({"max_requests": 0}, "^teacher_max_requests is 0"),
        ({"timeout_s": float("nan")}, "^teacher_timeout_s is nan"),
        ({"way": "score"}, r"^teacher_way is 'score'; give one of .* Did you mean 'scores'\?"),
        ({"choice_normalisation": "mean"}, "^choice_normalisation is 'mean'; give one of sum, token"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Server(**{"url": "http://host", **settings})


def test_an_address_without_a_path_gets_the_usual_one() -> None:
    assert Server(" http://host:8000/ ").url == "http://host:8000/v1"
    assert Server("https://host/api/v3/").url == "https://host/api/v3"


def test_inside_a_running_loop_as_in_a_notebook(tmp_path: Path) -> None:
    async def cell(state: LanguageServer) -> int:
        return len(asked(state, tmp_path).answers)

    with language_server() as state:
        assert asyncio.run(cell(state)) == 4
