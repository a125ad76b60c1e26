"""A shop's own folder: each fault is one line, what is right becomes what the service would have heard."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.clock import DAY, MINUTE, SimulatedClock
from common.data import folder as own_data
from common.data.folder import Part
from common.data.log import EventLog
from common.errors import BadData
from common.progress import Progress
from common.schema import from_table
from common.system import Answered
from systems.search.config import SMALL
from systems.search.data import Feedback, Hit, Product, Query, Results, world
from systems.search.data.own import LAYOUT

NOW = 1_790_000_000_000_000  # us
Row = dict[str, Any]
Tables = dict[str, list[Row]]

# The example of the documentation, as small as it can be and complete
FOLDER = {
    "queries.csv": """\
event_id,event_timestamp,shopper_id,text,device,category,brand,colour,price_min,price_max,page,page_size
q-1,2026-03-01T09:30:00+01:00,s-17,Grey leather  SOFA,desktop,,,,,900,1,20
q-2,2026-03-01T08:31:10.25Z,s-18,lamp,phone,lighting,,brass,,,2,2
""",
    "products.csv": """\
product_id,listed_timestamp,title,description,category,brand,colour,price,attributes,available
p-1,2026-01-01T00:00:00Z,Norvik grey sofa,"Soft, wide.",furniture,Norvik,grey,649,material: leather; size: 180 cm,true
p-1,2026-02-01T00:00:00Z,Norvik grey sofa,"Soft, wide.",furniture,Norvik,grey,499.5,material: leather; size: 180 cm,true
p-2,2026-01-01T00:00:00Z,Reading lamp,,lighting,,,45,,
p-3,2026-01-01T00:00:00Z,Brass lamp,,lighting,,brass,80,,false
""",
    "shown.csv": """\
query_id,products
q-1,p-1 p-2
q-2,p-3 p-2
""",
    "feedback.csv": """\
