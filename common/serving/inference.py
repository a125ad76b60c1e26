"""The Open Inference Protocol V2 over HTTP, with its binary tensors, so that any client of it can call a system.

A request is a row: each field of its record is an input tensor of shape [n], each field of the answer an output.
Source: https://github.com/kserve/open-inference-protocol
"""

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias, get_origin

import numpy as np
from fastapi import FastAPI, Request, Response, Security
from fastapi.security import HTTPBearer
from pydantic import Field, ValidationError
from pydantic_core import from_json, to_json

from common.errors import NotFound, PlatformError
from common.schema import Event, Record, json_schema
from common.serving.app import (
    JSON,
    MOST_BYTES,
    MOST_ROWS,
    PUBLIC,
    Asked,
    GuardedRoute,
    Handler,
    Runtime,
    Served,
    allow,
    begin,
    endpoint,
    parser,
    spend,
    timed,
)
from common.serving.pipeline import Call, Replies
from common.system import AnySystem

MOST_TENSORS = 200
LONGEST = 200  # characters of a name or an id
HEADER: Final = "inference-header-content-length"  # bytes of JSON, before those of the tensors
BINARY: Final = "application/octet-stream"
PLATFORM: Final = "ml-system-design"

DATATYPES: dict[Any, str] = {str: "BYTES", int: "INT64", float: "FP64", bool: "BOOL"}
DTYPES: dict[str, np.dtype[Any]] = {
    "INT64": np.dtype("<i8"),
    "FP64": np.dtype("<f8"),
    "FP32": np.dtype("<f4"),
    "BOOL": np.dtype("?"),
}
SAID = {"answer": "BYTES", "version": "BYTES", "degraded": "BYTES"}  # outputs of every system
TAGS = {"union_tag_invalid", "union_tag_not_found"}  # errors whose messages repeat what was sent

Name = Annotated[str, Field(max_length=LONGEST)]


class Malformed(PlatformError, ValueError):
    """What was sent breaks the protocol, or its tensors are not those of the model."""


class Placed(Record):
    """Where the values of an input are: behind the JSON, in the order of the inputs, if they are not in it."""

    binary_data_size: int | None = Field(default=None, ge=0, le=MOST_BYTES)


class Tensor(Record):
    """One field of all requests."""

    name: Name
    shape: tuple[Annotated[int, Field(ge=1, le=MOST_ROWS)]]
    parameters: Placed = Placed()


class Strings(Tensor):
    datatype: Literal["BYTES"]
    data: list[str] | None = Field(None, max_length=MOST_ROWS, fail_fast=True)


class Integers(Tensor):
    datatype: Literal["INT64"]
    data: list[Annotated[int, Field(ge=-(2**63), lt=2**63)]] | None = Field(None, max_length=MOST_ROWS, fail_fast=True)


class Floats(Tensor):
    datatype: Literal["FP64", "FP32"]
    data: list[float] | None = Field(None, max_length=MOST_ROWS, fail_fast=True)


class Booleans(Tensor):
    datatype: Literal["BOOL"]
    data: list[bool] | None = Field(None, max_length=MOST_ROWS, fail_fast=True)


class Form(Record):
    binary_data: bool | None = None  # None: as the request says for all


class Output(Record):
    """One that is wanted."""

    name: Name
    parameters: Form = Form()


class Forms(Record):
    binary_data_output: bool = False


class Inference(Record):
    """A request of the protocol. A parameter that is not known here is refused, since ignoring it could mislead."""

    id: str = Field("", max_length=LONGEST)
    inputs: list[Annotated[Strings | Integers | Floats | Booleans, Field(discriminator="datatype")]] = Field(
        min_length=1, max_length=MOST_TENSORS, fail_fast=True
    )
    outputs: list[Output] = Field([], max_length=MOST_TENSORS, fail_fast=True)
    parameters: Forms = Forms()


