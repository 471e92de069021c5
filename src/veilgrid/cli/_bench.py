"""``veilgrid bench``: our figures beside a peer's in the same run [contract]."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import BusId, Network
from veilgrid.grid.scenario import BUNDLED_DAY, Scenario
from veilgrid.report.folders import open_scenario

Row = dict[str, Any]

SIZES = (60, 250, 1000)
"""Sites of `bench dispatch`, reached by hanging copies of one feeder under its substation."""


def copies(scenario: Scenario, count: int) -> Scenario:
    """Hang ``count`` copies of a feeder under one substation."""
    network = scenario.network
    slack = network.slack_bus

    def renamed(bus: BusId, copy: int) -> BusId:
        return bus if bus == slack else BusId(f"{copy}.{bus}")

    root = [bus.name for bus in network.buses].index(slack)
    others = np.arange(len(network.buses)) != root
    wide = Network(
        buses=(
            network.buses[root],
            *(
                replace(bus, name=renamed(bus.name, copy))
                for copy in range(count)
                for bus in network.buses
                if bus.name != slack
            ),
        ),
        branches=tuple(
            replace(branch, parent=renamed(branch.parent, copy), child=renamed(branch.child, copy))
            for copy in range(count)
            for branch in network.branches
        ),
        base_mva=network.base_mva,
        base_kv=network.base_kv,
        slack_bus=slack,
        slack_voltage_pu=network.slack_voltage_pu,
        voltage_min_pu=network.voltage_min_pu,
        voltage_max_pu=network.voltage_max_pu,
        voltage_margin_pu=network.voltage_margin_pu,
    )

    def stacked(values: Any) -> Any:
        return np.vstack([count * values[root], *([values[others]] * count)])

    devices: list[Any] = [
        replace(device, name=f"{copy}.{device.name}", bus=renamed(device.bus, copy))  # type: ignore[type-var]
        for copy in range(count)
        for device in scenario.devices
    ]
    return replace(
        scenario,
        name=f"{scenario.name} x {count}",
        network=wide,
        devices=tuple(devices),
        load_p_mw=stacked(scenario.load_p_mw),
        load_q_mvar=stacked(scenario.load_q_mvar),
    )


def measured(scenario: str, scheme: str, count: int) -> Row:
    """Plan one day in this process; return seconds, peak memory, iterations and cost."""
    import resource

    from veilgrid.roles.operator import SCHEMES, plan_cost

    warm = open_scenario("six-bus").day()
    SCHEMES[scheme](warm, Limits.of(warm.network), None, None)
    day = copies(open_scenario(scenario), count).day()
    limits = Limits.of(day.network)
    begin = time.perf_counter()
    outcome = SCHEMES[scheme](day, limits, None, None)
    seconds = time.perf_counter() - begin
    return {
        "sites": len(day.sites),
        "seconds": seconds,
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
        "iterations": outcome.iteration_count,
        "status": str(outcome.status),
        "cost": plan_cost(scheme, day, outcome) if outcome.setpoints else None,
    }


def _in_child(scenario: str, scheme: str, count: int, timeout_s: float) -> Row | None:
    """Run :func:`measured` in a fresh process, so that its peak memory is its own."""
    code = (
        "import json, sys; from veilgrid.cli._bench import measured; "
        "print(json.dumps(measured(sys.argv[1], sys.argv[2], int(sys.argv[3]))))"
    )
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-c", code, scenario, scheme, str(count)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        raise SetupError(f"benchmark of {scheme} failed: {done.stderr.strip()[-500:]}")
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def bench_dispatch(
    scenario: str, sizes: tuple[int, ...], schemes: tuple[str, ...], timeout_s: float
) -> list[Row]:
    """Time each scheme beside ``central`` at several sizes."""
    feeder = len(open_scenario(scenario).network.buses) - 1
    rows: list[Row] = []
    for size in sizes:
        count = max(1, round(size / feeder))
        peer = _in_child(scenario, "central", count, timeout_s)
        if peer is None:
            raise SetupError(f"central took more than {timeout_s:.0f} s at {size} sites")
        for scheme in schemes:
            ours = peer if scheme == "central" else _in_child(scenario, scheme, count, timeout_s)
            rows.append(_row(scheme, ours, peer, timeout_s))
            click.echo(f"{rows[-1]['what']}: {rows[-1]['status']}", err=True)
    return rows


def _row(scheme: str, ours: Row | None, peer: Row, timeout_s: float) -> Row:
    what = f"{scheme}, {peer['sites']} sites"
    blank = {"what": what, "peer": peer["seconds"], "unit": "s", "peer_name": "central"}
    memory = {"peer_memory_mib": peer["memory_mib"]}
    if ours is None:
        nothing = {"ours": None, "ratio": None, "memory_mib": None, "iterations": None}
        return {**blank, **memory, **nothing, "gap": None, "status": f"over {timeout_s:.0f} s"}
    known = ours["cost"] is not None and bool(peer["cost"])
    return {
        **blank,
        **memory,
        "ours": ours["seconds"],
        "ratio": peer["seconds"] / ours["seconds"],
        "memory_mib": ours["memory_mib"],
        "iterations": ours["iterations"],
        "gap": (ours["cost"] - peer["cost"]) / abs(peer["cost"]) if known else None,
        "status": ours["status"],
    }


def _asked(sites: str, schemes: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Read the lists of sizes and schemes; every entry that is none is a finding."""
    from veilgrid.roles.operator import SCHEMES

    sizes = [size.strip() for size in sites.split(",")]
    names = [name.strip() for name in schemes.split(",")]
    findings = [
        Finding("--sites", f"{size or 'nothing'} is no number of sites", "use 60,250")
        for size in sizes
        if not size.isdecimal() or int(size) < 1
    ]
    findings += [
        Finding("--schemes", f"{name or 'nothing'} is no scheme", f"use {list(SCHEMES)}")
        for name in names
        if name not in SCHEMES
    ]
    if findings:
        raise InputError(findings)
    return tuple(int(size) for size in sizes), tuple(names)


