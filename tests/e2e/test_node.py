"""Real processes on loopback: started, killed, started again; ended by pid."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from node_machines import Vote

from veilgrid.errors import RunAborted, SetupError
from veilgrid.machine import NodeId
from veilgrid.node.local import (
    Deployment,
    ProcessSpec,
    run_in_process,
    run_processes,
)
from veilgrid.node.signing import read_audit

MACHINES = Path(__file__).parents[1] / "node"
MESSAGES = "node_machines:MESSAGES"
SUM_OF_20 = 210


class Stray(msgspec.Struct, frozen=True, tag=True):
    value: int


def spec(node: str, factory: str, arguments: object = None, **more: object) -> ProcessSpec:
    return ProcessSpec(
        node=NodeId(node),
        factory=f"node_machines:{factory}",
        messages=MESSAGES,
        arguments=arguments,
        **more,  # type: ignore[arg-type]
    )


def agreeing(count: int, rounds: int, length: int = 0) -> list[ProcessSpec]:
    arguments = {"rounds": rounds, "length": length}
    return [spec(f"p{index}", "agreement", arguments) for index in range(count)]


def counting(count: int, **more: object) -> list[ProcessSpec]:
    asking = {"answerer": "counter", "count": count, "length": 0}
    return [
        spec("counter", "counter", records="node_machines:RECORDS", **more),
        spec("client", "client", asking),
    ]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_machines_decide_the_same_in_processes_and_in_one_process() -> None:
    """One machine, two drivers: what was tested in one holds in the other."""
    specs = agreeing(3, 25, 1000)
    apart = run_processes(specs, import_paths=[MACHINES], timeout_s=30)
    together = run_in_process(specs)
    assert [result.outcomes for result in apart] == [result.outcomes for result in together]
    assert len(apart[0].outcomes) == 1
    for result in apart:
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.octets_sent >= 25 * 2 * 1000
        assert 10 << 20 < result.peak_memory_octets < 500 << 20
        assert result.processor_seconds > 0
    sent = sum(result.octets_sent for result in apart)
    received = sum(result.octets_received for result in apart)
    assert 0 <= sent - received < 1000, "all but the last goodbyes"


def test_three_processes_start_and_end_well_within_three_seconds() -> None:
    """One of three tries: other work on the machine is not ours to time."""

    def seconds() -> float:
        began = time.monotonic()
        run_processes(agreeing(3, 1), import_paths=[MACHINES])
        return time.monotonic() - began

    assert any(seconds() < 3.0 for _ in range(3))


def test_a_killed_process_goes_on_from_its_journal_and_nothing_is_counted_twice() -> None:
    """kill -9 at any moment: what was answered was durable, and what was durable counts once."""
    with Deployment(counting(20), import_paths=[MACHINES]) as deployment:
        deployment.start()
        counter, client = NodeId("counter"), NodeId("client")
        lives = 0
        while not deployment.outcomes(client) and lives < 3:
            deployment.wait_until(lambda: bool(deployment.outcomes(client)), 0.02)
            deployment.kill(counter)
            assert not deployment.is_alive(counter)
            deployment.restart(counter)
            lives += 1
        assert deployment.wait(30)
        results = {result.node: result for result in deployment.stop()}
    assert results[client].outcomes == [SUM_OF_20]
    totals = results[counter].outcomes
    assert len(totals) == lives + 1
    assert totals == sorted(totals), "what was durable in one life is there in the next"


def test_a_journal_that_is_kept_serves_the_next_deployment(tmp_path: Path) -> None:
    specs = counting(5, journal=tmp_path / "counter.journal")
    first = run_processes(specs, import_paths=[MACHINES])
    again = run_processes(specs, import_paths=[MACHINES])
    assert [result.outcomes for result in first] == [[0], [15]]
    assert [result.outcomes for result in again] == [[15], [15]]


def test_the_death_of_one_process_leaves_the_others_running() -> None:
    with Deployment(agreeing(3, 10**9), import_paths=[MACHINES]) as deployment:
        deployment.start()
        deployment.kill(NodeId("p1"))
        assert not deployment.wait(0.3)
        results = deployment.stop()
    assert [result.exit_code for result in results] == [0, -9, 0]


def test_one_of_two_dead_processes_is_started_again_without_the_other() -> None:
    with Deployment(agreeing(3, 10**9), import_paths=[MACHINES]) as deployment:
        deployment.start()
        for node in ("p0", "p2"):
            deployment.kill(NodeId(node))
        deployment.restart(NodeId("p2"), timeout_s=20)
        assert deployment.is_alive(NodeId("p2"))
        assert [result.exit_code for result in deployment.stop()] == [-9, 0, 0]


def test_a_bug_ends_its_process_with_70_and_says_where() -> None:
    specs = [spec("p0", "answerer"), spec("p1", "broken")]
    good, bad = run_processes(specs, import_paths=[MACHINES], timeout_s=10)
    assert (good.exit_code, good.outcomes) == (0, [0])
    assert (bad.exit_code, bad.outcomes) == (70, [])
    assert "this machine never starts" in bad.stderr
    assert "node_machines.py" in bad.stderr


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (spec("p0", "absent"), "has no absent"),
        (spec("p0", "agreement", {"rounds": "many"}), "are not"),
        (ProcessSpec(node=NodeId("p0"), factory="no_such:f", messages=MESSAGES), "no_such"),
    ],
)
def test_a_process_that_cannot_start_says_why(wrong: ProcessSpec, words: str) -> None:
    specs = [wrong, spec("p1", "answerer")]
    try:
        results = run_processes(specs, import_paths=[MACHINES], timeout_s=1)
    except RunAborted as error:
        text = str(error)
    else:
        assert results[0].exit_code == SetupError.exit_code
        text = results[0].stderr
    assert words in text


def test_leaving_a_deployment_ends_every_process_by_its_pid(tmp_path: Path) -> None:
    with Deployment(agreeing(3, 10**9), import_paths=[MACHINES]) as deployment:
        deployment.start()
        pids = [deployment.pid(NodeId(f"p{index}")) for index in range(3)]
        folder = deployment.folder
        assert all(is_running(pid) for pid in pids)
        assert folder.stat().st_mode & 0o777 == 0o700
        for name in ("p0.key", "p0.seed"):
            assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert not any(is_running(pid) for pid in pids)
    assert not folder.exists()


def test_processes_end_when_their_supervisor_dies(tmp_path: Path) -> None:
    """Nobody should find parties of last week's run on his machine."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(MACHINES)!r})
