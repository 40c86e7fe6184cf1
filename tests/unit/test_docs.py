"""The documentation says what the code says: tables, links, paths, commands, examples."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import pytest

from realloc.client.cli import _parser
from realloc.core.job import TRANSITIONS
from services.param_store.phases import NEXT

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"[\w./-]*\w\.(?:py|md|yaml|toml|proto|txt|svg|sh)")
FOLDER = re.compile(r"\.?[\w.-]+(?:/[\w.-]+)*/?")
MODULE = re.compile(r"(?:realloc|services|deploy|tools)(?:\.\w+)+")


def every_page(test):
    """Run a test once for each page."""
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(test)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return [body for found, body in FENCE.findall(text) if found == language]


def in_backticks(page: Path, form: re.Pattern[str]) -> list[str]:
    """Everything of a form that stands in backticks, outside of code blocks."""
    return [text for text in CODE.findall(FENCE.sub("", page.read_text())) if form.fullmatch(text)]


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the one table whose first column has this heading, row by row."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    assert len(starts) == 1, f"{len(starts)} tables begin with the column {heading!r}"
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def documented(heading: str) -> dict[str, set[str]]:
    """Which states may follow which, as docs/architecture.md says."""
    rows = table(ARCHITECTURE, heading)
    return {row[0]: set(re.findall(r"[A-Z]+", row[1])) for row in rows}


def implemented(transitions: Mapping[Enum, frozenset[Enum]]) -> dict[str, set[str]]:
    """The same as the code says."""
    return {state.name: {each.name for each in after} for state, after in transitions.items()}


def test_the_states_of_jobs_are_those_of_the_code():
    """The table of job states equals `realloc.core.job.TRANSITIONS`."""
    assert documented("job is") == implemented(TRANSITIONS)


def test_the_phases_of_reallocations_are_those_of_the_code():
    """The table of phases equals `services.param_store.phases.NEXT`."""
    assert documented("phase") == implemented(NEXT)


@every_page
def test_links_resolve(page):
    """Every relative link leads to a file of the repository, and to a heading where it has one."""
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in headings(target), f"{page.name} links to {link}"


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


@every_page
def test_named_files_exist(page):
    """A path in backticks is one of the repository, below its root or below common/realloc; a
    bare file name is that of some file."""
    for name in in_backticks(page, FILE):
        if name.startswith("run/"):
            continue
        if "/" in name:
            places = [ROOT / name, ROOT / "common" / "realloc" / name]
            assert any(place.exists() for place in places), f"{page.name} names {name}"
        else:
            folders = ("common", "services", "docs", "deploy", "examples", "tools", "tests")
            anywhere = (found for folder in folders for found in (ROOT / folder).rglob(name))
            assert (ROOT / name).exists() or any(anywhere), f"{page.name} names {name}"


@every_page
def test_named_folders_exist(page):
    """A folder in backticks that begins like one of the repository is there."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"run", ".cache"}
    for name in in_backticks(page, FOLDER):
        if "/" in name and name.partition("/")[0] in tops:
            assert (ROOT / name).exists(), f"{page.name} names {name}"


@every_page
def test_named_modules_exist(page):
    """A dotted name in backticks is a module, or something that a module defines."""
    for name in in_backticks(page, MODULE):
        base = ROOT / "common" if name.startswith("realloc.") else ROOT
        parts = name.split(".")
        while parts and not (module := module_file(base, parts)):
            parts.pop()
        rest = name.split(".")[len(parts) :]
        assert parts, f"{page.name} names {name}"
        assert all(re.search(rf"\b{each}\b", module.read_text()) for each in rest), name


def module_file(base: Path, parts: list[str]) -> Path | None:
    """The file of a module or package."""
    path = base.joinpath(*parts)
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.exists()), None)


@every_page
def test_examples_in_python_parse(page):
    """Each block of Python is Python, and what it imports is there."""
    for block in blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                assert importlib.util.find_spec(node.module) is not None, node.module


def test_the_readme_has_an_example_of_twenty_lines():
    """The first example of the README is short."""
    assert len(blocks(README, "python")[0].splitlines()) <= 20


def test_the_commands_of_the_readme_are_accepted():
    """Each `realloc` command of the README is one that the command line takes."""
    commands = [
        shlex.split(line.removeprefix("$ "), comments=True)
        for block in blocks(README, "console")
        for line in block.splitlines()
        if line.startswith("$ realloc ")
    ]
    assert len(commands) > 5
    for _, *arguments in commands:
        _parser().parse_args(arguments)


@every_page
def test_named_targets_of_make_exist(page):
    """Each `make TARGET` is one of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    wanted = re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, re.MULTILINE)
    assert set(wanted) <= targets


def test_the_variables_of_make_are_those_of_the_makefile():
    """The README's table has every variable that may be overridden, with its default."""
    text = (ROOT / "Makefile").read_text()
    defaults = dict(re.findall(r"^(?:export )?([A-Z_]+) \?= (\S+)$", text, re.MULTILINE))
    rows = {row[0].strip("`"): row[1].strip("`") for row in table(README, "variable")}
    assert rows == defaults | {"REALLOC_ETCD": ""}


def test_every_decision_is_in_the_index():
    """docs/adr/README.md links each decision, with the number and title of its first line."""
    folder = ROOT / "docs" / "adr"
    index = (folder / "README.md").read_text()
    for page in sorted(folder.glob("[0-9]*.md")):
        number, _, title = page.read_text().partition("\n")[0].removeprefix("# ").partition(". ")
        assert number == str(int(page.name[:4])), f"{page.name} begins with another number"
        assert f"[{title}]({page.name})" in index, f"{page.name} is not in the index"
