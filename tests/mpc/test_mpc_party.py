"""Parties as machines: who deviates is named, nobody honest is, and nothing wrong is accepted."""

import hashlib
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from mpc_committee import names_of, parties_of, run

from veilgrid.machine import Effect, Event, Machine, NodeId, Send
from veilgrid.mpc import engine, message, order
from veilgrid.mpc.message import Aborted, Finished, Said, private_statement, statement
from veilgrid.mpc.party import Party
from veilgrid.sim import CALM, Replaying, Rushing, Silent, Tampering, Weather, World

RIGHT = [4, 9, 25, 81]


def program(mpc: Any) -> Any:
    rising = yield from order.sort(mpc, mpc.constant([5, 3, -2, 9]))
    squares = yield from mpc.multiply(rising, rising)
    return (yield from mpc.open(squares))


class Liar:
    """A party that changes what it says in one round, and signs the lie."""

    def __init__(self, party: Party, round_number: int, seed: int, *, two_faced: bool) -> None:
        self._party, self._round, self._two_faced = party, round_number, two_faced
        self._rng = random.Random(seed)
        self._lie: bytes | None = None

    def handle(self, event: Event) -> list[Effect]:
        out: list[Effect] = []
        told = 0
        for effect in self._party.handle(event):
            is_said = isinstance(effect, Send) and isinstance(effect.message, Said)
            if not is_said or effect.message.round != self._round:
                out.append(effect)
                continue
            told += 1
            is_spared = self._two_faced and told == 1
            out.append(effect if is_spared else Send(effect.to, self._changed(effect)))
        return out

    def _changed(self, effect: Send) -> Said:
        said, party = effect.message, self._party
        if said.shared:
            self._lie = self._lie or self._flipped(said.shared)
            digest = hashlib.sha256(self._lie).digest()
            text = statement(party.session, said.round, party.number, digest)
            return msgspec.structs.replace(said, shared=self._lie, signature=party.sign(text))
        part = len(said.private) // 3  # What fills up a last king's slice changes nothing.
        private = self._flipped(said.private[:part]) + said.private[part:]
        digest = hashlib.sha256(private).digest()
        receiver = party.parties.index(effect.to) + 1
        text = private_statement(party.session, said.round, party.number, receiver, digest)
        return msgspec.structs.replace(said, private=private, private_signature=party.sign(text))

    def _flipped(self, octets: bytes) -> bytes:
        out = bytearray(octets)
        place = self._rng.randrange(len(out))
        out[place] ^= 1 << self._rng.randrange(8)
        return bytes(out)


class Denying:
    """A liar that lies again when everybody tells what it computed: a dispute over a key."""

    def __init__(self, machine: Machine, party: Party) -> None:
        self._machine, self._party = machine, party

    def handle(self, event: Event) -> list[Effect]:
        return [self._denied(effect) for effect in self._machine.handle(event)]

    def _denied(self, effect: Effect) -> Effect:
        if not isinstance(effect, Send) or not isinstance(effect.message, message.Finding):
            return effect
        found, party = effect.message, self._party
        if found.step != 1:
            return effect
        body = bytearray(found.body)
        body[-3] ^= 1
        digest = hashlib.sha256(bytes(body)).digest()
        text = statement(party.session, -1, party.number, digest)
        changed = msgspec.structs.replace(found, body=bytes(body), signature=party.sign(text))
        return Send(effect.to, changed)


def round_count(n: int, degree: int) -> int:
    outcome = run(parties_of(n, degree, program))[NodeId("p1")]
    assert isinstance(outcome, Finished)
    assert outcome.result == RIGHT
    return outcome.round_count


def verdicts(
    n: int, degree: int, liar: NodeId, wrap: Callable[[Party], Machine], **more: Any
) -> dict[NodeId, Any]:
    """Return what the honest parties decided."""
    machines: dict[NodeId, Machine] = dict(parties_of(n, degree, program, **more))
    machines[liar] = wrap(machines[liar])  # type: ignore[arg-type]
    decided = run(machines)
    return {name: decided.get(name) for name in machines if name != liar}


def check_named(found: dict[NodeId, Any], liar: NodeId, *, all_of_them: bool) -> None:
    named = 0
    for name, outcome in found.items():
        if isinstance(outcome, Finished):
            assert outcome.result == RIGHT
            continue
        assert isinstance(outcome, Aborted), f"{name} decided nothing"
        assert set(outcome.culprits) <= {liar}, "an honest party is never named"
        named += outcome.culprits == [liar]
    assert named >= (len(found) if all_of_them else 1)


@pytest.mark.parametrize("two_faced", [False, True])
@pytest.mark.parametrize(("n", "degree"), [(3, 1), (4, 1), (5, 2)])
def test_a_lie_in_any_round_is_named(n: int, degree: int, two_faced: bool) -> None:
    """Otherwise a minority could abort for ever without being found out."""
    rng = random.Random(n)
    last = round_count(n, degree)
    rounds = sorted(rng.sample(range(last), 12 if n == 3 else 5))
    for number in rounds:
        liar = rng.choice(names_of(n))
        found = verdicts(
            n,
            degree,
            liar,
            lambda party, at=number: Liar(party, at, at, two_faced=two_faced),
        )
        # Who got the true share of the last opening has its right result and needs no culprit.
        check_named(found, liar, all_of_them=not (two_faced and number == last - 1))


