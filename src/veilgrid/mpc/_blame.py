"""Who deviated: from what was signed [mpc 8]."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from veilgrid.mpc.message import Finding, Testimony, statement

if TYPE_CHECKING:
    from veilgrid.mpc.party import Heading, Party, State

_NOTHING = bytes(32)


def testify(session: bytes, rounds: "list[Heading]", n: int) -> Testimony:
    digests, signatures, private = bytearray(), bytearray(), []
    for number, heading in enumerate(rounds):
        for party in range(1, n + 1):
            said = heading.said.get(party)
            if said is None:
                digests += _NOTHING
                signatures += bytes(64)
                continue
            digests += hashlib.sha256(said.shared).digest()
            signatures += said.signature
            if said.private and number > 0:
                private.append((number, party, said.private, said.private_signature))
    return Testimony(session, len(rounds), bytes(digests), bytes(signatures), private)


def contradictions(party: "Party", testimonies: Mapping[int, Testimony]) -> set[int]:
    named: set[int] = set()
    return named


def recompute(party: "Party", state: "State") -> Finding | None:
    return None


def conclude(party: "Party", state: "State") -> set[int]:
    return set()
