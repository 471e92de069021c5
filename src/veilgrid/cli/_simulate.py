"""``veilgrid simulate``: a masked day of the whole system, simulated, with faults [day 6]."""

import json
import secrets
from pathlib import Path
from typing import Any

import click
import msgspec

from veilgrid.cli._rehearsed import rehearsed
from veilgrid.config import load
from veilgrid.errors import Finding, InputError
from veilgrid.report.folders import open_scenario
from veilgrid.sim.day import SimulatedDay, agreement_for, simulate_day
from veilgrid.sim.day_faults import Faults, check_faults


@click.command()
@click.argument("scenario")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Replay this run exactly. Default: a fresh seed, printed.",
)
@click.option(
    "--faults",
    "faults_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of what goes wrong; see examples/faults.toml. Default: nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def simulate(scenario: str, seed: int | None, faults_path: Path | None, as_json: bool) -> int:
    """Run one masked day of SCENARIO on a simulated network, with faults and liars.

    Sites, workers, validators and the operator run as they do in processes; the network, the
    clocks and the crashes are simulated. The same seed and faults take the same steps.
    """
    day = open_scenario(scenario).day()
    faults = _faults(faults_path)
    agreement = agreement_for(day, faults)
    nodes = (*agreement.validators, *agreement.followers)
    check_faults(faults, nodes, agreement.buses, str(faults_path))
    if not day.flexible:
        raise InputError(
            [Finding(scenario, "no site has a choice", "there is nothing to simulate")]
        )
    chosen = secrets.randbits(31) if seed is None else seed
    if not as_json:
        click.echo(f"seed {chosen}: simulating {len(nodes)} processes", err=True)
    attest = None
    if faults.attested:
        wrong = {one.node: one.kind for one in faults.evidence}
        attest = rehearsed(wrong, agreement.validators, chosen)
    found = simulate_day(day, chosen, faults, attest=attest)
    is_wanted = found.outcome == "converged" and not found.violations
    if as_json:
        click.echo(json.dumps(_summary(found, faults)))
    else:
        _show(found)
    return 0 if is_wanted else 1


def _faults(path: Path | None) -> Faults:
    if path is None:
        return Faults()
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError([Finding(str(path), "is no UTF-8 text")]) from None
    return load(text, Faults, str(path))


def _summary(found: SimulatedDay, faults: Faults) -> dict[str, Any]:
    result = found.result
    return {
        "seed": found.seed,
        "digest": found.digest,
        "faults": msgspec.to_builtins(faults),
        "outcome": found.outcome,
        "violations": list(found.violations),
        "events": found.step_count,
        "crashes": found.crash_count,
        "simulated_seconds": found.seconds,
        "cost": result.cost if result is not None else None,
        "steps": result.steps if result is not None else None,
        "iterations": result.iterations if result is not None else None,
        "excluded": list(result.excluded) if result is not None else [],
        "refused_evidence": found.refused,
        "replaced_workers": list(result.dropped_workers) if result is not None else [],
    }


def _show(found: SimulatedDay) -> None:
    result = found.result
    click.echo(f"outcome     {found.outcome}")
    if result is not None and result.cost is not None:
        click.echo(f"cost        {result.cost:,.2f}")
    if result is not None:
        click.echo(f"iterations  {result.iterations}, {result.steps} steps on the ledger")
        click.echo(f"excluded    {', '.join(result.excluded) or 'nobody'}")
        click.echo(f"replaced    {', '.join(dict.fromkeys(result.dropped_workers)) or 'nobody'}")
    for who, why in found.refused.items():
        click.echo(f"refused     {who}: {why}")
    click.echo(f"events      {found.step_count}, {found.crash_count} crashes")
    click.echo(f"digest      {found.digest}")
    for violation in found.violations:
        click.echo(f"VIOLATED    {violation}")
