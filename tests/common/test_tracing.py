"""Traces go where the environment says, and say nothing of what was sent."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from common.monitoring.tracing import NoTracing, open_tracing
from common.system import find
from tests.common.test_app import SYSTEM, request, started

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What a collector on this machine receives, decoded."""
    trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield spans
        server.shutdown()
        thread.join()


def test_a_request_goes_on_its_callers_trace_and_its_batch_is_linked_to_it(
    collected: list[Any], tmp_path: Path
) -> None:
    secret = "4111111111111111"
    with started(tmp_path / "home", tmp_path / "keys", [find("systems", SYSTEM)]) as client:
        key = client.key("score")
        sent = request(event_id=secret)
        client.ask("POST", f"/v1/{SYSTEM}/score", sent, key, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
        client.ask("POST", f"/v1/{SYSTEM}/score", {secret: secret}, key)
        client.ask("POST", f"/v1/{SYSTEM}/score", sent, secret)
    by_name = {span.name: span for span in collected}
    asked = [span for span in collected if span.name == f"/v1/{SYSTEM}/score"]
    statuses = [next(a.value.int_value for a in s.attributes if a.key.startswith("http.response")) for s in asked]
    assert sorted(statuses) == [200, 401, 422]
    first = next(span for span in asked if span.trace_id.hex() == TRACE)
    batch = by_name["micro-batch"]
    assert [link.span_id for link in batch.links] == [first.span_id]
    assert {by_name[step].parent_span_id for step in ("answer", "log")} == {batch.span_id}
    assert secret not in str(collected)
    assert key not in str(collected)


def test_nobody_is_told_where_nobody_wants_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert isinstance(open_tracing(), NoTracing)
