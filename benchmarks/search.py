"""The search system: how fast a shop of 20,000 products is searched, and what is learned from clicks.

Run: make bench-full, or python -m benchmarks.search [speed] [clicks] [--json [FILE]]

`speed`: the full world's catalogue, served by `mlsys serve` as an installation is; client and server share this
machine. `clicks`: rankers that are taught with the same clicks of the small world, judged by its truth on later days.
Where FILE holds a part that was not run, it stays there.
"""

import argparse
import http.client
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count, cycle
from pathlib import Path
from statistics import median
from typing import Any, Final

import lightgbm as lgb
import numpy as np

from benchmarks import interleaving
from benchmarks.load import SHED
from benchmarks.serving import Load, free_port
from common.clock import DAY, SimulatedClock, WallClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.encoder import Encoder
from common.experiments.ab import units_needed
from common.features.view import Array, numbers
from common.lifecycle import training
from common.lifecycle.simulation import before, live
from common.progress import Progress
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.serving.auth import ApiKeys
from common.system import AnySystem, Examples
from systems.search.config import FULL, SMALL, Config
from systems.search.data import Product, Query, world
from systems.search.evaluation import judged
from systems.search.model import Library, load
from systems.search.model.affinity import learn
from systems.search.model.clicks import RANKS, Examination, estimate
from systems.search.model.dense import DenseIndex, recall
from systems.search.model.index import Index
from systems.search.model.ranker import EVERYWHERE, HELD_OUT, Ranker, ordered, start
from systems.search.system import build

# A champion of the whole shop is had in minutes: its products are all listed, but few have asked for them
QUICK: Final = replace(
    FULL, new_products=0.0, queries_per_day=60.0, history_days=30, days=40, test_days=5, validation_days=5
)  # fmt: skip
SEED: Final = 0
ASKING: Final = 1_500.0  # queries/day of the shoppers whose queries are sent
SEEDS: Final = (0, 1, 2)


RATE: Final = 90  # queries/s
RATES: Final = (90, 120, 150, 200)
WORKERS: Final = (1, 2)
CONNECTIONS: Final = 64
P99: Final = 40.0  # ms
START: Final = 120.0  # s, for a server to come up
SOON: Final = 30.0  # s, for a product to be found
TICK: Final = 0.02  # s
TEXTS: Final = 1_000  # of queries, for recall
NEW: Final = "quoxel"  # what nobody sells yet
REPEATS: Final = 2_000  # of the bootstrap
QUIET: Final = Progress(quiet=True)
ASKED: Final = {
    "ready_seconds": "<= 5", "p50_ms": "<= 15 at 90/s", "p99_ms": "<= 40 at 90/s", "recall_at_10": ">= 0.98",
    "found_seconds_max": "< 1", "failed_while_promoted": "0",
}  # fmt: skip


@dataclass(frozen=True)
class Phases:
    """How long each takes, s."""

    warm: float = 5.0
    steady: float = 60.0
    step: float = 20.0
    swap: float = 20.0
    told: int = 20  # new products


# ----- the shop that is served


@dataclass(frozen=True)
class Shop:
    """A home with a champion, a version that may follow it, and its log; and queries that nobody has asked yet."""

    folder: Path
    key: str
    versions: tuple[str, str]
    bundle: Path
    queries: Iterator[dict[str, Any]]  # payloads, without end

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def keys(self) -> Keys:
        return Keys(self.folder / "keys")

    def payloads(self, n: float) -> Path:
        """A file of the next ones."""
        handle, path = tempfile.mkstemp(".json", dir=self.folder)
        with open(handle, "w") as file:
            json.dump([next(self.queries) for _ in range(math.ceil(n))], file)
        return Path(path)


