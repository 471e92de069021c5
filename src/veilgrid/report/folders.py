"""Scenario folders on this machine: opened, saved without halves, and the bundled ones found."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import veilgrid
from veilgrid.errors import Finding, ScenarioError, SetupError
from veilgrid.grid.scenario import BUNDLED_DAY, Scenario


def open_scenario(path: str | Path = BUNDLED_DAY) -> Scenario:
    """Read the scenario in a folder, or the bundled one of that name.

    Raises
    ------
    ScenarioError
        With every broken rule, or that there is no such folder.
    """
    folder = Path(path)
    try:
        is_there = folder.is_dir()
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
        raise ScenarioError([Finding(str(path), problem)]) from error
    if not is_there:
        bundled = bundled_scenarios()
        if str(path) in bundled:
            folder = bundled[str(path)]
        elif folder.is_file():
            advice = "give the folder that holds scenario.toml and the CSV files"
            raise ScenarioError([Finding(str(path), "is a file, not a scenario folder", advice)])
        else:
            advice = f"bundled scenarios: {', '.join(bundled)}" if bundled else ""
            raise ScenarioError([Finding(str(path), "no such folder", advice)])
    return Scenario.read(folder)


def save_scenario(scenario: Scenario, path: str | Path) -> Path:
    """Write a scenario into a new folder, completely or not at all.

    The files are written into a temporary sibling, which takes the folder's name at the end.

    Raises
    ------
    SetupError
        If the folder exists and is not empty, or cannot be written.
    """
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SetupError(f"{target} exists already; remove it or choose another folder")
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        part.chmod(0o755)
        scenario.write(part)
        if target.exists():
            target.rmdir()
        part.rename(target)
    except OSError as error:
        raise SetupError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        if part is not None and part.exists():
            with suppress(OSError):
                shutil.rmtree(part)
    return target


def bundled_scenarios() -> dict[str, Path]:
    """Return the folders of the bundled scenarios by name; empty if none is installed.

    A wheel carries them inside the package, a source checkout beside ``src``.
    """
    package = Path(veilgrid.__file__).parent
    for home in (package / "scenarios", package.parents[1] / "scenarios"):
        found = sorted(home.glob("*/scenario.toml"))
        if found:
            return {file.parent.name: file.parent for file in found}
    return {}
