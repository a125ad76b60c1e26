"""The systems as one FastAPI application: who may ask, what was asked, and the answer as JSON. No work is done here."""

import asyncio
import math
import random
import re
import traceback
from base64 import b64encode
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

from fastapi import FastAPI, Request, Response, Security
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import Counter
from pydantic import FailFast, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from common.clock import MILLISECOND, SECOND, stopwatch
from common.errors import (
    BadDefinition,
    BadRecord,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from common.monitoring.logs import Logs
from common.monitoring.metrics import Metrics
from common.monitoring.tracing import NoTracing, Tracing, open_tracing
from common.schema import Event, Record, json_schema, masked
from common.serving.auth import ApiKey, ApiKeys, RateLimits, Scope
from common.serving.batching import Batcher
from common.serving.live import Live
from common.serving.pipeline import Call, Pipeline, Replies
from common.serving.resilience import Deadline, Limiter
from common.system import AnySystem, Lookup, Page

C = TypeVar("C")
R = TypeVar("R")
MOST_ROWS = 1_000  # requests or events in one call
MOST_BYTES = 1 << 20  # of a body
PLAIN = 64 << 10  # bytes; in a larger body it is looked first whether it has the right shape
BODY = 5.0  # s, for a body to arrive
PUBLIC: Final = "public"  # the scope of a route that needs no key
JSON = "application/json"


class TooSoon(DeadlineExceeded):
    """A caller gave less time than it took."""


AWAY = "a part without which there is no answer is away: retry, with the same ids"  # which one is in the log

STATUS: dict[type, int] = {
    BadRecord: 422,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Overloaded: 503,
    Unavailable: 503,
    TooSoon: 408,
    DeadlineExceeded: 504,
}


class Problem(Record):
    """What went wrong, as RFC 9457 says it."""

    title: str
    status: int
    detail: str
    request_id: str


def looked_up(finds: Sequence[Callable[[], Record]]) -> list[Record | Exception]:
    """What each finds, or why not."""
    said: list[Record | Exception] = []
    for find in finds:
        try:
            said.append(find())
        except Exception as error:
            said.append(error)
    return said


@dataclass
class Served:
    """A system that is being served."""

    system: AnySystem
    live: Live
    pipeline: Pipeline
    batcher: Batcher[Call, Replies]
    lookups: Batcher[Callable[[], Record], Record]
    limiter: Limiter

    async def ask(self, call: Call, deadline: Deadline) -> Replies:
        """Through the limiter and the queue; raises what becomes of the call."""
        return await self._admitted(self.batcher, call, len(call.requests) + len(call.events), deadline)

    async def look_up(self, find: Callable[[], Record], deadline: Deadline) -> Record:
        """Likewise, by a thread beside that of the micro-batches."""
        return await self._admitted(self.lookups, find, 1, deadline)

    async def _admitted(self, queue: Batcher[C, R], call: C, rows: int, deadline: Deadline) -> R:
        self.limiter.admit(rows)
        start = stopwatch()
        in_time = False
        try:
            answer = await queue.ask(call, rows, deadline)
            in_time = True
            return answer
        except (BadRecord, Conflict, NotFound):
            in_time = True
            raise
        finally:
            self.limiter.done(rows, stopwatch() - start, in_time)


@dataclass
class Runtime:
    """What the routes work with; filled when the application starts."""

    access: ApiKeys
    rates: RateLimits
    metrics: Metrics
    logs: Logs
    deadline: int  # us, of a call that asks for no shorter one
    tracing: Tracing | NoTracing = field(default_factory=open_tracing)
    served: dict[str, Served] = field(default_factory=dict)
    is_draining: bool = False

    @property
    def is_ready(self) -> bool:
        return bool(self.served) and not self.is_draining


@dataclass(frozen=True)
class Asked:
    """An HTTP request that may be answered."""

    http: Request
    id: str
    key: ApiKey | None  # None: a public route
    span: Any  # of a trace, or None

    async def body(self) -> bytes:
        """Raises TooLarge, and TimeoutError for a client that takes too long."""
        claimed = self.http.headers.get("content-length", "0")
        if claimed.isdigit() and (len(claimed) > 12 or int(claimed) > MOST_BYTES):
            raise TooLarge(f"body: must have at most {MOST_BYTES} bytes")
        parts: list[bytes] = []
        async with asyncio.timeout(BODY):
            while sum(map(len, parts)) <= MOST_BYTES:
                message = await self.http.receive()
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    break
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(body) > MOST_BYTES:
            raise TooLarge(f"body: must have at most {MOST_BYTES} bytes")
        return body


FULL = (
    b'{"title":"Overloaded","status":503,"detail":"more is asked than can be answered in time: see Retry-After",'
    b'"request_id":"%s"}'
)
Parse: TypeAlias = Callable[[bytes], tuple[Sequence[Any], bool]]
Handler: TypeAlias = Callable[[Asked], Coroutine[Any, Any, Response]]


def allow(scope: Scope | Literal["public"], system: str = "") -> Callable[[Handler], Handler]:
    """Declares who may use a route, and which system's work it asks for."""

    def declare(handler: Handler) -> Handler:
        handler.scope, handler.system = scope, system  # type: ignore[attr-defined]
        return handler

    return declare


class GuardedRoute(APIRoute):
    """A route behind a key with the scope that it declares; one that declares none cannot be made.

    FastAPI documents it; parsing and answering are the handler's, at half the cost.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        self._counters: dict[tuple[str, int], Counter] = {}  # to look one up by its labels takes longer than to count
        handler: Handler | None = getattr(self.endpoint, "handler", None)
        scope = getattr(handler, "scope", None)
        if handler is None or scope is None:
            raise BadDefinition(f"{self.path}: must declare a scope, or that it is public")
        return partial(self._handle, handler, scope)

    async def _handle(self, handler: Handler, scope: str, request: Request) -> Response:
        runtime: Runtime = request.app.state.runtime
        request_id = f"{random.getrandbits(64):016x}"  # to be found in a log by, nothing hangs on it
        span = runtime.tracing.begin(self.path, request.headers)
        try:
            key = None if scope == PUBLIC else _admit(runtime, request, scope)
            response = await handler(Asked(request, request_id, key, span))
        except Exception as error:
            response = refusal(error, request_id)
            if response.status_code >= 500:
                where = _where(error) if response.status_code == 500 else str(error)
                runtime.logs.say(
                    "refused", request_id=request_id, route=self.path, status=response.status_code,
                    error=type(error).__name__, where=where,
                )  # fmt: skip
        runtime.tracing.end(span, response.status_code)
        response.headers["x-request-id"] = request_id
        if runtime.is_draining:
            response.headers["connection"] = "close"
        self._count(runtime.metrics, request.method, response.status_code)
        return response

    def _count(self, metrics: Metrics, method: str, status: int) -> None:
        counter = self._counters.get((method, status))
        if counter is None:
            counter = metrics.requests.labels(self.path, method, str(status))
            self._counters[method, status] = counter
        counter.inc()


class Application(FastAPI):
    """FastAPI, but for routes that the path alone decides: its layers cost more than refusing does.

    They answer the same: `GuardedRoute` is what both ways lead to.
    """

    direct: dict[tuple[str, str], tuple[GuardedRoute, Callable[[Request], Coroutine[Any, Any, Response]], str]]

    def open_directly(self) -> None:
        """To be called when all routes are there."""
        self.direct = {}
        for route in self.routes:
            if isinstance(route, GuardedRoute) and "{" not in route.path:
                system = getattr(getattr(route.endpoint, "handler", None), "system", "")
                for method in route.methods or ():
                    self.direct[method, route.path] = (route, route.get_route_handler(), system)

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        found = self.direct.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if found is None:
            await super().__call__(scope, receive, send)
            return
        route, handle, system = found
        served = self.state.runtime.served.get(system)
        if served is not None and served.limiter.is_full:
            await self._shed(route, scope["method"], served, send)
            return
        scope["app"] = self
        response = await handle(Request(scope, receive))
        await response(scope, receive, send)

    async def _shed(self, route: "GuardedRoute", method: str, served: Served, send: Send) -> None:
        """What is refused must cost little, or refusing is the overload: nothing of the request is looked at."""
        runtime: Runtime = self.state.runtime
        runtime.metrics.shed.labels(served.system.name, "concurrency").inc()
        route._count(runtime.metrics, method, 503)
        wait = max(1, math.ceil(served.limiter.retry_after() / SECOND))
        request_id = b"%016x" % random.getrandbits(64)
        body = FULL % request_id
        headers = [
            (b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"%d" % wait), (b"x-request-id", request_id),
        ]  # fmt: skip
        if runtime.is_draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def endpoint(handler: Handler) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """What FastAPI documents in the place of a handler, which a GuardedRoute calls."""

    async def documented(request: Request) -> Response:
        raise NotImplementedError

    documented.__name__ = handler.__name__
    documented.handler = handler  # type: ignore[attr-defined]
    return documented


def _where(error: Exception) -> str:
    """The line that raised what nobody expected; its message could repeat what was sent."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _admit(runtime: Runtime, request: Request, scope: Any) -> ApiKey:
    """Whose request it is; raises Unauthenticated, Forbidden, and Overloaded above the rate of the key."""
    said = request.headers.get("authorization")
    presented = said[7:] if said is not None and said[:7].lower() == "bearer " else said
    key = runtime.access.caller(presented)
    runtime.access.allow(key, scope)
    spend(runtime, key, 1)
    return key


class _TooOften(Overloaded):
    """Above the rate of a key."""


def spend(runtime: Runtime, key: ApiKey | None, cost: int) -> None:
    if key is not None and cost and (wait := runtime.rates.hit(key, cost)) is not None:
        runtime.metrics.shed.labels("", "rate").inc()
        raise _TooOften(f"rate: API key {key.id} asks more often than it may", wait)


def refusal(error: Exception, request_id: str) -> Response:
    """As problem+json; it never repeats what was sent."""
    status, headers, detail = 500, {}, "a mistake of ours: it is in the log, under the request id"
    if isinstance(error, TimeoutError):
        status, detail = 408, "body: did not arrive in time"
    for kind in type(error).__mro__:
        if kind in STATUS:
            status, detail = STATUS[kind], AWAY if kind is Unavailable else str(error)
            break
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
        status = 429 if isinstance(error, _TooOften) else 503
    elif status == 503:
        headers["retry-after"] = "1"
    elif status == 401:
        headers["www-authenticate"] = "Bearer"
    elif status in (408, 413):
        headers["connection"] = "close"
    problem = Problem(title=type(error).__name__.lstrip("_"), status=status, detail=detail, request_id=request_id)
    return Response(to_json(problem), status, headers, "application/problem+json")


def create_app(
    systems: Sequence[AnySystem], runtime: Runtime, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> FastAPI:
    """Routes for these systems; `lifespan` fills the runtime."""
    app = Application(
        title="ml-system-design", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.runtime = runtime
    app.router.route_class = GuardedRoute

    def add(path: str, method: str, handler: Handler, summary: str, **said: Any) -> None:
        scope: str = getattr(handler, "scope", PUBLIC)  # one that declares none is refused by GuardedRoute
        responses = said.pop("responses", {})
        if scope != PUBLIC:
            said["dependencies"] = [Security(HTTPBearer(scheme_name="api_key"), scopes=[scope])]
            responses |= {status: _problem(summary) for status, summary in PROBLEMS.items()}
        app.add_api_route(
            path, endpoint(handler), methods=[method], summary=summary, response_model=None, response_class=Response,
            responses=responses, **said,
        )  # fmt: skip

    for system in systems:
        _add_system(system, runtime, add)

    @allow(PUBLIC)
    async def live(asked: Asked) -> Response:
        return _json({"status": "live"})

    @allow(PUBLIC)
    async def ready(asked: Asked) -> Response:
        status = "ready" if runtime.is_ready else "draining" if runtime.is_draining else "starting"
        return _json({"status": status}, 200 if runtime.is_ready else 503)

    @allow("read")
    async def metrics(asked: Asked) -> Response:
        return Response(runtime.metrics.text(), media_type="text/plain; version=0.0.4")

    @allow(PUBLIC)
    async def openapi(asked: Asked) -> Response:
        return Response(description(), media_type=JSON)

    @cache
    def description() -> bytes:
        return to_json(app.openapi())

    health = {"content": {JSON: {"schema": {"type": "object", "properties": {"status": {"type": "string"}}}}}}
    add("/health/live", "GET", live, "The process runs", responses={200: {"description": "It does", **health}})
    add(
        "/health/ready", "GET", ready, "It can answer",
        responses={200: {"description": "It can", **health}, 503: {"description": "Not yet, or no more", **health}},
    )  # fmt: skip
    add(
        "/metrics", "GET", metrics, "Counts, in Prometheus' text format",
        responses={200: {"description": "Counts", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )  # fmt: skip
    add("/openapi.json", "GET", openapi, "This description", include_in_schema=False)
    from common.serving.inference import add_inference  # it is made of what stands here

    add_inference(app, systems, runtime)
    app.open_directly()
    app.openapi = partial(_openapi, app)  # type: ignore[method-assign]
    return app


PROBLEMS = {
    401: "No key, or none that is valid",
    403: "The key lacks the scope",
    422: "What was sent breaks its schema: the field and the rule",
    429: "Too often for this key: see Retry-After",
    503: "Overloaded, or the log is away: see Retry-After",
}


def _problem(summary: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": summary, "content": content}


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = get_openapi(title=app.title, version="1", routes=app.routes)
        schemas = app.openapi_schema.setdefault("components", {}).setdefault("schemas", {})
        schemas["Problem"] = Problem.model_json_schema()
    return app.openapi_schema


def _add_system(system: AnySystem, runtime: Runtime, add: Callable[..., None]) -> None:
    name, label = system.name, system.outcome.source
    parse_requests = parser(system.request, system.at_once)

    @allow("score", name)
    async def score(asked: Asked) -> Response:
        served = runtime.served[name]
        deadline = begin(runtime, served, asked.http)
        requests, is_one = parse_requests(await asked.body())
        spend(runtime, asked.key, len(requests) - 1)
        replies = await timed(runtime, served, Call(requests=requests), deadline, asked)
        said = [
            {
                "event_id": request.event_id,
                "version": reply.version,
                "degraded": reply.degraded,
                "answer": reply.answer,
            }
            for request, reply in zip(requests, replies, strict=True)
        ]
        return Response(to_json(said[0] if is_one else said), media_type=JSON)

    def taking(kind: type[Event]) -> Handler:
        parse = parser(kind)

        @allow("label", name)
        async def take(asked: Asked) -> Response:
            served = runtime.served[name]
            deadline = begin(runtime, served, asked.http)
            events, _ = parse(await asked.body())
            spend(runtime, asked.key, len(events) - 1)
            await timed(runtime, served, Call(events=events), deadline, asked)
            return Response(to_json({"accepted": len(events)}), media_type=JSON)

        return take

    @allow("read")
    async def versions(asked: Asked) -> Response:
        served = runtime.served[name]
        view = served.live.current
        traffic = None if view.routing is None else view.routing.traffic
        return _json(
            {
                "system": name,
                "revision": view.revision,
                "champion": None if view.champion is None else view.champion.name,
                "previous": None if view.previous is None else view.previous.name,
                "traffic": None if traffic is None else traffic.model_dump(),
                "live": sorted(view.models),
                "problem": served.live.problem,
                "features": "behind" if served.pipeline.is_behind else "current",
            }
        )

    examples = {type(event): event.model_dump() for event in system.examples}
    answered = {
        "type": "object",
        "required": ["event_id", "version", "degraded", "answer"],
        "properties": {
            "event_id": {"type": "string"},
            "version": {"type": "string"},
            "degraded": {"type": ["string", "null"], "description": "why the answer is less than it could be"},
            "answer": json_schema(system.answer, "serialization"),
        },
    }
    extra = {
        408: _problem("The body came too slowly, or the time that the caller gave is over"),
        409: _problem("The id is that of another event"),
        413: _problem("Too large"),
        504: _problem("Too late"),
    }
    add(
        f"/v1/{name}/score", "POST", score, f"{system.summary}: an answer for each request",
        responses={200: _one_or_many(answered, "In the order of the requests"), **extra},
        openapi_extra=_takes(system.request, examples[system.request], runtime.deadline, system.at_once),
    )  # fmt: skip
    accepted = {"type": "object", "properties": {"accepted": {"type": "integer"}}, "required": ["accepted"]}
    taken = {200: {"description": "Durable", "content": {JSON: {"schema": accepted}}}, **extra}
    add(
        f"/v1/{name}/labels", "POST", taking(label), "What became of requests, whenever it is heard of",
        responses=taken, openapi_extra=_takes(label, examples[label], runtime.deadline),
    )  # fmt: skip
    add(
        f"/v1/{name}/versions", "GET", versions, "Which versions answer, and how the traffic is split",
        responses={200: {"description": "Now", "content": {JSON: {"schema": {"type": "object"}}}}},
    )  # fmt: skip

    for route in system.routes:
        if isinstance(route, Page):
            _add_page(route, add)
        elif isinstance(route, Lookup):
            _add_lookup(system, route, runtime, add)
        else:
            add(
                f"/v1/{name}/{route.name}", "POST", taking(route.event), route.summary, responses=taken,
                openapi_extra=_takes(route.event, examples[route.event], runtime.deadline),
            )  # fmt: skip


def _add_lookup(system: AnySystem, route: Lookup, runtime: Runtime, add: Callable[..., None]) -> None:
    parse, is_posted = parser(route.asks), route.method == "POST"

    @allow("score", system.name)
    async def find(asked: Asked) -> Response:
        served = runtime.served[system.name]
        deadline = begin(runtime, served, asked.http)
        champion = served.live.current.champion
        if champion is None:
            raise NotFound(f"{system.name}: must have a version that is live")
        if is_posted:
            said, is_one = parse(await asked.body())
            if not is_one:
                raise BadRecord(f"{route.asks.__name__}: must be one object, got an array")
            what = said[0]
        else:
            what = _parameters(route.asks, asked.http)
        with shedding(runtime, served, asked):
            found = await served.look_up(partial(route.find, champion.model, what), deadline)
        return Response(to_json(found), media_type=JSON)

    answer = {"description": "Found", "content": {JSON: {"schema": json_schema(route.answer, "serialization")}}}
    responses = {200: answer, 404: _problem("No version is live, or nothing of that kind"), 504: _problem("Too late")}
    if is_posted:
        responses |= {408: _problem("Too slow"), 413: _problem("Too large")}
    add(
        f"/v1/{system.name}/{route.name}", route.method, find, route.summary, responses=responses,
        openapi_extra=_asks(route, runtime.deadline),
    )  # fmt: skip


def _parameters(kind: type[Record], http: Request) -> Record:
    """A record from a query string; raises BadRecord, which repeats no value."""
    said = http.query_params.multi_items()
    given = dict(said)
    if len(given) < len(said):
        raise BadRecord(f"{kind.__name__}: each parameter must be given once")
    try:
        return kind.model_validate(given, strict=False)
    except ValidationError as error:
        raise BadRecord(masked(kind, error)) from None


def _asks(route: Lookup, deadline: int) -> dict[str, Any]:
    """What a lookup takes, as OpenAPI says it."""
    schema, header = json_schema(route.asks), deadline_header(deadline)
    example = {} if route.example is None else route.example.model_dump(mode="json", exclude_unset=True)
    if route.method == "POST":
        content = {"schema": schema} | ({"example": example} if example else {})
        return {"requestBody": {"required": True, "content": {JSON: content}}, "parameters": [header]}
    parameters = [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
        | ({"example": example[name]} if name in example else {})
        for name, field in schema.get("properties", {}).items()
    ]
    return {"parameters": [*parameters, header]}


def _add_page(route: Page, add: Callable[..., None]) -> None:
    html = route.html()
    scripts = [sha256(text.encode()).digest() for text in re.findall(r"<script>(.*?)</script>", html, re.S)]
    allowed = " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in scripts)
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }  # fmt: skip

    @allow(PUBLIC)
    async def page(asked: Asked) -> Response:
        return Response(html, headers=headers, media_type="text/html")

    said = {"description": "A page", "content": {"text/html": {"schema": {"type": "string"}}}}
    add(f"/{route.name}", "GET", page, route.summary, responses={200: said})


def begin(runtime: Runtime, served: Served, http: Request) -> Deadline:
    """When a call has to be answered; raises Overloaded before anything is parsed, BadRecord."""
    limiter = served.limiter
    if limiter.is_full:
        runtime.metrics.shed.labels(served.system.name, "concurrency").inc()
        limiter.admit(1)
    said = http.headers.get("x-deadline-ms")
    if said is None:
        return Deadline.after(runtime.deadline)
    if not (said.isascii() and said.isdigit() and len(said) <= 9 and 0 < int(said) * MILLISECOND <= runtime.deadline):
        raise BadRecord(f"x-deadline-ms: must be a whole number from 1 to {runtime.deadline // MILLISECOND}")
    return Deadline.after(int(said) * MILLISECOND)


async def timed(runtime: Runtime, served: Served, call: Call, deadline: Deadline, asked: Asked) -> Replies:
    """What becomes of a call, on the trace of its request."""
    start = stopwatch()
    try:
        with shedding(runtime, served, asked):
            return await served.ask(replace(call, span=asked.span), deadline)
    finally:
        runtime.metrics.latency.labels(served.system.name).observe((stopwatch() - start) / SECOND)


@contextmanager
def shedding(runtime: Runtime, served: Served, asked: Asked) -> Iterator[None]:
    """Counts what is not answered; raises TooSoon where a caller gave it too little time."""
    try:
        yield
    except Overloaded:
        runtime.metrics.shed.labels(served.system.name, "concurrency").inc()
        raise
    except DeadlineExceeded:
        runtime.metrics.shed.labels(served.system.name, "deadline").inc()
        if "x-deadline-ms" in asked.http.headers:
            raise TooSoon("x-deadline-ms: this time is over; retry with the same ids and a longer one") from None
        raise


def parser(kind: type[Record], most: int = MOST_ROWS) -> Parse:
    """Reads one record or an array of them, and says which it was; raises BadRecord, which repeats no value."""
    one = TypeAdapter(kind)
    many: TypeAdapter[Any] = TypeAdapter(Annotated[list[kind], FailFast()])  # type: ignore[valid-type]

    def parse(body: bytes) -> tuple[Sequence[Any], bool]:
        if len(body) > PLAIN:
            _check_shape(kind, body)
        try:
            if not body.lstrip(b" \t\r\n").startswith(b"["):
                return [one.validate_json(body)], True
            found = many.validate_json(body)
        except ValidationError as error:
            raise BadRecord(masked(kind, error)) from None
        if not 1 <= len(found) <= most:
            raise BadRecord(f"array: must have 1 to {most} items, got {len(found)}")
        return found, False

    return parse


def _check_shape(kind: type[Record], body: bytes) -> None:
    """Each mistake that is to be explained takes memory, and a large body has room for a million of them."""
    try:
        found = from_json(body)
    except ValueError:
        raise BadRecord("body: must be JSON") from None
    items = found if isinstance(found, list) else [found]
    if len(items) > MOST_ROWS:
        raise BadRecord(f"array: must have 1 to {MOST_ROWS} items, got {len(items)}")
    for i, item in enumerate(items):
        if len(to_json(item)) > PLAIN:
            raise TooLarge(f"{i}: one {kind.__name__} must have at most {PLAIN} bytes")


def _takes(kind: type[Event], example: Any, deadline: int, most: int = MOST_ROWS) -> dict[str, Any]:
    schema = json_schema(kind)
    many = {"type": "array", "items": schema, "minItems": 1, "maxItems": most}
    content = {"schema": {"oneOf": [schema, many]}, "examples": {"one": {"value": example}}}
    return {"requestBody": {"required": True, "content": {JSON: content}}, "parameters": [deadline_header(deadline)]}


def deadline_header(deadline: int) -> dict[str, Any]:
    """As OpenAPI says it; `deadline` in us."""
    return {
        "name": "x-deadline-ms", "in": "header", "required": False,
        "schema": {"type": "integer", "minimum": 1, "maximum": deadline // MILLISECOND},
        "description": "milliseconds left for the answer; the most is what a call has that does not say",
    }  # fmt: skip


def _one_or_many(schema: dict[str, Any], summary: str) -> dict[str, Any]:
    both = {"oneOf": [schema, {"type": "array", "items": schema}]}
    return {"description": summary, "content": {JSON: {"schema": both}}}


def _json(said: Any, status: int = 200) -> Response:
    return JSONResponse(said, status)
