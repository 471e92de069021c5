"""The liars of the ledger: each signs its lies with its own key."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from ledger_world import (
    FAST,
    GENESIS,
    REPLICAS,
    SIGNERS,
    Register,
    cheap_verify,
)

from veilgrid.ledger.message import (
    NOTHING,
    Batch,
    Checkpoint,
    Commit,
    NewView,
    Notary,
    Prepare,
    Prepared,
    PrePrepare,
    Reply,
    StatePart,
    ViewChange,
    Vouch,
    batch_digest,
)
from veilgrid.ledger.replica import Replica
from veilgrid.ledger.service import Snapshot
from veilgrid.ledger.view_change import new_view_statement, statement_of
from veilgrid.machine import Effect, Event, Machine, NodeId, Send
from veilgrid.sim import Replaying, Silent, Tampering, Twins, TwoFaced, tampered

NOTARY = Notary(GENESIS.digest(), cheap_verify)
replace = msgspec.structs.replace


def honest(node: NodeId, records: Sequence[Any] = (), replica: Any = Replica) -> Replica:
    return replica(node, GENESIS, SIGNERS[node], Register(), records, FAST, cheap_verify)


def signed(node: NodeId, message: Any) -> Any:
    """Sign a lie with the liar's own key, whatever the message claims."""
    signer = SIGNERS[node]
    place = tuple(getattr(message, name, None) for name in ("view", "sequence", "digest"))
    kind: str
    match message:
        case PrePrepare():
            kind = "pre-prepare"
        case Prepare():
            kind = "prepare"
        case Commit():
            kind = "commit"
        case Checkpoint():
            kind, place = "checkpoint", (message.summary,)
        case ViewChange():
            kind, place = "view-change", statement_of(message)
        case NewView():
            kind, place = "new-view", new_view_statement(message)
        case Reply():
            kind = "reply"
            place = (
                message.view,
                message.client,
                message.number,
                message.results,
                message.replica,
            )
        case _:
            return message
    return replace(message, signature=NOTARY.sign(signer, kind, *place))


def signed_lie(node: NodeId) -> Callable[[random.Random, Any], Any]:
    """Change any field and sign; a proposal gets another batch with its right digest."""

    def lie(rng: random.Random, message: Any) -> Any:
        if isinstance(message, PrePrepare):
            batch = NOTHING
            if message.batch is not None and len(message.batch.requests) > 1:
                batch = Batch(message.batch.requests[::-1][rng.randrange(2) :])
            changed = replace(message, batch=batch, digest=batch_digest(batch))
        elif isinstance(message, Prepare | Commit):
            other = rng.choice([batch_digest(NOTHING), rng.randbytes(32)])
            changed = replace(message, digest=other)
        elif isinstance(message, StatePart) and rng.random() < 0.7:
            changed = replace(message, octets=forged(message.octets))
        else:
            changed = tampered(rng, message)
        try:
            return signed(node, changed)
        except (msgspec.MsgspecError, OverflowError):
            return message

    return lie


def forged(octets: bytes) -> bytes:
    """Return a snapshot that reads well and says something else."""
    try:
        snapshot = msgspec.msgpack.decode(octets, type=Snapshot)
        total, count = msgspec.msgpack.decode(snapshot.state)
    except msgspec.DecodeError:
        return octets[:-1]
    return msgspec.msgpack.encode(
        replace(snapshot, state=msgspec.msgpack.encode((total + 1, count)))
    )


def repeating_lie(node: NodeId) -> Callable[[random.Random, Any], Any]:
    """Propose again what was executed already, beside what is due."""
    seen: list[Any] = []

    def lie(rng: random.Random, message: PrePrepare) -> PrePrepare:
        requests = message.batch.requests if message.batch else ()
        seen.extend(requests)
        batch = Batch((*rng.sample(seen, min(len(seen), 3)), *requests))
        return signed(node, replace(message, batch=batch, digest=batch_digest(batch)))

    return lie


class Stale:
    """Shows view changes and new views without what was prepared, and asks for new views often."""

    def __init__(self, machine: Replica, rng: random.Random) -> None:
        self._machine, self._rng = machine, rng

    def handle(self, event: Event) -> list[Effect]:
        effects: list[Effect] = []
        for effect in self._machine.handle(event):
            if isinstance(effect, Send) and isinstance(effect.message, ViewChange):
                bare = replace(effect.message, prepared=())
                if self._rng.random() < 0.3:
                    bare = replace(bare, stable=None)
                effects.append(Send(effect.to, signed(self._machine.me, bare)))
            else:
                effects.append(effect)
        if self._rng.random() < 0.02:
            machine = self._machine
            ahead = machine.views.view + self._rng.randrange(1, 4)
            change = signed(machine.me, ViewChange(ahead, None, (), machine.me, b""))
            effects += [Send(node, change) for node in REPLICAS if node != machine.me]
        return effects


