"""mlsys: the platform's commands. Results go to stdout, progress to stderr; --json makes the result one document."""

import argparse
import json
import math
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.cli import access, making, serving, simulating, state, trust, versions, watching
from common.cli.desk import Desk, Document
from common.clock import SECOND, stopwatch
from common.errors import BadSetting, PlatformError
from common.lifecycle import faults
from common.serving.auth import SCOPES
from common.settings import Settings
from common.system import names

EXAMPLES = """examples:
  mlsys list                          the systems and their live versions
  mlsys run {system}                     the whole loop once, narrated
  mlsys simulate {system} --days 90      months of the loop in a minute, and a page of pictures
  mlsys watch {system}                   how the live version does, by its log
  mlsys train {system} --tune 20         train after 20 trials, publish, do not promote
  mlsys train {system} --data DIR       on your own CSV or Parquet files
  mlsys trials {system}                  what was tried and what came of it
  mlsys versions {system}                what was published, what is live
  mlsys promote {system} 4f0c1a          make a version live, if it cleared its gates
  mlsys rollback {system}                make the version before it live again
  mlsys traffic {system} --canary 4f0c --share 0.1   a tenth of the units to another version
  mlsys audit verify                  whether the audit trail is what was recorded
  mlsys backup DIR                    a copy of the state, while others write; mlsys restore DIR
  mlsys rebuild {system}                 make again what is derived from the log
  mlsys serve {system} --workers 2       answer over HTTP
  mlsys parity {system}                  whether the service saw the features that training computes
  mlsys keys create shop --scope score   an API key for whoever may ask; mlsys keys list, mlsys keys revoke ID
  mlsys benchmark {system}               a public data set, beside the published numbers

State lies under MLSYS_HOME (default .mlsys), public data under MLSYS_DATA_DIR.
Exit status: 0, 1 when the work failed, 2 for wrong usage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; an error raised on purpose is one line, without a traceback."""
    start = stopwatch()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a world's folder is removed then, too
    try:
        settings = Settings()
        arguments = parser(names(settings.systems)).parse_args(argv)
        document = arguments.run(Desk(settings, arguments), arguments)
        if arguments.json and document:
            said = {**document, "seconds": round((stopwatch() - start) / SECOND, 3)}
            print(json.dumps(_without_nan(said), indent=2), flush=True)
    except BadSetting as error:
        return _fail(str(error), 2)
    except PlatformError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except BrokenPipeError:  # whoever read the output has seen enough; Python must not try to flush the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, sqlite3.Error) as error:
        return _fail(f"{type(error).__name__}: {error}; MLSYS_HOME is {settings.home}", 1)
    return 0


