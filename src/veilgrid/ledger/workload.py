"""Work for measuring the ledger: replicas that count, clients that keep asking [ledger 10]."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from veilgrid.ledger.client import Client
from veilgrid.ledger.message import Answer, Configuration, Member, digest_of, encode
from veilgrid.ledger.replica import Replica
from veilgrid.ledger.service import Context
from veilgrid.ledger.settings import Settings
from veilgrid.machine import Decide, Effect, Event, NodeId
from veilgrid.signature import Signs

VALIDATOR: Final = "validator"
_PATIENCE_NS: Final = 3_000_000_000
_OPERATION_LENGTH: Final = 100


class Load(msgspec.Struct, frozen=True):
    """What a client submits.

    Attributes
    ----------
    request_count, operation_count
        Requests, and operations in each.
    at_once
        Requests under way at a time.
    """

    request_count: int
    operation_count: int = 1
    at_once: int = 1


class Tally:
    """Count operations and chain their digests: the least that depends on their order."""

    def genesis(self) -> tuple[int, bytes]:
        """Return that nothing was counted."""
        return 0, bytes(32)

    def apply(
        self, state: tuple[int, bytes], _context: Context, operation: bytes
    ) -> tuple[tuple[int, bytes], bytes]:
        """Return the next count; it is the result."""
        count, head = state
        return (count + 1, digest_of("tally", head + operation)), encode(count + 1)

    def encode(self, state: tuple[int, bytes]) -> bytes:
        """Return the octets of a state."""
        return encode(state)

    def decode(self, octets: bytes) -> tuple[int, bytes]:
        """Return the state of these octets."""
        return msgspec.msgpack.decode(octets, type=tuple[int, bytes])


def tally_of(_genesis: Configuration) -> Tally:
    """Make what is counted under CometBFT."""
    return Tally()


def operation_of(number: int) -> bytes:
    """Return what a client submits in its request of this number, 100 octets."""
    return number.to_bytes(8, "big").rjust(_OPERATION_LENGTH, b"w")


class Asking:
    """A client that submits its load and decides each answer's number."""

    def __init__(self, client: Client, load: Load) -> None:
        self._client, self._load = client, load
        self._submitted = 0

    def handle(self, event: Event) -> list[Effect]:
        """Keep ``at_once`` requests under way."""
        effects = self._client.handle(event)
        decided = [e for e in effects if isinstance(e, Decide) and isinstance(e.outcome, Answer)]
        kept: list[Effect] = [e for e in effects if not isinstance(e, Decide)]
        kept += [Decide(effect.outcome.number) for effect in decided]
        while (
            self._submitted < self._load.request_count
            and self._client.open_count < self._load.at_once
        ):
            self._submitted += 1
            operation = operation_of(self._submitted)
            kept += self._client.submit((operation,) * self._load.operation_count)
        return kept


def configuration_of(verify_keys: Mapping[NodeId, bytes]) -> Configuration:
    """Return the first configuration of a deployment: validators by name, the rest clients."""
    members = [Member(node, verify_keys[node]) for node in sorted(verify_keys)]
    return Configuration(
        0,
        tuple(member for member in members if member.node.startswith(VALIDATOR)),
        tuple(member for member in members if not member.node.startswith(VALIDATOR)),
    )


class Quiet:
    """A replica whose outcomes stay in its process: nobody listens to them in a measurement."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def handle(self, event: Event) -> list[Effect]:
        """Pass everything on but outcomes."""
        return [e for e in self._replica.handle(event) if not isinstance(e, Decide)]


def build_replica(
    me: NodeId, signer: Signs, verify_keys: Mapping[NodeId, bytes], records: Sequence[Any]
) -> Replica:
    """Make a replica that counts."""
    settings = Settings(view_timeout_ns=_PATIENCE_NS)
    return Replica(me, configuration_of(verify_keys), signer, Tally(), records, settings)


def build_quiet(
    me: NodeId, signer: Signs, verify_keys: Mapping[NodeId, bytes], records: Sequence[Any]
) -> Quiet:
    """Make a replica that counts and keeps its outcomes to itself."""
    return Quiet(build_replica(me, signer, verify_keys, records))


def build_client(
    me: NodeId,
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
    arguments: Load,
    records: Sequence[Any],
) -> Asking:
    """Make a client with a load."""
    genesis = configuration_of(verify_keys)
    client = Client(me, genesis, signer, records, patience_ns=_PATIENCE_NS)
    return Asking(client, arguments)
