"""What each process of a deployment on disk does on a day, by its role and scheme [node 13]."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from veilgrid.errors import Finding, InputError, SetupError
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.machine import Machine, NodeId
from veilgrid.node.attest.day import attested
from veilgrid.node.attest.software import SoftwareProvider
from veilgrid.node.hosted import Part
from veilgrid.node.settings import SCHEMES, ProcessEntry, Settings
from veilgrid.report.folders import open_scenario
from veilgrid.roles import ledger_message
from veilgrid.roles.ledger_day import (
    build_group,
    build_operator,
    build_validator,
    build_worker,
    group_arguments,
    operator_arguments,
    validator_arguments,
)
from veilgrid.roles.ledger_message import Closed, DayResult
from veilgrid.roles.ledger_seat import Agreement, bus_of, client_of
from veilgrid.secret import SystemRandomness

_MASKED_ROLES: Final = frozenset({"operator", "site", "validator", "worker"})
SEALED_ROLES: Final = frozenset({"operator", "party", "site", "validator"})


@dataclass(slots=True)
class Work:
    """A part, and what its owner may read when the day has ended.

    Attributes
    ----------
    plan
        Of a process of sites: what each of its own sites does, pays and costs; else empty.
    files
        What else it leaves, by the end of the name; else empty.
    """

    part: Part
    plan: Callable[[], list[dict[str, Any]]] = list
    files: Callable[[], dict[str, bytes]] = dict
    machines: list[Machine] = field(default_factory=list)


def work_of(settings: Settings) -> Work:
    """Read what the process may know of the day, and return what it does.

    Raises
    ------
    InputError
        All that is wrong with the scenario, or between it and the directory.
    SetupError
        The scheme of the deployment has nothing to do for this role, or a file cannot be read.
    """
    if settings.deployment.scheme == "sealed":
        from veilgrid.cli._part_sealed import sealed

        return sealed(settings)
    scenario = open_scenario(settings.scenario)
    return _masked(settings, scenario.day(), scenario.network.base_mva)


def check(
    settings: Settings, names: Sequence[str], roles: frozenset[str], *, is_flexible: bool
) -> None:
    """Refuse a directory that does not fit the buses of its day, and roles without work.

    Raises
    ------
    InputError
        All that does not fit.
    SetupError
        The scheme has nothing to do for this process.
    """
    findings = list(_findings(settings, names))
    if not is_flexible:
        problem = "no site has a choice"
        findings.append(Finding(settings.deployment.scenario, problem, "there is nothing to plan"))
    if findings:
        raise InputError(findings)
    scheme, role = settings.deployment.scheme, settings.me.role
    if role not in roles:
        raise SetupError(
            f"a {scheme} day has nothing to do for a process of role {role}: "
            f"it is run by processes of role {', '.join(sorted(roles))}"
        )


def _findings(settings: Settings, names: Sequence[str]) -> Iterator[Finding]:
    where, deployment = str(settings.deployment_path), settings.deployment
    if deployment.scheme not in SCHEMES:
        problem = f"is {deployment.scheme!r}"
        yield Finding(f"{where}, key scheme", problem, f"one of {', '.join(SCHEMES)}")
    owned = {bus for one in deployment.process for bus in one.buses}
    for bus in sorted(owned - set(names)):
        problem = f"bus {bus} is not in scenario {deployment.scenario}"
        yield Finding(f"{where}, key buses", problem, "make the folder anew with `veilgrid init`")
    for bus in [name for name in names if name not in owned]:
        problem = f"no process runs the edge device of bus {bus}"
        yield Finding(f"{where}, key buses", problem, "add it with `veilgrid key new --role site`")
    present = {str(one.role) for one in deployment.process}
    needed = {"masked": ("validator", "worker"), "sealed": ("party",)}
    for role in needed.get(deployment.scheme, ()):
        if role not in present:
            problem = f"no process of role {role}, which a {deployment.scheme} day needs"
            yield Finding(where, problem, "make the folder anew with `veilgrid init`")


def names_of(settings: Settings, role: str) -> tuple[str, ...]:
    """Return the processes of a role, in the directory's order."""
    return tuple(one.node for one in settings.deployment.process if one.role == role)


def groups_of(settings: Settings) -> dict[str, str]:
    """Return which process runs the edge device of each bus."""
    return {bus: one.node for one in settings.deployment.process for bus in one.buses}


def _key(one: ProcessEntry) -> bytes:
    return bytes.fromhex(one.verify_key)


