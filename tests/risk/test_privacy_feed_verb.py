"""``veilgrid aggregate --feed``: paid once, published once, the same ever after."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veilgrid.cli import _feed, main
from veilgrid.cli._committee import SecureResult
from veilgrid.errors import RunAborted
from veilgrid.mpc import Plain
from veilgrid.mpc.bulk import plain_batch
from veilgrid.node.budget import open_budget
from veilgrid.risk.accountant import spent
from veilgrid.risk.feed_round import Feed, released
from veilgrid.risk.privacy import Guarantee
from veilgrid.risk.privacy_feed import WAYS, plan_feed

DAY = "2026-06-15"
PROMISE = Guarantee(1.0, 1e-6)


def feed_of(way: str, intervals: int, per_day: int, sensitivity: int = 900) -> Feed:
    plan = plan_feed(PROMISE, intervals, sensitivity, block=per_day, way=way)
    return Feed(plan=plan, guarantee=PROMISE, per_day=per_day, sensitivity=sensitivity, scale=100.0)


def coarse(feed: Feed, readings: Any) -> Any:
    """What is opened but for its noise, with the rounding that is really done."""
    count = len(readings)
    column = feed.plan.column
    rows = [sum(column[i - j] * int(readings[j]) for j in range(i + 1)) for i in range(count)]
    return np.array([row * feed.plan.factor >> feed.plan.shift for row in rows], float)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("intervals", "per_day"), [(24, 24), (40, 12)])
def test_what_a_feed_pays_covers_a_device_and_a_day(way: str, intervals: int, per_day: int) -> None:
    """The change by any day of any device is no longer than what the ledger counted."""
    feed = feed_of(way, intervals, per_day)
    charge = feed.charge()
    assert spent([charge]).delta(PROMISE.epsilon) <= PROMISE.delta
    generator = np.random.default_rng(1)
    for start in range(0, intervals - per_day + 1, per_day):
        for _ in range(4):
            one = generator.integers(0, 10**6, intervals)
            other = one.copy()
            other[start : start + per_day] += generator.choice([900, 900, 0])
            change = coarse(feed, other) - coarse(feed, one)
            assert np.linalg.norm(change) <= charge.sensitivity
            for interval in range(intervals):
                again = feed.charge_again(interval)
                assert abs(change[interval]) <= again.sensitivity
                assert again.sensitivity <= charge.sensitivity + 1


def in_the_clear(
    committee: Any, forms: Any, inputs: Any, task: Any, *, processes: bool = False
) -> SecureResult:
    """Run the round on plain numbers, noise and all; as fast as tests need it."""
    del forms, processes
    asked = task.question
    mpc = Plain(int.from_bytes(committee.randomness.octets(4), "little"))
    names = list(inputs)
    rows = np.array([line or [7] * asked.layout().size for line in inputs.values()])
    batch = plain_batch(mpc, asked.layout(), rows, names)
    numbers = mpc.run(released(mpc, asked, batch))
    flags = {name: "invalid" if inputs[name] else "missing" for name in batch.flags}
    result = {
        "numbers": [str(one) for one in numbers],
        "counted": np.flatnonzero(batch.is_counted).tolist(),
        "flags": flags,
    }
    return SecureResult(result, 0.1, 100)


def written(path: Path, intervals: Any, count: int = 40, more: float = 0.0) -> Path:
    rows = [
        f"canary{k},{2 + (k + at) % 5 + more},household,0,10,{at}"
        for at in intervals
        for k in range(count)
    ]
    path.write_text("\n".join(["source,value,tier,lower,upper,interval", *rows]) + "\n")
    return path


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["aggregate", *arguments])
    told = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, told.out, told.err


def options(tmp_path: Path, intervals: int = 6) -> list[str]:
    budget = ["--budget", str(tmp_path / "budget"), "--day", DAY, "--delta", "1e-6"]
    asked = ["--feed", str(intervals), "--per-day", str(intervals), "--epsilon", "1"]
    return ["--function", "sum", *asked, *budget, "--json"]


def test_a_feed_grows_keeps_what_it_said_and_is_paid_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals within their noise; old numbers for ever; the day's budget is gone for others."""
    monkeypatch.setattr(_feed, "secure_round", in_the_clear)
    more = options(tmp_path)
    path = written(tmp_path / "a.csv", [1, 2])
    code, out, err = called(capsys, str(path), *more, "--out", str(tmp_path / "out"))
    assert code == 0
    assert "predicted error" in err
    assert "interval" in err
    first = json.loads(out)
    assert [one["interval"] for one in first["feed"]["each"]] == [1, 2]
    assert first["privacy"]["budget"]["spent_epsilon"] <= 1
    truth = np.cumsum([sum(2 + (k + at) % 5 for k in range(40)) for at in (1, 2)])
    for one, right in zip(first["feed"]["each"], truth, strict=True):
        assert abs(one["total"] - right) <= 6 * one["noise_sd"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "canary" not in page
    assert "Running total" in page
    path = written(tmp_path / "b.csv", [3])  # The new interval alone is enough.
    code, out, _ = called(capsys, str(path), *more)
    second = json.loads(out)
    assert second["feed"]["each"][:2] == first["feed"]["each"]
    assert len(second["feed"]["each"]) == 3
    spent_now = second["privacy"]["budget"]["spent_epsilon"]
    assert spent_now == first["privacy"]["budget"]["spent_epsilon"]
    code, out, _ = called(capsys, str(path), *more)
    assert json.loads(out)["feed"] == second["feed"]
    assert b"canary" not in (tmp_path / "budget").read_bytes()
    code, out, err = called(capsys, str(path), *options(tmp_path, 7))
    assert (code, out) == (2, "")
    assert "interval 1: has no readings" in err
    path = written(tmp_path / "c.csv", [1, 2, 3])
    code, _, err = called(capsys, str(path), *options(tmp_path, 7))
    assert code == 2
    assert "does not allow this release" in err


def test_a_series_that_cannot_be_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_feed, "secure_round", in_the_clear)
    more = options(tmp_path)
    assert called(capsys, str(written(tmp_path / "a.csv", [1, 2])), *more)[0] == 0
    path = written(tmp_path / "b.csv", [2, 4, 9], more=1.0)
    code, _, err = called(capsys, str(path), *more)
    assert code == 2
    for words in ("planned for 6", "interval 2: its readings are not", "interval 3: has no"):
        assert words in err, words
    path.write_text("source,value,tier,lower,upper,interval\na,1,household,0,2,0\n")
    code, _, err = called(capsys, str(path), *more)
    assert code == 2
    assert "row 2, column interval" in err
    wide = tmp_path / "wide.csv"
    wide.write_text("source,value,tier,lower,upper,interval\na,1,household,0,90,3\n")
    code, _, err = called(capsys, str(wide), *more)
    assert code == 2
    assert "further apart" in err
    code, _, err = called(
        capsys, str(wide), "--function", "mean", "--feed", "6", "--noise", "local", "--epsilon", "1"
    )
    assert code == 2
    assert all(name in err for name in ("--feed", "--function", "--noise"))


