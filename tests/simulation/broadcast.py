"""Reliable broadcast among four, one of whom may lie [Bracha 1987]: small, real, easily broken."""

from collections.abc import Sequence

import msgspec

from veilgrid.machine import Decide, Effect, Event, NodeId, Received, Send, TimerFired


class Initial(msgspec.Struct, frozen=True, tag=True):
    value: int


class Echo(msgspec.Struct, frozen=True, tag=True):
    value: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    value: int


MESSAGES = Initial | Echo | Ready


class Broadcast:
    """Deliver what the sender said, the same everywhere or nowhere.

    ``quorum`` is 2f + 1 = 3 of four; anything less is a mutation for the tests.
    """

    def __init__(
        self, me: NodeId, nodes: Sequence[NodeId], value: int | None = None, quorum: int = 3
    ) -> None:
        self._me, self._nodes, self._value, self._quorum = me, tuple(nodes), value, quorum
        self._echoes: dict[NodeId, int] = {}
        self._readies: dict[NodeId, int] = {}
        self._said: set[type] = set()

    def handle(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired("start") if self._value is not None:
                return self._say(Initial(self._value))
            case Received(sender, Initial(value)) if sender == self._nodes[0]:
                return self._say(Echo(value))
            case Received(sender, Echo(value)):
                self._echoes.setdefault(sender, value)
                return self._advance(value)
            case Received(sender, Ready(value)):
                self._readies.setdefault(sender, value)
                return self._advance(value)
        return []

    def _advance(self, value: int) -> list[Effect]:
        effects: list[Effect] = []
        readies = list(self._readies.values()).count(value)
        if list(self._echoes.values()).count(value) >= self._quorum or readies >= 2:
            effects += self._say(Ready(value))
        if readies >= self._quorum and Decide not in self._said:
            self._said.add(Decide)
            effects.append(Decide(value))
        return effects

    def _say(self, message: Initial | Echo | Ready) -> list[Effect]:
        if type(message) in self._said:
            return []
        self._said.add(type(message))
        return [Send(node, message) for node in self._nodes]
