"""The forecasting system: how fast a chain is forecast, how fast forecasts are told, and what more series cost.

Run: make bench-full, or python -m benchmarks.forecasting [speed] [serving] [scale] [--json [FILE]]

`speed`: the full world's chain, from what was sold to forecasts of all its series that add up. Inside of
`total_seconds`: the panel of what was sold, Theta for all series, rows and features of past origins, the quantile
trees of all levels, forecasts made ahead, and their reconciliation. Apart: making the world, and the backtests that
choose what is blended (`backtest_seconds`). `serving`: a champion of the small world behind `mlsys serve`; client and
server share this machine. `scale`: so many times the series of the small world, in chunks, by one model that was
taught before; each size in a process of its own. Where FILE holds a part that was not run, it stays there.
"""

import argparse
import http.client
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.serving import free_port
from common.clock import DAY, HOUR, SimulatedClock, WallClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.features.view import Array, feature_names, numbers
from common.lifecycle.simulation import before, live
from common.lifecycle.training import train
from common.progress import Progress
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.serving.auth import ApiKeys
from common.spread import spread
from systems.forecasting.config import CATEGORIES, FULL, SMALL, Config
from systems.forecasting.data import HORIZON, Review
from systems.forecasting.data.assortment import Assortment, assortment
from systems.forecasting.data.demand import demand
from systems.forecasting.data.shelves import Shelves
from systems.forecasting.features import ON_DEMAND, VIEWS
from systems.forecasting.model import ahead, forecaster, local, panel
from systems.forecasting.model.forecaster import Blend, Core, Trees
from systems.forecasting.model.panel import Ints, Panel, Plan
from systems.forecasting.model.table import Table
from systems.forecasting.system import build

SEED: Final = 0
ORIGINS: Final = 4  # past ones that are learned from, 28 days apart
SAMPLE: Final = 100_000  # rows that the blend is chosen by
SIZES: Final = (10, 100, 1_000)  # times the series of the small world
CHUNK: Final = 10  # times them, at once
SHARED: Final = (100,)  # sizes that two processes share as well
WORKERS: Final = (1, 2)
THREADS: Final = 8  # that ask at the same time
START: Final = 120.0  # s, for a server to come up
SOON: Final = 30.0  # s, for a sale to be heard of
TICK: Final = 0.02  # s
QUIET: Final = Progress(quiet=True)
ASKED: Final[Mapping[str, Mapping[str, str]]] = {
    "speed": {"total_seconds": "<= 90"},
    "serving": {"stored_p99_ms": "<= 5", "what_if_p99_ms": "<= 50", "heard_seconds": "<= 1"},
    "scale": {"exponent": "about 1", "peak_rss_mb": "the same"},
}


def main() -> None:
    parts: dict[str, Callable[[], dict[str, Any]]] = {"speed": speed, "serving": serving, "scale": scale}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="speed, serving, scale (default: all)")
    parser.add_argument("--json", nargs="?", type=Path, const=Path("-"), metavar="FILE", help="print, or put into FILE")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"parts: must be {', '.join(parts)}, got {', '.join(unknown)}")
    found = {name: part() for name, part in parts.items() if name in (arguments.parts or parts)}
    if arguments.json is None:
        show(found, {})
    elif arguments.json == Path("-"):
        print(json.dumps(found, indent=2))
    else:
        put(arguments.json, found)


def put(path: Path, found: Mapping[str, Any]) -> None:
    """Parts that the file has beside these stay."""
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**there, **found}, indent=2) + "\n")


