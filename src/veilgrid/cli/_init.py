"""``veilgrid init``: the folder of a new deployment [node 11]."""

import json
import os
from pathlib import Path

import click
from click.core import ParameterSource

from veilgrid.errors import Finding, InputError
from veilgrid.grid.scenario import BUNDLED_DAY, Scenario
from veilgrid.node import scaffold
from veilgrid.node.certificate import VALID_DAYS
from veilgrid.node.keys import KeyFolder
from veilgrid.node.next_day import DATA, REGISTER, NextDay, take_up
from veilgrid.node.settings import DEPLOYMENT, SCHEMES, ProcessEntry, Role
from veilgrid.report.folders import open_scenario


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--scenario", default=BUNDLED_DAY, help="Folder or bundled day. Default: bundled.")
@click.option("--name", help="Of the deployment. Default: the folder's name.")
@click.option("--sites", default=3, help="Processes that share the sites. Default: 3.")
@click.option("--scheme", type=click.Choice(SCHEMES), help="Default: masked, or as below.")
@click.option("--parties", type=int, help="Of a sealed day: 3 to 7. Default: 3 if sealed.")
@click.option("--validators", type=int, help="Of the ledger: 3f + 1. Default: 4 if masked.")
@click.option("--workers", type=int, help="Who solve masked problems. Default: 2 if masked.")
@click.option("--host", default="127.0.0.1", help="Where processes listen. Default: 127.0.0.1.")
@click.option("--base-port", default=47_000, help="First port; others follow. Default: 47000.")
@click.option("--valid-days", default=float(VALID_DAYS), help="Of certificates. Default: 30.")
@click.option("--production", is_flag=True, help="Policy that refuses software attestation.")
@click.option("--seal", is_flag=True, help="Seal secret keys under the software root.")
@click.option(
    "--software-root",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File of that root; made if it is not there. Default: beside the keys.",
)
@click.option("--next-day", is_flag=True, help="DIR is there: write another day into it.")
@click.option("--seed", type=int, help="Accepted by every verb; keys are never repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def init(
    context: click.Context,
    folder: Path,
    scenario: str,
    name: str | None,
    sites: int,
    scheme: str | None,
    parties: int | None,
    validators: int | None,
    workers: int | None,
    host: str,
    base_port: int,
    valid_days: float,
    production: bool,
    seal: bool,
    software_root: Path | None,
    next_day: bool,
    seed: int | None,  # noqa: ARG001 - part of the contract
    as_json: bool,
) -> int:
    """Make the folder DIR of a new deployment: who takes part, keys, certificates, policy.

    Examples:
      veilgrid init my-grid

      veilgrid init my-grid --sites 4 --validators 4 --workers 2 --scenario six-bus

      veilgrid init my-grid --scheme sealed --parties 3

      veilgrid init my-grid --next-day --scenario tomorrow
    """
    if next_day:
        return _next_day(context, folder, scenario, as_json)
    scheme = scheme or ("sealed" if validators == 0 else "masked")
    if seal and software_root is None and production:
        problem = "a root beside the keys that it seals protects nothing"
        advice = "name a file elsewhere with --software-root"
        raise InputError([Finding("--seal", problem, advice)])
    found = open_scenario(scenario)
    plan = scaffold.Plan(
        name=name or folder.absolute().name,
        scenario=_reference(scenario, folder),
        buses=tuple(str(site.name) for site in found.day().sites),
        scheme=scheme,
        counts=_counts(scheme == "masked", sites, parties, validators, workers),
        host=host,
        base_port=base_port,
        valid_days=valid_days,
        is_software_accepted=not production,
        software_root=software_root,
        is_sealed=seal,
        register=_register(found) if scheme == "sealed" else b"",
        data_of=lambda buses: found.own_part(buses).files(),
    )
    processes = scaffold.create(folder, plan)
    if as_json:
        click.echo(json.dumps(_summary(folder, plan, processes)))
    else:
        _show(folder, plan, processes)
    return 0


