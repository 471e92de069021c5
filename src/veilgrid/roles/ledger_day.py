"""A masked day on the ledger put together: who is told what, and the factories of processes.

The roles and the order of a day are in [day 1; day 2]; what starts again goes on by [day 4.5].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.roles.ledger_message import floats_of, octets_of
from veilgrid.roles.ledger_operator import Fallback, Operator
from veilgrid.roles.ledger_seat import Agreement, Patience
from veilgrid.roles.ledger_site import SiteGroup
from veilgrid.roles.ledger_validator import Validator
from veilgrid.roles.ledger_worker import Worker
from veilgrid.roles.sealed.day import PublicDay, costs_alone
from veilgrid.roles.sealed.deployment import pack_public, pack_site, unpack_public, unpack_site
from veilgrid.secret import Randomness
from veilgrid.signature import Signs


class ValidatorArguments(msgspec.Struct, frozen=True):
    """What a validator's process is told: nothing that is not public."""

    agreement: Agreement
    public: bytes
    tells_all: bool = False


class OperatorArguments(msgspec.Struct, frozen=True):
    """What the operator's process is told: what is public, and its register's forecasts."""

    agreement: Agreement
    public: bytes
    demand_p: bytes
    demand_q: bytes
    voltage_min_pu: float | None
    voltage_max_pu: float | None


class GroupArguments(msgspec.Struct, frozen=True):
    """What a process of sites is told: its own owners' bids, by bus name."""

    agreement: Agreement
    sites: dict[str, bytes]
    costs_alone: dict[str, float]
    penalties: dict[str, tuple[float, float]]


def groups_of(buses: Sequence[str], count: int) -> dict[str, str]:
    """Share sites among so many processes, in bus order."""
    return {bus: f"site-{index * count // len(buses) + 1}" for index, bus in enumerate(buses)}


def agreement_of(
    day: Day,
    *,
    validator_count: int = 4,
    worker_count: int = 2,
    group_count: int = 2,
    keys: Mapping[str, bytes] | None = None,
    patience: Patience | None = None,
) -> Agreement:
    """Name the processes of a day; without keys, those of the deployment are filled in there."""
    buses = tuple(str(site.name) for site in day.sites)
    return Agreement(
        day=day.name,
        operator="operator",
        validators=tuple(f"validator-{k}" for k in range(1, validator_count + 1)),
        workers=tuple(f"worker-{k}" for k in range(1, worker_count + 1)),
        buses=buses,
        flexible=tuple(day.flexible),
        groups=groups_of(buses, min(group_count, len(buses))),
        keys=dict(keys or {}),
        patience=patience or Patience(),
    )


def operator_arguments(day: Day, limits: Limits, agreement: Agreement) -> OperatorArguments:
    """Write what the operator is told."""
    demand_p, demand_q = day.demands(list(day.uncontrolled))
    return OperatorArguments(
        agreement,
        pack_public(PublicDay.of(day, limits)),
        octets_of(demand_p),
        octets_of(demand_q),
        day.network.voltage_min_pu,
        day.network.voltage_max_pu,
    )


def validator_arguments(
    day: Day, limits: Limits, agreement: Agreement, *, tells_all: bool = False
) -> ValidatorArguments:
    """Write what a validator is told."""
    return ValidatorArguments(agreement, pack_public(PublicDay.of(day, limits)), tells_all)


def group_arguments(day: Day, limits: Limits, agreement: Agreement, group: str) -> GroupArguments:
    """Write what one process of sites is told."""
    register, alone = PublicDay.of(day, limits).register, costs_alone(day)
    own = [index for index, bus in enumerate(agreement.buses) if agreement.groups[bus] == group]
    penalties = {}
    for index in own:
        if index in agreement.flexible:
            give_p, give_q = float(register.give_p[index]), float(register.give_q[index])
            reactive = 1.0 / give_q if give_q > 0.0 else 0.0
            penalties[agreement.buses[index]] = (1.0 / give_p, reactive)
    return GroupArguments(
        agreement,
        {agreement.buses[index]: pack_site(day.sites[index]) for index in own},
        {agreement.buses[index]: float(alone[index]) for index in own},
        penalties,
    )


# -- factories of processes -----------------------------------------------------------------------


def with_keys(agreement: Agreement, verify_keys: Mapping[NodeId, bytes]) -> Agreement:
    """Return the agreement with the keys that a deployment made, where it has none."""
    if agreement.keys:
        return agreement
    keys = {str(node): key for node, key in verify_keys.items()}
    return msgspec.structs.replace(agreement, keys=keys)


def build_validator(
    me: NodeId,
    arguments: ValidatorArguments,
    records: Sequence[Any],
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Validator:
    """Make a validator."""
    agreement = with_keys(arguments.agreement, verify_keys)
    public = unpack_public(arguments.public)
    return Validator(me, agreement, public, signer, records, tells_all=arguments.tells_all)


def build_worker(
    me: NodeId,
    arguments: Agreement,
    records: Sequence[Any],
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Worker:
    """Make a worker."""
    return Worker(me, with_keys(arguments, verify_keys), signer, records)


def build_operator(
    me: NodeId,
    arguments: OperatorArguments,
    records: Sequence[Any],
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Operator:
    """Make the operator."""
    public = unpack_public(arguments.public)
    shape = (public.register.bus_count, public.register.interval_count)
    demand_p, demand_q = (
        floats_of(arguments.demand_p, *shape),
        floats_of(arguments.demand_q, *shape),
    )
    if demand_p is None or demand_q is None:
        raise ValueError("the register's forecasts have one number for each bus and interval")
    limits = arguments.voltage_min_pu, arguments.voltage_max_pu
    fallback = Fallback(
        demand_p=demand_p, demand_q=demand_q, voltage_min_pu=limits[0], voltage_max_pu=limits[1]
    )
    agreement = with_keys(arguments.agreement, verify_keys)
    return Operator(me, agreement, public, fallback, signer, records)


def build_group(
    me: NodeId,
    arguments: GroupArguments,
    records: Sequence[Any],
    signer: Signs,
    randomness: Randomness,
    verify_keys: Mapping[NodeId, bytes],
) -> SiteGroup:
    """Make the edge devices of one process."""
    return SiteGroup(
        me,
        with_keys(arguments.agreement, verify_keys),
        signer,
        {bus: unpack_site(octets) for bus, octets in arguments.sites.items()},
        arguments.costs_alone,
        arguments.penalties,
        randomness,
        records,
    )
