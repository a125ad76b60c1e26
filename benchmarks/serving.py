"""Serving over HTTP: throughput beside a bare endpoint and other servers, and what is left of it under overload.

Run: python -m benchmarks.serving [throughput] [others] [overload] [--json] [--others PYTHON]

One worker each, one home with the small fraud world's champion and its log. Client and server share this machine.
PYTHON is an interpreter that has mlflow or bentoml; they are not the project's own.
"""

import argparse
import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from benchmarks.load import Result, together
from common.checks import bench
from common.clock import DAY, SECOND, WallClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.lifecycle.training import train
from common.progress import Progress
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.schema import Event, from_table
from common.serving.auth import ApiKeys
from common.system import Answered, find
from systems.fraud.data import Decision, Payment

CHUNK = 10_000  # events appended at a time
PAYLOADS = 5_000
CONNECTIONS = 16
# Favours the others: beside a busy process, two threads for one payment wait for each other far longer than they work
ONE_THREAD = "OMP_NUM_THREADS=1"
ROUNDS, ROUND = 3, 6.0  # s
START = 120.0  # s, for a server to come up
DEADLINE = 0.25  # s, of an answer that counts
OPEN = 256  # connections of an open loop
PHASE = 10.0  # s, of overload
FULL = 0.95  # of what is offered below the peak; with so much, service is back
MOST = 20_000  # requests/s of one generator
POLL = 20  # /s, of /health/live
FLOOD, MODEST = 200, 50  # requests/s that a key may send; that another one sends


# ----- what is served


@dataclass(frozen=True)
class Stage:
    """A home to be served from, and what the other servers need of it."""

    folder: Path
    keys: Mapping[str, str]  # by the name of who asks
    bundle: Path
    events: int

    @property
    def payloads(self) -> Path:
        return self.folder / "payloads.json"

    @property
    def row(self) -> Path:
        return self.folder / "row.npy"

    @property
    def environment(self) -> dict[str, str]:
        own = {"MLSYS_HOME": str(self.folder / "home"), "MLSYS_KEYS": str(self.folder / "keys")}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLSYS_")}
        return {**kept, **own, "BUNDLE": str(self.bundle), "ROW": str(self.row)}

    @contextmanager
    def ours(self, **environment: str) -> Iterator[str]:
        """From a copy of its own: what was asked before must not make its cards any busier."""
        port = free_port()
        with tempfile.TemporaryDirectory(dir=self.folder) as home:
            shutil.copytree(self.folder / "home", home, dirs_exist_ok=True)
            said = [f"{name}={value}" for name, value in {"MLSYS_HOME": home, **environment}.items()]
            serve = ("-m", "common.cli", "serve", "fraud", "--port", str(port), "--workers", "1")
            with _serving(("env", *said, sys.executable, *serve), port, "/health/ready", self) as url:
                yield f"{url}/v1/fraud/score"

    @contextmanager
    def bare(self) -> Iterator[str]:
        port = free_port()
        options = ("--port", str(port), "--no-access-log", "--log-level", "warning")
        command = ("env", ONE_THREAD, sys.executable, "-m", "uvicorn", "--factory", "benchmarks.serving:bare", *options)
        with _serving(command, port, "/docs", self) as url:
            yield url


def bare() -> FastAPI:
    """What one writes first: no keys, no features, no log. Its features are those of one payment, whoever asks."""
    system = find("systems", "fraud")
    scorer: Any = system.load(Path(os.environ["BUNDLE"]))
    x: NDArray[np.float64] = np.load(os.environ["ROW"])  # (1, n_features)
    app = FastAPI()

    @app.post("/score", response_model=Decision)
    async def score(payment: Payment) -> Decision:
        (scored,) = scorer.predict([payment], scorer.rows([payment]), x)
        decision: Decision = system.decide(payment, scored, 0.5)
        return decision

    @app.post("/probability")
    async def probability(payment: Payment) -> dict[str, float]:
        return {"probability": float(scorer.probability(x)[0])}

    return app


