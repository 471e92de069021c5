"""Rounds of a market by the verb: bidders come and go, weights last, nothing is lost in a crash."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from veilgrid.cli._market import market
from veilgrid.errors import SetupError
from veilgrid.node.history import RoundHistory
from veilgrid.node.market_history import MarketHistory

HEADER = "participant,side,price,quantity"


def written(folder: Path, number: int, *, extra: Sequence[str] = (), but: str = "") -> Path:
    rng = np.random.default_rng(number)
    rows = [HEADER]
    for k in range(32):
        if but != f"b{k}":
            rows.append(f"b{k},buy,{rng.normal(24, 4):.1f},{rng.uniform(1, 4):.2f}")
        rows.append(f"s{k},sell,{rng.normal(20, 4):.1f},{rng.uniform(1, 4):.2f}")
    path = folder / f"bids_{number}.csv"
    path.write_text("\n".join([*rows, *extra]) + "\n", encoding="utf-8")
    return path


def called(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(market, [*(str(one) for one in arguments), "--json", "--seed", "1"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_spoof_weighs_a_tenth_in_the_next_round_and_recovers(tmp_path: Path) -> None:
    files = [
        written(tmp_path, 1, extra=["mallory,buy,40,300"]),
        written(tmp_path, 2, extra=["mallory,buy,40,3", "late,sell,15,2"], but="b0"),
        written(tmp_path, 3, extra=["mallory,buy,40,3", "late,sell,15,2"]),
    ]
    found = called(*files, "--out", tmp_path / "out")
    first, second, third = found["rounds"]
    assert [one["number"] for one in found["rounds"]] == [1, 2, 3]
    assert {key: first["flags"][0][key] for key in ("participant", "kind")} == {
        "participant": "mallory",
        "kind": "spoof",
    }
    assert (second["joined"], second["left"]) == (["late"], ["b0"])
    assert first["weights"] == []
    assert second["weights"] == [{"participant": "mallory", "weight": pytest.approx(0.1)}]
    assert third["weights"] == [{"participant": "mallory", "weight": pytest.approx(0.14)}]
    bought = {
        one["number"]: trade["quantity"]
        for one in found["rounds"]
        for trade in one["trades"]
        if trade["participant"] == "mallory"
    }
    assert bought[1] < 12, "bound to its cap at once"
    assert bought[2] == pytest.approx(0.3)
    assert bought[3] == pytest.approx(0.42)
    assert found["volume"] == pytest.approx(sum(one["volume"] for one in found["rounds"]))
    assert found["flags"][0]["round"] == 1
    assert round(sum(trade["payment"] for trade in found["trades"]), 5) == 0
    for one in found["rounds"]:
        money = [round(1e6 * trade["payment"]) for trade in one["trades"]]
        assert sum(money) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Price round by round" in page
    assert "spoof" in page


def test_weights_last_in_a_history_and_are_those_of_several_files_at_once(tmp_path: Path) -> None:
    files = [
        written(tmp_path, 1, extra=["mallory,buy,40,300"]),
        written(tmp_path, 2, extra=["mallory,buy,40,3"]),
    ]
    at_once = called(*files)
    kept = tmp_path / "past.sqlite"
    one_by_one = []
    for place, path in enumerate(files):
        done = CliRunner().invoke(
            market, [str(path), "--history", str(kept), "--json", "--seed", str(1 + place)]
        )
        one_by_one += json.loads(done.stdout)["rounds"]
    for one, other in zip(at_once["rounds"], one_by_one, strict=True):
        for key in ("number", "price", "volume", "trades", "flags", "weights", "joined", "left"):
            assert one[key] == other[key], key
    with MarketHistory(kept) as history:
        assert [state for _, _, state in history.rounds()] == ["done", "done"]
        assert history.flags() == [(1, "mallory", "spoof")]
        assert history.weights() == {"mallory": pytest.approx(0.14)}


def test_findings_of_all_files_are_told_before_any_round_runs(tmp_path: Path) -> None:
    files = [
        written(tmp_path, 1, extra=["x,by,1,1"]),
        written(tmp_path, 2, extra=["y,buy,1,-1", "z,buy,1"]),
    ]
    kept = tmp_path / "past.sqlite"
    done = CliRunner().invoke(market, [*map(str, files), "--history", str(kept), "--json"])
    assert done.exit_code == 2
    for part in (
        "bids_1.csv row 66, column side",
        "bids_2.csv row 66, column quantity",
        "bids_2.csv row 67",
    ):
        assert part in done.stderr
    assert not kept.exists(), "nothing began"
    found = called(*files, "--skip-bad-rows")
    assert [len(one["rejected"]) for one in found["rounds"]] == [1, 2]
    names = [one["participant"] for one in found["rounds"][1]["rejected"]]
    assert sorted(names) == ["67", "y"]
    assert all(one["volume"] > 0 and one["weights"] == [] for one in found["rounds"])


def test_a_history_of_something_else_is_refused_and_damage_is_said(tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with RoundHistory(other):
        pass
    with pytest.raises(SetupError, match="not a history of a market"):
        MarketHistory(other)
    mine = tmp_path / "mine.sqlite"
    with MarketHistory(mine):
        pass
    with pytest.raises(SetupError, match="not a history of rounds"):
        RoundHistory(mine)
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 100)
    with pytest.raises(SetupError):
        MarketHistory(broken)
    bids = written(tmp_path, 1)
    done = CliRunner().invoke(market, [str(bids), "--history", str(broken), "--json"])
    assert done.exit_code == 3
    assert done.stdout == ""


def test_a_round_that_ends_twice_counts_once_and_a_failed_one_changes_nothing(
    tmp_path: Path,
) -> None:
    with MarketHistory(tmp_path / "h.sqlite") as history:
        first = history.reserve("a.csv")
        history.complete(first, {}, ["a", "b"], [("a", "spoof")], {"a": 0.1})
        history.complete(first, {}, ["c"], [("c", "wash")], {"a": 1.0, "c": 0.1})
        second = history.reserve("b.csv")
        history.fail(second)
        history.complete(second, {}, ["c"], [], {"a": 1.0})
        assert history.weights() == {"a": 0.1}
        assert history.members() == {"a", "b"}
        assert history.rounds() == [(1, "a.csv", "done"), (2, "b.csv", "failed")]
        assert history.reserve("c.csv") == 3


_WRITER = """
import sys
from veilgrid.node.market_history import MarketHistory
with MarketHistory(sys.argv[1]) as history:
    while True:
        number = history.reserve("x.csv")
        names = [f"p{k}" for k in range(200)]
        print(number, flush=True)
        flags = [(name, "spoof") for name in names]
        history.complete(number, {"n": number}, names, flags, {n: 1 / number for n in names})
