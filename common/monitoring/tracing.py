"""OpenTelemetry traces, where OTEL_EXPORTER_OTLP_ENDPOINT says who wants them: a span per request, and per micro-batch.

A micro-batch serves several requests, so its span is linked to theirs rather than being the child of one.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from common.errors import MissingExtra

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
LONGEST = 100  # characters of a traceparent that are looked at


class Tracing:
    """Spans say route, status, rows and system; nothing of what was sent."""

    def __init__(self) -> None:
        """Raises MissingExtra."""
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ModuleNotFoundError as error:
            raise MissingExtra(f"{ENDPOINTS[0]}: needs {error.name}; pip install -e '.[tracing]'") from None
        self._api, self._carried = trace, TraceContextTextMapPropagator()
        self._provider = TracerProvider(resource=Resource.create({"service.name": "ml-system-design"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("mlsys")

    def begin(self, route: str, headers: Mapping[str, str]) -> Any:
        """The span of a request; it goes on a trace that its caller began (W3C Trace Context)."""
        carrier = {"traceparent": headers.get("traceparent", "")[:LONGEST]}
        context = self._carried.extract(carrier)
        return self._tracer.start_span(route, context, kind=self._api.SpanKind.SERVER)

    def end(self, span: Any, status: int) -> None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
        span.end()

    @contextmanager
    def batch(self, system: str, rows: int, spans: Sequence[Any]) -> Iterator[None]:
        links = [self._api.Link(span.get_span_context()) for span in spans if span is not None]
        attributes: Any = {"ml.system": system, "ml.rows": rows}
        with self._tracer.start_as_current_span("micro-batch", links=links, attributes=attributes):
            yield

    def step(self, name: str) -> AbstractContextManager[Any]:
        """A part of the batch that is under way in this thread."""
        return self._tracer.start_as_current_span(name)

    def close(self) -> None:
        """What was not sent yet is sent."""
        self._provider.shutdown()


class NoTracing:
    """Nobody wants to know."""

    def begin(self, route: str, headers: Mapping[str, str]) -> Any:
        return None

    def end(self, span: Any, status: int) -> None:
        pass

    def batch(self, system: str, rows: int, spans: Sequence[Any]) -> AbstractContextManager[Any]:
        return nullcontext()

    def step(self, name: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def close(self) -> None:
        pass


def open_tracing() -> Tracing | NoTracing:
    return Tracing() if any(os.environ.get(name) for name in ENDPOINTS) else NoTracing()
