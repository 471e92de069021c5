"""The one interface of every protocol: ``Machine.handle(event) -> effects``.

A machine has no I/O, no clock and no randomness of its own and is not async. Two drivers run it:
``node`` (sockets, disk, real time) and ``sim`` (one queue, one seed). Effects are carried out in
order, and a :class:`Persist` is durable before any later effect of the same step. Broadcast is a
list of :class:`Send`.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NewType, Protocol

NodeId = NewType("NodeId", str)
"""Name of a process or of a protocol participant, unique in a deployment."""


START = "start"
"""Name of the timer that a driver fires once when a machine begins, and again after a restart."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message arrived. Its sender is authenticated by the driver, its content is not trusted."""

    sender: NodeId
    message: Any


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer set earlier ran out."""

    name: str


@dataclass(frozen=True, slots=True)
class Computed:
    """A job asked for with :class:`Compute` is done."""

    job: Hashable
    value: Any


Event = Received | TimerFired | Computed


@dataclass(frozen=True, slots=True)
class Send:
    """Hand one message to one peer; it may be lost, late, repeated or out of order."""

    to: NodeId
    message: Any


@dataclass(frozen=True, slots=True)
class Persist:
    """Make a record durable before any later effect of the same step."""

    record: Any


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Ask for :class:`TimerFired`; the same name replaces an earlier timer."""

    name: str
    delay_ns: int


@dataclass(frozen=True, slots=True)
class Compute:
    """Run a pure top-level function elsewhere; its value comes back as :class:`Computed`."""

    job: Hashable
    kernel: Callable[..., Any]
    arguments: tuple[Any, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Decide:
    """Tell the world outside the protocol what was decided."""

    outcome: Any


Effect = Send | Persist | SetTimer | Compute | Decide


class Machine(Protocol):
    """A participant of a protocol."""

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event. Never raises because of what a peer sent."""
        ...
