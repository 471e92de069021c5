"""Habits of the house that no other tool checks."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from veilgrid.cli import _VERBS, cli

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "veilgrid"
MODULES = sorted(SOURCE.rglob("*.py"))
CORES = ("roles", "risk", "admm", "mpc", "ledger", "grid", "qp")
CORE_MODULES = ("machine.py", "secret.py", "config.py", "errors.py")
ASYNC = ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await
NO_NAMES = {"utils", "util", "helpers", "common", "base", "manager", "handler", "misc"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}

CITATION = re.compile(r"\[([^\[\]]+)\]")
SPECIFICATION = re.compile(r"^(?:contract|([a-z]+) (\d+(?:\.\d+)*))$")
PAGE = re.compile(r"^(docs/\S+\.md)(?: (\d+(?:\.\d+)*))?$")
LITERATURE = re.compile(r"^[A-Z]\w+(?:,? .*)?(?:\b(?:19|20)\d\d\b|, [A-Z])")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _places(kind: type | object, modules: list[Path] = MODULES) -> list[str]:
    return [
        f"{_name(path)}:{getattr(node, 'lineno', 0)}"
        for path in modules
        for node in ast.walk(_tree(path))
        if isinstance(node, kind)  # type: ignore[arg-type]
    ]


def test_source_has_no_bare_assert() -> None:
    """`python -O` deletes assert; invariant() stays."""
    assert _places(ast.Assert) == []


def test_cores_are_not_async() -> None:
    """A protocol that waits for something cannot be replayed by the simulator."""
    cores = [
        path for path in MODULES if path.relative_to(SOURCE).parts[0] in (*CORES, *CORE_MODULES)
    ]
    assert len(cores) > 20
    assert _places(ASYNC, cores) == []


def test_every_module_says_what_it_is() -> None:
    """Who opens a file reads first what it is for."""
    silent = [_name(path) for path in MODULES if not ast.get_docstring(_tree(path))]
    assert silent == []


def test_no_module_is_named_for_nothing() -> None:
    """A module called utils collects what nobody wanted to name."""
    assert [_name(path) for path in MODULES if path.stem.strip("_") in NO_NAMES] == []


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def test_nothing_is_pickled() -> None:
    """Unpickling runs what a peer sends."""
    found = [
        f"{_name(path)}: {name}"
        for path in MODULES
        for name in _imported(path)
        if name.split(".")[0] in PICKLES
    ]
    assert found == []


def _citations() -> Iterator[tuple[str, str]]:
    """Each bracket in a docstring that looks like a citation, and where it stands."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in MODULES:
        for node in ast.walk(_tree(path)):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for bracket in CITATION.findall(" ".join((text or "").split())):
                for whole in bracket.split("; "):
                    part = whole.split(", section ")[0]
                    if SPECIFICATION.match(part) or PAGE.match(part) or LITERATURE.match(part):
                        yield part, _name(path)


@cache
def _sections(page: Path) -> frozenset[str]:
    text = page.read_text(encoding="utf-8")
    return frozenset(re.findall(r"^#{2,4} (\d+(?:\.\d+)*)", text, flags=re.MULTILINE))


def _is_resolved(citation: str, references: str) -> bool:
    if f"### [{citation}]" in references or f"**[{citation}]**" in references:
        return True
    if found := PAGE.match(citation):
        page, section = ROOT / found[1], found[2]
    elif found := SPECIFICATION.match(citation):
        page, section = ROOT / "docs" / "protocol" / f"{found[1]}.md", found[2]
    else:
        return False
    return page.is_file() and (section is None or section in _sections(page))


def test_every_citation_resolves() -> None:
    """A formula whose source cannot be found cannot be checked."""
    references = (ROOT / "docs" / "references.md").read_text(encoding="utf-8")
    found = list(_citations())
    assert len(found) > 20, "the pattern still finds citations"
    unresolved = sorted({entry for entry in found if not _is_resolved(entry[0], references)})
    assert unresolved == []


GOVERNING = (
    "protocol/attestation",
    "protocol/day",
    "protocol/ledger",
    "protocol/masking",
    "threat-model",
)
NOT_CODE = re.compile(r"^(?:Missing|What is not here|What is planned)")


def _headings(page: Path) -> dict[str, str]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"^#{2,4} (\d+(?:\.\d+)*)\.? (.+)", text, flags=re.MULTILINE)
    return {number: title for number, title in found if not NOT_CODE.match(title)}


def _cited(page: str) -> set[str]:
    """Sections that docstrings cite; a section is cited by what cites a part of it."""
    name = page.removeprefix("protocol/")
    start = f"docs/{page}.md" if name == page else name
    found = set()
    for path in MODULES:
        for bracket in CITATION.findall(" ".join(path.read_text(encoding="utf-8").split())):
            for whole in bracket.split("; "):
                if whole.startswith(f"{start} "):
                    found |= set(re.findall(r"\d+(?:\.\d+)*", whole.removeprefix(start)))
    return found | {number.partition(".")[0] for number in found}


@pytest.mark.parametrize("page", GOVERNING)
def test_every_section_is_cited_by_the_code_that_it_governs(page: str) -> None:
    """A rule that no code names is a rule that nobody keeps when the code changes."""
    headings = _headings(ROOT / "docs" / f"{page}.md")
    assert len(headings) >= 4, "the pattern still finds sections"
    cited = _cited(page)
    assert {n: title for n, title in headings.items() if n not in cited} == {}


def _tracked() -> list[Path]:
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        pytest.skip("not a git checkout")
    return [path for name in done.stdout.decode().split("\0") if (path := ROOT / name).is_file()]


def test_no_file_names_a_path_of_this_machine() -> None:
    """What works in one folder only works for one person."""
    here = re.compile(r"(?<![\w.}])/(?:work|root|home/\w+|Users/\w+)/\w")
    found = []
    for path in _tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if here.search(line) or str(ROOT) + "/" in line:
                found.append(f"{_name(path)}:{number}")
    assert found == []


def _leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for below, inner in command.commands.items():
            yield from _leaves(inner, f"{name} {below}")
    else:
        yield name, command


@pytest.mark.parametrize("verb", list(_VERBS))
def test_every_verb_takes_json_and_seed(verb: str) -> None:
    """Scripts call every verb in the same way."""
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    for name, leaf in _leaves(command, verb):
        options = {text for parameter in leaf.params for text in parameter.opts}
        assert {"--json", "--seed"} <= options, name


def test_the_makefile_has_the_targets_that_the_readme_names() -> None:
    """The first two commands that anybody types must exist."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, flags=re.MULTILINE))
    assert {"demo", "test", "check", "bench", "docs"} <= targets
    for page in ("README.md", "CONTRIBUTING.md", "docs/tour.md"):
        named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8")))
        assert named <= targets, page


def test_what_lands_runs_make_test() -> None:
    """The check before a change lands is the one that the README names."""
    assert "exec make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_decisions_are_numbered_and_have_their_headings() -> None:
    """A decision without alternatives is an announcement."""
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    wanted = ["Context", "Decision", "Alternatives", "Consequences"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == wanted, page.name
        assert text.startswith(f"# {page.name[:4]} "), page.name


def test_the_changelog_knows_the_version() -> None:
    """Users look there for what the installed version brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    assert project["version"] in text


def test_every_dependency_says_what_it_is_for() -> None:
    """A dependency whose purpose nobody knows is never removed."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.split("dependencies = [", 1)[1].split("\n]", 1)[0]
    assert [line for line in block.splitlines() if line.strip() and "#" not in line] == []