"""


def test_killed_at_any_moment_the_weights_are_those_of_one_whole_round(tmp_path: Path) -> None:
    """SIGKILL while rounds are written: weights, members and flags agree, no number twice."""
    path, told = tmp_path / "h.sqlite", 0
    for pause in (0.0, 0.011, 0.023, 0.037, 0.05):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        numbers = [int(writer.stdout.readline())]
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        numbers += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        assert numbers[0] > told, "a number is never used twice"
        told = numbers[-1]
        with MarketHistory(path) as history:
            done = [number for number, _, state in history.rounds() if state == "done"]
            weights = set(history.weights().values())
            assert weights == ({1 / done[-1]} if done else set())
            assert len(history.flags()) == 200 * len(done)
            assert len(history.members()) == (200 if done else 0)


@given(data=st.data())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_whatever_the_bids_a_committee_harms_nobody_and_trades_the_optimum(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The verb on generated files: ties, curves, zero quantities, weights, both rules."""
    count = data.draw(st.sampled_from([3, 31]))
    price = st.one_of(st.integers(15, 25), st.floats(-50, 150).map(lambda x: round(x, 3)))
    size = st.one_of(st.just(0), st.floats(0.01, 5).map(lambda x: round(x, 3)))
    lines = [f"{HEADER},weight"]
    sent: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for side in ("buy", "sell"):
        for k in range(count):
            for _ in range(data.draw(st.integers(1, 2))):
                limit, weight = data.draw(price), data.draw(st.sampled_from([1, 1, 0.5]))
                amount = data.draw(size)
                sent.setdefault((f"{side}{k}", side), []).append((limit, amount * weight))
                lines.append(f"{side}{k},{side},{limit},{amount},{weight}")
    path = tmp_path_factory.mktemp("any") / "bids.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = called(path)
    if found["rule"] == "uniform-price":
        assert found["welfare"] >= 0.999 * found["welfare_optimum"] - 1e-6
    assert found["welfare"] <= found["welfare_optimum"] + 1e-6
    assert sum(round(1e6 * trade["payment"]) for trade in found["trades"]) == 0
    signed = {"buy": 1, "sell": -1}
    volume = sum(signed[one["side"]] * one["quantity"] for one in found["trades"])
    assert volume == pytest.approx(0, abs=1e-9)
    for trade in found["trades"]:
        sign = signed[trade["side"]]
        willing = sum(
            amount
            for limit, amount in sent[(trade["participant"], trade["side"])]
            if sign * (limit - found["price"]) >= -found["tick"]
        )
        assert 0 < trade["quantity"] <= willing + 1e-6


@pytest.mark.parametrize(("count", "rule"), [(29, "trade-reduction"), (30, "uniform-price")])
def test_thirty_a_side_is_where_the_rule_changes(tmp_path: Path, count: int, rule: str) -> None:
    """Buyers are fewer here; what trade reduction costs is told beside what was possible."""
    lines = [f"b{k},buy,{30 + k if k < 20 else 5},1" for k in range(count)]
    lines += [f"s{k},sell,{10 if k < 20 else 70},1" for k in range(40)]
    path = tmp_path / "bids.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    found = called(path)
    assert found["rule"] == rule
    is_less = found["welfare"] < found["welfare_optimum"] - 1e-9
    assert is_less == (rule == "trade-reduction")
