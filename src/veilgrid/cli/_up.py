"""``veilgrid up``: a masked day by real processes on this machine, with a dashboard [day 7].

What runs where, and what was not tried, is in [docs/threat-model.md 1].
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import click

from veilgrid.cli._deployed import DayDeployment, Size, deployed, result_told
from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.grid.scenario import BUNDLED_DAY
from veilgrid.report.folders import open_scenario
from veilgrid.roles.ledger_message import DayResult, StepEnded

_DAY_TIMEOUT_S = 1800.0
EVENTS = "events.jsonl"
RESULT = "result.json"


@click.command()
@click.argument("scenario", default=BUNDLED_DAY)
@click.option("--validators", default=4, help="3f + 1 of them bear f liars. Default: 4.")
@click.option("--workers", default=2, help="Third parties that solve. Default: 2.")
@click.option("--sites", "site_processes", default=3, help="Processes of edge devices. Default: 3.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for events and the result.")
@click.option("--once", is_flag=True, help="End when the day has ended, as --json does.")
@click.option("--seed", type=int, help="Accepted by every verb; real processes are not repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when all run.")
def up(
    scenario: str,
    validators: int,
    workers: int,
    site_processes: int,
    out: Path | None,
    once: bool,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Run a masked day of SCENARIO by processes on this machine, with mutual TLS.

    Operator, validators, workers and the sites' edge devices are processes of their own. Any
    worker and f of 3f + 1 validators may be killed, and the day ends the same. Ctrl-C ends all.

    Examples:
      veilgrid up six-bus

      veilgrid up my-feeder/2026-06-01 --out runs/day --once
    """
    day = open_scenario(scenario).day()
    size = _size(validators, workers, site_processes, len(day.flexible))
    with _stoppable(), tempfile.TemporaryDirectory(prefix="veilgrid-up-") as temporary:
        folder = out if out is not None else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        events = _Events(folder / EVENTS)
        try:
            with _dashboard(folder) as url, deployed(day, size) as running:
                _tell(running, url, folder, as_json)
                ended = _watch(running, events)
                result = _show(ended, folder / RESULT, running.seconds)
                if not (once or as_json):
                    click.echo("the day has ended; Ctrl-C ends all processes")
                    while True:
                        running.deployment.wait(0)
                        time.sleep(0.5)
        except KeyboardInterrupt:
            click.echo("stopped; all processes have ended", err=True)
            result = _read(folder / RESULT)
        return 0 if result is not None and _is_wanted(result) else 1


def _is_wanted(result: dict[str, Any]) -> bool:
    return bool(result["status"] == "converged" and result["ac_check"]["passed"])


def _read(path: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def _size(validators: int, workers: int, site_processes: int, flexible: int) -> Size:
    findings = []
    if validators < 4 or validators % 3 != 1:
        findings.append(Finding("--validators", f"is {validators}, must be 3f + 1", "take 4"))
    if workers < 1:
        findings.append(Finding("--workers", f"is {workers}", "take 2"))
    if site_processes < 1:
        findings.append(Finding("--sites", f"is {site_processes}", "take 3"))
    if not flexible:
        findings.append(Finding("SCENARIO", "no site has a choice", "there is nothing to plan"))
    if findings:
        raise InputError(findings)
    return Size(validators=validators, workers=workers, site_processes=site_processes)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end this process in order, and its processes with it."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    held = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, former in held.items():
            signal.signal(number, former)


@contextmanager
def _dashboard(folder: Path) -> Iterator[str]:
    """Start the dashboard of a folder on a free port; end it when done."""
    command = [sys.executable, "-m", "veilgrid", "serve", str(folder)]
    process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
        [*command, "--port", "0", "--read-only", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise SetupError(f"the dashboard did not start (exit code {process.wait(10)})")
        yield str(json.loads(line)["url"])
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


class _Events:
    """The file that the dashboard follows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event."""
        moment = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "time": moment, **fields}) + "\n")


def _tell(running: DayDeployment, url: str, folder: Path, as_json: bool) -> None:
    """Say what runs, where, and what can be done."""
    processes = running.processes
    if as_json:
        told = {"processes": processes, "dashboard": url, "out": str(folder)}
        click.echo(json.dumps(told))
        sys.stdout.flush()
        return
    for one in processes:
        click.echo(f"{one['node']:<14}{one['role']:<11}pid {one['pid']}")
    victim = next(one["pid"] for one in processes if one["role"] == "validator")
    click.echo(f"dashboard: {url}")
    click.echo(f"try: kill -9 {victim}, and the day goes on; Ctrl-C ends all")


def _watch(running: DayDeployment, events: _Events) -> DayResult | None:
    """Wait for the end of the day, and tell the dashboard."""
    alive = {str(one["node"]): str(one["role"]) for one in running.processes}
    for name, role in alive.items():
        events.write("process", source=name, status="running", text=role)

    def step(one: StepEnded) -> None:
        events.write(
            "iteration", source="operator", iteration=one.step, primal=one.primal, dual=one.dual
        )

    deadline = time.monotonic() + _DAY_TIMEOUT_S
    while time.monotonic() < deadline:
        is_over = running.wait(1.0, step)
        for name in [n for n in alive if not running.is_running(n)]:
            del alive[name]
            events.write("process", source=name, status="failed", text="has ended")
            click.echo(f"{name} has ended", err=True)
        if is_over or running.agreement.operator not in alive:
            break
    result = running.result
    status = result.status if result is not None else "failed"
    cost = result.cost if result is not None else None
    events.write("job", source="day", status=status, text="the day has ended", cost=cost)
    return result


def _show(result: DayResult | None, path: Path, seconds: float) -> dict[str, Any] | None:
    """Write and print how the day ended; standard output is not touched."""
    if result is None:
        click.echo("the day did not end: the operator's process has gone or time ran out", err=True)
        return None
    told = {**result_told(result), "seconds": seconds}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    cost = "unknown" if result.cost is None else f"{result.cost:,.2f}"
    what = f"cost {cost}, {result.iterations} iterations, {seconds:.1f} s by processes"
    click.echo(f"{result.status}: {what}", err=True)
    click.echo(f"result: {path}", err=True)
    return told
