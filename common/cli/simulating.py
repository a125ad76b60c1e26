"""The commands that let a world live: run, simulate."""

import argparse
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.cli.desk import Desk, Document, number, who
from common.cli.making import show_report, trained_document
from common.clock import DAY
from common.errors import BadSetting
from common.lifecycle import simulation
from common.lifecycle.loop import Happened
from common.lifecycle.parity import models, parity
from common.lifecycle.simulation import Regret, Simulation
from common.lifecycle.story import story
from common.progress import Progress
from common.schema import choices
from common.system import Answer, Answered, AnySystem, Params, find

RUN_DAYS = 90
DRIFT_DAY = 30
BAD_DAY, BAD_KIND = 14, "errors"
SHOWN = 600  # characters of an example
FULL = "full"  # an answer that is not degraded
PAGE = "{}/simulation.html"  # of a system, under MLSYS_HOME


@contextmanager
def _alone(desk: Desk, preset: str, params: Params, lived: Simulation) -> Iterator[Future[Regret]]:
    """The same world without the loop, in a process beside this one; its result is waited for."""
    desk.settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=desk.settings.home, prefix="world-") as folder:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            yield pool.submit(
                simulation.alone, lived.system.name, desk.settings.systems, preset, dict(params),
                lived.seed, lived.days, lived.drift, lived.lasts, folder,
            )  # fmt: skip


@contextmanager
def _world(
    desk: Desk, system: AnySystem, seed: int, days: int, drift: str | None, progress: Progress, lasts: int | None = None
) -> Iterator[Simulation]:
    """It is kept as long as the command runs: it can be had again from the seed."""
    start = system.history[1]

    def say(happened: Happened) -> None:
        version = f" {happened.version}" if happened.version else ""
        line = f"   day {(happened.at - start) / DAY:5.1f}  {happened.kind:<11}{version} {happened.what}"
        desk.out.print(line, markup=False, soft_wrap=True)

    desk.settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=desk.settings.home, prefix="world-") as folder:
        with Simulation(
            system, Path(folder), seed=seed, days=days, drift=drift, lasts=lasts, progress=progress, say=say
        ) as lived:
            yield lived


