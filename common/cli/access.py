"""The commands about who may ask over HTTP: keys create, keys list, keys revoke."""

import argparse
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager

from rich.markup import escape
from rich.table import Table

from common.cli.desk import Desk, Document, time
from common.clock import DAY, HOUR, MINUTE
from common.serving.auth import ApiKey, ApiKeys

EXAMPLE = "shop --scope score --scope label --expires 90d --rate 500/second"
UNITS = {"m": MINUTE, "h": HOUR, "d": DAY}


def create(desk: Desk, arguments: argparse.Namespace) -> Document:
    expires = None if arguments.expires is None else desk.clock.now() + arguments.expires
    with _api_keys(desk) as api_keys:
        key = api_keys.create(arguments.name, arguments.scope, expires=expires, rate=arguments.rate)
        made = api_keys.caller(key)
    desk.out.print(key, soft_wrap=True, markup=False)
    desk.out.print(
        "this is the only time it is shown; send it with every request as the header Authorization: Bearer <key>",
        soft_wrap=True,
    )
    desk.out.print("it never expires" if expires is None else f"it expires {time(expires)}")
    return {"key": key, **_said(desk, made)}


def keys(desk: Desk, arguments: argparse.Namespace) -> Document:
    with _api_keys(desk) as api_keys:
        found = [_said(desk, key) for key in api_keys.list()]
    table = Table("id", "name", "scopes", "rate", "created", "expires", "is")
    for key in found:
        expires = "never" if key["expires"] is None else time(key["expires"])
        scopes, rate = ", ".join(key["scopes"]), key["rate"] or "default"
        table.add_row(key["id"], escape(key["name"]), scopes, escape(rate), time(key["created"]), expires, key["is"])
    desk.out.print(table)
    return {"keys": found}


def revoke(desk: Desk, arguments: argparse.Namespace) -> Document:
    with _api_keys(desk) as api_keys:
        api_keys.revoke(arguments.id)
        (key,) = (_said(desk, key) for key in api_keys.list() if key.id == arguments.id)
    desk.out.print(
        f"{key['id']} ({key['name']}): refused for good, by running servers within about a second", markup=False
    )
    return key


def lifetime(text: str) -> int | None:
    """us; None: for ever."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([mhd])", text)
    if not found and text != "never":
        raise argparse.ArgumentTypeError(f"must be like 30m, 12h or 90d, or never, got {text[:20]!r}")
    return int(found[1]) * UNITS[found[2]] if found else None


def identity(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{12}", text):  # not repeated: somebody may have given the key itself
        raise argparse.ArgumentTypeError("must be 12 hex digits, as mlsys keys list shows them")
    return text


@contextmanager
def _api_keys(desk: Desk) -> Iterator[ApiKeys]:
    settings = desk.settings
    with closing(ApiKeys(settings.home, desk.clock, desk.keys, settings.database_url)) as api_keys:
        yield api_keys


def _said(desk: Desk, key: ApiKey) -> Document:
    expired = key.expires is not None and key.expires <= desk.clock.now()
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "rate": key.rate,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "is": "live" if key.revoked is None and not expired else "expired" if key.revoked is None else "revoked",
    }