@contextmanager
def stage() -> Iterator[Stage]:
    """The small world, moved in time so that its log ends now."""
    system = find("systems", "fraud")
    clock = WallClock()
    with bench(system) as lived, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home, keys = folder / "home", Keys(folder / "keys")
        with Registry(home, clock, keys) as registry:
            trained = train(
                system, lived.log, Snapshots(folder / "snapshots"), registry,
                trials=folder / "trials", tune=0, world=lived.world, origin={}, progress=Progress(quiet=True),
            )  # fmt: skip
            registry.promote(system.name, trained.version.name, who="benchmark", why="it is measured")
            bundle = registry.path(trained.version)
        shift = clock.now() - SECOND - lived.log.head().created_timestamp
        logged: list[tuple[int, int, Event]] = []
        kinds: list[type[Event]] = [*system.events, Answered]
        for kind in kinds:
            table = lived.log.read(kind)
            times = zip(table["position"].to_pylist(), table["created_timestamp"].to_pylist(), strict=True)
            for event, (position, created) in zip(from_table(kind, table), times, strict=True):
                moved = event.model_copy(update={"event_timestamp": event.event_timestamp + shift})
                logged.append((position, created + shift, moved))
        logged.sort(key=lambda one: one[0])
        with EventLog(home / system.name / "log.db", clock, system.logged) as log:
            for i in range(0, len(logged), CHUNK):
                part = logged[i : i + CHUNK]
                log.append([event for _, _, event in part], [created for _, created, _ in part])
        with closing(ApiKeys(home, clock, keys)) as access:
            rates = {"bench": "1000000/second", "flood": f"{FLOOD}/second", "modest": "1000000/second"}
            made = {who: access.create(who, ["score"], expires=None, rate=rate) for who, rate in rates.items()}
            made["read"] = access.create("read", ["read"], expires=None, rate=None)
        arrivals = lived.world.arrivals(system.history[1] + 60 * DAY)
        next_ones = [a.event.model_dump() for a in arrivals if isinstance(a.event, system.request)][:PAYLOADS]
        here = Stage(folder, made, bundle, len(logged))
        here.payloads.write_text(json.dumps(next_ones))
        np.save(here.row, _typical(lived.examples.x, system.load(bundle)))
        yield here


