"""The machine that steps one party's side of a computation [mpc 7].

Everything a party says to all is signed. A party that has heard all of a round steps its function
to the next. What has not arrived is asked for, from anybody; who stays silent is named. A check
that fails makes all parties tell what they heard and compute again what they should have said:
that names who deviated (:mod:`veilgrid.mpc._court`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from veilgrid.mpc import _courier, _court
from veilgrid.mpc._round import EMPTY, Heard, Round, Steps, misshapen
from veilgrid.mpc._setup import set_up
from veilgrid.mpc._state import Heading, State
from veilgrid.mpc.client import Mailbox, seal_output
from veilgrid.mpc.dealer import DEALER
from veilgrid.mpc.engine import CheckFailed, Engine
from veilgrid.mpc.field import PRIME_FIELD, Words, octets_of, words_of
from veilgrid.mpc.message import (
    DOMAIN,
    Aborted,
    Alarm,
    Ask,
    Finding,
    Finished,
    Passed,
    Relay,
    Reproach,
    Said,
    Sealed,
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
    mailboxes
        Further ones, filled elsewhere, whose messages the program reads: seeds that parties show
        when they find out who lied are checked against them.
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
        mailboxes: Sequence[Mailbox] = (),
        session: bytes = b"session",
        patience_ns: int = 10_000_000_000,
        patience_count: int = 3,
    ) -> None:
        check_degree(len(parties), degree)
        self.me, self.parties, self.n, self.degree = me, parties, len(parties), degree
        self.number = parties.index(me) + 1
        self._numbers = {name: index + 1 for index, name in enumerate(parties)}
        self.program, self._signer, self._keys = program, signer, dict(verify_keys)
        self.randomness, self.session = randomness, session
        self._mailbox, self._intake_ns = mailbox, intake_ns
        self._mailboxes = mailboxes if mailbox is None else (*mailboxes, mailbox)
        self.patience_ns, self._patience_count = patience_ns, patience_count
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
            case TimerFired(name) if name == _court.TIMER:
                return _court.on_timer(self)
            case Received(sender, Said() as said) if sender in self._numbers:
                return self.on_said(self._numbers[sender], said)
            case Received(sender, Relay(author, said)) if sender in self._numbers:
                return self.on_said(author, said) if not said.private else []
            case Received(sender, Ask() as ask) if sender in self._numbers:
                return _courier.on_ask(self, sender, ask)
            case Received(sender, Sealed() as sealed) if sender in self._numbers:
                return _courier.on_sealed(self, self._numbers[sender], sealed)
            case Received(sender, Alarm() as alarm) if sender in self._numbers:
                return _court.on_alarm(self, alarm)
            case Received(sender, Testimony() | Finding() as told) if sender in self._numbers:
                return _court.on_told(self, self._numbers[sender], told)
            case Received(sender, Passed(_, author, told)) if sender in self._numbers:
                return _court.on_told(self, author, told)
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
        keyring = yield from set_up(self.number, self.n, self.degree, self.session, self.randomness)
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
            return _court.fail(self, failed.what, failed.cheaters)
        except (InputError, RunAborted) as error:
            return self.decide(Aborted(str(error), [], "refused"))
        return self._speak(spoken)

    def _finish(self, result: Any) -> list[Effect]:
        return self.decide(Finished(result, self.state.round + 1, self.state.octets_sent))

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
        shared = bytes(octets_of(spoken.shared))
        state.round += 1
        # All rounds are kept until it is over, so own words are kept once.
        state.current = replace(spoken, shared=words_of(shared))
        state.heads.append(state.head)
        state.spoken.append(replace(state.current, private=None))
        heading = state.early.pop(state.round, Heading())
        state.rounds.append(heading)
        digest = hashlib.sha256(shared).digest()
        signed = self.sign(statement(self.session, state.round, self.number, digest))
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
            SetTimer(f"{_ROUND} {state.round}", self.patience_ns),
        ]

    def _with_private(self, said: Said, spoken: Round, receiver: int) -> Said:
        if spoken.private is None:
            return said
        private = bytes(octets_of(spoken.private[receiver - 1]))
        digest = hashlib.sha256(private).digest()
        text = private_statement(self.session, said.round, self.number, receiver, digest)
        return msgspec.structs.replace(said, private=private, private_signature=self.sign(text))

    def sign(self, payload: bytes) -> bytes:
        """Sign what this party says."""
        return self._signer.sign(DOMAIN, payload)

    def is_by(self, number: int, payload: bytes, signature: bytes) -> bool:
        """Return whether a party signed this."""
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

    def on_said(self, author: int, said: Said) -> list[Effect]:
        """Take what somebody said, if it is signed; go on once everything is there."""
        state = self.state
        if said.session != self.session or author == self.number:
            return []
        if not 1 <= author <= self.n or not 0 <= said.round <= state.round + 1:
            return []
        if said.round <= state.round:
            heading = state.rounds[said.round]
        else:
            heading = state.early.setdefault(said.round, Heading())
        known = heading.said.get(author)
        if known is not None and known.shared != said.shared:
            is_double = author not in state.doubles and self.is_genuine(author, said)
            return _court.on_double(self, author, known, said) if is_double else []
        if state.is_judging or said.round < state.round:
            return []
        if known is not None and not (said.private and not known.private):
            return []
        if not self.is_genuine(author, said):
            return []
        heading.said[author] = said
        heading.digests[author] = state.last_digest
        waiting = heading.wanted.pop(author, set()) - {author}
        told = [Send(self.parties[one - 1], _courier.relay(author, said)) for one in waiting]
        return [*told, *self._listen()]

    def _listen(self) -> list[Effect]:
        """Step on as long as everything of the current round is there."""
        effects: list[Effect] = []
        state = self.state
        while not state.is_over and not state.is_judging and self._is_complete():
            heading = state.rounds[state.round]
            wrong = misshapen(state.current, heading.said, self.number)
            if wrong:
                effects += _court.fail(self, "a message has the wrong length", wrong)
                break
            heard = [self._words(heading, number) for number in range(1, self.n + 1)]
            heading.heard = [*heard]
            heading.heard[self.number - 1] = Heard(heard[self.number - 1].shared, EMPTY)
            digest = hashlib.sha256(state.head)
            for number in range(1, self.n + 1):
                digest.update(heading.digests[number])
            state.head = digest.digest()
            effects += self._advance(heard)
            effects += _court.join(self)
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
        # Keys in odd pieces are none: their receiver complains of them in the next round.
        private = words_of(said.private) if len(said.private) % 8 == 0 else EMPTY
        if number == self.number and spoken is not None and spoken.private is not None:
            private = np.ascontiguousarray(spoken.private[number - 1])
        return Heard(words_of(said.shared), private)

    # -- waiting --------------------------------------------------------------------------------

    def _on_patience(self) -> list[Effect]:
        state = self.state
        if state.is_over or state.is_judging:
            return []
        state.tick += 1
        missing = self.missing()
        state.rounds[state.round].late.update(missing)
        # What is missing may still be had from others: only who asked in vain goes on without.
        has_asked = state.patience_left < self._patience_count
        joined = _court.join(self, is_waiting_over=has_asked)
        if joined:
            return joined
        if state.patience_left == 0:
            names = party_names(self.parties, self.silent())
            return self.decide(Aborted("silence in a round", names, "silent"))
        state.patience_left -= 1
        again = [
            Send(self.parties[number - 1], said)
            for number, said in state.outbox[state.round].items()
            if number in missing
        ]
        return [
            *_courier.asks(self, missing),
            *again,
            SetTimer(f"{_ROUND} {state.round}", self.patience_ns),
        ]

    def silent(self) -> tuple[int, ...]:
        """Return for whose silence this party cannot go on."""
        said = {
            number: frozenset(self.state.rounds[number].said)
            for number in range(max(self.state.round - 1, 0), self.state.round + 1)
        }
        return _courier.silent(self.state.errands, self.missing(), said, self.state.tick)

    def to_blame(self, accuser: NodeId, accused: Sequence[str]) -> list[str]:
        """Return who is at fault where a party gave up because others were silent to it."""
        numbers = {self._numbers[NodeId(one)] for one in accused if one in self._numbers}
        blamed = _courier.to_blame(self.state, self._numbers[accuser], numbers - {self.number})
        return party_names(self.parties, tuple(sorted(blamed)))

    def missing(self) -> tuple[int, ...]:
        """Return whose words of the current round are not there."""
        state = self.state
        said = state.rounds[state.round].said
        needs_private = state.current is not None and state.current.private_length > 0
        return tuple(
            number
            for number in range(1, self.n + 1)
            if number != self.number
            and (number not in said or (needs_private and not said[number].private))
        )

    def reproach(self, reproach: Reproach) -> list[Effect]:
        """End the computation because somebody sealed what it did not sign."""
        self.state.reproaches.append(reproach)
        return _court.fail(self, "a party sealed nonsense", (reproach.sealed.sender,))

    # -- the end --------------------------------------------------------------------------------

    def decide(self, outcome: Finished | Aborted) -> list[Effect]:
        """End, once; what comes later is answered and changes nothing."""
        if self.state.is_over:
            return []
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
        return set(seeds) == set(self.keyring.seeds) and all(
            any(_is_committed(mailbox, client, members, seed) for mailbox in self._mailboxes)
            for client, seed in seeds.items()
            if client != DEALER
        )


def _is_committed(mailbox: Mailbox, client: str, members: Members, seed: bytes) -> bool:
    received = mailbox.received.get(client)
    return received is not None and mailbox.is_committed(received.submission, members, seed)


def _octets(data: Words) -> bytes:
    return bytes(octets_of(PRIME_FIELD.flat(PRIME_FIELD.from_words(PRIME_FIELD.flat(data)))))
