"""What a server counts, as Prometheus reads it."""

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Seconds, from a short text through a small encoder to what a request may take by default.
_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Counters:
    """
    The numbers of one server.

    Args:
        waiting (`Callable`): gives the number of rows in the queue.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("sinkd_requests", "Requests.", ("path", "status"), registry=registry)
        self.rows = Counter("sinkd_rows", "Rows that were answered.", registry=registry)
        self.decisions = Counter("sinkd_decisions", "Rows by the route's decision.", ("decision",), registry=registry)
        self.errors = Counter("sinkd_errors", "Requests without an answer, by reason.", ("type",), registry=registry)
        self.seconds = Histogram(
            "sinkd_request_seconds", "Time of a request for decisions.", buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram("sinkd_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self.batch_seconds = Histogram(
            "sinkd_batch_seconds", "Time of a batch in the model.", buckets=_SECONDS, registry=registry
        )
        Gauge("sinkd_queue_rows", "Rows that wait.", registry=registry).set_function(waiting)

    def on_batch(self, rows: int, seconds: float) -> None:
        """Count a batch that the model has answered."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def as_text(self) -> bytes:
        """All numbers, in the text format of Prometheus."""
        return generate_latest(self._registry)