KNOWN = {name for kind in (Inference, Floats, Output, Placed, Form, Forms) for name in kind.model_fields}
Columns: TypeAlias = Mapping[str, Sequence[Any]]


def read(body: bytes, header: str | None) -> tuple[Inference, Columns]:
    """A request and the values of its inputs; `header` says how many bytes are JSON. Raises Malformed."""
    end = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) <= 12 and int(header) <= end):
            raise Malformed(f"{HEADER}: must be a number of bytes, at most those of the body")
        end = int(header)
    try:
        asked = Inference.model_validate_json(body[:end])
    except ValidationError as error:
        raise Malformed(_explained(error)) from None
    columns: dict[str, Sequence[Any]] = {}
    for i, tensor in enumerate(asked.inputs):
        (n,), size = tensor.shape, tensor.parameters.binary_data_size
        if tensor.name in columns:
            raise Malformed(f"inputs.{i}.name: must be new")
        if (size is None) == (tensor.data is None):
            raise Malformed(f"inputs.{i}: must have either data or the parameter binary_data_size")
        if size is not None:
            columns[tensor.name] = _decoded(f"inputs.{i}", tensor.datatype, n, body[end : end + size], size)
            end += size
        elif tensor.data is not None:
            if len(tensor.data) != n:
                raise Malformed(f"inputs.{i}.data: must have as many items as the shape says, {n}")
            columns[tensor.name] = tensor.data
    if end != len(body):
        raise Malformed("body: must end with its last tensor")
    return asked, columns