@pytest.mark.parametrize("two_faced", [False, True])
def test_lies_to_kings_are_named_too(two_faced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large vectors travel through kings, who then show what was signed to them."""
    monkeypatch.setattr(engine, "KING_WORDS", 6)
    last = round_count(3, 1)
    # With other seeds a lie may hit what fills up the last king's slice: it changes nothing.
    rng = random.Random(7)
    for number in sorted(rng.sample(range(last), 9)):
        liar = rng.choice(names_of(3))
        found = verdicts(
            3, 1, liar, lambda party, at=number: Liar(party, at, at, two_faced=two_faced)
        )
        check_named(found, liar, all_of_them=not (two_faced and number == last - 1))


@pytest.mark.parametrize(("n", "degree"), [(3, 1), (5, 2)])
def test_who_denies_a_lie_is_named_by_the_disclosed_key(n: int, degree: int) -> None:
    rng = random.Random(n)
    last = round_count(n, degree)
    for number in sorted(rng.sample(range(3, last), 4)):
        liar = rng.choice(names_of(n))
        found = verdicts(
            n,
            degree,
            liar,
            lambda party, at=number: Denying(Liar(party, at, at, two_faced=False), party),
        )
        check_named(found, liar, all_of_them=True)


def test_a_lie_in_prepared_comparisons_is_named() -> None:
    """Long sorts prepare their masks in advance; replaying must follow the same path."""
    values = [(7 * k) % 41 for k in range(40)]

    def long_sort(mpc: Any) -> Any:
        rising = yield from order.sort(mpc, mpc.constant(values))
        return (yield from mpc.open(rising))

    for number in (5, 60, 100):
        machines: dict[NodeId, Machine] = dict(parties_of(3, 1, long_sort))
        liar = NodeId(f"p{number % 3 + 1}")
        machines[liar] = Liar(machines[liar], number, number, two_faced=False)  # type: ignore[arg-type]
        decided = run(machines)
        for name in set(machines) - {liar}:
            assert isinstance(decided[name], Aborted)
            assert decided[name].culprits == [liar]


def test_two_liars_of_seven_are_named() -> None:
    rng = random.Random(7)
    for number in (9, 30):
        machines: dict[NodeId, Machine] = dict(parties_of(7, 3, program))
        liars = set(rng.sample(names_of(7), 2))
        for name in liars:
            machines[name] = Liar(machines[name], number, number, two_faced=False)  # type: ignore[arg-type]
        decided = run(machines)
        for name in set(machines) - liars:
            assert isinstance(decided[name], Aborted)
            assert set(decided[name].culprits) <= set(liars)
            assert decided[name].culprits


@pytest.mark.parametrize("after", [0, 1, 7, 40])
def test_who_falls_silent_is_named_as_silent(after: int) -> None:
    liar = NodeId("p2")
    for name, outcome in verdicts(3, 1, liar, lambda party: Silent(party, after)).items():
        assert isinstance(outcome, Aborted), name
        assert outcome.culprits == ["p2"]
        assert outcome.kind == "silent"


def test_speaking_last_helps_nobody() -> None:
    """A rushing party that is otherwise honest changes nothing; one that lies is named."""
    liar = NodeId("p3")
    peers = [NodeId("p1"), NodeId("p2")]
    found = verdicts(3, 1, liar, lambda party: Rushing(party, peers, 10**9))
    assert all(isinstance(outcome, Finished) for outcome in found.values())
    found = verdicts(
        3, 1, liar, lambda party: Rushing(Liar(party, 6, 1, two_faced=False), peers, 10**9)
    )
    check_named(found, liar, all_of_them=True)


def test_replayed_messages_change_nothing() -> None:
    liar = NodeId("p1")
    rng = random.Random(3)
    found = verdicts(3, 1, liar, lambda party: Replaying(party, rng, names_of(3), 0.5))
    assert [outcome.result for outcome in found.values()] == [RIGHT, RIGHT]


def test_unsigned_or_foreign_messages_change_nothing() -> None:
    """Whoever breaks into a connection cannot speak for a party."""
    liar = NodeId("p1")
    found = verdicts(
        3, 1, liar, lambda party: Tampering(party, random.Random(1), (Said,), probability=0.3)
    )
    for outcome in found.values():
        if isinstance(outcome, Finished):  # what was asked for again came through unchanged
            assert outcome.result == RIGHT
        else:
            assert outcome.kind == "silent"
            assert outcome.culprits == ["p1"]


def test_false_alarm_names_who_raised_it() -> None:
    class Alarmist:
        def __init__(self, party: Party) -> None:
            self._party, self._is_done = party, False

        def handle(self, event: Event) -> list[Effect]:
            effects = self._party.handle(event)
            if not self._is_done and self._party.state.round == 5:
                self._is_done = True
                party = self._party
                text = statement(party.session, 5, party.number, b"alarm")
                alarm = message.Alarm(party.session, 5, party.number, party.sign(text))
                effects = [*effects, *(Send(peer, alarm) for peer in party.parties)]
            return effects

    found = verdicts(3, 1, NodeId("p2"), Alarmist)
    check_named(found, NodeId("p2"), all_of_them=True)


@pytest.mark.parametrize("seed", range(4))
def test_any_weather_ends_right_or_names_nobody_as_cheater(seed: int) -> None:
    """Loss, delay, repeats and reorder: the result is right or the round ends for silence."""
    rng = random.Random(seed)
    weather = CALM if seed == 0 else Weather.draw(rng, crashed_max=0)
    machines = parties_of(3, 1, program, seed=seed, patience_ns=500_000_000, patience_count=40)
    builds = {name: (lambda _, one=machine: one) for name, machine in machines.items()}
    world = World(builds, seed, weather, messages=message.Message)
    world.run(200_000, until=lambda w: all(w.decided(name) for name in machines))
    for name in machines:
        for outcome in world.decided(name):
            if isinstance(outcome, Finished):
                assert outcome.result == RIGHT
            else:
                assert outcome.kind == "silent", f"{seed=}"
    if seed == 0:
        assert all(world.decided(name) for name in machines)
