"""Who may ask what over HTTP, and what a mistake is answered with. The application is the real one; no socket."""

import asyncio
import json
import logging
import re
import resource
import secrets
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field

from common.clock import SimulatedClock, WallClock
from common.errors import BadDefinition, NotFound
from common.registry.keys import Keys
from common.registry.registry import Traffic
from common.schema import Record, Whole
from common.serving.app import PUBLIC, GuardedRoute
from common.serving.auth import SCOPES, ApiKeys
from common.serving.live import Loaded, View
from common.serving.routing import Routing
from common.serving.server import application
from common.settings import Settings
from common.system import AnySystem, Lookup, find, names

T = TypeVar("T")
OPEN = {"/health/live", "/health/ready", "/openapi.json", "/v2/health/live", "/v2/health/ready"}  # need no key
SYSTEM = names("systems")[0]


@dataclass(frozen=True)
class Said:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Speaks ASGI to an application that has started."""

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        self.app, self._loop, self.home, self.trusted = app, loop, settings.home, Keys(settings.keys)
        self.keys = ApiKeys(self.home, WallClock(), self.trusted)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def key(self, *scopes: Any, expires: int | None = None, rate: str | None = None) -> str:
        key = self.keys.create("test", scopes, expires=expires, rate=rate)
        self.app.state.runtime.access.refresh()
        return key

    def ask(self, method: str, path: str, body: Any = b"", key: str | None = None, **headers: str) -> Said:
        return self.run(self.asking(method, path, body, key, **headers))

    async def asking(self, method: str, path: str, body: Any = b"", key: str | None = None, **headers: str) -> Said:
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = [{"type": "http.request", "body": content, "more_body": False}]
        said: list[Any] = []

        async def receive() -> Any:
            return sent.pop() if sent else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            said.append(message)

        path, _, query = path.partition("?")
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path,
            "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "client": ("test", 1),
            "server": ("test", 80),
            "headers": [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items()],
        }  # fmt: skip
        await self.app(scope, receive, send)
        found = {k.decode(): v.decode() for k, v in said[0]["headers"]}
        return Said(said[0]["status"], found, b"".join(m.get("body", b"") for m in said[1:]))


@contextmanager
def started(home: Path, keys: Path, systems: Sequence[AnySystem], **said: Any) -> Iterator[Client]:
    settings = Settings(home=home, keys=keys, deadline_ms=10_000, **said)
    app = application(settings, systems)
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(lifespan.__aenter__())
        client = Client(app, runner.get_loop(), settings)
        try:
            yield client
        finally:
            client.keys.close()
            runner.run(lifespan.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """No version is live: the rule answers."""
    folder = tmp_path_factory.mktemp("app")
    with started(folder / "home", folder / "keys", [find("systems", SYSTEM)]) as made:
        yield made


def request(**said: Any) -> dict[str, Any]:
    example = find("systems", SYSTEM).examples[0].model_dump()
    return {**example, "event_id": secrets.token_hex(8), **said}


def routes(app: FastAPI) -> list[tuple[str, str, str]]:
    """Path, method and scope of every route there is."""
    found = []
    for route in app.routes:
        assert isinstance(route, APIRoute), f"{route}: is not behind a key"
        scope = getattr(getattr(route.endpoint, "handler", None), "scope", None)
        found += [(route.path, method, str(scope)) for method in sorted(route.methods)]
    return found


def filled(path: str) -> str:
    return path.replace("{name}", SYSTEM).replace("{version}", "0" * 12)


def test_only_health_and_the_description_need_no_key(client: Client) -> None:
    assert {path for path, _, scope in routes(client.app) if scope == PUBLIC} == OPEN
    assert {scope for _, _, scope in routes(client.app)} <= {PUBLIC, *SCOPES}


def test_every_route_refuses_no_key_and_every_key_but_one_with_its_scope(client: Client) -> None:
    with closing(ApiKeys(client.home, SimulatedClock(1), client.trusted)) as long_ago:
        expired = long_ago.create("old", SCOPES, expires=2, rate=None)
    revoked = client.key(*SCOPES)
    client.keys.revoke(revoked[6:18])
    checked = 0
    for path, method, scope in routes(client.app):
        if scope == PUBLIC:
            continue
        wrong = client.key(*(other for other in SCOPES if other != scope))
        said = {
            name: client.ask(method, filled(path), b"", key).status
            for name, key in [
                ("none", None), ("not one", "x"), ("expired", expired), ("revoked", revoked), ("wrong scope", wrong),
                ("empty", ""), ("changed", wrong[:-1] + ("A" if wrong[-1] != "A" else "B")),
            ]
        }  # fmt: skip
        assert said == {
            "none": 401, "not one": 401, "expired": 401, "revoked": 401, "wrong scope": 403, "empty": 401,
            "changed": 401,
        }, (method, path)  # fmt: skip
        assert client.ask(method, filled(path), b"", client.key(scope)).status not in (401, 403)
        checked += 1
    assert checked >= 4


def test_a_route_that_declares_no_scope_cannot_be_made() -> None:
    app = FastAPI()
    app.router.route_class = GuardedRoute

    async def open_door(request: Request) -> Response:
        return Response()

    with pytest.raises(BadDefinition, match="/open: must declare a scope, or that it is public"):
        app.add_api_route("/open", open_door, response_model=None)


def test_one_request_gets_one_answer_and_an_array_gets_an_array(client: Client) -> None:
    key, one = client.key("score"), request()
    said = client.ask("POST", f"/v1/{SYSTEM}/score", one, key)
    assert said.status == 200, said.body
    assert (said.json["event_id"], said.json["version"]) == (one["event_id"], "rule")
    assert said.json["degraded"] == "rule: no version is live"
    assert len(said.headers["x-request-id"]) == 16
    many = [request() for _ in range(3)]
    answers = client.ask("POST", f"/v1/{SYSTEM}/score", many, key).json
    assert [a["event_id"] for a in answers] == [r["event_id"] for r in many]


def test_concurrent_callers_each_get_their_own_answer(client: Client) -> None:
    key = client.key("score")
    many = [request() for _ in range(200)]

    async def together() -> list[Said]:
        return await asyncio.gather(*(client.asking("POST", f"/v1/{SYSTEM}/score", one, key) for one in many))

    said = [s for s in client.run(together()) if s.status == 200]
    assert len(said) >= 16
    answered = {s.json["event_id"] for s in said}
    assert len(answered) == len(said)
    assert answered <= {one["event_id"] for one in many}


def test_a_retried_request_gets_its_first_answer_and_another_one_with_its_id_is_refused(client: Client) -> None:
    key, one = client.key("score"), request()
    first = client.ask("POST", f"/v1/{SYSTEM}/score", one, key)
    assert client.ask("POST", f"/v1/{SYSTEM}/score", one, key).json == first.json
    other = client.ask("POST", f"/v1/{SYSTEM}/score", {**one, "event_timestamp": 1}, key)
    assert (other.status, other.headers["content-type"]) == (409, "application/problem+json")


def test_labels_are_accepted_once_and_durable(client: Client) -> None:
    key = client.key("label")
    example = find("systems", SYSTEM).examples[1].model_dump()
    label = {**example, "event_id": secrets.token_hex(8)}
    for _ in range(2):
        assert client.ask("POST", f"/v1/{SYSTEM}/labels", [label], key).json == {"accepted": 1}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422), (b"{", 422), (b"[]", 422), (b"null", 422), (b"[" * 10_000, 422), (b'{"a":' * 10_000, 422),
        (b"\xff\xfe", 422), (b'{"event_id": "\\ud800"}', 422), (b"[1, 2", 422), (b" " * (3 << 20), 413),
    ],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(client: Client, body: bytes, status: int) -> None:
    said = client.ask("POST", f"/v1/{SYSTEM}/score", body, client.key("score"))
    assert (said.status, said.json["status"]) == (status, status)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"{}," * 300_000 + b"{}]",
        b"{" + b",".join(b'"%x":0' % i for i in range(100_000)) + b"}",
        b"[" + b"0," * 500_000 + b"0]",
        b'"' + b"\\u0000" * 170_000 + b'"',
        b'{"inputs": [{' + b",".join(b'"%x":0' % i for i in range(100_000)) + b"}]}",
        b'{"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [' + b'"",' * 200_000 + b"0]}]}",
    ],
    ids=["empty records", "unknown fields", "numbers", "escapes", "unknown parts of a tensor", "wrong data"],
)
@pytest.mark.parametrize("path", [f"/v1/{SYSTEM}/score", f"/v2/models/{SYSTEM}/infer"])
def test_a_million_mistakes_cost_no_more_than_one(client: Client, path: str, body: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB
    assert len(body) < 1 << 20
    assert client.ask("POST", path, body, client.key("score")).status in (400, 413, 422)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-1", '"12"', "null", "true", "[]", "1e400000"])
def test_a_number_that_is_none_is_refused_naming_its_field(client: Client, value: str) -> None:
    system = find("systems", SYSTEM)
    name = next(n for n, f in system.request.model_fields.items() if f.annotation is float)
    body = re.sub(rf'"{name}": [^,}}]+', f'"{name}": {value}', json.dumps(request())).encode()
    said = client.ask("POST", f"/v1/{SYSTEM}/score", body, client.key("score"))
    assert said.status == 422
    assert value in ("NaN", "Infinity", "1e400000") or name in said.json["detail"]


def test_too_many_at_once_are_refused_before_they_cost_anything(client: Client) -> None:
    said = client.ask("POST", f"/v1/{SYSTEM}/score", [request() for _ in range(1_001)], client.key("score"))
    assert (said.status, said.json["detail"]) == (422, "array: must have 1 to 1000 items, got 1001")


@pytest.mark.parametrize(
    "value", ["0", "-1", "x", "10001", "9" * 5_000, "0000000019999999", "1" + "0" * 5_000, "1.5", "\xb2"]
)
def test_a_deadline_that_is_none_is_refused(client: Client, value: str) -> None:
    said = client.ask("POST", f"/v1/{SYSTEM}/score", request(), client.key("score"), x_deadline_ms=value)
    assert said.status == 422
    assert "x-deadline-ms: must be a whole number from 1 to 10000" in said.json["detail"]


def test_a_path_with_a_slash_too_many_leads_nowhere_else(client: Client) -> None:
    assert client.ask("POST", f"/v1/{SYSTEM}/score/", request(), client.key("score")).status == 404


def test_revoking_works_on_after_the_table_was_not_what_it_should_be(client: Client) -> None:
    access, key = client.app.state.runtime.access, client.key("read")
    path = f"/v1/{SYSTEM}/versions"
    db = access._db
    try:
        access._db = None  # whatever it raises
        assert not access.refresh()
    finally:
        access._db = db
    assert client.ask("GET", path, key=key).status == 200
    client.keys.revoke(key[6:18])
    assert access.refresh()
    assert client.ask("GET", path, key=key).status == 401


def test_above_its_rate_a_key_is_told_when_to_come_back_and_no_other_key_notices(client: Client) -> None:
    fast, slow = client.key("read"), client.key("read", rate="2/minute")
    path = f"/v1/{SYSTEM}/versions"
    assert [client.ask("GET", path, key=slow).status for _ in range(4)] == [200, 200, 429, 429]
    assert int(client.ask("GET", path, key=slow).headers["retry-after"]) >= 1
    assert client.ask("GET", path, key=fast).status == 200


def test_what_is_overloaded_says_when_to_come_back_and_health_is_never_shed(client: Client) -> None:
    key = client.key("score")
    limiter = client.app.state.runtime.served[SYSTEM].limiter
    limiter.in_flight = 10_000
    try:
        said = client.ask("POST", f"/v1/{SYSTEM}/score", request(), key)
        assert (said.status, said.json["title"]) == (503, "Overloaded")
        assert int(said.headers["retry-after"]) >= 1
        assert client.ask("GET", "/health/live").status == 200
        assert client.ask("GET", "/health/ready").status == 200
    finally:
        limiter.in_flight = 0


def test_a_worker_that_is_leaving_says_so(client: Client) -> None:
    runtime = client.app.state.runtime
    runtime.is_draining = True
    try:
        assert client.ask("GET", "/health/ready").status == 503
        said = client.ask("GET", "/health/live")
        assert (said.status, said.headers["connection"]) == (200, "close")
    finally:
        runtime.is_draining = False


def test_the_description_refers_to_nothing_outside_of_it(client: Client) -> None:
    assert b"#/$defs/" not in client.ask("GET", "/openapi.json").body


def test_the_examples_of_the_description_work(client: Client) -> None:
    described = client.ask("GET", "/openapi.json").json
    key, tried = client.key("score", "label", "read"), 0
    for path, methods in described["paths"].items():
        for method, said in methods.items():
            for media in said.get("requestBody", {}).get("content", {}).values():
                for example in media.get("examples", {}).values():
                    if "{version}" in path:
                        continue  # there is none
                    answer = client.ask(method.upper(), filled(path), example["value"], key)
                    assert answer.status == 200, (path, answer.body)
                    tried += 1
    assert tried >= 2


class Shelf(Record):
    shop: str = Field(min_length=1)
    days: Whole = Field(default=1, ge=1, le=28)
    price: float | None = None
    promoted: bool = False
    kind: Literal["usual", "best"] = "usual"


class Plan(Record):
    shop: str
    prices: tuple[float, ...] = ()


class Found(Record):
    model: str
    asked: str  # JSON
    thread: str


OPENED = threading.Event()


def look(model: str, asked: Record) -> Found:
    if getattr(asked, "shop", "") == "nowhere":
        raise NotFound("shop: must be one that is known")
    if getattr(asked, "shop", "") == "closed" and not OPENED.wait(20):
        raise AssertionError("nobody else was answered meanwhile")
    return Found(model=model, asked=asked.model_dump_json(), thread=threading.current_thread().name)


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A system that has something to be looked up, with a version that is live."""
    folder = tmp_path_factory.mktemp("lookups")
    routes = (
        Lookup(name="any", summary="Any text", find=look, answer=Found),
        Lookup(name="shelf", summary="A shelf", find=look, answer=Found, asks=Shelf, example=Shelf(shop="s", days=3)),
        Lookup(
            name="plan", summary="A plan", find=look, answer=Found, asks=Plan, method="POST",
            example=Plan(shop="s", prices=(1.0, 2.0)),
        ),
    )  # fmt: skip
    with started(folder / "home", folder / "keys", [replace(find("systems", SYSTEM), routes=routes)]) as made:
        view = View(routing=Routing("v", Traffic(), b""), models={"v": Loaded("v", "the model", "")})  # type: ignore[arg-type]
        live = made.app.state.runtime.served[SYSTEM].live
        live.close()
        live._view = view
        yield made


