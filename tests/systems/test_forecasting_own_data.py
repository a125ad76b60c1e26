"""A user's own series: whatever their form and frequency, they become what the service would have heard."""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import DAY, HOUR, SimulatedClock
from common.data import folder as own_data
from common.data.folder import Part
from common.data.log import EventLog
from common.errors import BadData
from common.progress import Progress
from common.schema import from_table
from common.system import Answered
from systems.forecasting.data import own, steps
from systems.forecasting.data.events import HORIZON, Actual, Review
from systems.forecasting.data.own import LAYOUT, REVIEW_DAYS, calendar

NOW = 1_790_000_000_000_000  # us, 2026-09-21T14:13:20
TODAY = NOW // DAY
HEAD = "timestamp,units\n"
FREQUENCIES = [
    "D", "h", "15min", "10s", "3h", "17min", "2D", "W-SUN", "W-WED", "2W-MON", "MS", "ME", "B", "QS-OCT", "QE", "YS",
    "YE", "bh", "BME", "WOM-1MON",
]  # fmt: skip


class Folder:
    def __init__(self, root: Path) -> None:
        self.root, self.said = root, list[str]()

    def write(self, text: str) -> "Folder":
        (self.root / "series.csv").write_text(text)
        return self

    def table(self, table: pa.Table) -> "Folder":
        pq.write_table(table, self.root / "series.parquet")
        return self

    def parts(self, most: float = 0.0, now: int = NOW) -> list[Part]:
        return own_data.read(LAYOUT, self.root, self.root / "aside", most=most, now=now, say=self.said.append)

    def read(self, most: float = 0.0, now: int = NOW) -> tuple[list[Actual], list[Review]]:
        sold, reviewed = self.parts(most, now)
        return from_table(Actual, sold.events), from_table(Review, reviewed.events)

    def aside(self) -> list[str]:
        (path,) = (self.root / "aside").iterdir()
        return path.read_text().splitlines()[1:]


@pytest.fixture
def own_folder(tmp_path: Path) -> Folder:
    (tmp_path / "own").mkdir()
    return Folder(tmp_path / "own")


def days(first: str, n: int) -> list[str]:
    return [str(day) for day in np.arange(np.datetime64(first), np.datetime64(first) + n)]


def daily(values: Sequence[object], first: str = "2026-01-01") -> str:
    return HEAD + "".join(f"{day},{value}\n" for day, value in zip(days(first, len(values)), values, strict=True))


def units(actuals: Sequence[Actual]) -> list[tuple[int, float]]:
    return [(actual.day, actual.units) for actual in actuals]


# What a table becomes


def test_a_long_table_becomes_what_was_sold_each_told_the_next_morning(own_folder: Folder) -> None:
    own_folder.write(
        "timestamp,store_id,product_id,category,units,price,promoted,sold_out,weather\n"
        "2026-01-01,north store,milk,dairy,12.5,1.1,true,0,sun\n"
        "2026-01-02, north store ,milk,,9, 1.2 ,,1,rain\n"
        "2026-01-02,south,bread,bakery,0,2,,,\n"
        "2026-01-03,south,bread,bakery,1,,,,\n"
    )
    sold, _ = own_folder.parts()
    first, second, third, fourth = from_table(Actual, sold.events)
    assert first == Actual(
        event_id="north store/milk/20454", event_timestamp=20_454 * DAY, store_id="north store", product_id="milk",
        category="dairy", day=20_454, units=12.5, price=1.1, promoted=True,
    )  # fmt: skip
    assert (second.store_id, second.category, second.price, second.sold_out) == ("north store", "dairy", 1.2, True)
    assert (third.units, fourth.price) == (0.0, 2.0)
    assert sold.heard.tolist() == [(day + 1) * DAY + 6 * HOUR for day in (20_454, 20_455, 20_455, 20_456)]
    assert sold.ignored == ("weather",)
    assert own_folder.said[0] == "  series.csv: 2 series, long, frequency D, the last step is 2026-01-03"


