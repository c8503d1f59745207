"""What a server counts, for Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
BATCHES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one server, in a registry of their own, so that several servers live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: Any = {"registry": self.registry}
        self._requests = Counter("unimedvl_requests", "Answered requests.", ("route", "status"), **made)
        self._seconds = Histogram(
            "unimedvl_request_seconds", "From arrival to the end of the answer.", ("route",), buckets=SECONDS, **made
        )
        self._inside = Gauge("unimedvl_requests_inside", "Requests that are read, wait or run.", **made)
        self._queue = Gauge("unimedvl_queue_depth", "Requests that wait for the device.", ("kind",), **made)
        self._batches = Histogram(
            "unimedvl_batch_rows", "Rows that were computed together.", ("kind",), buckets=BATCHES, **made
        )
        self._images = Counter("unimedvl_images_made", "Images that were made.", **made)
        self._tokens = Counter("unimedvl_tokens", "Tokens of prompts and of answers.", ("kind",), **made)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a request, by the template of its route."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def inside(self, count: int) -> None:
        """Set the number of requests inside."""
        self._inside.set(count)

    def queued(self, kind: str, count: int) -> None:
        """Set the number of requests of a kind that wait."""
        self._queue.labels(kind).set(count)

    def batched(self, kind: str, rows: int) -> None:
        """Count a batch."""
        self._batches.labels(kind).observe(rows)

    def images_made(self, count: int) -> None:
        """Count images."""
        self._images.inc(count)

    def tokens_used(self, prompt: int, completion: int) -> None:
        """Count the tokens of one prompt and its answer."""
        self._tokens.labels("prompt").inc(prompt)
        self._tokens.labels("completion").inc(completion)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
