"""What replicas, clients and journals of the ledger say, and how it is signed [ledger 2].

Every signature covers canonical octets: msgpack of a tuple of fixed fields that begins with the
digest of the ledger's first configuration, under a domain that names the kind of statement. Nothing
here is a map, so there is one encoding of each statement.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from veilgrid.errors import invariant
from veilgrid.machine import NodeId
from veilgrid.signature import KEY_LENGTH, SIGNATURE_LENGTH, Signs
from veilgrid.signature import verify as verify_ed25519

DIGEST_LENGTH: Final = 32
OPERATION_COUNT_MAX: Final = 256
OPERATION_LENGTH_MAX: Final = 64 << 10
REQUEST_LENGTH_MAX: Final = 256 << 10
BATCH_REQUEST_COUNT_MAX: Final = 256
BATCH_LENGTH_MAX: Final = 1 << 20
CLIENT_WINDOW: Final = 16
"""How many requests of one client may be under way, and how many replies are kept for it."""
PART_LENGTH: Final = 512 << 10
PART_COUNT_MAX: Final = 4096
VIEW_BITS: Final = 32
"""A view is configuration number times 2 ** 32 plus the view within that configuration."""

Verify = Callable[[bytes, str, bytes, bytes], bool]
encode: Final = msgspec.msgpack.Encoder().encode


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A name and the key under which it signs."""

    node: str
    verify_key: bytes


class Configuration(msgspec.Struct, frozen=True, tag=True):
    """Who the replicas and clients are, from one boundary to the next [ledger 8]."""

    number: int
    replicas: tuple[Member, ...]
    clients: tuple[Member, ...]

    @property
    def fault_max(self) -> int:
        """How many replicas may deviate."""
        return (len(self.replicas) - 1) // 3

    @property
    def quorum(self) -> int:
        """Any two sets of this size share an honest replica: 2f + 1."""
        return 2 * self.fault_max + 1

    @property
    def backups_needed(self) -> int:
        """How many backups must prepare what the primary proposed: 2f."""
        return self.quorum - 1

    @property
    def first_view(self) -> int:
        """The first view of this configuration."""
        return self.number << VIEW_BITS

    def primary(self, view: int) -> NodeId:
        """Return who proposes in ``view`` [ledger 2.2]."""
        index = (view & ((1 << VIEW_BITS) - 1)) % len(self.replicas)
        return NodeId(self.replicas[index].node)

    def digest(self) -> bytes:
        """Return what names this configuration."""
        return digest_of("configuration", encode(self))

    def is_sound(self) -> bool:
        """Return whether sizes, names and keys make sense."""
        names = [member.node for member in (*self.replicas, *self.clients)]
        keys = [member.verify_key for member in (*self.replicas, *self.clients)]
        own = [member.verify_key for member in self.replicas]
        shared = {member.verify_key for member in self.clients}  # One process may hold several.
        return (
            0 <= self.number < 1 << 30
            and 1 <= len(self.replicas) <= 100
            and (len(self.replicas) - 1) % 3 == 0
            and len(self.clients) <= 10_000
            and len(set(names)) == len(names)
            and len(set(own)) == len(own)
            and not shared & set(own)
            and all(0 < len(name) <= 100 for name in names)
            and all(len(key) == KEY_LENGTH for key in keys)
        )


class Vouch(msgspec.Struct, frozen=True, array_like=True):
    """One signature of a certificate."""

    replica: str
    signature: bytes


class Request(msgspec.Struct, frozen=True, tag=True):
    """Operations that a client wants executed together, once, in its order.

    Numbers of one client are consecutive from 1.
    """

    client: str
    number: int
    operations: tuple[bytes, ...]
    signature: bytes


class Batch(msgspec.Struct, frozen=True, tag=True):
    """Requests that share one sequence; without requests it fills a gap."""

    requests: tuple[Request, ...]


class PrePrepare(msgspec.Struct, frozen=True, tag=True):
    """The primary of ``view`` proposes a batch for ``sequence``."""

    view: int
    sequence: int
    digest: bytes
    signature: bytes
    batch: Batch | None = None


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """A backup has accepted the proposal, whose signature it repeats."""

    view: int
    sequence: int
    digest: bytes
    replica: str
    signature: bytes
    proposal: bytes


class Commit(msgspec.Struct, frozen=True, tag=True):
    """A replica holds a prepared certificate for this batch."""

    view: int
    sequence: int
    digest: bytes
    replica: str
    signature: bytes


