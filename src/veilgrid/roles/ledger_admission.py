"""Asking for evidence of attestation, showing it, and saying on the ledger what came [day 4.6].

Evidence is judged where there is a clock and a policy file: both come in as capabilities. What is
judged by whom is agreed on by counting [ledger 9.5], as for any other thing validators find out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from veilgrid.ledger.admission import REASON_LENGTH_MAX, Admission
from veilgrid.ledger.operation import Admit
from veilgrid.machine import START, Effect, Event, NodeId, Received, Send, TimerFired
from veilgrid.roles.ledger_message import Challenge, Shown
from veilgrid.roles.ledger_seat import AGAIN, Agreement

EVIDENCE_LENGTH_MAX: Final = 2 << 20
NONCE_LENGTH_MAX: Final = 64

Quote = Callable[[bytes, bytes], bytes]
"""From a public key and a nonce to evidence, octets: what a process asks of its machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a verifier makes of what was shown.

    Attributes
    ----------
    evidence
        Digest of it, empty if nothing was shown.
    reason
        Why it is refused.
    """

    is_accepted: bool
    evidence: bytes
    reason: str = ""


class Assessor(Protocol):
    """A verifier of evidence with its own clock, policy and nonces [attestation 8]."""

    def ask(self, who: str, public_key: bytes) -> bytes | None:
        """Return the nonce to ask ``who`` with now; None while what it has shown is good."""
        ...

    def judge(self, who: str, nonce: bytes, evidence: bytes) -> Judgement | None:
        """Judge an answer; None if it is not one to the question that was asked last."""
        ...

    def lapsed(self, who: str) -> Judgement | None:
        """Return a refusal if what was good before has ended and no answer came since."""
        ...


class Attested:
    """A participant that shows evidence when a validator asks for it.

    Parameters
    ----------
    machine
        What it does otherwise.
    quote
        Makes evidence.
    """

    def __init__(self, machine: Any, me: NodeId, agreement: Agreement, quote: Quote) -> None:
        self._machine, self._me, self._agreement, self._quote = machine, me, agreement, quote

    def __getattr__(self, name: str) -> Any:
        """Look into the machine, as checkers and reports do."""
        if name == "_machine":
            raise AttributeError(name)
        return getattr(self._machine, name)

    def handle(self, event: Event) -> list[Effect]:
        """Answer a challenge; everything else is the machine's."""
        match event:
            case Received(sender, Challenge() as challenge):
                return self._show(sender, challenge)
        effects: list[Effect] = self._machine.handle(event)
        return effects

    def _show(self, sender: NodeId, challenge: Challenge) -> list[Effect]:
        who, agreement = challenge.who, self._agreement
        if sender not in agreement.validators or home_of(agreement, who) != self._me:
            return []
        if not 16 <= len(challenge.nonce) <= NONCE_LENGTH_MAX:
            return []
        evidence = self._quote(agreement.keys[self._me], challenge.nonce)
        return [Send(sender, Shown(who, challenge.nonce, evidence))]


class Asking(Attested):
    """A validator that asks everybody, and says on the ledger whom it believes [attestation 8.1].

    Parameters
    ----------
    assessor
        Judges; this validator's own.
    """

    def __init__(
        self, machine: Any, me: NodeId, agreement: Agreement, quote: Quote, assessor: Assessor
    ) -> None:
        super().__init__(machine, me, agreement, quote)
        self._assessor = assessor
        self._said: dict[str, bool] = {}
        self._has_asked = False

    def handle(self, event: Event) -> list[Effect]:
        """Ask when the day opens and whenever something may be missing; judge what comes."""
        match event:
            case Received(sender, Shown() as shown):
                return self._on_shown(sender, shown)
        effects = super().handle(event)
        is_due = isinstance(event, TimerFired) and event.name in (START, AGAIN)
        if self.view.is_open and (is_due or not self._has_asked):
            self._has_asked = True
            effects += self._ask()
        return effects

    def _admissions(self) -> dict[str, Admission]:
        day = self.replica.service.state.days.get(self._agreement.day)
        return dict(day.admissions) if day is not None else {}

    def _ask(self) -> list[Effect]:
        effects: list[Effect] = []
        agreement, held = self._agreement, self._admissions()
        subjects = (*agreement.clients, *agreement.workers, *agreement.validators)
        for who in [one for one in subjects if one != self._me and one not in self.view.excluded]:
            admission = held.get(who, Admission())
            if admission.verdict is False:
                continue
            if self._said.get(who, admission.ballots.get(self._me)) is False:
                continue
            home = agreement.home(who)
            nonce = self._assessor.ask(who, agreement.keys[home])
            lapsed = self._assessor.lapsed(who)
            if lapsed is not None:
                effects += self._say(who, lapsed)
            elif nonce is not None:
                effects.append(Send(home, Challenge(who, nonce)))
        return effects

    def _on_shown(self, sender: NodeId, shown: Shown) -> list[Effect]:
        who, agreement = shown.who, self._agreement
        if home_of(agreement, who) != sender or len(shown.evidence) > EVIDENCE_LENGTH_MAX:
            return []
        judgement = self._assessor.judge(who, shown.nonce, shown.evidence)
        return [] if judgement is None else self._say(who, judgement)

    def _say(self, who: str, judgement: Judgement) -> list[Effect]:
        """Cast a ballot, unless the same one is on the ledger or under way."""
        held = self._admissions().get(who, Admission()).ballots.get(self._me)
        said = self._said.get(who, held)
        if said is False or said is judgement.is_accepted:
            return []
        self._said[who] = judgement.is_accepted
        ballot = Admit(
            self._agreement.day,
            who,
            judgement.evidence,
            judgement.is_accepted,
            judgement.reason[:REASON_LENGTH_MAX],
        )
        effects: list[Effect] = self.desk.submit(self._me, ballot)
        return effects


def home_of(agreement: Agreement, who: str) -> NodeId | None:
    """Return the process that shows evidence for ``who``; None if nobody is asked for it."""
    if who in agreement.clients:
        return agreement.home(who)
    return NodeId(who) if who in (*agreement.workers, *agreement.validators) else None
