"""What a client may ask of a served student, what it is told, and what it is refused."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from sinkd_llm import load_student
from sinkd_llm.answering.calibration import Calibration
from sinkd_llm.answering.routing import Route
from sinkd_llm.errors import NonFiniteError
from sinkd_llm.serving.app import ServeSettings, StudentServer
from sinkd_llm.serving.limits import ServeLimits
from tests.support.students import save_student

TEXTS = ["good film", "awful plot", "great"]
LIMITS = ServeLimits(
    max_batch=4, max_wait_ms=0, max_queue=8, max_rows=6, max_body_bytes=4000, max_row_chars=200, max_choices=5
)
OWN = {"prompt": "The film was", "choices": ["good", "bad", "great"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    facts = {"calibration": Calibration(2.0), "route": Route(0.5, 0.98, "accuracy")}
    return save_student(folder / "classifier", "classifier", **facts)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Path:
    return save_student(
        folder / "decoder", "decoder", calibration=Calibration(2.0), route=Route(0.5, 0.98, "accuracy")
    )


def server_of(student: Path, limits: ServeLimits = LIMITS, **settings: Any) -> StudentServer:
    return StudentServer(load_student(student), ServeSettings("tiny", limits, **settings))


def waited_for(client: TestClient) -> TestClient:
    for _ in range(500):
        if client.get("/health").status_code == 200:
            return client
        threading.Event().wait(0.01)
    raise AssertionError("it does not become ready")


@pytest.fixture(scope="module")
def client(classifier: Path) -> Iterator[TestClient]:
    with TestClient(server_of(classifier).app) as client:
        yield waited_for(client)


@pytest.fixture(scope="module")
def words(decoder: Path) -> Iterator[TestClient]:
    """A student that reads choices as words."""
    with TestClient(server_of(decoder).app) as client:
        yield waited_for(client)


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/decisions", json=body)


def test_texts_are_answered_as_in_python(client: TestClient, classifier: Path) -> None:
    reply = ask(client, texts=TEXTS)
    assert reply.status_code == 200
    content = reply.json()
    assert (content["model"], content["task"]) == ("tiny", "mine")
    assert list(content) == ["model", "model_sum", "version", "task", "answers"]
    for found, expected in zip(content["answers"], load_student(classifier).predict(TEXTS), strict=True):
        assert (found["id"], found["choice"], found["decision"]) == (expected.id, expected.choice, expected.decision)
        assert found["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
        assert found["probability"] == max(found["probabilities"].values())
        assert found["calibrated"] is True


def test_rows_keep_their_ids_and_other_columns_do_not_matter(client: TestClient) -> None:
    rows = [{"text": "good", "id": "a"}, {"text": "bad", "label": 7, "more": [1, {"x": None}]}, {"id": 3, "text": "x"}]
    assert [answer["id"] for answer in ask(client, rows=rows).json()["answers"]] == ["a", 1, "3"]


def test_questions_bring_their_choices(words: TestClient, decoder: Path) -> None:
    reply = ask(words, questions=[OWN, {"id": "b", "prompt": "Is it good?\nAnswer:", "choices": ["yes", "no"]}])
    first, second = reply.json()["answers"]
    assert list(first["probabilities"]) == OWN["choices"]
    assert sum(first["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert (second["id"], list(second["probabilities"])) == ("b", ["yes", "no"])
    for answer in (first, second):  # what was found out on the task's rows says nothing of these
        assert answer["calibrated"] is False
        assert "decision" not in answer
    assert ask(words, texts=["good"]).json()["answers"][0]["calibrated"] is True


def test_a_question_in_the_words_of_the_task_has_the_probabilities_of_its_row(words: TestClient) -> None:
    asked = {"prompt": "Review: good film\nSentiment:", "choices": ["negative", "positive"]}
    (own,) = ask(words, questions=[asked]).json()["answers"]
    (row,) = ask(words, texts=["good film"]).json()["answers"]
    one, other = own["probabilities"]["positive"], row["probabilities"]["positive"]
    # The row's are calibrated by a temperature of 2.
    assert other / (1 - other) == pytest.approx((one / (1 - one)) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("kind", ["masked", "encoder-decoder"])
def test_other_students_that_read_words(kind: str, folder: Path) -> None:
    with TestClient(server_of(save_student(folder / kind, kind)).app) as client:
        (answer,) = ask(waited_for(client), questions=[OWN]).json()["answers"]
        assert answer["choice"] in OWN["choices"]
        (row,) = ask(client, texts=["good"]).json()["answers"]
        assert row["calibrated"] is False
        assert "decision" not in row


def test_choices_of_each_row(folder: Path) -> None:
    student = save_student(folder / "varying", "decoder", task={"doc_to_choice": "{{options}}"})
    with TestClient(server_of(student).app) as client:
        rows = [{"text": "good", "options": ["yes", "no", "film"]}, {"text": "bad", "options": ["plot"]}]
        first, second = ask(waited_for(client), rows=rows).json()["answers"]
        assert list(first["probabilities"]) == ["yes", "no", "film"]
        assert second["probability"] == 1
        refused = ask(client, rows=[{"text": "good", "options": list("abcdef")}])
        assert refused.json()["error"]["type"] == "too_many_choices"
        assert (refused.json()["error"]["given"], refused.json()["error"]["allowed"]) == (6, 5)


def test_written_answers(folder: Path) -> None:
    changes = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": None}
    task = {**changes, "generation_kwargs": {"max_gen_toks": 4}, "metadata": None}
    with TestClient(server_of(save_student(folder / "writer", "decoder", task=task)).app) as client:
        (answer,) = ask(waited_for(client), texts=["good"]).json()["answers"]
        assert list(answer) == ["id", "choice"]


def test_a_classifier_names_its_classes(client: TestClient) -> None:
    error = ask(client, questions=[OWN]).json()["error"]
    assert error["type"] == "own_choices"
    assert "'good', 'bad', 'great'" in error["message"]
    assert error["allowed"] == ["negative", "positive"]


TOO_DEEP = b'{"rows":[{"text":"good","more":' + b"[" * 100 + b"]" * 100 + b"}]}"


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        (b"", 400, "not_json", "not valid JSON"),
        (b"[", 400, "not_json", "not valid JSON"),
        (b"texts=good", 400, "not_json", "not valid JSON"),
        (b'{"texts": ["a"]} {"texts": ["b"]}', 400, "not_json", "Extra data"),
        (b'{"texts": ["a\nb"]}', 400, "not_json", "control character"),
        (b'{"texts": ["\xff"]}', 400, "not_utf8", "from byte 12 on"),
        (b'{"texts": ["a"], "texts": ["b"]}', 400, "not_json", "'texts' twice"),
        (b'{"rows": [{"text": "a", "n": ' + b"9" * 3990 + b"}]}", 413, "body_too_large", "4,022 bytes"),
        (TOO_DEEP, 400, "not_json", "nests more than"),
        (b"[]", 422, "wrong_type", "The body is []; give an object"),
        (b"null", 422, "wrong_type", "The body is None"),
        (b"{}", 422, "wrong_fields", "nothing to answer"),
        (b'{"texts": null}', 422, "wrong_fields", "nothing to answer"),
        (b'{"texts": ["a"], "rows": [{"text": "a"}]}', 422, "wrong_fields", "the fields texts and rows"),
        (b'{"text": "good"}', 422, "unknown_field", "'text' is unknown; the fields are texts, rows, questions"),
        (b'{"texts": "good"}', 422, "wrong_type", "texts is 'good'; give a list"),
        (b'{"texts": []}', 422, "too_short", "texts has 0 items"),
        (b'{"texts": [["good"]]}', 422, "wrong_type", "texts[0] is ['good']; give a text"),
        (b'{"texts": ["a", 1]}', 422, "wrong_type", "texts[1] is 1; give a text"),
        (b'{"texts": [NaN]}', 422, "wrong_type", "texts[0] is nan"),
        (b'{"texts": [""]}', 422, "wrong_row", "no text"),
        (b'{"texts": ["\\ud800"]}', 422, "wrong_type", "texts[0]"),
        (b'{"rows": ["good"]}', 422, "wrong_type", "rows[0] is 'good'; give an object of column names"),
        (b'{"rows": [{"txt": "good"}]}', 422, "wrong_row", "is not in rows[0]"),
        (b'{"rows": [{"text": NaN}]}', 422, "wrong_row", "is NaN"),
        (b'{"rows": [{"text": 1e999}]}', 422, "wrong_row", "is infinite"),
        (b'{"rows": [{"text": "\\udc00"}]}', 422, "wrong_row", "surrogate"),
        (b'{"rows": [{"text": "good", "id": "\\udc00"}]}', 422, "wrong_row", "surrogate"),
        (b'{"questions": [{"prompt": "a"}]}', 422, "missing_field", "questions[0].choices is missing"),
        (b'{"questions": [{"prompt": "a", "choices": ["b"], "x": 1}]}', 422, "too_short", "choices has 1 items"),
        (
            b'{"questions": [{"prompt": "a", "choices": ["b", "c"], "x": 1}]}',
            422,
            "unknown_field",
            "id, prompt, choices",
        ),
        (b'{"questions": [{"prompt": "a", "choices": ["b", "c"], "id": 1.5}]}', 422, "wrong_type", "id is 1.5"),
    ],
)
def test_wrong_bodies(client: TestClient, body: bytes, status: int, kind: str, said: str) -> None:
    reply = client.post("/v1/decisions", content=body, headers={"Content-Type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)
    assert said in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": " ", "choices": ["a", "b"]}, "no text"),
        ({"prompt": "a", "choices": ["a", " "]}, "empty choice"),
        ({"prompt": "a", "choices": ["a", "a "]}, "more than once"),
    ],
)
def test_wrong_questions(words: TestClient, asked: Any, said: str) -> None:
    error = ask(words, questions=[asked]).json()["error"]
    assert error["type"] == "wrong_row"
    assert said in error["message"]


def test_control_characters_are_text(client: TestClient) -> None:
    assert ask(client, texts=["good\x00\x1b[31m film\x7f\u202e"]).status_code == 200


def test_digits_of_a_number_count_as_characters(client: TestClient) -> None:
    reply = ask(client, rows=[{"text": 10**150}])
    assert reply.status_code == 200
    assert ask(client, rows=[{"text": 10**250}]).json()["error"]["given"] == 251 + len("text")


@pytest.mark.parametrize(
    ("body", "given", "allowed"),
    [
        ({"texts": ["a"] * 7}, 7, 6),
        ({"texts": ["a" * 201]}, 201, 200),
        ({"rows": [{"text": "a", "more": ["b" * 100, {"c": "d" * 100}]}]}, 210, 200),
        ({"questions": [{"prompt": "a", "choices": list("abcdef")}]}, 6, 5),
    ],
)
def test_limits_say_what_was_given_and_what_is_allowed(
    client: TestClient, body: Any, given: int, allowed: int
) -> None:
    reply = ask(client, **body)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["given"], error["allowed"]) == (422, "too_long", given, allowed)
    assert f"{given:,}" in error["message"]


def test_messages_name_no_file(client: TestClient, classifier: Path) -> None:
    for body in ({"rows": [{"text": None}]}, {"rows": [{"txt": "a"}]}, {"texts": [" "]}):
        assert str(classifier.parent) not in ask(client, **body).text


def test_other_paths_methods_and_types(client: TestClient) -> None:
    assert client.post("/v1/decisions", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/v1/decisions", content=b"{}").status_code == 415
    reply = client.get("/v1/decisions")
    assert (reply.status_code, reply.json()["error"]["type"]) == (405, "no_such_method")
    reply = client.get("/v1/models")
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "no_such_path")
    assert "POST /v1/decisions" in reply.json()["error"]["message"]


def test_the_schema_has_the_limits(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()["paths"]["/v1/decisions"]["post"]["requestBody"]["content"]
    texts = schema["application/json"]["schema"]["properties"]["texts"]
    assert texts["anyOf"][0]["maxItems"] == 6


def test_a_key(classifier: Path) -> None:
    with TestClient(server_of(classifier, api_key="sesame").app) as client:
        waited_for(client)
        for headers in (
            {},
            {"Authorization": "Bearer other"},
            {"Authorization": "sesame"},
            {"Authorization": b"\xff"},
        ):
            reply = client.post("/v1/decisions", json={"texts": ["good"]}, headers=headers)
            assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "sesame" not in reply.text
        assert client.get("/metrics").status_code == 401
        right = {"Authorization": "Bearer sesame"}
        assert client.post("/v1/decisions", json={"texts": ["good"]}, headers=right).status_code == 200
        assert "sesame" not in client.get("/metrics", headers=right).text
        assert client.get("/openapi.json").status_code == 401
        schema = client.get("/openapi.json", headers=right)
        assert "/v1/decisions" in schema.json()["paths"]
        assert "sesame" not in schema.text
    assert "sesame" not in repr(ServeSettings("tiny", api_key="sesame"))


def metric(client: TestClient, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def test_metrics(classifier: Path) -> None:
    with TestClient(server_of(classifier).app) as client:
        waited_for(client)
        ask(client, texts=TEXTS)
        ask(client, texts=[])
        client.get("/somewhere")
        assert metric(client, "sinkd_rows_total") == 3
        assert metric(client, 'sinkd_decisions_total{decision="answer"}') == 3
        assert metric(client, 'sinkd_requests_total{path="/v1/decisions",status="200"}') == 1
        assert metric(client, 'sinkd_requests_total{path="/v1/decisions",status="422"}') == 1
        assert metric(client, 'sinkd_requests_total{path="other",status="404"}') == 1
        assert metric(client, 'sinkd_errors_total{type="too_short"}') == 1
        assert metric(client, "sinkd_queue_rows") == 0
        assert metric(client, "sinkd_request_seconds_count") == 2
        assert metric(client, "sinkd_batch_rows_count") == 1


class Held:
    """Stands in the place of the model's call, which waits for a word."""

    def __init__(self, server: StudentServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.came = threading.Event(), threading.Event()
        self.answer = server.student.answer_batch
        monkeypatch.setattr(server.student, "answer_batch", self)

    def __call__(self, ids: Sequence[Any], examples: Sequence[Any]) -> Any:
        self.came.set()
        assert self.go.wait(20)
        return self.answer(ids, examples)


def test_not_ready_before_the_first_answer(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(classifier)
    held = Held(server, monkeypatch)
    with TestClient(server.app) as client:
        assert held.came.wait(20)
        assert client.get("/health").status_code == 503
        reply = ask(client, texts=["good"])
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "not_ready")
        held.go.set()
        assert ask(waited_for(client), texts=["good"]).status_code == 200
    assert server.batcher.ready is False


def test_a_full_queue_and_a_late_answer(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(classifier, ServeLimits(max_batch=1, max_wait_ms=0, max_queue=2, max_rows=2, timeout_s=1.5))
    with TestClient(server.app) as client:
        waited_for(client)
        held = Held(server, monkeypatch)
        replies: list[Any] = []
        threads = [
            threading.Thread(target=lambda n=n: replies.append(ask(client, texts=["good"] * n))) for n in (1, 2)
        ]
        threads[0].start()
        assert held.came.wait(20)
        threads[1].start()
        while server.batcher.waiting < 2:
            threading.Event().wait(0.005)
        full = ask(client, texts=["bad"])
        assert (full.status_code, full.json()["error"]["type"]) == (429, "too_many_requests")
        assert int(full.headers["Retry-After"]) >= 1
        assert client.get("/health").status_code == 200
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in replies] == [503, 503]
        assert {reply.json()["error"]["type"] for reply in replies} == {"timeout"}
        assert server.batcher.waiting == 0
        held.go.set()
        assert ask(client, texts=["good"]).status_code == 200


def test_what_the_model_cannot_do_fails_its_request_alone(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(classifier)
    answer = server.student.answer_batch
    error: Exception = NonFiniteError("no number")

    def failing(ids: Sequence[Any], examples: Sequence[Any]) -> Any:
        if any("bad" in example.prompt for example in examples):
            raise error
        return answer(ids, examples)

    monkeypatch.setattr(server.student, "answer_batch", failing)
    with TestClient(server.app, raise_server_exceptions=False) as client:
        waited_for(client)
        assert ask(client, texts=["bad"]).json()["error"]["type"] == "model_failed"
        error = RuntimeError("CUDA out of memory")
        reply = ask(client, texts=["bad"])
        assert (reply.status_code, reply.json()["error"]["type"]) == (503, "memory_full")
        error = KeyError("a bug")
        reply = ask(client, texts=["bad"])
        assert (reply.status_code, reply.json()["error"]["type"]) == (500, "internal")
        assert "a bug" not in reply.text
        assert ask(client, texts=["good"]).status_code == 200
        assert metric(client, 'sinkd_requests_total{path="/v1/decisions",status="500"}') == 2
