"""Rows of many requests, answered together by one thread: a bounded queue, and batches of what waits in it."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import groupby
from typing import Generic, TypeVar

from sinkd_llm.serving.limits import ServeLimits
from sinkd_llm.serving.refusals import Refusal

Row = TypeVar("Row")
Answer = TypeVar("Answer")
# Before the first batch nothing is known of how fast rows are answered.
_FIRST_GUESS_S = 0.01
# The newest batch's share in what is known of that.
_NEWEST = 0.2
_LONGEST_RETRY_S = 60


class _Request(Generic[Row, Answer]):
    """The rows of a request, of which the first `taken` are out of the queue."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.future: Future[list[Answer]] = Future()
        self.answers: dict[int, Answer] = {}
        self.taken = 0
        self.since = time.monotonic()


_Batch = list[tuple[_Request[Row, Answer], int]]


class Batcher(Generic[Row, Answer]):
    """
    A thread that answers rows, in batches and in the order in which they came.

    Args:
        answer (`Callable`): answers some rows, in their order. Called in the thread alone, as `prepare` is.
        prepare (`Callable`): called before the first rows are taken, such as a first forward, which is slow.
        limits ([`ServeLimits`]): `max_batch`, `max_wait_ms` and `max_queue` of it.
        on_batch (`Callable`): called with the number of rows of every batch, and the seconds that it took.

    Attributes:
        ready (`bool`): whether rows are taken.
        waiting (`int`): rows in the queue.
        failure (`Exception`, *optional*): what `prepare` raised.
        on_failure (`Callable`): called in the thread if `prepare` fails.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Row]], Sequence[Answer]],
        prepare: Callable[[], None],
        limits: ServeLimits,
        on_batch: Callable[[int, float], None],
    ) -> None:
        self._answer_rows, self._prepare, self._limits, self._on_batch = answer, prepare, limits, on_batch
        self._condition = threading.Condition()
        self._requests: deque[_Request[Row, Answer]] = deque()
        self._stopping = False
        self._row_s = _FIRST_GUESS_S
        # It must not keep a process alive whose model does not come back.
        self._thread = threading.Thread(target=self._run, name="sinkd-model", daemon=True)
        self.ready, self.waiting = False, 0
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begin: `prepare`, and then rows."""
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Take no more rows, answer those that wait, and end, or give up after some seconds."""
        with self._condition:
            self._stopping, self.ready = True, False
            self._condition.notify_all()
        self._thread.join(seconds)

    def submit(self, rows: Sequence[Row]) -> "Future[list[Answer]]":
        """
        Put the rows of a request into the queue: all, or none.

        Args:
            rows (sequence): at least one.

        Returns:
            `Future`: of their answers. Cancelling it takes the rows out of the queue again.

        Raises:
            Refusal: while the thread is not ready, and if the queue has no room for all rows.
        """
        request: _Request[Row, Answer] = _Request(rows)
        with self._condition:
            if not self.ready:
                what = "is stopping" if self._stopping else "is warming up"
                raise Refusal(503, "not_ready", f"The server {what}; try again later.", retry_after=1)
            if self.waiting + len(rows) > self._limits.max_queue:
                raise Refusal(
                    429,
                    "queue_full",
                    f"{self.waiting:,} rows wait for an answer, and the queue holds {self._limits.max_queue:,}; try "
                    "again later.",
                    given=self.waiting + len(rows),
                    allowed=self._limits.max_queue,
                    retry_after=self.retry_after(),
                )
            self._requests.append(request)
            self.waiting += len(rows)
            self._condition.notify()
        request.future.add_done_callback(partial(self._forget, request))
        return request.future

    def retry_after(self) -> int:
        """Whole seconds after which half of the rows that wait now are answered."""
        return min(max(math.ceil(self.waiting * self._row_s / 2), 1), _LONGEST_RETRY_S)

    def _forget(self, request: _Request[Row, Answer], _: "Future[list[Answer]]") -> None:
        """Of a request that was given up, or failed, nothing may stay in the queue."""
        with self._condition:
            if request.taken < len(request.rows) and request in self._requests:
                self._requests.remove(request)
                self.waiting -= len(request.rows) - request.taken

    def _run(self) -> None:
        try:
            self._prepare()
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        with self._condition:
            self.ready = not self._stopping
        while batch := self._next():
            start = time.monotonic()
            self._answer(batch)
            seconds = time.monotonic() - start
            self._row_s += _NEWEST * (seconds / len(batch) - self._row_s)
            self._on_batch(len(batch), seconds)

    def _next(self) -> _Batch[Row, Answer]:
        """The rows to answer next; none once there are none and there will be none."""
        with self._condition:
            while True:
                if not self._requests:
                    if self._stopping:
                        return []
                    self._condition.wait()
                    continue
                wait_s = self._requests[0].since + self._limits.max_wait_ms / 1000 - time.monotonic()
                if wait_s <= 0 or self._stopping or self.waiting >= self._limits.max_batch:
                    return self._take()
                self._condition.wait(wait_s)

    def _take(self) -> _Batch[Row, Answer]:
        batch: _Batch[Row, Answer] = []
        while self._requests and len(batch) < self._limits.max_batch:
            request = self._requests[0]
            batch.append((request, request.taken))
            request.taken += 1
            self.waiting -= 1
            if request.taken == len(request.rows):
                self._requests.popleft()
        return batch

    def _answer(self, batch: _Batch[Row, Answer]) -> None:
        batch = [(request, i) for request, i in batch if not request.future.done()]
        if not batch:
            return
        try:
            answers = self._answer_rows([request.rows[i] for request, i in batch])
        except Exception as error:
            requests = [list(rows) for _, rows in groupby(batch, key=lambda one: id(one[0]))]
            if len(requests) > 1:  # a row of one client fails no other client's
                for rows in requests:
                    self._answer(rows)
            elif batch[0][0].future.set_running_or_notify_cancel():
                batch[0][0].future.set_exception(error)
            return
        for (request, i), answer in zip(batch, answers, strict=True):
            request.answers[i] = answer
            if len(request.answers) == len(request.rows) and request.future.set_running_or_notify_cancel():
                request.future.set_result([request.answers[j] for j in range(len(request.rows))])
