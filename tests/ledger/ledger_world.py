"""Four replicas and clients in the simulated world, with a small application."""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from veilgrid.ledger.client import Client
from veilgrid.ledger.journalled import Accepted, Committed, Entered, Left, Locked
from veilgrid.ledger.message import (
    Anchored,
    Answer,
    CaughtUp,
    Commit,
    Configuration,
    Confirmed,
    Diverged,
    Member,
    Prepare,
    PrePrepare,
    ViewChange,
)
from veilgrid.ledger.replica import Replica
from veilgrid.ledger.service import Context
from veilgrid.ledger.settings import Settings
from veilgrid.machine import Machine, NodeId
from veilgrid.secret import Secret
from veilgrid.signature import Signer, canonical
from veilgrid.sim import Agreement, Checker, Durability, Violation, World

REPLICAS = [NodeId(f"r{index}") for index in range(4)]
CLIENTS = [NodeId(f"c{index}") for index in range(2)]
MILLISECOND_NS = 1_000_000
FAST = Settings(
    interval=8,
    window_length=16,
    pipeline=3,
    view_timeout_ns=300 * MILLISECOND_NS,
    status_ns=50 * MILLISECOND_NS,
)


class CheapSigner:
    """Keyed hashing in place of ed25519: quick, and as unforgeable here as nobody shares keys."""

    def __init__(self, name: str) -> None:
        self._secret = hashlib.sha256(b"cheap" + name.encode()).digest()
        self.verify_key = hashlib.sha256(self._secret).digest()
        _SECRETS[self.verify_key] = self._secret

    def sign(self, domain: str, payload: bytes) -> bytes:
        return _tag(self._secret, domain, payload)


_SECRETS: dict[bytes, bytes] = {}


def _tag(secret: bytes, domain: str, payload: bytes) -> bytes:
    return hmac.digest(secret, canonical(domain, payload), "sha512")


def cheap_verify(key: bytes, domain: str, payload: bytes, signature: bytes) -> bool:
    secret = _SECRETS.get(key)
    return secret is not None and _tag(secret, domain, payload) == signature


def real_signer(name: str) -> Signer:
    return Signer(Secret(hashlib.sha256(b"real" + name.encode()).digest()))


SIGNERS = {name: CheapSigner(name) for name in [*REPLICAS, *CLIENTS, "r4", "r5", "r6"]}


def members(names: Iterable[str], signers: Mapping[str, Any] = SIGNERS) -> tuple[Member, ...]:
    return tuple(Member(name, signers[name].verify_key) for name in names)


GENESIS = Configuration(0, members(REPLICAS), members(CLIENTS))


class Register:
    """Adds numbers up and says the sum so far: a result that depends on the order of all."""

    def genesis(self) -> tuple[int, ...]:
        return (0, 0)

    def apply(
        self, state: tuple[int, ...], _context: Context, operation: bytes
    ) -> tuple[tuple[int, ...], bytes]:
        total = (state[0] * 31 + int.from_bytes(operation, "big")) % (1 << 61)
        return (total, state[1] + 1), msgspec.msgpack.encode((state[1], total))

    def encode(self, state: tuple[int, ...]) -> bytes:
        return msgspec.msgpack.encode(state)

    def decode(self, octets: bytes) -> tuple[int, ...]:
        return msgspec.msgpack.decode(octets, type=tuple[int, ...])


class LogBeforeVote(Checker):
    """A vote that leaves an honest replica is in its journal, and never contradicts another."""

    def __init__(self, honest: Iterable[NodeId]) -> None:
        self._honest = set(honest)
        self._logged: dict[NodeId, set[Any]] = {node: set() for node in self._honest}
        self._said: dict[Any, bytes] = {}

    def persisted(self, node: NodeId, record: Any) -> None:
        if node not in self._honest:
            return
        logged = self._logged[node]
        match record:
            case Accepted(p):
                logged.add(("proposal", p.view, p.sequence, p.digest))
            case Locked(p):
                logged.add(("commit", p.view, p.sequence, p.digest))
            case Left(change):
                logged.add(("leave", change.view))
            case Entered(new):
                logged.add(("enter", new.view))

    def sent(self, sender: NodeId, to: NodeId, message: Any, _frame: bytes) -> None:
        if sender not in self._honest:
            return
        logged = self._logged[sender]
        match message:
            case PrePrepare() | Prepare() | Commit():
                kind = type(message).__name__
                if kind == "PrePrepare" and message.signature and to == sender:
                    return
                place = (sender, kind, message.view, message.sequence)
                if self._said.setdefault(place, message.digest) != message.digest:
                    raise Violation(f"{sender} said two things: {place}")
                what = "commit" if kind == "Commit" else "proposal"
                is_logged = (what, message.view, message.sequence, message.digest) in logged
                if not is_logged and not (what == "proposal" and ("enter", message.view) in logged):
                    raise Violation(f"{sender} sent a {kind} that its journal does not hold")
            case ViewChange() if message.replica == sender:
                if ("leave", message.view) not in logged:
                    raise Violation(f"{sender} left a view without writing it down")


