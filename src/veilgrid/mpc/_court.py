"""What a party does once a check has failed: testify, find, conclude [mpc 8].

Everything told here is signed and passed on once by everybody, so that all honest parties come to
have the same in hand, and whoever tells two things is named. A party that has named somebody goes
on answering: nobody waits for it in vain.
"""

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from veilgrid.errors import invariant
from veilgrid.machine import Effect, Send, SetTimer
from veilgrid.mpc import _blame, _testimony
from veilgrid.mpc.message import (
    Aborted,
    Alarm,
    Finding,
    Passed,
    Relay,
    Said,
    Testimony,
    party_names,
    statement,
)

if TYPE_CHECKING:
    from veilgrid.mpc.party import Party

TIMER: Final = "blame"
PATIENCE: Final = 3
"""Who is stuck in a round asks once and joins in after twice its patience."""

_TESTIMONY: Final = -3
"""Round number in what signs a testimony; findings have -1 and -2."""

_STEPS: Final = ((1, _blame.recompute), (2, _blame.disclose))


def fail(party: "Party", what: str, cheaters: tuple[int, ...]) -> list[Effect]:
    """Tell everyone that an own check failed, and what was heard."""
    state = party.state
    if state.is_judging:
        return []
    state.failed_at = state.round
    text = statement(party.session, state.round, party.number, b"alarm")
    state.alarms[party.number] = (state.round, party.sign(text))
    return _begin(party, what, cheaters)


def join(party: "Party", *, is_waiting_over: bool = False) -> list[Effect]:
    """Join in once the round that somebody complains of has been heard in full.

    Who waits for words in vain, or has ended, joins in as it is.
    """
    state = party.state
    is_free = is_waiting_over or state.is_over
    is_due = any(is_free or number < state.round for number, _ in state.alarms.values())
    if state.is_judging or not is_due:
        return []
    if is_waiting_over:
        state.lacking = set(party.silent())
    return _begin(party, "a party raised an alarm", ())


def _begin(party: "Party", what: str, cheaters: tuple[int, ...]) -> list[Effect]:
    state = party.state
    state.is_judging, state.failure = True, (what, cheaters)
    told = _testimony.testify(party)
    testimony = msgspec.structs.replace(told, signature=party.sign(_testimony_text(party, told)))
    state.testimonies[party.number] = testimony
    alarms = [
        Alarm(party.session, number, raiser, signature)
        for raiser, (number, signature) in state.alarms.items()
    ]
    return [
        *_to_all(party, *alarms, *state.evidence, testimony),
        SetTimer(TIMER, PATIENCE * party.patience_ns),
        *judge(party),
    ]


def _to_all(party: "Party", *messages: object) -> list[Effect]:
    others = [peer for peer in party.parties if peer != party.me]
    return [Send(peer, message) for message in messages for peer in others]


# -- what others tell -----------------------------------------------------------------------------


def on_alarm(party: "Party", alarm: Alarm) -> list[Effect]:
    """Remember an alarm; turn to finding out why."""
    state, raiser = party.state, alarm.raiser
    if alarm.session != party.session or not 1 <= raiser <= party.n or raiser in state.alarms:
        return []
    text = statement(party.session, alarm.round, raiser, b"alarm")
    if raiser == party.number or not party.is_by(raiser, text, alarm.signature):
        return []
    state.alarms[raiser] = (alarm.round, alarm.signature)
    return join(party)


def on_told(party: "Party", author: int, told: Testimony | Finding) -> list[Effect]:
    """Take what ``author`` testified or found, from itself or from somebody who heard it."""
    state = party.state
    if told.session != party.session or not 1 <= author <= party.n or author == party.number:
        return []
    if isinstance(told, Testimony):
        text, place = _testimony_text(party, told, author), 0
    elif told.step in (1, 2):
        digest = hashlib.sha256(told.body).digest()
        text, place = statement(party.session, -told.step, author, digest), told.step
    else:
        return []
    before = state.testimonies.get(author) if place == 0 else _findings(party, place).get(author)
    if before == told or author in state.doubles or not party.is_by(author, text, told.signature):
        return []
    if before is not None:
        state.doubles.add(author)
    elif isinstance(told, Testimony):
        state.testimonies[author] = told
    else:
        _findings(party, place)[author] = told
    passed = Passed(party.session, author, told)
    effects: list[Effect] = [
        Send(name, passed)
        for number, name in enumerate(party.parties, 1)
        if number not in (author, party.number)
    ]
    return [*effects, *judge(party)] if state.is_judging else effects