def test_a_review_knows_the_plan_that_was_seen_later_and_a_price_stays_until_it_changes(own_folder: Folder) -> None:
    prices = [2.0] * 40 + [3.0] * 10 + [2.5] * 10
    rows = zip(days("2026-01-01", 60), prices, strict=True)
    own_folder.write(
        "timestamp,units,price,promoted\n"
        + "".join(f"{day},{i},{price},{i in (30, 45)}\n" for i, (day, price) in enumerate(rows))
        + "2026-03-02,,4,0\n2026-03-03,,4,true\n"  # planned
    )
    sold, reviews = own_folder.read()
    assert len(sold) == 60
    reviewed = {review.day - 20_454: review for review in reviews}
    assert all(review.event_timestamp == review.day * DAY + 8 * HOUR for review in reviews)
    assert sorted(reviewed) == [7, 14, 21, 28, 35, 42, 49, 56, 60]  # every 7 days, and the newest
    assert reviewed[7].prices == (2.0,)
    assert reviewed[14].prices == (2.0,) * 26 + (3.0,)
    assert reviewed[28].prices == (2.0,) * 12 + (3.0,) * 10 + (2.5,)
    assert reviewed[42].prices == (3.0,) * 8 + (2.5,) * 10 + (4.0,)
    assert reviewed[14].promoted == (False,) * 16 + (True,)
    assert reviewed[35].promoted == (False,) * 10 + (True,) + (False,) * 15 + (True,)
    assert (reviewed[60].prices, reviewed[60].promoted) == ((4.0,), (False, True))


def test_a_wide_table_is_a_long_one(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"milk": [1.0, 2.0, np.nan], "rye bread": [0.0, 4.0, 5.5]},
        index=pd.date_range("2026-01-01", periods=3, name="ds"),
    )
    long = frame.reset_index().melt("ds", var_name="unique_id", value_name="y")
    read = []
    for name, table in (("wide", frame.reset_index()), ("long", long)):
        for form in ("csv", "parquet"):
            path = tmp_path / name / form
            path.mkdir(parents=True)
            if form == "csv":
                table.to_csv(path / "series.csv", index=False)
            else:
                table.to_parquet(path / "series.parquet")
            read.append(Folder(path).read())
    assert all(each == read[0] for each in read)
    assert [(a.product_id, a.day, a.units) for a in read[0][0]] == [
        ("milk", 20_454, 1), ("rye bread", 20_454, 0), ("milk", 20_455, 2), ("rye bread", 20_455, 4),
        ("rye bread", 20_456, 5.5),
    ]  # fmt: skip


@pytest.mark.parametrize("frequency", FREQUENCIES)
def test_steps_of_any_frequency_are_consecutive_days_that_can_be_told_by_their_stamps(
    own_folder: Folder, frequency: str
) -> None:
    stamps = pd.date_range(end="2026-02-27 16:00" if frequency == "bh" else "2026-03-01", periods=40, freq=frequency)
    sold, reviews = own_folder.write(pd.Series(range(40), stamps, name="units").to_csv(index_label="timestamp")).read()
    last = sold[-1].day
    assert units(sold) == [(last - 39 + i, i) for i in range(40)]
    whole_days = frequency not in ("h", "15min", "10s", "3h", "17min", "bh")
    end = stamps[-1].normalize() + pd.Timedelta(days=1) if whole_days else stamps[-1] + (stamps[-1] - stamps[-2])
    assert np.datetime64(last + 1, "D") == np.datetime64(end, "D")
    by_day = calendar(pa.Table.from_pylist([review.model_dump() for review in reviews]))
    if frequency == "D":
        assert by_day is None
    else:
        assert by_day is not None
        back = range(39 if frequency == "bh" else 0, 40)  # back over a night, pandas says 17:00 for 9:00
        assert [pd.Timestamp(by_day.label(last - 39 + i)) for i in back] == list(stamps[back])
        assert pd.Timestamp(by_day.label(last + 5)) == stamps[-1] + 5 * pd.tseries.frequencies.to_offset(frequency)