class Confirmation(msgspec.Struct, frozen=True, tag=True):
    """A quorum of commits in one view: proof that this batch has this sequence."""

    view: int
    sequence: int
    digest: bytes
    vouches: tuple[Vouch, ...]


class Summary(msgspec.Struct, frozen=True):
    """Everything that must be equal after ``sequence``, in digests [ledger 5]."""

    sequence: int
    record_count: int
    record_root: bytes
    state_digest: bytes
    client_digest: bytes
    head: bytes
    configuration_digest: bytes


class Checkpoint(msgspec.Struct, frozen=True, tag=True):
    """A replica has executed up to ``summary.sequence`` and found this."""

    summary: Summary
    replica: str
    signature: bytes


class Certificate(msgspec.Struct, frozen=True, tag=True):
    """A summary with the signatures of a quorum."""

    summary: Summary
    vouches: tuple[Vouch, ...]


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The proposal's signature and those of 2f backups: no other batch was prepared there."""

    view: int
    sequence: int
    digest: bytes
    proposal: bytes
    vouches: tuple[Vouch, ...]


class ViewChange(msgspec.Struct, frozen=True, tag=True):
    """A replica gives up earlier views and tells what it knows."""

    view: int
    stable: Certificate | None
    prepared: tuple[Prepared, ...]
    replica: str
    signature: bytes


class NewView(msgspec.Struct, frozen=True, tag=True):
    """The primary of ``view`` shows a quorum of view changes and proposes what follows."""

    view: int
    view_changes: tuple[ViewChange, ...]
    proposals: tuple[bytes, ...]
    signature: bytes


class Reply(msgspec.Struct, frozen=True, tag=True):
    """What a replica found when it executed a request."""

    view: int
    client: str
    number: int
    results: tuple[bytes, ...]
    replica: str
    signature: bytes


class Status(msgspec.Struct, frozen=True, tag=True):
    """Where a replica stands; peers answer with what it lacks."""

    view: int
    is_changing: bool
    executed: int
    stable: int


class FetchBatch(msgspec.Struct, frozen=True, tag=True):
    """Ask for the batch with this digest."""

    digest: bytes


class FetchedBatch(msgspec.Struct, frozen=True, tag=True):
    """A batch; its digest says whether it is the right one."""

    batch: Batch


class Lineage(msgspec.Struct, frozen=True, tag=True):
    """How each configuration followed from the one before, then the newest checkpoint."""

    steps: tuple[tuple[Certificate, Configuration], ...]
    stable: Certificate


class FetchState(msgspec.Struct, frozen=True, tag=True):
    """Ask for one part of the snapshot at a stable checkpoint."""

    sequence: int
    part: int


class StatePart(msgspec.Struct, frozen=True, tag=True):
    """One part of a snapshot."""

    sequence: int
    part: int
    part_count: int
    octets: bytes


MESSAGES = (
    Request
    | PrePrepare
    | Prepare
    | Commit
    | Confirmation
    | Checkpoint
    | ViewChange
    | NewView
    | Reply
    | Status
    | FetchBatch
    | FetchedBatch
    | Lineage
    | FetchState
    | StatePart
)
"""The union that crosses the wire."""

# -- outcomes -------------------------------------------------------------------------------------


class Confirmed(msgspec.Struct, frozen=True, tag=True):
    """A replica has executed ``sequence``; its records stand from ``first_record`` on."""

    sequence: int
    digest: bytes
    first_record: int
    records: tuple[bytes, ...]


class Anchored(msgspec.Struct, frozen=True, tag=True):
    """A checkpoint has its certificate; the lineage leads to it from the first configuration."""

    lineage: Lineage


class CaughtUp(msgspec.Struct, frozen=True, tag=True):
    """A replica took over a snapshot; these records it had not executed itself."""

    sequence: int
    first_record: int
    records: tuple[bytes, ...]


class Accusation(msgspec.Struct, frozen=True, tag=True):
    """Two signed statements of one replica that cannot both be honest [ledger 7]."""

    culprit: str
    kind: str
    view: int
    sequence: int
    digests: tuple[bytes, bytes]
    signatures: tuple[bytes, bytes]


class Diverged(msgspec.Struct, frozen=True, tag=True):
    """A quorum certified another state than mine: this replica has stopped [ledger 5.3]."""

    sequence: int


