"""One self-contained HTML page per simulated run: it loads nothing, runs nothing, and is the same for the same run."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from common.report import tables
from common.report.findings import figures, headline, sections, sentence
from common.report.look import CSS
from common.report.story import Story, read


def page(story: Mapping[str, Any]) -> str:
    """The document that `mlsys simulate --json` prints, as a page to read, keep and send.

    Times are days since the simulated start. What is None is shown as missing. Raises BadRecord with the field, the
    rule and the value where the document breaks its shape.
    """
    run = read(story)
    parts = [_head(run), *(_section(*section) for section in sections(run)), *_tables(run)]
    # even if a text slipped through unescaped, the policy lets nothing load and nothing run
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(f"{run.system}: {headline(run)}")}</title>
<style>{CSS}</style>
</head>
<body>
{"".join(parts)}<footer>Days count from the simulated start. Hatched is missing: neither zero nor normal.</footer>
</body>
</html>
"""


def write(story: Mapping[str, Any], path: Path) -> None:
    """The page as a file; whoever reads meanwhile sees the old one or the new one, whole."""
    whole = page(story).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(whole)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _head(run: Story) -> str:
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd><div class='value{' missing' * (value == 'missing')}'>"
        f"{tables.word(value)}</div><div class='note'>{escape(note)}</div></dd></div>\n"
        for name, value, note in figures(run)
    )
    return f"""<header>
<p class="kicker">{escape(run.system)}, a simulated run</p>
<h1>{escape(headline(run))}</h1>
<p class="lead">{escape(sentence(run))}</p>
<p class="how">{escape(run.summary)}</p>
</header>
<dl class="figures">
{shown}</dl>
"""


def _section(name: str, kicker: str, finding: str, how: str, picture: str) -> str:
    """`picture` is SVG, or empty: then the finding says what is missing, and `how` why."""
    empty = tables.none if name == "canaries" else tables.absent
    body = f'<figure class="wide" tabindex="0">{picture}</figure>' if picture else empty(how)
    return f"""<section id="{name}">
<p class="kicker">{escape(kicker)}</p>
<h2 id="{name}-picture-finding">{escape(finding)}</h2>
{f'<p class="how">{escape(how)}</p>' if picture else ""}{body}
</section>
"""


def _tables(run: Story) -> list[str]:
    made = (tables.versions(run), tables.alarms(run), tables.events(run))
    return [
        f'<section id="{name}">\n<p class="kicker">{kicker}</p>\n<h2>{escape(finding)}</h2>\n{body}\n</section>\n'
        for name, kicker, finding, body in made
    ]