def simulate(desk: Desk, arguments: argparse.Namespace) -> Document:
    preset = "simulated" if arguments.preset == "full" else arguments.preset
    system, out = find(desk.settings.systems, arguments.system, preset), desk.out
    days, drift, seed = arguments.days, arguments.drift, int(arguments.seed)
    page = _page(desk, system, arguments.report)
    lasts = -(-days // RUN_DAYS) * RUN_DAYS  # so that fewer days are the first ones of the same world
    with (
        _world(desk, system, seed, days, drift, desk.progress, lasts) as lived,
        _alone(desk, preset, system.params, lived) as alone,
    ):
        out.print(f"[bold]A world lives[/] without a model, then with a first one, which is watched for {days} days.")
        lived.history()
        lived.train()
        lived.watch()
        for _ in lived.serve(days):
            pass
        with desk.progress.step("without the loop, for comparison"):
            without = alone.result()
        document = story(lived, arguments.preset, without)
    _show_story(desk, document, page)
    return {**document, "page": str(arguments.report or PAGE.format(system.name))}


def _page(desk: Desk, system: AnySystem, report: Path | None) -> Path:
    """Where the pictures go; raises BadSetting before anything was done for them."""
    path = report or desk.settings.home / PAGE.format(system.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise BadSetting(f"report: must be in a folder that can be written, got {path}: {error.strerror}") from None
    if path.is_dir():
        raise BadSetting(f"report: must be a file, got the folder {path}")
    return path


def run(desk: Desk, arguments: argparse.Namespace) -> Document:
    """The whole story once; in a world of full size without the months of the loop, which are another command."""
    system, out, seed = desk.system(arguments), desk.out, int(arguments.seed)
    loops = arguments.preset == "small"
    days = RUN_DAYS if loops else 1
    drift = f"{system.drifts[0]}@{DRIFT_DAY}" if loops and system.drifts else None
    page = _page(desk, system, None)
    out.print(
        f"[bold]1. A world lives[/]: we shall {system.summary}. There is no model yet: something simpler answers."
    )
    with _world(desk, system, seed, days, drift, desk.progress) as lived, desk.registry() as registry:
        lived.history()
        out.print(f"   The log holds {lived.log.head().position:,} events.")
        out.print(f"[bold]2. A model is trained[/] on what was known at each moment, after {arguments.tune} trials.")
        revision = registry.revision(system.name)  # whoever promotes meanwhile wins
        trained = lived.train(tune=arguments.tune, registry=registry, trials=desk.trials(system.name))
        out.print("[bold]3. It is judged[/] on later weeks, against what it must beat and the best that is possible.")
        show_report(desk, trained)
        name = trained.version.name
        why = f"cleared its gates on {trained.report.rows} requests"
        registry.promote(system.name, name, who=who(), why=why, expected=revision)
        out.print(f"[bold]4. It is promoted[/]: champion is {name}.")
        out.print("[bold]5. It answers[/] for a day, in micro-batches, from the online features.")
        served = _serve_a_day(desk, lived)
        document = {**trained_document(arguments, trained), "champion": name, "served": served}
        if loops:
            out.print(f"[bold]6. It is watched[/] for {days} days, in this world's own registry.")
            drifts = f", on day {DRIFT_DAY} the world changes ({system.drifts[0]})" if drift else ""
            out.print(f"   On day {BAD_DAY} a bad candidate turns up{drifts}.")
            with _alone(desk, arguments.preset, trained.params, lived) as alone:
                document["loop"] = _loop(desk, lived, arguments.preset, alone, page)
    out.print("Look at it: mlsys versions, mlsys trials; take it back: mlsys rollback " + system.name)
    return document


def _loop(desk: Desk, lived: Simulation, preset: str, alone: Future[Regret], page: Path) -> Document:
    lived.watch(bad=(BAD_DAY, BAD_KIND))
    rungs: Counter[str] = Counter()
    begun = lived.log.head().position
    for answered in lived.serve(RUN_DAYS):
        rungs.update((reply.degraded or FULL).partition(":")[0] for _, reply in answered)
    unanswered = _unanswered(lived, begun)
    with desk.progress.step("without the loop, for comparison"):
        without = alone.result()
    document = story(lived, preset, without)
    by = ", ".join(f"{n:,} {rung}" for rung, n in rungs.most_common())
    desk.out.print(
        f"   {rungs.total():,} requests were answered ({by}); in the log {unanswered:,} have no valid answer.",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    _show_story(desk, document, page)
    answers = {FULL: rungs[FULL], "degraded": rungs.total() - rungs[FULL]}
    page_name = PAGE.format(lived.system.name)
    return {**document, "answers": answers, "rungs": dict(rungs), "unanswered": unanswered, "page": page_name}


def _unanswered(lived: Simulation, begun: int) -> int:
    """Requests of the log, from a position on, for which it holds no answer that can be read as one."""
    system = lived.system
    said = lived.log.read(Answered, begun).select(["request_id", "answer"]).to_pylist()
    valid = set()
    for row in said:
        with suppress(ValidationError):
            system.answer.model_validate_json(row["answer"])
            valid.add(row["request_id"])
    asked = lived.log.read(system.request, begun)["event_id"].to_pylist()
    return len(set(asked) - valid)


def _serve_a_day(desk: Desk, lived: Simulation) -> Document:
    """Answer online, then compute the same features offline: they must be the same numbers."""
    log, system, start = lived.log, lived.system, lived.log.head().position
    said = [(request, reply.answer) for batch in lived.serve(1) for request, reply in batch]
    compared = parity(system, log, models(system, lived.registry), start)
    gap = compared.gap
    counts = _show_answers(desk, system, said)
    desk.out.print(
        f"   Online and offline features of {compared.answers:,} answers differ by at most {gap:.1e}, relative to their"
        " size.", soft_wrap=True,
    )  # fmt: skip
    return {
        "requests": len(said),
        "answers": counts,
        "events": log.head().position - start,
        "online_offline_gap": gap,
        "compared": compared.answers,
    }


def _show_answers(desk: Desk, system: AnySystem, said: Sequence[tuple[Any, Answer]]) -> dict[str, dict[str, int]]:
    """How often each choice was made, and the last example of it."""
    counts: dict[str, dict[str, int]] = {}
    kind: type[Answer] = system.answer
    for name in (field for field in kind.model_fields if choices(kind, field)):
        counts[name] = Counter(str(getattr(answer, name)) for _, answer in said)
        desk.out.print(f"   {name}: " + ", ".join(f"{n} {choice}" for choice, n in counts[name].items()))
        for choice in counts[name]:
            request, answer = next((r, a) for r, a in reversed(said) if str(getattr(a, name)) == choice)
            shown = f"   {_cut(request.model_dump_json())}\n   -> {_cut(answer.model_dump_json())}"
            desk.out.print(shown, markup=False)
    return counts


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _show_story(desk: Desk, document: Document, page: Path) -> None:
    """The figures in lines, the pictures on a page."""
    from common.report import write  # it brings matplotlib, which no other command needs

    out, unit = desk.out, document["unit"]
    drifted = document["drift"] is not None
    delay = document["detection_delay"]
    if drifted:
        out.print("   The drift was " + ("not noticed." if delay is None else f"noticed after {delay:g} days."))
    if (closed := document["closed"]) is not None:
        out.print(f"   Three weeks after the alarm {closed:.0%} of the regret that it added was gone.")
    out.print(f"   False alarms: {document['false_alarms']}.")
    weeks = document["weeks"]
    for key, name in (("regret", "with the loop"), ("regret_without", "without it")):
        if any(week[key] is not None for week in weeks):
            values = " ".join(f"{number(week[key]):>6}" for week in weeks)
            out.print(f"   Regret by week, {unit} per 1,000 requests, {name:<13} {values}")
    write(document, page)
    out.print(f"   Pictures: {page}")
