"""What the processes of a sealed day do: parties compute on shares, sites keep their data."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from nacl.signing import SigningKey, VerifyKey

from veilgrid.cli._known import Known, known_of
from veilgrid.cli._part import (
    SEALED_ROLES,
    Work,
    check,
    day_of,
    groups_of,
    names_of,
    planned,
    provider_of,
    session_of,
)
from veilgrid.cli._part import agreement_in as ledger_agreement_in
from veilgrid.machine import Machine, NodeId
from veilgrid.node.attest.admission import PolicyAssessor, quote_by
from veilgrid.node.attest.day import attested
from veilgrid.node.hosted import Part
from veilgrid.node.settings import Settings
from veilgrid.roles import ledger_seat
from veilgrid.roles.ledger_message import Seated
from veilgrid.roles.ledger_validator import Validator
from veilgrid.roles.sealed import message
from veilgrid.roles.sealed.admission import Admitting, asked_of
from veilgrid.roles.sealed.keys import SiteKeys
from veilgrid.roles.sealed.ledger import (
    RecordingSites,
    SealedOperator,
    SealedValidator,
    TellingParty,
)
from veilgrid.roles.sealed.ledger_message import (
    KEPT,
    LEDGER_JOURNAL,
    SEATED_RECORDS,
    WIRE,
    Recorded,
    Words,
)
from veilgrid.roles.sealed.message import Agreement, Collected, DayEnded
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.payer import Payer, PayerRecord
from veilgrid.roles.sealed.paying import PayingOperator
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.roles.sealed.sites_kept import SiteOutcome, SiteRecord
from veilgrid.secret import Secret, SystemRandomness
from veilgrid.signature import Signer


def box_key_of(signer: Signer) -> Secret[bytes]:
    """Return the decryption key that goes with a signature key (libsodium's conversion)."""
    key = SigningKey(signer.seed.reveal_to("own decryption key"))
    return Secret(bytes(key.to_curve25519_private_key()))


def box_of(verify_key: bytes) -> bytes:
    """Return the public encryption key that goes with a public signature key."""
    return bytes(VerifyKey(verify_key).to_curve25519_public_key())


def agreement_in(settings: Settings, known: Known) -> Agreement:
    """Return who takes part in a sealed day; the same from every process's files."""
    keys = {one.node: bytes.fromhex(one.verify_key) for one in settings.deployment.process}
    groups, parties = groups_of(settings), names_of(settings, "party")
    homes = {bus: groups[name] for bus, name in enumerate(known.buses)}
    degree = settings.deployment.degree
    payer = next(iter(names_of(settings, "operator")), None)
    return Agreement(
        session_of(settings, known.day),
        tuple(NodeId(name) for name in parties),
        (len(parties) - 1) // 2 if degree is None else degree,
        tuple(box_of(keys[name]) for name in parties),
        {bus: keys[home] for bus, home in homes.items()},
        {bus: NodeId(home) for bus, home in homes.items()},
        payer=None if payer is None else NodeId(payer),
        payer_key=b"" if payer is None else keys[payer],
    )


def sealed(settings: Settings) -> Work:
    """Return what a process does on a sealed day, by its role."""
    known = known_of(settings)
    check(settings, known.buses, SEALED_ROLES, is_flexible=bool(known.public.flexible))
    agreement, ledger = agreement_in(settings, known), _ledger_in(settings, known)
    if settings.me.role == "operator":
        return _operator(settings, known, agreement, ledger)
    if settings.me.role == "validator":
        return _validator(settings, known, agreement)
    is_site = settings.me.role == "site"
    ended: list[SiteOutcome] = []

    def build(records: Sequence[Any]) -> Machine:
        machine = plain(records)
        if not settings.deployment.attested:
            return machine
        if is_site and ledger is not None:
            machine = _evidenced(settings, machine, ledger)
        return _admitting(settings, machine)

    def plain(records: Sequence[Any]) -> Machine:
        if not is_site:
            party = _party(settings, agreement, known, records)
            return party if ledger is None else TellingParty(party, ledger)
        held = [record for record in records if not isinstance(record, Seated)]
        group = _sites(settings, agreement, known, held)
        if ledger is None:
            return group
        return RecordingSites(settings.node, group, ledger, settings.signer(), records)

    def is_end(outcome: Any) -> bool:
        if isinstance(outcome, SiteOutcome):
            ended.append(outcome)
        if is_site and ledger is not None:
            return isinstance(outcome, Recorded)
        return isinstance(outcome, SiteOutcome | DayEnded)

    part = Part(
        day=day_of(settings, known.day),
        messages=WIRE,
        records=_records(is_site=is_site, is_recorded=ledger is not None),
        build=build,
        peers=SEALED_ROLES,
        quorum=("party", len(agreement.parties)),
        needed=frozenset({"party", "site"}),
        is_end=is_end,
        is_stop=_is_stop,
        is_over=lambda records: ledger is None and any(is_end(record) for record in records),
    )

    def plan() -> list[dict[str, Any]]:
        found = ended[-1]
        return [
            planned(
                site,
                np.frombuffer(found.setpoints[bus], "<f8")
                if bus in found.setpoints
                else site.uncontrolled,
                known.registered.base_mva,
                payment=found.payments.get(bus),
                cost_alone=known.alone[bus],
            )
            for bus, site in known.sites.items()
        ]

    return Work(part, plan=plan if is_site else list)


def _is_stop(outcome: Any) -> bool:
    return isinstance(outcome, message.Stopped)


def _records(*, is_site: bool, is_recorded: bool) -> Any:
    """Return the union that a journal holds."""
    if not is_site:
        return message.Record
    return SEATED_RECORDS if is_recorded else SiteRecord


def _ledger_in(settings: Settings, known: Known) -> ledger_seat.Agreement | None:
    """Return who keeps the ledger of a sealed day; None if the deployment has none."""
    if not names_of(settings, "validator"):
        return None
    return ledger_agreement_in(settings, known.day, known.buses, known.public.flexible)


def _evidenced(settings: Settings, machine: Machine, ledger: ledger_seat.Agreement) -> Machine:
    """Show the ledger's validators evidence and, of a validator, ask for it."""
    return attested(machine, settings.node, ledger, provider_of(settings), settings.policy_path)


def _admitting(settings: Settings, machine: Machine) -> Machine:
    """Have parties and sites hear only whom they admit by evidence."""
    keys = {one.node: bytes.fromhex(one.verify_key) for one in settings.deployment.process}

    def of(role: str) -> dict[NodeId, bytes]:
        return {NodeId(name): keys[name] for name in names_of(settings, role)}

    return Admitting(
        machine,
        settings.node,
        asked_of(settings.node, of("party"), of("site")),
        quote=quote_by(provider_of(settings), time.time),
        assessor=PolicyAssessor(settings.policy_path, SystemRandomness(), time.time),
        patience_ns=round(settings.deployment.patience_s * 1e9),
    )


def _party(
    settings: Settings, agreement: Agreement, known: Known, records: Sequence[Any]
) -> SealedParty:
    from veilgrid.mpc.workload import warm_up

    warm_up()
    signer, public = settings.signer(), known.public
    return SealedParty(
        settings.node,
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


def _sites(
    settings: Settings, agreement: Agreement, known: Known, records: Sequence[Any]
) -> SiteGroup:
    signer = settings.signer()
    keys = SiteKeys(signer, box_key_of(signer))
    return SiteGroup(
        settings.node,
        agreement,
        known.public.course(),
        known.sites,
        known.alone,
        keys=dict.fromkeys(known.sites, keys),
        randomness=SystemRandomness(),
        executor=ThreadPoolExecutor(2),
        records=records,
    )


def _operator(
    settings: Settings, known: Known, agreement: Agreement, ledger: ledger_seat.Agreement | None
) -> Work:
    """Return what the operator does: it hears all payments, and proposes what is recorded."""
    unit = known.public.register.unit
    signer, me, held = settings.signer(), settings.node, list[PayingOperator | Payer]()

    def build(records: Sequence[Any]) -> Machine:
        own = [record for record in records if isinstance(record, PayerRecord)]
        payer = Payer(
            me, agreement, unit, signer=signer, randomness=SystemRandomness(), records=own
        )
        machine: PayingOperator | Payer = payer
        if ledger is not None:
            others = [record for record in records if not isinstance(record, PayerRecord)]
            words = Words(ledger.day, agreement.parties, agreement.degree, others)
            recorder = SealedOperator(me, ledger, words, signer, others)
            machine = PayingOperator(payer, recorder, ledger, others)
        held[:] = [machine]
        return machine

    def plan() -> list[dict[str, Any]]:
        machine = held[-1]
        if isinstance(machine, PayingOperator):
            return machine.accounts()
        payments = machine.collected.payments if machine.collected else {}
        return [{"site": known.buses[bus], "payment": paid} for bus, paid in payments.items()]

    last = Collected if ledger is None else Recorded
    quorum = ("party", len(agreement.parties))
    part = Part(
        day=day_of(settings, known.day),
        messages=WIRE,
        records=PayerRecord if ledger is None else LEDGER_JOURNAL,
        build=build,
        peers=SEALED_ROLES,
        quorum=quorum if ledger is None else ("validator", ledger.genesis.quorum),
        needed=frozenset({"party", "site"}),
        is_end=lambda outcome: isinstance(outcome, last),
        is_stop=_is_stop,
        is_over=lambda records: any(isinstance(one, last) for one in records),
    )
    return Work(part, plan=plan)


def _validator(settings: Settings, known: Known, agreement: Agreement) -> Work:
    """Return what a validator of a sealed day's ledger does."""
    ledger = ledger_agreement_in(settings, known.day, known.buses, known.public.flexible)
    public = known.public
    signer, me, exports = settings.signer(), settings.node, list[bytes]()

    def build(records: Sequence[Any]) -> Machine:
        words = Words(ledger.day, agreement.parties, agreement.degree, records)
        own = [record for record in records if not isinstance(record, KEPT)]
        inner = Validator(me, ledger, public, signer, own, tells_all=False)
        machine = SealedValidator(inner, ledger, words, records)
        return _evidenced(settings, machine, ledger) if ledger.is_attested else machine

    def is_end(outcome: Any) -> bool:
        if isinstance(outcome, Recorded) and outcome.export:
            exports[:] = [outcome.export]
        return isinstance(outcome, Recorded)

    part = Part(
        day=ledger.day,
        messages=WIRE,
        records=LEDGER_JOURNAL,
        build=build,
        peers=SEALED_ROLES,
        quorum=("validator", ledger.genesis.quorum),
        needed=frozenset({"party", "site"}),
        is_end=is_end,
        is_stop=_is_stop,
    )
    return Work(part, files=lambda: {"ledger.json": exports[-1]} if exports else {})
