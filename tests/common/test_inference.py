"""The Open Inference Protocol, asked by the stock client of Triton: what it hears is what the score route says."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPMessage
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from common.clock import WallClock
from common.features.view import Aggregation, FeatureView
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.schema import Event, to_table
from common.serving.app import Runtime
from common.serving.auth import ApiKeys
from common.serving.inference import Inference, Malformed, read, write
from common.serving.server import application
from common.settings import Settings
from common.system import Answer, AnySystem, Outcome, Rows, find, names

PATIENCE = 60  # s
SECRET = "4111-1111"  # whatever is refused, nobody must hear it again
BINARY = "Inference-Header-Content-Length"


class Visit(Event):
    user: str = Field(min_length=1, max_length=20)
    plan: Literal["free", "paid"]
    pages: int = Field(ge=0)
    minutes: float = Field(ge=0)
    is_new: bool


class Basket(Event):
    items: tuple[str, ...]


class Bought(Event):
    visit_id: str
    bought: bool


class Said(Answer):
    value: float
    pages: int
    by: str
    kind: Literal["a", "b"]
    sure: bool
    reasons: tuple[str, ...] = ()


VIEW = FeatureView(
    name="user", source=Visit, entity=("user",),
    aggregations=(Aggregation(name="n", kind="count", window=10**15),),
)  # fmt: skip
INPUTS = {
    "event_id": "BYTES", "event_timestamp": "INT64", "user": "BYTES", "plan": "BYTES", "pages": "INT64",
    "minutes": "FP64", "is_new": "BOOL",
}  # fmt: skip
OUTPUTS = {
    "propensity": "FP64", "value": "FP64", "pages": "INT64", "by": "BYTES", "kind": "BYTES", "sure": "BOOL",
    "answer": "BYTES", "version": "BYTES", "degraded": "BYTES",
}  # fmt: skip
DTYPES = {"BYTES": np.object_, "INT64": np.int64, "FP64": np.float64, "FP32": np.float32, "BOOL": np.bool_}


class Times:
    """So many times the minutes, and how often the user came before."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def rows(self, requests: Sequence[Visit]) -> Rows:
        return Rows(to_table(Visit, requests), np.arange(len(requests) + 1))

    def predict(self, requests: Sequence[Visit], rows: Rows, x: np.ndarray) -> Sequence[float]:
        return [self.factor * r.minutes + float(np.nan_to_num(v[0])) for r, v in zip(requests, x, strict=True)]

    def save(self, folder: Path) -> None:
        (folder / "factor.json").write_text(json.dumps({"factor": self.factor}))


def decide(visit: Visit, value: float, luck: float) -> Said:
    return Said(value=value, pages=visit.pages, by=visit.user, kind="a", sure=visit.is_new, reasons=("some",))


SHOP: AnySystem = replace(
    find("systems", names("systems")[0]),
    name="shop", request=Visit, answer=Said, events=(Visit, Bought), views=(VIEW,), on_demand=(),
    outcome=Outcome(source=Bought, request="visit_id", value="bought", silence=None),
    hides=lambda answer: False, redact=lambda visit: visit, unit=lambda visit: visit.user,
    load=lambda folder: Times(**json.loads((folder / "factor.json").read_text())), decide=decide, score=float,
    degraded=(lambda visit, luck: Said(value=-1.0, pages=0, by="rule", kind="b", sure=False),), reuse=0, many=None,
    hears=None, routes=(), at_once=1_000,
    examples=(
        Visit(event_id="visit-1", event_timestamp=1, user="ann", plan="paid", pages=2, minutes=3.5, is_new=True),
        Bought(event_id="visit-1.bought", event_timestamp=1, visit_id="visit-1", bought=True),
    ),
)  # fmt: skip
FRESH = replace(SHOP, name="fresh")  # nothing was ever published
BASKETS = replace(
    SHOP, name="baskets", request=Basket, events=(Basket, Bought), views=(),
    examples=(Basket(event_id="basket-1", event_timestamp=1, items=("tea",)), SHOP.examples[1]),
)  # fmt: skip


