"""What the processes of a sealed day do: parties compute on shares, sites keep their data."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from nacl.signing import SigningKey, VerifyKey

from veilgrid.cli._part import Work, day_of, groups_of, names_of, planned, session_of
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import Machine, NodeId
from veilgrid.node.hosted import Part
from veilgrid.node.settings import Settings
from veilgrid.roles.sealed import message
from veilgrid.roles.sealed.day import SETTINGS, PublicDay, costs_alone
from veilgrid.roles.sealed.message import Agreement, DayEnded
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.sites import SiteGroup, SiteKeys, SiteOutcome, SiteRecord
from veilgrid.secret import Secret, SystemRandomness
from veilgrid.signature import Signer


def box_key_of(signer: Signer) -> Secret[bytes]:
    """Return the decryption key that goes with a signature key (libsodium's conversion)."""
    key = SigningKey(signer.seed.reveal_to("own decryption key"))
    return Secret(bytes(key.to_curve25519_private_key()))


def box_of(verify_key: bytes) -> bytes:
    """Return the public encryption key that goes with a public signature key."""
    return bytes(VerifyKey(verify_key).to_curve25519_public_key())


def agreement_in(settings: Settings, day: Day) -> Agreement:
    """Return who takes part in a sealed day; the same from every process's files."""
    keys = {one.node: bytes.fromhex(one.verify_key) for one in settings.deployment.process}
    groups, parties = groups_of(settings), names_of(settings, "party")
    homes = {bus: groups[str(site.name)] for bus, site in enumerate(day.sites)}
    degree = settings.deployment.degree
    return Agreement(
        session_of(settings, day),
        tuple(NodeId(name) for name in parties),
        (len(parties) - 1) // 2 if degree is None else degree,
        tuple(box_of(keys[name]) for name in parties),
        {bus: keys[home] for bus, home in homes.items()},
        {bus: box_of(keys[home]) for bus, home in homes.items()},
        {bus: NodeId(home) for bus, home in homes.items()},
    )


def sealed(settings: Settings, day: Day, base_mva: float) -> Work:
    """Return what a party or a process of sites does."""
    agreement = agreement_in(settings, day)
    public = PublicDay.of(day, Limits.of(day.network), SETTINGS)
    signer, me = settings.signer(), settings.node
    alone = costs_alone(day) if settings.me.role == "site" else {}
    own = [bus for bus, home in agreement.groups.items() if home == me]
    ended: list[SiteOutcome] = []

    def party(records: Sequence[Any]) -> Machine:
        from veilgrid.mpc.workload import warm_up

        warm_up()
        return SealedParty(
            me,
            agreement,
            public.course(),
            public.shapes,
            public.tolerances,
            box_key=box_key_of(signer),
            signer=signer,
            verify_keys={
                NodeId(one.node): bytes.fromhex(one.verify_key)
                for one in settings.deployment.process
                if one.role == "party"
            },
            randomness=SystemRandomness(),
            patience_ns=round(settings.deployment.patience_s * 1e9),
            records=records,
        )

    def sites(records: Sequence[Any]) -> Machine:
        keys = SiteKeys(signer, box_key_of(signer))
        return SiteGroup(
            me,
            agreement,
            public.course(),
            {bus: day.sites[bus] for bus in own},
            {bus: alone[bus] for bus in own},
            keys=dict.fromkeys(own, keys),
            randomness=SystemRandomness(),
            executor=ThreadPoolExecutor(2),
            records=records,
        )

    def build(records: Sequence[Any]) -> Machine:
        return party(records) if settings.me.role == "party" else sites(records)

    def is_end(outcome: Any) -> bool:
        if isinstance(outcome, SiteOutcome):
            ended.append(outcome)
        return isinstance(outcome, SiteOutcome | DayEnded)

    part = Part(
        day=day_of(settings, day),
        messages=message.Message,
        records=message.Record if settings.me.role == "party" else SiteRecord,
        build=build,
        peers=frozenset({"party", "site"}),
        quorum=("party", len(agreement.parties)),
        is_patient=False,
        is_end=is_end,
        is_over=lambda records: any(is_end(record) for record in records),
    )

    def plan() -> list[dict[str, Any]]:
        found = ended[-1]
        return [
            planned(
                day.sites[bus],
                np.frombuffer(found.setpoints[bus], "<f8")
                if bus in found.setpoints
                else day.sites[bus].uncontrolled,
                base_mva,
                payment=found.payments.get(bus),
                cost_alone=alone[bus],
            )
            for bus in own
        ]

    return Work(part, plan=plan if settings.me.role == "site" else list)
