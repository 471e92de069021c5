"""The machine that steps one party's side of a computation [mpc 7].

Everything a party says to all is signed. A party that has heard all of a round steps its function
to the next. What has not arrived is asked for, from anybody; who stays silent is named. A check
that fails makes all parties tell what they heard and compute again what they should have said:
that names who deviated (:mod:`veilgrid.mpc._blame`).
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from veilgrid.errors import InputError, RunAborted, invariant
from veilgrid.machine import (
    START,
    Decide,
    Effect,
    Event,
    NodeId,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.mpc import _blame
from veilgrid.mpc._round import EMPTY, Heard, Round, Steps, misshapen
from veilgrid.mpc._setup import set_up
from veilgrid.mpc._state import Heading, State
from veilgrid.mpc.client import Mailbox, seal_output
from veilgrid.mpc.engine import CheckFailed, Engine
from veilgrid.mpc.field import PRIME_FIELD, Words, octets_of, words_of
from veilgrid.mpc.message import (
    DOMAIN,
    Aborted,
    Alarm,
    Ask,
    Finding,
    Finished,
    Relay,
    Said,
    Submission,
    Testimony,
    party_names,
    private_statement,
    statement,
)
from veilgrid.mpc.prss import Keyring, Members
from veilgrid.mpc.shamir import check_degree
from veilgrid.secret import Randomness
from veilgrid.signature import Signs, verify

Program = Callable[[Engine], Steps[Any]]

_ROUND: Final = "round"
_INTAKE: Final = "intake"
_BLAME: Final = "blame"


class Party:
    """One of 3 to 7 parties.

    Parameters
    ----------
    me, parties
        Own name, and all names in the agreed order.
    degree
        Of every sharing; any ``degree`` parties together learn nothing.
    program
        What to compute: a function of the engine.
    signer, verify_keys
        Own signature key, and everybody's public one.
    mailbox, intake_ns
        Where clients' messages go, and how long to wait for the last of them.
    session
        Differs between computations; what was said in another is ignored.
    patience_ns, patience_count
        How long to wait for a message before asking for it again, and how often.
    """

    def __init__(
        self,
        me: NodeId,
        parties: tuple[NodeId, ...],
        degree: int,
        program: Program,
        *,
        signer: Signs,
        verify_keys: Mapping[NodeId, bytes],
        randomness: Randomness,
        mailbox: Mailbox | None = None,
        intake_ns: int = 0,
        session: bytes = b"session",
        patience_ns: int = 10_000_000_000,
        patience_count: int = 3,
    ) -> None:
        check_degree(len(parties), degree)
        self.me, self.parties, self.n, self.degree = me, parties, len(parties), degree
        self.number = parties.index(me) + 1
        self._numbers = {name: index + 1 for index, name in enumerate(parties)}
        self.program, self._signer, self._keys = program, signer, dict(verify_keys)
        self._randomness, self.session = randomness, session
        self._mailbox, self._intake_ns = mailbox, intake_ns
        self._patience_ns, self._patience_count = patience_ns, patience_count
        self.state = State(head=hashlib.sha256(b"veilgrid mpc transcript" + session).digest())

    # -- events ---------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event. All branching on event kind happens here."""
        match event:
            case TimerFired(name) if name in (START, _INTAKE) and self.state.steps is None:
                return self._on_start(is_closing=name == _INTAKE)
            case Received(_, Submission() as submission):
                return self._on_submission(submission)
            case TimerFired(name) if name == f"{_ROUND} {self.state.round}":
                return self._on_patience()
            case TimerFired(name) if name == _BLAME:
                return self._on_blame_timer()
            case Received(sender, Said() as said) if sender in self._numbers:
                return self._on_said(self._numbers[sender], said)
            case Received(sender, Relay(author, said)) if sender in self._numbers:
                return self._on_said(author, said) if not said.private else []
            case Received(sender, Ask() as ask) if sender in self._numbers:
                return self._on_ask(sender, ask)
            case Received(sender, Alarm() as alarm) if sender in self._numbers:
                return self._on_alarm(sender, alarm)
            case Received(sender, Testimony() as testimony) if sender in self._numbers:
                return self._on_testimony(self._numbers[sender], testimony)
            case Received(sender, Finding() as finding) if sender in self._numbers:
                return self._on_finding(self._numbers[sender], finding)
            case _:
                return []

    def _on_start(self, *, is_closing: bool) -> list[Effect]:
        """Begin, at once or when all clients' messages are here or the time for them is over."""
        mailbox, state = self._mailbox, self.state
        state.is_started = True
        is_waiting = mailbox is not None and len(mailbox.received) < len(mailbox.clients)
        if is_waiting and not is_closing and self._intake_ns > 0:
            return [SetTimer(_INTAKE, self._intake_ns)]
        state.steps = self._whole()
        return [*self._advance(None), *self._listen()]

    def _on_submission(self, submission: Submission) -> list[Effect]:
        mailbox, state = self._mailbox, self.state
        if mailbox is None or state.steps is not None:
            return []
        mailbox.accept(submission)
        is_full = len(mailbox.received) == len(mailbox.clients)
        return self._on_start(is_closing=True) if is_full and state.is_started else []

    def _whole(self) -> Steps[Any]:
        keyring = yield from set_up(
            self.number, self.n, self.degree, self.session, self._randomness
        )
        self.state.first = self.state.round + 1
        self.state.keyring = keyring
        self.state.engine = Engine(keyring, lambda: self.state.head)
        return (yield from self.program(self.state.engine))

    # -- speaking and listening -----------------------------------------------------------------

    def _advance(self, heard: list[Heard] | None) -> list[Effect]:
        """Step the function; say what it wants said, or end."""
        steps = self.state.steps
        invariant(steps is not None and not self.state.is_over, "only a running party advances")
        try:
            spoken = next(steps) if heard is None else steps.send(heard)  # type: ignore[union-attr,arg-type]
        except StopIteration as stop:
            return [*self._deliver(), *self._finish(stop.value)]
        except CheckFailed as failed:
            return self._fail(failed.what, failed.cheaters)
        except (InputError, RunAborted) as error:
            return self._decide(Aborted(str(error), [], "refused"))
        return self._speak(spoken)

    def _finish(self, result: Any) -> list[Effect]:
        return self._decide(Finished(result, self.state.round + 1, self.state.octets_sent))

    def _deliver(self) -> list[Effect]:
        """Send own shares of results to the clients to whom they open."""
        engine, mailbox = self.state.engine, self._mailbox
        if engine is None or mailbox is None:
            return []
        return [
            Send(NodeId(client), seal_output(self.session, label, _octets(data), key))
            for client, label, data in engine.deliveries
            if (key := mailbox.clients[client].box_key)
        ]

    def _speak(self, spoken: Round) -> list[Effect]:
        state = self.state
        state.round += 1
        state.current = spoken
        state.heads.append(state.head)
        state.spoken.append(spoken)
        heading = state.early.pop(state.round, Heading())
        state.rounds.append(heading)
        shared = bytes(octets_of(spoken.shared))
        digest = hashlib.sha256(shared).digest()
        signed = self._sign(statement(self.session, state.round, self.number, digest))
        everyone = Said(self.session, state.round, shared, signature=signed)
        heading.said[self.number] = everyone
        heading.digests[self.number] = digest
        sent: dict[int, Said] = {}
        for number in range(1, self.n + 1):
            if number != self.number:
                sent[number] = self._with_private(everyone, spoken, number)
        state.outbox[state.round] = sent
        state.outbox.pop(state.round - 3, None)
        state.octets_sent += sum(len(said.shared) + len(said.private) for said in sent.values())
        state.patience_left = self._patience_count
        return [
            *(Send(self.parties[number - 1], said) for number, said in sent.items()),
            SetTimer(f"{_ROUND} {state.round}", self._patience_ns),
        ]

    def _with_private(self, said: Said, spoken: Round, receiver: int) -> Said:
        if spoken.private is None:
            return said
        private = bytes(octets_of(spoken.private[receiver - 1]))
        digest = hashlib.sha256(private).digest()
        text = private_statement(self.session, said.round, self.number, receiver, digest)
        return msgspec.structs.replace(said, private=private, private_signature=self._sign(text))

    def _sign(self, payload: bytes) -> bytes:
        return self._signer.sign(DOMAIN, payload)

    def is_by(self, number: int, payload: bytes, signature: bytes) -> bool:
        return verify(self._keys[self.parties[number - 1]], DOMAIN, payload, signature)

    def is_genuine(self, author: int, said: Said) -> bool:
        """Return whether ``author`` signed this, for this party where it is private."""
        digest = hashlib.sha256(said.shared).digest()
        self.state.last_digest = digest
        text = statement(self.session, said.round, author, digest)
        if not self.is_by(author, text, said.signature):
            return False
        if not said.private:
            return True
        digest = hashlib.sha256(said.private).digest()
        text = private_statement(self.session, said.round, author, self.number, digest)
        return self.is_by(author, text, said.private_signature)

    def _on_said(self, author: int, said: Said) -> list[Effect]:
        state = self.state
        if said.session != self.session or state.is_judging or author == self.number:
            return []
        if not 1 <= author <= self.n or not max(state.round, 0) <= said.round <= state.round + 1:
            return []
        if said.round == state.round:
            heading = state.rounds[said.round]
        else:
            heading = state.early.setdefault(said.round, Heading())
        known = heading.said.get(author)
        if known is not None and not (said.private and not known.private):
            if known.shared != said.shared and self.is_genuine(author, said):
                state.doubles.add(author)
            return []
        if not self.is_genuine(author, said):
            return []
        heading.said[author] = said
        heading.digests[author] = state.last_digest
        return self._listen()

    def _listen(self) -> list[Effect]:
        """Step on as long as everything of the current round is there."""
        effects: list[Effect] = []
        state = self.state
        while not state.is_over and not state.is_judging and self._is_complete():
            heading = state.rounds[state.round]
            wrong = misshapen(state.current, heading.said, self.number)
            if wrong:
                effects += self._fail("a message has the wrong length", wrong)
                break
            heard = [self._words(heading, number) for number in range(1, self.n + 1)]
            heading.heard = heard
            digest = hashlib.sha256(state.head)
            for number in range(1, self.n + 1):
                digest.update(heading.digests[number])
            state.head = digest.digest()
            effects += self._advance(heard)
            if not state.is_over:
                effects += self._judge_alarms()
        return effects

    def _is_complete(self) -> bool:
        state = self.state
        if state.round < 0 or state.current is None:
            return False
        said = state.rounds[state.round].said
        if len(said) < self.n:
            return False
        if state.current.private_length == 0:
            return True
        return all(one.private for number, one in said.items() if number != self.number)

    def _words(self, heading: Heading, number: int) -> Heard:
        said, spoken = heading.said[number], self.state.current
        private = words_of(said.private) if said.private else EMPTY
        if number == self.number and spoken is not None and spoken.private is not None:
            private = np.ascontiguousarray(spoken.private[number - 1])
        return Heard(words_of(said.shared), private)

    # -- waiting --------------------------------------------------------------------------------

    def _on_patience(self) -> list[Effect]:
        state = self.state
        if state.is_over or state.is_judging:
            return []
        missing = self._missing()
        if state.patience_left == 0:
            names = party_names(self.parties, missing)
            return self._decide(Aborted("silence in a round", names, "silent"))
        state.patience_left -= 1
        asked: list[Effect] = [
            Send(peer, Ask(self.session, state.round, number))
            for number in missing
            for peer in self.parties
            if peer != self.me
        ]
        again = [
            Send(self.parties[number - 1], said)
            for number, said in state.outbox[state.round].items()
            if number in missing
        ]
        return [*asked, *again, SetTimer(f"{_ROUND} {state.round}", self._patience_ns)]

    def _missing(self) -> tuple[int, ...]:
        state = self.state
        said = state.rounds[state.round].said
        needs_private = state.current is not None and state.current.private_length > 0
        return tuple(
            number
            for number in range(1, self.n + 1)
            if number != self.number
            and (number not in said or (needs_private and not said[number].private))
        )

    def _on_ask(self, asker: NodeId, ask: Ask) -> list[Effect]:
        state = self.state
        if ask.session != self.session or not 0 <= ask.round <= state.round:
            return []
        if ask.sender == self.number:
            own = state.outbox.get(ask.round, {}).get(self._numbers[asker])
            return [Send(asker, own)] if own is not None else []
        said = state.rounds[ask.round].said.get(ask.sender)
        if said is None:
            return []
        stripped = msgspec.structs.replace(said, private=b"", private_signature=b"")
        return [Send(asker, Relay(ask.sender, stripped))]

    # -- blame ----------------------------------------------------------------------------------

    def _fail(self, what: str, cheaters: tuple[int, ...]) -> list[Effect]:
        """Tell everyone that a check failed, and what was heard."""
        state = self.state
        if state.is_judging:
            return []
        state.failure = state.failure or (what, cheaters)
        state.is_judging = True
        if state.failure[0] != _blame.ALARMED:
            text = statement(self.session, state.round, self.number, b"alarm")
            alarm = Alarm(self.session, state.round, self.number, self._sign(text))
            state.alarm_messages = [alarm, *state.alarm_messages]
        testimony = _blame.testify(self)
        state.testimonies[self.number] = testimony
        others = [peer for peer in self.parties if peer != self.me]
        return [
            *(Send(peer, alarm) for alarm in state.alarm_messages for peer in others),
            *(Send(peer, testimony) for peer in others),
            SetTimer(_BLAME, self._patience_ns),
            *self._judge(is_last=False),
        ]

    def _on_alarm(self, sender: NodeId, alarm: Alarm) -> list[Effect]:
        state, number = self.state, alarm.raiser
        if alarm.session != self.session or not 1 <= number <= self.n or number in state.alarms:
            return []
        text = statement(self.session, alarm.round, number, b"alarm")
        if number == self.number or not self.is_by(number, text, alarm.signature):
            return []
        state.alarms[number] = alarm.round
        state.alarm_messages.append(alarm)
        if state.is_over:
            return [Send(sender, _blame.testify(self))]
        return self._judge_alarms()

    def _judge_alarms(self) -> list[Effect]:
        """Join in once the round that somebody complains of has been heard in full."""
        state = self.state
        if state.is_judging or state.is_over:
            return []
        if any(state.round > number for number in state.alarms.values()):
            return self._fail(_blame.ALARMED, ())
        return []

    def _on_testimony(self, number: int, testimony: Testimony) -> list[Effect]:
        if testimony.session != self.session or self.state.is_over:
            return []
        self.state.testimonies.setdefault(number, testimony)
        return self._judge(is_last=False) if self.state.is_judging else []

    def _on_finding(self, number: int, finding: Finding) -> list[Effect]:
        if finding.session != self.session or self.state.is_over:
            return []
        if finding.step not in (1, 2):
            return []
        text = statement(self.session, -finding.step, number, hashlib.sha256(finding.body).digest())
        if not self.is_by(number, text, finding.signature):
            return []
        self.state.findings.setdefault(finding.step, {}).setdefault(number, finding)
        return self._judge(is_last=False) if self.state.is_judging else []

    def _on_blame_timer(self) -> list[Effect]:
        return [] if self.state.is_over else self._judge(is_last=True)

    def _judge(self, *, is_last: bool) -> list[Effect]:
        """Decide who deviated, as soon as that is certain or nothing more will come.

        Three steps: what everybody heard, what everybody should have said, and, where two
        disagree on that, the key that only they and their set know.
        """
        state = self.state
        invariant(state.failure is not None, "there is something to judge")
        what, cheaters = state.failure or ("", ())
        # Who says two things makes honest parties look wrong to each other: that comes first.
        named = {*state.doubles, *_blame.contradictions(self, state.testimonies)}
        is_heard = len(state.testimonies) == self.n
        if not named and is_heard:
            # Without everybody's testimony a two-faced party could have made them look wrong.
            named = set(cheaters)
        named.discard(self.number)
        if named:
            return self._accuse(what, named)
        if not is_heard:
            absent = set(range(1, self.n + 1)) - set(state.testimonies)
            return self._accuse(what, absent, "silent") if is_last else []
        effects: list[Effect] = []
        for step, work in ((1, _blame.recompute), (2, _blame.disclose)):
            findings = state.findings.setdefault(step, {})
            if self.number not in findings:
                body = work(self)
                if body is None:
                    break
                effects += self._find(step, body)
            absent = set(range(1, self.n + 1)) - set(findings)
            if absent and not is_last:
                return effects
            if absent:
                return [*effects, *self._accuse(what, absent, "silent")]
        return [*effects, *self._accuse(what, _blame.conclude(self) - {self.number})]

    def _find(self, step: int, body: bytes) -> list[Effect]:
        """Tell what was computed again; remember it."""
        text = statement(self.session, -step, self.number, hashlib.sha256(body).digest())
        finding = Finding(self.session, step, body, self._sign(text))
        self.state.findings[step][self.number] = finding
        others = [peer for peer in self.parties if peer != self.me]
        return [
            *(Send(peer, finding) for peer in others),
            SetTimer(_BLAME, self._patience_ns),
        ]

    def _accuse(self, what: str, numbers: set[int], kind: str = "cheated") -> list[Effect]:
        names = party_names(self.parties, tuple(sorted(numbers)))
        return self._decide(Aborted(what, names, kind))

    def _decide(self, outcome: Finished | Aborted) -> list[Effect]:
        invariant(not self.state.is_over, "a party decides once")
        self.state.is_over = True
        return [Decide(outcome)]

    @property
    def keyring(self) -> Keyring:
        """The keys agreed on."""
        keyring = self.state.keyring
        invariant(keyring is not None, "keys are used after they were agreed on")
        return keyring  # type: ignore[return-value]

    def are_committed(self, members: Members, seeds: Mapping[str, bytes]) -> bool:
        """Return whether clients committed to these seeds of one set."""
        if self._mailbox is None:
            return True
        known = self._mailbox.received
        return set(seeds) == set(self.keyring.seeds) and all(
            self._mailbox.is_committed(known[client].submission, members, seed)
            for client, seed in seeds.items()
        )


def _octets(data: Words) -> bytes:
    return bytes(octets_of(PRIME_FIELD.flat(PRIME_FIELD.from_words(PRIME_FIELD.flat(data)))))
