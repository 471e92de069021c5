"""The documentation says what is so: its blocks run, its links lead somewhere, its lists agree."""

import ast
import doctest
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import veilgrid
from veilgrid import errors
from veilgrid.cli import _VERBS, cli

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
OPTION = re.compile(r"`(--[a-z-]+)")


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _blocks(page: Path) -> list[tuple[int, str]]:
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(1)), m.group(1)) for m in BLOCK.finditer(text)]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(">>>" in text for _, text in _blocks(p))], ids=_name
)
def test_blocks_with_prompts_print_what_they_claim(page: Path) -> None:
    """A reader who types what he reads gets what he reads."""
    parser, shared = doctest.DocTestParser(), {"__name__": "docs"}
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for line, text in _blocks(page):
        if ">>>" not in text:
            continue
        test = parser.get_doctest(text, shared, _name(page), str(page), line)
        runner.run(test, out=report.append, clear_globs=False)
        shared = test.globs
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p)], ids=_name)
def test_blocks_without_prompts_are_python(page: Path) -> None:
    """What cannot be parsed cannot have been tried."""
    for line, text in _blocks(page):
        if ">>>" not in text:
            try:
                ast.parse(text)
            except SyntaxError as error:
                pytest.fail(f"{_name(page)}, line {line + (error.lineno or 0)}: {error.msg}")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Nobody follows a second dead link."""
    outside = ("http://", "https://", "mailto:", "#")
    targets = [t for t in LINK.findall(page.read_text("utf-8")) if not t.startswith(outside)]
    missing = [t for t in targets if not (page.parent / t.split("#")[0]).exists()]
    assert missing == []


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Every verb that can be called, with the verbs below it."""
    context = click.Context(cli)
    for verb in _VERBS:
        command = cli.get_command(context, verb)
        assert command is not None
        if isinstance(command, click.Group):
            for name, below in command.commands.items():
                yield f"{verb} {name}", below
        else:
            yield verb, command


def _documented() -> dict[str, str]:
    """Sections of docs/cli.md by verb."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    parts = re.split(r"^## `veilgrid ([a-z ]+)", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_on_the_command_line_has_every_verb_with_every_option() -> None:
    """Whoever reads docs/cli.md has read --help, and the other way round."""
    found = {
        name: {text for p in command.params if isinstance(p, click.Option) for text in p.opts}
        for name, command in _commands()
    }
    written = {
        verb.strip(): set(OPTION.findall(section)) for verb, section in _documented().items()
    }
    assert written == found


def test_every_verb_explains_itself() -> None:
    """`--help` says what a verb does."""
    for name, command in _commands():
        assert command.help, name


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("run", ["six-bus", "--scheme", "central"]),
        ("compare", ["six-bus", "--schemes", "alone"]),
        ("aggregate", ["READINGS", "--function", "sum"]),
    ],
)
def test_the_page_on_the_command_line_names_every_key(
    verb: str, arguments: list[str], tmp_path: Path
) -> None:
    """Whoever parses the JSON finds each key explained."""
    readings = tmp_path / "readings.csv"
    readings.write_text("source,value,tier,lower,upper\na,1,dso,0,5\nb,2,dso,0,5\nc,,dso,0,5\n")
    given = [str(readings) if word == "READINGS" else word for word in arguments]
    done = CliRunner().invoke(cli, [verb, *given, "--json"], standalone_mode=False)
    found = set(_keys(json.loads(done.stdout)))
    page = _documented()
    named = set(re.findall(r"`(\w+)`", page[f"{verb} "] + page["run "]))
    assert found - named == set()


def test_the_page_on_the_command_line_has_every_exit_code() -> None:
    """A script that looks at exit codes meets no other one."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    written = {int(code) for code in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)}
    raised = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VeilgridError)
    }
    assert written == raised | {0, 70}


def test_the_public_names_are_those_of_the_page() -> None:
    """docs/api.md lists what veilgrid promises to keep, no more and no less."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.findall(r"^## `([A-Za-z_]+)", text, flags=re.MULTILINE) == veilgrid.__all__


def test_public_names_are_sorted_and_there() -> None:
    """A name that cannot be imported is found here and not by a user."""
    assert sorted(veilgrid.__all__) == veilgrid.__all__
    for name in veilgrid.__all__:
        assert getattr(veilgrid, name) is not None
        assert name in dir(veilgrid)
    assert set(veilgrid._HOMES) == set(veilgrid.__all__)
    with pytest.raises(AttributeError, match="no attribute 'plan_week'"):
        veilgrid.plan_week  # noqa: B018 - the access is what is tested


def test_public_functions_and_classes_say_what_they_do() -> None:
    """`help(name)` is the manual that everybody has at hand."""
    for name in veilgrid.__all__:
        assert inspect.getdoc(getattr(veilgrid, name)), name


def test_settings_named_in_pages_exist() -> None:
    """A module path in backticks, such as `grid/site.py`, is a file of the package."""
    pattern = re.compile(r"`((?:admm|cli|grid|mpc|node|qp|report|roles|sim)/\w+\.py)`")
    for page in PAGES:
        named = pattern.findall(page.read_text(encoding="utf-8"))
        gone = [name for name in named if not (ROOT / "src" / "veilgrid" / name).exists()]
        assert gone == [], _name(page)


def test_importing_the_package_loads_no_solver() -> None:
    """`import veilgrid` stays cheap: the facade loads a name when it is used."""
    source = Path(importlib.import_module("veilgrid").__file__ or "").read_text("utf-8")
    tree = ast.parse(source)
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top for alias in node.names}
    assert names <= {"importlib", "TYPE_CHECKING"}
