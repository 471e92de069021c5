"""``veilgrid attack``: the source paper's manipulations, carried out against a scheme."""

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from veilgrid.admm.outcome import Interrupted, Progress, ProgressSink, RunStatus
from veilgrid.cli._progress import shown
from veilgrid.cli._summary import obstacle_lines, obstacle_summary
from veilgrid.errors import Finding, InputError, RunAborted
from veilgrid.grid.day import Day
from veilgrid.grid.scenario import BUNDLED_DAY
from veilgrid.report.folders import open_scenario
from veilgrid.roles.attack import ATTACKED, CASES, PUBLISHED, attack_plan
from veilgrid.roles.attack_setting import AttackResult
from veilgrid.roles.operator import DayPlan, plan_day
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


def all_or_nothing(progress: ProgressSink) -> ProgressSink:
    """Let Ctrl-C end an attack without result: a run cut short would look like one that stalled."""

    def sink(entry: Progress) -> None:
        try:
            progress(entry)
        except Interrupted:
            raise RunAborted("stopped by Ctrl-C; this attack has no outcome") from None

    return sink


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
        "infeasible": [obstacle_summary(one) for one in found.obstacles],
        "published": PUBLISHED[found.case],
    }


def attacks_on(plan: DayPlan, seed: int | None) -> list[dict[str, Any]]:
    """Carry out all cases against the scheme of a plan; none without a plan or an attacker."""
    has_attacker = any(index != plan.day.network.tree.root for index in plan.day.flexible)
    if plan.settlement is None or plan.scheme not in ATTACKED or not has_attacker:
        return []
    found = []
    for case in CASES:
        with shown(f"{plan.day.name}, {plan.scheme}, {case}") as progress:
            sink = all_or_nothing(progress)
            result = attack_plan(plan, case, randomness_of(seed), progress=sink)
            found.append(attack_summary(result))
    return found


def show_attacks(comparison: dict[str, Any], console: Console) -> None:
    """Print the outcome of each attack under each scheme."""
    rows = [row for row in comparison["schemes"] if row.get("attacks")]
    if not rows:
        return
    table = Table(title=f"attacks; gains in {comparison['currency']}, cost of the community in %")
    table.add_column("scheme")
    for case in CASES:
        table.add_column(case)
    for row in rows:
        by_case = {found["case"]: found for found in row["attacks"]}
        table.add_row(row["scheme"], *(_cell(by_case[case]) for case in CASES))
    table.add_section()
    table.add_row("published", *(PUBLISHED[case] for case in CASES))
    console.print(table)


def _cell(found: dict[str, Any]) -> str:
    gain, change = found["attacker_gain"], found["cost_change_percent"]
    if abs(gain) < 0.005 and abs(change) < 0.005:
        return str(found["outcome"])
    return f"{found['outcome']}: gain {gain + 0.0:,.2f}, cost {round(change, 2) + 0.0:+.2f} %"


@click.command("attack")
@click.argument("scenario", default=BUNDLED_DAY)
@click.option("--case", type=click.Choice(CASES), required=True, help="What is tried.")
@click.option(
    "--scheme",
    type=click.Choice(ATTACKED),
    default=DEFAULT_SCHEME,
    show_default=True,
    help="What it is tried on.",
)
@click.option("--site", help="Bus of the attacker. Default: who could gain most.")
@click.option("--seed", type=click.IntRange(min=0), help="Of masks and keys.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def attack(
    scenario: str, case: str, scheme: str, site: str | None, seed: int | None, as_json: bool
) -> int:
    """Attack SCENARIO under a scheme and say how that ended: see outcome."""
    opened = open_scenario(scenario)
    day = opened.day()
    index = site_of(day, site)
    with shown(f"{opened.name}, {scheme}, {case}") as progress:
        draw = randomness_of(seed)
        sink = all_or_nothing(progress)
        honest = plan_day(day, scheme, None, sink, draw)
        found = attack_plan(honest, case, draw, index, sink)
    if as_json:
        click.echo(json.dumps(attack_summary(found)))
    else:
        _show(found, opened.name, opened.currency)
    return 1 if honest.outcome.status is RunStatus.INFEASIBLE else 0


def _show(found: AttackResult, name: str, currency: str) -> None:
    table = Table(title=f"{name}: {found.case} under {found.scheme}", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("outcome", str(found.outcome))
    table.add_row("attacker", f"site {found.site}")
    table.add_row("attacker gains", f"{found.attacker_gain:,.2f} {currency}")
    table.add_row("cost of the community", f"{found.cost_change_percent:+.3f} %")
    table.add_row("named", found.culprit or "nobody")
    table.add_row("why", found.why)
    table.add_row("published for Yingkou", PUBLISHED[found.case])
    if found.obstacles:
        table.add_row("infeasible", "\n".join(obstacle_lines(found.obstacles)))
    Console(highlight=False).print(table)
