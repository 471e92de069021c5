"""``veilgrid attack``: the source paper's manipulations, carried out against a scheme."""

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from veilgrid.cli._progress import shown
from veilgrid.errors import Finding, InputError
from veilgrid.grid.day import Day
from veilgrid.grid.scenario import BUNDLED_DAY
from veilgrid.report.folders import open_scenario
from veilgrid.roles.attack import CASES, PUBLISHED, AttackResult, attack_plan
from veilgrid.roles.operator import SCHEMES, plan_day
from veilgrid.secret import Randomness, SeededRandomness, SystemRandomness

DEFAULT_SCHEME = "masked"


def randomness_of(seed: int | None) -> Randomness:
    """Return the system's randomness, or a seed's for a run that can be repeated."""
    return SystemRandomness() if seed is None else SeededRandomness(seed)


def site_of(day: Day, name: str | None) -> int | None:
    """Return the index of a site named by its bus; ``None`` stays ``None``."""
    if name is None:
        return None
    names = [str(site.name) for site in day.sites]
    if name not in names:
        known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise InputError([Finding("--site", f"{name} is no bus", f"use one of {known}")])
    return names.index(name)


def attack_summary(found: AttackResult) -> dict[str, Any]:
    """Return the keys of ``attack --json`` [contract]."""
    return {
        "case": found.case,
        "scheme": found.scheme,
        "site": found.site,
        "outcome": str(found.outcome),
        "attacker_gain": found.attacker_gain,
        "cost_change_percent": found.cost_change_percent,
        "culprit": found.culprit,
        "why": found.why,
        "published": PUBLISHED[found.case],
    }


@click.command("attack")
@click.argument("scenario", default=BUNDLED_DAY)
@click.option("--case", type=click.Choice(CASES), required=True, help="What is tried.")
@click.option(
    "--scheme",
    type=click.Choice(list(SCHEMES)),
    default=DEFAULT_SCHEME,
    show_default=True,
    help="What it is tried on.",
)
@click.option("--site", help="Bus of the attacker. Default: who could gain most.")
@click.option("--seed", type=int, help="Of masks and keys.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def attack(
    scenario: str, case: str, scheme: str, site: str | None, seed: int | None, as_json: bool
) -> int:
    """Attack SCENARIO under a scheme and say how that ended: see outcome."""
    opened = open_scenario(scenario)
    day = opened.day()
    index = site_of(day, site)
    with shown(f"{opened.name}, {scheme}, {case}") as progress:
        honest = plan_day(day, scheme, None, progress)
        found = attack_plan(honest, case, randomness_of(seed), index)
    summary = attack_summary(found)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _show(summary, opened.name, opened.currency)
    return 0


def _show(summary: dict[str, Any], name: str, currency: str) -> None:
    table = Table(title=f"{name}: {summary['case']} under {summary['scheme']}", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("outcome", summary["outcome"])
    table.add_row("attacker", f"site {summary['site']}")
    table.add_row("attacker gains", f"{summary['attacker_gain']:,.2f} {currency}")
    table.add_row("cost of the community", f"{summary['cost_change_percent']:+.3f} %")
    table.add_row("named", summary["culprit"] or "nobody")
    table.add_row("why", summary["why"])
    table.add_row("published for Yingkou", summary["published"])
    Console(highlight=False).print(table)
