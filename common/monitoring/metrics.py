"""What a process counts, by Prometheus' naming rules: base units, and no label that grows with the traffic."""

from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Of all systems that a process serves. Threads may share it."""

    def __init__(self, shared: Path | None = None) -> None:
        """`shared` is the folder in which processes keep their counts together: PROMETHEUS_MULTIPROC_DIR, set before
        the first import of the library."""
        self._registry = CollectorRegistry()
        if shared is not None:
            multiprocess.MultiProcessCollector(self._registry, path=str(shared))  # type: ignore[no-untyped-call]
        mine: dict[str, Any] = {"registry": None if shared is not None else self._registry}
        by_system = ["system"]
        self.predictions = Counter(
            "ml_predictions_total", "Answers given.", ["system", "version", "role", "rung"], **mine
        )
        self.answers = Counter(
            "ml_answers_total", "Answers, and calls that got none.", ["system", "outcome"], **mine
        )  # fmt: skip
        self.latency = Histogram(
            "ml_prediction_latency_seconds", "From a call's arrival to its answer.", by_system, buckets=SECONDS, **mine
        )
        self.batches = Histogram("ml_batch_rows", "Rows of a micro-batch.", by_system, buckets=ROWS, **mine)
        self.errors = Counter("ml_errors_total", "Calls that got no answer.", ["system", "kind"], **mine)
        self.shed = Counter("ml_shed_total", "Calls refused to protect the others.", ["system", "limit"], **mine)
        self.labels = Counter("ml_labels_total", "Outcomes heard.", by_system, **mine)
        self.shadows = Counter("ml_shadow_answers_total", "Answers of shadow versions.", ["system", "fate"], **mine)
        self.reused = Counter("ml_reused_predictions_total", "Predictions taken from the cache.", by_system, **mine)
        self.limit = Gauge(
            "ml_concurrency_limit_rows", "Rows in flight that are admitted.", by_system,
            multiprocess_mode="livesum", **mine,
        )  # fmt: skip
        self.breaker = Gauge(
            "ml_breaker_open", "Whether a dependency is not asked.", ["system", "dependency"],
            multiprocess_mode="livemax", **mine,
        )  # fmt: skip
        self.requests = Counter("http_requests_total", "HTTP requests.", ["route", "method", "status"], **mine)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
