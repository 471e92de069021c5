"""Who calls the rounds of a committee, and who sends clients' inputs to it [mpc 11].

The convener is trusted with nothing but progress: it sees no input and no result, and a member
takes part only in a call whose exclusions are proved. A gateway speaks for clients; what it sends
is what each client would send itself.
"""

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
from veilgrid.roles.rounds import (
    Call,
    Close,
    Exclusion,
    Present,
    Sent,
    Terms,
    Verdict,
    faults,
    is_signed,
    refusal,
    signed_call,
)
from veilgrid.signature import Signs

ATTEMPT_MAX: Final = 8
"""Rounds called for one result before the convener gives up."""

RETURN_NS: Final = 60_000_000_000
"""At least so long a member that was silent may take to come back: on a busy machine a process
needs tens of seconds to start and load its kernels again."""

_AGAIN: Final = "again"
_WAIT: Final = "wait for a member"

Submissions = Callable[[Call, bytes], Sequence[Any]]
"""Make the messages of all clients of a gateway for one round, given its session."""


class Called(msgspec.Struct, frozen=True, tag=True):
    """Journal: a round was called."""

    call: Call


class Concluded(msgspec.Struct, frozen=True, tag=True):
    """Journal: how a round ended."""

    report: "RoundReport"


class RoundReport(msgspec.Struct, frozen=True, tag=True):
    """One round as the convener could tell from the verdicts.

    Attributes
    ----------
    kind
        ``finished``, ``cheated``, ``silent``, ``refused`` or ``unclear``.
    digest
        Of the result; what members returned is checked against it.
    culprits
        Who was proved faulty.
    exclusion
        The verdicts that prove it.
    """

    number: int
    task: int
    kind: str
    digest: bytes
    culprits: list[str]
    members: list[str]
    degree: int
    exclusion: Exclusion | None = None


class Report(msgspec.Struct, frozen=True, tag=True):
    """All rounds; ``stopped`` says why there is no result for some task, or is empty."""

    rounds: list[RoundReport]
    stopped: str


class Gateway:
    """Sends the inputs of its clients, anew in each round and once in each.

    Parameters
    ----------
    submissions
        Makes the messages of one round; shares of another round are of no use in it.
    missing
        Its clients that have nothing to send.
    """

    def __init__(
        self,
        terms: Terms,
        convener: NodeId,
        submissions: Submissions,
        verify_keys: Mapping[NodeId, bytes],
        missing: Sequence[str] = (),
    ) -> None:
        self._missing = list(missing)
        self._terms, self._convener, self._submissions = terms, convener, submissions
        self._keys = dict(verify_keys)
        self._last = 0

    def answer(self, call: Call) -> list[Effect]:
        """Return the clients' messages for a round that is called rightly."""
        reason, _ = refusal(call, self._terms, self._keys[self._convener], self._keys)
        if reason or call.number <= self._last:
            return []
        self._last = call.number
        session = self._terms.session(call.number, call.members, call.degree)
        names = self._terms.names(call.members)
        messages = self._submissions(call, session)
        sent: list[Effect] = [Send(name, message) for message in messages for name in names]
        return [*sent, *(Send(name, Sent(session, self._missing)) for name in names)]

    def handle(self, event: Event) -> list[Effect]:
        """Answer calls, as a machine of its own."""
        match event:
            case Received(sender, Call() as call) if sender == self._convener:
                return self.answer(call)
            case Received(sender, Close()) if sender == self._convener:
                return [Decide("closed")]
            case _:
                return []


