"""A market over time: five-minute rounds, participants that come and go, weights [market 7].

The operator runs this machine. It sees who takes part and who is flagged, never an order: orders
go to the committee, sealed for it. What it announces (row, weight, cap) is fixed before orders.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from veilgrid.machine import (
    START,
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
from veilgrid.risk.flags import next_weight

ROUND_NS: Final = 300_000_000_000
WEIGHT_STEPS: Final = 1000
_CLOSE: Final = "close"


class Join(msgspec.Struct, frozen=True, tag=True):
    """Ask to take part from the next round on."""

    capability_steps: int | None = None


class Leave(msgspec.Struct, frozen=True, tag=True):
    """Take no part from the next round on."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """Tell a participant what holds in a round that takes orders now.

    Attributes
    ----------
    row
        Its place in the order in which a longer side is served; moves on by one each round.
    weight : 0..1000
        What its quantities are multiplied by.
    cap_steps
        What it was proved able to trade; None: the usual cap.
    """

    number: int
    row: int
    weight: int
    cap_steps: int | None


class Saved(msgspec.Struct, frozen=True, tag=True):
    """What must survive a restart: no round number is used twice, no weight is forgotten."""

    number: int
    weights: dict[str, float]
    members: dict[str, int | None]


class Flagged(msgspec.Struct, frozen=True, tag=True):
    """What a cleared round says: its public result, and kinds of flags by participant."""

    result: Any
    kinds: dict[str, list[str]]


@dataclass(slots=True)
class _State:
    number: int = 0
    members: dict[str, int | None] = field(default_factory=dict)
    joining: dict[str, int | None] = field(default_factory=dict)
    leaving: set[str] = field(default_factory=set)
    weights: dict[str, float] = field(default_factory=dict)
    clearing: dict[int, list[str]] = field(default_factory=dict)


def rows_of(members: Iterable[str], number: int) -> list[str]:
    """Return participants in the order in which a longer side is served in a round."""
    names = sorted(members)
    shift = number % len(names) if names else 0
    return names[shift:] + names[:shift]


class MarketRounds:
    """The operator's machine.

    Parameters
    ----------
    clear
        Called with round number, names in row order and weights; runs the committee and returns
        :class:`Flagged`.
    round_ns
        How long orders are taken.
    saved
        The last record before a restart.
    """

    def __init__(
        self,
        clear: Callable[[int, list[str], list[int]], Flagged],
        *,
        round_ns: int = ROUND_NS,
        saved: Saved | None = None,
    ) -> None:
        self._clear, self._round_ns = clear, round_ns
        self.state = _State()
        if saved is not None:
            self.state.number = saved.number
            self.state.weights = dict(saved.weights)
            self.state.members = dict(saved.members)

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        state = self.state
        match event:
            case Received(sender, Join(capability_steps)):
                state.leaving.discard(sender)
                state.joining[str(sender)] = capability_steps
            case Received(sender, Leave()):
                state.joining.pop(str(sender), None)
                state.leaving.add(str(sender))
            case TimerFired(name) if name == START:
                return self._open()
            case TimerFired(name) if name == _CLOSE:
                return [*self._close(), *self._open()]
            case Computed(int() as number, Flagged() as told) if number in state.clearing:
                return self._cleared(number, told)
            case _:
                pass
        return []

    def rows(self) -> list[str]:
        """Return the participants of the present round in the order of their rows."""
        return rows_of(self.state.members, self.state.number)

    def _open(self) -> list[Effect]:
        state = self.state
        for name in state.leaving:
            state.members.pop(name, None)
        state.members.update(state.joining)
        state.joining, state.leaving = {}, set()
        state.number += 1
        saved = Saved(state.number, dict(state.weights), dict(state.members))
        announced: list[Effect] = [
            Send(
                NodeId(name),
                Opened(state.number, row, self._weight(name), state.members[name]),
            )
            for row, name in enumerate(self.rows())
        ]
        return [Persist(saved), *announced, SetTimer(_CLOSE, self._round_ns)]

    def _weight(self, name: str) -> int:
        return int(self.state.weights.get(name, 1.0) * WEIGHT_STEPS)

    def _close(self) -> list[Effect]:
        rows = self.rows()
        if not rows:
            return []
        self.state.clearing[self.state.number] = rows
        weights = [self._weight(name) for name in rows]
        return [Compute(self.state.number, self._clear, (self.state.number, rows, weights))]

    def _cleared(self, number: int, told: Flagged) -> list[Effect]:
        """Lower and restore weights; a round that opened meanwhile keeps those announced."""
        for name in self.state.clearing.pop(number):
            kinds = frozenset(told.kinds.get(name, ()))
            self.state.weights[name] = next_weight(self.state.weights.get(name, 1.0), kinds)
        return [Decide((number, told.result))]
