"""What may be written to the ledger of a day, and what it answers [ledger 9].

Each operation is one msgpack-encoded tagged Struct. Who submits it is known from the signature of
its request. Digests are SHA-256; large things travel and rest beside the ledger.
"""

from typing import Final

import msgspec

from veilgrid.ledger.message import DIGEST_LENGTH, Accusation, digest_of, encode

MONEY_MAX: Final = 1 << 53
"""Bound of an amount in micro-units, and of a residual in units of 1e-9 per unit."""
NAME_LENGTH_MAX: Final = 100
REVEAL_LENGTH: Final = 32
SITE_COUNT_MAX: Final = 10_000


class OpenDay(msgspec.Struct, frozen=True, tag=True):
    """The operator opens a day for these sites.

    Attributes
    ----------
    redundancy
        How many workers solve each task; 0 for a day without tasks.
    rigid
        Sites without choice: they bid and are paid, and have no tasks.
    """

    day: str
    sites: tuple[str, ...]
    redundancy: int = 1
    rigid: tuple[str, ...] = ()


class Bid(msgspec.Struct, frozen=True, tag=True):
    """A site binds itself to a bid that it keeps."""

    day: str
    digest: bytes


class CloseBids(msgspec.Struct, frozen=True, tag=True):
    """The operator ends bidding; sites without a bid are excluded."""

    day: str


class SealBeacon(msgspec.Struct, frozen=True, tag=True):
    """A validator binds itself to a random value."""

    day: str
    seal: bytes


class RevealBeacon(msgspec.Struct, frozen=True, tag=True):
    """A validator opens its seal."""

    day: str
    value: bytes


class Announce(msgspec.Struct, frozen=True, tag=True):
    """A site announces the digest of its masked problem; workers are drawn."""

    day: str
    iteration: int
    digest: bytes


class Solve(msgspec.Struct, frozen=True, tag=True):
    """A worker binds itself to the quantised solution of an announced problem."""

    day: str
    iteration: int
    site: str
    problem: bytes
    solution: bytes


class Verdict(msgspec.Struct, frozen=True, tag=True):
    """A validator says whether a solution carries its certificate, and how long it took."""

    day: str
    iteration: int
    site: str
    worker: str
    solution: bytes
    is_accepted: bool
    elapsed_ms: int = 0


class Late(msgspec.Struct, frozen=True, tag=True):
    """A validator misses the solution of a worker; ``attempt`` counts draws of the task."""

    day: str
    iteration: int
    site: str
    worker: str
    attempt: int = 1


class Absent(msgspec.Struct, frozen=True, tag=True):
    """A validator misses a site, or the beacon value of another validator."""

    day: str
    who: str


class ProposeIteration(msgspec.Struct, frozen=True, tag=True):
    """The operator states what an iteration came to; residuals in units of 1e-9 per unit."""

    day: str
    iteration: int
    digest: bytes
    primal_residual: int
    dual_residual: int
    is_last: bool


class ProposeSettlement(msgspec.Struct, frozen=True, tag=True):
    """The operator states all payments, in micro-units; they sum to zero."""

    day: str
    payments: tuple[tuple[str, int], ...]


class Approve(msgspec.Struct, frozen=True, tag=True):
    """A validator has checked the proposal with this digest and says what it thinks."""

    day: str
    subject: bytes
    is_accepted: bool


class Evidence(msgspec.Struct, frozen=True, tag=True):
    """Two signed statements of one replica that contradict each other."""

    accusation: Accusation


class Admit(msgspec.Struct, frozen=True, tag=True):
    """A validator has judged evidence of attestation, or misses it [ledger 9.5].

    Attributes
    ----------
    who
        A site, a worker or another validator.
    evidence
        Digest of what was shown; empty if nothing was.
    reason
        Why it is refused.
    """

    day: str
    who: str
    evidence: bytes
    is_accepted: bool
    reason: str = ""


class CloseDay(msgspec.Struct, frozen=True, tag=True):
    """The operator closes a settled day."""

    day: str


Operation = (
    OpenDay
    | Bid
    | CloseBids
    | SealBeacon
    | RevealBeacon
    | Announce
    | Solve
    | Verdict
    | Late
    | Absent
    | ProposeIteration
    | ProposeSettlement
    | Approve
    | Evidence
    | Admit
    | CloseDay
)


# -- results --------------------------------------------------------------------------------------


class Done(msgspec.Struct, frozen=True, tag=True):
    """Recorded."""


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Nothing changed, and why."""

    reason: str


class Counted(msgspec.Struct, frozen=True, tag=True):
    """A vote was counted; that many of the needed ones are there."""

    count: int
    needed: int


class Assigned(msgspec.Struct, frozen=True, tag=True):
    """These workers are to solve the task; none if nobody is left."""

    site: str
    workers: tuple[str, ...]


class Settled(msgspec.Struct, frozen=True, tag=True):
    """A quorum has decided on what was voted about."""

    what: str
    subject: str
    is_accepted: bool
    workers: tuple[str, ...] = ()


class Fixed(msgspec.Struct, frozen=True, tag=True):
    """The beacon of the day is fixed."""

    beacon: bytes


Result = Done | Refused | Counted | Assigned | Settled | Fixed

_operations = msgspec.msgpack.Decoder(Operation)
_results = msgspec.msgpack.Decoder(Result)


def decode_operation(octets: bytes) -> Operation | None:
    """Return the operation, None if these octets are none."""
    try:
        operation: Operation = _operations.decode(octets)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return operation


def decode_result(octets: bytes) -> Result:
    """Return what the ledger answered."""
    result: Result = _results.decode(octets)
    return result


def seal_of(value: bytes, validator: str, day: str) -> bytes:
    """Return the seal of a random value."""
    return digest_of("seal", encode((day, validator, value)))


def subject_of(proposal: ProposeIteration | ProposeSettlement) -> bytes:
    """Return the digest by which validators approve a proposal."""
    return digest_of("proposal", encode(proposal))


def is_digest(octets: bytes) -> bool:
    """Return whether this has the length of a digest."""
    return len(octets) == DIGEST_LENGTH