def show(found: Mapping[str, Any], asked: Mapping[str, Any], depth: int = 0) -> None:
    """Each figure, with what is asked of it."""
    for name, value in found.items():
        label = f"{'  ' * depth}{name:{40 - 2 * depth}}"
        if isinstance(value, Mapping):
            print(label)
            show(value, asked if depth else ASKED.get(name, {}), depth + 1)
        else:
            said = f"{value:14,.4f}" if isinstance(value, float) else f"{value!s:>14}"
            print(f"{label} {said}" + (f"  asked: {asked[name]}" if name in asked else ""))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def peak_rss() -> float:
    """MB of this process since it began; `ru_maxrss` would count those of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# ----- a chain, without the hours of living through it


@dataclass(frozen=True)
class Chain:
    of: Assortment
    shelves: Shelves
    prefix: str = ""  # of its stores' names

    @classmethod
    def make(cls, config: Config, seed: int, prefix: str = "") -> "Chain":
        """Its shelves were never reviewed: what was sold out was by chance."""
        of = assortment(replace(config, review_days=0), seed)
        return cls(of, Shelves(of, demand(of, seed), seed), prefix)

    def names(self, series: Ints) -> tuple[list[str], list[str], list[str]]:
        """Stores, products and categories, a column each."""
        of = self.of
        stores = [f"{self.prefix}store-{i + 1:02d}" for i in of.store[series].tolist()]
        products = [f"product-{i + 1:03d}" for i in of.product[series].tolist()]
        return stores, products, [CATEGORIES[c] for c in of.category[series].tolist()]

    def actuals(self) -> pa.Table:
        """All that was sold in the history, each day's told the next morning."""
        of = self.of
        on_sale = np.arange(of.config.history_days) >= of.launch[:, None]
        day, series = np.nonzero(on_sale.T)
        taken = pa.array(series)
        names = (pa.array(column).take(taken) for column in self.names(np.arange(len(of))))
        columns = dict(zip(("store_id", "product_id", "category"), names, strict=True))
        calendar = of.first + day
        return pa.table(
            {
                **columns, "day": calendar, "event_timestamp": calendar * DAY,
                "created_timestamp": (calendar + 1) * DAY + 6 * HOUR, "position": np.arange(1, len(day) + 1),
                "units": self.shelves.units[series, day].astype(np.float64), "price": of.price[series, day],
                "promoted": of.promoted[series, day], "sold_out": self.shelves.sold_out[series, day],
            }
        )  # fmt: skip

    def plan(self, back: int = 0) -> Plan:
        """Of all series, from so many days before the end of the history on."""
        of, t = self.of, self.of.config.history_days - back
        series = np.flatnonzero(of.launch < t)
        ahead_of = slice(t, t + HORIZON)
        price, promoted = of.price[series, ahead_of], of.promoted[series, ahead_of].astype(np.float64)
        return Plan(*self.names(series), np.full(len(series), of.first + t), price, promoted)


@dataclass(frozen=True)
class Learned:
    """Rows of past origins, and what was sold on each one's day."""

    columns: pa.Table
    x: Array
    z: Array  # NaN: not known

    @classmethod
    def of(cls, chain: Chain, history: Panel, origins: int) -> "Learned":
        plan = reduce(Plan.joined, [chain.plan(HORIZON * k) for k in range(origins, 0, -1)])
        rows = panel.rows(history, plan)
        x = panel.features(history, plan, rows)
        series = np.array([history.find(*key) for key in zip(plan.store_id, plan.product_id, strict=True)])
        units = history.window("units", series, plan.day + HORIZON, HORIZON).ravel()
        sold = np.where(numbers(rows.columns["known"]) > 0, units, np.nan)
        return cls(rows.columns, x, forecaster.continuous(rows.columns, sold))

    def trees(self, config: Config) -> Trees:
        usable, names = ~np.isnan(self.z), feature_names(VIEWS, ON_DEMAND)
        scale = numbers(self.columns["level"])[usable] + 1
        return Trees.fit(config, self.x[usable], self.z[usable], scale, names, forecaster.start(config))

    def blend(self, config: Config, trees: Trees) -> Blend:
        """By the newest rows; that the trees have seen them changes nothing about how long it takes."""
        usable = np.flatnonzero(~np.isnan(self.z))[-SAMPLE:]
        columns = self.columns.take(pa.array(usable))
        said = trees.quantiles(self.x[usable], numbers(columns["level"]) + 1, config.threads)
        return Blend.fit(columns, said, self.z[usable])


