"""The cast: adversaries that wrap any machine [node 8.3; docs/threat-model.md 3].

Each is itself a machine, so it runs under both drivers. They lie about messages only: the timers,
records and outcomes of the wrapped machine pass. All draw from the generator they are given.
"""

import random
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

import msgspec

from veilgrid.machine import (
    Compute,
    Computed,
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

Mutate = Callable[[random.Random, Any], Any]
"""Make a lie of a message."""

_MEMORY_MAX: Final = 256


class Silent:
    """Behave for ``honest_steps`` events, then say nothing more: a crash that is not noticed."""

    def __init__(self, machine: Machine, honest_steps: int = 0) -> None:
        self._machine, self._left = machine, honest_steps

    def handle(self, event: Event) -> list[Effect]:
        """Drop every message once the honest steps are used up."""
        effects = self._machine.handle(event)
        if self._left > 0:
            self._left -= 1
            return effects
        return [effect for effect in effects if type(effect) is not Send]


class Replaying:
    """Behave, and send copies of earlier messages, own and received, to anybody."""

    def __init__(
        self,
        machine: Machine,
        rng: random.Random,
        peers: Iterable[NodeId],
        probability: float = 0.2,
    ) -> None:
        self._machine, self._rng, self._probability = machine, rng, probability
        self._peers = sorted(peers)
        self._memory: deque[Any] = deque(maxlen=_MEMORY_MAX)

    def handle(self, event: Event) -> list[Effect]:
        """Add a replay to some steps."""
        if isinstance(event, Received):
            self._memory.append(event.message)
        effects = list(self._machine.handle(event))
        self._memory.extend(effect.message for effect in effects if isinstance(effect, Send))
        if self._memory and self._rng.random() < self._probability:
            peer = self._rng.choice(self._peers)
            effects.append(Send(peer, self._rng.choice(self._memory)))
        return effects


class Tampering:
    """Change messages of the given types before they leave.

    Parameters
    ----------
    kinds
        Message types to change; empty means all.
    mutate
        How; a protocol whose messages are signed gives a function that signs the lie.
    """

    def __init__(
        self,
        machine: Machine,
        rng: random.Random,
        kinds: Collection[type] = (),
        probability: float = 1.0,
        mutate: Mutate | None = None,
    ) -> None:
        self._machine, self._rng, self._probability = machine, rng, probability
        self._kinds = tuple(kinds)
        self._mutate = mutate or tampered
        self.lie_count = 0

    def handle(self, event: Event) -> list[Effect]:
        """Pass the event on and lie about what comes back."""
        return [self._lie(effect) for effect in self._machine.handle(event)]

    def _lie(self, effect: Effect) -> Effect:
        if not isinstance(effect, Send):
            return effect
        if self._kinds and not isinstance(effect.message, self._kinds):
            return effect
        if self._rng.random() >= self._probability:
            return effect
        self.lie_count += 1
        return Send(effect.to, self._mutate(self._rng, effect.message))


class TwoFaced:
    """Tell some peers the truth and the others a lie: the same lie to each of them.

    Parameters
    ----------
    fooled
        Who hears the lie.
    """

    def __init__(
        self,
        machine: Machine,
        rng: random.Random,
        fooled: Collection[NodeId],
        kinds: Collection[type] = (),
        mutate: Mutate | None = None,
    ) -> None:
        self._machine, self._rng = machine, rng
        self._fooled = frozenset(fooled)
        self._kinds = tuple(kinds)
        self._mutate = mutate or tampered

    def handle(self, event: Event) -> list[Effect]:
        """Replace what the fooled hear in this step."""
        lies: dict[int, Any] = {}
        effects: list[Effect] = []
        for effect in self._machine.handle(event):
            if (
                isinstance(effect, Send)
                and effect.to in self._fooled
                and (not self._kinds or isinstance(effect.message, self._kinds))
            ):
                key = id(effect.message)
                if key not in lies:
                    lies[key] = self._mutate(self._rng, effect.message)
                effects.append(Send(effect.to, lies[key]))
            else:
                effects.append(effect)
        return effects


class Twins:
    """Two honest copies under one name, each talking to its own part of the others.

    Every lie this adversary tells is one that correct code would tell with other inputs, which
    makes it find faults that random tampering does not.

    Parameters
    ----------
    sides
        Peers that hear and are heard by each copy; a peer on both sides hears both.
    """

    def __init__(
        self, copies: tuple[Machine, Machine], sides: tuple[Collection[NodeId], Collection[NodeId]]
    ) -> None:
        self._copies = copies
        self._sides = (frozenset(sides[0]), frozenset(sides[1]))

    def handle(self, event: Event) -> list[Effect]:
        """Pass the event to the copies it concerns."""
        match event:
            case Received(sender):
                return [
                    effect
                    for which, side in enumerate(self._sides)
                    if sender in side
                    for effect in self._stepped(which, event)
                ]
            case TimerFired(name) if name[:2] in ("0:", "1:"):
                return self._stepped(int(name[0]), TimerFired(name[2:]))
            case Computed((int() as which, job), value):
                return self._stepped(which, Computed(job, value))
        return [*self._stepped(0, event), *self._stepped(1, event)]

    def _stepped(self, which: int, event: Event) -> list[Effect]:
        effects: list[Effect] = []
        for effect in self._copies[which].handle(event):
            match effect:
                case Send(to):
                    if to in self._sides[which]:
                        effects.append(effect)
                case SetTimer(name, delay_ns):
                    effects.append(SetTimer(f"{which}:{name}", delay_ns))
                case Compute(job, kernel, arguments):
                    effects.append(Compute((which, job), kernel, arguments))
                case Persist() if which == 1:
                    pass
                case _:
                    effects.append(effect)
        return effects


class Rushing:
    """Hold back what it says until it has heard all others: it speaks last, knowing everything.

    Parameters
    ----------
    patience_ns
        It speaks at the latest after this time.
    """

    def __init__(self, machine: Machine, peers: Iterable[NodeId], patience_ns: int) -> None:
        self._machine, self._patience_ns = machine, patience_ns
        self._peers = frozenset(peers)
        self._heard: set[NodeId] = set()
        self._held: list[Effect] = []

    def handle(self, event: Event) -> list[Effect]:
        """Collect messages, let them go when everybody else has spoken."""
        if event == TimerFired("rushing"):
            return self._spoken()
        effects: list[Effect] = []
        if isinstance(event, Received):
            self._heard.add(event.sender)
        was_holding = bool(self._held)
        for effect in self._machine.handle(event):
            (self._held if type(effect) is Send else effects).append(effect)
        if self._held and self._heard >= self._peers:
            return [*effects, *self._spoken()]
        if self._held and not was_holding:
            effects.append(SetTimer("rushing", self._patience_ns))
        return effects

    def _spoken(self) -> list[Effect]:
        held, self._held = self._held, []
        self._heard.clear()
        return held


def tampered(rng: random.Random, message: Any) -> Any:
    """Return ``message`` with one field, at any depth, changed; its type stays."""
    if isinstance(message, msgspec.Struct):
        names = [name for name in message.__struct_fields__ if _is_mutable(getattr(message, name))]
        if not names:
            return message
        name = rng.choice(names)
        return msgspec.structs.replace(message, **{name: _changed(rng, getattr(message, name))})
    return _changed(rng, message) if _is_mutable(message) else message


def _is_mutable(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return bool(value)
    if isinstance(value, msgspec.Struct):
        return any(_is_mutable(getattr(value, name)) for name in value.__struct_fields__)
    return isinstance(value, int | float | str | bytes | bytearray | memoryview)


def _changed(rng: random.Random, value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            other = rng.choice([value + 1, value - 1, value ^ (1 << rng.randrange(31)), 0])
            return other if other != value and -(1 << 63) <= other < 1 << 64 else value ^ 1
        case float():
            return rng.choice([value + 1.0, -value - 1.0, 2.0 * value + 1.0])
        case str():
            return value + "x"
        case bytes() | bytearray() | memoryview():
            octets = bytearray(value)
            if not octets:
                return b"\x00"
            octets[rng.randrange(len(octets))] ^= 1 + rng.randrange(255)
            return bytes(octets)
        case list() | tuple():
            index = rng.randrange(len(value))
            items = list(value)
            if _is_mutable(items[index]):
                items[index] = tampered(rng, items[index])
            else:
                del items[index]
            return type(value)(items)
        case dict():
            key = rng.choice(list(value))
            return {
                name: tampered(rng, item) if name == key else item for name, item in value.items()
            }
        case msgspec.Struct():
            return tampered(rng, value)
    return value