@click.group()
def bench() -> None:
    """Measure veilgrid beside its peers in the same run."""


def _print(name: str, rows: list[Row], as_json: bool, columns: tuple[str, ...]) -> int:
    if as_json:
        click.echo(json.dumps({"name": name, "rows": rows}))
        return 0
    table = Table(title=f"bench {name}; ratio = peer / ours, above one is better")
    for column in columns:
        table.add_column(column, justify="left" if column in ("what", "status") else "right")
    for row in rows:
        values = [row.get(column) for column in columns]
        table.add_row(
            *("-" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        )
    Console(highlight=False, width=None if sys.stdout.isatty() else 130).print(table)
    return 0


@bench.command()
@click.option("--scenario", default=BUNDLED_DAY, show_default=True, help="Day to plan.")
@click.option("--sites", default=",".join(map(str, SIZES)), show_default=True, help="Sizes.")
@click.option(
    "--schemes",
    default="alone,central,exchange,neighbour",
    show_default=True,
    help="Comma-separated.",
)
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds a run.")
@click.option("--seed", type=int, help="Accepted by every verb; nothing here is random.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dispatch(
    scenario: str,
    sites: str,
    schemes: str,
    timeout_s: float,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Time the schemes on copies of a feeder, beside one central operator."""
    rows = bench_dispatch(scenario, *_asked(sites, schemes), timeout_s)
    columns = ("what", "ours", "peer", "ratio", "unit", "memory_mib", "iterations", "gap", "status")
    return _print("dispatch", rows, as_json, columns)


@bench.command()
@click.option("--growth", is_flag=True, help="Instead: growth with inputs and with parties.")
@click.option(
    "--update",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --growth: put picture and table into this page.",
)
@click.option("--seed", type=int, help="Accepted by every verb; a benchmark draws afresh.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def mpc(
    growth: bool,
    update: Path | None,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Time secure computation between processes over TLS, beside MPyC."""
    from veilgrid.cli._bench_mpc import bench_mpc

    if growth or update:
        from veilgrid.cli import _bench_growth

        return _growth("mpc-growth", _bench_growth, update, as_json)
    measure: Callable[[], list[Row]] = bench_mpc
    columns = ("what", "ours", "peer", "ratio", "unit")
    return _print("mpc", measure(), as_json, columns)


def _growth(name: str, measure: Any, page: Path | None, as_json: bool) -> int:
    """Measure how one kind of work grows: ``measure`` has ``bench_growth`` and ``update``."""
    rows = measure.bench_growth(told=lambda text: click.echo(text, err=True))
    for path in measure.update(page, rows) if page else []:
        click.echo(f"wrote {path}", err=True)
    columns = ("what", "parties", "count", "seconds", "megabytes", "rounds", "peak_megabytes")
    return _print(name, rows, as_json, columns)


@bench.command()
@click.option("--requests", default=300, show_default=True, help="One by one, for the median.")
@click.option("--operations", default=20_000, show_default=True, help="Batched, for the rate.")
@click.option("--validators", default=4, show_default=True, help="3f + 1 of them.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "pbft", "cometbft"]),
    default="auto",
    show_default=True,
    help="auto: ours, beside CometBFT where it is installed.",
)
@click.option("--seed", type=int, help="Accepted by every verb; nothing here is random.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def ledger(
    requests: int,
    operations: int,
    validators: int,
    engine: str,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Time agreement between validators over TLS, with synced journals."""
    from veilgrid.cli._bench_ledger import bench_ledger

    if validators < 4 or (validators - 1) % 3:
        raise click.BadParameter("must be 3f + 1: 4, 7, 10, ...", param_hint="--validators")
    columns = ("what", "ours", "peer", "ratio", "unit", "percentile_95", "megabytes", "memory_mib")
    rows = bench_ledger(
        requests, operations, validators, engine, lambda text: click.echo(text, err=True)
    )
    return _print("ledger", rows, as_json, columns)


@bench.command()
@click.option("--devices", type=click.IntRange(200), default=10_000, show_default=True)
@click.option("--seed", type=int, help="Accepted by every verb; the fleet is always the same.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def capacity(devices: int, seed: int | None, as_json: bool) -> int:  # noqa: ARG001 - contract
    """Time what a fleet can be relied on for, between processes over TLS, and a refresh of it."""
    from veilgrid.cli._bench_rounds import bench_capacity

    columns = ("what", "ours", "peer", "ratio", "unit", "ours_megabytes", "rounds")
    return _print("capacity", bench_capacity(devices), as_json, columns)


@bench.command()
@click.option("--sources", default="1000,10000,100000", show_default=True, help="Sizes.")
@click.option("--growth", is_flag=True, help="Instead: rounds of all kinds by number of inputs.")
@click.option(
    "--update",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --growth: put picture and table into this page.",
)
@click.option("--seed", type=int, help="Accepted by every verb; the readings are always the same.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def aggregate(
    sources: str,
    growth: bool,
    update: Path | None,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Time weighted robust means between processes over TLS, and each part's share."""
    from veilgrid.cli import _bench_growth_risk
    from veilgrid.cli._bench_aggregate import bench_aggregate

    if growth or update:
        return _growth("rounds-growth", _bench_growth_risk, update, as_json)
    sizes = [size.strip() for size in sources.split(",")]
    bad = [size for size in sizes if not size.isdecimal() or int(size) < 10]
    if bad:
        problem = f"{', '.join(bad) or 'nothing'} is no number of sources"
        raise InputError([Finding("--sources", problem, "use 1000,100000")])
    columns = ("what", "ours", "peer", "ratio", "unit", "ours_megabytes", "rounds")
    return _print("aggregate", bench_aggregate(tuple(map(int, sizes))), as_json, columns)


@bench.command()
@click.option("--orders", default="5000,100000", show_default=True, help="Sizes.")
@click.option("--seed", type=int, help="Accepted by every verb; the orders are always the same.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def market(orders: str, seed: int | None, as_json: bool) -> int:  # noqa: ARG001 - contract
    """Time rounds of the market between processes over TLS."""
    from veilgrid.cli._bench_rounds import bench_market

    sizes = [size.strip() for size in orders.split(",")]
    bad = [size for size in sizes if not size.isdecimal() or int(size) < 2]
    if bad:
        problem = f"{', '.join(bad) or 'nothing'} is no number of orders"
        raise InputError([Finding("--orders", problem, "use 5000,100000")])
    columns = ("what", "ours", "peer", "ratio", "unit", "ours_megabytes", "rounds")
    return _print("market", bench_market(tuple(map(int, sizes))), as_json, columns)


@bench.command()
@click.option("--scenario", default=BUNDLED_DAY, show_default=True, help="Day to plan.")
@click.option("--sites", default="60", show_default=True, help="Sizes, comma-separated.")
@click.option("--peers", default="central,exchange,masked", show_default=True, help="Schemes.")
@click.option("--parties", type=click.IntRange(3, 7), default=3, show_default=True)
@click.option("--delay-ms", default="", help="Also with processes so far apart, e.g. 0.5,20.")
@click.option(
    "--delay-by",
    type=click.Choice(["namespaces", "relays"]),
    default="namespaces",
    show_default=True,
    help="What keeps them apart; relays need no rights.",
)
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds a run.")
@click.option("--seed", type=int, help="Accepted by every verb; a benchmark draws afresh.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sealed(
    scenario: str,
    sites: str,
    peers: str,
    parties: int,
    delay_ms: str,
    delay_by: str,
    timeout_s: float,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Time a sealed day between processes over TLS, beside schemes that see the data."""
    from veilgrid.cli._bench_distance import round_trips
    from veilgrid.cli._bench_sealed import bench_sealed

    sizes, names = _asked(sites, peers)
    delays = round_trips(delay_ms)
    rows = bench_sealed(scenario, sizes, names, parties, timeout_s, delays, delay_by)
    columns = ("what", "ours", "peer", "ratio", "unit", "iterations", "gap", "rounds", "megabytes")
    return _print("sealed", rows, as_json, (*columns, "wan_seconds", "status"))
