"""Small but real machines that the tests of both drivers run."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from veilgrid.errors import invariant
from veilgrid.machine import (
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs, verify

SECOND_NS = 1_000_000_000


class Ping(msgspec.Struct, frozen=True, tag=True):
    number: int
    payload: bytes


class Pong(msgspec.Struct, frozen=True, tag=True):
    number: int
    payload: memoryview


class Vote(msgspec.Struct, frozen=True, tag=True):
    round: int
    value: int


class Add(msgspec.Struct, frozen=True, tag=True):
    number: int
    amount: int


class Added(msgspec.Struct, frozen=True, tag=True):
    number: int
    total: int


MESSAGES = Ping | Pong | Vote | Add | Added
RECORDS = Add


class Asker:
    """Send ``count`` pings of ``length`` octets to the answerer, one after the other."""

    def __init__(self, answerer: NodeId, count: int, length: int) -> None:
        self._answerer, self._count = answerer, count
        self._payload = bytes(length)

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired("start"):
                return [Send(self._answerer, Ping(0, self._payload))]
            case Received(_, Pong(number, payload)):
                invariant(len(payload) == len(self._payload), "a pong returns the payload")
                if number + 1 == self._count:
                    return [Decide(number + 1)]
                return [Send(self._answerer, Ping(number + 1, self._payload))]
        return []


class Answerer:
    """Return each ping; decide at once, for there is nothing to wait for."""

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired("start"):
                return [Decide(0)]
            case Received(sender, Ping(number, payload)):
                return [Send(sender, Pong(number, memoryview(payload)))]
        return []


def triple(value: int) -> int:
    return 3 * value


class Agreement:
    """Rounds in which everybody tells everybody a number; the sum of all is decided.

    The number of a round is three times the last sum plus one, computed elsewhere.
    """

    def __init__(self, me: NodeId, peers: Sequence[NodeId], rounds: int, length: int = 0) -> None:
        self._me, self._peers, self._rounds = me, tuple(peers), rounds
        self._round = 0
        self._votes: dict[int, dict[NodeId, int]] = {}
        self._sum = len(me)
        self._padding = bytes(length)

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired("start"):
                return [Compute(0, triple, (self._sum,))]
            case Computed(job, value) if job == self._round:
                number = (value + 1) % 1_000_003
                self._votes.setdefault(self._round, {})[self._me] = number
                padding = [Ping(self._round, self._padding)] if self._padding else []
                sent = [*padding, Vote(self._round, number)]
                others = [peer for peer in self._peers if peer != self._me]
                return [*(Send(peer, part) for peer in others for part in sent), *self._advance()]
            case Received(sender, Vote(number, value)) if number <= self._round + 1:
                self._votes.setdefault(number, {}).setdefault(sender, value)
                return self._advance()
        return []

    def _advance(self) -> list[Effect]:
        votes = self._votes.get(self._round, {})
        if len(votes) < len(self._peers):
            return []
        self._sum = sum(votes.values()) % 1_000_003
        del self._votes[self._round]
        self._round += 1
        if self._round == self._rounds:
            return [Decide(self._sum)]
        return [Compute(self._round, triple, (self._sum,))]


class Counter:
    """Add what is asked, once for each number, and answer only when that is durable."""

    def __init__(self, records: Sequence[Any] = ()) -> None:
        self._seen: dict[int, int] = {}
        self._total = 0
        for record in records:
            self._add(record)

    def _add(self, add: Add) -> None:
        self._total += add.amount
        self._seen[add.number] = self._total

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired("start"):
                return [Decide(self._total)]
            case Received(sender, Add(number) as add):
                if number in self._seen:
                    return [Send(sender, Added(number, self._seen[number]))]
                self._add(add)
                return [Persist(add), Send(sender, Added(number, self._total))]
        return []


class Client:
    """Ask the counter to add 1, 2, ... ``count``, each until it is answered."""

    def __init__(self, counter: NodeId, count: int) -> None:
        self._counter, self._count, self._number = counter, count, 1

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired():
                return self._ask()
            case Received(_, Added(number, total)) if number == self._number:
                if number == self._count:
                    self._number += 1
                    return [Decide(total)]
                self._number += 1
                return self._ask()
        return []

    def _ask(self) -> list[Effect]:
        if self._number > self._count:
            return []
        add = Add(self._number, self._number)
        return [Send(self._counter, add), SetTimer("again", SECOND_NS // 2)]


class Broken:
    """Violate an invariant as soon as it begins."""

    def handle(self, event: Event) -> list[Effect]:
        invariant(event != TimerFired("start"), "this machine never starts")
        return []


class Asking(msgspec.Struct, frozen=True):
    answerer: str
    count: int
    length: int


class Rounds(msgspec.Struct, frozen=True):
    rounds: int
    length: int = 0


def asker(arguments: Asking) -> Asker:
    return Asker(NodeId(arguments.answerer), arguments.count, arguments.length)


def answerer() -> Answerer:
    return Answerer()


def agreement(me: NodeId, peers: tuple[NodeId, ...], arguments: Rounds) -> Agreement:
    return Agreement(me, peers, arguments.rounds, arguments.length)


def counter(records: Sequence[Any]) -> Counter:
    return Counter(records)


def client(arguments: Asking) -> Client:
    return Client(NodeId(arguments.answerer), arguments.count)


def broken() -> Broken:
    return Broken()


class Listener:
    """Decide on who said what."""

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case Received(sender, Vote(_, value)):
                return [Decide((sender, value))]
        return []


def listener() -> Listener:
    return Listener()


class Signing:
    """Sign a ping for everybody; decide whether what arrives is signed by its sender."""

    def __init__(self, me: NodeId, signer: Signs, keys: Mapping[NodeId, bytes]) -> None:
        self._me, self._signer, self._keys = me, signer, keys

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired("start"):
                ping = Ping(1, self._signer.sign("test/1/ping", self._me.encode()))
                return [Send(peer, ping) for peer in self._keys if peer != self._me]
            case Received(sender, Ping(_, signature)):
                holds = verify(self._keys[sender], "test/1/ping", sender.encode(), signature)
                return [Decide(holds)]
        return []


def signing(me: NodeId, signer: Signs, verify_keys: Mapping[NodeId, bytes]) -> Signing:
    return Signing(me, signer, verify_keys)


class Share(msgspec.Struct, frozen=True, tag=True):
    value: int


class Total(msgspec.Struct, frozen=True, tag=True):
    value: int


class Kept(msgspec.Struct, frozen=True, tag=True):
    share: int


SHARING = Share | Total
MODULUS = 2**61 - 1


class Sharing:
    """Add up everybody's secret reading: shares go out, only their sums come together."""

    def __init__(
        self,
        me: NodeId,
        peers: Sequence[NodeId],
        reading: Secret[int],
        randomness: Randomness,
        is_leaky: bool = False,
    ) -> None:
        self._me, self._peers, self._reading = me, tuple(peers), reading
        self._randomness, self._is_leaky = randomness, is_leaky
        self._shares: dict[NodeId, int] = {}
        self._totals: dict[NodeId, int] = {}

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired("start"):
                return self._deal()
            case Received(sender, Share(value)):
                self._shares.setdefault(sender, value)
                if len(self._shares) < len(self._peers):
                    return []
                total = Total(sum(self._shares.values()) % MODULUS)
                return [Send(peer, total) for peer in self._peers]
            case Received(sender, Total(value)):
                self._totals.setdefault(sender, value)
                if len(self._totals) == len(self._peers):
                    return [Decide(sum(self._totals.values()) % MODULUS)]
        return []

    def _deal(self) -> list[Effect]:
        reading = self._reading.reveal_to("its own sharing")
        masks = [self._drawn() for _ in self._peers[1:]]
        shares = [(reading - sum(masks)) % MODULUS, *masks]
        sent = [Send(peer, Share(share)) for peer, share in zip(self._peers, shares, strict=True)]
        return [Persist(Kept(reading)), *sent]

    def _drawn(self) -> int:
        return 0 if self._is_leaky else int.from_bytes(self._randomness.octets(16), "big") % MODULUS


class Reading(msgspec.Struct, frozen=True):
    reading: int
    is_leaky: bool = False


def sharing(
    me: NodeId, peers: tuple[NodeId, ...], arguments: Reading, randomness: Randomness
) -> Sharing:
    return Sharing(me, peers, Secret(arguments.reading), randomness, arguments.is_leaky)


class Clumsy:
    """Fail with a text that quotes what it worked on, as libraries do."""

    def __init__(self, reading: int) -> None:
        self._reading = reading

    def handle(self, event: Event) -> list[Effect]:
        if event == TimerFired("start"):
            return [Compute("parse", int, (f"reading {self._reading}",))]
        return []


def clumsy(arguments: Reading) -> Clumsy:
    return Clumsy(arguments.reading)


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


class Stubborn:
    """Compute for a minute, decide at once."""

    def handle(self, event: Event) -> list[Effect]:
        if event == TimerFired("start"):
            return [Compute("nap", nap, (60.0,)), Decide(0)]
        return []


def stubborn() -> Stubborn:
    return Stubborn()
