"""What must hold in every run, watched from outside the machines [node 8.4]."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from veilgrid.errors import invariant
from veilgrid.machine import NodeId

if TYPE_CHECKING:
    from veilgrid.sim.world import World

_FORM_LENGTH_MIN: Final = 4
_BITS_MIN: Final = 24


class Violation(AssertionError):
    """A property that must hold in every run does not."""


class Checker:
    """Base of all checkers: override the hooks that matter, raise :class:`Violation`."""

    def sent(self, sender: NodeId, to: NodeId, message: Any, frame: bytes) -> None:
        """Look at a message as it leaves, before the weather takes it."""

    def persisted(self, node: NodeId, record: Any) -> None:
        """Look at a record that has become durable."""

    def decided(self, node: NodeId, outcome: Any) -> None:
        """Look at an outcome."""

    def restarted(self, node: NodeId, records: tuple[Any, ...]) -> None:
        """Look at what a node finds in its journal after a crash."""

    def finished(self, world: World) -> None:
        """Look at the world at the end of a run."""


class Agreement(Checker):
    """No two honest nodes decide differently about the same thing.

    Parameters
    ----------
    key
        What an outcome is about (a sequence, a round), or None if it does not matter.
    value
        What was decided about it; must compare with ``==``.
    honest
        Whom the claim is made for; None means everybody.
    """

    def __init__(
        self,
        key: Callable[[Any], Hashable | None],
        value: Callable[[Any], Any],
        honest: Iterable[NodeId] | None = None,
    ) -> None:
        self._key, self._value = key, value
        self._honest = frozenset(honest) if honest is not None else None
        self.chosen: dict[Hashable, tuple[NodeId, Any]] = {}

    def decided(self, node: NodeId, outcome: Any) -> None:
        """Compare with what was decided first."""
        if self._honest is not None and node not in self._honest:
            return
        key = self._key(outcome)
        if key is None:
            return
        value = self._value(outcome)
        first, chosen = self.chosen.setdefault(key, (node, value))
        if chosen != value:
            raise Violation(f"{first} and {node} decided differently about {key!r}")


class Durability(Checker):
    """What a node has told the world survives its crash.

    Parameters
    ----------
    promise
        What an outcome promises, or None. It is looked for among what the records hold.
    evidence
        What a record holds, or None.
    honest
        Whom the claim is made for; None means everybody.
    """

    def __init__(
        self,
        promise: Callable[[Any], Hashable | None],
        evidence: Callable[[Any], Hashable | None],
        honest: Iterable[NodeId] | None = None,
    ) -> None:
        self._promise, self._evidence = promise, evidence
        self._honest = frozenset(honest) if honest is not None else None
        self._promised: dict[NodeId, set[Hashable]] = {}

    def decided(self, node: NodeId, outcome: Any) -> None:
        """Remember the promise."""
        if self._honest is not None and node not in self._honest:
            return
        promise = self._promise(outcome)
        if promise is not None:
            self._promised.setdefault(node, set()).add(promise)

    def restarted(self, node: NodeId, records: tuple[Any, ...]) -> None:
        """Look for every promise among the records."""
        held = {self._evidence(record) for record in records}
        lost = self._promised.get(node, set()) - held
        if lost:
            raise Violation(f"{node} lost {len(lost)} promised record(s) in a crash")


class NoSecretOnWire(Checker):
    """No frame holds a planted value in any of the forms it could travel in.

    Parameters
    ----------
    canaries
        Name of each planted value and the value: int, float, str or bytes. The name is all that a
        violation prints.
    """

    def __init__(self, canaries: Mapping[str, int | float | str | bytes]) -> None:
        self._forms = [
            (name, form) for name, value in canaries.items() for form in canary_forms(value)
        ]
        self.frame_count = 0

    def sent(self, sender: NodeId, to: NodeId, message: Any, frame: bytes) -> None:
        """Scan the frame."""
        self.frame_count += 1
        for name, form in self._forms:
            if form in frame:
                raise Violation(
                    f"canary {name} left {sender} for {to} in a {type(message).__name__}"
                )


def canary_forms(value: float | str | bytes) -> list[bytes]:
    """Return the octet strings that would give ``value`` away: raw, text, hex, base64.

    A canary has at least four octets, a whole number at least 24 bits: less occurs by chance.
    """
    if isinstance(value, int):
        is_long = value.bit_length() >= _BITS_MIN
    else:
        is_long = isinstance(value, float) or len(value) >= _FORM_LENGTH_MIN
    invariant(is_long, "a canary is long enough to be told from chance")
    raw: list[bytes] = []
    texts: list[str] = []
    if isinstance(value, bytes):
        raw = [value]
    elif isinstance(value, str):
        raw = [value.encode(), value.encode("utf-16-le")]
    elif isinstance(value, float):
        raw = [struct.pack(">d", value), struct.pack("<d", value), struct.pack("<f", value)]
        texts = [repr(value)]
    else:
        least = max(1, (value.bit_length() + 8) // 8)
        lengths = [length for length in (4, 8, 16) if length >= least] or [least]
        raw = [
            value.to_bytes(length, order, signed=True)
            for length in lengths
            for order in ("big", "little")
        ]
        texts = [str(value), f"{value:x}"]
    forms = [*raw, *(text.encode() for text in texts)]
    for octets in raw:
        forms += [octets.hex().encode(), base64.b64encode(octets).rstrip(b"=")]
    return [form for form in dict.fromkeys(forms) if len(form) >= _FORM_LENGTH_MIN]