class Answer(msgspec.Struct, frozen=True, tag=True):
    """A client's request was executed; one result for each operation."""

    number: int
    results: tuple[bytes, ...]


# -- digests and signatures -----------------------------------------------------------------------


def digest_of(kind: str, octets: bytes) -> bytes:
    """Return SHA-256 over ``octets`` under the name of what they are."""
    return hashlib.sha256(f"ledger/1/{kind}".encode() + b"\x00" + octets).digest()


def batch_digest(batch: Batch) -> bytes:
    """Return what names a batch."""
    return digest_of("batch", encode(batch))


NOTHING: Final = Batch(())
NOTHING_DIGEST: Final = batch_digest(NOTHING)


@dataclass(frozen=True, slots=True)
class Notary:
    """Sign and check the statements of one ledger [ledger 2.1].

    Attributes
    ----------
    ledger : 32 octets
        Digest of the first configuration, part of every statement.
    verify
        ed25519; a simulation may pass something cheaper.
    """

    ledger: bytes
    verify: Verify = verify_ed25519

    def payload(self, *fields: Any) -> bytes:
        """Return the canonical octets of a statement."""
        return encode((self.ledger, *fields))

    def sign(self, signer: Signs, kind: str, *fields: Any) -> bytes:
        """Return the signature of a statement."""
        return signer.sign(f"ledger/1/{kind}", self.payload(*fields))

    def check(self, key: bytes | None, kind: str, signature: bytes, *fields: Any) -> bool:
        """Return whether the signature is that of ``key``; no key, no."""
        if key is None or len(signature) != SIGNATURE_LENGTH:
            return False
        return self.verify(key, f"ledger/1/{kind}", self.payload(*fields), signature)

    def holds(
        self,
        vouches: Iterable[Vouch],
        keys: Mapping[str, bytes],
        needed: int,
        kind: str,
        *fields: Any,
    ) -> bool:
        """Return whether ``needed`` different members signed this and nobody else is named."""
        listed = tuple(vouches)
        names = {vouch.replica for vouch in listed}
        if len(names) != len(listed) or not needed <= len(listed) <= len(keys):
            return False
        return all(
            self.check(keys.get(vouch.replica), kind, vouch.signature, *fields) for vouch in listed
        )


def signed_request(
    notary: Notary, signer: Signs, client: str, number: int, operations: tuple[bytes, ...]
) -> Request:
    """Return a request as its client signs it."""
    invariant(is_bounded(Request(client, number, operations, bytes(64))), "a request fits")
    signature = notary.sign(signer, "request", client, number, operations)
    return Request(client, number, operations, signature)


def is_bounded(request: Request) -> bool:
    """Return whether number and sizes are within the limits [ledger 2.3]."""
    return (
        1 <= request.number < 1 << 62
        and 1 <= len(request.operations) <= OPERATION_COUNT_MAX
        and all(len(operation) <= OPERATION_LENGTH_MAX for operation in request.operations)
        and sum(map(len, request.operations)) <= REQUEST_LENGTH_MAX
        and len(request.signature) == SIGNATURE_LENGTH
    )


def keys_of(members: Iterable[Member]) -> dict[str, bytes]:
    """Return verify keys by name."""
    return {member.node: member.verify_key for member in members}


def certificate_holds(
    notary: Notary, configuration: Configuration, certificate: Certificate
) -> bool:
    """Return whether a quorum of ``configuration`` signed the summary."""
    return notary.holds(
        certificate.vouches,
        keys_of(configuration.replicas),
        configuration.quorum,
        "checkpoint",
        certificate.summary,
    )


def lineage_end(notary: Notary, genesis: Configuration, lineage: Lineage) -> Configuration | None:
    """Follow a lineage from the first configuration; None if a step does not hold [ledger 8]."""
    configuration = genesis
    for certificate, following in lineage.steps:
        if (
            not certificate_holds(notary, configuration, certificate)
            or following.digest() != certificate.summary.configuration_digest
            or following.number != configuration.number + 1
            or not following.is_sound()
        ):
            return None
        configuration = following
    if configuration.digest() != lineage.stable.summary.configuration_digest:
        return None
    if lineage.steps and lineage.steps[-1][0] == lineage.stable:
        return configuration  # The boundary itself, checked above by those before it.
    return configuration if certificate_holds(notary, configuration, lineage.stable) else None
