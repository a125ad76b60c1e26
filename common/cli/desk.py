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
from common.data.snapshots import Snapshots
from common.progress import Progress
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
        for name in ("database_url", "redis_url", "ray_address"):
            if getattr(settings, name) is not None:
                self.progress.say(f"MLSYS_{name.upper()} is not used yet: all state is embedded, under {settings.home}")

    @contextmanager
    def registry(self) -> Iterator[Registry]:
        with Registry(self.settings.home, self.clock) as registry:
            yield registry

    def system(self, arguments: argparse.Namespace) -> AnySystem:
        return find(self.settings.systems, arguments.system, getattr(arguments, "preset", "small"))

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
