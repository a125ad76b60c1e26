"""The commands that keep the state safe, and show that it is: backup, restore, rebuild, parity."""

import argparse
from contextlib import closing
from dataclasses import asdict

from common.cli.desk import Desk, Document
from common.errors import Damaged
from common.lifecycle import backup as copies
from common.lifecycle import parity as comparing
from common.lifecycle import rebuilding
from common.system import names


def backup(desk: Desk, arguments: argparse.Namespace) -> Document:
    settings = desk.settings
    with desk.progress.step("copy"):
        contents = copies.backup(
            settings.home, settings.database_url, names(settings.systems), desk.clock, arguments.folder
        )
    return _said(desk, contents, f"backed up to {arguments.folder}; keep a copy of {settings.keys}, too, elsewhere")


def restore(desk: Desk, arguments: argparse.Namespace) -> Document:
    settings = desk.settings
    with desk.progress.step("copy and compare"):
        contents = copies.restore(arguments.folder, settings.home, settings.database_url)
    for name in set(contents.logs) & set(names(settings.systems)):
        if settings.redis_url is not None:  # what it knows may be of events that the log has never heard of
            with closing(desk.store(desk.system_named(name))) as store:
                store.clear()
    return _said(desk, contents, "restored; mlsys rebuild SYSTEM makes the online features again")


def _said(desk: Desk, contents: copies.Contents, line: str) -> Document:
    for name, log in contents.logs.items():
        desk.out.print(f"{name}: {log.rows:,} events, {log.digest[:12]}")
    if contents.registry:
        versions, audit = contents.registry["version"], contents.registry["audit"]
        desk.out.print(f"registry: {versions.rows:,} versions, {audit.rows:,} audit rows, {audit.digest[:12]}")
    desk.out.print(f"{len(contents.files):,} files")
    desk.out.print(line, soft_wrap=True)
    return contents.model_dump()


def rebuild(desk: Desk, arguments: argparse.Namespace) -> Document:
    system = desk.system(arguments)
    with desk.log(system) as log, closing(desk.store(system)) as store, desk.registry() as registry:
        found = rebuilding.rebuild(system, log, store, desk.snapshots, registry, desk.progress)
    desk.out.print(f"{system.name}: {found.events:,} events, each of them what was acknowledged")
    desk.out.print(f"online features: made again, in {found.seconds:.1f} s")
    desk.out.print(f"snapshots: {found.kept} there, {found.made} made again, {found.elsewhere} of other logs, not here")
    return {"system": system.name, **found._asdict()}


def parity(desk: Desk, arguments: argparse.Namespace) -> Document:
    system = desk.system(arguments)
    with desk.log(system) as log, desk.registry() as registry, desk.progress.step("features, made again offline"):
        found = comparing.parity(system, log, comparing.models(system, registry))
    for reason, n in found.left_out.items():
        desk.out.print(f"left out: {n:,} answers: {reason}")
    for example in found.examples:
        desk.out.print(example, markup=False, soft_wrap=True)
    said = f"{found.values:,} values of {found.answers:,} answers"
    if not found.holds:
        raise Damaged(f"{system.name}: {found.differing:,} of {said} are not what they should be, by up to {found.gap}")
    desk.out.print(f"{system.name}: {said} are those that training computes; they differ by at most {found.gap:.1e}")
    return {"system": system.name, **asdict(found)}