# ----- speed


class Steps:
    """How long each step took."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.took[f"{name}_seconds"] = time.perf_counter() - began
        say(f"{name}: {self.took[f'{name}_seconds']:.1f} s")


def speed(config: Config = FULL, origins: int = ORIGINS) -> dict[str, Any]:
    load_before, steps, apart = os.getloadavg()[0], Steps(), Steps()
    with apart.step("world"):
        chain = Chain.make(config, SEED)
        actuals, plan = chain.actuals(), chain.plan()
    with steps.step("panel"):
        history = Panel.of(config, actuals)
    with steps.step("theta"):
        series = np.array([history.find(*key) for key in zip(plan.store_id, plan.product_id, strict=True)])
        local.theta(history.demand(series, plan.day, config.memory), HORIZON, history.season)
    with steps.step("rows"):
        learned = Learned.of(chain, history, origins)
    with steps.step("fit"):
        trees = learned.trees(config)
    with apart.step("backtest"):
        core = Core(trees, learned.blend(config, trees))
    with steps.step("forecast"):
        quantiles = ahead.everything(core, history, plan)
    with steps.step("reconcile"):
        table = Table.of(history, plan, quantiles, is_count=True)
    return {
        "load_average_before": load_before, "series": config.stores * config.products, "series_on_sale": len(plan),
        "sums": len(table.keys) - len(plan), "rows": len(learned.z), "rows_fitted": min(len(learned.z), config.rows),
        **steps.took, "total_seconds": sum(steps.took.values()), **apart.took, "peak_rss_mb": peak_rss(),
    }  # fmt: skip


# ----- serving


@dataclass(frozen=True)
class Phases:
    """Rates, 1/s, and how long each is asked, s."""

    warm: float = 3.0
    stored: tuple[float, float] = (100.0, 20.0)
    what_if: tuple[float, float] = (10.0, 20.0)
    order: tuple[float, float] = (10.0, 20.0)
    told: int = 10  # sales


@dataclass(frozen=True)
class Shop:
    """A home with a champion and its log, which ends last night; and what is asked today."""

    folder: Path
    key: str
    reviews: Sequence[Review]

    @property
    def home(self) -> Path:
        return self.folder / "home"


@dataclass(frozen=True)
class Server:
    port: int
    key: str
    ready_seconds: float  # from the start of the process

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def call(self, connection: http.client.HTTPConnection, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        said = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", f"/v1/forecasting/{path}", said, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {answer[:500]!r}")
        return json.loads(answer)


@contextmanager
def shop(config: Config) -> Iterator[Shop]:
    clock = WallClock()
    config = replace(config, start=(clock.now() // DAY - config.history_days) * DAY)
    system = build(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home, keys = folder / "home", Keys(folder / "keys")
        lived = system.world(SEED, None, None)
        with EventLog(home / system.name / "log.db", SimulatedClock(system.history[0]), system.logged) as log:
            for _ in live(system, lived, log, before(system), system.history, batch=None, progress=QUIET):
                pass
            with Registry(home, clock, keys) as registry:
                made = train(
                    system, log, Snapshots(folder / "snapshots"), registry, trials=folder / "trials", tune=0,
                    world=None, origin={}, progress=QUIET,
                )  # fmt: skip
                registry.promote(system.name, made.version.name, who="benchmark", why="it is measured", force=True)
        with closing(ApiKeys(home, clock, keys)) as access:
            key = access.create("bench", ["score", "label", "read"], expires=None, rate="1000000/second")
        today = lived.arrivals(system.history[1] + DAY)
        yield Shop(folder, key, [a.event for a in today if isinstance(a.event, Review)])


@contextmanager
def served(here: Shop, workers: int) -> Iterator[Server]:
    """`mlsys serve` on a copy of a shop's home, from when it is ready; raises RuntimeError with what it said last."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=here.folder) as name:
        home, said = Path(name) / "home", Path(name) / "said.txt"
        shutil.copytree(here.home, home)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MLSYS_")}
        command = ("-m", "common.cli", "serve", "forecasting", "--port", str(port), "--workers", str(workers))
        began = time.perf_counter()
        with said.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                env={**kept, "MLSYS_HOME": str(home), "MLSYS_KEYS": str(here.folder / "keys")},
            )  # fmt: skip
        try:
            while not _is_ready(port):
                if process.poll() is not None or time.perf_counter() > began + START:
                    raise RuntimeError(f"the server did not start: {said.read_text()[-2_000:]}")
                time.sleep(TICK)
            yield Server(port, here.key, time.perf_counter() - began)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _is_ready(port: int) -> bool:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
        try:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def offered(server: Server, asked: Iterator[tuple[str, Any]], rate: float, seconds: float) -> tuple[Array, int]:
    """ms from when each request was meant to be sent to its answer, (n,), and how many failed; `asked`: paths and
    bodies (None: GET).

    An open loop: whoever is slow is asked all the same (Schroeder, Wierman & Harchol-Balter 2006, NSDI)."""
    gaps = np.random.default_rng(SEED).exponential(1 / rate, max(round(rate * seconds), 1))
    waiting: queue.SimpleQueue[tuple[float, str, Any] | None] = queue.SimpleQueue()
    took, failed, began = list[float](), list[Exception](), time.perf_counter() + TICK
    for at, (path, body) in zip(np.cumsum(gaps).tolist(), asked, strict=False):
        waiting.put((began + at, path, body))

    def ask() -> None:
        with closing(server.connect()) as connection:
            while (one := waiting.get()) is not None:
                due, path, body = one
                time.sleep(max(due - time.perf_counter(), 0.0))
                try:
                    server.call(connection, path, body)
                except (RuntimeError, OSError, http.client.HTTPException) as error:
                    failed.append(error)
                took.append(1e3 * (time.perf_counter() - due))

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        waiting.put(None)
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        say(f"{len(failed)} of {len(gaps)} requests failed, the first one: {failed[0]}")
    return np.array(took), len(failed)


