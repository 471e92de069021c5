"""``veilgrid audit``: what each role could recover of a site's data, by really attacking."""

import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from veilgrid.admm.outcome import RunStatus
from veilgrid.cli._attack import DEFAULT_SCHEME, randomness_of, site_of
from veilgrid.cli._progress import shown
from veilgrid.cli._summary import finite
from veilgrid.errors import RunAborted
from veilgrid.grid.day import Day
from veilgrid.grid.scenario import BUNDLED_DAY
from veilgrid.report.folders import open_scenario
from veilgrid.roles.audit import AUDITED, Audit
from veilgrid.roles.audit import audit as audited
from veilgrid.roles.audit_score import Recovered
from veilgrid.roles.operator import plan_day

VERDICTS = {
    "alone": "Nothing is sent, so nothing is seen; nothing is coordinated either.",
    "central": "The operator holds everything. The scheme hides nothing from it.",
    "ledger": "Everything is on the ledger in plain text. The scheme hides nothing from anybody.",
    "neighbour": (
        "Devices and costs stay at the site. Its neighbours together know its net demand in every "
        "interval, and at the end of a feeder the parent alone does."
    ),
    "neighbour-ledger": (
        "Bids and iterates are recorded in plain text. The scheme hides nothing from anybody."
    ),
    "exchange": (
        "Devices stay at the site. The coordinator knows its net demand in every interval and what "
        "its devices cost."
    ),
    "masked": (
        "Masking is not encryption. It hides from outsiders what lies beside the ledger; they see "
        "from lengths what devices a site has, and from payments roughly its energy. It does not "
        "hide schedules, forecasts, batteries or quadratic costs from workers and validators: "
        "each row of a masked problem publishes its slack. With row scaling, permutation and "
        "decoys they still see every device's use as a share of its range, only not the kW. A "
        "site can be recognised from day to day. The coordinator sees net demand; together with a "
        "worker it has the load as well."
    ),
    "sealed": (
        "Nobody got a number of the site: not any party alone, not another site, not the ledger, "
        "not the operator. What opens to all, prices where no limit binds among it, stands in "
        "docs/protocol/sealed.md 4.3. Controls show "
        "that the same attacks read everything once more parties than the bound put their shares "
        "together, and that all other sites together learn its total cost, because sums open."
    ),
}
"""What each scheme hides and what it does not, in plain words."""


def largest(day: Day) -> int:
    """Return the site with most variables: it has most to lose."""
    return max(range(len(day.sites)), key=lambda i: len(day.sites[i].linear))


def audit_summary(found: Audit) -> dict[str, Any]:
    """Return the keys of ``audit --json`` [contract]."""
    return {
        "scheme": found.scheme,
        "site": found.site,
        "recovered": [_row(row) for row in found.recovered],
        **_tests(found),
        "verdict": _verdict(found),
    }


def _verdict(found: Audit) -> str:
    """Say what the scheme hides; what it should have hidden and did not comes first."""
    plain = VERDICTS.get(found.scheme, "")
    if found.scheme != "sealed":
        return plain
    got = [row for row in found.recovered if row.share_recovered > 0.0 and not row.is_in_table]
    apart = [one for one in found.tests if not one.is_passed]
    leaks = [f"{row.role} recovered {row.share_recovered:.0%} of {row.quantity}" for row in got]
    leaks += [f"not so for {one.role}: {one.what}" for one in apart]
    return f"LEAK: {'; '.join(leaks)}." if leaks else plain


def _row(row: Recovered) -> dict[str, Any]:
    shown = {
        "quantity": row.quantity,
        "role": row.role,
        "max_error": finite(row.max_error),
        "share_recovered": row.share_recovered,
        "unit": row.unit,
        "how": row.how,
        "options": row.options,
    }
    if row.baseline_error is None:
        return shown
    more = {"baseline_error": finite(row.baseline_error), "in_table": row.is_in_table}
    return {**shown, **more}


def _tests(found: Audit) -> dict[str, Any]:
    """Return tests and controls of an audit that has any."""
    if not found.tests:
        return {}
    tests = [
        {
            "what": one.what,
            "role": one.role,
            "tests": one.tests,
            "samples": one.samples,
            "p_least": one.p_least,
            "passed": one.is_passed,
        }
        for one in found.tests
    ]
    return {"tests": tests, "controls": [_row(row) for row in found.controls]}


@click.command("audit")
@click.argument("scenario", default=BUNDLED_DAY)
@click.option(
    "--scheme",
    type=click.Choice(AUDITED),
    default=DEFAULT_SCHEME,
    show_default=True,
    help="What is audited.",
)
@click.option("--site", help="Bus of the site. Default: the one with most devices.")
@click.option("--other", help="Another day on the same network, to recognise the site in.")
@click.option("--seed", type=click.IntRange(min=0), help="Of masks and keys.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(
    scenario: str,
    scheme: str,
    site: str | None,
    other: str | None,
    seed: int | None,
    as_json: bool,
) -> int:
    """Attack what each role holds of a site in SCENARIO, and score that against the truth."""
    opened = open_scenario(scenario)
    day = opened.day()
    chosen = site_of(day, site)
    later = None if other is None else open_scenario(other).day()
    with shown(f"{opened.name}, audit of {scheme}") as progress:
        own = "exchange" if scheme in ("masked", "sealed") else scheme
        plan = plan_day(day, own, None, progress)
        is_seen = scheme == "sealed" and plan.outcome.status is RunStatus.INFEASIBLE
        if not plan.outcome.setpoints and not is_seen:
            raise RunAborted(f"the day is {plan.outcome.status}: there is nothing to audit")
        index = largest(day) if chosen is None else chosen
        found = audited(plan, index, randomness_of(seed), scheme, later)
    summary = audit_summary(found)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _show(summary, opened.name)
    return 0


def _show(summary: dict[str, Any], name: str) -> None:
    table = Table(title=f"{name}: site {summary['site']} under {summary['scheme']}")
    is_compared = any("baseline_error" in row for row in summary["recovered"])
    guessed = ("of a guess without a view",) if is_compared else ()
    for title in ("quantity", "role", "recovered", "largest error", *guessed, "how"):
        is_text = title in ("quantity", "role", "how")
        table.add_column(title, justify="left" if is_text else "right")
    for row in summary["recovered"]:
        error = "-" if row["max_error"] is None else f"{row['max_error']:.2g} {row['unit']}"
        blind = row.get("baseline_error")
        table.add_row(
            row["quantity"] + (" (all options on)" if row["options"] else ""),
            row["role"],
            f"{100.0 * row['share_recovered']:.0f} %",
            error,
            *(["-" if blind is None else f"{blind:.2g} {row['unit']}"] if is_compared else []),
            row["how"] + (" (opens by the policy's table)" if row.get("in_table") else ""),
        )
    console = Console(highlight=False)
    console.print(table)
    if "tests" in summary:
        _show_tests(summary, console)
    console.print(summary["verdict"])


def _show_tests(summary: dict[str, Any], console: Console) -> None:
    table = Table(title="views of two days with different secrets")
    for title in ("test", "view of", "numbers", "least p-value", ""):
        table.add_column(title)
    for row in summary["tests"]:
        verdict = "not told apart" if row["passed"] else "TOLD APART"
        table.add_row(
            row["what"], row["role"], f"{row['samples']:,}", f"{row['p_least']:.3f}", verdict
        )
    console.print(table)
    for row in summary["controls"]:
        share = 100.0 * row["share_recovered"]
        console.print(f"control: {row['role']}: {row['quantity']} {share:.0f} % ({row['how']})")