def _typical(x: NDArray[np.float64], scorer: Any) -> NDArray[np.float64]:
    """(1, n_features): the payment whose probability is the median."""
    p = scorer.probability(x)
    i = int(np.argsort(p)[len(p) // 2])
    return x[i : i + 1]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def _serving(command: Sequence[str], port: int, path: str, here: Stage) -> Iterator[str]:
    """A server, from when it answers under `path`; raises RuntimeError with what it said last."""
    said = here.folder / f"server-{port}.txt"
    with said.open("wb") as out:
        process = subprocess.Popen(
            command, env=here.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        until = time.monotonic() + START
        while _get(port, path) != 200:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{' '.join(command[:4])} did not start: {said.read_text()[-2_000:]}")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _get(port: int, path: str) -> int | None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


# ----- who asks


class Load:
    """A generator in a process of its own, from its start to its result."""

    def __init__(self, url: str, payloads: Path, *options: Any, key: str | None = None) -> None:
        command = [sys.executable, "-m", "benchmarks.load", url, "--payloads", payloads, "--json", *options]
        self._process = subprocess.Popen(
            [*map(str, command), *(["--key", key] if key else [])], stdout=subprocess.PIPE, text=True
        )

    def result(self) -> Result:
        said, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError("the load generator failed")
        return Result(**json.loads(said))


def closed(
    here: Stage, url: str, connections: int, seconds: float, *options: str, payloads: Path | None = None
) -> Result:
    asked = ("--connections", connections, "--seconds", seconds, *options)
    return Load(url, payloads or here.payloads, *asked, key=here.keys["bench"]).result()


def opened(here: Stage, url: str, *steps: tuple[float, float]) -> Result:
    """Requests at given rates, by as many generators as they take."""
    n = math.ceil(max(rate for rate, _ in steps) / MOST)
    loads = []
    for seed in range(n):
        rates = [part for rate, seconds in steps for part in ("--rate", f"{rate / n}x{seconds}")]
        options = ("--connections", OPEN // n, "--seed", seed, *rates)
        loads.append(Load(url, here.payloads, *options, key=here.keys["bench"]))
    return together([load.result() for load in loads])


@contextmanager
def polled(url: str) -> Iterator[Counter[str]]:
    """/health/live, over and over; counts the statuses."""
    found: Counter[str] = Counter()
    over = threading.Event()
    port = int(url.split(":")[2].split("/")[0])

    def poll() -> None:
        while not over.wait(1 / POLL):
            found[str(_get(port, "/health/live"))] += 1

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


# ----- the parts


def throughput(here: Stage) -> dict[str, Any]:
    """Ours with everything on, by turns with a bare endpoint that is given its features."""
    before = os.getloadavg()[0]
    with here.ours() as ours, here.bare() as plain:
        urls = {"bare": f"{plain}/score", "ours": ours, "bare_probability_only": f"{plain}/probability"}
        runs: dict[str, list[Result]] = {name: [] for name in urls}
        for url in urls.values():
            closed(here, url, CONNECTIONS, 2.0)
        for _ in range(ROUNDS):
            for name, url in urls.items():
                runs[name].append(closed(here, url, CONNECTIONS, ROUND))
        out: dict[str, Any] = {"load_average_before": before, "connections": CONNECTIONS, "events_before": here.events}
        for name, results in runs.items():
            out[f"{name}_per_second"] = _median(results, "throughput")
            out[f"{name}_p50_ms"] = _median(results, "p50") * 1e3
            out[f"{name}_p99_ms"] = _median(results, "p99") * 1e3
            out[f"{name}_rounds_per_second"] = [round(result.throughput) for result in results]
        out["not_ok"] = sum(result.offered - result.ok for results in runs.values() for result in results)
        out["degraded"] = sum(result.degraded for result in runs["ours"])
        out["throughput_ratio"] = out["ours_per_second"] / out["bare_per_second"]
        out["p99_ratio"] = out["ours_p99_ms"] / out["bare_p99_ms"]
    for connections in (1, 4, 64):
        with here.ours() as ours:
            closed(here, ours, connections, 2.0)
            result = closed(here, ours, connections, ROUND)
            out[f"ours_{connections}_connections_per_second"] = result.throughput
            out[f"ours_{connections}_connections_p50_ms"] = result.p50 * 1e3
            out[f"ours_{connections}_connections_p99_ms"] = result.p99 * 1e3
    return out | {"target_throughput_ratio": 0.6, "target_p99_ratio": 2.0}


def _median(results: Sequence[Result], name: str) -> float:
    return float(np.median([getattr(result, name) for result in results]))


BENTO = """
import os
import bentoml, lightgbm
import numpy as np

@bentoml.service(workers=1, traffic={"timeout": 10})
class Score:
    def __init__(self) -> None:
        self.booster = lightgbm.Booster(model_file=os.environ["TREES"])

    @bentoml.api(batchable=True)
    def score(self, rows: np.ndarray) -> np.ndarray:
        return self.booster.predict(rows)
"""
SAVE = """
import sys
import lightgbm, mlflow
mlflow.lightgbm.save_model(lightgbm.Booster(model_file=sys.argv[1]), sys.argv[2])
"""


def others(here: Stage, python: str) -> dict[str, Any]:
    """The same trees behind servers of others, which are sent the features and say the probability."""
    trees = here.bundle / "trees.txt"
    rows = {"mlflow": "inputs", "bentoml": "rows"}  # the field of a request that holds them
    x = np.nan_to_num(np.load(here.row)).tolist()
    out: dict[str, Any] = {"connections": CONNECTIONS}
    for name, field in rows.items():
        try:
            version = _run(python, "-c", f"import {name}; print({name}.__version__)").split()[-1]
            payloads = here.folder / f"{name}.json"
            payloads.write_text(json.dumps([{field: x}]))
            port = free_port()
            if name == "mlflow":
                _run(python, "-c", SAVE, str(trees), str(here.folder / "mlflow"))
                path, health = "/invocations", "/ping"
                options = ["-m", str(here.folder / "mlflow"), "--env-manager", "local"]
                command = [python, "-m", "mlflow", "models", "serve", "-p", str(port), *options]
            else:
                (here.folder / "bento.py").write_text(BENTO)
                path, health = "/score", "/livez"
                options = ["bento:Score", "--working-dir", str(here.folder), "--host", "127.0.0.1"]
                command = [python, "-m", "bentoml", "serve", "-p", str(port), *options]
            environment = ["env", ONE_THREAD, f"TREES={trees}", f"PATH={Path(python).parent}:{os.environ['PATH']}"]
            with _serving([*environment, *command], port, health, here) as url:
                closed(here, url + path, CONNECTIONS, 2.0, payloads=payloads)
                result = closed(here, url + path, CONNECTIONS, ROUND, payloads=payloads)
            if not result.ok:
                raise RuntimeError(f"answers {result.status}")
        except (RuntimeError, subprocess.SubprocessError, OSError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            out[f"{name}_left_out"] = str(error).strip()[-200:]
            continue
        out[f"{name}_version"] = version
        out[f"{name}_per_second"] = result.throughput
        out[f"{name}_p50_ms"], out[f"{name}_p99_ms"] = result.p50 * 1e3, result.p99 * 1e3
        out[f"{name}_not_ok"] = result.offered - result.ok
    return out


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])
    return done.stdout


def overload(here: Stage) -> dict[str, Any]:
    """More than can be answered, in five ways; the peak is what a closed loop gets."""
    before = os.getloadavg()[0]
    with here.ours() as url, polled(url) as alive:
        closed(here, url, CONNECTIONS, 2.0)
        peak = max(closed(here, url, connections, ROUND).throughput for connections in (CONNECTIONS, 64))
        double = opened(here, url, (2 * peak, PHASE))
        burst = opened(here, url, (5 * peak, PHASE), (0.8 * peak, PHASE))
        crowd = closed(here, url, 5 * CONNECTIONS, PHASE, "--obeys")
        flood = Load(url, here.payloads, "--connections", 64, "--rate", f"{10 * FLOOD}x{PHASE}", key=here.keys["flood"])
        modest = Load(url, here.payloads, "--rate", f"{MODEST}x{PHASE}", key=here.keys["modest"])
        shed, served = flood.result(), modest.result()
    return {
        "load_average_before": before, "peak_per_second": peak,
        "double_offered_per_second": double.offered / PHASE,
        "double_sent_per_second": _each_second(double, "sent"),
        "double_goodput_share": double.goodput / peak, "target_double_goodput_share": 0.75,
        "double_p99_ms": double.p99 * 1e3,
        "double_status": double.status, "double_late": double.late, "double_failed": double.failed,
        "double_degraded": double.degraded,
        "five_times_offered_per_second": 5 * peak,
        "five_times_sent_per_second": _each_second(burst, "sent"),
        "five_times_answered_per_second": _each_second(burst, "ok") + _each_second(burst, "shed"),
        "five_times_goodput_share": _each_second(burst, "good") / peak,
        "five_times_status": burst.status, "five_times_late": burst.late, "five_times_failed": burst.failed,
        "five_times_good_by_second": [second["good"] for second in burst.timeline],
        "recovery_seconds": _recovery(burst, 0.8 * peak), "target_recovery_seconds": 5,
        "crowd_goodput_share": crowd.goodput / peak, "target_crowd_goodput_share": 0.9,
        "crowd_status": crowd.status, "crowd_failed": crowd.failed,
        "health_polls": sum(alive.values()),
        "health_share_ok": alive["200"] / sum(alive.values()), "target_health_share_ok": 1.0,
        "flood_status": shed.status, "flood_failed": shed.failed, "flood_late": shed.late,
        "modest_p99_ms": served.p99 * 1e3,
        "modest_share_served": served.ok / served.offered, "target_modest_share_served": 0.999,
    }  # fmt: skip


def _each_second(result: Result, name: str) -> float:
    """Of the first phase."""
    return sum(second[name] for second in result.timeline[: int(PHASE)]) / PHASE


def _recovery(burst: Result, rate: float) -> float | None:
    """s from the end of the overload, to the end of the first second in which nearly all is answered; None: never."""
    after = burst.timeline[int(PHASE) : int(2 * PHASE)]
    return next((i + 1.0 for i, second in enumerate(after) if second["good"] >= FULL * rate), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="throughput, others, overload (default: all)")
    installed = "an interpreter that has mlflow or bentoml (default: this one, which may have them)"
    parser.add_argument("--others", metavar="PYTHON", default=sys.executable, help=installed)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    parts = {"throughput": throughput, "others": lambda here: others(here, arguments.others), "overload": overload}
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"parts: must be {', '.join(parts)}, got {', '.join(unknown)}")
    with stage() as here:
        found = {name: part(here) for name, part in parts.items() if name in (arguments.parts or parts)}
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, figures in found.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key:38} {value:14,.3f}" if isinstance(value, (int, float)) else f"  {key:38} {value}")


if __name__ == "__main__":
    main()
