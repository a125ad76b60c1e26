"""Put the figures of the committed runs, docs/results/*.json, where the pages name them: make results.

A page says <!-- file:path.to.value -->1.23; the number behind the mark is replaced, its decimals kept. In a path ":"
stands for "/", which keys of metrics contain.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(<!-- ([\w-]+):([^ ]+) -->)(-?[\d,]*\.?\d+)")


def pages() -> list[Path]:
    return sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("systems/**/*.md")))


def figure(name: str, path: str, like: str) -> str:
    """The value at a path of a committed run, with as many decimals as `like`."""
    value: Any = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
    for key in path.split("."):
        value = value[key.replace(":", "/")]
    return f"{value:,.{len(like.partition('.')[2])}f}"


def main() -> None:
    for page in pages():
        text = page.read_text()
        page.write_text(MARK.sub(lambda m: m[1] + figure(m[2], m[3], m[4]), text))


if __name__ == "__main__":
    main()
