"""A small server that speaks the protocol of OpenAI about a made-up language model, also wrongly."""

import json
import math
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

# What a reply is replaced by: a status, headers, and the body.
Reply = tuple[int, dict[str, str], bytes]
# One of these is the likeliest token everywhere.
LIKELIEST = (" the", " a", " of", " it", " and", " so", " as")


def tokens_of(text: str) -> list[str]:
    """Words with the white space before them."""
    return re.findall(r"\s*\w+|\s*[^\w\s]|\s+$", text)


def logprob(before: str, token: str) -> float:
    """Of a token after another one: not normalised, and never above -1."""
    return -1 - zlib.crc32(f"{before}|{token}".encode()) % 4000 / 1000


def likeliest(before: str) -> tuple[str, float]:
    """The likeliest token after another one, and its log-probability, above -1."""
    number = zlib.crc32(before.encode())
    return LIKELIEST[number % len(LIKELIEST)], -0.1 - number % 900 / 1000


@dataclass
class LanguageServer:
    """
    What a test sets, and what it looks at.

    Attributes:
        style (`str`): whose replies to `echo` are given: `"vllm"`, `"sglang"`, `"llama-cpp-python"`, the same
            `"shifted"`, `"llama-server"` (which repeats nothing), `"chat"` (no completions).
        model (`str`): what the server calls its model.
        top (`Callable`): the likeliest tokens after a prompt and their probabilities.
        says (`Callable`): the answer to a prompt, and the number of the request.
        fault (`Callable`): what stands in place of the reply to a request, by its number from 0 and its body; `None`:
            nothing. `b"hang"` and `b"cut"` as bodies are what they say.
        spoil (`Callable`): changes a right reply.
        requests (`list`): path, body and headers of the requests, without those for the models.
    """

    url: str = ""
    style: str = "vllm"
    model: str = "toy"
    models: tuple[str, ...] = ("toy",)
    top: Callable[[str], dict[str, float]] | None = None
    says: Callable[[str, int], str] = lambda prompt, number: "good"
    fault: Callable[[int, dict[str, Any]], Reply | None] = lambda number, body: None
    spoil: Callable[[int, dict[str, Any]], None] = lambda number, reply: None
    most_answers: int = 1
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)
    under_way: int = 0
    most_under_way: int = 0

    def reply(self, path: str, body: dict[str, Any], number: int) -> dict[str, Any] | None:
        if path == "/v1/completions" and self.style != "chat":
            return self._completion(body, number)
        if path == "/v1/chat/completions":
            return self._chat(body, number)
        return None

    def _completion(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        text = body["prompt"]
        tokens = tokens_of(text)
        if "logprobs" in body and self.top is not None and not body.get("echo"):
            top = {token: math.log(p) for token, p in list(self.top(text).items())[: body["logprobs"]]}
            logprobs = {"tokens": [next(iter(top))], "token_logprobs": [max(top.values())], "top_logprobs": [top]}
            usage = {"prompt_tokens": len(tokens), "completion_tokens": 1}
            return {"model": self.model, "choices": [{"text": "", "logprobs": logprobs}], "usage": usage}
        if "logprobs" not in body:
            return self._answers(text, body, number, lambda said: {"text": said})
        next_token, next_number = likeliest(tokens[-1])
        whole = ["<s>", *tokens, next_token]
        numbers = [None, *(logprob(a, b) for a, b in pairwise(whole[:-1])), next_number]
        tops = [None, *({**dict([likeliest(a)]), b: logprob(a, b)} for a, b in pairwise(whole[:-1]))]
        tops.append({next_token: next_number})
        said = text + next_token
        start = {"vllm": 0, "sglang": 0}.get(self.style, 1)
        if not body.get("echo") or self.style == "llama-server":
            start, said = len(whole) - 1, next_token
        elif self.style == "shifted":  # the number beside each token is of the place after it
            numbers, tops, whole = numbers[1:], tops[1:], whole[:-1]
        offsets = [-1 if self.style == "sglang" else len("".join(whole[:i])) for i in range(len(whole))]
        lists = {"tokens": whole, "token_logprobs": numbers, "top_logprobs": tops, "text_offset": offsets}
        logprobs = {name: values[start:] for name, values in lists.items()}
        usage = {"prompt_tokens": len(tokens) + 1, "completion_tokens": 1}
        return {"model": self.model, "choices": [{"text": said, "logprobs": logprobs}], "usage": usage}

    def _chat(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        if body.get("logprobs") and self.top is not None:
            top = [{"token": token, "logprob": math.log(p)} for token, p in self.top(prompt).items()]
            content = [{**top[0], "top_logprobs": top[: body["top_logprobs"]]}]
            message = {"message": {"content": top[0]["token"]}, "logprobs": {"content": content}}
            return {"model": self.model, "choices": [message], "usage": {"prompt_tokens": len(tokens_of(prompt))}}
        return self._answers(prompt, body, number, lambda said: {"message": {"content": said}})

    def _answers(
        self, prompt: str, body: dict[str, Any], number: int, choice: Callable[[str], dict[str, Any]]
    ) -> dict[str, Any]:
        count = min(body.get("n", 1), self.most_answers)
        choices = [choice(self.says(prompt, number)) for _ in range(count)]
        return {"model": self.model, "choices": choices, "usage": {"prompt_tokens": len(tokens_of(prompt))}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        state = self.server.state  # type: ignore[attr-defined]
        fault = state.fault(-1, {})
        listed = {"data": [{"id": name} for name in state.models]}
        self._send(*(fault or (200, {}, json.dumps(listed).encode())))

    def do_POST(self) -> None:
        state: LanguageServer = self.server.state  # type: ignore[attr-defined]
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with state.lock:
            number = len(state.requests)
            state.requests.append((self.path, body, {k.lower(): v for k, v in self.headers.items()}))
            state.under_way += 1
            state.most_under_way = max(state.most_under_way, state.under_way)
        try:
            self._answer(state, body, number)
        finally:
            with state.lock:
                state.under_way -= 1

    def _answer(self, state: LanguageServer, body: dict[str, Any], number: int) -> None:
        fault = state.fault(number, body)
        if fault is not None:
            if fault[2] == b"hang":
                state.released.wait(5)
                self.close_connection = True
                return
            self._send(*fault)
            return
        reply = state.reply(self.path, body, number)
        if reply is None:
            self._send(404, {}, b'{"detail": "Not Found"}')
            return
        state.spoil(number, reply)
        self._send(200, {}, json.dumps(reply).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        cut = content == b"cut"
        sent = {"content-type": "application/json", "content-length": str(len(content) + 100 * cut), **headers}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection |= cut

    def log_message(self, *args: Any) -> None:
        pass


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # more connections at once than these wait for a second


@contextmanager
def language_server(**settings: Any) -> Iterator[LanguageServer]:
    """A server in a thread, on a free port of this machine."""
    state = LanguageServer(**settings)
    with _Http(("127.0.0.1", 0), _Handler) as http:
        http.state = state  # type: ignore[attr-defined]
        state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            http.shutdown()
            thread.join()
