"""A committee over rounds: who takes part in each, and who is left out [mpc 11].

A convener calls rounds by number. A member enters a number at most once in all its lives, which
its journal ensures, and only if everybody who is left out was found faulty in an earlier round by
signed verdicts. Shares of one round are of no use in another: clients send their inputs anew.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from veilgrid.errors import invariant
from veilgrid.machine import (
    START,
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
from veilgrid.mpc.client import Enrolled, Mailbox
from veilgrid.mpc.message import Aborted, Finished, Relay, Submission
from veilgrid.mpc.party import Party, Program
from veilgrid.roles.rounds import (
    Call,
    Close,
    Ended,
    Entered,
    Outcome,
    Present,
    Record,
    Sent,
    Terms,
    Verdict,
    is_signed,
    refusal,
    signed_verdict,
)
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs

_EARLY_MAX: Final = 64
"""Messages of one peer that are kept for a round that was not called here yet."""


class Member:
    """One seat of a committee, over rounds and restarts.

    Parameters
    ----------
    terms
        What was agreed on.
    convener
        Who calls rounds; it may end any, but sees nothing and leaves out nobody without proof.
    program_of
        What every round computes, given the mailbox with the clients' messages.
    clients
        Who may send inputs, and what.
    box_key
        The own decryption key for clients' messages.
    gateways
        Who may say that a client sends nothing; the convener's node if not given.
    records
        What the journal holds, oldest first.
    intake_ns, patience_ns, patience_count
        See :class:`~veilgrid.mpc.party.Party`.
    mailbox_of
        Makes the mailbox of a round; another kind for very many clients.
    """

    def __init__(
        self,
        me: NodeId,
        terms: Terms,
        convener: NodeId,
        program_of: Callable[[Mailbox], Program],
        *,
        clients: Mapping[str, Enrolled],
        box_key: Secret[bytes],
        signer: Signs,
        verify_keys: Mapping[NodeId, bytes],
        randomness: Randomness,
        gateways: Sequence[NodeId] | None = None,
        records: Sequence[Record] = (),
        intake_ns: int = 1_000_000_000,
        patience_ns: int = 10_000_000_000,
        patience_count: int = 3,
        mailbox_of: Callable[..., Mailbox] = Mailbox,
    ) -> None:
        invariant(me in terms.seats, "a member has a seat")
        self.me, self.terms, self.seat = me, terms, terms.seats.index(me) + 1
        self._gateways = (convener,) if gateways is None else tuple(gateways)
        self._convener, self._program_of, self._clients = convener, program_of, dict(clients)
        self._box_key, self._signer, self._keys = box_key, signer, dict(verify_keys)
        self._randomness, self._intake_ns = randomness, intake_ns
        self._patience_ns, self._patience_count = patience_ns, patience_count
        self.last: Entered | None = None
        self._verdict: Verdict | None = None
        self._proven: set[int] = set()
        for record in records:
            if isinstance(record, Entered):
                self.last, self._verdict = record, None
                self._proven |= set(record.proven)
            else:
                self._verdict = record.verdict
        self.parties: dict[bytes, Party] = {}
        self._early: dict[NodeId, deque[Received]] = {}
        self._call: Call | None = None
        self._mailbox: Mailbox | None = None
        self._mailbox_of = mailbox_of
        self._missing: dict[bytes, set[str]] = {}

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event. All branching on event kind happens here."""
        match event:
            case TimerFired(name) if name == START:
                return self._on_start()
            case TimerFired(name):
                return self._on_timer(name)
            case Received(sender, Call() as call) if sender == self._convener:
                return self._on_call(call)
            case Received(sender, Sent(session, missing)) if sender in self._gateways:
                self._missing.setdefault(session, set()).update(missing)
                return self._closed(session)
            case Received(_, Verdict() as verdict):
                return self._on_left(verdict)
            case Received(sender, Close(committee)) if sender == self._convener:
                return self._on_close(committee)
            case Received(_, Present() | Sent() | Call() | Close()):
                return []
            case Received(_, message):
                return self._on_inner(event, message)
            case _:
                return []

    # -- rounds -----------------------------------------------------------------------------------

    def _on_start(self) -> list[Effect]:
        """After a restart in a round: tell everybody, so that nobody waits."""
        if self.last is None:
            return []
        effects: list[Effect] = []
        if self._verdict is None:
            left = self._signed(self.last, "left", b"", [])
            self._verdict = left
            others = [name for name in self.terms.names(self.last.members) if name != self.me]
            effects = [Persist(Ended(left)), *(Send(other, left) for other in others)]
        return [*effects, Send(self._convener, self._verdict), self._present()]

    def _present(self) -> Send:
        last = self.last.number if self.last is not None else 0
        return Send(self._convener, Present(self.seat, last))

    def _on_call(self, call: Call) -> list[Effect]:
        key = self._keys[self._convener]
        reason, proven = refusal(call, self.terms, key, self._keys)
        last = self.last.number if self.last is not None else 0
        if reason or self._proven & set(call.members):
            return []
        if call.number <= last:
            if self._verdict is None:
                return []
            return [Send(self._convener, self._verdict), self._present()]
        if self.seat not in call.members:
            return [self._present()]
        return self._enter(call, proven)

    def _enter(self, call: Call, proven: set[int]) -> list[Effect]:
        """Take part in a round; that is durable before anything is said in it."""
        session = self.terms.session(call.number, call.members, call.degree)
        self._missing = {key: one for key, one in self._missing.items() if key == session}
        self._proven |= proven
        self.last = Entered(call.number, session, call.members, sorted(self._proven))
        self._verdict, self._call = None, call
        party = self._party(call, session)
        # Who lags behind in the round before may still ask for what was said in it.
        former = list(self.parties.items())[-1:]
        self.parties = {**dict(former), session: party}
        effects: list[Effect] = [Persist(self.last), *self._step(session, TimerFired(START))]
        for queue in self._early.values():
            early = [one for one in queue if _session_of(one.message) == session]
            for one in early:
                queue.remove(one)
                effects += self._step(session, one)
        return [*effects, *self._closed(session)]

    def _party(self, call: Call, session: bytes) -> Party:
        names = self.terms.names(call.members)
        self._mailbox = self._mailbox_of(
            names.index(self.me) + 1,
            len(names),
            call.degree,
            session,
            self._clients,
            self._box_key,
        )
        return Party(
            self.me,
            names,
            call.degree,
            self._program_of(self._mailbox),
            signer=self._signer,
            verify_keys=self._keys,
            randomness=self._randomness,
            mailbox=self._mailbox,
            intake_ns=self._intake_ns,
            session=session,
            patience_ns=self._patience_ns,
            patience_count=self._patience_count,
        )

    # -- within a round ---------------------------------------------------------------------------

    def _on_inner(self, event: Received, message: Any) -> list[Effect]:
        session = _session_of(message)
        if session in self.parties:
            effects = self._step(session, event)
            is_input = isinstance(message, Submission)
            return [*effects, *self._closed(session)] if is_input else effects
        # A peer or client may have heard of the next round first.
        is_seat = event.sender in self.terms.seats
        size = _EARLY_MAX if is_seat else _EARLY_MAX + len(self._clients)
        if is_seat or len(self._early) <= _EARLY_MAX:
            self._early.setdefault(event.sender, deque(maxlen=size)).append(event)
        return []

    def _closed(self, session: bytes) -> list[Effect]:
        """Wait for no more inputs once every client has sent its own or is known to send none."""
        mailbox = self._mailbox
        if mailbox is None or mailbox.session != session:
            return []
        missing = self._missing.get(session, set())
        if len(mailbox.received) + len(missing) < len(self._clients):
            return []
        settled = set(mailbox.received) | missing
        if not settled >= set(self._clients):
            return []
        return self._step(session, TimerFired("intake"))

    def _on_timer(self, name: str) -> list[Effect]:
        number, _, inner = name.partition(":")
        for session, party in self.parties.items():
            if self.last is not None and session == self.last.session:
                is_this = number == str(self.last.number)
                return self._step(session, TimerFired(inner)) if is_this and party else []
        return []

    def _step(self, session: bytes, event: Event) -> list[Effect]:
        """Let the party of a round handle an event; its timers carry the round's number."""
        party = self.parties.get(session)
        if party is None or self.last is None:
            return []
        is_current = session == self.last.session
        effects: list[Effect] = []
        for effect in party.handle(event):
            match effect:
                case SetTimer(name, delay_ns):
                    if is_current and self._verdict is None:
                        effects.append(SetTimer(f"{self.last.number}:{name}", delay_ns))
                case Decide(outcome):
                    if is_current and self._verdict is None:
                        effects += self._end(outcome)
                case _:
                    effects.append(effect)
        return effects

    def _end(self, outcome: Finished | Aborted) -> list[Effect]:
        """Tell the convener and the world how the round ended for this member."""
        last, call = self.last, self._call
        invariant(last is not None and call is not None, "only a round that was entered ends")
        members = self.terms.names(call.members)  # type: ignore[union-attr]
        if isinstance(outcome, Finished):
            kind, reason, culprits, result = "finished", "", [], outcome.result
            digest = hashlib.sha256(msgspec.msgpack.encode(result)).digest()
        else:
            kind, reason, culprits, result = outcome.kind, outcome.reason, outcome.culprits, None
            digest = hashlib.sha256(reason.encode()).digest() if kind == "refused" else b""
        seats = [self.terms.seats.index(NodeId(name)) + 1 for name in culprits]
        self._verdict = self._signed(last, kind, digest, seats)  # type: ignore[arg-type]
        told = Outcome(
            last.number,  # type: ignore[union-attr]
            call.task,  # type: ignore[union-attr]
            kind,
            result,
            reason,
            list(culprits),
            [str(name) for name in members],
            call.degree,  # type: ignore[union-attr]
        )
        return [
            Persist(Ended(self._verdict)),
            Send(self._convener, self._verdict),
            Decide(told),
        ]

    def _signed(self, last: Entered, kind: str, digest: bytes, culprits: list[int]) -> Verdict:
        verdict = Verdict(last.session, last.number, self.seat, kind, digest, culprits)
        return signed_verdict(verdict, self._signer)

    def _on_left(self, verdict: Verdict) -> list[Effect]:
        """End the round at once when a member of it says that it restarted."""
        last = self.last
        if last is None or verdict.session != last.session or verdict.kind != "left":
            return []
        if self._verdict is not None or verdict.seat not in last.members:
            return []
        name = self.terms.seats[verdict.seat - 1]
        if not is_signed(verdict, self._keys[name]):
            return []
        self.parties.pop(last.session, None)
        return self._end(Aborted("a party restarted in the round", [str(name)], "silent"))

    def _on_close(self, committee: bytes) -> list[Effect]:
        is_this = committee == self.terms.committee
        return [Decide("closed")] if is_this else []


def _session_of(message: Any) -> bytes:
    session: bytes = message.said.session if isinstance(message, Relay) else message.session
    return session
