"""Rows of many requests in one thread: what shares a batch, what leaves the queue, what an error takes along."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError

import pytest

from sinkd_llm.serving.batching import Batcher
from sinkd_llm.serving.limits import ServeLimits
from sinkd_llm.serving.refusals import Refusal


class Model:
    """Doubles numbers, when it may, and keeps what it was asked together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.came, self.may = threading.Semaphore(0), threading.Semaphore(0)

    def answer(self, rows: Sequence[int]) -> list[int]:
        self.batches.append([*rows])
        self.came.release()
        assert self.may.acquire(timeout=10)
        if any(row < 0 for row in rows):
            raise ValueError(f"{min(rows)} is negative")
        return [2 * row for row in rows]

    def let(self, batches: int = 1) -> None:
        for _ in range(batches):
            self.may.release()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher[int, int]]:
    limits = ServeLimits(max_batch=3, max_wait_ms=0, max_queue=6, max_rows=6)
    found: Batcher[int, int] = Batcher(model.answer, lambda: None, limits, lambda rows, seconds: None)
    found.start()
    while not found.ready:
        time.sleep(0.001)
    yield found
    model.let(100)
    found.stop(10)


def test_rows_that_come_while_the_model_works_share_its_next_batch(batcher: Batcher[int, int], model: Model) -> None:
    first = batcher.submit([1])
    assert model.came.acquire(timeout=10)
    others = [batcher.submit([n, n + 1]) for n in (2, 4, 6)]
    assert batcher.waiting == 6
    model.let(3)
    assert first.result(10) == [2]
    assert [other.result(10) for other in others] == [[4, 6], [8, 10], [12, 14]]
    assert model.batches == [[1], [2, 3, 4], [5, 6, 7]]
    assert batcher.waiting == 0


def test_a_full_queue_takes_a_request_whole_or_not(batcher: Batcher[int, int], model: Model) -> None:
    batcher.submit([1])
    assert model.came.acquire(timeout=10)
    batcher.submit([2, 3, 4, 5])
    with pytest.raises(Refusal) as refused:
        batcher.submit([6, 7, 8])
    assert (refused.value.status, refused.value.given, refused.value.allowed) == (429, 7, 6)
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1
    assert batcher.waiting == 4
    model.let(3)
    assert batcher.submit([6]).result(10) == [12]


def test_what_is_given_up_leaves_the_queue(batcher: Batcher[int, int], model: Model) -> None:
    first = batcher.submit([1])
    assert model.came.acquire(timeout=10)
    given_up, other = batcher.submit([2, 3, 4, 5]), batcher.submit([6])
    assert given_up.cancel()
    assert batcher.waiting == 1
    assert first.cancel()  # the model has it already; nobody is told
    model.let(2)
    assert other.result(10) == [12]
    assert model.batches == [[1], [6]]
    with pytest.raises(CancelledError):
        first.result(0)


def test_a_request_that_is_given_up_half_answered_leaves_the_queue(batcher: Batcher[int, int], model: Model) -> None:
    half = batcher.submit([1, 2, 3, 4, 5])
    assert model.came.acquire(timeout=10)
    assert batcher.waiting == 2
    half.cancel()
    assert batcher.waiting == 0
    model.let()
    model.let()
    assert batcher.submit([9]).result(10) == [18]
    assert model.batches == [[1, 2, 3], [9]]


def test_an_error_is_of_its_own_request(batcher: Batcher[int, int], model: Model) -> None:
    batcher.submit([1])
    assert model.came.acquire(timeout=10)
    good, bad, last = batcher.submit([2]), batcher.submit([-3, 4, 5]), batcher.submit([6])
    model.let(100)
    with pytest.raises(ValueError, match="-3 is negative"):
        bad.result(10)
    assert (good.result(10), last.result(10)) == ([4], [12])
    assert batcher.waiting == 0
    assert model.batches == [[1], [2, -3, 4], [2], [-3, 4], [6]]


def test_rows_wait_for_others(model: Model) -> None:
    limits = ServeLimits(max_batch=3, max_wait_ms=10_000)
    batcher: Batcher[int, int] = Batcher(model.answer, lambda: None, limits, lambda rows, seconds: None)
    batcher.start()
    while not batcher.ready:
        time.sleep(0.001)
    model.let(2)
    found = [batcher.submit([n]) for n in range(3)]
    assert [one.result(5) for one in found] == [[0], [2], [4]]
    assert model.batches == [[0, 1, 2]]
    alone = batcher.submit([7])
    batcher.stop(5)  # what waits is answered at once
    assert alone.result(0) == [14]
    with pytest.raises(Refusal, match="is stopping"):
        batcher.submit([1])


def test_a_model_that_cannot_begin(model: Model) -> None:
    said: list[str] = []

    def prepare() -> None:
        raise ValueError("no model")

    batcher: Batcher[int, int] = Batcher(model.answer, prepare, ServeLimits(), lambda rows, seconds: None)
    batcher.on_failure = lambda: said.append("failed")
    batcher.start()
    batcher.stop(5)
    assert str(batcher.failure) == "no model"
    assert said == ["failed"]
    with pytest.raises(Refusal):
        batcher.submit([1])
