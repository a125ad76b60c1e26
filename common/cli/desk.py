"""What every command works with, and how what it found is shown."""

import argparse
import getpass
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console

from common.clock import WallClock
from common.data.log import EventLog
from common.data.snapshots import Snapshots
from common.features.online import OnlineStore, open_store
from common.progress import Progress
from common.registry.keys import Keys
from common.registry.registry import Registry
from common.settings import Settings
from common.system import AnySystem, find

Document: TypeAlias = Mapping[str, Any]
WIDTH = 160  # columns, where stdout is no terminal


class Desk:
    """What the commands work with."""

    def __init__(self, settings: Settings, arguments: argparse.Namespace) -> None:
        self.settings, self.clock = settings, WallClock()
        width = None if sys.stdout.isatty() else WIDTH
        self.out = Console(quiet=arguments.json, highlight=False, width=width)
        self.progress = Progress()
        self.snapshots = Snapshots(settings.home / "snapshots")
        if settings.ray_address is not None:
            self.progress.say("MLSYS_RAY_ADDRESS is used where forecasts are made ahead, all else is done here")

    @property
    def keys(self) -> Keys:
        """Whoever's first key is made is told so, in one line."""
        return Keys(self.settings.keys, lambda line: print(f"mlsys: {line}", file=sys.stderr))

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        with Registry(self.settings.home, self.clock, self.keys, self.settings.database_url) as registry:
            yield registry

    def log(self, system: AnySystem) -> EventLog:
        """What a system has heard and said, here, for good; the caller closes it."""
        path = self.settings.home / system.name / "log.db"
        log = EventLog(path, self.clock, system.logged, url=self.settings.database_url)
        for note in log.notes:
            self.progress.say(f"  {note}")
        return log

    def store(self, system: AnySystem) -> OnlineStore:
        """The online features of that log; the caller closes it."""
        path = self.settings.home / system.name / "online.db"
        store = open_store(self.settings.redis_url, path, system.name, system.views)
        for note in store.notes:
            self.progress.say(f"  {note}")
        return store

    def system(self, arguments: argparse.Namespace) -> AnySystem:
        return find(self.settings.systems, arguments.system, getattr(arguments, "preset", "small"))

    def system_named(self, name: str) -> AnySystem:
        return find(self.settings.systems, name)

    def trials(self, system: str) -> Path:
        return self.settings.home / system / "trials.log"


def who() -> str:
    """For the audit trail."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container, the number may have no name
        return f"uid {os.getuid()}"


def number(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 10_000 else f"{value:,.0f}"


def time(us: int) -> str:
    return str(np.datetime64(us, "us").astype("datetime64[s]")).replace("T", " ")
