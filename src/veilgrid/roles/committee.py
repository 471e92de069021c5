"""A committee over rounds: who takes part in each, and who is left out [mpc 11].

A convener calls rounds by number. A member enters a number at most once in all its lives, which
its journal ensures, and only if everybody who is left out was found faulty in an earlier round by
signed verdicts. Shares of one round are of no use in another: clients send their inputs anew.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
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
from veilgrid.mpc import policy
from veilgrid.mpc.client import Enrolled, Mailbox
from veilgrid.mpc.message import Aborted, Finished, Relay, Submission
from veilgrid.mpc.message import Message as Inner
from veilgrid.mpc.party import Party, Program
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs, verify

CALL_DOMAIN: Final = "mpc/1/call"
VERDICT_DOMAIN: Final = "mpc/1/verdict"
MEMBERS_MIN: Final = 3
_EARLY_MAX: Final = 64


class Verdict(msgspec.Struct, frozen=True, tag=True):
    """How a round ended for one member, signed.

    Attributes
    ----------
    seat : 1..7
        Of the member in the committee.
    kind
        ``finished``, ``cheated`` or ``silent`` (of ``culprits``), ``refused`` (the function found
        its input unusable), ``left`` (the member restarted in the round).
    digest
        SHA-256 of the encoded result, or of the reason; empty if there is neither.
    culprits
        Seats.
    """

    session: bytes
    number: int
    seat: int
    kind: str
    digest: bytes
    culprits: list[int]
    signature: bytes = b""


class Exclusion(msgspec.Struct, frozen=True, tag=True):
    """The verdicts on one round: they prove who was faulty in it to everybody."""

    number: int
    members: list[int]
    degree: int
    verdicts: list[Verdict]


class Call(msgspec.Struct, frozen=True, tag=True):
    """The convener calls a round.

    Attributes
    ----------
    number
        Of the round; larger than any before.
    task
        Which of the results that are wanted it is for; the same one again after a failure.
    members
        Seats that take part, rising.
    degree
        Of all sharings of this round.
    exclusions
        Why the other seats do not.
    """

    committee: bytes
    number: int
    task: int
    members: list[int]
    degree: int
    exclusions: list[Exclusion]
    signature: bytes = b""


class Sent(msgspec.Struct, frozen=True, tag=True):
    """A gateway has sent what its clients have for a round; ``missing`` send nothing."""

    session: bytes
    missing: list[str]


class Present(msgspec.Struct, frozen=True, tag=True):
    """A member that was left out, or restarted, is there for rounds after ``last``."""

    seat: int
    last: int


class Close(msgspec.Struct, frozen=True, tag=True):
    """No more rounds will be called."""

    committee: bytes


Message = Inner | Call | Verdict | Sent | Present | Close


class Entered(msgspec.Struct, frozen=True, tag=True):
    """Journal: from here on the member takes part in no round up to ``number``."""

    number: int
    session: bytes
    members: list[int]
    proven: list[int]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Journal: how a round ended."""

    verdict: Verdict


Record = Entered | Ended


class Outcome(msgspec.Struct, frozen=True, tag=True):
    """What a member tells the world of one round.

    Attributes
    ----------
    kind, reason
        As in :class:`Verdict`, and in words.
    result
        What the function returned; None if the round did not finish.
    culprits
        Names of who cheated or was silent, as this member found.
    """

    number: int
    task: int
    kind: str
    result: Any
    reason: str
    culprits: list[str]
    members: list[str]
    degree: int


@dataclass(frozen=True, slots=True)
class Terms:
    """What all agreed on before the first round.

    Attributes
    ----------
    committee
        Name of this committee and its purpose; differs between any two.
    seats
        All members ever, in order; the first has seat 1.
    degree
        With all of them.
    degree_min
        No round runs at a lower one.
    is_linear
        The function multiplies nothing and inputs are not validated, so that degrees of up to
        two thirds are possible.
    """

    committee: bytes
    seats: tuple[NodeId, ...]
    degree: int
    degree_min: int = 1
    is_linear: bool = False

    def degree_of(self, count: int) -> int:
        """Return the degree of a round with ``count`` members."""
        largest = policy.linear_degree(count) if self.is_linear else policy.product_degree(count)
        return self.degree if count == len(self.seats) else min(self.degree, largest)

    def is_possible(self, count: int) -> bool:
        """Return whether a round may run with ``count`` members."""
        return count >= MEMBERS_MIN and self.degree_of(count) >= self.degree_min

    def session(self, number: int, members: Sequence[int], degree: int) -> bytes:
        """Return the session of a round: nothing said in it counts in another."""
        text = b"veilgrid round %d:%s|%d|%d|" % (
            len(self.committee),
            self.committee,
            number,
            degree,
        )
        return hashlib.sha256(text + bytes(members)).digest()

    def names(self, members: Iterable[int]) -> tuple[NodeId, ...]:
        """Return the names of seats."""
        return tuple(self.seats[seat - 1] for seat in members)


