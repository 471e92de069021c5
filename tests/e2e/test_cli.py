"""The installed script: what `make demo` shows, and what Ctrl-C leaves behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from veilgrid.grid.acflow import electrical_check
from veilgrid.grid.scenario import BUNDLED_DAY
from veilgrid.report.folders import open_scenario

SCRIPT = Path(sys.executable).parent / "veilgrid"
LONG = ("simbench-rural-2016-07-18", "--coordination", "published")
TIMEOUT_S = 300.0


@contextmanager
def started(*arguments: object) -> "Iterator[subprocess.Popen[str]]":
    """Start the script; it and its pipes are gone at the end, also of a failed test."""
    process = subprocess.Popen(
        [str(SCRIPT), *(str(argument) for argument in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def finished(*arguments: object) -> tuple[int, str, str]:
    with started(*arguments) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, out, err


@pytest.mark.slow
def test_the_default_day_converges_passes_ac_and_is_reported(tmp_path: Path) -> None:
    """What a newcomer sees first: the bundled day, which nobody alone can run safely."""
    target = tmp_path / "demo"
    code, out, err = finished("run", "--json", "--out", target)
    assert code == 0, err
    found = json.loads(out)
    assert out.count("\n") == 1
    assert found["scenario"] == BUNDLED_DAY
    assert found["status"] == "converged"
    assert found["certificate"]["accepted"]
    assert found["certificate"]["gap"] <= 1e-4
    assert found["ac_check"]["passed"]
    assert found["settlement"]["sum"] == 0
    assert found["cost"] < found["cost_alone"]
    assert (target / "report.html").stat().st_size > 100_000
    assert json.loads((target / "run.json").read_text()) == found
    scenario = open_scenario()
    day = scenario.day()
    assert not electrical_check(scenario.network, *day.demands(day.uncontrolled)).passed
    code, out, err = finished("run", "--scheme", "central", "--json")
    assert code == 0, err
    optimum = json.loads(out)["cost"]
    assert abs(found["cost"] - optimum) <= 1e-4 * abs(optimum)


@pytest.mark.slow
def test_ctrl_c_ends_a_long_run_with_what_it_reached(tmp_path: Path) -> None:
    """An interrupted run is a result with a status, not a traceback and half a folder."""
    target = tmp_path / "run"
    with started("run", *LONG, "--json", "--out", target) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "iteration" in first, first
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in err
    found = json.loads(out)
    assert found["status"] in ("aborted", "converged")
    assert process.returncode == (0 if found["status"] == "converged" else 1)
    assert found["iterations"] >= 1
    assert found["cost"] is not None
    assert found["settlement"]["sum"] == 0
    assert json.loads((target / "run.json").read_text()) == found
    assert (target / "report.html").is_file()


@pytest.mark.slow
def test_a_second_ctrl_c_drops_the_run_and_leaves_nothing(tmp_path: Path) -> None:
    """Who cannot wait for the iteration to end must get the terminal back, and no halves."""
    target = tmp_path / "run"
    with started("run", *LONG, "--json", "--out", target) as process:
        assert process.stderr is not None
        assert "iteration" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        while "stopping" not in (line := process.stderr.readline()):
            assert line, "the command says that it stops"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in err
    assert process.returncode == 1
    if out:  # The iteration ended between the two.
        assert json.loads(out)["status"] == "aborted"
    else:
        assert not target.exists()
    assert [p for p in tmp_path.iterdir() if p != target] == []


def test_bad_input_ends_with_two_and_says_why_on_stderr(tmp_path: Path) -> None:
    code, out, err = finished("run", tmp_path / "nowhere", "--json")
    assert (code, out) == (2, "")
    assert "nowhere" in err
    assert "Traceback" not in err


def test_a_small_day_runs_from_any_folder(tmp_path: Path) -> None:
    """Bundled days must be found from where a person happens to be."""
    ran = subprocess.run(
        [str(SCRIPT), "run", "six-bus", "--scheme", "central", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["status"] == "converged"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_goes_away_is_no_error_of_ours() -> None:
    """`veilgrid ... | head -1` must not end in a traceback."""
    with started("run", "six-bus", "--scheme", "alone", "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        told = process.stderr.read()
    assert "Traceback" not in told


def test_version_and_help_come_without_a_scenario() -> None:
    code, out, _ = finished("--version")
    assert code == 0
    assert out.startswith("veilgrid, version ")
    code, out, _ = finished("--help")
    assert code == 0
    assert "Start with: veilgrid run" in out
