"""The command that answers over HTTP: serve."""

import argparse
import json
import os
import shlex
import sys
from contextlib import closing

from common.cli.desk import Desk, Document
from common.clock import DAY
from common.serving.auth import ApiKeys
from common.system import Page, find

FIRST = "first"
LIFETIME = 30 * DAY


def serve(desk: Desk, arguments: argparse.Namespace) -> Document:
    from common.serving import workers  # no other command needs what it takes to be a server

    names = list(dict.fromkeys(arguments.systems))
    listener = workers.listen(arguments.host, arguments.port)
    systems = [find(desk.settings.systems, name, arguments.preset) for name in names]
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    key = _first_key(desk)
    is_shown = False

    def ready() -> None:
        nonlocal is_shown
        is_shown = True
        said = {"url": url, "systems": names, "workers": arguments.workers, "pid": os.getpid(), "key": key}
        if arguments.json:
            print(json.dumps(said, indent=2), flush=True)
            return
        print(f"{', '.join(names)}: {url}", flush=True)
        if key is not None:
            example = shlex.quote(systems[0].examples[0].model_dump_json())
            print(f"API key, for {LIFETIME // DAY} days, shown only now: {key}")
            print(f"curl -H 'authorization: Bearer {key}' -d {example} {url}/v1/{names[0]}/score", flush=True)
        for page in (route for system in systems for route in system.routes if isinstance(route, Page)):
            print(f"{page.summary}: {url}/{page.name}{f'#key={key}' if key else ''}", flush=True)

    try:
        workers.serve(desk.settings, names, arguments.preset, listener, arguments.workers, ready)
    finally:
        if key is not None and not is_shown:
            print(f"mlsys: API key, shown only now: {key}", file=sys.stderr)
    return {}


def _first_key(desk: Desk) -> str | None:
    """Made where there never was one, so that the first call can be tried at once."""
    settings = desk.settings
    with closing(ApiKeys(settings.home, desk.clock, desk.keys, settings.database_url)) as api_keys:
        if api_keys.list():
            return None
        return api_keys.create(FIRST, ("score", "label", "read"), expires=desk.clock.now() + LIFETIME, rate=None)


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text[:20]!r}")
    return int(text)


def workers(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= 256):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 256, got {text[:20]!r}")
    return int(text)
