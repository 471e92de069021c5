"""What is said about the rounds of a committee, and what proves that a call is right [mpc 11].

Messages, journal records, and the rule by which signed verdicts prove somebody faulty.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import msgspec

from veilgrid.machine import NodeId
from veilgrid.mpc import policy
from veilgrid.mpc.message import Message as Inner
from veilgrid.signature import Signs, verify

CALL_DOMAIN: Final = "mpc/1/call"
VERDICT_DOMAIN: Final = "mpc/1/verdict"
MEMBERS_MIN: Final = 3


class Verdict(msgspec.Struct, frozen=True, tag=True):
    """How a round ended for one member, signed.

    Attributes
    ----------
    seat : 1..7
        Of the member in the committee.
    kind
        ``finished``, ``cheated`` or ``silent`` (of ``culprits``), ``refused`` (the function found
        its input unusable), ``left`` (the member restarted in the round).
    digest
        SHA-256 of the encoded result, or of the reason; empty if there is neither.
    culprits
        Seats.
    """

    session: bytes
    number: int
    seat: int
    kind: str
    digest: bytes
    culprits: list[int]
    signature: bytes = b""


class Exclusion(msgspec.Struct, frozen=True, tag=True):
    """The verdicts on one round: they prove who was faulty in it to everybody."""

    number: int
    members: list[int]
    degree: int
    verdicts: list[Verdict]


class Call(msgspec.Struct, frozen=True, tag=True):
    """The convener calls a round.

    Attributes
    ----------
    number
        Of the round; larger than any before.
    task
        Which of the results that are wanted it is for; the same one again after a failure.
    members
        Seats that take part, rising.
    degree
        Of all sharings of this round.
    exclusions
        Why the other seats do not.
    """

    committee: bytes
    number: int
    task: int
    members: list[int]
    degree: int
    exclusions: list[Exclusion]
    signature: bytes = b""


class Sent(msgspec.Struct, frozen=True, tag=True):
    """A gateway has sent what its clients have for a round; ``missing`` send nothing."""

    session: bytes
    missing: list[str]


class Present(msgspec.Struct, frozen=True, tag=True):
    """A member that was left out, or restarted, is there for rounds after ``last``."""

    seat: int
    last: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """No more rounds will be called."""

    committee: bytes


Message = Inner | Call | Verdict | Sent | Present | Close


class Entered(msgspec.Struct, frozen=True, tag=True):
    """Journal: from here on the member takes part in no round up to ``number``."""

    number: int
    session: bytes
    members: list[int]
    proven: list[int]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Journal: how a round ended."""

    verdict: Verdict


Record = Entered | Ended


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """What a member tells the world of one round.

    Attributes
    ----------
    kind, reason
        As in :class:`Verdict`, and in words.
    result
        What the function returned; None if the round did not finish.
    culprits
        Names of who cheated or was silent, as this member found.
    """

    number: int
    task: int
    kind: str
    result: Any
    reason: str
    culprits: list[str]
    members: list[str]
    degree: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What all agreed on before the first round.

    Attributes
    ----------
    committee
        Name of this committee and its purpose; differs between any two.
    seats
        All members ever, in order; the first has seat 1.
    degree
        With all of them.
    degree_min
        No round runs at a lower one.
    is_linear
        The function multiplies nothing and inputs are not validated, so that degrees of up to
        two thirds are possible.
    """

    committee: bytes
    seats: tuple[NodeId, ...]
    degree: int
    degree_min: int = 1
    is_linear: bool = False

    def degree_of(self, count: int) -> int:
        """Return the degree of a round with ``count`` members."""
        largest = policy.linear_degree(count) if self.is_linear else policy.product_degree(count)
        return self.degree if count == len(self.seats) else min(self.degree, largest)

    def is_possible(self, count: int) -> bool:
        """Return whether a round may run with ``count`` members."""
        return count >= MEMBERS_MIN and self.degree_of(count) >= self.degree_min

    def session(self, number: int, members: Sequence[int], degree: int) -> bytes:
        """Return the session of a round: nothing said in it counts in another."""
        text = b"veilgrid round %d:%s|%d|%d|" % (
            len(self.committee),
            self.committee,
            number,
            degree,
        )
        return hashlib.sha256(text + bytes(members)).digest()

    def names(self, members: Iterable[int]) -> tuple[NodeId, ...]:
        """Return the names of seats."""
        return tuple(self.seats[seat - 1] for seat in members)


def signed_call(call: Call, signer: Signs) -> Call:
    """Return the call with the convener's signature."""
    return msgspec.structs.replace(call, signature=signer.sign(CALL_DOMAIN, _unsigned(call)))


