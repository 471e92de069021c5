"""A party of the committee that coordinates a sealed day: one computation a task [sealed 4.1]."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

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
from veilgrid.mpc import Aborted, Finished, Mailbox, Party
from veilgrid.mpc.message import Message as Inner
from veilgrid.mpc.message import Submission
from veilgrid.roles.sealed.attempts import (
    Attempts,
    are_bids_open,
    groups_of,
    is_present,
    listeners_of,
)
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.course import Course
from veilgrid.roles.sealed.early import Early, session_of
from veilgrid.roles.sealed.ending import Ending, is_asking, part_of, told
from veilgrid.roles.sealed.heard import OWN, digests_that_count
from veilgrid.roles.sealed.kinds import BIDS, DONE
from veilgrid.roles.sealed.message import (
    Again,
    Agreement,
    Began,
    Committed,
    DayEnded,
    Notice,
    Over,
    Record,
    Rejoined,
    Stopped,
)
from veilgrid.roles.sealed.program import Tolerances
from veilgrid.roles.sealed.stopping import author_of, disputed, first_of, signed, to_blame
from veilgrid.roles.sealed.tasks import clients_of, program_of
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs

_DEADLINE: Final = "deadline"
_INNER: Final = "inner "
_RETURN: Final = "return"
_CLOSE: Final = "close"
_ASKS: Final = 4
"""How often others are asked for words; with less, who waits behind has not seen who is late."""


class SealedParty:
    """One party, over all tasks of a day.

    Parameters
    ----------
    me
        Own name.
    agreement
        Who takes part.
    course
        Where the day starts; a copy for this party alone.
    shapes
        Of all sites' problems, by bus.
    limits
        When the coordination may stop.
    box_key
        Own decryption key for the sites' messages.
    patience_ns
        Half of it is what other parties have to speak before they are asked again, five quarters
        what sites have for the messages of a task.
    records
        What an earlier life of this party persisted.
    """

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        course: Course,
        shapes: tuple[Shape, ...],
        limits: Tolerances,
        *,
        box_key: Secret[bytes],
        signer: Signs,
        verify_keys: Mapping[NodeId, bytes],
        randomness: Randomness,
        patience_ns: int = 20_000_000_000,
        records: Sequence[Record] = (),
    ) -> None:
        self.me, self.agreement, self.course = me, agreement, course
        self._shapes, self._limits = shapes, limits
        self._box_key, self._signer, self._keys = box_key, signer, dict(verify_keys)
        self._randomness, self._patience_ns = randomness, patience_ns
        self._number = agreement.parties.index(me) + 1
        self._mailboxes: dict[int, Mailbox] = {}
        self._inner: Party | None = None
        self._former: Party | None = None
        self._is_running = False
        self._early = Early()
        self._is_over = False
        self._opening = copy.deepcopy(course)
        self._attempts, self._gate = Attempts(), b""
        self._ending = Ending()
        self._again: Again | None = None
        self._is_back = False
        self._restore(records)
        self.round_count = self._trip_count = 0

    def _restore(self, records: Sequence[Record]) -> None:
        """Take up what an earlier life of this party left; it says nothing more in that attempt."""
        for record in records:
            match record:
                case DayEnded():
                    self._ending.kept = record
                case Began(attempt, returned, is_from_bids=is_from_bids):
                    self._is_back = True
                    if is_from_bids:
                        self.course, self._mailboxes = copy.deepcopy(self._opening), {}
                    self._attempts.returned = list(returned)
                    self.agreement = replace(self.agreement, attempt=attempt)
                case Committed(session, submissions, result):
                    self.course = copy.deepcopy(self._opening)
                    mailbox = self._mailbox(session)
                    for submission in submissions:
                        mailbox.accept(submission)
                    self._mailboxes[0], self._gate = mailbox, result
                    self.course.advance(msgspec.msgpack.decode(result))

    # -- events ---------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event. All branching on event kind happens here."""
        if self._is_over:
            return self._too_late(event)
        match event:
            case TimerFired(name) if name == START:
                return self._back() if self._is_back else [Persist(Began(0)), *self._begin()]
            case Received(sender, Rejoined() as rejoined) if sender in listeners_of(self.agreement):
                return self._on_rejoined(sender, rejoined)
            case TimerFired(name) if name.startswith((_CLOSE, _RETURN)):
                return self._on_waiting(name)
            case Received(sender, Stopped() as stopped) if sender in self.agreement.parties:
                return self._on_stopped(sender, stopped)
            case TimerFired(name) if name == f"{_DEADLINE} {self._tag}":
                return self._run()
            case TimerFired(name) if name.startswith(_INNER):
                return self._on_timer(name.removeprefix(_INNER))
            case Received(_, Submission() as submission):
                return self._on_submission(event, submission)
            case Received(sender, Over() as over) if sender in self.agreement.parties:
                return self._on_over(sender, over)
            case Received(_, Notice() | Again() | Rejoined()):
                return []
            case Received(sender, message) if sender in self.agreement.parties:
                return self._on_inner(event, message)
            case _:
                return []

    @property
    def _tag(self) -> str:
        """Name of the present task in timers."""
        return f"{self.agreement.attempt}/{self.course.task.number}"

    def _begin(self) -> list[Effect]:
        """Make ready for the present task: a mailbox, and the machine of the computation."""
        task = self.course.task
        self._is_running = False
        self._mailboxes[task.number] = self._mailbox()
        self._former, mailboxes = self._inner, tuple(self._mailboxes.values())
        self._inner = Party(
            self.me,
            self.agreement.parties,
            self.agreement.degree,
            program_of(
                self.course,
                self._mailboxes,
                self._shapes,
                self._limits,
                self.agreement.session(task.number),
            ),
            signer=self._signer,
            verify_keys=self._keys,
            randomness=self._randomness,
            mailboxes=mailboxes,
            session=self.agreement.session(task.number),
            patience_ns=self._patience_ns // 2,
            patience_count=_ASKS,
        )
        # Longer than a party that was starved in the last task asks for what it lacks, twice: sites
        # wait for its word. Shorter than who starts at once takes others, who wait, for silent.
        deadline_ns = 5 * self._patience_ns // 4
        effects: list[Effect] = [SetTimer(f"{_DEADLINE} {self._tag}", deadline_ns)]
        early = self._early.of_task(task.number)
        if not self._mailboxes[task.number].clients:
            effects += self._run()
        for event in early:
            effects += self.handle(event)
        return effects

    def _mailbox(self, session: bytes = b"") -> Mailbox:
        """Return an empty mailbox for the present task, or one of an earlier session."""
        agreement = self.agreement
        return Mailbox(
            self._number,
            len(agreement.parties),
            agreement.degree,
            session or agreement.session(self.course.task.number),
            clients_of(self.course, agreement, self._shapes),
            self._box_key,
        )

    def _on_submission(self, event: Event, submission: Submission) -> list[Effect]:
        task = self.course.task
        mailbox = self._mailboxes.get(task.number)
        if mailbox is None or submission.session != mailbox.session:
            return self._keep(event, submission.session)
        if self._is_running:
            return []
        mailbox.accept(submission)
        return self._run() if len(mailbox.received) == len(mailbox.clients) else []

    def _on_inner(self, event: Event, message: Inner) -> list[Effect]:
        session = session_of(message)
        if self._former is not None and session == self._former.session:
            # Somebody still asks what was said, or who lied.
            effects = self._former.handle(event)
            return [effect for effect in effects if isinstance(effect, Send)]
        if self._inner is None or session != self._inner.session:
            return self._keep(event, session)
        return self._passed(self._inner.handle(event))

    def _keep(self, event: Event, session: bytes) -> list[Effect]:
        self._early.keep(event, session, self.agreement, self.course.task.number)
        return []

    def _run(self) -> list[Effect]:
        """Start the computation: all messages are here, or the time for them is over."""
        if self._is_running or self._inner is None:
            return []
        self._is_running = True
        return self._passed(self._inner.handle(TimerFired(START)))

    def _on_timer(self, name: str) -> list[Effect]:
        tag, _, inner = name.partition(" ")
        if self._inner is None or tag != self._tag:
            return []
        return self._passed(self._inner.handle(TimerFired(inner)))

    def _passed(self, effects: list[Effect]) -> list[Effect]:
        """Pass the computation's effects on, its timers under this task's name."""
        out: list[Effect] = []
        for effect in effects:
            match effect:
                case SetTimer(name, delay_ns):
                    out.append(SetTimer(f"{_INNER}{self._tag} {name}", delay_ns))
                case Decide(Finished() as finished):
                    out += self._on_finished(finished)
                case Decide(Aborted() as aborted):
                    out += self._on_aborted(aborted)
                case _:
                    out.append(effect)
        return out

    # -- tasks ----------------------------------------------------------------------------------

    def _on_finished(self, finished: Finished) -> list[Effect]:
        agreement, task = self.agreement, self.course.task
        self.round_count += finished.round_count
        self._trip_count += finished.round_count
        self._trip_count += 2 if self._mailboxes[task.number].clients else 0
        opened = dict(finished.result)
        own = opened.pop(OWN, {})
        result = msgspec.msgpack.encode(opened)
        effects: list[Effect] = self._kept(result) if task.kind == BIDS else []
        for group in sorted(set(agreement.groups.values())):
            theirs = part_of(agreement, group, own)
            notice = Notice(agreement.day, task.number, result, theirs, agreement.attempt)
            effects.append(Send(group, notice))
        self.course.advance(msgspec.msgpack.decode(result))
        self._forget()
        if self.course.task.kind == DONE:
            last, public = self.course.task.number, msgspec.msgpack.encode(self.course.outcome())
            over = Over(agreement.day, agreement.attempt, last, public, own)
            paid = [] if agreement.payer is None else [told(agreement, agreement.payer, over)]
            # Sites act on it: if all parties were lost now, none may begin the day once more.
            kept, ended = self._end(over)
            return [kept, *effects, *paid, ended]
        return [*effects, *self._begin()]

    def _end(self, over: Over) -> list[Effect]:
        """Keep how the day ended, for whoever comes back later."""
        self._is_over = True
        ended = self._ending.keep(over, self.round_count, self._trip_count)
        return [Persist(ended), Decide(ended)]

    def _forget(self) -> None:
        """Drop mailboxes that no later task reads."""
        kept = self.course.tasks_needed
        self._mailboxes = {key: box for key, box in self._mailboxes.items() if key in kept}

    def _kept(self, result: bytes) -> list[Effect]:
        """Keep what sites committed to, for a later life."""
        mailbox, self._gate = self._mailboxes[self.course.task.number], result
        sent = [mailbox.received[name].submission for name in sorted(mailbox.received)]
        return [Persist(Committed(mailbox.session, sent, result))]

    # -- losses [sealed 4.6] ---------------------------------------------------------------------

    def _on_aborted(self, aborted: Aborted) -> list[Effect]:
        """End the day, or wait for who was lost to come back."""
        if aborted.kind != "silent":
            return self._stop(aborted.reason, aborted.culprits, is_lost=False)
        names, first = self._attempts.unexcused(aborted.culprits, self.me)
        return self._stop_by(names, aborted.reason, first)

    def _stop_by(
        self, culprits: list[str], reason: str, first: tuple[NodeId, Stopped] | None
    ) -> list[Effect]:
        """Stop for somebody's silence, or because another party did: then show its word."""
        may_follow = self._attempts.may_follow(self.agreement.attempt)
        shown = b"" if first is None else msgspec.msgpack.encode(first[1])
        if first is not None and not culprits:
            reason = disputed(*first)
        return self._stop(reason, culprits, is_lost=may_follow, is_silence=True, cause=shown)

    def _stop(
        self, reason: str, culprits: list[str], *, is_lost: bool, **more: Any
    ) -> list[Effect]:
        agreement = self.agreement
        stopped = self._word(reason, culprits, is_lost=is_lost, **more)
        others = [party for party in agreement.parties if party != self.me]
        names = [*sorted(listeners_of(agreement)), *others]
        effects: list[Effect] = [Send(name, stopped) for name in names]
        if not is_lost:
            self._is_over = True
            return [*effects, Decide(stopped)]
        self._attempts.is_waiting, self._inner, self._former = True, None, None
        self._attempts.stops[self.me] = stopped
        # Who comes back to one party in the last moment does so too late for another.
        effects.append(SetTimer(f"{_CLOSE} {agreement.attempt}", 5 * self._patience_ns // 2))
        effects.append(SetTimer(f"{_RETURN} {agreement.attempt}", 3 * self._patience_ns))
        return [*effects, *self._once_all_know()]

    def _back(self) -> list[Effect]:
        """Tell the others that an earlier life is lost: what it said cannot be gone on with."""
        if self._ending.kept is not None:
            self._is_over = True
            return [Decide(self._ending.kept)]
        if not self._attempts.may_follow(self.agreement.attempt):
            return self._stop("a party was lost too often", [str(self.me)], is_lost=False)
        return self._stop("a party restarted", [str(self.me)], is_lost=True)

    def _on_rejoined(self, group: NodeId, rejoined: Rejoined) -> list[Effect]:
        """Begin another attempt for sites that no longer know what they said."""
        if group == self.agreement.payer:
            return [Send(group, self._again)] if self._again else []
        if rejoined.day != self.agreement.day or self._attempts.is_waiting:
            return []  # Another attempt follows anyway.
        word = self._again
        if word is not None and rejoined.attempt < word.attempt:
            first = 0 if word.is_from_bids else 1
            if self.course.task.number == first:
                return [Send(group, word)]  # It has said nothing yet in this attempt.
        return self._on_sites_lost(group)

    def _on_sites_lost(self, group: str) -> list[Effect]:
        if not is_present(self.agreement, group, self.course.absent):
            return [self._farewell(NodeId(group), "no bid of this process counts")]
        if not self._attempts.may_return(group):
            return [self._farewell(NodeId(group), "this process was lost too often")]
        self._attempts.returned.append(group)
        return self._stop("a process of sites restarted", [group], is_lost=True)

    def _farewell(self, name: NodeId, reason: str) -> Effect:
        """Tell one process that the day goes on, or went on, without it."""
        return Send(name, self._word(reason, []))

    def _word(self, reason: str, culprits: list[str], **more: Any) -> Stopped:
        agreement, task = self.agreement, self.course.task.number
        plain = Stopped(agreement.day, task, reason, culprits, agreement.attempt, **more)
        return signed(plain, self._signer)

    def _too_late(self, event: Event) -> list[Effect]:
        """Tell who comes back after the end how it ended, and sites what opens to them alone."""
        if not isinstance(event, Received):
            return []
        if is_asking(self.agreement, event):
            if self._ending.kept is None:
                return [self._farewell(event.sender, "the day ended without a result")]
            return [told(self.agreement, event.sender, self._ending.kept.over)]
        return self._said_again(event) if event.sender in self.agreement.parties else []

    def _said_again(self, event: Received) -> list[Effect]:
        """Answer who still asks what was said in the last task: it cannot end without."""
        if self._inner is None or session_of(event.message) != self._inner.session:
            return []
        return [effect for effect in self._inner.handle(event) if isinstance(effect, Send)]

    def _on_over(self, sender: NodeId, over: Over) -> list[Effect]:
        """Believe how a day ended if more parties say so than may be corrupt."""
        if not self._attempts.is_waiting or over.day != self.agreement.day:
            return []
        is_believed = self._ending.is_believed(self.agreement, sender, over)
        return self._end(over) if is_believed else []

    def _on_stopped(self, messenger: NodeId, stopped: Stopped) -> list[Effect]:
        agreement, attempts = self.agreement, self._attempts
        author = author_of(stopped, agreement.parties, self._keys)
        if author is None or author == self.me or stopped.day != agreement.day:
            return []
        if stopped.attempt == agreement.attempt + 1:
            self._early.keep_stop(author, stopped)
            return []
        is_late = attempts.is_closing and author == messenger and author not in attempts.stops
        if stopped.attempt != agreement.attempt or (is_late and stopped.is_lost):
            return []
        attempts.note(author, stopped)
        if not attempts.is_waiting:
            return self._on_first_stop(author, stopped)
        are_gone = len(attempts.ended) > agreement.degree
        return self._given_up() if are_gone else self._once_all_know()

    def _on_first_stop(self, author: NodeId, stopped: Stopped) -> list[Effect]:
        """Stop as well: without all parties nothing goes on. What was proved, all find out."""
        if not (stopped.is_lost or stopped.is_silence):
            return []
        author, first = first_of(author, stopped, self.agreement, self._keys)
        self._attempts.note(author, first)
        lost = [name for name in first.culprits if name in groups_of(self.agreement)]
        if lost:
            return self._on_sites_lost(lost[0])
        inner = self._former if first.task < self.course.task.number else self._inner
        if inner is not None and inner.state.is_judging:
            return []  # It goes on without.
        return self._stop_by(to_blame(author, first, inner), first.reason, (author, first))

    def _once_all_know(self) -> list[Effect]:
        """Begin again when every party is there and knows; where, follows from who got furthest."""
        stops = list(self._attempts.stops.values())
        if not self._attempts.is_waiting or len(stops) < len(self.agreement.parties):
            return []
        has_bids = 0 in self._mailboxes and self.course.task.number > 0
        is_from_bids = are_bids_open(stops) or not has_bids
        # Where one party begins again, all can: whom one has heard, everybody has.
        others = [party for party in self.agreement.parties if party != self.me]
        known = self._attempts.stops.items()
        effects: list[Effect] = [
            Send(to, one) for name, one in known for to in others if to != name
        ]
        self.agreement = replace(self.agreement, attempt=self.agreement.attempt + 1)
        self._attempts.begin()
        ahead = self._early.of_attempt()
        if is_from_bids:
            self.course, self._mailboxes = copy.deepcopy(self._opening), {}
        else:
            self.course.begin_again()
            self._mailboxes = {0: self._mailboxes[0]}
        attempt = self.agreement.attempt
        gate = b"" if is_from_bids else self._gate
        word = Again(self.agreement.day, attempt, is_from_bids, gate)
        returned = list(self._attempts.returned)
        effects.append(Persist(Began(attempt, returned, is_from_bids=is_from_bids)))
        self._again = word
        effects += [Send(name, word) for name in sorted(listeners_of(self.agreement))]
        effects += self._begin()
        for event in ahead:
            effects += self.handle(event)
        return effects

    def bid_digests(self) -> dict[int, bytes]:
        """Return the digest of each site's committed message that counts, by bus."""
        mailbox = self._mailboxes[self.course.bid_task]
        return digests_that_count(mailbox, self.course.absent)

    def _on_waiting(self, name: str) -> list[Effect]:
        kind, _, attempt = name.partition(" ")
        if attempt != str(self.agreement.attempt):
            return []
        self._attempts.is_closing = True
        return self._given_up() if kind == _RETURN else []

    def _given_up(self) -> list[Effect]:
        """End the day: who was lost did not come back, or the others ended it."""
        if not self._attempts.is_waiting:
            return []
        reason, culprits = self._attempts.verdict(self.agreement, self.me)
        return self._stop(reason, culprits, is_lost=False)
