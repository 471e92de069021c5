"""Who stops for somebody's silence is judged by what the others heard themselves [sealed 4.5]."""

import msgspec
import pytest

from veilgrid.machine import Decide, Effect, NodeId, Received, Send, TimerFired
from veilgrid.roles.sealed.message import Stopped
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.stopping import author_of, signed

from .sealed_fuzz import trial
from .sealed_world import World

SEEDS = (2025, 2030, 2091, 2111, 2116)
"""Corrupt parties whose word that they stopped reached one honest party and not the other: one of
them began again, the other was named for its silence."""

ONE, TWO, THREE = (NodeId(f"party-{number}") for number in (1, 2, 3))


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_named_for_beginning_again_alone(seed: int) -> None:
    """Replay: ``python -m tests.roles.sealed.sealed_fuzz --first SEED --seeds 1``."""
    assert trial(seed) == []


def running() -> World:
    """Return a day whose parties compute, nobody late."""
    world = World(21)
    world.run(until=800)
    while not party(world, TWO)._is_running:
        world.step()
    return world


def party(world: World, name: NodeId) -> SealedParty:
    found = world.machines[name]
    assert isinstance(found, SealedParty)
    return found


def word(world: World, name: NodeId, *culprits: str, **more: bool) -> Stopped:
    """Return a party's signed word that it stopped for somebody's silence."""
    liar = party(world, name)
    task = liar.course.task.number
    plain = Stopped(liar.agreement.day, task, "silence in a round", list(culprits), **more)
    return signed(plain, liar._signer)


def said(effects: list[Effect], to: NodeId) -> list[Stopped]:
    sent = [one.message for one in effects if isinstance(one, Send) and one.to == to]
    return [one for one in sent if isinstance(one, Stopped)]


@pytest.mark.parametrize("is_lost", [True, False])
def test_who_accuses_somebody_that_all_heard_is_blamed_by_all(is_lost: bool) -> None:
    """Those who hear first of the second one that stopped blame the first, too."""
    world = running()
    lie = word(world, ONE, "party-3", is_lost=is_lost, is_silence=True)
    stopped = said(party(world, TWO).handle(Received(ONE, lie)), THREE)
    assert [one.culprits for one in stopped] == [["party-1"]]
    assert stopped[0].is_lost
    assert msgspec.msgpack.decode(stopped[0].cause, type=Stopped) == lie
    accused = said(party(world, THREE).handle(Received(TWO, stopped[0])), TWO)
    assert [one.culprits for one in accused[:1]] == [["party-1"]]


def test_a_made_up_cause_has_nobody_else_blamed() -> None:
    world = running()
    lie = word(world, TWO, "party-2", is_lost=True)  # Says so of itself, and signs for another.
    forged = msgspec.msgpack.encode(msgspec.structs.replace(lie, culprits=["party-1"]))
    told = msgspec.structs.replace(word(world, TWO, "party-1", is_lost=True), cause=forged)
    told = signed(told, party(world, TWO)._signer)
    assert said(party(world, THREE).handle(Received(TWO, told)), ONE)[0].culprits == ["party-2"]


def test_what_a_party_did_not_sign_stops_nobody() -> None:
    world = running()
    lie = word(world, ONE, "party-1", is_lost=True)
    bent = msgspec.structs.replace(lie, culprits=["party-3"])
    for one in (bent, msgspec.structs.replace(lie, signature=b""), word(world, TWO, "party-1")):
        assert party(world, TWO).handle(Received(ONE, one)) == []
    assert not party(world, TWO)._attempts.is_waiting


def test_where_one_party_begins_again_the_others_can() -> None:
    """A corrupt party tells one of them that it waits for another attempt, and not the other."""
    world = running()
    lie = word(world, ONE, "party-1", is_lost=True)
    second = said(party(world, TWO).handle(Received(ONE, lie)), THREE)[0]
    third = said(party(world, THREE).handle(Received(TWO, second)), TWO)[0]
    assert party(world, THREE).agreement.attempt == 1, "the cause shows who stopped first"
    effects = party(world, TWO).handle(Received(THREE, third))
    assert party(world, TWO).agreement.attempt == 1
    told = {
        author_of(one, (ONE, TWO, THREE), party(world, TWO)._keys) for one in said(effects, THREE)
    }
    assert told == {ONE, TWO}


def test_who_comes_back_in_the_last_moment_comes_back_to_all_or_to_none() -> None:
    world = running()
    two, three = party(world, TWO), party(world, THREE)
    away = word(world, THREE, "party-1", is_lost=True)
    two.handle(Received(THREE, away))
    assert two._attempts.is_waiting
    two.handle(TimerFired("close 0"))
    late = word(world, ONE, "party-1", is_lost=True)
    assert two.handle(Received(ONE, late)) == []
    assert two.agreement.attempt == 0
    assert three.agreement.attempt == 0
    two.handle(Received(THREE, late))  # The other began again just before.
    assert two.agreement.attempt == 1


def test_who_gives_up_waiting_blames_nobody_by_the_word_of_one() -> None:
    """It had named whom it waited for; what the corrupt party says in the end changes nothing."""
    world = running()
    two = party(world, TWO)
    two.handle(Received(THREE, word(world, THREE, "party-3", is_lost=True)))
    two.handle(Received(ONE, word(world, ONE, "party-2")))
    effects = two.handle(Received(THREE, word(world, THREE, "party-1")))
    ended = [one.outcome for one in effects if isinstance(one, Decide)]
    assert [one.culprits for one in ended if isinstance(one, Stopped)] == [["party-3"]]


def test_who_says_that_the_day_is_over_and_that_it_waits_keeps_nobody_back() -> None:
    """Said to one party alone, the first word must not make it deaf to the second."""
    world = running()
    two = party(world, TWO)
    two.handle(Received(ONE, word(world, ONE, "party-3", is_silence=True)))
    two.handle(Received(THREE, word(world, ONE, "party-1", is_lost=True)))
    two.handle(Received(THREE, word(world, THREE, "party-1", is_lost=True)))
    assert two.agreement.attempt == 1
