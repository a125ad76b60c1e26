"""The commands about who may be believed: audit verify, rotate-key."""

import argparse
import re

from common.cli.desk import Desk, Document
from common.errors import BadBundle


def audit(desk: Desk, arguments: argparse.Namespace) -> Document:
    with desk.registry() as registry:
        head = registry.verify_audit()
        rows = registry.audit()
    if arguments.known is not None:
        row, digest = arguments.known
        if row > len(rows):
            raise BadBundle(f"audit row {row}: must exist, it was known; an older registry was put in its place")
        if rows[row - 1].digest != digest:
            raise BadBundle(f"audit row {row}: digest must be {digest}, as it was known, got {rows[row - 1].digest}")
    if head is None:
        desk.out.print("nothing was published yet, so there is nothing to verify")
        return {"rows": 0, "digest": None, "key": None}
    desk.out.print(f"{head.row} rows, all as they were recorded; signed by key {head.key}", soft_wrap=True)
    if head.row:
        desk.out.print(
            f"to be told of an older registry in its place: --known {head.row}:{head.digest}", soft_wrap=True
        )
    return {"rows": head.row, "digest": head.digest, "key": head.key}


def known(text: str) -> tuple[int, str]:
    found = re.fullmatch(r"([1-9][0-9]{0,9}):([0-9a-f]{64})", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"must be ROW:DIGEST as `mlsys audit verify` shows it, got {text[:20]!r}")
    return int(found[1]), found[2]


def rotate(desk: Desk, arguments: argparse.Namespace) -> Document:
    with desk.registry() as registry:
        key = registry.rotate()
    desk.out.print(f"key {key} signs from now on; what was signed before stays trusted")
    desk.out.print(f"to distrust an older key, delete its file in {desk.keys.folder / 'trusted'}", soft_wrap=True)
    return {"key": key}
