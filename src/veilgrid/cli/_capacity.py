"""``veilgrid capacity``: what a fleet whose devices may fail can be relied on for."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from veilgrid.cli._bulk_round import bulk_round
from veilgrid.cli._table_file import at_least_zero, cell, name_of, probability, read, refuse
from veilgrid.errors import Finding, InputError, VeilgridError
from veilgrid.grid._table import Notes, Table
from veilgrid.grid.network import Floats
from veilgrid.mpc._round import Steps
from veilgrid.mpc.bulk import BulkBatch
from veilgrid.mpc.engine import Engine
from veilgrid.risk.capacity import (
    EXACT_MAX,
    SCENARIO_COUNT_MAX,
    Bins,
    Capacity,
    History,
    bins_of,
    counted,
    tally,
)
from veilgrid.risk.capacity import dispatchable as dispatchable_capacity
from veilgrid.risk.capacity_tail import normal_quantile

USUAL: Final = "usual"
SADDLEPOINT_MIN: Final = 100
LEVELS: Final = tuple(
    np.round(np.concatenate([[0.001, 0.002, 0.005], np.linspace(0.01, 0.99, 99)]), 3)
)
_REASONS: Final = {
    "invalid": "the input is not valid (found by the check on shares)",
    "missing": "no input",
    "unreadable": "no party could read its share",
    "contradictory": "sent different messages to different parties",
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices in the order of the file, and the scenarios they may meet."""

    devices: list[str]
    capacities_kw: Floats
    scenarios: list[str]
    history: History


def read_fleet(path: Path, shocks: Path | None) -> tuple[Fleet, list[Finding]]:
    """Read FLEET.csv and SHOCKS.csv; the second result are remarks.

    Raises
    ------
    InputError
        Every broken rule, with row and column.
    """
    notes = Notes()
    table = read(path, ("device", "capacity_kw", "failure_probability"), notes)
    scenarios = _read_shocks(shocks, table, notes) if shocks else {}
    if table is None:
        refuse(notes)
        raise InputError([Finding(path.name, "holds no table")])
    if not table.rows and not notes.findings:
        notes.fault(path.name, "holds no devices", "give at least one row below the header")
    devices: list[str] = []
    seen: dict[str, int] = {}
    sizes: list[float | None] = []
    usual: list[float | None] = []
    own = [name for name in scenarios if name in table.header]
    shock_rows: dict[str, list[float | None]] = {name: [] for name in own}
    for row in table.rows:
        devices.append(name_of(table, row, "device", notes, seen))
        sizes.append(cell(table, row, "capacity_kw", at_least_zero, notes))
        usual.append(cell(table, row, "failure_probability", probability, notes))
        for name in own:
            shock_rows[name].append(cell(table, row, name, probability, notes))
    refuse(notes)
    known = ("device", "capacity_kw", "failure_probability", *own)
    for column in table.header:
        if column not in known:
            advice = "" if shocks else "give --scenarios with the probability of each"
            notes.remark(f"{path.name} row 1, column {column}", "is not used", advice)
    rest = 1.0 - sum(weight for weight, _ in scenarios.values())
    weights, rows, names = [rest], [usual], [USUAL]
    for name, (weight, everywhere) in scenarios.items():
        weights.append(weight)
        rows.append(shock_rows.get(name) or [everywhere] * len(devices))
        names.append(name)
    kept = [index for index, weight in enumerate(weights) if weight > 0]
    share = np.array([weights[index] for index in kept])
    history = History(share / share.sum(), np.array([rows[index] for index in kept], np.float64))
    fleet = Fleet(devices, np.array(sizes, np.float64), [names[index] for index in kept], history)
    return fleet, notes.remarks


def _read_shocks(
    path: Path, fleet: Table | None, notes: Notes
) -> dict[str, tuple[float, float | None]]:
    """Return by scenario its probability and, if it is the same for all, that of failure."""
    table = read(path, ("scenario", "probability"), notes)
    if table is None:
        return {}
    found: dict[str, tuple[float, float | None]] = {}
    seen: dict[str, int] = {}
    has_own = "failure_probability" in table.header
    for row in table.rows:
        name = name_of(table, row, "scenario", notes, seen)
        weight = cell(table, row, "probability", probability, notes)
        everywhere = None
        here = table.at(row.line, "scenario")
        if name in ("device", "capacity_kw", "failure_probability", USUAL):
            notes.fault(here, f"{name} is not a name for a scenario", "choose another one")
        elif fleet is not None and name not in fleet.header:
            if not has_own:
                advice = "add that column, or a column failure_probability to this file"
                notes.fault(here, f"{fleet.file} has no column {name}", advice)
            else:
                everywhere = cell(table, row, "failure_probability", probability, notes)
        found[name] = (weight or 0.0, everywhere)
    total = sum(weight for weight, _ in found.values())
    if total > 1.0 + 1e-9:
        problem = f"probabilities add up to {total:g}, at most 1"
        notes.fault(f"{path.name} column probability", problem, "the rest is the usual course")
    if len(found) >= SCENARIO_COUNT_MAX:
        most = SCENARIO_COUNT_MAX - 1
        notes.fault(path.name, f"has {len(found)} scenarios, at most {most}")
    return found


def public_bins(capacities_kw: Floats, step_kw: float | None) -> Bins:
    """Return the bins that go with a fleet's register: its bounds and its step.

    The step is the greatest one that all capacities are multiples of, unless given.
    """
    positive = capacities_kw[capacities_kw > 0]
    if not positive.size:
        return bins_of(1.0, 1.0, 1.0)
    if len(capacities_kw) <= EXACT_MAX:
        return Bins(np.unique(np.concatenate([[0.0], positive])))
    low, top = float(positive.min()), float(positive.max())
    if step_kw is None:
        units = np.rint(positive * 1e6)
        whole = bool((np.abs(units - positive * 1e6) < 1e-6 * np.maximum(units, 1.0)).all())
        fits = whole and float(units.max()) < 2**53
        step_kw = math.gcd(*(int(unit) for unit in units)) / 1e6 if fits else 0.0
    return bins_of(low, top, step_kw or 0.0)