def test_what_was_begun_and_lost_costs_once_more_or_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first result may have been seen, so its repetition is not free."""
    path, more = written(tmp_path / "a.csv", [1]), options(tmp_path)

    def lost(*_: Any, **__: Any) -> SecureResult:
        raise RunAborted("lost")

    losses = []
    for turn in range(12):
        monkeypatch.setattr(_feed, "secure_round", lost)
        code, _, err = called(capsys, str(path), *more)
        with open_budget(tmp_path / "budget", None, 1e-6) as ledger:
            losses.append(ledger.budget.loss(DAY).epsilon(1e-6))
        if code == 2:
            assert "does not allow this release" in err
            break
        assert code == 5
        assert turn == 0 or losses[-1] > losses[-2]
    assert 2 <= len(losses) < 12
    assert losses[-1] <= 1.0


_KILLED = """
import os, signal, sys
from veilgrid.cli import _feed, main
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
_feed.secure_round = killed
main(sys.argv[1:])
"""


def test_a_process_killed_between_reserving_and_releasing_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then a real round over shares publishes the interval; both draws are in the ledger."""
    path = written(tmp_path / "a.csv", [1])
    more = [*options(tmp_path), "--daily-epsilon", "1.5"]
    child = subprocess.run(
        [sys.executable, "-c", _KILLED, "aggregate", str(path), *more],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert child.returncode == -9
    assert child.stdout == b""
    with open_budget(tmp_path / "budget", None, 1e-6) as ledger:
        before = ledger.budget.loss(DAY).epsilon(1e-6)
        assert ledger.budget.count(DAY) == 2
    assert before > 0.8
    code, out, _ = called(capsys, str(path), *more)
    assert code == 0
    report = json.loads(out)
    assert report["privacy"]["budget"]["spent_epsilon"] > before
    assert report["privacy"]["budget"]["releases"] == 3
    one = report["feed"]["each"][0]
    truth = sum(2 + (k + 1) % 5 for k in range(40))
    assert abs(one["total"] - truth) <= 6 * one["noise_sd"]
    assert report["accepted"] == 40
