"""Rows that break the contract: set aside with the reason, counted by rule."""

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self, TextIO

from common.data.folder.contract import Fault

# A spreadsheet runs a cell that begins so (OWASP, CSV Injection): an apostrophe makes it text. Plain numbers stay.
FORMULA = re.compile(r"[=+\-@\t\r](?![\d.]+(?:[eE][+-]?\d+)?\Z)")


class Quarantine:
    """A CSV of a table's broken rows; it is there when the block ends, and absent if there are none."""

    def __init__(self, path: Path, unit: str, columns: Sequence[str]) -> None:
        self.path, self.rows, self._header = path, 0, [unit, "reason", *columns]
        self._file: TextIO | None = None
        self._unit = unit
        self._rules: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], tuple[int, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is None:
            self.path.unlink(missing_ok=True)
        else:
            self._file.close()
            os.replace(self._temporary, self.path)

    @property
    def _temporary(self) -> Path:
        return self.path.with_suffix(".partial")

    def add(self, number: int, fault: Fault, cells: Sequence[str]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._temporary.open("w", encoding="utf-8", newline="")
            csv.writer(self._file).writerow(map(_harmless, self._header))
        self.rows += 1
        self._rules[fault.column, fault.rule] += 1
        self._first.setdefault((fault.column, fault.rule), (number, fault.value))
        reason = f"{fault.column}: {fault.rule}, got {fault.value}"
        csv.writer(self._file).writerow([str(number), *map(_harmless, [reason, *cells])])

    def most_broken(self) -> str:
        """The rule that most rows break: column, rule, number of rows, first example."""
        (key, n), *others = self._rules.most_common()
        number, value = self._first[key]
        rows = f"{n} row{'s' * (n > 1)}"
        more = f"; {len(others)} other rule{'s' * (len(others) > 1)} broken" if others else ""
        return f"{key[0]}: {key[1]} ({rows}, first in {self._unit} {number}: got {value}){more}"


def _harmless(cell: str) -> str:
    return f"'{cell}" if FORMULA.match(cell) else cell
