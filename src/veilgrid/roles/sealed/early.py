"""What others say before a party is as far as they are [sealed 4.1]."""

from dataclasses import dataclass, field, replace
from typing import Any, Final

from veilgrid.machine import Event, NodeId, Received
from veilgrid.mpc.message import Relay, Submission
from veilgrid.roles.sealed.heard import PAYER, bus_of
from veilgrid.roles.sealed.message import Agreement, Stopped

_EARLY_MAX: Final = 256
"""Words of one party that are kept for a task or an attempt."""


@dataclass
class Early:
    """Messages that wait for the next task or attempt: others may be ahead by one.

    Nobody takes up another's room: of each bus one message is kept, from its own process.
    """

    _tasks: dict[int, list[Received]] = field(default_factory=dict)
    _ahead: list[Received] = field(default_factory=list)
    _taken: dict[tuple[bytes, object], int] = field(default_factory=dict)

    def keep(self, event: Event, session: bytes, agreement: Agreement, task: int) -> None:
        """Keep what belongs to the task after this one, or to the first ones of another attempt."""
        if not isinstance(event, Received):
            return
        following = replace(agreement, attempt=agreement.attempt + 1)
        if session in (following.session(0), following.session(1)):
            if self._has_room(event, session, agreement):
                self._ahead.append(event)
        elif session == agreement.session(task + 1) and self._has_room(event, session, agreement):
            self._tasks.setdefault(task + 1, []).append(event)

    def _has_room(self, event: Received, session: bytes, agreement: Agreement) -> bool:
        """Whether its sender may have a message kept, and has room for it."""
        whose, most = _room_of(event, agreement)
        taken = self._taken.get((session, whose), 0)
        if taken >= most:
            return False
        self._taken[session, whose] = taken + 1
        return True

    def keep_stop(self, author: NodeId, stopped: Stopped) -> None:
        """Keep that a party stopped in the next attempt: else it would be missed in it."""
        known = [one.message for one in self._ahead if one.sender == author]
        if not any(isinstance(one, Stopped) for one in known):
            self._ahead.append(Received(author, stopped))

    def of_task(self, task: int) -> list[Received]:
        """Return what waited for a task that begins."""
        if not self._ahead:
            self._taken.clear()
        return self._tasks.pop(task, [])

    def of_attempt(self) -> list[Received]:
        """Return what waited for an attempt that begins, and forget all else."""
        ahead, self._ahead = self._ahead, []
        self._tasks.clear()
        self._taken.clear()
        return ahead


def _room_of(event: Received, agreement: Agreement) -> tuple[object, int]:
    """Return whose room a message takes, and how many there fit: none for who may not send it."""
    if not isinstance(event.message, Submission):
        return event.sender, _EARLY_MAX
    try:
        bus = bus_of(event.message.client)
    except ValueError:
        return event.sender, 0
    home = agreement.payer if bus == PAYER else agreement.groups.get(bus)
    return bus, int(home == event.sender)


def session_of(message: Any) -> bytes:
    """Return which computation a message of a party belongs to; empty if to none by itself."""
    said = message.said if isinstance(message, Relay) else message
    return getattr(said, "session", b"")