@dataclass
class Served:
    port: int
    keys: dict[str, str]
    versions: dict[str, str]  # "previous" and "champion"
    openapi: dict[str, Any]
    runtime: Runtime
    asked: int = 0

    @contextmanager
    def client(self) -> Iterator[InferenceServerClient]:
        with InferenceServerClient(f"127.0.0.1:{self.port}") as client:
            yield client

    def key(self, *scopes: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[' '.join(scopes)]}"}

    def visits(self, n: int) -> list[dict[str, Any]]:
        """Nobody has asked for them before."""
        self.asked += 1
        return [
            {
                "event_id": f"é{self.asked}.{i}", "event_timestamp": 1 + i, "user": f"u{self.asked}.{i % 2}",
                "plan": ("free", "paid")[i % 2], "pages": 2**53 + 1 + i, "minutes": 0.1 + i / 3, "is_new": i % 2 == 0,
            }
            for i in range(n)
        ]  # fmt: skip

    def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, HTTPMessage]:
        """What is answered, which is as the OpenAPI document declares it."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            said = response.read()
        self.check_declared(method, path, response.status, said, response.headers)
        return response.status, said, response.headers

    def check_declared(self, method: str, path: str, status: int, said: bytes, headers: HTTPMessage) -> None:
        parts = path.split("/")
        if parts[:3] == ["", "v2", "models"]:
            parts[3] = "{name}"
            if parts[4:5] == ["versions"]:
                parts[5] = "{version}"
        declared = self.openapi["paths"]["/".join(parts)][method.lower()]["responses"][str(status)]
        assert bool(said) == ("content" in declared)
        if said:
            assert headers["content-type"] in declared["content"]
        if status != 200 and parts[1] == "v2":
            assert json.loads(said).keys() == {"error"}

    def score(self, visits: list[dict[str, Any]], system: str = "shop") -> list[dict[str, Any]]:
        status, said, _ = self.send("POST", f"/v1/{system}/score", json.dumps(visits).encode(), self.key("score"))
        assert status == 200, said
        found: list[dict[str, Any]] = json.loads(said)
        return found

    def infer(
        self, body: Any, tail: bytes | None = None, *, path: str = "/v2/models/shop/infer", **headers: str
    ) -> tuple[int, bytes]:
        head = json.dumps(body).encode() if not isinstance(body, bytes) else body
        if tail is not None:
            headers = {BINARY: str(len(head)), **headers}
        status, said, _ = self.send("POST", path, head + (tail or b""), {**self.key("score"), **headers})
        return status, said


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    chosen = Settings(home=folder / "home", keys=folder / "keys", deadline_ms=60_000, rate_limit="1000000/second")
    keys, clock, versions = Keys(chosen.keys), WallClock(), {}
    with Registry(chosen.home, clock, keys) as registry:
        for name, factor in (("previous", 1.0), ("champion", 2.0)):
            (made := folder / name).mkdir()
            Times(factor).save(made)
            versions[name] = registry.publish("shop", made, {}, {}, ()).name
            registry.promote("shop", versions[name], who="ada", why="it is better", force=True)
    made_keys = {}
    with closing(ApiKeys(chosen.home, clock, keys)) as access:
        for scopes in ("score", "read", "score read"):
            made_keys[scopes] = access.create(scopes, scopes.split(), expires=None, rate=None)  # type: ignore[arg-type]
        made_keys["slow"] = access.create("slow", ["score"], expires=None, rate="2/hour")
    app = application(chosen, [SHOP, FRESH, BASKETS])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        until = time.monotonic() + PATIENCE
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        assert server.started
        try:
            said = json.loads(json.dumps(app.openapi()))
            yield Served(listener.getsockname()[1], made_keys, versions, said, app.state.runtime)
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def tensors(visits: list[dict[str, Any]], *, binary: bool = True, **datatypes: str) -> list[InferInput]:
    made = []
    for name, datatype in (INPUTS | datatypes).items():
        values = np.array([visit[name] for visit in visits], DTYPES[datatype])
        made.append(InferInput(name, [len(visits)], datatype).set_data_from_numpy(values, binary_data=binary))
    return made


def heard(result: InferResult) -> list[dict[str, Any]]:
    """As the score route says it, without the ids."""
    columns = {name: result.as_numpy(name).tolist() for name in OUTPUTS}
    for name in ("answer", "version", "degraded", "by", "kind"):
        columns[name] = [v.decode() if isinstance(v, bytes) else v for v in columns[name]]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for row in rows:
        answer = json.loads(row["answer"])
        assert all(row[name] == answer[name] for name in OUTPUTS.keys() & answer.keys())
    return [
        {"version": row["version"], "degraded": row["degraded"] or None, "answer": json.loads(row["answer"])}
        for row in rows
    ]


def without_ids(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "event_id"} for row in said]


def document(visits: list[dict[str, Any]]) -> dict[str, Any]:
    """A request that is all JSON."""
    return {
        "inputs": [
            {"name": name, "datatype": kind, "shape": [len(visits)], "data": [visit[name] for visit in visits]}
            for name, kind in INPUTS.items()
        ]
    }


def test_the_stock_client_learns_what_there_is(served: Served) -> None:
    key = served.key("read")
    with served.client() as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.get_server_metadata(headers=key)["extensions"] == ["binary_tensor_data"]
        assert client.is_model_ready("shop", headers=key)
        assert client.is_model_ready("shop", served.versions["previous"], headers=key)
        assert not client.is_model_ready("shop", "nope", headers=key)
        assert not client.is_model_ready("nope", headers=key)
        assert not client.is_model_ready("fresh", headers=key)
        assert not client.is_model_ready("shop")
        said = client.get_model_metadata("shop", headers=key)
        assert (said["name"], said["versions"]) == ("shop", sorted(served.versions.values()))
        assert said["inputs"] == [{"name": n, "datatype": d, "shape": [-1]} for n, d in INPUTS.items()]
        assert said["outputs"] == [{"name": n, "datatype": d, "shape": [-1]} for n, d in OUTPUTS.items()]
        one = client.get_model_metadata("shop", served.versions["previous"], headers=key)
        assert one == said | {"versions": [served.versions["previous"]]}


def test_a_server_that_drains_is_live_but_not_ready(served: Served) -> None:
    served.runtime.is_draining = True
    try:
        with served.client() as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
        assert served.send("GET", "/v2/health/ready")[0] == 400
    finally:
        served.runtime.is_draining = False


@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_those_that_the_score_route_gave_to_the_same_requests(served: Served, binary: bool) -> None:
    visits = served.visits(7)
    before = served.score(visits)
    assert {row["version"] for row in before} == {served.versions["champion"]}
    served.score([{**visit, "event_id": f"{visit['event_id']}+"} for visit in visits])  # the features move on
    outputs = [InferRequestedOutput(name, binary_data=False) for name in OUTPUTS]
    with served.client() as client:
        for asked in (None, outputs):
            result = client.infer(
                "shop", tensors(visits, binary=binary), outputs=asked, request_id="r 1", headers=served.key("score")
            )
            assert heard(result) == without_ids(before)
            response = result.get_response()
            assert (response["id"], response["model_name"]) == ("r 1", "shop")
            assert response["model_version"] == served.versions["champion"]
            assert {o["name"]: o["datatype"] for o in response["outputs"]} == OUTPUTS
            assert all(("data" in o) is (asked is not None) for o in response["outputs"])


@pytest.mark.parametrize("binary", [True, False])
def test_the_score_route_gives_the_answers_that_were_given_here(served: Served, binary: bool) -> None:
    visits = served.visits(1_000)
    with served.client() as client:
        result = client.infer("shop", tensors(visits, binary=binary), headers=served.key("score"))
    assert heard(result) == without_ids(served.score(visits))
    assert result.as_numpy("pages").tolist() == [visit["pages"] for visit in visits]


def test_only_the_outputs_that_are_wanted_come_each_in_its_form(served: Served) -> None:
    outputs = [InferRequestedOutput("sure"), InferRequestedOutput("by", binary_data=False), InferRequestedOutput("by")]
    visits = served.visits(3)
    with served.client() as client:
        result = client.infer("shop", tensors(visits), outputs=outputs[:2], headers=served.key("score"))
        assert result.as_numpy("value") is None
        assert result.as_numpy("sure").tolist() == [True, False, True]
        assert result.get_output("by")["data"] == [visit["user"] for visit in visits]
        assert "data" not in result.get_output("sure")
        with pytest.raises(InferenceServerException, match=r"outputs\.0\.name: must be one of propensity, ") as caught:
            client.infer("shop", tensors(visits), outputs=[InferRequestedOutput(SECRET)], headers=served.key("score"))
    assert (caught.value.status(), SECRET in str(caught.value)) == ("400", False)


def test_a_pinned_version_answers_and_one_that_is_not_live_is_not_found(served: Served) -> None:
    visits = served.visits(2)
    old = served.versions["previous"]
    with served.client() as client:
        result = client.infer("shop", tensors(visits), old, headers=served.key("score"))
        assert [row["version"] for row in heard(result)] == [old, old]
        assert result.as_numpy("value").tolist() == [visit["minutes"] for visit in visits]
        for pinned in ("nope", old[:6], "%00"):
            with pytest.raises(InferenceServerException, match="version: must be the full name of one that is live"):
                client.infer("shop", tensors(visits), pinned, headers=served.key("score"))
    assert served.infer(document(visits), path="/v2/models/nope/infer")[0] == 404
    assert served.send("GET", "/v2/models/shop/versions/nope", headers=served.key("read"))[0] == 404


def test_a_float_may_come_with_less_precision(served: Served) -> None:
    visits = served.visits(2)
    with served.client() as client:
        result = client.infer("shop", tensors(visits, minutes="FP32"), headers=served.key("score"))
    assert result.as_numpy("value").tolist() == [2 * float(np.float32(visit["minutes"])) for visit in visits]


def test_without_a_champion_the_rule_answers_and_says_so(served: Served) -> None:
    with served.client() as client:
        result = client.infer("fresh", tensors(served.visits(1)), headers=served.key("score"))
    assert result.as_numpy("degraded").tolist() == [b"rule: no version is live"]
    assert result.as_numpy("by").tolist() == [b"rule"]


def test_a_system_whose_requests_are_no_columns_is_not_offered_and_says_why(served: Served) -> None:
    for method, path in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
        status, said, _ = served.send(method, f"/v2/models/baskets{path}", b"{}", served.key("score", "read"))
        assert status == 404
        assert b"items cannot be a tensor of shape [n]; use POST /v1/baskets/score" in said


def test_each_route_asks_for_its_scope_and_refuses_as_the_protocol_does(served: Served) -> None:
    for headers, expected in (({}, 401), ({"Authorization": f"Bearer {SECRET}"}, 401), (served.key("score"), 403)):
        for path in ("/v2", "/v2/models/shop", "/v2/models/shop/ready", f"/v2/models/shop/versions/{SECRET}"):
            status, said, _ = served.send("GET", path, headers=headers)
            assert (status, SECRET.encode() in said) == (expected, False)
    body = json.dumps(document(served.visits(1))).encode()
    assert served.send("POST", "/v2/models/shop/infer", body)[0] == 401
    assert served.send("POST", "/v2/models/shop/infer", body, served.key("read"))[0] == 403
    with served.client() as client, pytest.raises(InferenceServerException, match="API key: there is none") as caught:
        client.infer("shop", tensors(served.visits(1)))
    assert caught.value.status() == "401"


def test_a_row_costs_as_much_as_a_request_and_who_asks_too_often_hears_when_to_come_back(served: Served) -> None:
    body = json.dumps(document(served.visits(2))).encode()
    assert served.send("POST", "/v2/models/shop/infer", body, served.key("slow"))[0] == 200
    status, said, headers = served.send("POST", "/v2/models/shop/infer", body, served.key("slow"))
    assert (status, json.loads(said).keys()) == (429, {"error"})
    assert int(headers["retry-after"]) > 1


def test_an_id_of_another_event_is_a_conflict(served: Served) -> None:
    visits = served.visits(1)
    served.score(visits)
    assert served.infer(document([{**visits[0], "minutes": 99.0}]))[0] == 409


def test_compressed_bodies_are_refused(served: Served) -> None:
    with served.client() as client, pytest.raises(InferenceServerException, match="content-encoding") as caught:
        client.infer(
            "shop", tensors(served.visits(1)), headers=served.key("score"), request_compression_algorithm="gzip"
        )
    assert caught.value.status() == "415"
    assert served.infer({}, **{"Content-Encoding": "br"})[0] == 415


@pytest.mark.parametrize(
    ("field", "value"), [("minutes", -1.0), ("minutes", float("nan")), ("plan", SECRET), ("user", SECRET * 9)]
)
def test_a_row_that_breaks_its_schema_is_refused_as_by_the_score_route(served: Served, field: str, value: Any) -> None:
    visits = served.visits(3)
    visits[1][field] = value
    _, expected, _ = served.send("POST", "/v1/shop/score", json.dumps(visits).encode(), served.key("score"))
    with served.client() as client, pytest.raises(InferenceServerException) as caught:
        client.infer("shop", tensors(visits), headers=served.key("score"))
    assert (caught.value.status(), caught.value.message()) == ("422", json.loads(expected)["detail"])
    assert caught.value.message().startswith(f"1.{field}: ")
    assert SECRET not in caught.value.message()


def tensor(body: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(t for t in body["inputs"] if t["name"] == name)
    return found


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "inputs.2.name: must be one of event_id, ": lambda b: tensor(b, "user").update(name=SECRET),
    "user, pages: must be among the inputs": lambda b: [b["inputs"].remove(tensor(b, n)) for n in ("user", "pages")],
    "inputs.7.name: must be new": lambda b: b["inputs"].append(tensor(b, "user")),
    "inputs: list should have at least 1 item": lambda b: b.update(inputs=[]),
    "inputs: field required": lambda b: b.pop("inputs"),
    "minutes: datatype must be FP64": lambda b: tensor(b, "minutes").update(datatype="INT64", data=[1, 2]),
    "inputs.5: datatype: must be one of BYTES, INT64": lambda b: tensor(b, "minutes").update(datatype=SECRET),
    "inputs.4.data.0: input should be a valid integer": lambda b: tensor(b, "pages").update(data=[SECRET, 1]),
    "inputs.4.data.1: input should be less than": lambda b: tensor(b, "pages").update(data=[1, 2**63]),
    "inputs.6.data.0: input should be a valid boolean": lambda b: tensor(b, "is_new").update(data=[1, 0]),
    "inputs.2.data.0: input should be a valid string": lambda b: tensor(b, "user").update(data=[["a"], ["b"]]),
    "inputs.2.data: must have as many items as the shape says, 2": lambda b: tensor(b, "user").update(data=["a"]),
    "user: shape must be that of the first input, [2]": lambda b: tensor(b, "user").update(shape=[1], data=["a"]),
    "inputs.2.shape.0: input should be less than or equal to 1000": lambda b: tensor(b, "user").update(shape=[1001]),
    "inputs.2.shape.0: input should be greater than or equal to 1": lambda b: tensor(b, "user").update(shape=[-2]),
    "inputs.2.shape: tuple should have at most 1 item": lambda b: tensor(b, "user").update(shape=[2, 1]),
    "inputs.2: must have either data or": lambda b: tensor(b, "user").pop("data"),
    "inputs.3: must have either data or": lambda b: tensor(b, "plan").update(parameters={"binary_data_size": 8}),
    "inputs.2.parameters: extra inputs": lambda b: tensor(b, "user").update(parameters={"shared_memory_region": "x"}),
    "parameters: extra inputs are not permitted": lambda b: b.update(parameters={SECRET: 1}),
    "body: extra inputs are not permitted": lambda b: b.update({SECRET: 1}),
    "outputs.0.parameters: extra inputs": lambda b: b.update(outputs=[{"name": "by", "parameters": {SECRET: 3}}]),
    "id: input should be a valid string": lambda b: b.update(id=7),
}


@pytest.mark.parametrize("expected", BROKEN)
def test_a_request_that_is_not_of_the_protocol_is_refused_and_not_repeated(served: Served, expected: str) -> None:
    body = document(served.visits(2))
    BROKEN[expected](body)
    status, said = served.infer(body)
    assert (status, SECRET.encode() in said) == (400, False)
    assert json.loads(said)["error"].startswith(expected)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"\xff", b'{"id": "\\ud800"}', b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(served: Served, body: bytes) -> None:
    assert served.infer(body)[0] == 400


def in_bytes(*words: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(word)) + word for word in words)


WHOLE = in_bytes(b"ann", b"bob")
LIES: dict[str, tuple[int, bytes, str]] = {
    "it has less": (len(WHOLE) + 1, WHOLE, "binary_data_size must be what the body has left, 14, or less"),
    "it has more": (len(WHOLE), WHOLE + b"x", "body: must end with its last tensor"),
    "it is negative": (-1, WHOLE, "binary_data_size: input should be greater than or equal to 0"),
    "it is huge": (2**64, WHOLE, "binary_data_size: input should be less than or equal to"),
    "an item ends outside": (14, WHOLE[:7] + struct.pack("<I", 4) + b"bob", "item 1 must end within the tensor"),
    "an item has 4 GiB": (14, struct.pack("<I", 2**32 - 1) + WHOLE[4:], "item 0 must end within the tensor"),
    "a length is cut": (9, WHOLE[:9], "item 1 must end within the tensor"),
    "an item is missing": (7, WHOLE[:7], "item 1 must end within the tensor"),
    "an item is too many": (21, WHOLE + in_bytes(b"eve"), "must end with item 1"),
    "nothing is there": (0, b"", "item 0 must end within the tensor"),
    "it is not UTF-8": (10, in_bytes(b"a", b"\xff"), "item 1 must be UTF-8"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_the_bytes_of_a_tensor_is_refused(served: Served, lie: str) -> None:
    size, raw, expected = LIES[lie]
    body = document(served.visits(2))
    del tensor(body, "user")["data"]
    tensor(body, "user")["parameters"] = {"binary_data_size": size}
    status, said = served.infer(body, raw)
    assert status == 400
    assert expected in json.loads(said)["error"]


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("minutes", bytes(15), "binary_data_size must be 16 for 2 of FP64"),
        ("pages", bytes(8), "binary_data_size must be 16 for 2 of INT64"),
        ("is_new", b"\1\2", "must be of bytes 0 and 1"),
    ],
)
def test_numbers_have_their_size_and_booleans_their_values(
    served: Served, name: str, raw: bytes, expected: str
) -> None:
    body = document(served.visits(2))
    del tensor(body, name)["data"]
    tensor(body, name)["parameters"] = {"binary_data_size": len(raw)}
    status, said = served.infer(body, raw)
    assert (status, expected in json.loads(said)["error"]) == (400, True)


@pytest.mark.parametrize("length", ["-1", "x", "", "9" * 30, "1e3", "²", "1000000"])
def test_a_length_of_the_json_that_cannot_be_is_refused(served: Served, length: str) -> None:
    body = document(served.visits(1))
    status, said = served.infer(body, b"", **{BINARY: length})
    assert status == 400
    assert json.loads(said)["error"].startswith("inference-header-content-length: must be")


def test_more_bytes_than_are_taken_are_refused(served: Served) -> None:
    with closing(HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)) as connection:
        connection.putrequest("POST", "/v2/models/shop/infer")
        for name, value in {**served.key("score"), "content-length": str(2 << 20)}.items():
            connection.putheader(name, value)
        connection.endheaders()  # the answer does not wait for the body, and it could not be sent to the end
        assert connection.getresponse().status == 413


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "BYTES": TEXT,
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FP64": st.floats(allow_nan=False),
    "FP32": st.floats(width=32, allow_nan=False),
    "BOOL": st.booleans(),
}


@st.composite
def some_columns(draw: st.DrawFn) -> dict[str, tuple[str, list[Any]]]:
    n = draw(st.integers(1, 5))
    kinds = draw(st.dictionaries(TEXT, st.sampled_from(sorted(VALUES)), min_size=1, max_size=5))
    return {name: (kind, draw(st.lists(VALUES[kind], min_size=n, max_size=n))) for name, kind in kinds.items()}


@given(some_columns())
def test_what_the_stock_client_packs_is_read_as_it_was(columns: dict[str, tuple[str, list[Any]]]) -> None:
    inputs = [
        InferInput(name, [len(values)], kind).set_data_from_numpy(np.array(values, DTYPES[kind]))
        for name, (kind, values) in columns.items()
    ]
    body, length = InferenceServerClient.generate_request_body(inputs)
    asked, found = read(body, str(length))
    assert {t.name: t.datatype for t in asked.inputs} == {name: kind for name, (kind, _) in columns.items()}
    assert found == {name: values for name, (_, values) in columns.items()}


@given(some_columns(), st.data())
def test_what_is_packed_here_is_read_by_the_stock_client_as_it_was(
    columns: dict[str, tuple[str, list[Any]]], data: st.DataObject
) -> None:
    columns = {f"o{name}": column for name, column in columns.items()}
    n = len(next(iter(columns.values()))[1])
    columns["version"] = ("BYTES", ["v"] * n)
    wanted = data.draw(st.lists(st.sampled_from(sorted(columns)), unique=True))
    asked = Inference.model_validate(
        {
            "inputs": [{"name": "x", "datatype": "BOOL", "shape": (1,)}],
            "parameters": {"binary_data_output": data.draw(st.booleans())},
            "outputs": [
                {"name": name, "parameters": {"binary_data": data.draw(st.none() | st.booleans())}} for name in wanted
            ],
        }
    )
    infinite = any(abs(v) == float("inf") for _, values in columns.values() for v in values if isinstance(v, float))
    if infinite and not asked.parameters.binary_data_output:
        return  # JSON has no infinity, and no answer has one
    response = write("m", asked, {n: k for n, (k, _) in columns.items()}, {n: v for n, (_, v) in columns.items()})
    length = response.headers.get(BINARY)
    found = InferResult.from_response_body(bytes(response.body), header_length=None if length is None else int(length))
    assert [output["name"] for output in found.get_response()["outputs"]] == (wanted or list(columns))
    for name in wanted or columns:
        values = found.as_numpy(name).tolist()
        assert [v.decode() if isinstance(v, bytes) else v for v in values] == columns[name][1]


PACKED, LENGTH = InferenceServerClient.generate_request_body(
    tensors([{**SHOP.examples[0].model_dump(), "event_id": f"m{i}"} for i in range(2)]),
    outputs=[InferRequestedOutput("by")],
)
edits = st.tuples(st.integers(0, len(PACKED)), st.integers(0, 12), st.binary(max_size=12))


def edited(changes: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Some bytes taken out, and others put in their place."""
    body = PACKED
    for at, out, into in changes:
        body = body[:at] + into + body[at + out :]
    return body


lengths = st.just(LENGTH) | st.integers(LENGTH - 9, LENGTH + 9) | st.integers(0, 2 * len(PACKED))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(edits, min_size=1, max_size=3), lengths)
def test_whatever_is_done_to_a_request_the_server_is_not_at_fault(
    served: Served, changes: list[tuple[int, int, bytes]], length: int
) -> None:
    status, _ = served.infer(edited(changes), b"", **{BINARY: str(length)})
    assert status in {200, 400, 409, 422}


@settings(max_examples=500)
@given(st.lists(edits, min_size=1, max_size=3), lengths)
def test_what_cannot_be_read_is_malformed_and_nothing_worse(changes: list[tuple[int, int, bytes]], length: int) -> None:
    try:
        asked, columns = read(edited(changes), str(length))
    except Malformed:
        return
    assert all(len(columns[t.name]) == t.shape[0] for t in asked.inputs)