class Forging:
    """Shows view changes with certificates that nobody signed: nothing was prepared, says it."""

    def __init__(self, machine: Replica) -> None:
        self._machine = machine

    def _forged(self, change: ViewChange) -> ViewChange:
        signer, view, digest = SIGNERS[self._machine.me], change.view - 1, batch_digest(NOTHING)
        low = change.stable.summary.sequence if change.stable else 0
        prepared = []
        for sequence in range(low + 1, low + 5):
            statement = (view, sequence, digest)
            own = NOTARY.sign(signer, "prepare", *statement)
            proposal = NOTARY.sign(signer, "pre-prepare", *statement)
            primary = GENESIS.primary(view)
            backups = [node for node in REPLICAS if node != primary][:2]
            vouches = tuple(Vouch(node, own) for node in backups)
            prepared.append(Prepared(*statement, proposal, vouches))
        return signed(self._machine.me, replace(change, prepared=tuple(prepared)))

    def handle(self, event: Event) -> list[Effect]:
        return [
            Send(effect.to, self._forged(effect.message))
            if isinstance(effect, Send) and isinstance(effect.message, ViewChange)
            else effect
            for effect in self._machine.handle(event)
        ]


class CoveringUp:
    """As a new primary, leaves out what was prepared whenever the signatures let it."""

    def __init__(self, machine: Replica) -> None:
        self._machine = machine

    def handle(self, event: Event) -> list[Effect]:
        effects: list[Effect] = []
        for effect in self._machine.handle(event):
            if isinstance(effect, Send) and isinstance(effect.message, NewView):
                new = effect.message
                digest = batch_digest(NOTHING)
                first = 1 + max(
                    (c.stable.summary.sequence for c in new.view_changes if c.stable), default=0
                )
                proposals = tuple(
                    NOTARY.sign(
                        SIGNERS[self._machine.me], "pre-prepare", new.view, first + index, digest
                    )
                    for index in range(len(new.proposals))
                )
                effects.append(
                    Send(
                        effect.to,
                        signed(self._machine.me, replace(new, proposals=proposals)),
                    )
                )
            else:
                effects.append(effect)
        return effects


def twins(rng: random.Random, node: NodeId, records: Sequence[Any]) -> Machine:
    others = [n for n in REPLICAS if n != node]
    order = rng.sample(others, 3)
    cut = rng.randrange(1, 3)
    both = {NodeId("c0"), NodeId("c1")}
    if rng.random() < 0.4:
        both |= {rng.choice(others)}
    copies = (honest(node, records), honest(node, records if rng.random() < 0.5 else ()))
    return Twins(copies, ({*order[:cut], *both}, {*order[cut:], *both}))


Liar = Callable[[random.Random, NodeId, Sequence[Any]], Machine]

CAST: dict[str, Liar] = {
    "silent": lambda rng, node, records: Silent(honest(node, records), rng.randrange(200)),
    "tampering": lambda rng, node, records: Tampering(
        honest(node, records), rng, (), 0.3, signed_lie(node)
    ),
    "unsigned": lambda rng, node, records: Tampering(honest(node, records), rng, (), 0.5),
    "two-faced": lambda rng, node, records: TwoFaced(
        honest(node, records),
        rng,
        rng.sample([n for n in REPLICAS if n != node], rng.randrange(1, 3)),
        (PrePrepare, Prepare, Commit),
        signed_lie(node),
    ),
    "twins": twins,
    "stale": lambda rng, node, records: Stale(honest(node, records), rng),
    "forging": lambda _, node, records: Forging(honest(node, records)),
    "covering-up": lambda _, node, records: CoveringUp(honest(node, records)),
    "lying-checkpoint": lambda rng, node, records: Tampering(
        honest(node, records), rng, (Checkpoint, StatePart), 1.0, signed_lie(node)
    ),
    "amnesic": lambda _, node, __: honest(node, ()),
    "repeating": lambda rng, node, records: TwoFaced(
        honest(node, records), rng, REPLICAS, (PrePrepare,), repeating_lie(node)
    ),
    "replaying": lambda rng, node, records: Replaying(honest(node, records), rng, REPLICAS, 0.3),
}
