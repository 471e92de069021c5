"""What is replicated: the application, the clients' table, the records and their digests.

Everything here is a function of the sequence of batches, so it is equal on all honest replicas
after the same sequence [ledger 5].
"""

from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from veilgrid.errors import invariant
from veilgrid.ledger.merkle import MerkleTree
from veilgrid.ledger.message import (
    CLIENT_WINDOW,
    Batch,
    Configuration,
    Request,
    Summary,
    batch_digest,
    digest_of,
    encode,
)

SYSTEM: Final = b"\x00veilgrid "
"""How operations begin that concern the ledger itself; the application never sees them."""
CHECKPOINT_OPERATION: Final = SYSTEM + b"checkpoint"
_CONFIGURE: Final = SYSTEM + b"configure "
DONE: Final = encode("done")


class Context(NamedTuple):
    """Where an operation stands.

    Attributes
    ----------
    client
        Who signed it.
    sequence, position
        Of its batch, and of its record.
    head : 32 octets
        Digest of all batches before this one: fixed before the batch was proposed.
    """

    client: str
    sequence: int
    position: int
    head: bytes


class Application(Protocol):
    """A deterministic state machine over immutable states; integers only [ledger 9]."""

    def genesis(self) -> Any:
        """Return the first state."""
        ...

    def apply(self, state: Any, context: Context, operation: bytes) -> tuple[Any, bytes]:
        """Return the next state and the result; a refusal is a result. Never raises."""
        ...

    def encode(self, state: Any) -> bytes:
        """Return the canonical octets of a state."""
        ...

    def decode(self, octets: bytes) -> Any:
        """Return the state; raises ``msgspec.DecodeError`` on anything else."""
        ...


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of one client: its last number and its newest results."""

    last: int
    results: tuple[tuple[int, tuple[bytes, ...]], ...]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One executed operation: an entry of the Merkle tree [ledger 6]."""

    position: int
    sequence: int
    client: str
    number: int
    operation: bytes
    result: bytes


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A change of configuration that a quorum approved, and where it takes effect."""

    configuration: Configuration
    boundary: int


class Core(msgspec.Struct, frozen=True, array_like=True):
    """The small part of a snapshot, next to the application's state."""

    sequence: int
    head: bytes
    configuration: Configuration
    approvals: tuple[tuple[str, Configuration], ...]
    change: Change | None
    clients: tuple[tuple[str, Entry], ...]


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """Everything after one sequence."""

    core: Core
    state: bytes
    records: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """The replicated state after one sequence; cheap to keep, because nothing in it changes."""

    state: Any
    core: Core
    record_count: int


