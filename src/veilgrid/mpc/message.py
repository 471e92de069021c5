"""What parties and clients say to each other, and what is signed [mpc 7.1]."""

from typing import Any, Final

import msgspec

from veilgrid.machine import NodeId

DOMAIN: Final = "mpc/1/said"


class Said(msgspec.Struct, frozen=True, tag=True):
    """What one party says in one round.

    Attributes
    ----------
    shared
        Little-endian words for everyone; the signature covers its digest.
    private
        Words for this receiver alone.
    signature
        Of the sender, over session, round, sender and digest of ``shared``.
    private_signature
        The same over receiver and digest of ``private``; empty if there is none.
    """

    session: bytes
    round: int
    shared: bytes
    private: bytes = b""
    signature: bytes = b""
    private_signature: bytes = b""


class Alarm(msgspec.Struct, frozen=True, tag=True):
    """A check of ``raiser`` failed in a round: everyone turns to finding out why.

    Who joins in passes it on, so that nobody waits for those who stopped.
    """

    session: bytes
    round: int
    raiser: int
    signature: bytes


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Ask for what ``sender`` said in a round: it has not arrived at ``asker``.

    Private words come sealed for ``box``, which the asker signs.
    """

    session: bytes
    round: int
    sender: int
    asker: int
    box: bytes = b""
    signature: bytes = b""


class Sealed(msgspec.Struct, frozen=True, tag=True):
    """Private words of ``sender`` and their signature, for the box of ``asker``."""

    session: bytes
    round: int
    sender: int
    asker: int
    box: bytes
    inside: bytes
    signature: bytes


class Reproach(msgspec.Struct, frozen=True, tag=True):
    """The key of a box shows that its sender sealed what it did not sign."""

    sealed: Sealed
    key: bytes


class Relay(msgspec.Struct, frozen=True, tag=True):
    """Pass on what ``sender`` said to all."""

    sender: int
    said: Said


class Testimony(msgspec.Struct, frozen=True, tag=True):
    """What the sender heard: digest and signature of each round and party, in order.

    ``private`` holds, for rounds with kings, the private words received, with signatures, and
    ``alarms`` who raised an alarm of which round, signed. ``reproaches`` prove who sealed nonsense.
    """

    session: bytes
    round_count: int
    digests: bytes
    signatures: bytes
    private: list[tuple[int, int, bytes, bytes]]
    alarms: list[tuple[int, int, bytes]]
    reproaches: list[Reproach]
    signature: bytes = b""


class Finding(msgspec.Struct, frozen=True, tag=True):
    """What the sender computed again, in a step of the blame protocol."""

    session: bytes
    step: int
    body: bytes
    signature: bytes


class Passed(msgspec.Struct, frozen=True, tag=True):
    """Pass on what ``author`` testified or found, so that all have the same in hand."""

    session: bytes
    author: int
    told: Testimony | Finding


class Submission(msgspec.Struct, frozen=True, tag=True):
    """A client's one message, the same for every party [mpc 7.4].

    Attributes
    ----------
    correction
        Words that, added to what the seeds give, make up the input.
    commitments
        Digest of each set's seed, in the order of the sets.
    boxes
        For each party the seeds of its sets, sealed.
    """

    session: bytes
    client: str
    form: str
    correction: bytes
    commitments: list[bytes]
    boxes: list[bytes]
    signature: bytes


class Output(msgspec.Struct, frozen=True, tag=True):
    """One party's sealed share of what opens to one client only."""

    session: bytes
    label: str
    box: bytes


Message = Said | Alarm | Testimony | Finding | Passed | Ask | Sealed | Relay | Submission | Output


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The computation is done.

    Attributes
    ----------
    result
        What the function returned.
    round_count, octets_sent
        Of this party.
    """

    result: Any
    round_count: int
    octets_sent: int


class Aborted(msgspec.Struct, frozen=True, tag=True):
    """The computation ended without a result; nothing was opened that was not verified.

    Attributes
    ----------
    reason
        What was found.
    culprits
        Who deviated (kind ``cheated``) or was absent (kind ``silent``); empty if unknown.
    """

    reason: str
    culprits: list[str]
    kind: str


Outcome = Finished | Aborted


def statement(session: bytes, round_number: int, sender: int, digest: bytes) -> bytes:
    """Return what the sender of a round's shared words signs."""
    return b"%d:%s|%d|%d|" % (len(session), session, round_number, sender) + digest


def private_statement(
    session: bytes, round_number: int, sender: int, receiver: int, digest: bytes
) -> bytes:
    """Return what the sender of private words signs."""
    head = b"private %d:%s|%d|%d|%d|" % (len(session), session, round_number, sender, receiver)
    return head + digest


def party_names(parties: tuple[NodeId, ...], numbers: tuple[int, ...]) -> list[str]:
    """Return the names of 1-based parties."""
    return [str(parties[number - 1]) for number in numbers]
