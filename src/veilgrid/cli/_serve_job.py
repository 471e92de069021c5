"""The process that plans one day for the dashboard: events on standard output, a run folder.

    python -m veilgrid.cli._serve_job SCENARIO_FOLDER SCHEME RUN_FOLDER

Ends when its standard input closes, so that it never outlives the server, and on SIGTERM.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import msgspec

from veilgrid.admm.outcome import Progress
from veilgrid.cli._summary import is_wanted, record_of, summary_of
from veilgrid.errors import InputError, VeilgridError
from veilgrid.report.folders import open_scenario
from veilgrid.report.results import write_run
from veilgrid.roles.operator import plan_day
from veilgrid.web.feed import Event

TELL_INTERVAL_S = 0.1
"""Iterations that follow each other faster are told in part."""


def tell(event: Event) -> None:
    """Write one event."""
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()


def plan(scenario_folder: Path, scheme: str, target: Path) -> int:
    """Plan a day and write its run; return the exit code of ``veilgrid run``."""
    last = 0.0

    def sink(entry: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= TELL_INTERVAL_S:
            last = now
            numbers = entry._asdict()
            tell(Event(kind="iteration", **numbers))

    try:
        scenario = open_scenario(scenario_folder)
        begin = time.perf_counter()
        found = plan_day(scenario.day(), scheme, None, sink)
        summary = summary_of(found, scenario, time.perf_counter() - begin)
        write_run(target, record_of(found, scenario, summary))
    except InputError as error:
        tell(Event(kind="note", text="; ".join(str(one) for one in error.findings[:3])))
        return error.exit_code
    except VeilgridError as error:
        tell(Event(kind="note", text=str(error)))
        return error.exit_code
    told = {"iteration": summary["iterations"], "cost": summary["cost"]}
    tell(Event(kind="note", status=summary["status"], **told))
    return 0 if is_wanted(found) else 1


def _end_with_the_server() -> None:
    def watch() -> None:
        while os.read(0, 1024):  # Not sys.stdin: its lock would be held when this process ends.
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="standard input").start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


if __name__ == "__main__":
    _end_with_the_server()
    sys.exit(plan(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
