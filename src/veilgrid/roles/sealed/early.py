"""What others say before a party is as far as they are [sealed 4.1]."""

from dataclasses import dataclass, field, replace
from typing import Any, Final

from veilgrid.machine import Event, NodeId, Received
from veilgrid.mpc.message import Relay
from veilgrid.roles.sealed.message import Agreement, Stopped

_EARLY_MAX: Final = 256


@dataclass
class Early:
    """Messages that wait for the next task or attempt: others may be ahead by one."""

    _tasks: dict[int, list[Received]] = field(default_factory=dict)
    _ahead: list[Received] = field(default_factory=list)

    def keep(self, event: Event, session: bytes, agreement: Agreement, task: int) -> None:
        """Keep what belongs to the task after this one, or to the first ones of another attempt."""
        if not isinstance(event, Received):
            return
        following = replace(agreement, attempt=agreement.attempt + 1)
        room = _EARLY_MAX + len(agreement.site_keys)
        if session in (following.session(0), following.session(1)):
            if len(self._ahead) < room + len(agreement.site_keys):
                self._ahead.append(event)
        elif session == agreement.session(task + 1):
            waiting = self._tasks.setdefault(task + 1, [])
            if len(waiting) < room:
                waiting.append(event)

    def keep_stop(self, author: NodeId, stopped: Stopped) -> None:
        """Keep that a party stopped in the next attempt: else it would be missed in it."""
        known = [one.message for one in self._ahead if one.sender == author]
        if not any(isinstance(one, Stopped) for one in known):
            self._ahead.append(Received(author, stopped))

    def of_task(self, task: int) -> list[Received]:
        """Return what waited for a task that begins."""
        return self._tasks.pop(task, [])

    def of_attempt(self) -> list[Received]:
        """Return what waited for an attempt that begins, and forget all else."""
        ahead, self._ahead = self._ahead, []
        self._tasks.clear()
        return ahead


def session_of(message: Any) -> bytes:
    """Return which computation a message of a party belongs to; empty if to none by itself."""
    said = message.said if isinstance(message, Relay) else message
    return getattr(said, "session", b"")