@pytest.mark.parametrize(
    ("stamps", "frequency", "last"),
    [
        (["2023", "2024", "2025"], "YS-JAN", "2025-01-01"),
        (["2024Q4", "2025-Q1", "2025Q2"], "QS-JAN", "2025-04-01"),
        (["2024-01", "2024-02", "2024-04"], "MS", "2024-04-01"),
        (["2024-01-15", "2024-02-15", "2024-03-15", "2024-05-15"], "MS", "2024-05-01"),
        (["2024-01-31", "2024-02-29", "2024-04-30", "2024-05-31"], "MS", "2024-05-01"),
        (["20240101", "20240102"], "D", "2024-01-02"),
        (["2026-01-04", "2026-01-05"], "D", "2026-01-05"),
        (["2026-01-05", "2026-01-07", "2026-01-11", "2026-01-13"], "2D", "2026-01-13"),
        ([f"2026-01-{day:02}" for day in (5, 6, 7, 9, 12, 13, 14, 15, 16, 19)], "B", "2026-01-19"),
        (["2024-01-01 23:00", "2024-01-02 23:00", "2024-01-05 23:00"], "D", "2024-01-05"),
        (["2024-01-01T00", "2024-01-01T06", "2024-01-01T18"], "6h", "2024-01-01 18:00"),
        (["2024-01-01T00:15", "2024-01-01T01:15", "2024-01-01T04:15"], "h", "2024-01-01 04:15"),
        (["2024-01-01T00:00", "2024-01-01T00:17", "2024-01-01T00:51", "2024-01-01T01:08"], "17min", "2024-01-01 01:08"),
        (["2024-01-01T00:00", "2024-01-01T00:05", "2024-01-01T01:00", "2024-01-01T01:05"], "5min", "2024-01-01 01:05"),
        (["2026-09-20T23:00:00Z", "2026-09-21T02:00:00+02:00"], "h", "2026-09-21"),
    ],
)  # fmt: skip
def test_a_frequency_is_found_in_few_stamps_and_between_gaps(
    own_folder: Folder, stamps: list[str], frequency: str, last: str
) -> None:
    own_folder.write(HEAD + "".join(f"{stamp},1\n" for stamp in stamps)).read()
    assert own_folder.said[0].endswith(f", frequency {frequency}, the last step is {last}")


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FREQUENCIES), st.lists(st.integers(0, 300), min_size=1, max_size=40, unique=True).map(sorted))
def test_with_a_named_frequency_steps_are_as_far_apart_as_they_are_in_its_range(name: str, places: list[int]) -> None:
    stamps = pd.date_range("2001-05-01", periods=301, freq=name).as_unit("us").asi8[places]
    found = steps.locate(np.zeros(len(stamps), np.int64), stamps, stamps, steps.offset(name))
    assert found is not None
    assert np.diff(found.step).tolist() == np.diff(places).tolist()
    assert not found.moved.any()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["D", "h", "15min", "3h", "W-TUE", "MS", "QS", "YS"]),
    st.integers(0, 2**32 - 1),
    st.floats(0, 0.02),
)
def test_a_frequency_is_found_behind_gaps_and_jitter(name: str, seed: int, jitter: float) -> None:
    draw = np.random.default_rng(seed)
    grid = pd.date_range("2001-05-01", periods=101, freq=name).as_unit("us").asi8
    places = np.flatnonzero(draw.random(100) < 0.8)
    stamps = grid[places] + ((grid[places + 1] - grid[places]) * jitter * draw.uniform(-1, 1, len(places))).astype(
        np.int64
    )
    found = steps.locate(np.zeros(len(stamps), np.int64), stamps, stamps, None)
    assert found is not None
    assert np.diff(found.step).tolist() == np.diff(places).tolist()


# Into the log


def quiet() -> Progress:
    return Progress(quiet=True)


def test_a_folder_enters_the_log_once_in_order_and_what_was_sold_since_then_is_added(tmp_path: Path) -> None:
    own_folder = Folder(tmp_path)
    text = daily([i % 7 for i in range(50)])
    with EventLog(tmp_path / "log.db", SimulatedClock(NOW), (Actual, Review, Answered)) as log:
        parts = own_folder.write(text).parts()
        total = sum(part.events.num_rows for part in parts)
        assert own_data.append(log, parts, quiet()) == (total, 0)
        assert own_data.append(log, own_folder.parts(), quiet()) == (0, total)
        for kind in (Actual, Review):
            table = log.read(kind).to_pandas()
            assert (table["created_timestamp"] >= table["event_timestamp"]).all()
            assert table["created_timestamp"].is_monotonic_increasing
        newest = log.read(Review).slice(log.read(Review).num_rows - 1).to_pylist()[0]
        assert (newest["day"], newest["position"]) == (20_504, total)
        own_folder.write(text + daily(range(10), "2026-02-20").removeprefix(HEAD))
        assert own_data.append(log, own_folder.parts(), quiet()).new == 10 + 2  # on day 20,510, and the newest
        assert log.read(Review)["day"].to_pylist()[-3:] == [20_504, 20_510, 20_514]
        assert own_data.append(log, own_folder.parts(), quiet()).new == 0


