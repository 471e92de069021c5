"""The model of latency beside sealed days whose processes are kept apart."""

from typing import Any

import click

from veilgrid.cli._bench import Row
from veilgrid.cli._sealed import SealedRun, run_sealed
from veilgrid.errors import Finding, InputError, RunAborted, invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.node.namespaces import apart
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES

DELAY_MAX_MS = 2000.0
"""Longer round trips meet the patience of parties and sites, which then ask again."""


def round_trips(asked: str) -> tuple[float, ...]:
    """Read a list of round trips in milliseconds; every entry that is none is a finding."""
    findings, found = [], []
    for one in [part.strip() for part in asked.split(",")] if asked else []:
        try:
            value = float(one)
        except ValueError:
            value = -1.0
        if 0.0 <= value <= DELAY_MAX_MS:
            found.append(value)
        else:
            advice = f"use milliseconds from 0 to {DELAY_MAX_MS:.0f}, such as 0.5,20"
            findings.append(Finding("--delay-ms", f"{one or 'nothing'} is no round trip", advice))
    if findings:
        raise InputError(findings)
    return tuple(found)


def check_rights(by: str) -> None:
    """Raise :class:`SetupError` now, not after the first run, if processes cannot be kept apart."""
    with apart(by, [NodeId("here"), NodeId("there")], 0.0):
        pass


def predicted(seconds: float, trips: int, round_trip_ms: float) -> float:
    """Return how long a day takes whose messages travel [sealed 3.5].

    Parameters
    ----------
    seconds
        On loopback.
    trips
        Messages that wait for one another; each travels one way, half a round trip.
    round_trip_ms
        Between any two processes.
    """
    invariant(seconds >= 0.0 and trips >= 0, "time and messages are counted from zero")
    return seconds + trips * round_trip_ms / 2e3


def check_model(
    day: Day,
    *,
    parties: int,
    round_trips_ms: tuple[float, ...],
    by: str,
    timeout_s: float,
) -> list[Row]:
    """Plan the day again with its processes apart, and say what the model makes of each run.

    What the model adds to is the mean of a run on loopback before and one after, so that other
    work on the machine, which comes and goes, is in it. Where these two differ much, a row says
    little; it has both.

    Parameters
    ----------
    day
        To plan.
    parties
        Of the committee.
    round_trips_ms
        One run each.
    by
        ``namespaces`` or ``relays``.
    timeout_s
        For a run.
    """
    rows, before = [], _run(day, parties, timeout_s, None).seconds
    for round_trip_ms in round_trips_ms:
        found, told = _apart(day, parties, round_trip_ms, by=by, timeout_s=timeout_s)
        after = _run(day, parties, timeout_s, None).seconds
        rows.append(_row(len(day.sites), (before, after), found, told))
        click.echo(
            f"{round_trip_ms:g} ms by {told['by']}: {found.seconds:.2f} s; on loopback before and "
            f"after {before:.2f} and {after:.2f} s, {found.rounds} rounds, {found.trips} trips of "
            f"{told['round_trip_ms'] / 2:.3f} ms: the model says {rows[-1]['peer']:.2f} s",
            err=True,
        )
        before = after
    return rows


def _run(day: Day, parties: int, timeout_s: float, wiring: Any) -> SealedRun:
    return run_sealed(
        day,
        Limits.of(day.network),
        party_count=parties,
        degree=(parties - 1) // 2,
        timeout_s=timeout_s,
        wiring=wiring,
    )


def _apart(
    day: Day, parties: int, round_trip_ms: float, *, by: str, timeout_s: float
) -> tuple[SealedRun, Row]:
    nodes = [*(NodeId(f"party-{k}") for k in range(1, parties + 1)), SITES, PAYER_NODE]
    with apart(by, nodes, round_trip_ms / 2e3) as wiring:
        found_ms = wiring.round_trip_s() * 1e3
        told: Row = {"delay_ms": round_trip_ms, "round_trip_ms": found_ms, "by": wiring.what}
        run = _run(day, parties, timeout_s, wiring)
    if run.trips == 0:
        raise RunAborted("the day ended without a message")
    return run, told


def _row(sites: int, near: tuple[float, float], run: SealedRun, told: Row) -> Row:
    model = predicted(sum(near) / 2.0, run.trips, told["round_trip_ms"])
    return {
        "what": f"sealed, {sites} sites, {told['delay_ms']:g} ms apart, beside the model",
        "ours": run.seconds,
        "peer": model,
        "ratio": model / run.seconds,
        "peer_name": "model",
        "unit": "s",
        "sites": sites,
        "iterations": run.coordination.iteration_count,
        "status": str(run.coordination.status),
        "rounds": run.rounds,
        "trips": run.trips,
        "megabytes": run.octets_a_party / 1e6,
        "loopback_seconds": list(near),
        **told,
    }
