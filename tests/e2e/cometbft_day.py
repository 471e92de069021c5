"""A day's operations for the ledger under CometBFT, and the application that is replicated."""

import hashlib

from veilgrid.ledger.application import Coordination
from veilgrid.ledger.message import Configuration, Member, Notary, keys_of
from veilgrid.ledger.operation import (
    Approve,
    Bid,
    CloseBids,
    CloseDay,
    OpenDay,
    Operation,
    ProposeIteration,
    ProposeSettlement,
    RevealBeacon,
    SealBeacon,
    seal_of,
    subject_of,
)
from veilgrid.ledger.state import Roles
from veilgrid.secret import Secret
from veilgrid.signature import Signer

DAY = "2026-06-01"
VALIDATORS = tuple(f"validator-{index}" for index in range(1, 5))
SITES = ("site:a", "site:b")
SIGNERS = {
    name: Signer(Secret(hashlib.sha256(b"cometbft day " + name.encode()).digest()))
    for name in (*VALIDATORS, "operator", *SITES)
}


def _members(names: tuple[str, ...]) -> tuple[Member, ...]:
    return tuple(Member(name, SIGNERS[name].verify_key) for name in names)


GENESIS = Configuration(0, _members(VALIDATORS), _members(("operator", *SITES)))


def coordination_of(genesis: Configuration) -> Coordination:
    """Make the application of a day."""
    validators = tuple(member.node for member in genesis.replicas)
    return Coordination(
        Roles("operator", validators), Notary(genesis.digest()), keys_of(genesis.replicas)
    )


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def course() -> list[tuple[str, Operation]]:
    """Who says what, from opening a day to closing it, with a refusal on the way."""
    values = {name: digest("value " + name) for name in VALIDATORS[:3]}
    step = ProposeIteration(DAY, 1, digest("average"), 10, 20, True)
    payments = ProposeSettlement(DAY, (("operator", -5), ("site:a", 2), ("site:b", 3)))
    return [
        ("operator", OpenDay(DAY, SITES, 0)),
        *((site, Bid(DAY, digest(site))) for site in SITES),
        (SITES[0], Bid(DAY, digest("another"))),
        *((v, SealBeacon(DAY, seal_of(x, v, DAY))) for v, x in values.items()),
        ("operator", CloseBids(DAY)),
        *((v, RevealBeacon(DAY, x)) for v, x in values.items()),
        ("operator", step),
        *((v, Approve(DAY, subject_of(step), True)) for v in values),
        ("operator", payments),
        *((v, Approve(DAY, subject_of(payments), True)) for v in values),
        ("operator", CloseDay(DAY)),
    ]
