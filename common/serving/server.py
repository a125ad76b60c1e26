"""One worker: opens what its systems need, serves them over HTTP, and leaves without failing anybody."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
from fastapi import FastAPI

from common.clock import MILLISECOND, Clock, WallClock
from common.data.log import EventLog
from common.features.online import open_store
from common.features.view import assemble
from common.monitoring.logs import Logs
from common.monitoring.metrics import Metrics
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.serving.app import MOST_ROWS, Runtime, Served, create_app, looked_up
from common.serving.auth import ApiKeys, RateLimits
from common.serving.batching import Batcher
from common.serving.following import Follower
from common.serving.live import AnyModel, Live
from common.serving.pipeline import Pipeline
from common.serving.resilience import Limiter
from common.serving.service import Service
from common.settings import Settings
from common.system import AnySystem

FOLLOW = 1.0  # s, between two looks at the registry and at the API keys
TARGET = 0.4  # of the deadline, that a call may take before fewer are let in
ROWS = 256  # of a micro-batch
LEAST = 64  # rows in flight that are always let in: a short halt of a dependency is no overload


def application(settings: Settings, systems: Sequence[AnySystem], clock: Clock | None = None) -> FastAPI:
    """The systems as an ASGI application, which opens its log, features and versions when it starts."""
    clock = clock or WallClock()
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    keys = Keys(settings.keys)
    runtime = Runtime(
        ApiKeys(settings.home, clock, keys, settings.database_url),
        RateLimits(settings.rate_limit),
        Metrics(Path(shared) if shared else None),
        Logs(clock),
        settings.deadline_ms * MILLISECOND,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(runtime.access.close)
            stack.callback(runtime.tracing.close)
            registry = stack.enter_context(Registry(settings.home, clock, keys, settings.database_url))
            loop = asyncio.get_running_loop()
            for system in systems:
                opened = _serve(settings, system, clock, registry, runtime, keys.secret("routing"), loop)
                runtime.served[system.name] = await asyncio.to_thread(stack.enter_context, opened)
                stack.callback(runtime.served.pop, system.name)
            refreshing = asyncio.create_task(_refresh(runtime))
            stack.callback(refreshing.cancel)
            yield

    return create_app(systems, runtime, lifespan)


async def _refresh(runtime: Runtime) -> None:
    """Obey revocations, and show the limits that have adapted."""
    while True:
        await asyncio.sleep(FOLLOW)
        await asyncio.to_thread(runtime.access.refresh)
        for name, served in runtime.served.items():
            runtime.metrics.limit.labels(name).set(served.limiter.limit)


@contextmanager
def _serve(
    settings: Settings,
    system: AnySystem,
    clock: Clock,
    registry: Registry,
    runtime: Runtime,
    key: bytes,
    loop: asyncio.AbstractEventLoop,
) -> Iterator[Served]:
    def say(line: str) -> None:
        runtime.logs.say("note", system=system.name, message=line)

    folder = settings.home / system.name
    with ExitStack() as stack:
        log = stack.enter_context(EventLog(folder / "log.db", clock, system.logged, url=settings.database_url))
        store = open_store(settings.redis_url, folder / "online.db", system.name, system.views)
        stack.callback(store.close)
        for note in (*log.notes, *store.notes):
            say(note)
        follower = Follower(system, log, say)

        def prepare(model: AnyModel) -> None:
            follower.adopt(model)
            warm(system, model)

        live = Live(system, registry, key, clock, warm=prepare, say=say)
        live.refresh()
        live.watch(FOLLOW)
        stack.callback(live.close)
        follower.watch(live)
        stack.callback(follower.close)
        service = Service(system, lambda: live.current, store, key)
        pipeline = Pipeline(
            service, log, clock, deadline=runtime.deadline, metrics=runtime.metrics, say=say,
            tracing=runtime.tracing, told=follower.notice,
        )  # fmt: skip
        stack.callback(pipeline.close)
        batcher = Batcher(pipeline.run, min(ROWS, system.at_once), system.name, loop, pipeline.settle)
        stack.callback(batcher.close)
        lookups = Batcher(looked_up, 1, f"{system.name} lookups", loop)
        stack.callback(lookups.close)
        limiter = Limiter(int(TARGET * runtime.deadline), least=LEAST, most=4 * MOST_ROWS)
        yield Served(system, live, pipeline, batcher, lookups, limiter)


def warm(system: AnySystem, model: AnyModel) -> None:
    """A first prediction, of the system's example, takes longer than those after it."""
    requests = [system.examples[0]]
    rows = model.rows(requests)
    unknown = [np.full((rows.columns.num_rows, len(view.features)), np.nan) for view in system.views]
    model.predict(requests, rows, assemble(system.request, system.views, system.on_demand, rows.columns, unknown))
