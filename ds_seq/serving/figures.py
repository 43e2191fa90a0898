"""Figures of a server in the text format of Prometheus, made by its client library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from ds_seq.serving.requests import Line

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SENTENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 256, 1024, 4096, 16384)


class Figures:
    """Counts what a server does; each server has figures of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "ds_seq_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self._seconds = Histogram(
            "ds_seq_request_seconds",
            "Time from a request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._lines = Counter(
            "ds_seq_lines", "Lines translated, by model.", ("model",), registry=registry
        )
        self._batch_sentences = Histogram(
            "ds_seq_batch_sentences", "Items of a batch.", buckets=_SENTENCES, registry=registry
        )
        self._batch_tokens = Histogram(
            "ds_seq_batch_tokens",
            "Source tokens of a batch, padding included.",
            buckets=_TOKENS,
            registry=registry,
        )
        self._waiting = Gauge(
            "ds_seq_waiting_lines", "Lines that no batch has taken yet.", registry=registry
        )
        self._in_flight = Gauge(
            "ds_seq_requests_in_flight", "Requests that are being answered.", registry=registry
        )

    def follow(self, num_waiting: Callable[[], int], in_flight: Callable[[], int]) -> None:
        """Ask these functions for the values of gauges."""
        self._waiting.set_function(num_waiting)
        self._in_flight.set_function(in_flight)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, num_items: int, size: int) -> None:
        """Count a batch."""
        self._batch_sentences.observe(num_items)
        self._batch_tokens.observe(size)

    def translated(self, model: str, lines: Sequence[Line]) -> None:
        """Count the lines of an answer."""
        self._lines.labels(model).inc(len(lines))

    def text(self) -> bytes:
        """Return all figures."""
        return generate_latest(self._registry)