def agreement_in(
    settings: Settings, name: str, buses: Sequence[str], flexible: Sequence[int]
) -> Agreement:
    """Return who takes part in a day on a ledger; the same from every process's files.

    ``flexible`` are the numbers of the buses with a choice.
    """
    return Agreement(
        day=day_of(settings, name),
        operator=names_of(settings, "operator")[0],
        validators=names_of(settings, "validator"),
        workers=names_of(settings, "worker"),
        buses=tuple(buses),
        flexible=tuple(flexible),
        groups=groups_of(settings),
        keys={one.node: _key(one) for one in settings.deployment.process},
        is_attested=settings.deployment.attested,
    )


def provider_of(settings: Settings) -> SoftwareProvider:
    """Return what makes a process's evidence.

    Raises
    ------
    SetupError
        The deployment asks for evidence, and this process has nothing to make it with.
    """
    provider = settings.provider()
    if provider is None:
        raise SetupError(
            f"{settings.deployment_path} says attested = true, but {settings.path} names no "
            "software_root, and there is no provider for hardware here; see attestation.md 8"
        )
    return provider


def _masked(settings: Settings, day: Day, base_mva: float) -> Work:
    buses, limits = [str(site.name) for site in day.sites], Limits.of(day.network)
    check(settings, buses, _MASKED_ROLES, is_flexible=bool(day.flexible))
    agreement = agreement_in(settings, day.name, buses, day.flexible)
    me, role, signer = settings.node, settings.me.role, settings.signer()
    held: list[Machine] = []

    def build(records: Sequence[Any]) -> Machine:
        own: dict[NodeId, bytes] = {}  # The agreement holds all keys.
        machine: Machine
        if role == "operator":
            told = operator_arguments(day, limits, agreement)
            machine = build_operator(me, told, records, signer, own)
        elif role == "validator":
            public = validator_arguments(day, limits, agreement)
            machine = build_validator(me, public, records, signer, own)
        elif role == "worker":
            machine = build_worker(me, agreement, records, signer, own)
        else:
            group = group_arguments(day, limits, agreement, str(me))
            machine = build_group(me, group, records, signer, SystemRandomness(), own)
        if agreement.is_attested and role != "operator":
            machine = attested(machine, me, agreement, provider_of(settings), settings.policy_path)
        held.append(machine)
        return machine

    part = Part(
        day=agreement.day,
        messages=ledger_message.MESSAGES,
        records=ledger_message.RECORDS,
        build=build,
        peers=_MASKED_ROLES,
        quorum=("validator", agreement.genesis.quorum),
        needed=frozenset(),
        is_end=lambda outcome: isinstance(outcome, DayResult | Closed),
    )
    if role != "site":
        return Work(part)
    return Work(part, plan=lambda: _plan(held[-1], base_mva), machines=held)


def _plan(machine: Any, base_mva: float) -> list[dict[str, Any]]:
    """Read what the sites of a process do, from its own edge devices."""
    view = machine.seat.view
    payments = dict(view.settlement.payments) if view.settlement is not None else {}
    found = []
    for bus in [bus_of(name) for name in machine.devices]:
        device = machine.devices[client_of(bus)]
        is_still = client_of(bus) in view.excluded or device.edge is None
        x = device.site.uncontrolled if is_still else device.setpoints
        amount = payments.get(client_of(bus))
        payment = None if amount is None else amount / 1e6
        found.append(
            planned(device.site, x, base_mva, payment=payment, cost_alone=device.cost_alone)
        )
    return found


def planned(
    site: Site,
    x: Floats | None,
    base_mva: float,
    *,
    payment: float | None,
    cost_alone: float | None,
) -> dict[str, Any]:
    """Write what one site's devices do; ``x`` (variable,) is None if it is not known."""
    told: dict[str, Any] = {
        "site": str(site.name),
        "payment": payment,
        "cost": None if x is None else site.cost(x),
        "cost_alone": cost_alone,
        "devices": [],
    }
    if x is None:
        return told
    count = site.interval_count
    for name in dict.fromkeys(span.device for span in site.spans):
        own = [span for span in site.spans if span.device == name]
        columns = slice(own[0].start, own[-1].start + count)
        power = np.asarray(site.inject_p[:, columns] @ x[columns]) * base_mva
        told["devices"].append(
            {"device": name, "kind": own[0].kind, "p_mw": [round(float(p), 9) for p in power]}
        )
    return told


def day_of(settings: Settings, name: str) -> str:
    """Return the name of this run of a day."""
    run = settings.deployment.run
    return name if run == 1 else f"{name} run {run}"


def session_of(settings: Settings, name: str) -> bytes:
    """Return a name of the day that binds who takes part, from the directory alone."""
    digest = hashlib.sha256(settings.deployment_path.read_bytes()).hexdigest()
    return f"{day_of(settings, name)} {digest}".encode()