@contextmanager
def shop(config: Config, asking: float) -> Iterator[Shop]:
    """Its history ends last night."""
    clock = WallClock()
    config = replace(config, start=(clock.now() // DAY - config.history_days) * DAY)
    system = build(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home, keys = folder / "home", Keys(folder / "keys")
        _, snapshot, known = history(system, SEED, home / system.name / "log.db")
        with Registry(home, clock, keys) as registry:
            names = list[str]()
            for leaves in (config.num_leaves, 2 * config.num_leaves):
                other = replace(system, params={**system.params, "num_leaves": leaves})
                made = training.learn(
                    other, snapshot, known, registry, trials=folder / "trials", tune=0, origin={}, progress=QUIET
                )  # fmt: skip
                names.append(made.version.name)
            bundle = registry.path(registry.get(system.name, names[0]))
            promote(registry, names[0])
        with closing(ApiKeys(home, clock, keys)) as access:
            key = access.create("bench", ["score", "label", "read"], expires=None, rate="1000000/second")
        yield Shop(folder, key, (names[0], names[1]), bundle, cycle(_asked(config, asking)))


def history(system: AnySystem, seed: int, log: Path) -> tuple[Any, training.Snapshot, Examples[Query]]:
    """A world that has lived through it, what it left in a log, and the queries with what is known of each."""
    lived = system.world(seed, None, None)
    with EventLog(log, SimulatedClock(system.history[0]), system.logged) as opened:
        for _ in live(system, lived, opened, before(system), system.history, batch=None, progress=QUIET):
            pass
        snapshot = training.take(system, opened, Snapshots(log.parent / "snapshots"))
    return lived, snapshot, training.examples(system, snapshot, lived)


def promote(registry: Registry, name: str) -> None:
    """Whatever its gates say of a ranker that has learned so little: it is served, not judged."""
    registry.promote("search", name, who="benchmark", why="it is measured", force=True)


def _asked(config: Config, per_day: float) -> list[dict[str, Any]]:
    """What other shoppers of that world ask for, in an order of no meaning, no text twice: none is remembered."""
    others = world(replace(config, queries_per_day=per_day), SEED)
    found = [a.event for a in others.arrivals(config.start + config.days * DAY) if isinstance(a.event, Query)]
    once = list({query.text: query.model_dump() for query in found}.values())
    return [once[i] for i in np.random.default_rng(SEED).permutation(len(once)).tolist()]


# ----- speed


@dataclass(frozen=True)
class Server:
    """`mlsys serve` on a copy of a shop's home."""

    shop: Shop
    home: Path
    port: int
    pid: int
    ready_seconds: float  # from the start of the process

    def opened(self, rate: float, seconds: float) -> Load:
        url, payloads = f"http://127.0.0.1:{self.port}/v1/search/score", self.shop.payloads(rate * seconds)
        options = ("--connections", CONNECTIONS, "--rate", f"{rate}x{seconds}")
        return Load(url, payloads, *options, key=self.shop.key)

    def call(self, connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Raises RuntimeError for any answer but a good one."""
        connection.request("POST", path, json.dumps(body), {"authorization": f"Bearer {self.shop.key}"})
        response = connection.getresponse()
        said = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {said[:500]!r}")
        found: dict[str, Any] = json.loads(said)
        return found


def _cpu(pid: int) -> float:
    """s of processor time, of a process and those that it started."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") + sum(_cpu(int(child)) for child in children)


@contextmanager
def served(here: Shop, workers: int) -> Iterator[Server]:
    """From when it is ready; raises RuntimeError with what it said last."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir=here.folder) as name:
        home, said = Path(name) / "home", Path(name) / "said.txt"
        shutil.copytree(here.home, home)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("MLSYS_")}
        command = ("-m", "common.cli", "serve", "search", "--preset", "full", "--port", str(port))
        began = time.perf_counter()
        with said.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *command, "--workers", str(workers)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env={**kept, "MLSYS_HOME": str(home), "MLSYS_KEYS": str(here.folder / "keys")}, start_new_session=True,
            )  # fmt: skip
        try:
            while not _is_ready(port):
                if process.poll() is not None or time.perf_counter() > began + START:
                    raise RuntimeError(f"the server did not start: {said.read_text()[-2_000:]}")
                time.sleep(TICK)
            yield Server(here, home, port, process.pid, time.perf_counter() - began)
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


def speed(config: Config = QUICK, asking: float = ASKING, phases: Phases = Phases()) -> dict[str, Any]:
    began, load_before = time.perf_counter(), os.getloadavg()[0]
    with shop(config, asking) as here:
        made = time.perf_counter() - began
        texts = [next(here.queries)["text"] for _ in range(TEXTS)]
        dense, encoder = DenseIndex.load(here.bundle / "index"), Encoder.load(here.bundle / "index" / "encoder")
        loading = time.perf_counter()
        searcher = load(config, here.bundle)
        out: dict[str, Any] = {
            "asked": ASKED, "load_average_before": load_before, "made_seconds": made, "products": config.products,
            "products_live": len(searcher.index), "load_bundle_seconds": time.perf_counter() - loading,
            "recall_at_10": recall(dense, encoder.encode(texts)),
        }  # fmt: skip
        for workers in WORKERS:
            with served(here, workers) as server:
                _run(server, RATE, phases.warm)
                out[f"workers_{workers}"] = {"ready_seconds": server.ready_seconds, **_run(server, RATE, phases.steady)}
                if workers == max(WORKERS):
                    out["rates"] = {str(rate): _run(server, rate, phases.step) for rate in RATES}
                    out |= _told(server, workers, phases.told)
                    out |= _promoting(server, phases)
    holds = [int(rate) for rate, found in out["rates"].items() if found["p99_ms"] <= P99 and not found["not_ok"]]
    return out | {"highest_rate": max(holds, default=None), "seconds": time.perf_counter() - began}


def _run(server: Server, rate: float, seconds: float) -> dict[str, Any]:
    cpu = _cpu(server.pid)
    result = server.opened(rate, seconds).result()
    return {
        "offered": result.offered, "p50_ms": result.p50 * 1e3, "p99_ms": result.p99 * 1e3, "max_ms": result.max * 1e3,
        "not_ok": result.offered - result.ok, "failed": result.failed, "late": result.late,
        "shed": sum(n for status, n in result.status.items() if int(status) in SHED), "status": result.status,
        "degraded": result.degraded, "cpu_ms_per_query": 1e3 * (_cpu(server.pid) - cpu) / max(result.sent, 1),
    }  # fmt: skip


def _told(server: Server, workers: int, n: int) -> dict[str, Any]:
    """s from when a product is sent to when whoever asks is told of it: connections are spread over the workers."""
    took = []
    connections = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=5) for _ in range(2 * workers)]
    for i in range(n):
        name, now = f"{NEW}-{i}", WallClock().now()
        title = f"{NEW}{i} grey sofa"
        product = Product(
            event_id=name, event_timestamp=now, product_id=name, title=title, category="furniture", brand="Norvik",
            colour="grey", price=100.0 + i,
        )  # fmt: skip
        began = time.perf_counter()
        server.call(connections[0], "/v1/search/products", product.model_dump())
        for j, connection in enumerate(connections):
            for attempt in count():
                said = server.call(connection, "/v1/search/score", {
                    "event_id": f"{name}-{j}-{attempt}", "event_timestamp": now, "shopper_id": NEW, "text": title,
                })  # fmt: skip
                if name in [hit["product_id"] for hit in said["answer"]["hits"]]:
                    break
                if time.perf_counter() > began + SOON:
                    raise RuntimeError(f"{name} was not found within {SOON:.0f} s")
        took.append(time.perf_counter() - began)
    for connection in connections:
        connection.close()
    return {"found_products": n, "found_seconds": median(took), "found_seconds_max": max(took)}


def _promoting(server: Server, phases: Phases) -> dict[str, Any]:
    """Another version takes over while queries come."""
    queries = server.opened(RATE, phases.swap)
    time.sleep(phases.swap / 4)
    with Registry(server.home, WallClock(), server.shop.keys) as registry:
        promote(registry, server.shop.versions[1])
    result = queries.result()
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as connection:
        said = server.call(connection, "/v1/search/score", next(server.shop.queries) | {"event_id": "after"})
    if said["version"] != server.shop.versions[1]:
        raise RuntimeError(f"{server.shop.versions[1]} was promoted, but {said['version']} answers")
    return {
        "failed_while_promoted": result.offered - result.ok + result.degraded,
        "offered_while_promoted": result.offered, "p99_ms_while_promoted": result.p99 * 1e3,
    }  # fmt: skip


# ----- clicks


def clicks(config: Config = SMALL, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    began, load_before = time.perf_counter(), os.getloadavg()[0]
    runs = {str(seed): learned(config, seed) for seed in seeds}
    gains = [run.pop("gain") for run in runs.values()]
    of_all = np.concatenate(gains)
    return {
        "asked": {"mean": "> 0"}, "load_average_before": load_before, "seeds": runs,
        "steepness": {"desktop": config.examined[0], "phone": config.examined[1]},
        "debiased_minus_naive": bootstrapped(of_all), "queries": len(of_all), "seconds": time.perf_counter() - began,
    }  # fmt: skip


def learned(config: Config, seed: int) -> dict[str, Any]:
    """Of each ranker nDCG@10 by the truth on test days, and what else is asked of the best of them."""
    library, system = Library(config), build(config)
    assert system.many is not None
    system = replace(system, many=replace(system.many, replay=library.replay))
    with tempfile.TemporaryDirectory() as folder:
        lived, snapshot, known = history(system, seed, Path(folder) / "log.db")
    final = training.spans(system, snapshot).final
    train, test = known.between(*final.train), known.between(*final.test)
    looks = estimate(config, train)
    index = library.index(known.events["Product"], known.events["Query"])
    naive, debiased = (widened(index, train, test, by) for by in (EVERYWHERE, looks))
    lexical, dense, fused = (numbers(test.rows.columns[column]) for column in ("lexical", "dense", "fused"))
    everything = np.ones(len(fused), bool)
    plain, weighed = (
        Ranker.taught(config, part[0], start(config), by).attraction(part[1].x)
        for part, by in ((naive, EVERYWHERE), (debiased, looks))
    )
    scores = {
        "bm25": lexical, "dense": dense, "fused": fused,
        "lambdamart_naive": lambdamart(config, *naive, looks=None, by_position=False),
        "lambdamart_ips": lambdamart(config, *debiased, looks=looks, by_position=False),
        "lambdamart_position": lambdamart(config, *debiased, looks=None, by_position=True),
        "likelihood_naive": plain, "likelihood_debiased": weighed,
    }  # fmt: skip
    found = {name: lexical > 0 if name == "bm25" else everything for name in scores}
    ndcg = {name: judged(test, looks, values, found[name])["ndcg_at_10"] for name, values in scores.items()}
    gain = ndcg["likelihood_debiased"] - ndcg["likelihood_naive"]
    return {
        "queries": len(test), "learned_from": len(train), "ndcg_at_10": {n: float(v.mean()) for n, v in ndcg.items()},
        "ceiling": float(lived.ceiling(test.requests).mean()), "debiased_minus_naive": bootstrapped(gain),
        "steepness_found": {"desktop": looks.desktop, "phone": looks.phone},
        "interleaving": interleaved(lived, test, weighed, lexical, seed), "gain": gain,
    }  # fmt: skip


def widened(
    index: Index, train: Examples[Query], test: Examples[Query], looks: Examination
) -> tuple[Examples[Query], Examples[Query]]:
    """Both with the affinity of words as the model has it when clicks are counted by such looks."""
    known, affinity = learn(index, train, looks)
    later = affinity.of(index, test.requests, test.rows)
    return tuple(  # type: ignore[return-value]
        replace(part, x=np.column_stack([part.x, column]), names=(*part.names, "affinity"))
        for part, column in ((train, known), (test, later))
    )


def lambdamart(
    config: Config, train: Examples[Query], test: Examples[Query], looks: Examination | None, by_position: bool
) -> Array:
    """LightGBM's ranker (Burges 2010) of what was shown to queries with a click, as scores of the test rows.

    looks: a click counts for 1 / the chance of the look (Joachims et al. 2017). by_position: LightGBM learns itself
    what a place adds to a score. Days are held out, and the trees are grown, as for our ranker.
    """
    owner, rank, is_phone = train.rows.owner, *(numbers(train.rows.columns[name]) for name in ("rank", "is_phone"))
    clicked = np.nan_to_num(train.labels) > 0
    told = np.bincount(owner, clicked, len(train)) > 0
    is_late = train.as_of // DAY % HELD_OUT == HELD_OUT - 1

    def part(late: bool, reference: lgb.Dataset | None) -> lgb.Dataset:
        rows = np.flatnonzero((train.weights > 0) & told[owner] & (is_late[owner] == late))
        weight = None if looks is None else np.where(clicked[rows], looks.weights(rank[rows], is_phone[rows]), 1.0)
        return lgb.Dataset(
            train.x[rows], clicked[rows], reference=reference, weight=weight,
            group=np.unique(owner[rows], return_counts=True)[1],
            position=rank[rows].astype(np.int64) - 1 if by_position else None,
        )  # fmt: skip

    options = {
        **start(config), "objective": "lambdarank", "metric": "ndcg", "eval_at": [10], "verbosity": -1,
        "lambdarank_truncation_level": RANKS, "seed": config.seed, "max_bin": config.max_bin, "deterministic": True,
        "force_row_wise": True, "num_threads": config.threads,
    }  # fmt: skip
    data = part(False, None)
    booster = lgb.train(
        options, data, config.trees, valid_sets=[part(True, data)],
        callbacks=[lgb.early_stopping(config.patience, verbose=False)],
    )  # fmt: skip
    return np.asarray(booster.predict(test.x))


def bootstrapped(gain: Array) -> dict[str, Any]:
    """The mean over queries, and where 95 % of those of drawn queries lie."""
    rng = np.random.default_rng(0)
    means = [float(gain[rng.integers(0, len(gain), len(gain))].mean()) for _ in range(REPEATS)]
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return {"mean": float(gain.mean()), "low": low, "high": high}


def interleaved(lived: Any, test: Examples[Query], ours: Array, lexical: Array, seed: int) -> dict[str, Any]:
    """Queries until a verdict on our ranker against the order of BM25, drawn from the law of what is clicked."""
    ids, offsets = test.rows.columns["product_id"].to_numpy(), test.rows.offsets
    asked, rankings = list[Query](), (list[list[str]](), list[list[str]]())
    for i, query in enumerate(test.requests):
        if offsets[i + 1] - offsets[i] >= interleaving.SIZE:
            asked.append(query)
            for ranking, scores in zip(rankings, (ours, lexical), strict=True):
                best = ordered(scores[offsets[i] : offsets[i + 1]], np.array([0, offsets[i + 1] - offsets[i]]))
                ranking.append(ids[offsets[i] : offsets[i + 1]][best[: interleaving.SIZE]].tolist())
    rng = np.random.default_rng(seed)
    won = interleaving.interleaved(lived, asked, *rankings)
    a, b = (interleaving.laws(lived, asked, ranking)["clicks"] for ranking in rankings)
    queries = interleaving.needed(lambda n: interleaving.by_interleaving(won, n, rng))
    by_ab = interleaving.needed(lambda n: interleaving.by_groups(a, b, n, rng))
    by_formula = units_needed(b.mean - a.mean, (a.variance + b.variance) / 2, interleaving.ALPHA, interleaving.POWER)
    return {
        "of_queries": len(asked), "won": float(won.shares[0]), "lost": float(won.shares[-1]), "queries": queries,
        "ab_clicks_queries": by_ab, "ab_clicks_by_formula": by_formula,
        "times_fewer_queries": by_formula / queries if queries else None,
    }  # fmt: skip


def main() -> None:
    parts: dict[str, Callable[[], dict[str, Any]]] = {"speed": speed, "clicks": clicks}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="speed, clicks (default: both)")
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
    asked = found.get("asked", asked)
    for name, value in found.items():
        label = f"{'  ' * depth}{name:{40 - 2 * depth}}"
        if isinstance(value, Mapping) and name != "asked":
            print(label)
            show(value, asked, depth + 1)
        elif name != "asked":
            said = f"{value:14,.4f}" if isinstance(value, float) else f"{value!s:>14}"
            print(f"{label} {said}" + (f"  asked: {asked[name]}" if name in asked else ""))


if __name__ == "__main__":
    main()