SHELF, PLAN = f"/v1/{SYSTEM}/shelf", f"/v1/{SYSTEM}/plan"


def test_what_is_looked_up_is_read_from_the_query_or_from_the_body(looking: Client) -> None:
    key = looking.key("score")
    said = looking.ask("GET", SHELF + "?shop=a%26b+c&days=7&price=1.5&promoted=true&kind=best", key=key)
    assert said.status == 200, said.body
    shelf = Shelf(shop="a&b c", days=7, price=1.5, promoted=True, kind="best")
    assert (said.json["model"], Shelf.parse(said.json["asked"])) == ("the model", shelf)
    assert Shelf.parse(looking.ask("GET", SHELF + "?shop=b", key=key).json["asked"]) == Shelf(shop="b")
    assert looking.ask("GET", f"/v1/{SYSTEM}/any", key=key).json["asked"] == '{"text":""}'
    plan = Plan(shop="a", prices=(1.0, 2.0))
    said = looking.ask("POST", PLAN, plan.model_dump(mode="json"), key)
    assert (said.status, Plan.parse(said.json["asked"])) == (200, plan)
    assert looking.ask("POST", SHELF, {"shop": "a"}, key).status == 405
    assert looking.ask("GET", PLAN + "?shop=a", key=key).status == 405


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("", "shop: field required"), ("?shop=", "shop: string should have at least 1 character"),
        ("?shop=a&days=29", "days: input should be less than or equal to 28"),
        ("?shop=a&days=secret", "days: input should be a valid integer, unable to parse string as an integer"),
        ("?shop=a&price=nan", "price: input should be a finite number"),
        ("?shop=a&kind=secret", "kind: input should be 'usual' or 'best'"),
        ("?shop=a&secret=1", "(unknown): extra inputs are not permitted"),
        ("?shop=a&shop=secret", "Shelf: each parameter must be given once"),
    ],
)  # fmt: skip
def test_parameters_that_are_none_are_refused_naming_field_and_rule(looking: Client, query: str, detail: str) -> None:
    said = looking.ask("GET", SHELF + query, key=looking.key("score"))
    assert (said.status, said.headers["content-type"]) == (422, "application/problem+json")
    assert said.json["detail"] == detail


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"", 422, "invalid json"), (b"{", 422, "invalid json"), (b"[]", 422, "must have 1 to"),
        (b'[{"shop": "a"}]', 422, "Plan: must be one object, got an array"), (b"null", 422, "Plan: "),
        (b'{"shop": "a", "x": 1}', 422, "(unknown): extra"), (b'{"shop": 1}', 422, "shop: input should be a valid str"),
        (b" " * (3 << 20), 413, "body: must have at most"),
        (b'{"shop": "a", "prices": [' + b"1," * 100_000 + b"1]}", 413, "one Plan must have at most 65536 bytes"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_what_can_be_looked_up_is_refused(
    looking: Client, body: bytes, status: int, detail: str
) -> None:
    said = looking.ask("POST", PLAN, body, looking.key("score"))
    assert said.status == status
    assert detail in said.json["detail"]


def test_what_cannot_be_found_is_said_and_without_a_version_nothing_is(looking: Client, client: Client) -> None:
    said = looking.ask("GET", SHELF + "?shop=nowhere", key=looking.key("score"))
    assert (said.status, said.json["detail"]) == (404, "shop: must be one that is known")
    live = looking.app.state.runtime.served[SYSTEM].live
    before, live._view = live._view, View()
    try:
        said = looking.ask("GET", SHELF + "?shop=a", key=looking.key("score"))
        assert (said.status, said.json["detail"]) == (404, f"{SYSTEM}: must have a version that is live")
    finally:
        live._view = before


def test_while_something_is_looked_up_others_are_answered(looking: Client) -> None:
    key, served, held = looking.key("score"), looking.app.state.runtime.served[SYSTEM], list[int]()

    async def together() -> list[Said]:
        async def others() -> Said:
            held.append(served.limiter.in_flight)
            said = await looking.asking("POST", f"/v1/{SYSTEM}/score", request(), key)
            OPENED.set()
            return said

        return await asyncio.gather(looking.asking("GET", SHELF + "?shop=closed", key=key), others())

    OPENED.clear()
    said = looking.run(together())
    assert [one.status for one in said] == [200, 200]
    assert said[0].json["thread"] == f"{SYSTEM} lookups"
    assert (held, served.limiter.in_flight) == ([1], 0)


def test_a_lookup_has_a_deadline_and_the_limit_of_its_system(looking: Client) -> None:
    key, limiter = looking.key("score"), looking.app.state.runtime.served[SYSTEM].limiter
    OPENED.clear()
    try:
        said = looking.ask("GET", SHELF + "?shop=closed", key=key, x_deadline_ms="20")
        assert (said.status, said.json["title"]) == (408, "TooSoon")
    finally:
        OPENED.set()
    assert looking.ask("GET", SHELF + "?shop=a", key=key, x_deadline_ms="0").status == 422
    limiter.in_flight = 10_000
    try:
        for method, path, body in (("GET", SHELF + "?shop=a", b""), ("POST", PLAN, b'{"shop": "a"}')):
            assert looking.ask(method, path, body, key).status == 503
    finally:
        limiter.in_flight = 0


def test_nothing_of_a_lookup_is_logged(looking: Client) -> None:
    log = looking.app.state.runtime.served[SYSTEM].pipeline._log
    before, key = log.head(), looking.key("score")
    looking.ask("GET", SHELF + "?shop=a", key=key)
    looking.ask("POST", PLAN, {"shop": "a"}, key)
    assert log.head() == before


def test_the_description_says_what_can_be_looked_up_and_its_examples_work(looking: Client) -> None:
    paths, key = looking.ask("GET", "/openapi.json").json["paths"], looking.key("score")
    named = {p["name"]: p for p in paths[SHELF]["get"]["parameters"]}
    assert [*named] == ["shop", "days", "price", "promoted", "kind", "x-deadline-ms"]
    assert [name for name, p in named.items() if p["required"]] == ["shop"]
    assert (named["days"]["schema"]["maximum"], named["kind"]["schema"]["enum"]) == (28, ["usual", "best"])
    query = "&".join(f"{name}={p['example']}" for name, p in named.items() if "example" in p)
    assert query == "shop=s&days=3"
    assert looking.ask("GET", f"{SHELF}?{query}", key=key).status == 200
    media = paths[PLAN]["post"]["requestBody"]["content"]["application/json"]
    assert media["schema"]["required"] == ["shop"]
    assert looking.ask("POST", PLAN, media["example"], key).status == 200
    (text,) = [p for p in paths[f"/v1/{SYSTEM}/any"]["get"]["parameters"] if p["in"] == "query"]
    assert (text["required"], text["schema"]["maxLength"]) == (False, 200)


PLANTS = 10_000


def test_no_secret_that_is_planted_anywhere_comes_out_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In keys, headers, paths, names and values of fields, ids, and in broken JSON: not in answers, logs, metrics."""
    caplog.set_level(logging.DEBUG)
    with started(
        tmp_path / "home", tmp_path / "keys", [find("systems", SYSTEM)], rate_limit="1000000/second"
    ) as client:
        good = client.key("score", "label", "read")
        plants: list[str] = []
        out = bytearray()

        def planted() -> str:
            plants.append(f"4{secrets.randbelow(10**15):015d}")
            return plants[-1]

        def ask(method: str, path: str, body: Any = b"", key: str | None = good, **headers: str) -> None:
            said = client.ask(method, path, body, key, **headers)
            out.extend(json.dumps(dict(said.headers)).encode() + said.body)

        score = f"/v1/{SYSTEM}/score"
        fields = find("systems", SYSTEM).request.model_fields.items()
        text = next(name for name, field in fields if field.annotation is str and name != "event_id")
        scenes: list[Callable[[], None]] = [
            lambda: ask("POST", score, request(), key=f"mlsys_{planted()}_{planted()}"),
            lambda: ask("POST", score, {**request(), planted(): planted()}),
            lambda: ask("POST", score, request(event_timestamp=planted())),
            lambda: ask("POST", score, request(event_timestamp=-int(planted()))),
            lambda: ask("POST", score, {**request(), text: [planted()]}),
            lambda: ask("POST", score, f'{{"card": "{planted()}" "x"'.encode()),
            lambda: ask("GET", f"/{planted()}/{planted()}"),
            lambda: ask(planted(), score),
            lambda: ask("GET", f"/v2/models/{planted()}/versions/{planted()}"),
            lambda: ask("POST", score, request(), x_deadline_ms=planted(), x_request_id=planted()),
            lambda: ask("POST", score, request(), user_agent=planted(), cookie=planted(), traceparent=planted()),
            lambda: ask("POST", f"/v1/{SYSTEM}/labels", [{planted(): {planted(): planted()}}]),
        ]
        while len(plants) < PLANTS:
            for scene in scenes:
                scene()
        taken = request()
        ask("POST", score, taken)
        ask("POST", score, {**taken, text: planted()})  # an id that is taken: the log knows both bodies
        ask("GET", "/metrics")
        keys = [good, *(client.key("score") for _ in range(20))]
        for key in keys:
            ask("POST", score, b"{}", key=key)
            ask("POST", score, b"{}", key=key[:-1])
    said = capsys.readouterr()
    everything = out.decode() + said.out + said.err + caplog.text
    assert "ml_predictions_total" in everything
    assert "BadRecord" in everything
    assert [plant for plant in plants if plant in everything] == []
    assert [key for key in keys if key[19:] in everything] == []
