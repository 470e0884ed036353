"""One request to a server: repeated where that helps, and what goes wrong told apart.

The key is read from the environment when a client is made. It stands in the header of its requests and nowhere else.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from sinkd_llm.errors import InputError, first_line, nearest
from sinkd_llm.secrets import MASK
from sinkd_llm.teachers.served.server import KEY_VARIABLES, Server, api_key
from sinkd_llm.values import listed

Sleep = Callable[[float], Awaitable[None]]
# Is told why is waited, in a sentence.
OnWait = Callable[[str], None]

# Seconds between two tries: 0.5 and twice as much each time, up to a minute, and up to a second more by chance, so
# that requests that failed together do not come back together.
_BACK_OFF = wait_exponential_jitter(multiplier=0.5, max=60, jitter=1)
# A server that asks for a longer pause than this is not waited for as long.
_LONGEST_PAUSE = 600.0
# Tries of a request whose replies have no text: a filter takes it each time.
_TRIES_FOR_TEXT = 3
# Seconds of waiting of which nothing is said, and between two lines about it.
_SILENT, _BETWEEN_LINES = 4.0, 10.0
# Of HTTP, where a request may be refused for what is in it, while others pass; 200 where an error came as a reply.
_OF_ONE_REQUEST = (200, 400, 413, 422)
_TOO_LONG = re.compile(
    r"context.{0,12}(length|window|size)|maximum.{0,24}(length|tokens)|(prompt|input|sequence).{0,16}too long"
    r"|exceed.{0,40}(context|tokens|n_ctx)",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"model.{0,120}(not exist|not found|unknown|no such|not available)", re.IGNORECASE)


class RequestRefused(Exception):
    """
    The server took the request and refused what is in it (400, 404, 422, …): the same request would fail again.

    Args:
        status (`int`): of HTTP; 200 where an error came as a reply.
        message (`str`): what the server said, on one line, without secrets.
        code (`str`): the server's name of the error, or `""`.
    """

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code

    @property
    def too_long(self) -> bool:
        """Whether the prompt is longer than the model reads."""
        return self.code == "context_length_exceeded" or bool(_TOO_LONG.search(self.message))

    @property
    def of_one_request(self) -> bool:
        """Whether other requests may pass."""
        return self.status in _OF_ONE_REQUEST and not self.no_model

    @property
    def no_model(self) -> bool:
        """Whether the server has no model of the name that was asked for."""
        return self.code == "model_not_found" or bool(_NO_MODEL.search(self.message))


class Unavailable(Exception):
    """
    No answer, for a reason that may pass: a full or failing server, no reply in time, a cut connection.

    Args:
        why (`str`): the reason, as the end of a sentence.
        status (`int`, *optional*): of HTTP, if there was a reply.
        pause (`float`, *optional*): seconds that the server asks to wait.
    """

    def __init__(self, why: str, status: int | None = None, pause: float | None = None) -> None:
        super().__init__(why)
        self.why, self.status, self.pause = why, status, pause


class NoAnswer(Unavailable):
    """A reply without text, again after some tries."""


class BudgetSpent(Exception):
    """One request more than `max_requests` was to be sent."""


class Client:
    """
    Sends requests to a server; an asynchronous context.

    Args:
        server ([`Server`]): to which, and how patiently.
        sleep (`Callable`, *optional*): waits between two tries.
        budget (`int`, *optional*): the most requests.
        known (`bool`, *optional*, defaults to `False`): whether the address has answered as an API before, so that a
            web page in place of a reply is of a proxy, and passes.
        on_wait (`Callable`, *optional*): is told now and then why a request is repeated.

    Attributes:
        sent (`int`): requests so far, repeated ones included, without those for the list of models.
    """

    def __init__(
        self,
        server: Server,
        sleep: Sleep = asyncio.sleep,
        budget: int | None = None,
        *,
        known: bool = False,
        on_wait: OnWait = lambda text: None,
    ) -> None:
        self.server, self.sent = server, 0
        self._budget, self._sleep, self._known, self._on_wait = budget, sleep, known, on_wait
        self._said_at = -_BETWEEN_LINES
        self._ending = asyncio.Event()
        self._key = api_key()
        headers = {"Authorization": f"Bearer {self._key[0]}"} if self._key else {}
        self._http = httpx2.AsyncClient(
            base_url=f"{server.url}/",
            headers=headers,
            timeout=None,  # `_once` bounds the whole request; the bounds here would be for each piece of a reply
            limits=httpx2.Limits(max_connections=None),
            # Reading the system's certificates takes longer than most requests; without TLS there is nothing to check.
            verify=server.url.startswith("https:"),
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        where: str,
        check: Callable[[dict[str, Any]], None] = lambda reply: None,
    ) -> dict[str, Any]:
        """
        The reply to a call.

        Args:
            path (`str`): of the call, after the server's address.
            body (`Mapping`): what is asked.
            where (`str`): the row that it is about, for messages.
            check (`Callable`, *optional*): raises [`NoAnswer`] for a reply that should be asked for again.

        Raises:
            RequestRefused: if the server refuses what is in the request.
            Unavailable: if it gave no answer, after all repetitions.
            BudgetSpent: instead of a request that is one too many.
            InputError: if no request to this address can succeed: a key is missing, it is a web page, …
        """
        return await self._repeated("POST", path, body, where, check)

    def end(self) -> None:
        """From now on no request is sent, nor repeated; those under way come to their end."""
        self._ending.set()

    async def models(self) -> list[str]:
        """The names of the server's models; empty if it lists none."""
        try:
            reply = await self._repeated("GET", "models", None, "the list of models")
        except RequestRefused:
            return []
        entries = reply.get("data")
        found = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        return [name for name in found if isinstance(name, str)]

    async def explained(self, error: RequestRefused | Unavailable, where: str, model: str) -> InputError:
        """What to do about a request that failed, as the error that a user reads."""
        url = self.server.shown_url
        if isinstance(error, NoAnswer):
            return InputError(
                f"The server {url} gives replies without text, the last for {where}: {error.why}. Look into its log: "
                "a content filter, an overloaded gateway, or a model that thinks until its tokens are used up."
            )
        if isinstance(error, Unavailable):
            return InputError(
                f"The server {url} gave no answer for {where} in {self.server.retries + 1} tries: {error.why}. Look "
                "whether it runs, and lower teacher_concurrency if it is overloaded; the same command goes on where "
                "this one ended."
            )
        if error.too_long:
            return InputError(
                f"The prompt of {where} is longer than the model on {url} reads ({error.message}); shorten it (fewer "
                "examples, another template), or start the server with a longer context."
            )
        if error.no_model:
            try:
                names = await self.models()
            except Unavailable:
                names = []
            there = f"It has {listed(names)}." if names else "It lists no models."
            return InputError(f"The server {url} has no model {model!r}. {there}{nearest(model, names)}")
        return InputError(
            f"The server {url} refuses the request for {where} ({error.status}: {error.message}); look into its "
            "documentation for what it takes, or give another teacher_way."
        )

    async def _repeated(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        where: str,
        check: Callable[[dict[str, Any]], None] = lambda reply: None,
    ) -> dict[str, Any]:
        def passes(error: BaseException) -> bool:
            return isinstance(error, Unavailable) and not self._ending.is_set()

        retrying = AsyncRetrying(
            stop=self._tried_enough,
            wait=_pause,
            retry=retry_if_exception(passes),
            before_sleep=self._say_why,
            sleep=self._rest,
            reraise=True,
        )
        return await retrying(self._once, method, path, body, where, check)

    def _tried_enough(self, state: RetryCallState) -> bool:
        tries = self.server.retries + 1
        if state.outcome is not None and isinstance(state.outcome.exception(), NoAnswer):
            tries = min(tries, _TRIES_FOR_TEXT)
        return state.attempt_number >= tries

    def _say_why(self, state: RetryCallState) -> None:
        """Says why is waited: not of a moment, nor of each of the requests that wait for the same."""
        error, now = state.outcome.exception() if state.outcome else None, time.monotonic()
        pause = state.next_action.sleep if state.next_action else 0.0
        waited = (state.seconds_since_start or 0.0) + pause
        if not isinstance(error, Unavailable) or waited < _SILENT or now - self._said_at < _BETWEEN_LINES:
            return
        self._said_at = now
        self._on_wait(
            f"The server {self.server.shown_url} gives no answer ({error.why}); trying again in {pause:.0f} s "
            f"({state.attempt_number} of {self.server.retries})"
        )

    async def _once(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        where: str,
        check: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        if self._ending.is_set():
            raise Unavailable("another request has failed for good")
        if method == "POST":
            if self._budget is not None and self.sent >= self._budget:
                raise BudgetSpent
            self.sent += 1
        try:
            async with asyncio.timeout(self.server.timeout_s):
                reply = await self._http.request(method, path, json=body)
        except TimeoutError:
            raise Unavailable(f"no reply within {self.server.timeout_s:g} seconds") from None
        except httpx2.ConnectError as error:
            raise Unavailable(f"it cannot be reached ({self._said(str(error))})") from error
        except httpx2.RequestError as error:
            raise Unavailable(f"the connection was cut ({self._said(str(error))})") from error
        content = self._content(reply, where)
        self._known = True
        check(content)
        return content

    async def _rest(self, seconds: float) -> None:
        """Waits, but not beyond the end."""
        waits = [asyncio.ensure_future(self._sleep(seconds)), asyncio.ensure_future(self._ending.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _content(self, reply: httpx2.Response, where: str) -> dict[str, Any]:
        status, url = reply.status_code, self.server.shown_url
        if 300 <= status < 400:
            to = self._said(reply.headers.get("location", "nowhere"))
            raise InputError(
                f"The server {url} sends requests on to {to} ({status}). Give the address of the API itself as "
                "teacher_url; a key is not sent on."
            )
        page = "html" in reply.headers.get("content-type", "") or reply.content.lstrip()[:1] == b"<"
        if status < 300 and page:
            if self._known:
                raise Unavailable("it said 200 with a web page", status)
            raise InputError(
                f"{url} answers with a web page, not with the replies of an API; give the address of the API, which "
                "mostly ends in /v1."
            )
        try:
            content = json.loads(reply.content)
        except (ValueError, RecursionError):
            content = None
        message, code = self._error(content, reply)
        if status in (401, 403):
            raise self._key_refused(status, message)
        if status == 429 and "quota" in f"{code} {message}".lower():
            raise InputError(f"The server {url} says that the account is used up ({message}); nothing more is asked.")
        if status in (408, 425, 429) or status >= 500:
            raise Unavailable(f"it said {status}: {message}", status, _asked_pause(reply))
        if status >= 300 or (isinstance(content, dict) and content.get("error")):
            raise RequestRefused(status, message, code)
        if content is None:
            raise Unavailable("its reply is no whole JSON", status)
        if not isinstance(content, dict):
            if self._known:
                raise Unavailable("its reply is JSON, but not an object", status)
            raise InputError(f"The reply of {url} for {where} is JSON, but not an object; give the address of an API.")
        return content

    def _key_refused(self, status: int, message: str) -> InputError:
        url = self.server.shown_url
        if self._key is None:
            return InputError(
                f"The server {url} asks for a key ({status}); set the environment variable {KEY_VARIABLES[0]} (or "
                f"{KEY_VARIABLES[1]})."
            )
        return InputError(
            f"The server {url} refuses the key in the environment variable {self._key[1]} ({status}: {message}); set "
            "it to a key that may use this model."
        )

    def _error(self, content: Any, reply: httpx2.Response) -> tuple[str, str]:
        """What a server says of an error, and its name of it: servers put them in four places."""
        inner = content.get("error") if isinstance(content, dict) else None
        entry = inner if isinstance(inner, dict) else content if isinstance(content, dict) else {}
        said = inner if isinstance(inner, str) else entry.get("message") or entry.get("detail") or reply.reason_phrase
        return self._said(said if isinstance(said, str) else json.dumps(said)), str(entry.get("code") or "")

    def _said(self, text: str) -> str:
        """Text that a server gave, for a message. Some repeat the key."""
        if self._key is not None:
            text = text.replace(self._key[0], MASK)
        return first_line(ValueError(text or "no reason given"))


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: what the server asks for, and at least what grows with each try."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.pause if isinstance(error, Unavailable) else None
    return max(min(asked or 0.0, _LONGEST_PAUSE), _BACK_OFF(state))


def _asked_pause(reply: httpx2.Response) -> float | None:
    """`Retry-After`: seconds, or a date."""
    value = reply.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