def signed_verdict(verdict: Verdict, signer: Signs) -> Verdict:
    """Return the verdict with the member's signature."""
    signature = signer.sign(VERDICT_DOMAIN, _unsigned(verdict))
    return msgspec.structs.replace(verdict, signature=signature)


def is_signed(verdict: Verdict, key: bytes) -> bool:
    """Return whether the member with this key gave the verdict."""
    return verify(key, VERDICT_DOMAIN, _unsigned(verdict), verdict.signature)


def _unsigned(message: Call | Verdict) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(message, signature=b""))


def surely_faulty(
    members: Sequence[int], degree: int, accusations: Iterable[tuple[int, int]]
) -> set[int]:
    """Return who is faulty whoever is believed, if at most ``degree`` members are [mpc 11.3].

    Of the two ends of an accusation one is faulty: an honest member accuses nobody who was honest
    and in time. So the faulty ones cover all accusations; who is in every cover of at most
    ``degree`` members is proved. A member that accuses itself has left.
    """
    edges = set(accusations)
    covers = [
        set(some)
        for size in range(degree + 1)
        for some in combinations(members, size)
        if all(a in some or b in some for a, b in edges)
    ]
    return set.intersection(*covers) if covers else set()


def accusations_of(verdicts: Iterable[Verdict], kinds: Sequence[str]) -> set[tuple[int, int]]:
    """Return (accuser, accused) for verdicts of these kinds; who left accuses itself."""
    edges = set()
    for verdict in verdicts:
        if verdict.kind == "left" and "silent" in kinds:
            edges.add((verdict.seat, verdict.seat))
        elif verdict.kind in kinds:
            edges |= {(verdict.seat, culprit) for culprit in verdict.culprits}
    return edges


def faults(exclusion: Exclusion) -> tuple[set[int], set[int]]:
    """Return who was faulty in a round, and who of them is proved to have cheated."""
    members, degree, given = exclusion.members, exclusion.degree, exclusion.verdicts
    faulty = surely_faulty(members, degree, accusations_of(given, ("cheated", "silent")))
    cheated = surely_faulty(members, degree, accusations_of(given, ("cheated",)))
    return faulty, cheated


def is_genuine(exclusion: Exclusion, terms: Terms, keys: Mapping[NodeId, bytes]) -> bool:
    """Return whether every verdict is of this round, of a member of it, and signed."""
    seats = [verdict.seat for verdict in exclusion.verdicts]
    if len(set(seats)) != len(seats) or not set(seats) <= set(exclusion.members):
        return False
    session = terms.session(exclusion.number, exclusion.members, exclusion.degree)
    return all(
        verdict.session == session
        and verdict.number == exclusion.number
        and set(verdict.culprits) <= set(exclusion.members)
        and is_signed(verdict, keys[terms.seats[verdict.seat - 1]])
        for verdict in exclusion.verdicts
    )


def refusal(
    call: Call, terms: Terms, convener_key: bytes, keys: Mapping[NodeId, bytes]
) -> tuple[str, set[int]]:
    """Return why a call is refused (empty if it is not), and who is proved to have cheated."""
    everyone = set(range(1, len(terms.seats) + 1))
    members = set(call.members)
    if not verify(convener_key, CALL_DOMAIN, _unsigned(call), call.signature):
        return "not signed by the convener", set()
    if call.committee != terms.committee or sorted(members) != call.members:
        return "not a call of this committee", set()
    if not members <= everyone or not terms.is_possible(len(members)):
        return "too few members for the degree", set()
    if call.degree != terms.degree_of(len(members)):
        return "not the degree that was agreed on", set()
    out: set[int] = set()
    proven: set[int] = set()
    for exclusion in call.exclusions:
        if not set(exclusion.members) <= everyone or exclusion.number >= call.number:
            return "a reason for leaving somebody out does not stand", set()
        if exclusion.degree != terms.degree_of(len(exclusion.members)):
            return "a reason for leaving somebody out does not stand", set()
        if not is_genuine(exclusion, terms, keys):
            return "a reason for leaving somebody out does not stand", set()
        faulty, cheated = faults(exclusion)
        out |= faulty
        proven |= cheated
    if not everyone - members <= out:
        return "somebody is left out without a reason", set()
    if proven & members:
        return "somebody who cheated takes part", set()
    return "", proven