def test_nothing_is_heard_of_in_the_future_and_a_day_that_goes_on_is_not_over(own_folder: Folder) -> None:
    at_four = TODAY * DAY + 4 * HOUR
    own_folder.write(daily([1] * 30, str(np.datetime64(TODAY - 29, "D"))))
    sold, reviewed = own_folder.parts(most=0.1, now=at_four)
    assert sold.events["day"].to_pylist()[-1] == reviewed.events["day"].to_pylist()[-1] - 1 == TODAY - 1
    assert sold.heard[-1] == reviewed.heard[-1] == at_four
    assert "timestamp: must be of a step that is over" in own_folder.aside()[0]


def test_reviews_are_made_of_the_newest_days_only_and_more_seldom_of_many_series(
    own_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "timestamp,a,b\n" + "".join(
        f"{day},1,{'' if i < 500 else 2}\n" for i, day in enumerate(days("2024-01-01", 600))
    )
    _, reviews = own_folder.write(text).read()
    mine = [review.day for review in reviews if review.product_id == "a"]
    assert mine[-1] - mine[0] <= REVIEW_DAYS
    assert set(np.diff(mine[:-1]).tolist()) == {7}
    assert min(review.day for review in reviews if review.product_id == "b") > 19_723 + 500
    monkeypatch.setattr(own, "REVIEWS", 30)
    _, fewer = own_folder.write(text).read()
    assert set(np.diff([review.day for review in fewer if review.product_id == "a"][:-1]).tolist()) == {28}
    assert [review.day for review in fewer[-2:]] == [review.day for review in reviews[-2:]]
    monkeypatch.setattr(own, "AT_ONCE", 1)
    assert own_folder.read()[1] == fewer


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 90), st.sampled_from("ab"), st.sampled_from([1.0, 2.0])), min_size=2, max_size=60)
)
def test_reviews_are_those_of_a_plain_reading(said: list[tuple[int, str, float]]) -> None:
    first = {(place, name): price for place, name, price in reversed(said)}
    rows = [(20_454 + place, name, price) for (place, name), price in sorted(first.items())]
    text = "timestamp[D],series,price,units\n" + "".join(f"{np.datetime64(d, 'D')},{n},{p},1\n" for d, n, p in rows)
    with TemporaryDirectory() as root:
        _, reviews = Folder(Path(root)).write(text).read()
    last = max(day for day, _, _ in rows)
    expected = {}
    for name in {name for _, name, _ in rows}:
        prices = {day: price for day, other, price in rows if other == name}
        for day in range(last - REVIEW_DAYS + 1, last + 2):
            known = any(day <= at < day + HORIZON for at in prices) and day % 7 == 0
            if min(prices) < day and (known or day == last + 1):
                plan = []
                for at in range(day, day + HORIZON):
                    plan.append(prices[max(d for d in prices if d <= at)])
                expected[name, day] = plan
    assert {(review.product_id, review.day) for review in reviews} == set(expected)
    for review in reviews:
        given_ = list(review.prices) + [review.prices[-1]] * (HORIZON - len(review.prices))
        assert given_ == expected[review.product_id, review.day]
        assert len(review.prices) == 1 or review.prices[-1] != review.prices[-2]


# Treatments


def test_a_gap_is_not_known_and_not_zero(own_folder: Folder) -> None:
    sold, _ = own_folder.write(daily([1, "", "NaN", "NA", "null", 0, 2])).read()
    assert units(sold) == [(20_454, 1), (20_459, 0), (20_460, 2)]
    assert own_folder.said[1] == "  series.csv: 4 values are missing: not known, which is not zero"


def test_constant_and_all_zero_series_and_those_of_one_observation_are_kept(own_folder: Folder) -> None:
    text = "timestamp,a,b,c\n" + "".join(
        f"{day},3,0,{7 if i == 4 else ''}\n" for i, day in enumerate(days("2026-01-01", 20))
    )
    sold, reviews = own_folder.write(text).read()
    assert {a.units for a in sold if a.product_id == "a"} == {3.0}
    assert [a.units for a in sold if a.product_id == "b"] == [0.0] * 20
    assert [(a.day, a.units) for a in sold if a.product_id == "c"] == [(20_458, 7.0)]
    assert [r.product_id for r in reviews if r.day == 20_474] == ["a", "b", "c"]
    assert (
        own_folder.said[-1]
        == "  series.csv: 1 series have one observation: the profile of their group will forecast them"
    )


