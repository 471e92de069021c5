"""The simulated world: machines, weather, crashes, and one queue in the order of one seed.

Two runs with the same seed, machines and weather take the same steps; :attr:`World.digest` shows
it. Time is virtual and moves from event to event, so hours of timers cost nothing.
"""

import hashlib
import heapq
import random
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from veilgrid.errors import invariant
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    Machine,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.sim.checker import Checker

"""Name of the timer that fires once when a machine may begin, also after a restart."""

MILLISECOND_NS: Final = 1_000_000
_STAMP: Final = struct.Struct("<qq").pack
_ANY_LIFE: Final = -1

Build = Callable[[Sequence[Any]], Machine]
"""Make a machine from what its journal holds, oldest record first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What the network, the clocks and the power supply do to the machines.

    Attributes
    ----------
    loss_probability, repeat_probability, reorder_probability
        For each message. A reordered message takes up to ``reorder_delay_max_ns`` longer.
    delay_min_ns, delay_max_ns
        Uniform delay of each message.
    clock_skew
        Each node's timers run faster or slower by up to this share.
    partition_probability
        For each interval of ``partition_interval_ns``: that the nodes fall into two halves that
        do not hear each other until the interval ends.
    crash_probability
        At each persist point: half of the crashes lose the record (a torn tail), half come just
        after it is durable; later effects of the step are lost in both.
    step_crash_probability
        After each step, wherever it is.
    crashed_max
        At most so many nodes are down at the same time.
    down_max_ns
        A crashed node restarts after up to this time.
    """

    loss_probability: float = 0.0
    repeat_probability: float = 0.0
    reorder_probability: float = 0.0
    reorder_delay_max_ns: int = 200 * MILLISECOND_NS
    delay_min_ns: int = MILLISECOND_NS // 10
    delay_max_ns: int = MILLISECOND_NS
    clock_skew: float = 0.0
    partition_probability: float = 0.0
    partition_interval_ns: int = 500 * MILLISECOND_NS
    crash_probability: float = 0.0
    step_crash_probability: float = 0.0
    crashed_max: int = 1
    down_max_ns: int = 1000 * MILLISECOND_NS

    @classmethod
    def draw(cls, rng: random.Random, *, crashed_max: int = 1) -> "Weather":
        """Return some weather: each kind of trouble is absent in about a third of all draws."""

        def some(high: float) -> float:
            return 0.0 if rng.random() < 1 / 3 else high * rng.random()

        return cls(
            loss_probability=some(0.3),
            repeat_probability=some(0.3),
            reorder_probability=some(0.3),
            delay_max_ns=MILLISECOND_NS * rng.choice([1, 10, 100]),
            clock_skew=some(0.3),
            partition_probability=some(0.5),
            crash_probability=some(0.1) if crashed_max else 0.0,
            step_crash_probability=some(0.005) if crashed_max else 0.0,
            crashed_max=crashed_max,
        )


CALM: Final = Weather()
"""A network that loses nothing, and power that does not fail."""


class _Restart:
    """Queued for a node that is down."""


class _Gust:
    """Queued once an interval: draws the next partition."""


@dataclass(slots=True)
class _Node:
    name: NodeId
    octets: bytes
    build: Build
    machine: Machine | None
    records: list[Any] = field(default_factory=list)
    life: int = 0
    clock_rate: float = 1.0
    timers: dict[str, int] = field(default_factory=dict)
    persist_count: int = 0
    decided: list[Any] = field(default_factory=list)