class Convener:
    """Calls rounds until every task has a result or no further round is possible.

    Parameters
    ----------
    terms
        What all agreed on.
    task_count
        Results wanted, one after the other.
    gateways
        Who speaks for clients at other nodes.
    gateway
        The one at this node, if any.
    records
        What the journal holds: a number is never called twice.
    resend_ns
        How long until a call is sent again to who has not answered.
    patience_ns
        How long to wait for verdicts: longer than a member waits. Members may take as long to
        come back, or ``RETURN_NS`` if that is longer.
    """

    def __init__(
        self,
        me: NodeId,
        terms: Terms,
        task_count: int = 1,
        *,
        signer: Signs,
        verify_keys: Mapping[NodeId, bytes],
        gateways: Sequence[NodeId] = (),
        gateway: Gateway | None = None,
        records: Sequence[Called | Concluded] = (),
        resend_ns: int = 2_000_000_000,
        patience_ns: int = 90_000_000_000,
    ) -> None:
        self.me, self.terms, self._task_count = me, terms, task_count
        self._signer, self._keys = signer, dict(verify_keys)
        self._gateways, self._gateway = tuple(gateways), gateway
        self._resend_ns, self._patience_count = resend_ns, -(-patience_ns // resend_ns)
        self._return_count = max(self._patience_count, -(-RETURN_NS // resend_ns))
        self.call: Call | None = None
        self.rounds: list[RoundReport] = []
        self._number = 0
        self._exclusions: list[Exclusion] = []
        self._absent: dict[int, int] = {}
        self._present: dict[int, int] = {}
        self._former: Call | None = None
        self._cheaters: set[int] = set()
        self._verdicts: dict[int, Verdict] = {}
        self._left = 0
        self._is_over = False
        for record in records:
            if isinstance(record, Called):
                self._number, self._former = record.call.number, record.call
            else:
                self._learn(record.report)

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event. All branching on event kind happens here."""
        match event:
            case TimerFired(name) if name == START:
                return self._next()
            case TimerFired(name) if name == _AGAIN and self.call is not None:
                return self._on_again(self.call)
            case TimerFired(name) if name == _WAIT and self.call is None:
                return self._on_wait()
            case Received(sender, Verdict() as verdict) if sender in self.terms.seats:
                return self._on_verdict(sender, verdict)
            case Received(sender, Present(seat, last)) if sender in self.terms.seats:
                return self._on_present(sender, seat, last)
            case _:
                return []

    # -- calling ----------------------------------------------------------------------------------

    @property
    def _task(self) -> int:
        return sum(one.kind == "finished" for one in self.rounds)

    def _next(self) -> list[Effect]:
        """Call the next round, wait for members, or end."""
        self.call, self._verdicts = None, {}
        task = self._task
        if self._is_over or task == self._task_count:
            return self._stop("")
        tried = [one for one in self.rounds if one.task == task]
        if tried and tried[-1].kind == "refused":
            return self._stop("the function refused its input")
        if len(tried) >= ATTEMPT_MAX:
            return self._stop(f"no result in {ATTEMPT_MAX} rounds")
        out = {*self._absent, *self._cheaters}
        members = [seat for seat in range(1, len(self.terms.seats) + 1) if seat not in out]
        if not self.terms.is_possible(len(members)):
            self._left = self._return_count
            return self._on_wait() if self._absent else self._stop(self._too_few(len(members)))
        return self._called(task, members)

    def _called(self, task: int, members: list[int]) -> list[Effect]:
        self._number += 1
        self._left = self._patience_count
        terms, degree = self.terms, self.terms.degree_of(len(members))
        reasons = [one for one in self._exclusions if faults(one)[0] - set(members)]
        plain = Call(terms.committee, self._number, task, members, degree, reasons)
        self.call = self._former = signed_call(plain, self._signer)
        own = self._gateway.answer(self.call) if self._gateway is not None else []
        return [
            Persist(Called(self.call)),
            *self._tell(self.call, range(1, len(terms.seats) + 1)),
            *(Send(name, self.call) for name in self._gateways),
            *own,
            SetTimer(_AGAIN, self._resend_ns),
        ]

    def _tell(self, call: Call, seats: Sequence[int]) -> list[Effect]:
        return [Send(name, call) for name in self.terms.names(seats)]

    def _too_few(self, count: int) -> str:
        needed = next(
            (n for n in range(count, len(self.terms.seats) + 1) if self.terms.is_possible(n)), 3
        )
        return f"{count} parties are left, {needed} are needed for the agreed least degree"

    def _on_again(self, call: Call) -> list[Effect]:
        """Send the call again to who has not answered; in the end, go on without an answer."""
        self._left -= 1
        if self._left <= 0:
            return self._conclude(is_last=True)
        waiting = [
            seat for seat in range(1, len(self.terms.seats) + 1) if seat not in self._verdicts
        ]
        again: list[Effect] = [Send(name, call) for name in self._gateways]
        return [*again, *self._tell(call, waiting), SetTimer(_AGAIN, self._resend_ns)]

    def _on_wait(self) -> list[Effect]:
        """Wait for members that were silent to come back."""
        self._left -= 1
        if self._left <= 0:
            out = {*self._absent, *self._cheaters}
            return self._stop(self._too_few(len(self.terms.seats) - len(out)))
        asked = [] if self._former is None else self._tell(self._former, sorted(self._absent))
        return [*asked, SetTimer(_WAIT, self._resend_ns)]

    # -- hearing ----------------------------------------------------------------------------------

    def _on_present(self, sender: NodeId, seat: int, last: int) -> list[Effect]:
        """Count a member in again that was silent in an earlier round."""
        if not 1 <= seat <= len(self.terms.seats) or self.terms.seats[seat - 1] != sender:
            return []
        self._present[seat] = max(last, self._present.get(seat, 0))
        if seat not in self._absent or last < self._absent[seat]:
            return []
        del self._absent[seat]
        return self._next() if self.call is None and not self._is_over else []

    def _on_verdict(self, sender: NodeId, verdict: Verdict) -> list[Effect]:
        call = self.call
        if call is None or verdict.number != call.number or verdict.seat not in call.members:
            return []
        if verdict.session != self.terms.session(call.number, call.members, call.degree):
            return []
        is_own = self.terms.seats[verdict.seat - 1] == sender
        known = set(verdict.culprits) <= set(call.members)
        if not is_own or not known or verdict.seat in self._verdicts:
            return []
        if not is_signed(verdict, self._keys[sender]):
            return []
        self._verdicts[verdict.seat] = verdict
        return self._conclude(is_last=False)

    def _conclude(self, *, is_last: bool) -> list[Effect]:
        """End the round as soon as the verdicts say enough, or when nothing more will come."""
        call = self.call
        invariant(call is not None, "only a round that was called is concluded")
        given = list(self._verdicts.values())
        for kind in ("finished", "refused"):
            digests = [one.digest for one in given if one.kind == kind]
            for digest in sorted(set(digests)):
                if digests.count(digest) > call.degree:  # type: ignore[union-attr]
                    return self._reported(kind, digest, set(), None)
        exclusion = Exclusion(call.number, call.members, call.degree, given)  # type: ignore[union-attr]
        faulty, cheated = faults(exclusion)
        is_whole = set(self._verdicts) | faulty >= set(call.members)  # type: ignore[union-attr]
        if not is_last and not is_whole:
            return []
        if not faulty:
            return self._reported("unclear", b"", set(), None)
        return self._reported("cheated" if cheated else "silent", b"", faulty, exclusion)

    def _reported(
        self, kind: str, digest: bytes, faulty: set[int], exclusion: Exclusion | None
    ) -> list[Effect]:
        call = self.call
        invariant(call is not None, "only a round that was called is reported")
        report = RoundReport(
            call.number,  # type: ignore[union-attr]
            call.task,  # type: ignore[union-attr]
            kind,
            digest,
            [str(name) for name in self.terms.names(sorted(faulty))],
            [str(name) for name in self.terms.names(call.members)],  # type: ignore[union-attr]
            call.degree,  # type: ignore[union-attr]
            exclusion,
        )
        self._learn(report)
        return [Persist(Concluded(report)), *self._next()]

    def _learn(self, report: RoundReport) -> None:
        self.rounds.append(report)
        if report.exclusion is None:
            return
        faulty, cheated = faults(report.exclusion)
        self._exclusions.append(report.exclusion)
        self._cheaters |= cheated
        for seat in faulty - cheated:
            if self._present.get(seat, -1) < report.number:
                self._absent[seat] = report.number

    def _stop(self, reason: str) -> list[Effect]:
        if self._is_over:
            return []
        self._is_over = True
        everyone = [*self.terms.seats, *self._gateways]
        return [
            *(Send(name, Close(self.terms.committee)) for name in everyone),
            Decide(Report(self.rounds, reason)),
        ]