def test_stamps_beside_the_grid_are_taken_to_it_and_counted(own_folder: Folder) -> None:
    text = HEAD + "".join(
        f"2026-01-01T{hour - 1 + hour % 2:02}:{'00:07' if hour % 2 else '59:58'},{hour}\n" for hour in range(1, 23)
    )
    sold, _ = own_folder.write(text).read()
    assert np.diff([a.day for a in sold]).tolist() == [1] * 21
    assert "  series.csv: 22 stamps do not lie on the grid and are taken to it" in own_folder.said


def test_one_stamp_far_from_the_grid_is_set_aside(own_folder: Folder) -> None:
    rows = [f"2026-01-0{day}T{hour:02}:00,1\n" for day in (1, 2) for hour in range(24)]
    rows[10] = "2026-01-01T10:30,1\n"
    sold, _ = own_folder.write(HEAD + "".join(rows)).read(most=0.1)
    assert len(sold) == 47
    assert own_folder.aside()[0].startswith(
        "12,\"timestamp: must be within 15% of a step of its grid, which is h, got '2026-01-01T10:30'\""
    )


def test_the_same_row_twice_is_taken_once_and_another_of_its_step_names_the_first(own_folder: Folder) -> None:
    text = daily([1, 2, 3]) + "2026-01-02,2\n2026-01-02T00:00,2.0\n2026-01-03,4\n"
    sold, _ = own_folder.write(text).parts(most=0.5)
    assert (sold.rows, sold.duplicates, sold.quarantined) == (6, 2, 1)
    assert own_folder.aside()[0].startswith(
        "7,\"event_id: must stand for one row, another one has it, got 'all/all/20456', as in line 4\","
    )


def test_the_hour_that_comes_twice_when_clocks_are_set_back_is_a_duplicate(own_folder: Folder) -> None:
    hours = ["00", "01", "02", "02", "03", "04", "05", "06"]
    text = HEAD + "".join(f"2025-10-26T{hour}:00,{i}\n" for i, hour in enumerate(hours))
    sold, _ = own_folder.write(text).parts(most=0.5)
    assert (sold.events.num_rows, sold.quarantined) == (7, 1)


def test_hours_with_offsets_are_in_utc_and_days_are_those_that_are_written(own_folder: Folder) -> None:
    hours = ["2025-10-26T01:00+02:00", "2025-10-26T02:00+02:00", "2025-10-26T02:00+01:00", "2025-10-26T02:00Z"]
    sold, _ = own_folder.write(HEAD + "".join(f"{stamp},{i}\n" for i, stamp in enumerate(hours))).read()
    assert units(sold) == [(sold[0].day + i, i) for i in range(4)]
    note = (
        "  series.csv: stamps have offsets: steps shorter than a day are in UTC, others go by the date that is written"
    )
    assert note in own_folder.said
    written = ["2025-10-25T00:00+02:00", "2025-10-26T00:00+02:00", "2025-10-27T00:00+01:00", "2025-10-28T00:00+01:00"]
    sold, _ = own_folder.write(HEAD + "".join(f"{stamp},{i}\n" for i, stamp in enumerate(written))).read()
    assert [str(np.datetime64(a.day, "D")) for a in sold] == [stamp[:10] for stamp in written]
    (own_folder.root / "series.csv").unlink()
    zoned = pa.array(pd.date_range("2025-10-25", periods=4, tz="Europe/Berlin"))
    parquet, _ = own_folder.table(pa.table({"timestamp": zoned, "units": [0, 1, 2, 3]})).read()
    assert parquet == sold


def test_more_steps_than_days_since_1970_leave_the_newest(own_folder: Folder) -> None:
    stamps = pd.date_range("1971-01-01", periods=1_000, freq="h")
    sold, _ = own_folder.write(pd.Series(range(1_000), stamps, name="units").to_csv(index_label="timestamp")).read()
    assert (sold[0].day, sold[-1].day, sold[-1].units) == (0, 365 + 40, 999)
    assert "  series.csv: 594 values are left out: days begin in 1970, so the newest 406 steps fit" in own_folder.said