from test_node import agreeing, MACHINES
from veilgrid.node.local import Deployment
from pathlib import Path
deployment = Deployment(agreeing(2, 10**9), folder=Path({str(tmp_path)!r}), import_paths=[MACHINES])
deployment.start()
print(*(deployment.pid(f"p{{i}}") for i in range(2)), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        supervisor.kill()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_running(pid) for pid in pids)


def test_a_machine_hears_the_supervisor_as_any_other_peer() -> None:
    with Deployment([spec("p0", "listener")], import_paths=[MACHINES]) as deployment:
        deployment.start()
        for number in range(3):
            deployment.post(NodeId("p0"), Vote(number, 10 * number))
        assert deployment.wait_until(lambda: len(deployment.outcomes(NodeId("p0"))) == 3, 10)
        assert deployment.outcomes(NodeId("p0"), tuple[str, int]) == [
            ("supervisor", 0),
            ("supervisor", 10),
            ("supervisor", 20),
        ]


def test_signers_and_keys_reach_the_machines_that_ask_for_them() -> None:
    for results in (
        run_processes([spec("a", "signing"), spec("b", "signing")], import_paths=[MACHINES]),
        run_in_process([spec("a", "signing"), spec("b", "signing")]),
    ):
        assert [result.outcomes for result in results] == [[True], [True]]


def test_a_process_that_is_asked_to_terminate_ends_in_good_order(tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    endless = {"rounds": 10**9}
    specs = [spec("p0", "agreement", endless, audit=audit), spec("p1", "agreement", endless)]
    with Deployment(specs, import_paths=[MACHINES]) as deployment:
        deployment.start()
        assert deployment.wait_until(lambda: "started" in audit.read_text(), 10)
        os.kill(deployment.pid(NodeId("p0")), signal.SIGHUP)
        assert deployment.wait_until(lambda: audit.read_text().count('"connected"') == 2, 10)
        os.kill(deployment.pid(NodeId("p0")), signal.SIGTERM)
        assert deployment.wait_until(lambda: not deployment.is_alive(NodeId("p0")), 10)
        results = deployment.stop()
    assert [(result.exit_code, result.stderr) for result in results] == [(0, ""), (0, "")]
    assert results[0].octets_sent > 0


def test_a_kernel_that_runs_on_does_not_keep_its_process_alive() -> None:
    began = time.monotonic()
    [result] = run_processes([spec("p0", "stubborn")], import_paths=[MACHINES])
    assert result.outcomes == [0]
    assert time.monotonic() - began < 50
    assert result.peak_memory_octets > 10 << 20


def test_what_the_supervisor_says_is_checked_like_any_message() -> None:
    with Deployment([spec("p0", "listener")], import_paths=[MACHINES]) as deployment:
        deployment.start()
        deployment.post(NodeId("p0"), Stray(1))
        deployment.wait_until(lambda: not deployment.is_alive(NodeId("p0")), 10)
        [result] = deployment.stop()
    assert result.exit_code == 4
    assert "no known message" in result.stderr


def test_certificates_are_replaced_while_the_processes_work() -> None:
    with Deployment(agreeing(3, 2500), import_paths=[MACHINES]) as deployment:
        deployment.start()
        for turn in range(6):
            deployment.rotate(NodeId(f"p{turn % 3}"))
            deployment.wait(0.1)
        assert deployment.wait(30)
        results = deployment.stop()
    assert len({tuple(result.outcomes) for result in results}) == 1
    assert all((result.exit_code, result.stderr) == (0, "") for result in results)


def test_the_audit_log_tells_who_came_and_went(tmp_path: Path) -> None:
    with Deployment(
        [spec("p0", "answerer", audit=tmp_path / "p0.audit"), spec("p1", "answerer")],
        import_paths=[MACHINES],
    ) as deployment:
        deployment.start()
        assert deployment.wait(10)
        deployment.kill(NodeId("p1"))
        deployment.wait_until(lambda: "disconnected" in (tmp_path / "p0.audit").read_text(), 10)
        deployment.stop()
    lines = (tmp_path / "p0.audit").read_text().splitlines()
    entries = [json.loads(line.partition(" ")[2]) for line in lines]
    kinds = [entry["kind"] for entry in entries]
    assert kinds == ["connected", "started", "decided", "disconnected"]
    assert entries[0]["peer"] == entries[3]["peer"] == "p1"
    assert read_audit(tmp_path / "p0.audit")[1] == 4


def test_a_process_that_cannot_write_its_audit_log_raises_an_alarm_and_ends(
    tmp_path: Path,
) -> None:
    specs = [spec("p0", "answerer", audit=tmp_path / "absent" / "audit"), spec("p1", "answerer")]
    with pytest.raises(RunAborted, match="ALARM: audit log"):
        run_processes(specs, import_paths=[MACHINES])