class ExactlyOnce(Checker):
    """Each honest replica executes the requests of a client once each, without gaps, in order."""

    def __init__(self, honest: Iterable[NodeId]) -> None:
        self._honest = set(honest)
        self.last: dict[tuple[NodeId, str], int] = {}

    def decided(self, node: NodeId, outcome: Any) -> None:
        if node not in self._honest or not isinstance(outcome, Confirmed | CaughtUp):
            return
        for octets in outcome.records:
            _, _, client, number, _, _ = msgspec.msgpack.decode(octets)
            last = self.last.get((node, client), 0)
            if number <= last:
                raise Violation(f"{node} executed request {number} of {client} after {last}")
            self.last[node, client] = number


def confirmed_key(outcome: Any) -> Any:
    return outcome.sequence if isinstance(outcome, Confirmed) else None


def confirmed_value(outcome: Any) -> Any:
    return (outcome.digest, outcome.records)


def promised(outcome: Any) -> Any:
    return (outcome.sequence, outcome.digest) if isinstance(outcome, Confirmed) else None


def evidenced(record: Any) -> Any:
    return (record.proof.sequence, record.proof.digest) if isinstance(record, Committed) else None


class SameCheckpoint(Checker):
    """Certified summaries of one sequence are one, and nobody honest diverges."""

    def __init__(self, honest: Iterable[NodeId]) -> None:
        self._honest = set(honest)
        self.summaries: dict[int, Any] = {}

    def decided(self, node: NodeId, outcome: Any) -> None:
        if node not in self._honest:
            return
        if isinstance(outcome, Diverged):
            raise Violation(f"{node} diverged at {outcome.sequence}")
        if isinstance(outcome, Anchored):
            summary = outcome.lineage.stable.summary
            if self.summaries.setdefault(summary.sequence, summary) != summary:
                raise Violation(f"two certified checkpoints at {summary.sequence}")


def checkers(honest: Iterable[NodeId]) -> list[Checker]:
    honest = list(honest)
    return [
        Agreement(confirmed_key, confirmed_value, honest),
        Durability(promised, evidenced, honest),
        LogBeforeVote(honest),
        ExactlyOnce(honest),
        SameCheckpoint(honest),
    ]


def operations(client: str, count: int) -> list[tuple[bytes, ...]]:
    return [(f"{client}:{number}".encode(),) for number in range(count)]


Wrap = Callable[[Machine], Machine]


def ledger_builds(
    requests: int = 6,
    *,
    replica: Callable[..., Replica] = Replica,
    settings: Settings = FAST,
    liars: Mapping[NodeId, Callable[[Sequence[Any]], Machine]] | None = None,
) -> dict[NodeId, Any]:
    """How to make each machine of a ledger; ``liars`` replace replicas."""
    builds: dict[NodeId, Any] = {}
    for node in REPLICAS:
        builds[node] = (liars or {}).get(node) or (
            lambda records, node=node: replica(
                node, GENESIS, SIGNERS[node], Register(), records, settings, cheap_verify
            )
        )
    for client in CLIENTS:
        builds[client] = lambda records, client=client: Client(
            client,
            GENESIS,
            SIGNERS[client],
            records,
            patience_ns=100 * MILLISECOND_NS,
            first_operations=operations(client, requests),
            verify=cheap_verify,
        )
    return builds


def answered(world: World, count: int) -> bool:
    """Every client has all its answers."""
    return all(
        len({o.number for o in world.decided(client) if isinstance(o, Answer)}) >= count
        for client in CLIENTS
    )


def execution(world: World, node: NodeId) -> int:
    machine: Any = world.machine(node)
    return machine.service.sequence if machine is not None else -1
