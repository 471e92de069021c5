"""A run that is killed, and the next one that goes on from what it left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from veilgrid.report.folders import open_scenario, save_scenario

SCRIPT = Path(sys.executable).parent / "veilgrid"
TIMEOUT_S = 300.0


def ran(*arguments: object) -> tuple[int, dict, str]:
    command = [str(SCRIPT), "run", *(str(one) for one in arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def killed(target: Path, *arguments: object, records: int = 4) -> None:
    """Kill the whole process group once so much is kept after gate closure."""
    journal = target.with_name(target.name + ".unfinished") / "journal"
    process = subprocess.Popen(
        [str(SCRIPT), "run", *(str(one) for one in arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        said = f"bids of 6 sites are committed and kept in {journal.parent};"
        while said not in (line := process.stderr.readline()):
            assert line, "the run says that bids are kept"
        sizes = {journal.stat().st_size}
        deadline = time.monotonic() + TIMEOUT_S
        while len(sizes) < records:
            assert process.poll() is None
            assert time.monotonic() < deadline
            sizes.add(journal.stat().st_size)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.slow
def test_a_killed_day_goes_on_from_its_committed_bids(tmp_path: Path) -> None:
    """Who is interrupted must not have to ask every site for its bid again."""
    target, kept = tmp_path / "day", tmp_path / "day.unfinished"
    killed(target, "six-bus", "--out", target)
    assert not target.exists()
    assert sorted(one.name for one in kept.iterdir()) == ["journal", "key"]
    assert kept.stat().st_mode & 0o077 == 0
    assert all(one.stat().st_mode & 0o077 == 0 for one in kept.iterdir())
    another = save_scenario(open_scenario("simbench-rural-2016-01-18"), tmp_path / "another")
    code, _, err = ran(another, "--out", target, "--resume")
    assert code == 2
    assert "another scenario" in err
    code, found, err = ran("six-bus", "--out", target, "--resume")
    assert code == 0, err
    assert "bids of 6 sites were committed and stand" in err
    assert found["status"] == "converged"
    assert found["iterations"] < 38
    assert found["cost"] == pytest.approx(718.2, rel=1e-4)
    assert json.loads((target / "run.json").read_text()) == found
    assert (target / "ledger.json").is_file()
    assert not kept.exists()
    code, again, err = ran("six-bus", "--out", target, "--resume")
    assert (code, again) == (0, found)
    assert "finished before" in err


@pytest.mark.slow
def test_finished_days_are_kept_when_a_later_one_is_killed(tmp_path: Path) -> None:
    """The second day is cut short; the first one's results stay as they are."""
    out = tmp_path / "runs"
    days = ("six-bus", save_scenario(open_scenario("six-bus"), tmp_path / "a"))
    killed(out / "six-bus-2", *days, "--out", out, records=2)
    first = (out / "six-bus" / "run.json").read_text()
    code, found, err = ran(*days, "--out", out, "--resume")
    assert code == 0, err
    assert "six-bus was finished before" in err
    assert "bids of 6 sites were committed and stand" in err
    assert (out / "six-bus" / "run.json").read_text() == first
    assert found["days"][0] == json.loads(first)
    assert found["days"][1]["status"] == "converged"
    assert found["days"][1]["iterations"] < 38
