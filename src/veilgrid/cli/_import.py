"""``veilgrid import``: a scenario folder from another format."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from veilgrid.errors import Finding, InputError, VeilgridError
from veilgrid.grid.import_pandapower import ImportChoices, from_pandapower, read_net
from veilgrid.grid.import_simbench import INTERVALS_A_DAY, from_simbench, open_simbench
from veilgrid.grid.network import Floats
from veilgrid.grid.scenario import Scenario
from veilgrid.report.folders import save_scenario

Command = Callable[..., None]


@click.group(name="import")
def import_() -> None:
    """Make a scenario folder from another format."""


def _shared_options(command: Command) -> Command:
    """Add the options that both formats take."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--seed", type=int, help="Accepted by every verb; nothing here is random."),
        click.option(
            "--sell", type=float, help="Flat price for export, per MWh. Default: half of --buy."
        ),
        click.option("--buy", type=float, help="Flat price for import, per MWh. Default: 100."),
        click.option("--currency", default="EUR", show_default=True, help="Of the prices."),
        click.option("--name", help="Of the scenario. Default: from the source."),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            help="New folder for the scenario. Default: its name, in this folder.",
        ),
    ):
        command = option(command)
    return command


@import_.command()
@click.argument("code")
@click.option("--day", required=True, help="First day, e.g. 2016-06-15; profiles are of 2016.")
@click.option(
    "--days", type=click.IntRange(1, 366), default=1, show_default=True, help="Length in days."
)
@_shared_options
def simbench(code: str, day: str, days: int, as_json: bool, **options: Any) -> None:
    """Import the SimBench grid CODE, e.g. 1-MV-rural--2-sw, with its profiles of one day or more.

    Needs the extra: pip install "veilgrid[simbench]".
    """

    def build() -> Scenario:
        buy, sell = _prices(options["buy"], options["sell"], days * INTERVALS_A_DAY)
        name = options["name"] or f"{code}-{day}"
        choices = ImportChoices(name=name, currency=options["currency"], buy=buy, sell=sell)
        return from_simbench(open_simbench(code), day, day_count=days, choices=choices)

    _run(build, options["out"], as_json)


@import_.command()
@click.argument("net", type=click.Path(path_type=Path))
@_shared_options
def pandapower(net: Path, as_json: bool, **options: Any) -> None:
    """Import the pandapower net NET, a JSON file; its one operating point fills 24 hours.

    Needs the extra: pip install "veilgrid[pandapower]". Only import files whose origin you trust:
    pandapower's JSON names Python classes to load.
    """

    def build() -> Scenario:
        try:
            text = net.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is not UTF-8 text"
            raise InputError([Finding(str(net), f"cannot be read: {reason}")]) from error
        choices = ImportChoices(name=options["name"] or net.stem, currency=options["currency"])
        buy, sell = _prices(options["buy"], options["sell"], choices.horizon.interval_count)
        choices = ImportChoices(name=choices.name, currency=choices.currency, buy=buy, sell=sell)
        return from_pandapower(read_net(text), choices)

    _run(build, options["out"], as_json)


def _prices(
    buy: float | None, sell: float | None, count: int
) -> tuple[Floats | None, Floats | None]:
    """Return flat prices (interval,); ``None`` if none is given."""
    if buy is None:
        if sell is not None:
            raise InputError([Finding("option --sell", "is given without --buy")])
        return None, None
    return np.full(count, buy), np.full(count, buy / 2.0 if sell is None else sell)


def _run(build: Callable[[], Scenario], out: Path | None, as_json: bool) -> None:
    """Import, write the folder and say what was simplified; exit with the error's code."""
    try:
        scenario = build()
        folder = save_scenario(scenario, out if out is not None else Path(scenario.name))
    except VeilgridError as error:
        findings = error.findings if isinstance(error, InputError) else ()
        if as_json:
            found = findings or (Finding("import", str(error)),)
            click.echo(json.dumps({"scenario": None, "findings": _listed(found)}))
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if as_json:
        click.echo(json.dumps({"scenario": str(folder), "findings": _listed(scenario.remarks)}))
        return
    for remark in scenario.remarks:
        click.echo(f"note: {remark}", err=True)
    network, horizon = scenario.network, scenario.horizon
    click.echo(
        f"{scenario.name}: {len(network.buses)} buses, {len(scenario.devices)} devices, "
        f"{horizon.interval_count} intervals of {horizon.interval_minutes} minutes"
    )
    click.echo(str(folder))


def _listed(findings: tuple[Finding, ...]) -> list[dict[str, str]]:
    return [
        {"where": finding.where, "problem": finding.problem, "advice": finding.advice}
        for finding in findings
    ]
