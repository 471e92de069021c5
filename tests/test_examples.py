"""Every example runs as it stands, with warnings as errors, and stays short."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
LINES_MAX = 60


def test_there_are_examples() -> None:
    """An empty folder would let everything below pass."""
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    """Who copies an example gets a program that works, from any folder."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows something"
    assert list(tmp_path.iterdir()) == [], "an example leaves nothing behind"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_uses_the_public_interface_only(path: Path) -> None:
    """An example that reaches inside would break with a release that promises otherwise."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_MAX
    reaching = [line for line in text.splitlines() if "veilgrid." in line and "import" in line]
    assert reaching == []