def _explained(error: ValidationError) -> str:
    """Field and rule of the first mistake; no value, and no name that is not ours."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in KNOWN)
    rule = f"datatype: must be one of BYTES, {', '.join(DTYPES)}" if first["type"] in TAGS else first["msg"].lower()
    return f"{where or 'body'}: {rule}"


def _decoded(where: str, datatype: str, n: int, raw: bytes, size: int) -> Sequence[Any]:
    if len(raw) < size:
        raise Malformed(f"{where}: binary_data_size must be what the body has left, {len(raw)}, or less")
    if datatype == "BYTES":
        return _strings(where, n, raw)
    dtype = DTYPES[datatype]
    if size != n * dtype.itemsize:
        raise Malformed(f"{where}: binary_data_size must be {n * dtype.itemsize} for {n} of {datatype}")
    if datatype == "BOOL" and max(raw) > 1:
        raise Malformed(f"{where}: must be of bytes 0 and 1")
    found: list[Any] = np.frombuffer(raw, dtype).tolist()
    return found


def _strings(where: str, n: int, raw: bytes) -> list[str]:
    """Each is its length, 4 bytes, and so many bytes of UTF-8."""
    found, at = [], 0
    for i in range(n):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        if at > len(raw):
            raise Malformed(f"{where}: item {i} must end within the tensor")
        try:
            found.append(raw[start:at].decode())
        except UnicodeDecodeError:
            raise Malformed(f"{where}: item {i} must be UTF-8") from None
    if at != len(raw):
        raise Malformed(f"{where}: must end with item {n - 1}")
    return found


def _encoded(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != "BYTES":
        return bytes(np.array(values, DTYPES[datatype]).data)
    raw = [value.encode() for value in values]
    return b"".join(len(value).to_bytes(4, "little") + value for value in raw)


def write(model: str, asked: Inference, datatypes: Mapping[str, str], columns: Columns) -> Response:
    """The outputs that are wanted, each in the form that is wanted."""
    outputs, tail = list[dict[str, Any]](), list[bytes]()
    for output in asked.outputs or [Output(name=name) for name in datatypes]:
        name, form = output.name, output.parameters.binary_data
        said: dict[str, Any] = {"name": name, "datatype": datatypes[name], "shape": [len(columns[name])]}
        if asked.parameters.binary_data_output if form is None else form:
            tail.append(_encoded(datatypes[name], columns[name]))
            outputs.append(said | {"parameters": {"binary_data_size": len(tail[-1])}})
        else:
            outputs.append(said | {"data": columns[name]})
    versions = set(columns["version"])
    head = to_json(
        {"model_name": model}
        | ({"model_version": versions.pop()} if len(versions) == 1 else {})
        | ({"id": asked.id} if asked.id else {})
        | {"outputs": outputs}
    )
    if not tail:
        return Response(head, media_type=JSON)
    return Response(b"".join([head, *tail]), headers={HEADER: str(len(head))}, media_type=BINARY)


@dataclass(frozen=True)
class _Model:
    """A system as the protocol sees it."""

    name: str
    inputs: Mapping[str, str]  # datatypes
    required: frozenset[str]
    outputs: Mapping[str, str]
    parse: Callable[[bytes], tuple[Sequence[Any], bool]]

    @classmethod
    def of(cls, system: AnySystem) -> "_Model":
        fields = system.request.model_fields
        required = frozenset(name for name, field in fields.items() if field.is_required())
        return cls(
            system.name,
            _datatypes(system.request),
            required,
            _datatypes(system.answer) | SAID,
            parser(system.request, system.at_once),
        )  # fmt: skip

    @property
    def is_offered(self) -> bool:
        """Not with a field that no tensor of shape [n] can hold."""
        return self.required <= self.inputs.keys()

    def requests(self, asked: Inference, columns: Columns) -> Sequence[Any]:
        """Records, as POST /v1/{system}/score would have made them; raises Malformed, BadRecord."""
        n = asked.inputs[0].shape
        for i, tensor in enumerate(asked.inputs):
            datatype = self.inputs.get(tensor.name)
            if datatype is None:
                raise Malformed(f"inputs.{i}.name: must be one of {', '.join(self.inputs)}")
            if (tensor.datatype, datatype) != ("FP32", "FP64") and tensor.datatype != datatype:
                raise Malformed(f"{tensor.name}: datatype must be {datatype}")
            if tensor.shape != n:
                raise Malformed(f"{tensor.name}: shape must be that of the first input, [{n[0]}]")
        if missing := ", ".join(name for name in self.inputs if name in self.required - columns.keys()):
            raise Malformed(f"{missing}: must be among the inputs")
        for i, output in enumerate(asked.outputs):
            if output.name not in self.outputs:
                raise Malformed(f"outputs.{i}.name: must be one of {', '.join(self.outputs)}")
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return self.parse(to_json(rows))[0]

    def columns(self, replies: Replies) -> Columns:
        answers = [reply.answer for reply in replies]
        return {name: [getattr(answer, name) for answer in answers] for name in self.outputs if name not in SAID} | {
            "answer": [answer.model_dump_json() for answer in answers],
            "version": [reply.version for reply in replies],
            "degraded": [reply.degraded or "" for reply in replies],
        }


def _datatypes(record: type[Record]) -> dict[str, str]:
    """Of the fields that hold one value, which is never null."""
    kinds = {name: field.annotation for name, field in record.model_fields.items()}
    kinds = {name: str if get_origin(kind) is Literal else kind for name, kind in kinds.items()}
    return {name: DATATYPES[kind] for name, kind in kinds.items() if kind in DATATYPES}


class InferenceRoute(GuardedRoute):
    """One whose refusals are said as the protocol does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def run(request: Request) -> Response:
            response = await handle(request)
            if response.media_type == "application/problem+json":
                response.body = to_json({"error": from_json(bytes(response.body))["detail"]})
                response.headers["content-length"] = str(len(response.body))
                response.headers["content-type"] = JSON
            return response

        return run


def _error(status: int, message: str) -> Response:
    return Response(to_json({"error": message}), status, media_type=JSON)