def serving(config: Config = SMALL, phases: Phases = Phases(), workers: Sequence[int] = WORKERS) -> dict[str, Any]:
    load_before = os.getloadavg()[0]
    with shop(config) as here:
        say("a version has been made")
        found = {f"workers_{n}": _served(here, n, phases) for n in workers}
    return {"load_average_before": load_before, "series": config.stores * config.products, **found}


def _served(here: Shop, workers: int, phases: Phases) -> dict[str, Any]:
    series = [(review.store_id, review.product_id) for review in here.reviews]
    stored = ((f"forecast?store_id={store}&product_id={product}", None) for store, product in cycle(series))
    what_if = (
        ("what-if", {"store_id": store, "product_id": product, "prices": [1.5], "promoted": [True] * 3})
        for store, product in cycle(series)
    )
    orders = (
        ("score", review.model_dump() | {"event_id": f"{review.event_id}/{i}"})
        for i, review in enumerate(cycle(here.reviews))
    )
    out: dict[str, Any] = {}
    with served(here, workers) as server:
        out["ready_seconds"] = server.ready_seconds
        for name, asked in (("stored", stored), ("what_if", what_if), ("order", orders)):
            rate, seconds = getattr(phases, name)
            offered(server, asked, rate, phases.warm)
            took, failed = offered(server, asked, rate, seconds)
            out |= {f"{name}_p{q}_ms": float(np.percentile(took, q)) for q in (50, 99)} | {f"{name}_failed": failed}
            say(f"{workers} workers, {name}: p50 {out[f'{name}_p50_ms']:.1f}, p99 {out[f'{name}_p99_ms']:.1f} ms")
        heard = _heard(server, series[: phases.told], workers)
    return {**out, "heard_seconds": median(heard), "heard_seconds_max": max(heard)}


