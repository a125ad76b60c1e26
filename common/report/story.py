"""The document of one simulated run, as the page needs it: what is missing is None, never zero."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.errors import BadRecord

WEEK = 7  # days
T = TypeVar("T")


def _printable(text: str) -> str:
    """One line that may stand in XML: a control character would make a picture unreadable."""
    return " ".join(
        re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0001fffd]", "\ufffd", text).split()
    )


def _ascending(days: tuple[float, ...]) -> tuple[float, ...]:
    if any(b <= a for a, b in pairwise(days)):
        raise ValueError("must ascend")
    return days


Text = Annotated[str, AfterValidator(_printable)]
Number = Annotated[float, Field(ge=-1e100, le=1e100, allow_inf_nan=False)]
Measured = Number | None
Day = Annotated[float, Field(ge=-1e5, le=1e5, allow_inf_nan=False)]  # since the simulated start
Days = Annotated[tuple[Day, ...], AfterValidator(_ascending)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    def _same_length(self, of: str, *names: str) -> None:
        for name in names:
            if len(getattr(self, name)) != len(getattr(self, of)):
                raise ValueError(f"{name}: must have one value for each of {of}, got {len(getattr(self, name))}")


class Week(_Part):
    week: Annotated[int, Field(ge=0, le=10_000)]
    requests: Count | None
    loss: Measured  # this one and those below: in the document's unit, per 1,000 requests
    ceiling: Measured
    regret: Measured
    regret_without: Measured


class Event(_Part):
    day: Day
    kind: Text
    what: Text
    version: Text | None


class Drift(_Part):
    """Distance of each column to its reference, as a ratio to its threshold."""

    days: Days
    columns: Mapping[Text, tuple[Measured, ...]]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, ratios in self.columns.items():
            if len(ratios) != len(self.days):
                raise ValueError(f"columns.{name}: must have one value for each of days, got {len(ratios)}")
        return self


class Quality(_Part):
    days: Days
    estimated: tuple[Measured, ...]
    realised: tuple[Measured, ...]
    low: tuple[Measured, ...]
    high: tuple[Measured, ...]
    doubts: tuple[Text | None, ...]  # why an estimate is not to be trusted
    metric: Text

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._same_length("days", "estimated", "realised", "low", "high", "doubts")
        return self


class Canary(_Part):
    version: Text
    began: Day
    ended: Day | None
    steps: tuple[tuple[Day, Share], ...]
    end: Text
    why: Text


class Calibration(_Part):
    version: Text
    predicted: tuple[Share | None, ...]
    observed: tuple[Share | None, ...]
    low: tuple[Share | None, ...]
    high: tuple[Share | None, ...]
    count: tuple[Count | None, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._same_length("predicted", "observed", "low", "high", "count")
        return self


class Reasons(_Part):
    """How often each reason was given, as a share of the doubted requests."""

    before: Mapping[Text, Share | None]
    after: Mapping[Text, Share | None]


class Fan(_Part):
    """What was forecast on a day of one unit, and what was observed, before and after."""

    unit: Text
    why: Text  # it is shown
    asked: Day
    days: Days
    observed: tuple[Measured, ...]
    median: tuple[Measured, ...]  # None: before it was asked
    lower_80: tuple[Measured, ...]
    upper_80: tuple[Measured, ...]
    lower_95: tuple[Measured, ...]
    upper_95: tuple[Measured, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        self._same_length("days", "observed", "median", "lower_80", "upper_80", "lower_95", "upper_95")
        return self


class Fans(_Part):
    value: Text  # what is forecast
    shown: tuple[Fan, ...]


class Version(_Part):
    name: Text
    day: Day | None
    why: Text
    fate: Text
    metrics: Mapping[Text, Measured]


class Alarm(_Part):
    name: Text
    began: Day
    ended: Day | None  # None: it still rings
    look_at: Text


class Story(_Part):
    system: Text
    summary: Text
    preset: Text
    seed: int
    days: Annotated[float, Field(gt=0, le=1e5)]
    drift: Text | None
    unit: Text
    detection_delay: Day | None
    false_alarms: Count | None
    closed: Measured  # share of the regret that the drift caused
    requests: Count | None
    weeks: tuple[Week, ...]
    events: tuple[Event, ...]
    drift_by_feature: Drift
    quality: Quality
    canaries: tuple[Canary, ...]
    calibration: tuple[Calibration, ...]
    reasons: Reasons
    versions: tuple[Version, ...]
    alarms: tuple[Alarm, ...]
    fans: Fans | None = None  # None: it is no system that forecasts days ahead

    @model_validator(mode="after")
    def _one_of_each_week(self) -> Self:
        _ascending(tuple(week.week for week in self.weeks))
        return self

    @property
    def drift_day(self) -> float | None:
        """That of its event, or of a declaration such as `name@30`."""
        said = re.fullmatch(r".*@(\d{1,5}(?:\.\d+)?)", self.drift or "")
        began = (event.day for event in self.events if event.kind == "drift")
        return next(began, float(said[1]) if said else None)

    @property
    def every_week(self) -> tuple[Week, ...]:
        """To the end of the run; a week that the document leaves out is missing, not bridged."""
        known = {week.week: week for week in self.weeks}
        nothing = dict.fromkeys(("requests", "loss", "ceiling", "regret", "regret_without"))
        until = max(ceil(self.days / WEEK), *(week + 1 for week in known), 0)
        return tuple(known.get(i) or Week(week=i, **nothing) for i in range(until))


def read(document: Mapping[str, Any]) -> Story:
    """What `mlsys simulate --json` prints; raises BadRecord with the field, the rule and the value."""
    try:
        return Story.model_validate(dict(document))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "document"
        raise BadRecord(f"{where}: {wrong['msg'].lower()}, got {str(wrong['input'])[:80]}") from None


def gaps(days: Sequence[float], until: float, *columns: Sequence[Measured]) -> tuple[list[float], list[list[Measured]]]:
    """The same columns from day 0 to the end, with None where days were left out: no line is drawn across them."""
    steps = sorted(b - a for a, b in pairwise(days))
    usual = steps[len(steps) // 2] if steps else 1.0
    values: dict[float, Sequence[Measured]] = dict(zip(days, zip(*columns, strict=True), strict=True))
    for a, b in pairwise([min(0.0, *days), *days, max(until, *days)]) if days else ():
        if b - a > 1.5 * usual:
            for absent in {a + usual, b - usual} if b - a > 2 * usual else {(a + b) / 2}:
                values.setdefault(absent, [None] * len(columns))
    x = sorted(values)
    return x, [[values[at][i] for at in x] for i in range(len(columns))]