def add_inference(app: FastAPI, systems: Sequence[AnySystem], runtime: Runtime) -> None:
    """Routes under /v2 for these systems."""
    models = {system.name: _Model.of(system) for system in systems}

    def find(asked: Asked) -> tuple[_Model, Served, str | None]:
        """What the path names, and the version if it names one; raises NotFound."""
        name, version = asked.http.path_params["name"], asked.http.path_params.get("version")
        if name not in models or name not in runtime.served:
            raise NotFound(f"model: must be one of {', '.join(runtime.served) or 'none'}")
        served = runtime.served[name]
        if not models[name].is_offered:
            without = ", ".join(sorted(models[name].required - models[name].inputs.keys()))
            raise NotFound(f"model: {without} cannot be a tensor of shape [n]; use POST /v1/{name}/score")
        if version is not None and version not in served.live.current.answering:
            raise NotFound("version: must be the full name of one that is live")
        return models[name], served, version

    @allow("read")
    async def server(asked: Asked) -> Response:
        return Response(
            to_json({"name": PLATFORM, "version": app.version, "extensions": ["binary_tensor_data"]}), media_type=JSON
        )

    @allow(PUBLIC)
    async def server_live(asked: Asked) -> Response:
        return Response()

    @allow(PUBLIC)
    async def server_ready(asked: Asked) -> Response:
        return Response() if runtime.is_ready else _error(400, "server: must be ready; it starts or drains")

    @allow("read")
    async def model_ready(asked: Asked) -> Response:
        _, served, version = find(asked)
        if version is None and served.live.current.routing is None:
            raise NotFound("model: must have a version that is live")
        return Response()

    @allow("read")
    async def metadata(asked: Asked) -> Response:
        model, served, version = find(asked)
        said = {
            "name": model.name,
            "versions": sorted(served.live.current.answering) if version is None else [version],
            "platform": PLATFORM,
            "inputs": [{"name": n, "datatype": d, "shape": [-1]} for n, d in model.inputs.items()],
            "outputs": [{"name": n, "datatype": d, "shape": [-1]} for n, d in model.outputs.items()],
        }
        return Response(to_json(said), media_type=JSON)

    @allow("score")
    async def infer(asked: Asked) -> Response:
        if asked.http.headers.get("content-encoding", "identity").lower() != "identity":
            return _error(415, "content-encoding: must be identity; compressed bodies are not read")
        model, served, version = find(asked)
        deadline = begin(runtime, served, asked.http)
        try:
            wanted, columns = read(await asked.body(), asked.http.headers.get(HEADER))
            requests = model.requests(wanted, columns)
        except Malformed as error:
            return _error(400, str(error))
        spend(runtime, asked.key, len(requests) - 1)
        replies = await timed(runtime, served, Call(requests=requests, pinned=version), deadline, asked)
        return write(model.name, wanted, model.outputs, model.columns(replies))

    def add(path: str, method: str, handler: Handler, summary: str, responses: dict[Any, Any], **extra: Any) -> None:
        scope = handler.scope  # type: ignore[attr-defined]
        if scope != PUBLIC:
            extra["dependencies"] = [Security(HTTPBearer(scheme_name="api_key"), scopes=[scope])]
            responses = {**responses, **_refused(401, 403, 404, 429)}
        app.router.add_api_route(
            path, endpoint(handler), methods=[method], summary=summary, response_model=None, response_class=Response,
            responses=responses, route_class_override=InferenceRoute, **extra,
        )  # fmt: skip

    yes = {200: {"description": "Yes, said with an empty body"}}
    add("/v2", "GET", server, "What this server is", {200: _ok(SERVER)})
    add("/v2/health/live", "GET", server_live, "The process runs", yes)
    add("/v2/health/ready", "GET", server_ready, "It can answer", {**yes, **_refused(400)})
    takes = _takes(system for system in systems if models[system.name].is_offered)
    for version, parameters in (("", [_named(models)]), ("/versions/{version}", [_named(models), VERSION])):
        path, of = f"/v2/models/{{name}}{version}", "a version of a model" if version else "a model"
        in_path = {"parameters": parameters}
        add(path, "GET", metadata, f"The tensors of {of}", {200: _ok(METADATA)}, openapi_extra=in_path)
        add(f"{path}/ready", "GET", model_ready, f"Whether {of} is live", yes, openapi_extra=in_path)
        add(
            f"{path}/infer", "POST", infer, f"Ask {of}: an answer for each row",
            {200: _ok(INFERRED, binary=True), **_refused(400, 408, 409, 413, 415, 422, 503, 504)},
            openapi_extra={"parameters": [*parameters, *HEADERS], "requestBody": takes},
        )  # fmt: skip


