"""The HTTP interface of a student: `POST /v1/decisions`, `GET /health`, `GET /metrics`, `GET /openapi.json`."""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sinkd_llm._version import __version__
from sinkd_llm.answering.student import Student
from sinkd_llm.errors import InputError, NonFiniteError
from sinkd_llm.library_errors import is_memory_full
from sinkd_llm.serving.asked import Asked, answer_records, warm_up
from sinkd_llm.serving.batching import Batcher
from sinkd_llm.serving.bodies import Bodies
from sinkd_llm.serving.counters import CONTENT_TYPE, Counters
from sinkd_llm.serving.limits import ServeLimits
from sinkd_llm.serving.refusals import Refusal

logger = logging.getLogger(__name__)

DECISIONS, HEALTH, METRICS, SCHEMA = "/v1/decisions", "/health", "/metrics", "/openapi.json"
# Of a request whose client has gone: no reply, and a word in the metrics. As nginx counts them.
_GONE = 499
# A body beyond the limit is read on, and dropped, for so many times the limit: a client that is cut off while it sends
# never reads why.
_DROPPED = 16


@dataclass(frozen=True)
class ServeSettings:
    """
    What a server is, beside its student.

    Args:
        name (`str`): of the model, in replies.
        limits ([`ServeLimits`]): what a client may ask.
        api_key (`str`, *optional*): a client has to send it as a bearer token.
    """

    name: str
    limits: ServeLimits = field(default_factory=ServeLimits)
    api_key: str | None = field(default=None, repr=False)