class World:
    """Machines under one seed.

    Parameters
    ----------
    builds
        How to make each machine, first and after each crash. They must draw randomness from the
        seed only.
    seed
        Of everything that happens here.
    messages
        The union of messages. If given, each is decoded again for its receiver as on a real wire;
        else the receiver gets the sender's object.
    checkers
        Watch the run.
    crash_points
        Persist points at which a node surely crashes: even numbers lose the record of the
        ``number // 2``-th persist of that node, odd numbers come just after it is durable.

    Attributes
    ----------
    now_ns
        Virtual time.
    step_count
        Events handled so far.
    octets_sent, frames_sent
        Before the weather took some.
    """

    def __init__(
        self,
        builds: Mapping[NodeId, Build],
        seed: int,
        weather: Weather = CALM,
        *,
        messages: Any = None,
        checkers: Iterable[Checker] = (),
        crash_points: Mapping[NodeId, Collection[int]] | None = None,
    ) -> None:
        self.seed = seed
        self.weather = weather
        self.now_ns = 0
        self.step_count = 0
        self.octets_sent = 0
        self.frames_sent = 0
        self.crash_count = 0
        self.checkers = tuple(checkers)
        self._sent_hooks = self._hooks("sent")
        self._persisted_hooks = self._hooks("persisted")
        self._decided_hooks = self._hooks("decided")
        self._restarted_hooks = self._hooks("restarted")
        self._rng = random.Random(seed)
        self._digest = hashlib.blake2b(digest_size=16)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(messages).decode if messages is not None else None
        self._queue: list[tuple[int, int, str, int, Any, bytes]] = []
        self._number = 0
        self._crash_points = {node: set(points) for node, points in (crash_points or {}).items()}
        self._down = 0
        self._side: dict[NodeId, int] = {}
        self._core: frozenset[NodeId] | None = None
        self._nodes: dict[str, _Node] = {}
        for name, build in builds.items():
            node = _Node(name, name.encode(), build, build(()))
            skew = weather.clock_skew
            node.clock_rate = 1.0 + (2 * self._rng.random() - 1) * skew if skew else 1.0
            self._nodes[name] = node
            self.post(name, TimerFired(START))
        if weather.partition_probability:
            self._push(0, "", _ANY_LIFE, _Gust(), b"")

    def _hooks(self, name: str) -> list[Callable[..., None]]:
        return [
            getattr(checker, name)
            for checker in self.checkers
            if getattr(type(checker), name) is not getattr(Checker, name)
        ]

    # -- looking in ------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """Digest of every step so far: equal for equal runs."""
        return self._digest.hexdigest()

    def decided(self, node: NodeId) -> list[Any]:
        """Return the outcomes of ``node``, oldest first, from all its lives."""
        return self._nodes[node].decided

    def machine(self, node: NodeId) -> Machine | None:
        """Return the machine of ``node``, None while it is down."""
        return self._nodes[node].machine

    def records(self, node: NodeId) -> tuple[Any, ...]:
        """Return what the journal of ``node`` holds."""
        return tuple(self._nodes[node].records)

    def persist_count(self, node: NodeId) -> int:
        """Return how many persist points ``node`` has reached in all its lives."""
        return self._nodes[node].persist_count

    # -- acting on it ----------------------------------------------------------------------------

    def post(self, node: NodeId, event: Event, delay_ns: int = 0) -> None:
        """Queue ``event`` for ``node``; the weather does not touch it."""
        body = self._encode(event.message) if isinstance(event, Received) else _octets(event)
        self._push(delay_ns, node, _ANY_LIFE, event, body)

    def crash(self, name: NodeId, down_ns: int | None = None) -> None:
        """Stop ``name`` at once; it restarts after ``down_ns``, or when :meth:`heal` is called."""
        node = self._nodes[name]
        if node.machine is None:
            return
        node.machine = None
        node.life += 1
        node.timers.clear()
        self._down += 1
        self.crash_count += 1
        if down_ns is not None:
            self._push(down_ns, name, node.life, _Restart(), b"")

    def restart(self, name: NodeId) -> None:
        """Start ``name`` again from its journal."""
        node = self._nodes[name]
        invariant(node.machine is None, "only a node that is down is started")
        self._down -= 1
        records = tuple(node.records)
        for hook in self._restarted_hooks:
            hook(name, records)
        node.machine = node.build(records)
        self._push(0, name, node.life, TimerFired(START), START.encode())
        node.timers[START] = self._number

    def partition(self, *sides: Iterable[NodeId]) -> None:
        """Let only nodes of one side hear each other; without sides, everybody."""
        self._side = {node: number for number, side in enumerate(sides) for node in side}

    def heal(self, core: Iterable[NodeId] | None = None) -> None:
        """End the safety phase: calm weather and power for ``core``; the rest stays cut off.

        What is on its way arrives. Run on with a step budget to see liveness.
        """
        self.weather = replace(CALM, clock_skew=self.weather.clock_skew)
        self._side = {}
        self._crash_points = {}
        self._core = frozenset(core) if core is not None else None
        for name in list(self._nodes):
            node = self._nodes[name]
            if node.machine is None and (self._core is None or name in self._core):
                self.restart(node.name)

    # -- running ---------------------------------------------------------------------------------

    def run(self, step_max: int, until: Callable[["World"], bool] | None = None) -> bool:
        """Take steps until ``until`` holds, nothing is left to do, or ``step_max`` is reached.

        Returns
        -------
        bool
            Whether ``until`` holds; without ``until``, whether nothing is left to do.
        """
        queue, stop = self._queue, self.step_count + step_max
        while self.step_count < stop:
            if until is not None and until(self):
                return True
            if not queue:
                return until is None
            self._step()
        return until(self) if until is not None else not queue

    def finish(self) -> None:
        """Let the checkers look at the end."""
        for checker in self.checkers:
            checker.finished(self)

    def _step(self) -> None:
        when, number, name, life, event, body = heapq.heappop(self._queue)
        self.now_ns = when
        if name == "":
            self._gust()
            return
        node = self._nodes[name]
        if life not in (_ANY_LIFE, node.life):
            return
        machine = node.machine
        if type(event) is _Restart:
            if machine is None:
                self.restart(node.name)
            return
        if machine is None:
            return
        if type(event) is TimerFired and life != _ANY_LIFE:
            if node.timers.get(event.name) != number:
                return
            del node.timers[event.name]
        self.step_count += 1
        self._digest.update(_STAMP(when, number) + node.octets + body)
        for effect in machine.handle(event):
            self._carry_out(node, effect)
            if node.machine is None:
                return
        chance = self.weather.step_crash_probability
        if chance and self._rng.random() < chance and self._may_crash():
            self.crash(node.name, self._downtime())

    def _carry_out(self, node: _Node, effect: Effect) -> None:
        kind = type(effect)
        if kind is Send:
            self._send(node, effect.to, effect.message)  # type: ignore[union-attr]
            return
        match effect:
            case SetTimer(name, delay_ns):
                self._push(
                    int(delay_ns * node.clock_rate),
                    node.name,
                    node.life,
                    TimerFired(name),
                    name.encode(),
                )
                node.timers[name] = self._number
            case Persist(record):
                self._persist(node, record)
            case Compute(job, kernel, arguments):
                computed = Computed(job, kernel(*arguments))
                self._push(self._delay(), node.name, node.life, computed, _octets(computed))
            case Decide(outcome):
                node.decided.append(outcome)
                for hook in self._decided_hooks:
                    hook(node.name, outcome)
            case _:
                invariant(False, f"{kind.__name__} is an effect that a driver knows")

    def _persist(self, node: _Node, record: Any) -> None:
        point = 2 * node.persist_count
        node.persist_count += 1
        planned = self._crash_points.get(node.name, ())
        chance = self.weather.crash_probability
        drawn = -1
        if chance and self._rng.random() < chance and self._may_crash():
            drawn = point + self._rng.randrange(2)
        if point in planned or drawn == point:
            self.crash(node.name, self._downtime())
            return
        node.records.append(record)
        self._digest.update(self._encode(record))
        for hook in self._persisted_hooks:
            hook(node.name, record)
        if point + 1 in planned or drawn == point + 1:
            self.crash(node.name, self._downtime())

    def _send(self, node: _Node, to: NodeId, message: Any) -> None:
        body = self._encode(message)
        self.frames_sent += 1
        self.octets_sent += len(body)
        for hook in self._sent_hooks:
            hook(node.name, to, message, body)
        if to not in self._nodes:
            return
        weather, random_ = self.weather, self._rng.random
        if to != node.name:
            if self._side and self._side.get(to) != self._side.get(node.name):
                return
            if self._core is not None and not (to in self._core and node.name in self._core):
                return
            if weather.loss_probability and random_() < weather.loss_probability:
                return
        copies = 1
        if weather.repeat_probability and random_() < weather.repeat_probability:
            copies = 2
        for _ in range(copies):
            delay = self._delay()
            if weather.reorder_probability and random_() < weather.reorder_probability:
                delay += int(random_() * weather.reorder_delay_max_ns)
            received = self._decode(body) if self._decode is not None else message
            self._push(delay, to, _ANY_LIFE, Received(node.name, received), body)

    def _push(self, delay_ns: int, name: str, life: int, event: Any, body: bytes) -> None:
        self._number += 1
        entry = (self.now_ns + delay_ns, self._number, name, life, event, body)
        heapq.heappush(self._queue, entry)

    def _delay(self) -> int:
        low, high = self.weather.delay_min_ns, self.weather.delay_max_ns
        return low + int(self._rng.random() * (high - low))

    def _downtime(self) -> int:
        return 1 + int(self._rng.random() * self.weather.down_max_ns)

    def _may_crash(self) -> bool:
        return self._down < self.weather.crashed_max

    def _gust(self) -> None:
        weather = self.weather
        if not weather.partition_probability:
            return
        self._side = {}
        if self._rng.random() < weather.partition_probability:
            self._side = {node.name: self._rng.randrange(2) for node in self._nodes.values()}
        if self._queue:
            self._push(weather.partition_interval_ns, "", _ANY_LIFE, _Gust(), b"")


def _octets(event: TimerFired | Computed) -> bytes:
    return event.name.encode() if isinstance(event, TimerFired) else repr(event.job).encode()
