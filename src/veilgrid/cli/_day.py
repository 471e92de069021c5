"""``veilgrid run``, ``compare`` and ``report``: one day, or several, on one network."""

import itertools
import json
import re
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from veilgrid.admm.certify import TURNOVER_MIN
from veilgrid.cli._attack import attacks_on, randomness_of, show_attacks
from veilgrid.cli._progress import shown
from veilgrid.cli._summary import (
    Summary,
    is_wanted,
    obstacle_lines,
    record_of,
    saving_percent,
    summary_of,
)
from veilgrid.cli._unfinished import check_kept, drop, finished, kept, left_behind
from veilgrid.errors import Finding, InputError, RunAborted
from veilgrid.grid.scenario import BUNDLED_DAY, Scenario
from veilgrid.report.folders import open_scenario
from veilgrid.report.page import render_compare
from veilgrid.report.results import LEDGER, check_target, write_page, write_report, write_run
from veilgrid.roles.operator import COORDINATIONS, SCHEMES, DayPlan, plan_day
from veilgrid.roles.sealed.day import Life
from veilgrid.roles.sealed.start import Start
from veilgrid.secret import Randomness

_DEFAULT_SCHEME = "sealed"
_COORDINATIONS = ("neighbour", "exchange", "published")
_EXAMPLES = """\b
Examples:
  veilgrid run
  veilgrid run --scheme exchange --out runs/today
  veilgrid run six-bus --scheme central --json
  veilgrid run my-feeder/2026-06-0? --out runs/june
"""
_SEED_HELP = "Of keys, masks and shares, where the scheme has any; plans do not depend on it."
_RESUME_HELP = "Go on from what an interrupted run left at --out; finished days are kept."
_REPORT_SEED_HELP = "Accepted by every verb; a report draws nothing at random."

_PLAYED_BY = (
    "one process: whoever runs it could see all; `veilgrid init` and `node` give parties and sites "
    "processes of their own"
)

_SLOW = {
    "neighbour-ledger": "plans as neighbour does and records it: the same table a minute later",
    "sealed": "some minutes, and more for its attacks",
}
"""What `compare` leaves out by itself on a large day, and why."""

_SETPOINTS_MAX = 10_000
"""Set-points up to which a day is small enough for `compare` to run all schemes."""


@click.command(epilog=_EXAMPLES)
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]...")
@click.option("--scheme", type=click.Choice(list(SCHEMES)), help="Who decides. Default: sealed.")
@click.option(
    "--coordination",
    type=click.Choice(_COORDINATIONS),
    help="How sites agree; published = neighbours edge by edge. Default: the scheme's own.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results and report.")