class StudentServer:
    """
    A student with a queue before it, and the application that fills the queue.

    Args:
        student ([`Student`]): who answers.
        settings ([`ServeSettings`]): name, limits and key.

    Attributes:
        app (`FastAPI`): the application. Its lifespan begins and ends the model's thread.
        batcher ([`Batcher`]): the queue.
        open_requests (`int`): requests for decisions that have no reply yet.
    """

    def __init__(self, student: Student, settings: ServeSettings) -> None:
        self.student, self.settings, self.limits = student, settings, settings.limits
        self._bodies = Bodies(student, self.limits)
        self._counters = Counters(lambda: self.batcher.waiting)
        self.batcher: Batcher[Asked, dict[str, Any]] = Batcher(
            lambda rows: answer_records(student, rows),
            lambda: warm_up(student),
            self.limits,
            self._counters.on_batch,
        )
        self.open_requests = 0
        # Bodies are parsed and rows rendered beside the event loop, which has to answer all the time.
        self._reader = ThreadPoolExecutor(1, "sinkd-reader")
        self.app = self._made_app()

    def _made_app(self) -> FastAPI:
        app = FastAPI(
            title="sinkd",
            version=__version__,
            lifespan=self._lifespan,
            # Their pages load scripts from elsewhere, and their schema asks for no key.
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
        )
        allowed = [Depends(self._check_key)]
        schema = {"application/json": {"schema": self._bodies.model.model_json_schema()}}
        app.add_api_route(
            DECISIONS,
            self.decide,
            methods=["POST"],
            dependencies=allowed,
            openapi_extra={"requestBody": {"content": schema, "required": True}},
        )
        app.add_api_route(HEALTH, self.health)
        app.add_api_route(METRICS, self.metrics, dependencies=allowed)
        app.add_api_route(SCHEMA, self.schema, dependencies=allowed, include_in_schema=False)
        app.add_exception_handler(Refusal, self._refused)
        app.add_exception_handler(HTTPException, self._refused)
        app.add_exception_handler(Exception, self._failed)
        app.add_middleware(_Counted, counters=self._counters)
        return app

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.batcher.start()
        yield
        await asyncio.to_thread(self.batcher.stop, self.limits.timeout_s)
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def decide(self, request: Request) -> Response:
        """Answer the rows of a request, in their order."""
        kind = request.headers.get("content-type", "")
        if kind.split(";")[0].strip().lower() != "application/json":
            raise Refusal(
                415, "not_json", f"The Content-Type is {kind or 'missing'!r}; send application/json.", given=kind
            )
        if self.open_requests >= self.limits.max_queue:
            raise Refusal(
                429,
                "too_many_requests",
                f"{self.open_requests:,} requests are being answered, the most at a time; try again later.",
                allowed=self.limits.max_queue,
                retry_after=self.batcher.retry_after(),
            )
        self.open_requests += 1
        received = False
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                body = await self._body(request)
                received = True
                loop = asyncio.get_running_loop()
                rows = await loop.run_in_executor(self._reader, self._bodies.read, body)
                answers = await self._answers(request, rows)
        except TimeoutError:
            raise self._late(received) from None
        except ClientDisconnect:
            self._counters.errors.labels("disconnected").inc()
            return Response(status_code=_GONE)
        finally:
            self.open_requests -= 1
        self._count(answers)
        model_sum = self.student.facts.model_sum
        return JSONResponse(
            {
                "model": self.settings.name,
                "model_sum": model_sum,
                "version": __version__,
                "task": self.student.task.name,
                "answers": answers,
            }
        )

    async def _body(self, request: Request) -> bytes:
        most = self.limits.max_body_bytes
        body, size = bytearray(), 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                body += chunk
            elif size > _DROPPED * most:
                break
        if size > most:
            cut_off = size > _DROPPED * most
            raise Refusal(
                413,
                "body_too_large",
                f"The body has {'more than ' if cut_off else ''}{size:,} bytes, and may have {most:,}; send fewer "
                "rows at once.",
                given=size,
                allowed=most,
                closes=cut_off,
            )
        return bytes(body)

    async def _answers(self, request: Request, rows: list[Asked]) -> list[dict[str, Any]]:
        """The answers; rows of a client that goes, or of a request that takes too long, leave the queue."""
        answers = asyncio.wrap_future(self.batcher.submit(rows))
        gone = asyncio.create_task(_disconnected(request))
        try:
            watched: list[asyncio.Future[Any]] = [answers, gone]
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                raise ClientDisconnect
            return answers.result()
        except InputError as error:
            if isinstance(error, NonFiniteError):
                logger.warning("%s", error)
                raise Refusal(500, "model_failed", str(error)) from error
            raise self._bodies.wrong_row(error) from error
        except (RuntimeError, MemoryError) as error:
            if not is_memory_full(error):
                raise
            raise Refusal(503, "memory_full", "The memory of the server is full; send shorter rows.") from error
        finally:
            answers.cancel()
            gone.cancel()

    def _late(self, received: bool) -> Refusal:
        limit = self.limits.timeout_s
        if not received:
            message = f"The body was not here after {limit:g} seconds; send it faster."
            return Refusal(408, "slow_body", message, allowed=limit, closes=True)
        return Refusal(
            503,
            "timeout",
            f"The rows were not answered within {limit:g} seconds, and are given up; try again later.",
            allowed=limit,
            retry_after=self.batcher.retry_after(),
        )

    def _count(self, answers: list[dict[str, Any]]) -> None:
        self._counters.rows.inc(len(answers))
        for answer in answers:
            if "decision" in answer:
                self._counters.decisions.labels(answer["decision"]).inc()

    async def health(self) -> Response:
        """200 once rows are taken; 503 while the server warms up, or stops."""
        ready = self.batcher.ready
        content = {"status": "ready" if ready else "not ready", "model": self.settings.name}
        content |= {"task": self.student.task.name, "version": __version__}
        return JSONResponse(content, 200 if ready else 503)

    async def metrics(self) -> Response:
        """What was counted, as Prometheus reads it."""
        return Response(self._counters.as_text(), media_type=CONTENT_TYPE)

    async def schema(self) -> Response:
        """What the other paths take and give, with the limits in force, as OpenAPI says it."""
        return JSONResponse(self.app.openapi())

    async def _check_key(
        self, given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
    ) -> None:
        key = self.settings.api_key
        if key is None:
            return
        token = "" if given is None else given.credentials
        if not hmac.compare_digest(token.encode(), key.encode()):
            what = "no bearer token" if given is None else "another key than the server's"
            raise Refusal(401, "not_allowed", f"The request has {what}; send 'Authorization: Bearer <key>'.")

    async def _refused(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            words = {404: "There is nothing at this path", 405: "This path does not take this method"}
            places = f"POST {DECISIONS}, GET {HEALTH}, GET {METRICS}, GET {SCHEMA}"
            said = f"{words.get(error.status_code, error.detail)}; there are {places}."
            error = Refusal(error.status_code, "no_such_method" if error.status_code == 405 else "no_such_path", said)
        assert isinstance(error, Refusal)
        self._counters.errors.labels(error.kind).inc()
        return JSONResponse(error.content(), error.status, error.headers())

    async def _failed(self, request: Request, error: Exception) -> Response:
        self._counters.errors.labels("internal").inc()
        refusal = Refusal(500, "internal", "The server failed at this request; its log says why.")
        return JSONResponse(refusal.content(), refusal.status)


async def _disconnected(request: Request) -> None:
    """Returns when the client has gone; before, only what is not looked at comes in."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Counted:
    """Counts requests by path and status, and takes the time of those for decisions."""

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self._app, self._counters = app, counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 500, time.perf_counter()

        async def noticed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noticed)
        finally:
            path = scope["path"] if scope["path"] in (DECISIONS, HEALTH, METRICS) else "other"
            self._counters.requests.labels(path, str(status)).inc()
            if path == DECISIONS:
                self._counters.seconds.observe(time.perf_counter() - start)