def _next_day(context: click.Context, folder: Path, scenario: str, as_json: bool) -> int:
    """Write another day into the folder; keys, processes and addresses stay."""
    kept = ("folder", "scenario", "next_day", "seed", "as_json")
    findings = [
        Finding(f"--{name.replace('_', '-')}", "is for a new deployment", "leave it out")
        for name in context.params
        if name not in kept and context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    ]
    if context.get_parameter_source("scenario") != ParameterSource.COMMANDLINE:
        findings.append(Finding("--scenario", "is not given", "name the next day, or its folder"))
    if findings:
        raise InputError(findings)
    before = KeyFolder.open(folder).deployment()
    found = open_scenario(scenario)
    is_sealed = before.scheme == "sealed"
    day = NextDay(
        scenario=_reference(scenario, folder),
        buses=tuple(str(site.name) for site in found.day().sites),
        register=_register(found) if is_sealed else b"",
        data_of=(lambda buses: found.own_part(buses).files()) if is_sealed else None,
    )
    after = take_up(folder, day)
    name = f"{found.name} run {after.run}"
    if as_json:
        told = {"path": str(folder), "name": after.name, "scenario": after.scenario, "day": name}
        click.echo(json.dumps(told))
        return 0
    copied = f"{DEPLOYMENT} and {REGISTER}" if is_sealed else DEPLOYMENT
    click.echo(f"the next day is {name}; copy {copied} to every host")
    if is_sealed:
        click.echo(f"{folder / DATA}/NODE is for who runs NODE: own numbers go into it")
    click.echo("then end the processes and start them again")
    return 0


def _register(found: Scenario) -> bytes:
    from veilgrid.roles.sealed.register_file import Registered

    return Registered.of(found).octets()


def _counts(
    is_masked: bool, sites: int, parties: int | None, validators: int | None, workers: int | None
) -> dict[Role, int]:
    """Return how many processes of each role; those that a scheme needs where none is given."""

    def given(count: int | None, default: int) -> int:
        return default if count is None else count

    validator_count = given(validators, 4 if is_masked else 0)
    return {
        "operator": 1 if validator_count or not is_masked else 0,
        "site": sites,
        "party": given(parties, 0 if is_masked else 3),
        "validator": validator_count,
        "worker": given(workers, 2 if is_masked else 0),
    }


def _reference(scenario: str, folder: Path) -> str:
    """Return the scenario's name, or its folder as seen from the deployment's."""
    if not Path(scenario).is_dir():
        return scenario
    return os.path.relpath(Path(scenario).absolute(), folder.absolute())


def _summary(folder: Path, plan: scaffold.Plan, processes: list[ProcessEntry]) -> dict[str, object]:
    return {
        "path": str(folder),
        "name": plan.name,
        "scenario": plan.scenario,
        "software_accepted": plan.is_software_accepted,
        "sealed": plan.is_sealed,
        "processes": [
            {
                "node": one.node,
                "role": one.role,
                "host": one.host if one.port is not None else None,
                "port": one.port,
                "buses": list(one.buses),
                "config": str(folder / "nodes" / f"{one.node}.toml"),
                "verify_key": one.verify_key,
            }
            for one in processes
        ],
    }


def _show(folder: Path, plan: scaffold.Plan, processes: list[ProcessEntry]) -> None:
    counts = ", ".join(f"{count} {role}" for role, count in plan.counts.items() if count)
    click.echo(f"{len(processes)} processes ({counts}) for {len(plan.buses)} sites")
    click.echo(f"certificates are valid for {plan.valid_days:g} days")
    if plan.is_software_accepted:
        click.echo("attestation: software is accepted; it is not hardware and proves nothing")
    click.echo(f"wrote {folder / DEPLOYMENT}; what to do next: {folder / 'README.md'}")