def _without_nan(value: Any) -> Any:
    """JSON has no NaN; what is not a number is null."""
    if isinstance(value, Mapping):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fail(line: str, status: int) -> int:
    print(f"mlsys: {' '.join(line.split())}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One clear line, as for every other mistake."""
        raise BadSetting(f"{message}; see {self.prog} --help")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 999999999, got {text[:20]!r}")
    return int(text)


def _days(text: str) -> int:
    if not 1 <= (days := _count(text)) <= 1_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1000 days, got {text}")
    return days


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must name a folder, got ''")
    return Path(text)


def parser(systems: Sequence[str]) -> argparse.ArgumentParser:
    system = next(iter(systems), "SYSTEM")  # in examples
    style: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = _Parser(
        prog="mlsys",
        description="Machine-learning systems on one platform.",
        epilog=EXAMPLES.format(system=system),
        **style,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str,
        run: Callable[[Desk, argparse.Namespace], Document],
        summary: str,
        example: str,
        under: Any = commands,
    ) -> _Parser:
        sub: _Parser = under.add_parser(name, help=summary, description=summary, **style)
        sub.epilog = f"example:\n  {sub.prog} {example}"
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="one JSON document on stdout")
        if under is commands and name not in ("list", "audit", "rotate-key", "backup", "restore", "serve"):
            sub.add_argument("system", choices=systems, metavar="SYSTEM", help=f"one of {', '.join(systems)}")
        return sub

    command("list", versions.systems, "the systems, their live versions", "--json")
    for name, run, summary, tune in (
        ("run", simulating.run, "the whole loop once, narrated", 5),
        ("train", making.train, "train a version and publish it", 0),
    ):
        sub = command(name, run, summary, f"{system} --preset small --seed 1")
        sub.add_argument(
            "--preset", choices=("small", "full"), default="small", help="how large a world (default small)"
        )
        source = sub.add_mutually_exclusive_group()
        # a default of its own type would be taken for one that nobody gave
        source.add_argument("--seed", type=_count, default="0", help="of the world (default 0)")
        if name == "train":
            source.add_argument("--data", type=_folder, metavar="DIR", help="your own data, in the system's layout")
        sub.add_argument("--tune", type=_count, default=tune, metavar="N", help=f"Optuna trials (default {tune})")
    sub = command(
        "simulate",
        simulating.simulate,
        "months of the loop in a minute",
        f"{system} --days 90 --drift frozen_labels@30 --seed 1",
    )
    sub.add_argument("--days", type=_days, default="90", metavar="N", help="after the first model (default 90)")
    kinds = ", ".join(faults.KINDS)
    sub.add_argument("--drift", metavar="KIND@DAY", help=f"what changes, and when: the system's own kinds, or {kinds}")
    sub.add_argument("--preset", choices=("small", "full"), default="small", help="how large a world (default small)")
    sub.add_argument("--seed", type=_count, default="0", help="of the world (default 0)")
    page = "where the page of pictures goes (default simulation.html in the system's folder under MLSYS_HOME)"
    sub.add_argument("--report", type=_folder, metavar="FILE", help=page)
    command("trials", versions.trials, "what tuning tried, and what came of it", system)
    command("versions", versions.versions, "what was published, what is live, who changed it", f"{system} --json")
    sub = command("promote", versions.promote, "make a version live", f"{system} 4f0c1a --why 'better on new cards'")
    sub.add_argument("version", metavar="VERSION", help="its name, or the first 4 digits of it or more")
    sub.add_argument("--why", help="for the audit trail")
    sub.add_argument("--force", action="store_true", help="although it missed a gate; the audit trail says so")
    sub = command("rollback", versions.rollback, "make the version before it live again", system)
    sub.add_argument("--why", help="for the audit trail")
    sub = command(
        "traffic", versions.traffic, "who answers beside the live version", f"{system} --canary 4f0c --share 0.1"
    )
    sub.add_argument("--canary", metavar="VERSION", help="a version to try; what is given here is all that is set")
    sub.add_argument("--share", type=float, metavar="S", help="of the units, 0 to 1, for the canary")
    sub.add_argument(
        "--arm", type=versions.arm, action="append", default=[], metavar="VERSION=S", help="of an A/B test"
    )
    sub.add_argument("--shadow", action="append", default=[], metavar="VERSION", help="logged, never returned")
    sub.add_argument("--reset", action="store_true", help="all to the live version")
    sub.add_argument("--why", help="for the audit trail")
    sub.add_argument("--force", action="store_true", help="although one missed a gate; the audit trail says so")
    sub = command("audit", trust.audit, "whether the audit trail is what was recorded", "verify")
    sub.add_argument("action", choices=("verify",), metavar="verify", help="every row, the signed head, the aliases")
    known = "the last row that an earlier call showed: notices that an older registry was put in its place"
    sub.add_argument("--known", type=trust.known, metavar="ROW:DIGEST", help=known)
    for name, run, summary in (
        ("backup", state.backup, "copy the state into a new folder, while others write"),
        ("restore", state.restore, "put a backup in the place of a state that is gone"),
    ):
        sub = command(name, run, summary, "DIR")
        sub.add_argument("folder", type=_folder, metavar="DIR", help="of the backup")
    command("parity", state.parity, "whether the service saw the features that training computes", system)
    sub = command("watch", watching.watch, "how the live version does: drift, labels, data", f"{system} --json")
    sub.add_argument("--webhook", metavar="URL", help="where alarms that change are posted")
    sub.add_argument("--alertmanager", metavar="URL", help="Prometheus' Alertmanager, which gets them too")
    file = "the signals, for the textfile collector of Prometheus' node exporter"
    sub.add_argument("--metrics", type=_folder, metavar="FILE", help=file)
    command("rebuild", state.rebuild, "make again what is derived from the log", system)
    command("rotate-key", trust.rotate, "sign with a new key from now on", "--json")
    sub = command("serve", serving.serve, "answer over HTTP, until SIGTERM; SIGHUP restarts its workers", system)
    sub.add_argument("systems", nargs="+", choices=systems, metavar="SYSTEM", help=f"of {', '.join(systems)}")
    sub.add_argument("--preset", choices=("small", "full"), default="small", help="how large a world (default small)")
    sub.add_argument("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1)")
    sub.add_argument("--port", type=serving.port, default="8000", help="0: any that is free (default 8000)")
    sub.add_argument("--workers", type=serving.workers, default="1", metavar="N", help="processes (default 1)")
    keys = commands.add_parser("keys", help="who may ask over HTTP", **style)
    key_commands = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    sub = command("create", access.create, "an API key, shown once", access.EXAMPLE, key_commands)
    sub.add_argument("name", metavar="NAME", help="whose it is, for people: 1 to 100 printable characters")
    sub.add_argument(
        "--scope", action="append", choices=SCOPES, required=True, help="what it allows, and nothing else; repeat it"
    )
    sub.add_argument("--expires", type=access.lifetime, default="90d", help="such as 12h, 90d or never (default 90d)")
    sub.add_argument("--rate", help="such as 500/second or 20/5minutes, per worker (default: as it is served)")
    command("list", access.keys, "all API keys, without what is secret of them", "--json", key_commands)
    sub = command("revoke", access.revoke, "an API key is refused from now on, for good", "3f09c2d417ab", key_commands)
    sub.add_argument("id", type=access.identity, metavar="ID", help="12 hex digits, as mlsys keys list shows them")
    command("benchmark", versions.benchmark, "the public data set, beside the published numbers", system)
    return parser
