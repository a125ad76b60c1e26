"""The house keeps its own rules: borders, names, links, and numbers that a run has made."""

import ast
import re
from pathlib import Path

import pytest

from benchmarks import document
from benchmarks.document import LINE, MARK, figure, pages
from common.cli import parser
from common.errors import BadSetting
from common.system import find, names

ROOT = Path(__file__).parents[1]
PAGES = pages()
ROOMS = {"config", "data", "features", "model", "serving", "evaluation", "monitoring", "benchmark", "system"}


def test_common_names_no_system() -> None:
    for path in (ROOT / "common").rglob("*.py"):
        told = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not told & set(names("systems")), path


@pytest.mark.parametrize("name", names("systems"))
def test_every_system_has_the_same_rooms(name: str) -> None:
    folder = ROOT / "systems" / name
    assert {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()} - {
        "__init__"
    } == ROOMS


@pytest.mark.parametrize("name", names("systems"))
def test_both_presets_can_be_built(name: str) -> None:
    small, full = (find("systems", name, preset) for preset in ("small", "full"))
    assert small.name == full.name == name
    assert full.history[1] - full.history[0] > small.history[1] - small.history[0]


def test_only_the_clock_asks_for_the_time() -> None:
    for folder in ("common", "systems"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "clock.py":
                asks = r"^\s*(import|from) time\b|\b(now|today|utcnow)\(\)|['\"]now['\"]"
                used = re.sub(r"clock\.now\(\)|_clock\.now\(\)", "", path.read_text())
                assert not re.search(asks, used, re.M), path


def test_nothing_is_pickled() -> None:
    reader = ROOT / "systems" / "fraud" / "benchmark" / "prepare.py"  # reads the published pickles, by an allow-list
    for folder in ("common", "systems"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != reader:
                assert not re.search(r"\b(import|from) (pickle|joblib|dill|cloudpickle)\b", path.read_text()), path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_to_a_line_of_code_points_at_what_it_names(page: Path) -> None:
    links = LINE.findall(page.read_text())
    assert [(name, path, int(at)) for name, path, at in links] == [
        (name, path, document.line(page.parent / path, name)) for name, path, _ in links
    ], "run: python -m benchmarks.document"
    assert len(re.findall(r"\.py#L\d+\)", page.read_text())) == len(links)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_in_a_page_exists(page: Path) -> None:
    """A line of a shell block, or `mlsys ...` in the text, is a command; the text may leave its arguments out."""
    text = page.read_text()
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.S)
    lines = [line.split("#")[0].strip(" $") for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`((?:mlsys|make) [^`]+)`", text)
    makefile = (ROOT / "Makefile").read_text()
    for line in lines:
        words = line.split()
        if words[:1] == ["mlsys"] and not any(w.isupper() or w.endswith("...") for w in words):
            try:
                parser(names("systems")).parse_args(words[1:])
            except BadSetting as error:
                assert "arguments are required: SYSTEM" in str(error), line  # noqa: PT017
        if words[:1] == ["make"]:
            assert all(
                re.search(rf"^(\.PHONY:.*\b)?{w}\b", makefile, re.M) or w in names("systems") for w in words[1:2]
            ), line


def test_every_measured_number_in_a_page_is_that_of_a_committed_run() -> None:
    marks = [(page.name, *mark) for page in PAGES for mark in MARK.findall(page.read_text())]
    assert {name for name, *_ in marks} >= {"README.md"}
    assert [(page, path, said) for page, _, name, path, said in marks if figure(name, path, said) != said] == []