query_id,product_id,rank,clicked_timestamp,purchase
q-1,p-1,1,2026-03-01T08:30:20Z,false
q-1,p-1,1,2026-03-01T10:00:00Z,true
q-2,p-2,4,2026-03-01T08:32:00Z,
""",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "own"
    path.mkdir()
    for name, text in FOLDER.items():
        (path / name).write_text(text)
    return path


def read(folder: Path, most: float = 0.0) -> dict[str, Part]:
    parts = own_data.read(LAYOUT, folder, folder / "aside", most=most, now=NOW, say=lambda _: None)
    return {part.file.partition(".")[0]: part for part in parts}


def events(part: Part) -> list[Any]:
    return list(from_table(part.kind, part.events))


def write(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def put(name: str, column: str, value: object, line: int = 2) -> Callable[[Path], None]:
    """That line of the file says something else."""

    def change(folder: Path) -> None:
        with (folder / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows[line - 2][column] = str(value)
        write(folder, name, rows)

    return change


def append(name: str, line: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with (folder / f"{name}.csv").open("a") as file:
            file.write(line + "\n")

    return change


def test_the_rows_of_a_shop_become_what_the_service_would_have_heard(folder: Path) -> None:
    parts = read(folder)
    sofa, lamp = events(parts["queries"])
    assert sofa == Query(
        event_id="q-1", event_timestamp=1_772_353_800_000_000, shopper_id="s-17", text="Grey leather  SOFA",
        price_max=900.0,
    )  # fmt: skip
    assert (lamp.device, lamp.category, lamp.colour, lamp.page, lamp.page_size) == ("phone", "lighting", "brass", 2, 2)
    assert (lamp.brand, lamp.price_min, lamp.price_max) == (None, None, None)
    listed = {event.event_id: event for event in events(parts["products"])}
    assert listed["p-1@1769904000000000"] == Product(
        event_id="p-1@1769904000000000", event_timestamp=1_769_904_000_000_000, product_id="p-1",
        title="Norvik grey sofa", description="Soft, wide.", category="furniture", brand="Norvik",
        colour="grey", price=499.5, attributes=("material: leather", "size: 180 cm"),
    )  # fmt: skip
    lamps = [listed[f"p-{i}@1767225600000000"] for i in (2, 3)]
    assert [(p.description, p.brand, p.colour, p.attributes, p.available) for p in lamps] == [
        ("", "unknown", "unknown", (), True), ("", "unknown", "brass", (), False),
    ]  # fmt: skip
    click, purchase, other = sorted(events(parts["feedback"]), key=lambda event: event.event_id)
    assert click == Feedback(
        event_id="q-1.click.p-1", event_timestamp=sofa.event_timestamp, query_id="q-1", shopper_id="s-17",
        query_text="grey leather sofa", product_id="p-1", category="furniture", rank=1,
    )  # fmt: skip
    assert (purchase.event_id, purchase.purchase) == ("q-1.purchase.p-1", True)
    assert (other.query_id, other.rank, other.purchase) == ("q-2", 4, False)


def test_what_was_shown_is_an_answer_as_the_platform_logs_it(folder: Path) -> None:
    said = events(read(folder)["shown"])
    assert {answer.request_id: answer.event_timestamp for answer in said} == {
        "q-1": 1_772_353_800_000_000, "q-2": 1_772_353_870_250_000,
    }  # fmt: skip
    pages = {answer.request_id: Results.model_validate_json(answer.answer) for answer in said}
    assert {query: [hit.product_id for hit in page.hits] for query, page in pages.items()} == {
        "q-1": ["p-1", "p-2"], "q-2": ["p-3", "p-2"],
    }  # fmt: skip
    assert all(isinstance(answer, Answered) and not answer.hidden and not answer.features for answer in said)


def test_events_enter_the_log_in_the_order_of_hearing_and_only_once(folder: Path, tmp_path: Path) -> None:
    kinds = (Query, Product, Feedback, Answered)
    with EventLog(tmp_path / "log.db", SimulatedClock(NOW), kinds) as log:
        for new, there in ((11, 0), (0, 11)):
            assert own_data.append(log, list(read(folder).values()), Progress()) == (new, there)
        times = {kind: log.read(kind)["created_timestamp"].to_pylist() for kind in kinds}
        assert max(times[Product]) < min(times[Query])  # so the offline world knows what could be found
        bought = log.read(Feedback).to_pylist()[-1]
        assert (bought["event_id"], bought["created_timestamp"]) == ("q-1.purchase.p-1", 1_772_359_200_000_000)


def test_a_description_that_is_the_same_twice_is_dropped_once_and_another_at_the_same_time_refused(
    folder: Path,
) -> None:
    again = FOLDER["products.csv"].splitlines()[1]
    append("products", again)(folder)
    part = read(folder)["products"]
    assert (part.rows, part.duplicates, part.quarantined, part.events.num_rows) == (5, 1, 0, 4)
    append("products", again.replace("649", "650"))(folder)
    with pytest.raises(BadData, match="event_id: must stand for one row, another one has it .* as in line 2"):
        read(folder)


PRINT = "string should match pattern '{}'"
BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    ("a title of nothing", put("products", "title", "  "), "products.csv: title: string should match pattern "),
    ("a product_id with a space", put("products", "product_id", "p 1"),
     "products.csv: product_id: string should match pattern "),
    ("a category of nothing", put("products", "category", ""),
     "products.csv: category: string should have at least 1 character (1 row, first in line 2: got '')"),
    ("a price of nothing", put("products", "price", 0),
     "products.csv: price: input should be greater than 0 (1 row, first in line 2: got '0.0')"),
    ("a price that is no number", put("products", "price", "cheap"),
     "products.csv: price: input should be a valid number (1 row, first in line 2: got 'cheap')"),
    ("a listing without a time zone", put("products", "listed_timestamp", "2026-01-01T00:00:00"),
     "products.csv: listed_timestamp: must be ISO 8601 with Z or an offset, or whole microseconds"),
    ("an availability of maybe", put("products", "available", "maybe"),
     "products.csv: available: input should be a valid boolean"),
    ("a query of nothing", put("queries", "text", " "), "queries.csv: text: string should match pattern "),
    ("a query that is too long", put("queries", "text", "x" * 201),
     "queries.csv: text: string should have at most 200 characters"),
    ("a device of another kind", put("queries", "device", "fridge"),
     "queries.csv: device: input should be 'desktop' or 'phone' (1 row, first in line 2: got 'fridge')"),
    ("ends of a price that are swapped", put("queries", "price_min", 901),
     "queries.csv: price_max: value error, must be price_min or more (1 row, first in line 2: got '900.0')"),
    ("a page of nothing", put("queries", "page", 0),
     "queries.csv: page: input should be greater than or equal to 1 (1 row, first in line 2: got '0')"),
    ("a page that is too large", put("queries", "page_size", 51),
     "queries.csv: page_size: input should be less than or equal to 50"),
    ("a query in the future", put("queries", "event_timestamp", NOW + 1),
     "queries.csv: event_timestamp: must not be in the future"),
    ("a page for no query", put("shown", "query_id", "q-9"),
     "shown.csv: query_id: must be the event_id of a row of queries.csv (1 row, first in line 2: got 'q-9')"),
    ("a page that shows one product twice", put("shown", "products", "p-1 p-2 p-1"),
     "shown.csv: products: value error, must be at most 50 different products (1 row, first in line 2: got "
     "'p-1 p-2 p-1')"),
    ("a page of too many", put("shown", "products", " ".join(f"p-{i}" for i in range(51))),
     "shown.csv: products: value error, must be at most 50 different products"),
    ("a page with two spaces", put("shown", "products", "p-1  p-2"),
     "shown.csv: products: value error, must be product_ids with one space between two (1 row, first in line 2: got "
     "'p-1  p-2')"),
    ("two pages for one query", append("shown", "q-1,p-2 p-1"),
     "shown.csv: event_id: must stand for one row, another one has it (1 row, first in line 4: got "
     "'q-1\\x1fanswer', as in line 2)"),
    ("a click on no query", put("feedback", "query_id", "q-9"),
     "feedback.csv: query_id: must be the event_id of a row of queries.csv (1 row, first in line 2: got 'q-9')"),
    ("a click on no product", put("feedback", "product_id", "p-9"),
     "feedback.csv: product_id: must be the product_id of a row of products.csv (1 row, first in line 2: got 'p-9')"),
    ("a click before its query", put("feedback", "clicked_timestamp", "2026-03-01T08:29:59Z"),
     "feedback.csv: clicked_timestamp: must not be before the time of what it is about (1 row, first in line 2: got "
     "'1772353799000000')"),
    ("a click on rank nothing", put("feedback", "rank", 0),
     "feedback.csv: rank: input should be greater than or equal to 1 (1 row, first in line 2: got '0')"),
    ("a second click", append("feedback", "q-1,p-1,1,2026-03-01T08:30:21Z,false"),
     "feedback.csv: event_id: must stand for one row, another one has it (1 row, first in line 5: got "
     "'q-1.click.p-1', as in line 2)"),
    ("no feedback", lambda folder: (folder / "feedback.csv").unlink(),
     "feedback.csv: must be in the folder, or feedback.parquet; neither is"),
    ("a missing column", lambda folder: write(folder, "shown", [{"query_id": "q-1", "product_id": "p-1"}]),
     "shown.csv: header: must have products, got 'query_id', 'product_id'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_row_is_one_line_of_file_field_rule_row_and_value(
    folder: Path, change: Callable[[Path], None], line: str
) -> None:
    change(folder)
    with pytest.raises(BadData) as error:
        read(folder)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_what_is_set_aside_lies_in_a_file_with_its_reason_and_the_rest_is_taken(folder: Path) -> None:
    put("products", "price", -1, line=5)(folder)
    put("feedback", "query_id", "q-9", line=3)(folder)
    parts = read(folder, most=0.5)
    assert {name: (part.events.num_rows, part.quarantined) for name, part in parts.items()} == {
        "queries": (2, 0), "products": (3, 1), "shown": (2, 0), "feedback": (2, 1),
    }  # fmt: skip
    aside = {path.name.partition("-")[0]: path.read_text() for path in (folder / "aside").iterdir()}
    assert aside["products"].splitlines()[1].startswith('5,"price: input should be greater than 0, got ')
    assert aside["feedback"].splitlines()[1].startswith('3,"query_id: must be the event_id of a row of queries.csv')


# What becomes of rows, against a plain reading of the rules

GOOD = {
    "product_id": ["p-1", "p-2"],
    "listed_timestamp": ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "1767225600000001"],
    "title": ["Sofa", "Sofa, grey"],
    "category": ["furniture", "Möbel & mehr"],
    "price": ["10", "10.0"],
}
BAD = [("product_id", "p 4"), ("listed_timestamp", "soon"), ("title", " "), ("category", ""), ("price", "nan")]
TIMES = dict(
    zip(GOOD["listed_timestamp"], (1_767_225_600_000_000, 1_767_225_600_000_000, 1_767_225_600_000_001), strict=True)
)  # us


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.fixed_dictionaries({name: st.sampled_from(cells) for name, cells in GOOD.items()}),
            st.none() | st.sampled_from(BAD),
        ),
        min_size=1,
    )
)
def test_each_product_row_is_listed_or_dropped_as_a_duplicate_or_set_aside(
    drawn: list[tuple[dict[str, str], tuple[str, str] | None]],
) -> None:
    first: dict[tuple[str, int], tuple[str, str, float]] = {}
    aside = duplicates = 0
    for said, flaw in drawn:
        key, content = (said["product_id"], TIMES[said["listed_timestamp"]]), (said["title"], said["category"], 10.0)
        if flaw is not None or first.setdefault(key, content) != content:
            aside += 1
        else:
            duplicates += 1
    duplicates -= len(first)
    with TemporaryDirectory() as root:
        path = Path(root) / "own"
        path.mkdir()
        for name, text in FOLDER.items():
            (path / name).write_text(text)
        write(path, "products", [said | dict([flaw] if flaw else []) for said, flaw in drawn])
        part = read(path, most=1.0)["products"]
    assert (part.rows, part.quarantined, part.duplicates) == (len(drawn), aside, duplicates)
    assert {(p.product_id, p.event_timestamp): (p.title, p.category, p.price) for p in events(part)} == first


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["q-1", "q-2", "q-3"]),
            st.sampled_from(["p-1", "p-2", "p-9"]),
            st.sampled_from([-1, 0, MINUTE]),
            st.booleans(),
        ),
        min_size=1,
    )
)
def test_each_row_of_feedback_is_heard_or_dropped_as_a_duplicate_or_set_aside(
    told: list[tuple[str, str, int, bool]],
) -> None:
    asked = {"q-1": 1_772_353_800_000_000, "q-2": 1_772_353_870_250_000}
    first: dict[str, int] = {}
    aside = 0
    rows = []
    for query, product, later, purchase in told:
        at = asked.get(query, NOW - DAY) + later
        rows.append({"query_id": query, "product_id": product, "rank": 1, "clicked_timestamp": at,
                     "purchase": purchase})  # fmt: skip
        name = f"{query}.{'purchase' if purchase else 'click'}.{product}"
        aside += query not in asked or product == "p-9" or later < 0 or first.setdefault(name, at) != at
    with TemporaryDirectory() as root:
        path = Path(root) / "own"
        path.mkdir()
        for name, text in FOLDER.items():
            (path / name).write_text(text)
        write(path, "feedback", rows)
        part = read(path, most=1.0)["feedback"]
    assert part.quarantined == aside
    assert part.quarantined + part.duplicates + part.events.num_rows == part.rows == len(told)
    assert dict(zip(part.events["event_id"].to_pylist(), part.heard.tolist(), strict=True)) == first


# What a world's shop heard, written to files, is heard again


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_worlds_log_written_to_files_becomes_the_same_events(tmp_path: Path, kind: str) -> None:
    config = replace(SMALL, days=12, history_days=6, products=60, shoppers=20, queries_per_day=20.0, categories=2)
    shop = world(config, 0)
    heard: list[Any] = []
    pages: dict[str, Results] = {}
    for day in range(1, config.days):
        arrivals = shop.arrivals(config.start + day * DAY)
        asked = [arrival.event for arrival in arrivals if isinstance(arrival.event, Query)]
        found = {q.event_id: ids for q, ids in zip(asked, shop.best(asked, 20), strict=True) if ids}
        said = {
            q: Results(hits=tuple(Hit(product_id=p, score=0.0) for p in ids), total=len(ids))
            for q, ids in found.items()
        }
        shop.react([(query, said[query.event_id]) for query in asked if query.event_id in said])
        pages |= said
        heard += arrivals
    tables = _tables(heard, pages)
    for name, rows in tables.items():
        shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        write(tmp_path, name, shuffled)
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(shuffled), tmp_path / f"{name}.parquet")
            (tmp_path / f"{name}.csv").unlink()
    parts = read(tmp_path)
    for name, event in (("queries", Query), ("products", Product), ("feedback", Feedback)):
        mine = sorted((event_ for event_ in events(parts[name])), key=_order)
        theirs = sorted((arrival.event for arrival in heard if isinstance(arrival.event, event)), key=_order)
        assert len(theirs) > 20
        if event is Product:  # the world gives its own ids to changes
            theirs = [t.model_copy(update={"event_id": m.event_id}) for t, m in zip(theirs, mine, strict=True)]
        assert mine == theirs
    assert {a.request_id: Results.model_validate_json(a.answer) for a in events(parts["shown"])} == pages
    assert sum(part.quarantined + part.duplicates for part in parts.values()) == 0
    clicks = {a.event.event_id: a.at for a in heard if isinstance(a.event, Feedback)}
    part = parts["feedback"]
    assert dict(zip(part.events["event_id"].to_pylist(), part.heard.tolist(), strict=True)) == clicks


def _order(event: Any) -> tuple[str, int, str]:
    return getattr(event, "product_id", ""), event.event_timestamp, "" if isinstance(event, Product) else event.event_id


def _tables(heard: Sequence[Any], pages: Mapping[str, Results]) -> Tables:
    said: Tables = {"queries": [], "products": [], "feedback": []}
    for at, event in heard:
        row = event.model_dump()
        if isinstance(event, Query):
            said["queries"].append(row)
        elif isinstance(event, Product):
            del row["event_id"]
            said["products"].append(
                row | {"listed_timestamp": row.pop("event_timestamp"), "attributes": "; ".join(row["attributes"])}
            )
        else:
            columns = ("query_id", "product_id", "rank", "purchase")
            said["feedback"].append({name: row[name] for name in columns} | {"clicked_timestamp": at})
    shown = [{"query_id": q, "products": " ".join(hit.product_id for hit in page.hits)} for q, page in pages.items()]
    return said | {"shown": shown}