@click.option("--resume", "is_resumed", is_flag=True, help=_RESUME_HELP)
@click.option("--seed", type=click.IntRange(min=0), help=_SEED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def run(
    scenarios: tuple[str, ...],
    scheme: str | None,
    coordination: str | None,
    out: Path | None,
    is_resumed: bool,
    seed: int | None,
    as_json: bool,
) -> int:
    """Plan SCENARIO, a folder or the name of a bundled day; without one, the default day.

    Several SCENARIOs run in order, each started from the last.
    """
    chosen, coordination = _scheme(scheme, coordination)
    opened = _open_all(scenarios or (BUNDLED_DAY,))
    targets = _targets(out, opened)
    _check_targets(targets)
    _check_kept(targets, chosen, is_resumed=is_resumed)
    summaries: list[Summary] = []
    warm: object = None
    for place, scenario in enumerate(opened):
        target = targets[place] if targets else None
        summary = None
        if is_resumed and target is not None:
            summary = _finished(target, scenario, chosen, coordination)
        if summary is None:
            _tell_cold(scenario, chosen, warm, is_first=not summaries)
            order = _Order(scenario, chosen, coordination, target, seed, is_resumed)
            plan, summary = _planned(order, warm, as_json=as_json)
            warm = plan.outcome.warm
        summaries.append(summary)
        if summary["status"] == "aborted":
            break
    if as_json:
        click.echo(json.dumps(summaries[0] if len(opened) == 1 else _totals(chosen, summaries)))
    elif len(opened) > 1:
        _show_totals(_totals(chosen, summaries), opened[0].currency)
    return 0 if all(_is_wanted(summary) for summary in summaries) else 1


@dataclass(frozen=True)
class _Order:
    """One day to plan, and where its results go."""

    scenario: Scenario
    scheme: str
    coordination: str | None
    target: Path | None
    seed: int | None
    is_resumed: bool


def _planned(order: _Order, warm: object, *, as_json: bool) -> tuple[DayPlan, Summary]:
    """Plan a day, write and show it; what it needs to go on is kept until that is done."""
    scenario, target = order.scenario, order.target
    draw, where, is_kept = randomness_of(order.seed), None, False
    with ExitStack() as stack:
        life = None
        if order.scheme == "sealed" and target is not None:
            life = stack.enter_context(kept(target, scenario, draw, is_resumed=order.is_resumed))
        plan, summary = _plan(scenario, order.scheme, warm, draw, order.coordination, life)
        if target is not None:
            where = write_run(target, record_of(plan, scenario, summary))
            _write_ledger(plan, target)
            is_kept = life is not None and summary["status"] == "aborted"
    if target is not None and order.scheme == "sealed" and not is_kept:
        drop(target)
    if not as_json:
        _show(plan, scenario, summary, where)
    if is_kept and target is not None:
        click.echo(left_behind(target), err=True)
    return plan, summary


def _finished(
    target: Path, scenario: Scenario, scheme: str, coordination: str | None
) -> Summary | None:
    """Return what an earlier run of the same day came to, and say so on stderr."""
    found = finished(target, scenario, scheme, coordination)
    if found is not None:
        drop(target)
        click.echo(f"{scenario.name} was finished before and is kept: {target}", err=True)
    return found


def _is_wanted(summary: Summary) -> bool:
    """Whether a day ended as wanted, by what is told of it."""
    is_sound = summary["ac_check"]["passed"] or summary["scheme"] == "alone"
    is_close = summary["certificate"]["accepted"]
    return bool(summary["status"] == "converged" and is_close and is_sound)


def _check_kept(targets: list[Path], scheme: str, *, is_resumed: bool) -> None:
    """Refuse before planning what could not be kept, or gone on with."""
    if is_resumed and not targets:
        problem = "goes on from what a run with --out left"
        raise InputError([Finding("--resume", problem, "name its folder with --out")])
    for target in targets if scheme == "sealed" else []:
        check_kept(target)


def _tell_cold(scenario: Scenario, scheme: str, warm: object, *, is_first: bool) -> None:
    """Say on stderr why a later sealed day does not begin where the last one ended."""
    if is_first or scheme != "sealed":
        return
    reason = "the last day came to no plan"
    if isinstance(warm, Start):
        reason = warm.misfit(scenario.day()) or ""
    if reason:
        click.echo(f"{scenario.name} begins anew: {reason}", err=True)


def _targets(out: Path | None, days: list[Scenario]) -> list[Path]:
    """Return a folder of results for each day: one of its own inside ``out`` if there are several.

    A name comes from a file that anybody may have written, so it never leads out of ``out``.
    """
    if out is None or len(days) == 1:
        return [] if out is None else [out]
    names: list[str] = []
    for day in days:
        plain = re.sub(r"[^\w .+-]", "-", day.name).strip(". ") or "day"
        counts = (f"-{count}" if count > 1 else "" for count in itertools.count(1))
        names.append(next(plain + count for count in counts if plain + count not in names))
    return [out / name for name in names]


def _check_targets(targets: list[Path]) -> None:
    """Refuse before planning what could not be written afterwards; all findings together."""
    findings: dict[Finding, None] = {}
    for target in targets:
        try:
            check_target(target)
        except InputError as error:
            findings |= dict.fromkeys(error.findings)
    if findings:
        raise InputError(findings)


def _write_ledger(plan: DayPlan, folder: Path) -> None:
    """Write what the day's ledger recorded, for `veilgrid verify`."""
    if plan.ledger:
        (folder / LEDGER).write_bytes(plan.ledger)


def _scheme(scheme: str | None, coordination: str | None) -> tuple[str, str | None]:
    """Return the scheme, and how it is coordinated where that is not the scheme's own way."""
    if coordination is None:
        return scheme or _DEFAULT_SCHEME, None
    chosen = scheme or ("exchange" if coordination == "exchange" else "neighbour")
    if coordination == ("exchange" if chosen == "masked" else chosen):
        return chosen, None
    if (chosen, coordination) not in COORDINATIONS:
        known = [own for name, own in COORDINATIONS if name == chosen]
        raise InputError(
            [
                Finding(
                    "--coordination",
                    f"is {coordination}, but scheme {chosen} has its own",
                    f"leave it out, or use {' or '.join(known)}" if known else "leave it out",
                )
            ]
        )
    return chosen, coordination


def _open_all(names: tuple[str, ...]) -> list[Scenario]:
    """Open all scenarios; findings of all broken ones come together."""
    opened, findings = [], []
    for name in names:
        try:
            opened.append(open_scenario(name))
        except InputError as error:
            several = len(names) > 1
            findings += [
                Finding(
                    f"{name}: {f.where}" if several and f.where != name else f.where,
                    f.problem,
                    f.advice,
                )
                for f in error.findings
            ]
    if findings:
        raise InputError(findings)
    return opened


def _plan(
    scenario: Scenario,
    scheme: str,
    warm: object,
    draw: Randomness,
    coordination: str | None = None,
    life: Life | None = None,
) -> tuple[DayPlan, Summary]:
    if scheme == "sealed":
        count = len(scenario.network.buses)
        click.echo(f"{scenario.name}: {count} sites share their bids with three parties", err=True)
    with shown(f"{scenario.name}, {scheme}") as progress:
        begin = time.perf_counter()
        plan = plan_day(scenario.day(), scheme, warm, progress, draw, coordination, life)
        seconds = time.perf_counter() - begin
    return plan, summary_of(plan, scenario, seconds, coordination)


def _totals(scheme: str, summaries: list[Summary]) -> Summary:
    costs = [day["cost"] for day in summaries]
    alone = sum(day["cost_alone"] for day in summaries)
    cost = None if None in costs else sum(costs)
    return {
        "scheme": scheme,
        "status": next((d["status"] for d in summaries if d["status"] != "converged"), "converged"),
        "cost": cost,
        "cost_alone": alone,
        "saving_percent": saving_percent(cost, alone),
        "iterations": sum(day["iterations"] for day in summaries),
        "seconds": sum(day["seconds"] for day in summaries),
        "messages": sum(day["messages"] for day in summaries),
        "bytes": sum(day["bytes"] for day in summaries),
        "days": summaries,
    }


def _show(plan: DayPlan, scenario: Scenario, summary: Summary, where: Path | None) -> None:
    """Print what happened, what it cost and what to do next."""
    console = Console(highlight=False)
    table = Table(title=f"{scenario.name}: scheme {plan.scheme}", show_header=False, min_width=64)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in _lines(plan, scenario, summary):
        table.add_row(label, value)
    console.print(table)
    for line in obstacle_lines(plan.obstacles):
        console.print(f"  {line}")
    for line in _next_lines(plan.scheme, where, has_plan=summary["cost"] is not None):
        console.print(line, soft_wrap=True)


def _next_lines(scheme: str, where: Path | None, *, has_plan: bool) -> list[str]:
    """Say where pictures and tables are, and what could be done next."""
    lines = [] if where is None else [f"report: {where} (pictures; tables beside it)"]
    if where is None and has_plan:
        lines.append("next: add --out runs/today for tables and a report with pictures")
    if scheme == "sealed":
        lines.append(
            "next: --scheme exchange plans the same day in seconds, by a coordinator who sees more"
        )
    return lines


def _lines(plan: DayPlan, scenario: Scenario, summary: Summary) -> list[tuple[str, str]]:
    money = scenario.currency
    lines = [("status", summary["status"])]
    if summary["cost"] is not None:
        lines.append(("cost of the plan", f"{summary['cost']:,.2f} {money}"))
    lines.append(("cost if everybody plans alone", f"{summary['cost_alone']:,.2f} {money}"))
    if summary["saving_percent"] is not None and plan.scheme != "alone":
        lines.append(("saving", f"{summary['saving_percent']:.2f} %"))
    lines.append(("iterations, time", f"{summary['iterations']}, {summary['seconds']:.2f} s"))
    found = summary["certificate"]
    if found["gap"] is not None:
        verdict = "accepted" if found["accepted"] else "not accepted"
        lines.append(
            ("certificate", f"{verdict}: at most {max(found['gap'], 0.0):.1e} above the optimum")
        )
    checked = summary["ac_check"]
    if checked["vm_min_pu"] is not None:
        verdict = "passed" if checked["passed"] else "not passed"
        band = f"{checked['vm_min_pu']:.4f} to {checked['vm_max_pu']:.4f} pu"
        lines.append(("AC power flow", f"{verdict}, voltages {band}"))
        if not checked["passed"]:
            lines += [("", text) for text in checked["findings"][:3]]
    electrical = summary.get("opened", {}).get("electrical")
    if electrical:
        lines.append(("the same on shares", _on_shares(electrical)))
    if summary["replans"]:
        count = len(summary["replans"])
        lines.append(
            (
                "planned again",
                f"{count} time{'s' if count > 1 else ''}: the AC power flow refused the first "
                f"plan; voltage margin now up to {summary['margin_pu']:.5f} pu",
            )
        )
    settlement = summary["settlement"]
    if settlement["sites"]:
        fair = "nobody is" if settlement["individually_rational"] else "somebody is"
        lines.append(
            ("settlement", f"payments sum to {settlement['sum']:.2f}; {fair} worse off than alone")
        )
    lines.append(("messages", f"{summary['messages']:,} with {summary['bytes']:,} bytes"))
    lines.append(("who sees what", summary["exposed"]))
    if plan.scheme == "sealed":
        lines.append(("played by", _PLAYED_BY))
    return lines


def _on_shares(electrical: Summary) -> str:
    """Say what the power flow on shares found."""
    if electrical.get("untried"):
        return f"not tried, far too much flows at {len(electrical['untried'])} places"
    beyond = sum(len(electrical[kind]) for kind in ("low", "high", "over"))
    verdict = "passed" if not beyond else f"{beyond} limits exceeded"
    if electrical["moving"]:
        verdict = f"{electrical['moving']} voltages have not settled"
    return f"{verdict}, voltages {electrical['vm_min_pu']:.4f} to {electrical['vm_max_pu']:.4f} pu"


def _show_totals(totals: Summary, currency: str) -> None:
    console = Console(highlight=False)
    if totals["cost"] is None:
        console.print(f"{len(totals['days'])} days; not every one has a plan")
        return
    saving = totals["saving_percent"]
    console.print(
        f"{len(totals['days'])} days: {totals['cost']:,.2f} {currency}"
        + (f", {saving:.2f} % less than alone" if saving is not None else "")
        + f", {totals['iterations']} iterations, {totals['seconds']:.1f} s"
    )


@click.command()
@click.argument("scenario", default=BUNDLED_DAY)
@click.option(
    "--schemes", help="Comma-separated, or all. Default: all; on a large day without the slowest."
)
@click.option(
    "--attacks/--no-attacks", "is_attacked", default=True, help="Attack each scheme. Default: yes."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results and reports.")
@click.option("--seed", type=click.IntRange(min=0), help=_SEED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(
    scenario: str,
    schemes: str | None,
    is_attacked: bool,
    out: Path | None,
    seed: int | None,
    as_json: bool,
) -> int:
    """Run several schemes on one SCENARIO and set them side by side."""
    asked = None if schemes is None else _schemes(schemes)
    opened = open_scenario(scenario)
    names = asked or _affordable(opened)
    _check_targets([] if out is None else [out / name for name in names])
    left_out = [name for name in SCHEMES if name not in names] if asked is None else []
    _tell_left_out(left_out)
    rows: list[Summary] = []
    wanted = True
    optimum = None
    for name in dict.fromkeys([*names, "central"]):
        plan, summary = _plan(opened, name, None, randomness_of(seed))
        if name == "central":
            optimum = summary["cost"]
        if summary["status"] == "aborted":
            raise RunAborted(f"stopped by Ctrl-C during {name}; nothing was compared")
        if name in names:
            rows.append(summary)
            if is_attacked:
                summary["attacks"] = attacks_on(plan, seed)
            _tell(summary, f"{len(rows)} of {len(names)}", opened.currency)
            wanted = wanted and is_wanted(plan)
            if out is not None:
                write_run(out / name, record_of(plan, opened, summary))
                _write_ledger(plan, out / name)
    for row in rows:
        row["gap_percent"] = _gap_percent(row["cost"], optimum)
    comparison = {
        "scenario": opened.name,
        "currency": opened.currency,
        "schemes": rows,
        "left_out": left_out,
    }
    if out is not None:
        write_page(out / "compare.html", render_compare(comparison))
    if as_json:
        click.echo(json.dumps(comparison))
    else:
        _show_comparison(comparison)
        if out is not None:
            click.echo(f"report: {out / 'compare.html'}")
    return 0 if wanted else 1


def _gap_percent(cost: float | None, optimum: float | None) -> float | None:
    """Return how far a cost is above the optimum; none where there is nothing to measure against.

    Below :data:`TURNOVER_MIN` the optimum is no more than rounding.
    """
    if cost is None or optimum is None or abs(optimum) < TURNOVER_MIN:
        return None
    return 100.0 * (cost - optimum) / abs(optimum)


def _schemes(text: str) -> list[str]:
    """Read a list of schemes; findings of all that are none come together."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(SCHEMES)
    names = list(dict.fromkeys(names))
    unknown = [name for name in names if name not in SCHEMES]
    if unknown or not names:
        advice = f"use all, or some of {list(SCHEMES)}"
        raise InputError(
            [
                Finding("--schemes", f"{name or 'nothing'} is no scheme", advice)
                for name in (unknown or [""])
            ]
        )
    return names


def _affordable(scenario: Scenario) -> list[str]:
    """Return all schemes, on a large day without :data:`_SLOW`."""
    day = scenario.day()
    count = sum(len(day.sites[index].linear) for index in day.flexible)
    return [name for name in SCHEMES if count <= _SETPOINTS_MAX or name not in _SLOW]


def _tell_left_out(names: list[str]) -> None:
    """Say on stderr which schemes are not run, and why."""
    if names:
        click.echo("left out on a day of this size; --schemes all runs them too:", err=True)
    for name in names:
        click.echo(f"  {name}: {_SLOW[name]}", err=True)


def _tell(summary: Summary, number: str, currency: str) -> None:
    """Say on stderr that one scheme is done, and what came of it."""
    cost = "no plan" if summary["cost"] is None else f"{summary['cost']:,.2f} {currency}"
    ends = [f"{found['case']} {found['outcome']}" for found in summary.get("attacks", ())]
    told = [summary["status"], cost, f"{summary['seconds']:.1f} s", *ends]
    click.echo(f"{number}, {summary['scheme']}: {', '.join(told)}", err=True)


def _show_comparison(comparison: Summary) -> None:
    table = Table(title=f"{comparison['scenario']}, {comparison['currency']}")
    for title in ("scheme", "status", "cost", "saving %", "above central %", "iterations", "s"):
        table.add_column(title, justify="left" if title in ("scheme", "status") else "right")
    table.add_column("who sees what", overflow="fold")

    def shown_number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    for row in comparison["schemes"]:
        table.add_row(
            row["scheme"],
            row["status"],
            shown_number(row["cost"], ",.2f"),
            shown_number(row["saving_percent"], ".2f"),
            shown_number(row["gap_percent"], ".4f"),
            str(row["iterations"]),
            f"{row['seconds']:.2f}",
            row["exposed"],
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    show_attacks(comparison, console)


@click.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--seed", type=int, help=_REPORT_SEED_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(run_folder: Path, seed: int | None, as_json: bool) -> int:  # noqa: ARG001 - contract
    """Render the report of RUN, the --out folder of a run, anew."""
    path = write_report(run_folder)
    click.echo(json.dumps({"path": str(path)}) if as_json else f"report: {path}")
    return 0