def signed_call(call: Call, signer: Signs) -> Call:
    """Return the call with the convener's signature."""
    return msgspec.structs.replace(call, signature=signer.sign(CALL_DOMAIN, _unsigned(call)))


def signed_verdict(verdict: Verdict, signer: Signs) -> Verdict:
    """Return the verdict with the member's signature."""
    signature = signer.sign(VERDICT_DOMAIN, _unsigned(verdict))
    return msgspec.structs.replace(verdict, signature=signature)


def is_signed(verdict: Verdict, key: bytes) -> bool:
    """Return whether the member with this key gave the verdict."""
    return verify(key, VERDICT_DOMAIN, _unsigned(verdict), verdict.signature)


def _unsigned(message: Call | Verdict) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(message, signature=b""))


def surely_faulty(
    members: Sequence[int], degree: int, accusations: Iterable[tuple[int, int]]
) -> set[int]:
    """Return who is faulty whoever is believed, if at most ``degree`` members are [mpc 11.3].

    Of the two ends of an accusation one is faulty: an honest member accuses nobody who was honest
    and in time. So the faulty ones cover all accusations; who is in every cover of at most
    ``degree`` members is proved. A member that accuses itself has left.
    """
    edges = set(accusations)
    covers = [
        set(some)
        for size in range(degree + 1)
        for some in combinations(members, size)
        if all(a in some or b in some for a, b in edges)
    ]
    return set.intersection(*covers) if covers else set()


def accusations_of(verdicts: Iterable[Verdict], kinds: Sequence[str]) -> set[tuple[int, int]]:
    """Return (accuser, accused) for verdicts of these kinds; who left accuses itself."""
    edges = set()
    for verdict in verdicts:
        if verdict.kind == "left" and "silent" in kinds:
            edges.add((verdict.seat, verdict.seat))
        elif verdict.kind in kinds:
            edges |= {(verdict.seat, culprit) for culprit in verdict.culprits}
    return edges


def faults(exclusion: Exclusion) -> tuple[set[int], set[int]]:
    """Return who was faulty in a round, and who of them is proved to have cheated."""
    members, degree, given = exclusion.members, exclusion.degree, exclusion.verdicts
    faulty = surely_faulty(members, degree, accusations_of(given, ("cheated", "silent")))
    cheated = surely_faulty(members, degree, accusations_of(given, ("cheated",)))
    return faulty, cheated


def is_genuine(exclusion: Exclusion, terms: Terms, keys: Mapping[NodeId, bytes]) -> bool:
    """Return whether every verdict is of this round, of a member of it, and signed."""
    seats = [verdict.seat for verdict in exclusion.verdicts]
    if len(set(seats)) != len(seats) or not set(seats) <= set(exclusion.members):
        return False
    session = terms.session(exclusion.number, exclusion.members, exclusion.degree)
    return all(
        verdict.session == session
        and verdict.number == exclusion.number
        and set(verdict.culprits) <= set(exclusion.members)
        and is_signed(verdict, keys[terms.seats[verdict.seat - 1]])
        for verdict in exclusion.verdicts
    )


def refusal(
    call: Call, terms: Terms, convener_key: bytes, keys: Mapping[NodeId, bytes]
) -> tuple[str, set[int]]:
    """Return why a call is refused (empty if it is not), and who is proved to have cheated."""
    everyone = set(range(1, len(terms.seats) + 1))
    members = set(call.members)
    if not verify(convener_key, CALL_DOMAIN, _unsigned(call), call.signature):
        return "not signed by the convener", set()
    if call.committee != terms.committee or sorted(members) != call.members:
        return "not a call of this committee", set()
    if not members <= everyone or not terms.is_possible(len(members)):
        return "too few members for the degree", set()
    if call.degree != terms.degree_of(len(members)):
        return "not the degree that was agreed on", set()
    out: set[int] = set()
    proven: set[int] = set()
    for exclusion in call.exclusions:
        if not set(exclusion.members) <= everyone or exclusion.number >= call.number:
            return "a reason for leaving somebody out does not stand", set()
        if exclusion.degree != terms.degree_of(len(exclusion.members)):
            return "a reason for leaving somebody out does not stand", set()
        if not is_genuine(exclusion, terms, keys):
            return "a reason for leaving somebody out does not stand", set()
        faulty, cheated = faults(exclusion)
        out |= faulty
        proven |= cheated
    if not everyone - members <= out:
        return "somebody is left out without a reason", set()
    if proven & members:
        return "somebody who cheated takes part", set()
    return "", proven


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
        self._mailbox = Mailbox(
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
        settled = set(mailbox.received) | self._missing.get(session, set())
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