@dataclass(slots=True)
class Service:
    """Execute batches in order.

    Attributes
    ----------
    boundary_distance
        A change of configuration takes effect at the first multiple of ``interval`` at or after
        this many sequences: nothing later can be under way already.
    """

    application: Application
    configuration: Configuration
    interval: int
    boundary_distance: int
    sequence: int = 0
    head: bytes = b""
    state: Any = None
    change: Change | None = None
    approvals: dict[str, Configuration] = field(default_factory=dict)
    clients: dict[str, Entry] = field(default_factory=dict)
    records: list[bytes] = field(default_factory=list)
    tree: MerkleTree = field(default_factory=MerkleTree)

    def __post_init__(self) -> None:
        """Begin with the first state."""
        self.state = self.application.genesis()
        self.head = digest_of("head", self.configuration.digest())

    def last(self, client: str) -> int:
        """Return the number of the last request of ``client`` that was executed."""
        entry = self.clients.get(client)
        return entry.last if entry else 0

    def cached(self, client: str, number: int) -> tuple[bytes, ...] | None:
        """Return the results of an executed request, while they are kept."""
        entry = self.clients.get(client)
        return dict(entry.results).get(number) if entry else None

    def execute(self, sequence: int, batch: Batch) -> tuple[list[Request], bool]:
        """Execute one batch; return what was executed and whether a checkpoint is due.

        A request whose number is not the next of its client changes nothing [ledger 3.3].
        """
        invariant(sequence == self.sequence + 1, "batches are executed in order")
        self.sequence = sequence
        is_due = sequence % self.interval == 0
        done: list[Request] = []
        for request in batch.requests:
            if not self._is_next(request):
                continue
            results = []
            for operation in request.operations:
                is_due = is_due or operation == CHECKPOINT_OPERATION
                results.append(self._apply(request, operation))
            entry = self.clients.get(request.client)
            kept = (*(entry.results if entry else ()), (request.number, tuple(results)))
            self.clients[request.client] = Entry(request.number, kept[-CLIENT_WINDOW:])
            done.append(request)
        self.head = digest_of("head", self.head + batch_digest(batch))
        if self.change is not None and self.change.boundary == sequence:
            self.configuration = self.change.configuration
            self.change, self.approvals = None, {}
            is_due = True
        return done, is_due

    def _is_next(self, request: Request) -> bool:
        return request.number == self.last(request.client) + 1

    def _apply(self, request: Request, operation: bytes) -> bytes:
        position = len(self.records)
        if operation.startswith(SYSTEM):
            result = self._configure(request.client, operation)
        else:
            context = Context(request.client, self.sequence, position, self.head)
            self.state, result = self.application.apply(self.state, context, operation)
        record = encode(
            Record(position, self.sequence, request.client, request.number, operation, result)
        )
        self.records.append(record)
        self.tree.append(record)
        return result

    def _configure(self, client: str, operation: bytes) -> bytes:
        """Count a replica's approval of a new configuration [ledger 8]."""
        if operation == CHECKPOINT_OPERATION:
            return DONE
        if not operation.startswith(_CONFIGURE):
            return encode("refused: unknown system operation")
        try:
            wanted = msgspec.msgpack.decode(operation[len(_CONFIGURE) :], type=Configuration)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return encode("refused: not a configuration")
        names = {member.node for member in self.configuration.replicas}
        if client not in names:
            return encode("refused: only replicas approve a configuration")
        if wanted.number != self.configuration.number + 1 or not wanted.is_sound():
            return encode("refused: not a sound next configuration")
        if self.change is not None:
            return encode("refused: a change is under way")
        self.approvals = {**self.approvals, client: wanted}
        count = sum(other == wanted for other in self.approvals.values())
        if count >= self.configuration.quorum:
            far = self.sequence + self.boundary_distance
            self.change = Change(wanted, -(-far // self.interval) * self.interval)
        return DONE

    # -- digests and snapshots -------------------------------------------------------------------

    def moment(self) -> Moment:
        """Return the present, to be served later."""
        core = Core(
            self.sequence,
            self.head,
            self.configuration,
            tuple(sorted(self.approvals.items(), key=lambda item: item[0])),
            self.change,
            tuple(sorted(self.clients.items(), key=lambda item: item[0])),
        )
        return Moment(self.state, core, len(self.records))

    def summary(self, moment: Moment) -> Summary:
        """Return the digests of a moment."""
        return Summary(
            moment.core.sequence,
            moment.record_count,
            self.tree.root(moment.record_count),
            digest_of("state", self.application.encode(moment.state)),
            digest_of("core", encode(moment.core)),
            moment.core.head,
            moment.core.configuration.digest(),
        )

    def snapshot(self, moment: Moment) -> bytes:
        """Return everything after a moment as octets."""
        records = tuple(self.records[: moment.record_count])
        return encode(Snapshot(moment.core, self.application.encode(moment.state), records))

    def restored(self, octets: bytes, summary: Summary) -> "Service | None":
        """Return the service that a snapshot describes; None if it is not that of ``summary``."""
        try:
            snapshot = msgspec.msgpack.decode(octets, type=Snapshot)
            if digest_of("state", snapshot.state) != summary.state_digest:
                return None
            state = self.application.decode(snapshot.state)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        core = snapshot.core
        service = replace(
            self,
            configuration=core.configuration,
            tree=MerkleTree(snapshot.records),
            records=list(snapshot.records),
            clients=dict(core.clients),
            approvals=dict(core.approvals),
            change=core.change,
        )
        service.sequence, service.head, service.state = core.sequence, core.head, state
        return service if service.summary(service.moment()) == summary else None


def configure_operation(configuration: Configuration) -> bytes:
    """Return the operation by which a replica approves ``configuration``."""
    return _CONFIGURE + encode(configuration)
