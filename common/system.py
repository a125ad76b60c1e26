"""What a system is: one field per room. The platform reads this record and nothing else of a system."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import optuna
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from common.data.folder import Layout
from common.errors import BadDefinition, MissingExtra, NotFound
from common.features.view import Array, FeatureView, OnDemand, Times
from common.registry.gates import Gate
from common.schema import Event, Record

# What ids of answers end with, behind that of the request: nobody outside can take one, their ids hold no \x1f
ANSWERED, SHADOWED = "\x1fanswer", "\x1fshadow\x1f"
LONGER = 250  # characters of such an id
LONGEST = 200  # characters of a text that is looked up


class Answer(Record):
    """What a system says to a request."""

    propensity: float = Field(gt=0, le=1, default=1.0)  # the chance that the policy gave to what it did


Q = TypeVar("Q", bound=Event)
P = TypeVar("P")
A = TypeVar("A", bound=Answer)
P_co = TypeVar("P_co", covariant=True)
Q_contra = TypeVar("Q_contra", bound=Event, contravariant=True)
A_contra = TypeVar("A_contra", bound=Answer, contravariant=True)

Role: TypeAlias = Literal["champion", "canary", "arm", "pinned", "previous", "rule"]  # in which a version answers

Fault: TypeAlias = Literal["failed", "missing"]  # it raised; it answered with nothing, or with no number

Params: TypeAlias = Mapping[str, float | int | str]


@dataclass(frozen=True)
class Rows:
    """What a model scores: request i owns rows offsets[i]:offsets[i+1]: 1 payment, 500 candidates, 28 horizons."""

    columns: pa.Table
    offsets: NDArray[np.int64]  # (n_requests + 1,)
    notes: Sequence[Any] | None = None  # of each request, what was found beside the rows, for `predict`

    @property
    def owner(self) -> NDArray[np.int64]:
        """Whose row each one is, (n_rows,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def of(self, i: int) -> pa.Table:
        """The rows of a request."""
        return self.columns.slice(self.offsets[i], self.offsets[i + 1] - self.offsets[i])


@dataclass(frozen=True)
class RowError:
    """This request could not be scored, and why; its neighbours could."""

    reason: str


class Model(Protocol[Q_contra, P_co]):
    def rows(self, requests: Sequence[Q_contra]) -> Rows:
        """Retrieval happens here."""

    def predict(self, requests: Sequence[Q_contra], rows: Rows, x: Array) -> Sequence[P_co | RowError]:
        """One prediction per request; x: (n_rows, n_features)."""

    def save(self, folder: Path) -> None:
        """Write files that run no code when loaded."""


class Listener(Protocol):
    """A model that changes with events, such as an index with what can be found: beside what it answers meanwhile."""

    def hear(self, events: pa.Table) -> None:
        """Later events of the kind that its system `hears`, in log order; none is lost by being told twice."""


class Arrival(NamedTuple):
    """An event and when the service hears of it; a label says when its payment was made and comes weeks later."""

    at: int  # us
    event: Event


class Answered(Event):
    """What the platform logs beside each request, at the same time; its own time is that of which the features are."""

    event_id: str = Field(min_length=1, max_length=LONGER)
    request_id: str
    version: str  # of the model, or the name of the rule that answered
    role: Role
    share: float = Field(gt=0, le=1)  # of the units that routing gives to this version
    routed: str  # the version that was to answer; another one did where it had a fault
    fault: Fault | None
    took: int  # us that the version worked on the batch
    score: float | None  # of the prediction, what drift is watched on; None: there was none
    degraded: str | None  # the rung of the ladder that answered, and why
    propensity: float = Field(gt=0, le=1)  # of the action, given the version
    hidden: bool  # the answer means that no outcome will be seen
    answer: str  # JSON
    features: tuple[float | None, ...]  # what the model saw, row by row; None: not known
    positions: tuple[int, ...]  # of the log: each view's values are of the events up to it; one stands for all views
    rows: str | None = None  # JSON, lists by column: the rows of these features; None: the request is its own row


class Shadowed(Event):
    """What another version would have answered to the same request, from the same features. Nobody was told."""

    event_id: str = Field(min_length=1, max_length=LONGER)
    request_id: str
    version: str
    answer: str  # JSON


class World(Protocol[Q_contra, A_contra]):
    """A seeded generator that knows the truth, drifts on command, and reacts to answers."""

    def arrivals(self, until: int) -> Sequence[Arrival]:
        """What the service hears from where the last call ended up to `until` (us, exclusive), in order of `at`."""

    def react(self, answered: Sequence[tuple[Q_contra, A_contra]]) -> None:
        """Clicks, chargebacks, inspections: later, partial; they come out of `arrivals`."""

    def ceiling(self, requests: Sequence[Q_contra]) -> Array:
        """The best possible prediction of each, (n,), from what the service could observe."""

    def segments(self, requests: Sequence[Q_contra]) -> Mapping[str, NDArray[np.bool_]]:
        """By name, which of them belong to a group that only the world can tell, (n,) each."""

    def truth(self, requests: Sequence[Q_contra], rows: Rows) -> Mapping[str, Array]:
        """By name, what only the world knows of each row, (n_rows,) each."""


@dataclass(frozen=True)
class Examples(Generic[Q]):
    """Requests in log order, their features as of each one's time, and what became of them."""

    requests: Sequence[Q]  # n
    rows: Rows
    x: Array  # (n_rows, n_features)
    names: tuple[str, ...]  # of the features
    as_of: Times  # (n,) us, when each request was logged
    labels: Array  # (n_rows,), NaN: not known
    weights: Array  # (n_rows,), 1 / propensity of seeing the outcome; 0: not known
    ceiling: Array | None = None  # (n,), where a world tells
    segments: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)  # (n,) each, likewise
    truth: Mapping[str, Array] = field(default_factory=dict)  # (n_rows,) each, likewise
    events: Mapping[str, pa.Table] = field(default_factory=dict)  # all that the log held, by kind

    def __len__(self) -> int:
        return len(self.requests)

    def between(self, start: int, end: int) -> "Examples[Q]":
        """The examples with start <= as_of < end."""
        a, b = np.searchsorted(self.as_of, [start, end]).tolist()
        i, j = self.rows.offsets[[a, b]].tolist()
        return replace(
            self,
            requests=self.requests[a:b],
            rows=Rows(self.rows.columns.slice(i, j - i), self.rows.offsets[a : b + 1] - i),
            x=self.x[i:j],
            as_of=self.as_of[a:b],
            labels=self.labels[i:j],
            weights=self.weights[i:j],
            ceiling=None if self.ceiling is None else self.ceiling[a:b],
            segments={name: group[a:b] for name, group in self.segments.items()},
            truth={name: values[i:j] for name, values in self.truth.items()},
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """A model's metrics beside those of what it must beat and of the best possible, by the same names."""

    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    ceiling: Mapping[str, float] = field(default_factory=dict)
    segments: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    rows: int


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """The public data set, by its published protocol, beside the published numbers."""

    dataset: str
    metrics: Mapping[str, float]  # of the one final system, on the test part
    published: Mapping[str, Mapping[str, Mapping[str, float]]]  # protocol -> method -> metric -> value
    rows: int
    details: Mapping[str, Any]  # components, validation, choices


class Losses(NamedTuple):
    """What answers cost, in the system's unit, and the least that could have been paid; (n,) each."""

    paid: Array
    least: Array


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the label of a request comes from, and what can be concluded when none came."""

    source: type[Event]
    request: str | None  # its column with the request's event_id; None: it meets what has its `ManyRows.joined`
    value: str | None  # its column with the label; None: that it came is what it says, 1
    silence: float | None  # the label of a request whose outcome had time to come and did not; None: unknown
    is_even: Callable[[Any], bool] = lambda _: True  # whether this one would have come whatever it says

    def label(self, event: Any) -> float:
        return 1.0 if self.value is None else float(getattr(event, self.value))


class Fan(Protocol):
    """What an answer forecasts of the days ahead, a value each: the first is the label of its own request."""

    @property
    def first_day(self) -> int: ...  # days since 1970-01-01
    @property
    def median(self) -> Sequence[float]: ...
    @property
    def lower_80(self) -> Sequence[float]: ...
    @property
    def upper_80(self) -> Sequence[float]: ...
    @property
    def lower_95(self) -> Sequence[float]: ...
    @property
    def upper_95(self) -> Sequence[float]: ...


@dataclass(frozen=True, kw_only=True)
class ManyRows(Generic[P]):
    """Of a system whose requests have rows of their own, each with a label: the products found, the days ahead.

    The label of such a request, by which it is watched, is the largest of its rows'. Where outcomes name no request,
    one is the label of every row with the same values in the `joined` columns, whoever asked and when; a request is
    then watched by what was said of its own values, of which the last word counts.
    """

    key: str  # column of rows and of outcomes: which row of its request it is about
    seen: str  # column of rows: 1 where an outcome could be seen, 0 where the answer left the row out
    replay: Callable[[pa.Table, Mapping[str, pa.Table]], Rows]
    # Of logged requests, from the tables of all kinds by name: the rows as `Model.rows` would have named them at each
    # one's time; they carry the request's event_id.
    kept: Callable[[P], Sequence[int]]  # the rows of a request that are logged with its answer
    joined: tuple[
        str, ...
    ] = ()  # columns of rows, requests and outcomes, always there and no floats, by which they meet
    watched: Callable[[Any, Any], float | None] | None = None
    # Of joined outcomes, given the answer of the request that one meets: 1 or 0, such as whether it was outside the
    # interval that was forecast; None: it says nothing of that answer. Without it, what the outcome says itself.
    fan: Callable[[Any], Fan | None] | None = None  # of answers whose `key` is a day: to be drawn beside what came


@dataclass(frozen=True, kw_only=True)
class Intake:
    """POST /v1/SYSTEM/NAME takes events of a kind, one or many."""

    name: str
    summary: str
    event: type[Event]


def _not_too_long(text: str) -> str:
    if len(text) > LONGEST:
        raise PydanticCustomError("too_long", "must have at most {most} characters", {"most": LONGEST})
    return text


class Text(Record):
    """A text that is looked up."""

    text: Annotated[str, AfterValidator(_not_too_long), Field(json_schema_extra={"maxLength": LONGEST})] = ""


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """GET /v1/SYSTEM/NAME?field=..., or POST of a JSON object, is answered by the champion; nothing of it is logged."""

    name: str
    summary: str
    find: Callable[[Any, Any], Record]  # the model and what is asked, in one thread; raises BadRecord, NotFound
    answer: type[Record]
    asks: type[Record] = Text  # for GET its fields are parameters, so they are texts, numbers, booleans or choices
    method: Literal["GET", "POST"] = "GET"
    example: Record | None = None  # of what is asked, for whoever calls


@dataclass(frozen=True, kw_only=True)
class Page:
    """GET /NAME is a page for people, in one file, that may call nobody but this server."""

    name: str
    summary: str
    html: Callable[[], str]


Route: TypeAlias = Intake | Lookup | Page


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """A number per request that the loop watches, and what to look at first when it alarms."""

    name: str
    column: str  # of the features, or "score"
    look_at: str


@dataclass(frozen=True, kw_only=True)
class Surprising:
    """Where positives that nobody expected are looked for, and how they come."""

    below: tuple[float, ...] = (0.1, 0.3)
    # Shares of positives: among the requests that score below each, 1 for all. Above, a model that is fooled looks no
    # worse than before; where positives are a fixed share of all requests that is not so.
    dispersion: float = 2.0  # variance of a day's positives over their mean, at least: one theft is several of them


@dataclass(frozen=True, kw_only=True)
class System(Generic[Q, P, A]):
    """A vertical, one field per room. Rooms bind their configuration with `partial`."""

    name: str
    summary: str
    request: type[Q]
    answer: type[A]
    events: tuple[type[Event], ...]  # what it hears of; the request is one of them
    views: tuple[FeatureView, ...]
    on_demand: tuple[OnDemand, ...]
    world: Callable[
        [int, str | None, int | None], World[Q, A]
    ]  # seed, drift ("kind@day"), days if not as many as usual
    drifts: tuple[str, ...]  # kinds that the world knows
    history: tuple[int, int]  # us: the log of a new world begins here and ends here
    validation_span: int  # us; tuning is judged on so much of the past
    test_span: int  # us; a candidate is judged on so much of it
    retrain_span: int  # us; likewise, of one that is made in a hurry because the world has changed
    outcome: Outcome
    hides: Callable[[A], bool]  # this action means that its outcome will not be seen
    label_delay: int  # us; outcomes have had time to come
    early_delay: int  # us; most have: enough to learn from and to be warned by, when waiting costs more
    space: Callable[[optuna.Trial], Params]  # what tuning may choose
    params: Params  # what it starts from
    objective: str  # the metric that tuning maximises
    fit: Callable[[Examples[Q], Params], Model[Q, P]]
    load: Callable[[Path], Model[Q, P]]
    score: Callable[[P], float]  # the number of a prediction that drift is watched on
    decide: Callable[[Q, P, float], A]  # the last is a draw from [0, 1) that nobody can foresee, the same for a retry
    degraded: tuple[Callable[[Q, float], A], ...]  # from the best to the one that cannot fail
    unit_of_loss: str
    losses: Callable[[Sequence[Q], Sequence[A], Array], Losses]  # given what each outcome is, or how probable, (n,)
    regret: Callable[[Any, Sequence[Q], Sequence[A]], Losses]  # by what only the world knows, which comes first
    unit: Callable[[Q], str]  # whom a canary is sticky by
    redact: Callable[[Q], Q]
    evaluate: Callable[[Model[Q, P], Examples[Q]], Report]
    gates: tuple[Gate, ...]
    retrain_gates: tuple[Gate, ...]  # of a candidate that is made because the champion no longer fits
    monitors: tuple[Monitor, ...]
    routes: tuple[Route, ...]
    examples: tuple[Event, ...]  # one of each kind, the request first: for whoever calls, and to warm a model up
    many: ManyRows[P] | None = None  # None: a request is its only row
    before: Callable[[], Model[Q, P]] | None = None  # answers a new world's history; None: the last of `degraded` does
    hears: type[Event] | None = None  # what its models hear of while they are live, see `Listener`
    surprise: Surprising = Surprising()
    at_once: int = 1_000  # requests in one call, at most: while they are answered others wait
    reuse: int = 0  # us that a prediction may be used again for an equal request with equal features; 0: never
    layout: Layout = ()  # of the user's own data; (): takes none
    benchmark: Callable[[Path | None], BenchmarkResult]  # MLSYS_DATA_DIR

    def __post_init__(self) -> None:
        if (self.outcome.request is None) != bool(self.many and self.many.joined):
            raise BadDefinition(
                f"{self.name}: outcome.request: must be None where many.joined is given, and only there"
            )

    @property
    def logged(self) -> tuple[type[Event], ...]:
        """All that its log may hold."""
        return (*self.events, Answered, Shadowed)


AnySystem: TypeAlias = System[Any, Any, Any]


@dataclass(frozen=True, kw_only=True)
class Presets:
    """The same system in two sizes, each built when it is asked for."""

    small: Callable[[], AnySystem]  # trains in seconds
    full: Callable[[], AnySystem]
    simulated: Callable[[], AnySystem]  # like the full one, as large as months of it can be lived through in minutes


def names(package: str) -> list[str]:
    """The systems of a package, none of them imported."""
    try:
        found = importlib.import_module(package)
    except ModuleNotFoundError:
        raise NotFound(f"MLSYS_SYSTEMS: no package {package!r} can be imported") from None
    return sorted(m.name for m in pkgutil.iter_modules(getattr(found, "__path__", [])) if m.ispkg)


def find(package: str, name: str, preset: str = "small") -> AnySystem:
    """A system by its name; raises NotFound, or MissingExtra when its packages are not installed."""
    if name not in names(package):
        raise NotFound(f"system: must be one of {', '.join(names(package))}, got {name!r}")
    try:
        presets: Presets = importlib.import_module(f"{package}.{name}.system").SYSTEM
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in (package.split(".")[0], "common"):
            raise
        raise MissingExtra(f"{name}: needs {error.name}; install it with: pip install -e '.[{name}]'") from None
    system: AnySystem = getattr(presets, preset)()
    return system
