"""`veilgrid node` by processes: what `init` writes runs, outlives kill -9, and refuses nonsense."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from small_day import small_day, small_scenario

from veilgrid.admm.reference import central
from veilgrid.grid.lindistflow import Limits
from veilgrid.node.attest.software import SoftwareProvider

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "veilgrid"]
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
TOTAL_S = 240.0


class Crew:
    """Processes that were started here, each ended by its own pid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.homes: dict[str, Path] = {}
        self.running: dict[str, subprocess.Popen[str]] = {}

    def part(self, nodes: Sequence[str]) -> None:
        """Give each process a folder of its own with what its host needs, as on several hosts."""
        whole = self.folder.with_name("whole")
        self.folder.rename(whole)
        self.folder.mkdir()
        for node in nodes:
            home = self.homes[node] = self.folder / "hosts" / node
            shutil.copytree(
                whole, home, ignore=shutil.ignore_patterns("keys", "authority", "sites")
            )
            shutil.rmtree(home / "nodes")
            own = [f"nodes/{node}.toml", "keys/software.root", f"sites/{node}"]
            own += [str(key.relative_to(whole)) for key in (whole / "keys").glob(f"{node}.*")]
            for name in own:
                (home / name).parent.mkdir(exist_ok=True)
                if (whole / name).is_dir():
                    shutil.copytree(whole / name, home / name)
                elif (whole / name).exists():
                    shutil.copy2(whole / name, home / name)
        shutil.rmtree(whole)

    def start(self, node: str, *options: str) -> None:
        home = self.homes.get(node, self.folder)
        with (self.folder / f"{node}.log").open("a") as log:
            self.running[node] = subprocess.Popen(
                [*COMMAND, "node", str(home / "nodes" / f"{node}.toml"), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env=ENVIRONMENT,
            )

    def log(self, node: str) -> str:
        return (self.folder / f"{node}.log").read_text()

    def wait_for(self, node: str, text: str) -> None:
        deadline = time.monotonic() + TOTAL_S
        while text not in self.log(node):
            assert time.monotonic() < deadline, f"no {text!r} in\n{self.log(node)}"
            assert self.running[node].poll() is None, self.log(node)
            time.sleep(0.05)

    def kill(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            os.kill(self.running[node].pid, signal.SIGKILL)
            self.running.pop(node).wait(10)

    def ended(self) -> dict[str, int]:
        return {node: process.wait(TOTAL_S) for node, process in self.running.items()}

    def end(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait(10)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    made = Crew(tmp_path / "grid")
    yield made
    made.end()


def free_ports(count: int) -> int:
    """Return the first of so many ports in a row that nobody listens on."""
    for base in range(21_000 + os.getpid() % 5000, 32_000, count):
        try:
            for port in range(base, base + count):
                with socket.socket() as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind(("127.0.0.1", port))
        except OSError:
            continue
        return base
    raise AssertionError("no free ports")


def scaffolded(crew: Crew, *options: str) -> list[str]:
    """Write scenario and deployment; return the names of its processes."""
    scenario = crew.folder.parent / "small"
    scenario.mkdir()
    small_scenario().write(scenario)
    port = str(free_ports(10))
    told = ["init", str(crew.folder), "--scenario", str(scenario), "--base-port", port, *options]
    done = subprocess.run([*COMMAND, *told, "--json"], capture_output=True, text=True, check=True)
    return [one["node"] for one in json.loads(done.stdout)["processes"]]


def refused(*arguments: str) -> tuple[int, str]:
    """Return exit code and standard error of a process that does not start."""
    done = subprocess.run(
        [*COMMAND, "node", *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
    )
    return done.returncode, done.stderr


def test_a_day_from_files_goes_on_after_kill_9_of_half_of_it(crew: Crew, tmp_path: Path) -> None:
    """Who deploys must be able to lose any process, operator and edge devices included."""
    nodes = scaffolded(crew, "--sites", "1", "--workers", "1")
    options = ("--once", "--linger", "4", "--out", str(tmp_path / "out"))
    for node in nodes:
        crew.start(node, *options)
    crew.wait_for("operator", "step 3 ")
    crew.kill(["operator", "site-1", "worker-1", "validator-1"])
    for node in ("operator", "site-1", "worker-1"):
        crew.start(node, *options)
    codes = crew.ended()
    assert codes == dict.fromkeys(codes, 0), crew.log("operator")
    assert "the day goes on" in crew.log("operator")
    day = small_day()
    found = json.loads((tmp_path / "out" / "operator.json").read_text())
    optimum = day.cost(central(day, Limits.of(day.network)).setpoints)
    assert found["status"] == "converged"
    assert found["cost"] == pytest.approx(optimum, rel=2e-4)
    assert found["excluded"] == []
    told: list[dict[str, Any]] = json.loads((tmp_path / "out" / "site-1.json").read_text())["sites"]
    assert sum(round(1e6 * site["payment"]) for site in told) == 0
    exchange = found["cost"] - sum(site["cost"] for site in told)
    assert exchange == pytest.approx(-told[0]["payment"], rel=1e-2)
    assert oct((tmp_path / "out" / "site-1.json").stat().st_mode)[-3:] == "600"


def test_a_sealed_day_from_files_goes_on_after_kill_9_and_is_recorded(
    crew: Crew, tmp_path: Path
) -> None:
    """Nobody is named or left out: a site that restarts is not one that refuses."""
    nodes = scaffolded(crew, "--sites", "2", "--scheme", "sealed", "--validators", "4")
    shutil.rmtree(tmp_path / "small")  # Nobody has it: each reads the register and its own sites.
    bid = crew.folder / "sites" / "site-2" / "devices.csv"
    assert bid.read_text().count(",50,60,") == 1
    bid.write_text(bid.read_text().replace(",50,60,", ",30,60,"))  # Its owner's secret.
    crew.part(nodes)
    assert not list(crew.homes["party-1"].glob("sites/**/*.csv"))
    assert [path.name for path in crew.homes["site-1"].glob("sites/*")] == ["site-1"]
    assert [node for node in nodes if node.startswith("party")] == ["party-1", "party-2", "party-3"]
    options = ("--once", "--linger", "2", "--out", str(tmp_path / "out"))
    for node in nodes:
        crew.start(node, *options)
    crew.wait_for("site-1", "the day begins")
    journal = crew.homes["site-1"] / "state" / "site-1" / "small.journal"
    deadline = time.monotonic() + TOTAL_S
    while journal.stat().st_size < 150:  # It says that it takes part before it says anything.
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lost = ["site-1", "party-2", "validator-1", "operator"]
    crew.kill(lost)
    assert not (tmp_path / "out" / "site-1.json").exists()
    for node in lost:
        crew.start(node, *options)
    codes = crew.ended()
    assert codes == dict.fromkeys(codes, 0), crew.log("party-1")
    assert "the day goes on" in crew.log("site-1")
    devices: tuple[Any, ...] = small_scenario().devices
    bid_devices = (devices[0], replace(devices[1], cost_linear=30.0))
    day = replace(small_scenario(), devices=bid_devices).day()
    told = [json.loads((tmp_path / "out" / f"site-{n}.json").read_text()) for n in (1, 2)]
    assert {one["status"] for one in told} == {"converged"}
    sites = [site for one in told for site in one["sites"]]
    plan = central(day, Limits.of(day.network)).setpoints
    costs = sum(site.cost(x) for site, x in zip(day.sites, plan, strict=True))
    assert sum(site["cost"] for site in sites) == pytest.approx(costs, rel=2e-2)
    assert {site["site"] for site in sites} == {str(site.name) for site in day.sites}
    assert all(site["payment"] is not None for site in sites)
    found = json.loads((tmp_path / "out" / "operator.json").read_text())["sites"]
    assert {(one["site"], one["payment"]) for one in found} == {
        (one["site"], one["payment"]) for one in sites
    }
    assert {one["pledge"] for one in found} == {"as paid"}
    for node in ("validator-1", "validator-4"):
        ledger = tmp_path / "out" / f"{node}.ledger.json"
        done = subprocess.run([*COMMAND, "verify", str(ledger), "--json"], capture_output=True)
        assert (done.returncode, json.loads(done.stdout)["accepted"]) == (0, True)


def test_the_next_day_is_planned_with_the_same_keys(crew: Crew, tmp_path: Path) -> None:
    """Days follow each other; nobody takes an old journal for the new day."""
    nodes = scaffolded(crew, "--sites", "1", "--scheme", "sealed")
    costs = []
    for name, cost in (("small", 50.0), ("dearer", 70.0)):
        if name != "small":
            devices: tuple[Any, ...] = small_scenario().devices
            changed = (devices[0], replace(devices[1], cost_linear=cost))
            (tmp_path / name).mkdir()
            replace(small_scenario(), name=name, devices=changed).write(tmp_path / name)
            told = ["init", str(crew.folder), "--next-day", "--scenario", str(tmp_path / name)]
            subprocess.run([*COMMAND, *told], check=True)
        for node in nodes:
            crew.start(node, "--once", "--linger", "1", "--out", str(tmp_path / "out"))
        assert set(crew.ended().values()) == {0}, crew.log("party-1")
        found = json.loads((tmp_path / "out" / "site-1.json").read_text())
        assert found["day"] == ("small" if name == "small" else "dearer run 2")
        costs.append(sum(site["cost"] for site in found["sites"]))
    assert costs[1] < 0.9 * costs[0]  # The dearer generator runs less.


def test_a_party_whose_evidence_does_not_fit_ends_a_sealed_day_by_name(crew: Crew) -> None:
    """Its program may store shares: nobody computes with it, and the owner hears who it was."""
    nodes = scaffolded(crew, "--sites", "1", "--scheme", "sealed")
    directory = crew.folder / "deployment.toml"
    assert "attested = true" in directory.read_text()
    directory.write_text(directory.read_text().replace("degree = ", "patience_s = 1\ndegree = "))
    SoftwareProvider.create(crew.folder / "keys" / "foreign.root")
    settings = crew.folder / "nodes" / "party-2.toml"
    settings.write_text(settings.read_text().replace("software.root", "foreign.root"))
    for node in nodes:
        crew.start(node, "--once", "--linger", "1")
    codes = crew.ended()
    for node in nodes:
        if node != "party-2":
            assert codes[node] == 5, crew.log(node)
            assert "party-2" in crew.log(node)


def test_what_is_wrong_is_said_with_its_exit_code(crew: Crew) -> None:
    """A process that waits for ever, or says one fault at a time, wastes an evening."""
    nodes = scaffolded(crew, "--sites", "1", "--workers", "1", "--parties", "3")
    files = {node: str(crew.folder / "nodes" / f"{node}.toml") for node in nodes}
    code, text = refused(files["party-1"])
    assert (code, "nothing to do for a process of role party" in text) == (3, True)
    code, text = refused(files["worker-1"], "--wait", "0.5")
    assert (code, "no connection to" in text) == (4, True)
    directory = crew.folder / "deployment.toml"
    directory.write_text(directory.read_text().replace('"b"', '"nowhere"').replace("masked", "x"))
    code, text = refused(files["worker-1"])
    assert code == 2
    for part in ("key scheme", "nowhere", "edge device of bus b"):
        assert part in text
    with socket.socket() as taken:
        directory.write_text(
            directory.read_text().replace('"nowhere"', '"b"').replace('"x"', '"masked"')
        )
        port = next(
            int(line.removeprefix("port = "))
            for line in directory.read_text().splitlines()
            if line.startswith("port = ")
        )
        taken.bind(("127.0.0.1", port))
        taken.listen()
        code, text = refused(files["operator"])
    assert (code, "choose a free port" in text) == (3, True)