def measure(
    fleet: Fleet, confidence: float, *, step_kw: float | None = None, seed: int | None = None
) -> tuple[dict[str, Any], Capacity]:
    """Return the JSON object of ``veilgrid capacity``, and what the pictures need."""
    bins = public_bins(fleet.capacities_kw, step_kw)
    classes = fleet.history.classes()
    count = len(fleet.devices)
    every = np.arange(count)

    def program(mpc: Engine, batch: BulkBatch) -> Steps[list[float]]:
        sums = tally(batch, classes, every, count)
        method = counted if count <= EXACT_MAX else dispatchable_capacity
        answer = yield from method(mpc, sums, bins, fleet.history, classes, confidence, LEVELS)
        kept.append(answer)
        return [answer.mean_kw, answer.capacity_kw, answer.certified_kw, answer.cvar_kw]

    kept: list[Capacity] = []
    done = bulk_round(
        b"capacity",
        bins.layout(),
        fleet.devices,
        bins.encode(fleet.capacities_kw),
        program,
        seed=seed,
    )
    answer = kept[0]
    normal = normal_quantile(answer.moments, fleet.history.weights, 1 - confidence)
    report = {
        "mean_kw": answer.mean_kw,
        "capacity_kw": answer.capacity_kw,
        "certified_kw": answer.certified_kw,
        "cvar_kw": answer.cvar_kw,
        "confidence": confidence,
        "installed_kw": answer.installed_kw,
        "normal_kw": normal * answer.unit_kw,
        "devices": count - len(done.flags),
        "rejected": [
            {"device": name, "reason": _REASONS.get(why, why)} for name, why in done.flags.items()
        ],
        "scenarios": [
            {
                "scenario": name,
                "probability": float(weight),
                "mean_kw": float(mean) * answer.unit_kw,
            }
            for name, weight, mean in zip(
                fleet.scenarios, fleet.history.weights, answer.moments.mean, strict=True
            )
        ],
        "quantiles": [
            {"probability": float(level), "kw": float(value) * answer.unit_kw}
            for level, value in zip(answer.tail.levels, answer.tail.quantiles, strict=True)
        ],
        "method": "counts" if count <= EXACT_MAX else "saddlepoint",
        "parties": 3,
        "degree": 1,
        "seconds": done.seconds,
        "intake_seconds": done.intake_seconds,
        "bytes": done.octets,
    }
    return report, answer


@click.command()
@click.argument("fleet", type=click.Path(path_type=Path))
@click.option("--confidence", type=float, default=0.99, show_default=True, help="0.5..0.9999.")
@click.option("--scenarios", type=click.Path(path_type=Path), help="CSV file of common shocks.")
@click.option("--step", "step_kw", type=float, help="All capacities are multiples of it, kW.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for result and report.")
@click.option(
    "--seed", type=click.IntRange(min=0), help="Replay this run exactly. Default: fresh randomness."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def capacity(
    fleet: Path,
    confidence: float,
    scenarios: Path | None,
    step_kw: float | None,
    out: Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Say what a FLEET whose devices may fail can be relied on for.

    FLEET is a CSV file with the columns device, capacity_kw, failure_probability and, if you like,
    one column of failure probabilities a scenario of common shocks. Capacities stay in shares.
    """
    try:
        _check_options(confidence, step_kw)
        found, remarks = read_fleet(fleet, scenarios)
        for remark in remarks:
            click.echo(f"note: {remark}", err=True)
        report, _ = measure(found, confidence, step_kw=step_kw, seed=seed)
        if EXACT_MAX < len(found.devices) < SADDLEPOINT_MIN:
            click.echo(
                f"note: with fewer than {SADDLEPOINT_MIN} devices capacity_kw is rough unless all "
                "are of a few sizes; certified_kw holds always",
                err=True,
            )
        written = _write(report, fleet.stem, out) if out else None
    except VeilgridError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps(report))
        return
    percent = f"{100 * confidence:g} %"
    for label, key in (
        ("on average", "mean_kw"),
        (f"with {percent}", "capacity_kw"),
        ("proved", "certified_kw"),
        ("worst cases", "cvar_kw"),
    ):
        click.echo(f"{label:12} {report[key]:,.2f} kW")
    click.echo(f"{'devices':12} {report['devices']} of {len(found.devices)} count")
    for one in report["rejected"]:
        click.echo(f"{'rejected':12} {one['device']}: {one['reason']}")
    click.echo(
        f"{'parties':12} 3, any 1 of them learns nothing else; {report['seconds']:.2f} s, "
        f"{report['bytes'] / 1e6:.2f} MB"
    )
    if written:
        click.echo(f"written to {written}")


def _check_options(confidence: float, step_kw: float | None) -> None:
    findings = []
    if not 0.5 <= confidence <= 0.9999:
        findings.append(Finding("--confidence", f"found {confidence}, expected 0.5..0.9999"))
    if step_kw is not None and not step_kw > 0:
        findings.append(Finding("--step", f"found {step_kw}, expected a number above 0"))
    if findings:
        raise InputError(findings)


def _write(report: dict[str, Any], name: str, out: Path) -> Path:
    from veilgrid.report.round_page import render_capacity, write_page

    return write_page(out, "capacity", report, render_capacity(name, report))
