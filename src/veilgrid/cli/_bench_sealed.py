"""The benchmark ``sealed``: a whole day by processes, beside schemes that see the data."""

from typing import Any

import click

from veilgrid.cli._bench import Row, copies
from veilgrid.cli._bench import _in_child as in_child
from veilgrid.cli._bench_distance import check_model, check_rights, predicted
from veilgrid.cli._sealed import run_sealed
from veilgrid.errors import SetupError
from veilgrid.grid.lindistflow import Limits
from veilgrid.report.folders import open_scenario

ROUND_TRIPS_MS = {"lan": 0.5, "wan": 20.0}
"""Round trips of the places for which the model says how long a day takes."""


def bench_sealed(
    scenario: str,
    sizes: tuple[int, ...],
    peers: tuple[str, ...],
    party_count: int,
    timeout_s: float,
    round_trips_ms: tuple[float, ...] = (),
    delay_by: str = "namespaces",
) -> list[Row]:
    """Plan a day sealed, by parties as processes with mutual TLS, and beside it with peers.

    Seconds of ours run from the start of the machines to the last site's result; peers plan in
    one process. Figures for places are a model [sealed 3.5]; where ``round_trips_ms`` are given,
    the day is also planned with its processes that far apart, beside what the model says.
    """
    if round_trips_ms:
        check_rights(delay_by)
    opened = open_scenario(scenario)
    feeder = len(opened.network.buses) - 1
    rows: list[Row] = []
    for size in sizes:
        count = max(1, round(size / feeder))
        day = copies(opened, count).day()
        found = run_sealed(
            day,
            Limits.of(day.network),
            party_count=party_count,
            degree=(party_count - 1) // 2,
            timeout_s=timeout_s,
        )
        plan = found.coordination
        cost = day.cost(plan.setpoints) if plan.setpoints else None
        ours: dict[str, Any] = {
            "ours": found.seconds,
            "unit": "s",
            "sites": len(day.sites),
            "parties": party_count,
            "iterations": plan.iteration_count,
            "status": str(plan.status),
            "cost": cost,
            "rounds": found.rounds,
            "trips": found.trips,
            "megabytes": found.octets_a_party / 1e6,
            "memory_mib": found.peak_megabytes * 1e6 / 2**20,
            "processor_seconds": list(found.processor_seconds),
        }
        for place, milliseconds in ROUND_TRIPS_MS.items():
            ours[f"{place}_seconds"] = predicted(found.seconds, found.trips, milliseconds)
        click.echo(f"sealed, {len(day.sites)} sites: {plan.status}", err=True)
        rows += _beside(scenario, peers, count, ours, timeout_s)
        if round_trips_ms:
            rows += check_model(
                day,
                parties=party_count,
                round_trips_ms=round_trips_ms,
                by=delay_by,
                timeout_s=timeout_s,
            )
    return rows


def _beside(
    scenario: str, peers: tuple[str, ...], count: int, ours: Row, timeout_s: float
) -> list[Row]:
    """Return one row a peer, each with the gap to the peer's cost."""
    rows = []
    for peer in peers:
        beside = in_child(scenario, peer, count, timeout_s)
        if beside is None and peer == "central":
            raise SetupError(f"central took more than {timeout_s:.0f} s")
        seconds = beside["seconds"] if beside else None
        cost = beside["cost"] if beside else None
        rows.append(
            {
                "what": f"sealed, {ours['sites']} sites, beside {peer}",
                "peer": seconds,
                "ratio": seconds / ours["ours"] if seconds else None,
                "peer_name": peer,
                "gap": (ours["cost"] - cost) / abs(cost)
                if cost and ours["cost"] is not None
                else None,
                **ours,
            }
        )
    return rows
