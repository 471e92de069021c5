"""Parties and sites of a sealed day hear only whom they believe by evidence [attestation 8.4].

There is no quorum here that could agree on whom to admit: each process judges for itself, by its
own policy, before it takes part, and whoever it does not admit is silent to it.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final

from veilgrid.errors import invariant
from veilgrid.machine import (
    START,
    Effect,
    Event,
    Machine,
    NodeId,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.roles.ledger_admission import (
    EVIDENCE_LENGTH_MAX,
    NONCE_LENGTH_MAX,
    Assessor,
    Quote,
)
from veilgrid.roles.ledger_message import Challenge, Shown

_AGAIN: Final = "admission again"
_OVER: Final = "admission over"
AGAIN_NS: Final = 2_000_000_000
HELD_MAX: Final = 10_000
"""Messages of one sender that wait for its evidence or the day; later ones are dropped."""


class Admitting:
    """A party or sites that ask for evidence before they take part, and show their own.

    Parameters
    ----------
    machine
        What the process does otherwise; it begins when all have been admitted, or the time for it
        is over.
    keys
        Under which those sign who are asked, by name; this process's own among them.
    quote
        Makes this process's evidence.
    assessor
        Judges that of the others.
    patience_ns
        How long to wait for evidence.
    """

    def __init__(
        self,
        machine: Machine,
        me: NodeId,
        keys: Mapping[NodeId, bytes],
        *,
        quote: Quote,
        assessor: Assessor,
        patience_ns: int,
    ) -> None:
        invariant(me in keys, "a process's own key is among those of the day")
        self.machine, self._me, self._key = machine, me, keys[me]
        self._keys = {name: key for name, key in keys.items() if name != me}
        self._quote, self._assessor, self._patience_ns = quote, assessor, patience_ns
        self._held: dict[NodeId, list[Event]] = {name: [] for name in self._keys}
        self.admitted: set[NodeId] = set()
        self.refused: dict[NodeId, str] = {}
        self._early: list[Event] = []
        self._early_counts: Counter[NodeId | None] = Counter()
        self._has_begun = False

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        match event:
            case TimerFired(name) if name == START:
                return [*self._ask(), SetTimer(_OVER, self._patience_ns)]
            case TimerFired(name) if name == _AGAIN:
                return self._ask()
            case TimerFired(name) if name == _OVER:
                return self._begin()
            case Received(sender, Challenge() as challenge) if sender in self._keys:
                return self._show(sender, challenge)
            case Received(sender, Shown() as shown) if sender in self._keys:
                return self._on_shown(sender, shown)
            case Received(sender, _) if sender in self._keys and sender not in self.admitted:
                if sender not in self.refused and len(self._held[sender]) < HELD_MAX:
                    self._held[sender].append(event)
                return []
        if not self._has_begun:
            whose = event.sender if isinstance(event, Received) else None
            self._early_counts[whose] += 1
            if whose is None or self._early_counts[whose] <= HELD_MAX:
                self._early.append(event)
            return []
        return self.machine.handle(event)

    def _ask(self) -> list[Effect]:
        effects: list[Effect] = []
        for name, key in self._keys.items():
            if name not in self.admitted and name not in self.refused:
                nonce = self._assessor.ask(name, key)
                if nonce is not None:
                    effects.append(Send(name, Challenge(name, nonce)))
        return [*effects, SetTimer(_AGAIN, AGAIN_NS)] if effects else []

    def _show(self, sender: NodeId, challenge: Challenge) -> list[Effect]:
        is_sound = 16 <= len(challenge.nonce) <= NONCE_LENGTH_MAX
        if challenge.who != self._me or not is_sound:
            return []
        evidence = self._quote(self._key, challenge.nonce)
        return [Send(sender, Shown(challenge.who, challenge.nonce, evidence))]

    def _on_shown(self, sender: NodeId, shown: Shown) -> list[Effect]:
        is_open = sender not in self.admitted and sender not in self.refused
        is_sound = shown.who == sender and len(shown.evidence) <= EVIDENCE_LENGTH_MAX
        if not is_open or not is_sound:
            return []
        judgement = self._assessor.judge(sender, shown.nonce, shown.evidence)
        if judgement is None:
            return []
        if not judgement.is_accepted:
            self.refused[sender] = judgement.reason
            self._held[sender].clear()
            return self._begin_if_known()
        self.admitted.add(sender)
        waiting, self._held[sender] = self._held[sender], []
        if self._has_begun:
            return [effect for event in waiting for effect in self.machine.handle(event)]
        self._early += waiting
        return self._begin_if_known()

    def _begin_if_known(self) -> list[Effect]:
        known = len(self.admitted) + len(self.refused)
        return self._begin() if known == len(self._keys) else []

    def _begin(self) -> list[Effect]:
        if self._has_begun:
            return []
        self._has_begun = True
        effects = self.machine.handle(TimerFired(START))
        early, self._early = self._early, []
        return [*effects, *(e for event in early for e in self.machine.handle(event))]


def asked_of(
    me: NodeId, parties: Mapping[NodeId, bytes], sites: Mapping[NodeId, bytes]
) -> dict[NodeId, bytes]:
    """Return the keys of those who have to do with each other: sites do not with other sites."""
    return {**parties, **(sites if me in parties else {me: sites[me]})}