REFUSED = {
    400: "Not ready; of a body, that it breaks the protocol, or its tensors are not those of the model",
    401: "No key, or none that is valid",
    403: "The key lacks the scope",
    404: "No such model, or the version is not live",
    408: "The body came too slowly, or the time that the caller gave is over",
    409: "The id is that of another event",
    413: "Too large",
    415: "Compressed",
    422: "A row breaks the schema of the request: the field and the rule",
    429: "Too often for this key: see Retry-After",
    503: "Overloaded, or the log is away: see Retry-After",
    504: "Too late",
}
ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
STRING: Any = {"type": "string"}
STRINGS: Any = {"type": "array", "items": STRING}
SERVER = {
    "type": "object",
    "required": ["name", "version", "extensions"],
    "properties": {"name": STRING, "version": STRING, "extensions": STRINGS},
}
SHAPED: Any = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {"name": STRING, "datatype": STRING, "shape": {"type": "array", "items": {"type": "integer"}}},
}
METADATA = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {
        "name": STRING, "versions": STRINGS, "platform": STRING, "inputs": {"type": "array", "items": SHAPED},
        "outputs": {"type": "array", "items": SHAPED},
    },
}  # fmt: skip
INFERRED = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": STRING,
        "model_version": {**STRING, "description": "if one version gave all answers"},
        "id": STRING,
        "outputs": {
            "type": "array",
            "items": {**SHAPED, "properties": {**SHAPED["properties"], "data": {"type": "array"}}},
        },
    },
}
VERSION = {
    "name": "version", "in": "path", "required": True, "schema": STRING,
    "description": "the full name of a version that is live",
}  # fmt: skip
HEADERS = [
    {
        "name": "x-deadline-ms", "in": "header", "required": False, "schema": {"type": "integer", "minimum": 1},
        "description": "milliseconds left for the answer; the default of the server is the most",
    },
    {
        "name": HEADER, "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0},
        "description": "bytes of JSON, where tensors follow it; without it all is JSON",
    },
]  # fmt: skip


def _named(models: Mapping[str, _Model]) -> dict[str, Any]:
    return {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": sorted(models)}}


def _refused(*statuses: int) -> dict[int, Any]:
    return {s: {"description": REFUSED[s], "content": {JSON: {"schema": ERROR}}} for s in statuses}


def _ok(schema: Any, *, binary: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": schema}}
    if binary:
        content[BINARY] = {"schema": {"type": "string", "format": "binary"}}
    return {"description": "Done", "content": content}


def _inferred(system: AnySystem) -> Event:
    """An event of its own: tensors may say less than the system's example, and one id is one event."""
    one = system.examples[0]
    return one.model_copy(update={"event_id": f"{one.event_id}-inferred"})


def _takes(systems: Iterable[AnySystem]) -> dict[str, Any]:
    examples = {
        system.name: {
            "value": {
                "inputs": [
                    {"name": name, "datatype": datatype, "shape": [1], "data": [getattr(_inferred(system), name)]}
                    for name, datatype in _datatypes(system.request).items()
                ]
            }
        }
        for system in systems
    }
    schema = json_schema(Inference)
    content = {
        JSON: {"schema": schema, "examples": examples},
        BINARY: {"schema": {"type": "string", "format": "binary", "description": "JSON, then the tensors"}},
    }
    return {"required": True, "content": content}