def _findings(party: "Party", step: int) -> dict[int, Finding]:
    return party.state.findings.setdefault(step, {})


def _testimony_text(party: "Party", told: Testimony, author: int | None = None) -> bytes:
    plain = msgspec.structs.replace(told, signature=b"")
    digest = hashlib.sha256(msgspec.msgpack.encode(plain)).digest()
    return statement(party.session, _TESTIMONY, author or party.number, digest)


def on_double(party: "Party", author: int, first: Said, second: Said) -> list[Effect]:
    """Remember that somebody signed two things for one round, and show both to all."""
    state = party.state
    if author in state.doubles:
        return []
    state.doubles.add(author)
    shown = [
        Relay(author, msgspec.structs.replace(one, private=b"", private_signature=b""))
        for one in (first, second)
    ]
    state.evidence += shown
    return [*_to_all(party, *shown), *judge(party)] if state.is_judging else []


def on_timer(party: "Party") -> list[Effect]:
    """Decide without those who told nothing."""
    return judge(party, is_last=True) if party.state.is_judging else []


# -- deciding -------------------------------------------------------------------------------------


def judge(party: "Party", *, is_last: bool = False) -> list[Effect]:
    """Decide who deviated, as soon as that is certain or nothing more will come.

    Three steps: what everybody heard, what everybody should have said, and, where two disagree
    on that, the key that only they and their set know.
    """
    state = party.state
    invariant(state.failure is not None, "there is something to judge")
    what, cheaters = state.failure or ("", ())
    is_heard = len(state.testimonies) == party.n
    # Who says two things makes honest parties look wrong to each other: that comes first.
    named = {*state.doubles, *_contradictions(party)}
    if is_heard and not named:
        # Without everybody's testimony a two-faced party could have made them look wrong.
        if state.sighted is None:
            state.sighted = _testimony.at_sight(party, cheaters)
        named = state.sighted
    effects = accuse(party, what, named - {party.number})
    if not is_heard:
        absent = set(range(1, party.n + 1)) - set(state.testimonies)
        return [*effects, *(accuse(party, what, absent, "silent") if is_last else [])]
    if state.failed_at != _testimony.failing_round(party):
        # Nothing to compute again: the alarm is false, or words of its round never came.
        is_stuck = is_last and not named
        return [*effects, *(_end(party, what, state.lacking, "silent") if is_stuck else [])]
    for step, work in _STEPS:
        if party.number not in _findings(party, step):
            body = work(party)
            if body is None:
                break
            effects += _find(party, step, body)
        absent = set(range(1, party.n + 1)) - _blame.heard_from(party, step)
        if absent:
            return [*effects, *(accuse(party, what, absent, "silent") if is_last else [])]
    return [*effects, *conclude(party, what)]


def _contradictions(party: "Party") -> set[int]:
    state = party.state
    count = len(state.testimonies)
    if state.contradicted is None or state.contradicted[0] != count:
        state.contradicted = (count, _testimony.contradictions(party, state.testimonies))
    return state.contradicted[1]


def _find(party: "Party", step: int, body: bytes) -> list[Effect]:
    """Tell what was computed again; remember it."""
    text = statement(party.session, -step, party.number, hashlib.sha256(body).digest())
    finding = Finding(party.session, step, body, party.sign(text))
    _findings(party, step)[party.number] = finding
    return [*_to_all(party, finding), SetTimer(TIMER, PATIENCE * party.patience_ns)]


def conclude(party: "Party", what: str) -> list[Effect]:
    """Name who is proved to have deviated; nobody if nothing proves it."""
    return _end(party, what, _blame.conclude(party) - {party.number}, "cheated")


def accuse(party: "Party", what: str, numbers: set[int], kind: str = "cheated") -> list[Effect]:
    """End with somebody named, if anybody is."""
    return _end(party, what, numbers, kind) if numbers else []


def _end(party: "Party", what: str, numbers: set[int], kind: str) -> list[Effect]:
    names = party_names(party.parties, tuple(sorted(numbers)))
    return party.decide(Aborted(what, names, kind))
