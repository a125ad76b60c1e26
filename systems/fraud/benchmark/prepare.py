"""From a checkout of the handbook's daily pickles to the benchmark's two files; needs pandas, of the extra `dev`.

    python -m systems.fraud.benchmark.prepare CHECKOUT FOLDER

A pickle is a program, so only what a table of numbers needs may be called. Files are written when their content is the
published one, byte for byte before compression; compressed bytes differ between gzip programs and are not compared.
"""

import argparse
import gzip
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from pandas.compat.pickle_compat import Unpickler

from common.errors import BadBundle, NotFound, PlatformError
from systems.fraud.benchmark.dataset import CONTENT, TRANSACTIONS, WINDOW
from systems.fraud.benchmark.published import ON_DEMAND

ALLOWED: Final = {  # in the spelling of all versions of pandas and NumPy
    "_codecs": {"encode"},
    "builtins": {"slice"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "pandas": {"DataFrame", "Index", "RangeIndex"},
    "pandas._libs.arrays": {"__pyx_unpickle_NDArrayBacked"},
    "pandas._libs.internals": {"_unpickle_block"},
    "pandas.arrays": {"DatetimeArray"},
    "pandas.core.arrays.datetimes": {"DatetimeArray"},
    "pandas.core.frame": {"DataFrame"},
    "pandas.core.indexes.base": {"Index", "_new_Index"},
    "pandas.core.indexes.numeric": {"Float64Index", "Int64Index", "UInt64Index"},
    "pandas.core.indexes.range": {"RangeIndex"},
    "pandas.core.internals.blocks": {"new_block"},
    "pandas.core.internals.managers": {"BlockManager"},
}

COLUMNS: Final = {
    TRANSACTIONS: (
        "TRANSACTION_ID", "TX_TIME_SECONDS", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD", "TX_FRAUD_SCENARIO",
    ),
    WINDOW: (
        "TRANSACTION_ID", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_TIME_SECONDS", "TX_FRAUD", "TX_FRAUD_SCENARIO",
        *(f.name for f in ON_DEMAND[1:]),
    ),
}  # fmt: skip
DAYS: Final = {TRANSACTIONS: ("2018-04-01", "2018-09-30"), WINDOW: ("2018-07-25", "2018-08-14")}


class TableUnpickler(Unpickler):  # type: ignore[misc]
    """Reads a pickled table, in any version's layout, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise BadBundle(f"pickle: must hold a table of numbers and nothing else, asks for {module}.{name}")
        return super().find_class(module, name)


def load(file: BinaryIO) -> Any:
    """The pickled DataFrame; raises BadBundle when the pickle asks for anything that a table does not need."""
    return TableUnpickler(file).load()


def convert(checkout: Path, folder: Path, content: Mapping[str, str] = CONTENT) -> None:
    """Writes the files that `content` names by SHA-256; raises NotFound or BadBundle, and then writes none of them."""
    days = sorted((checkout / "data").glob("????-??-??.pkl"))
    if not days:
        raise NotFound(f"{checkout}: must hold data/2018-04-01.pkl to data/2018-09-30.pkl, got none")
    text: dict[str, list[str]] = {name: [] for name in content}
    for path in days:
        with path.open("rb") as file:
            table = load(file).sort_values("TRANSACTION_ID")
        for name, parts in text.items():
            first, last = DAYS[name]
            if first <= path.stem <= last:
                parts.append(table[list(COLUMNS[name])].to_csv(index=False, header=not parts, lineterminator="\n"))
    files = {name: "".join(parts).encode() for name, parts in text.items()}
    for name, data in files.items():
        if (found := hashlib.sha256(data).hexdigest()) != content[name]:
            raise BadBundle(f"{name}: SHA-256 of its content must be {content[name]}, got {found}; check the commit")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(gzip.compress(data, 6, mtime=0))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn the handbook's daily pickles into the benchmark's two files.")
    parser.add_argument("checkout", type=Path, help="of Fraud-Detection-Handbook/simulated-data-transformed")
    parser.add_argument("folder", type=Path, help="$MLSYS_DATA_DIR/fraud")
    found = parser.parse_args(arguments)
    try:
        convert(found.checkout, found.folder)
    except PlatformError as error:
        sys.stderr.write(f"prepare: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