def _heard(server: Server, series: Sequence[tuple[str, str]], workers: int) -> list[float]:
    """s from when yesterday's sales of a series are sent to when whoever asks is told another forecast of it:
    connections are spread over the workers."""
    took, day = list[float](), WallClock().now() // DAY - 1
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(server.connect())) for _ in range(2 * workers)]
        for store, product in series:
            asked = {"store_id": store, "product_id": product}
            known = server.call(connections[0], "what-if", asked)["planned"]
            sold = asked | {
                "event_id": f"told/{store}/{product}", "event_timestamp": day * DAY, "day": day,
                "units": 1_000.0 + 10 * max(known["mean"]),
            }  # fmt: skip
            began = time.perf_counter()
            server.call(connections[0], "actuals", sold)
            for connection in connections:
                while server.call(connection, "what-if", asked)["planned"] == known:
                    if time.perf_counter() > began + SOON:
                        raise RuntimeError(f"sales of {product} in {store} were not heard of within {SOON:.0f} s")
            took.append(time.perf_counter() - began)
    return took


# ----- scale


def scaled(core: Core, config: Config, chunks: int, workers: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = spread(partial(forecast, core, config, Path(folder)), range(chunks), address=None, workers=workers)
        series, seconds = sum(done), time.perf_counter() - began
    return {
        "series": series, "seconds": seconds, "seconds_per_1000": 1_000 * seconds / series, "peak_rss_mb": peak_rss(),
    }  # fmt: skip


def alone(core: Core, config: Config, chunks: int, workers: int) -> dict[str, Any]:
    """The same in a fresh process: what it needs at most is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(scaled, core, config, chunks, workers).result()


def scale(
    config: Config = SMALL,
    sizes: Sequence[int] = SIZES,
    chunk: int = CHUNK,
    shared: Sequence[int] = SHARED,
    run: Callable[[Core, Config, int, int], dict[str, Any]] = alone,
) -> dict[str, Any]:
    """A chunk is a chain that sells the same in more stores; `shared`: sizes that two processes share as well."""
    load_before = os.getloadavg()[0]
    chain = Chain.make(config, SEED)
    learned = Learned.of(chain, Panel.of(config, chain.actuals()), ORIGINS)
    trees = learned.trees(config)
    core = Core(trees, learned.blend(config, trees))
    larger = replace(config, stores=chunk * config.stores)
    found = dict[str, Any]()
    for size in sizes:
        found[str(size)] = run(core, larger, size // chunk, 1)
        say(f"{found[str(size)]['series']:,} series: {found[str(size)]['seconds']:.1f} s")
    both = {str(size): run(core, larger, size // chunk, 2) for size in shared}
    series, seconds = (np.array([of[name] for of in found.values()]) for name in ("series", "seconds"))
    return {
        "load_average_before": load_before, "series_in_chunk": larger.stores * larger.products, "sizes": found,
        "exponent": float(np.polyfit(np.log(series), np.log(seconds), 1)[0]),  # of the time, as a power of the series
        "workers_2": both,
    }  # fmt: skip


def forecast(core: Core, config: Config, folder: Path, chunk: int) -> int:
    """A chunk's history is made and forecast, and what is forecast is written; how many series that was."""
    chain = Chain.make(config, chunk, f"chain-{chunk}/")
    history, plan = Panel.of(config, chain.actuals()), chain.plan()
    quantiles = np.concatenate([ahead.forecast(core, part) for part in ahead.parts(history, plan)])
    columns: dict[str, Any] = {"store_id": plan.store_id, "product_id": plan.product_id}
    columns["quantiles"] = pa.FixedSizeListArray.from_arrays(quantiles.ravel(), quantiles[0].size)
    pq.write_table(pa.table(columns), folder / f"{chunk}.parquet")
    return len(plan)


if __name__ == "__main__":
    main()
