"""Processes kept apart: links hold messages as long as they say, and the model says how long."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_node import MACHINES, agreeing, spec

from roles.sealed.sealed_days import small
from veilgrid.cli._bench_distance import check_model, predicted
from veilgrid.errors import SetupError
from veilgrid.machine import NodeId
from veilgrid.node.local import Deployment, run_in_process, run_processes
from veilgrid.node.namespaces import Namespaces, apart
from veilgrid.node.wiring import Relays

WAYS = ("relays", "namespaces")
NOBODY = 65534


def kept_apart(by: str, names: list[str], delay_s: float) -> Namespaces | Relays:
    """Return links; where this machine has no namespaces for us, say so and skip."""
    try:
        with apart(by, [NodeId("a"), NodeId("b")], 0.0):
            pass
    except SetupError as error:
        pytest.skip(str(error))
    return apart(by, [NodeId(name) for name in names], delay_s)


@pytest.mark.parametrize("by", WAYS)
def test_what_waits_for_an_answer_takes_a_round_trip(by: str) -> None:
    """Forty messages, one after the other, over 20 ms one way: 0.8 s, and little more."""
    asking = {"answerer": "answerer", "count": 20, "length": 1000}
    specs = [spec("answerer", "answerer"), spec("client", "asker", asking)]
    with kept_apart(by, ["answerer", "client"], 0.02) as wiring:
        found = run_processes(specs, import_paths=[MACHINES], wiring=wiring)
    assert found[1].outcomes == [20]
    assert 0.8 <= found[1].seconds < 1.5, "whole round trips would be 1.6"


@pytest.mark.parametrize("by", WAYS)
def test_much_on_its_way_arrives_whole_and_in_order(by: str) -> None:
    specs = agreeing(3, 8, 3_000_000)
    with kept_apart(by, ["p0", "p1", "p2"], 0.01) as wiring:
        found = run_processes(specs, import_paths=[MACHINES], wiring=wiring)
    assert [one.outcomes for one in found] == [one.outcomes for one in run_in_process(specs)]
    assert all(one.octets_sent > 8 * 2 * 3_000_000 for one in found)


@pytest.mark.parametrize("by", WAYS)
def test_a_process_that_is_killed_is_reached_again(by: str) -> None:
    """It comes back at the same address, and its peers wait for it."""
    specs = agreeing(3, 60)
    with (
        kept_apart(by, ["p0", "p1", "p2"], 0.01) as wiring,
        Deployment(specs, import_paths=[MACHINES], wiring=wiring) as deployment,
    ):
        deployment.start()
        deployment.kill(NodeId("p1"))
        deployment.restart(NodeId("p1"))
        assert deployment.is_alive(NodeId("p1"))


def test_nothing_of_a_namespace_is_left() -> None:
    with kept_apart("namespaces", ["a", "b"], 0.0) as wiring:
        assert isinstance(wiring, Namespaces)
        before = Path("/proc/thread-self/ns/net").readlink()
        with wiring.inside(NodeId("a")), socket.create_server(("10.77.0.1", 0)):
            assert Path("/proc/thread-self/ns/net").readlink() != before
        assert Path("/proc/thread-self/ns/net").readlink() == before
    with pytest.raises(OSError, match="annot assign"):
        socket.create_server(("10.77.0.1", 0)).close()


def test_without_the_rights_one_is_told_what_to_do() -> None:
    code = (
        "import os\n"
        "from veilgrid.errors import SetupError\n"
        "from veilgrid.node.namespaces import Namespaces\n"
        f"if os.geteuid() == 0: os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "try:\n"
        "    with Namespaces(['a', 'b'], 0.0): pass\n"
        "except SetupError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot make a network namespace (Operation not permitted)" in done.stdout, done
    assert "--delay-by relays" in done.stdout


@pytest.mark.parametrize("by", WAYS)
def test_a_sealed_day_takes_as_long_as_the_model_says(by: str) -> None:
    """Else what `bench sealed` prints for a distance is a guess; namespaces forgot the payer."""
    whole = small(2)
    kept = tuple(one for one in whole.devices if one.name in ("sun", "oil"))
    day = replace(whole, devices=kept).day()
    with kept_apart(by, ["a", "b"], 0.0):
        pass
    rows = check_model(day, parties=3, round_trips_ms=(20.0,), by=by, timeout_s=120.0)
    [row] = rows
    assert row["status"] == "converged"
    assert row["ours"] > row["trips"] * 0.01, "no message travels faster than its link"
    # Other jobs on this machine may stretch the computing, which is `near`, not the travelling.
    near = max(row["loopback_seconds"])
    assert abs(row["ours"] - row["peer"]) < 0.15 * row["peer"] + near


def test_the_model_adds_half_a_round_trip_a_message() -> None:
    assert predicted(3.0, 100, 20.0) == 4.0