def test_flags_and_numbers_of_pandas_may_have_gaps(own_folder: Folder) -> None:
    table = pa.table(
        {
            "date": pa.array([20_454, 20_455, 20_456], pa.date32()),
            "units": pa.array([1, None, 3], pa.int16()),
            "price": pa.array([1, None, None], pa.decimal128(5, 2)),
            "promoted": [1.0, float("nan"), 0.0],
            "product_id": pa.array(["milk"] * 3).dictionary_encode(),
        }
    )
    sold, _ = own_folder.table(table).read()
    assert [(a.units, a.price, a.promoted) for a in sold] == [(1.0, 1.0, True), (3.0, 1.0, False)]


# Errors

IRREGULAR = ["01-01T03:12", "01-17T01:07", "02-03T22:40", "02-04T23:41", "03-20T04:59", "05-02T12:02"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("2026-01-11,-3", "units: must be 0 or more: what comes back is no demand, leave returns out, got '-3.0'"),
        ("2026-01-11,many", "units: must be a number with a decimal point, such as 12.5, got 'many'"),
        ('2026-01-11,"1,5"', "units: must be a number with a decimal point, such as 12.5, got '1,5'"),
        ('2026-01-11,"1 000"', "units: must be a number with a decimal point, such as 12.5, got '1 000'"),
        ("2026-01-11,1e999", "units: input should be a finite number, got 'inf'"),
        ("2026-01-11,1e13", "units: input should be less than or equal to 1000000000000, got '10000000000000.0'"),
        ("11.01.2026,3", "timestamp: must be ISO 8601, such as 2024-05-31, 2024-05-31 13:00, "),
        ("2026-02-30,3", "timestamp: must be ISO 8601, such as 2024-05-31, 2024-05-31 13:00, "),
        (",3", "timestamp: must be ISO 8601, such as 2024-05-31, 2024-05-31 13:00, "),
        ("1969-12-31,3", "timestamp: must be from 1970 on and before 2200, got '1969-12-31'"),
        ("2200-01-01,3", "timestamp: must be from 1970 on and before 2200, got '2200-01-01'"),
        ("9999-01-01,3", "timestamp: must be from 1970 on and before 2200, got '9999-01-01'"),
        ("2199-12-31,3", "timestamp: must be of a step that is over, got '2199-12-31'"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_is_set_aside_with_field_rule_and_value(
    own_folder: Folder, line: str, reason: str
) -> None:
    text = daily([1] * 10) + line + "\n"
    sold, _ = own_folder.write(text).read(most=0.2)
    assert units(sold) == [(20_454 + i, 1) for i in range(10)]
    (row,) = own_folder.aside()
    assert row.startswith("12,")
    assert reason in row.replace('""', '"')
    with pytest.raises(BadData, match=r"1 of 11 rows are broken, MLSYS_MAX_QUARANTINED=0 allows fewer"):
        own_folder.read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must not be empty, got 0 bytes"),
        (HEAD, "must have rows, has only a header"),
        ("day,units\n2026-01-01,1\n",
         "header: must have timestamp or ds or date, and units or y or a column per series, commas between them, got "
         "'day', 'units'"),
        ("timestamp;units\n2026-01-01;1\n", "header: must have timestamp or ds or date, and units or y or a column "),
        ("timestamp,series,demand\n2026-01-01,a,1\n",
         "header: must have units or y beside series, got 'timestamp', 'series', 'demand'"),
        ("timestamp\n2026-01-01\n", "header: must have units or y beside timestamp, got 'timestamp'"),
        ("date,store,item,sales\n" + "2026-01-01,1,1,5\n2026-01-01,1,2,4\n2026-01-01,2,2,4\n",
         "header: must have units or y where stamps come again and again, as in a long table, got 'date', "),
        ("timestamp,date,y\n2026-01-01,2026-01-01,1\n",
         "header: must have one of timestamp, ds, date, got timestamp and date"),
        ("timestamp,units,y\n2026-01-01,1,1\n", "header: must have one of units, y, got units and y"),
        ("ds,y,series,product_id\n2026-01-01,1,a,b\n",
         "header: must have series or store_id and product_id, got series and product_id"),
        ("timestamp,a,a\n2026-01-01,1,1\n", "header: columns must differ, got 'a' twice"),
        ("timestamp,a,\n2026-01-01,1,1\n", "header: each column must have a name, column 3 has none, got "),
        ("timestamp[often],a\n2026-01-01,1\n",
         "header: a frequency must be one of pandas, such as h, D, W-SUN or MS, got 'timestamp[often]'"),
        ("timestamp[-1D],a\n2026-01-01,1\n", "header: a frequency must be one of pandas, "),
        ("timestamp[ns],a\n2026-01-01,1\n", "header: a frequency must be one of pandas, "),
        (HEAD + "2026-01-01,1\n",
         "timestamp: must have a frequency, none fits those of series 'all/all': 2026-01-01, ...; name it in the "
         "header, such as timestamp[D], or resample to one"),
        ("timestamp,series,units\n2026-01-01T00:00,a,1\n" + "".join(f"2026-{at},b,1\n" for at in IRREGULAR),
         "timestamp: must have a frequency, none fits those of series 'all/b': 2026-01-01T03:12, 2026-01-17T01:07, "),
        (HEAD + "2026-01-01T00:00Z,1\n2026-01-02T00:00,1\n",
         "timestamp: all must have an offset, or none, got '2026-01-01T00:00Z' and '2026-01-02T00:00'"),
        ("timestamp[us],units\n2000-01-01,1\n2026-01-01,1\n",
         "timestamp: must be fewer than 2**31 steps (us) apart, got 820,540,800,000,000"),
        (daily(["", "NaN"]), "units: must have values, has none"),
        ("timestamp,units,series\n2026-01-01,1,\n2026-01-02,1,b\n",
         "product_id: string should have at least 1 character (1 row, first in line 2: got '')"),
        ("timestamp,units,series\n2026-01-01,1," + "x" * 61 + "\n2026-01-02,1,b\n",
         "product_id: string should have at most 60 characters"),
        ("timestamp,units,price\n2026-01-01,1,0\n2026-01-02,1,2\n", "price: input should be greater than 0 (1 row"),
        ("timestamp,units,price\n2026-01-01,1,cheap\n2026-01-02,1,2\n", "price: must be a number with a decimal point"),
        ("timestamp,units,promoted\n2026-01-01,1,maybe\n2026-01-02,1,0\n", "promoted: input should be a valid boolean"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_is_one_line(own_folder: Folder, text: str, message: str) -> None:
    with pytest.raises(BadData, match="^series.csv: " + re.escape(message)) as error:
        own_folder.write(text).read()
    assert "\n" not in str(error.value)


CELLS = ["1", "0", "", " ", "-1", "nan", "x", "1,5", "1e400", "2026-01-01", '"', "ü", "true", "9" * 30]
STAMPS = [*days("2026-01-01", 8), "2026-01-02T13:00", "2026-01-02T13:00Z", "2026Q1", "2026", "", "soon", "2300-01-01",
          "0001-01-01", "2026-13-01"]  # fmt: skip
HEADERS = ["timestamp", "timestamp[h]", "timestamp[MS]", "date", "units", "y", "series", "store_id", "category",
           "price", "promoted", "sold_out", "a", "b", ""]  # fmt: skip


def parts_or_refused(folder: Folder) -> list[Part] | str:
    try:
        return folder.parts(most=1.0)
    except BadData as error:
        return str(error)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(HEADERS), min_size=1, max_size=5),
    st.lists(st.tuples(st.sampled_from(STAMPS), st.lists(st.sampled_from(CELLS), min_size=4, max_size=4)), max_size=12),
)
def test_any_table_is_read_or_refused_in_one_line_and_time_runs_forward(
    header: list[str], rows: list[tuple[str, list[str]]]
) -> None:
    text = ",".join(["timestamp", *header[1:]] if len(header) % 2 else header) + "\n"
    text += "".join(",".join([stamp, *cells][: len(header)]) + "\n" for stamp, cells in rows)
    with TemporaryDirectory() as root:
        parts = parts_or_refused(Folder(Path(root)).write(text))
        if isinstance(parts, str):
            assert re.match(r"series\.csv: .*\Z", parts)
            return
        sold, reviewed = parts
        assert sold.rows == sold.events.num_rows + sold.duplicates + sold.quarantined + sold.silent
        for part in (sold, reviewed):
            assert np.all(np.diff(part.heard) >= 0)
            assert np.all(part.heard >= part.events["event_timestamp"].to_numpy())
            assert part.heard.max(initial=0) <= NOW
            made: list[Any] = from_table(part.kind, part.events)
            assert len({event.event_id for event in made}) == len(made)
