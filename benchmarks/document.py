"""Put the figures of the committed runs, docs/results/*.json, and the lines of the code where the pages name them.

Run: make results, or after code has moved: python -m benchmarks.document

A page says <!-- file:path.to.value -->1.23; the number behind the mark is replaced, its decimals kept. In a path ":"
stands for "/", which keys of metrics contain. A link like [`Registry.promote`](../common/registry/registry.py#L1) gets
the line where that name is defined.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(<!-- ([\w-]+):([^ ]+) -->)(-?[\d,]*\.?\d+)")
LINE = re.compile(r"\[`([\w.]+)`\]\(([^)#]+\.py)#L(\d+)\)")


def pages() -> list[Path]:
    return sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("systems/**/*.md")))


def figure(name: str, path: str, like: str) -> str:
    """The value at a path of a committed run, with as many decimals as `like`."""
    value: Any = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())
    for key in path.split("."):
        value = value[key.replace(":", "/")]
    return f"{value:,.{len(like.partition('.')[2])}f}"


def line(path: Path, name: str) -> int:
    """Where a module defines a class, a function, a method ("Class.method") or a constant; raises LookupError."""
    found: list[ast.stmt] = ast.parse(path.read_text()).body
    at = 0
    for part in name.split("."):
        defined = [
            node
            for node in found
            if part == getattr(node, "name", None)
            or (isinstance(node, ast.AnnAssign) and part == getattr(node.target, "id", None))
            or (isinstance(node, ast.Assign) and part in (getattr(target, "id", None) for target in node.targets))
        ]
        if not defined:
            raise LookupError(f"{path}: defines no {name}")
        at, found = defined[0].lineno, getattr(defined[0], "body", [])
    return at


def main() -> None:
    for page in pages():
        text = MARK.sub(lambda m: m[1] + figure(m[2], m[3], m[4]), page.read_text())
        at = page.parent
        page.write_text(LINE.sub(lambda m: f"[`{m[1]}`]({m[2]}#L{line(at / m[2], m[1])})", text))  # noqa: B023


if __name__ == "__main__":
    main()
