"""Parties and sites that are lost in the middle of a day: it goes on from its bids."""

from collections.abc import Callable
from typing import Any

import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import (
    Decide,
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
)
from veilgrid.mpc.message import Relay, Said
from veilgrid.roles.sealed.attempts import RETURNS_MAX
from veilgrid.roles.sealed.day import SITES
from veilgrid.roles.sealed.message import (
    Began,
    Committed,
    DayEnded,
    Notice,
    Over,
    Rejoined,
    Stopped,
)
from veilgrid.roles.sealed.sites_kept import SiteOutcome

from .sealed_days import Ended, run_day, small
from .sealed_world import DAY, LIMITS, VICTIM, World


@pytest.fixture(scope="module")
def honest() -> Ended:
    return run_day(DAY, LIMITS)


@pytest.mark.parametrize(("at", "is_idle"), [(12, True), (1500, True), (4000, False)])
def test_a_party_that_comes_back_goes_on_with_the_committed_bids(
    at: int, is_idle: bool, honest: Ended
) -> None:
    """Killed at gate closure, in the coordination, near its end; others notice before or after."""
    world = World(7)
    world.run(until=at)
    victim = world.kill(VICTIM)
    if is_idle:
        while world.queue:  # The others have nothing left to do but wait.
            world.step()
    world.restart(victim)
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, SiteOutcome), found
    assert found.public["status"] == "converged"
    assert found.public["excluded"] == {}
    expected = honest.public["certificate"]["cost"]
    assert found.public["certificate"]["cost"] == pytest.approx(expected, rel=2e-4)
    assert all(len(said) == 1 for said in world.said.values())
    if at == 4000:  # Its first attempt was all but over: the second goes on from its wishes.
        assert found.public["iterations"] < honest.public["iterations"]
    kinds = [type(record) for record in world.journals[VICTIM]]
    assert kinds.count(Began) == 2
    assert kinds.count(Committed) >= 1


def test_a_party_lost_at_gate_closure_twice_begun_does_not_take_up_the_first() -> None:
    """Sites have committed anew since: it would compute with other bids, and be named for it."""
    world, parties = World(31), [NodeId(f"party-{k}") for k in (1, 2, 3)]

    def closings() -> list[int]:
        kept = [world.journals.get(name, []) for name in parties]
        return [sum(isinstance(one, Committed) for one in records) for records in kept]

    while not closings()[0]:
        assert world.step()
    assert closings()[1] == 0
    world.restart(world.kill(VICTIM))
    first = closings()
    while closings() == first:
        assert world.step()
    assert closings()[0] == first[0]
    victim = world.kill(parties[0])
    while world.queue and closings()[1:] != [one + 1 for one in first[1:]]:
        world.step()
    world.restart(victim)
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, SiteOutcome), found
    assert (found.public["status"], found.public["excluded"]) == ("converged", {})


def test_how_a_day_ended_is_kept_before_anybody_is_told() -> None:
    """Parties that are lost together after it would plan and pay the day once more."""
    world, ends = World(13), list[list[Effect]]()
    for name in [NodeId(f"party-{k}") for k in (1, 2, 3)]:
        handle = world.machines[name].handle

        def watched(event: Event, handle: Callable[[Event], list[Effect]] = handle) -> list[Effect]:
            effects = handle(event)
            if any(isinstance(one, Decide) for one in effects):
                ends.append(effects)
            return effects

        world.machines[name].handle = watched  # type: ignore[method-assign]
    world.run()
    while len(ends) < 3:
        assert world.step()
    for effects in ends:
        told = [isinstance(one, Send) and isinstance(one.message, Notice | Over) for one in effects]
        kept = [isinstance(one, Persist) and isinstance(one.record, DayEnded) for one in effects]
        assert any(told)
        assert kept.index(True) < told.index(True)


def test_a_party_that_stays_away_is_named() -> None:
    world = World(8)
    world.run(until=400)
    world.kill(VICTIM)
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, Stopped)
    assert found.culprits == ["party-2"]


def test_a_party_that_is_lost_again_and_again_ends_the_day_by_name() -> None:
    world = World(9)
    for _ in range(3):
        world.run(until=world.handled + 300)
        world.restart(world.kill(VICTIM))
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, Stopped)
    assert found.culprits == ["party-2"]


def lose_sites(world: World, *, is_idle: bool) -> None:
    """Kill the process of sites and start it again, before or after its silence is noticed."""
    victim = world.kill(SITES)
    while is_idle and world.queue:  # What is under way to it is lost with it.
        world.step()
    world.restart_sites(victim)


@pytest.mark.parametrize(
    ("at", "is_idle"), [(6, False), (30, True), (1500, True), (2500, False), (3500, False)]
)
def test_sites_that_start_again_take_part_in_another_attempt(
    at: int, is_idle: bool, honest: Ended
) -> None:
    """Else a power cut of a minute would cost them the whole day at their fallbacks."""
    world = World(10)
    world.run(until=at)
    lose_sites(world, is_idle=is_idle)
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, SiteOutcome), found
    assert (found.public["status"], found.public["excluded"]) == ("converged", {})
    assert set(found.payments) == set(range(len(DAY.sites)))
    expected = honest.public["certificate"]["cost"]
    assert found.public["certificate"]["cost"] == pytest.approx(expected, rel=2e-4)
    began = [one for one in world.journals[VICTIM] if isinstance(one, Began)]
    assert (began[-1].attempt, began[-1].returned) == (1, ["sites"])
    if at == 3500:  # Its journal holds where it stood.
        assert found.public["iterations"] < honest.public["iterations"]


def test_a_process_that_starts_again_and_again_does_not_stop_the_others() -> None:
    """A site must not be able to keep a day from ending by being lost."""
    world = World(11)
    for _ in range(RETURNS_MAX + 1):
        world.run(until=world.handled + 800)
        lose_sites(world, is_idle=False)
    world.run()
    assert isinstance(world.outcomes[SITES][0], Stopped)
    assert world.outcomes[SITES][0].reason == "this process was lost too often"
    while not world.outcomes.get(VICTIM) and world.step():
        pass
    ended = world.outcomes[VICTIM][0]
    assert isinstance(ended, DayEnded)
    assert set(ended.public["excluded"]) == {"1", "2", "3", "4"}
    began = [one for one in world.journals[VICTIM] if isinstance(one, Began)]
    assert [one.attempt for one in began] == list(range(RETURNS_MAX + 1))


def test_sites_and_a_party_that_are_lost_together_come_back_together(honest: Ended) -> None:
    world = World(12)
    world.run(until=2000)
    party = world.kill(VICTIM)
    lose_sites(world, is_idle=True)
    world.restart(party)
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, SiteOutcome), found
    assert (found.public["status"], found.public["excluded"]) == ("converged", {})


@pytest.mark.parametrize("at", [6, 3500])
def test_all_that_are_lost_at_once_go_on_in_one_more_attempt(at: int, honest: Ended) -> None:
    """A power cut takes everybody: the bids stand, and nobody asks for a third attempt."""
    world = World(14)
    world.run(until=at)
    victims = [world.kill(name) for name in list(world.machines) if name != SITES]
    sites = world.kill(SITES)
    world.queue.clear()  # What was under way is lost, too.
    for victim in victims:
        world.restart(victim)
    world.restart_sites(sites)
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, SiteOutcome), found
    assert (found.public["status"], found.public["excluded"]) == ("converged", {})
    expected = honest.public["certificate"]["cost"]
    assert found.public["certificate"]["cost"] == pytest.approx(expected, rel=2e-4)
    records = world.journals[VICTIM]
    assert [one.attempt for one in records if isinstance(one, Began)] == [0, 1]
    assert len([one for one in records if isinstance(one, Committed)]) == 1
    if at == 3500:
        assert found.public["iterations"] < honest.public["iterations"]


def test_a_party_that_stays_away_is_named_although_sites_were_lost_too() -> None:
    world = World(13)
    world.run(until=2000)
    world.kill(VICTIM)
    lose_sites(world, is_idle=False)
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, Stopped)
    assert found.culprits == ["party-2"]


@pytest.mark.parametrize("name", [VICTIM, SITES])
def test_who_starts_again_after_the_end_says_the_same_once_more(name: NodeId) -> None:
    """Whoever looks for the result of a process that was killed as it ended must find it."""
    world = World(14)
    world.run()
    while not world.outcomes.get(VICTIM):
        world.step()
    first = world.outcomes.pop(name)
    victim = world.kill(name)
    (world.restart if name == VICTIM else world.restart_sites)(victim)
    world.step()
    while not world.outcomes.get(name) and world.step():
        pass
    assert world.outcomes[name] == first


@pytest.mark.parametrize("name", [VICTIM, SITES])
def test_who_was_away_at_the_end_is_told_by_the_others(name: NodeId) -> None:
    """Killed while the certificate was made: plan and payments must not be lost with it."""
    world = World(15)
    world.run()
    while not all(world.outcomes.get(one) for one in world.cast.machines):
        world.step()
    first = world.outcomes.pop(name)[0]
    victim = world.kill(name)
    kept = [r for r in world.journals[name] if not isinstance(r, SiteOutcome | DayEnded)]
    world.journals[name] = kept
    (world.restart if name == VICTIM else world.restart_sites)(victim)
    while not world.outcomes.get(name) and world.step():
        pass
    found = world.outcomes[name][0]
    assert found.public == first.public
    if isinstance(found, SiteOutcome):
        assert found == first
        for party in world.cast.group.agreement.parties:
            world.restart(world.kill(party))
        world.journals[SITES] = kept
        world.outcomes.pop(SITES)
        world.restart_sites(world.kill(SITES))
        while not world.outcomes.get(SITES) and world.step():
            pass
        assert world.outcomes[SITES] == [first], "parties kept what opened behind pads as well"
        world.journals[SITES] = [r for r in kept if isinstance(r, Began)]
        world.outcomes.pop(SITES)
        world.restart_sites(world.kill(SITES))
        world.run()
        assert isinstance(world.outcomes[SITES][0], Stopped)


def test_only_a_process_of_sites_may_say_that_it_started_again() -> None:
    world = World(16)
    world.run(until=800)
    party = world.machines[VICTIM]
    for name in (NodeId("party-1"), NodeId("stranger")):
        assert party.handle(Received(name, Rejoined(party.agreement.day, 0))) == []  # type: ignore[attr-defined]


def test_who_has_finished_still_answers_who_has_not() -> None:
    """One party withholds its last words and its notice: the others are enough for the sites."""
    scenario = small(1)
    day, limits = scenario.day(), Limits.of(scenario.network)
    words = [said for _, _, said in run_day(day, limits).sent if isinstance(said, Said)]
    last = words[-1].session
    latest = max(said.round for said in words if said.session == last)
    lost: set[NodeId] = set()

    def meddle(sender: NodeId, to: NodeId, message: Any) -> Any:
        if sender == "party-2" and to == SITES and isinstance(message, Notice):
            return message if message.task + 1 < len({one.session for one in words}) else None
        is_last = isinstance(message, Said) and (message.session, message.round) == (last, latest)
        if to == "party-1" and is_last and (sender == "party-2" or sender not in lost):
            lost.add(sender)
            return None
        return message

    ended = run_day(day, limits, meddle=meddle)
    assert lost == {"party-2", "party-3"}
    assert ended.public["status"] == "converged"
    assert len(ended.parties) == 3


def test_sites_are_waited_for_while_a_starved_party_asks_twice() -> None:
    """One party withholds its last words from another, and the network loses the first answer.

    The sites wait for the starved one's word; the third must not take them for silent meanwhile.
    """
    scenario = small(1)
    day, limits = scenario.day(), Limits.of(scenario.network)
    words = [said for _, _, said in run_day(day, limits).sent if isinstance(said, Said)]
    task = 2
    session = list(dict.fromkeys(said.session for said in words))[task]
    latest = max(said.round for said in words if said.session == session)
    lost: list[Relay] = []

    def meddle(sender: NodeId, to: NodeId, message: Any) -> Any:
        match sender, to, message:
            case ("party-2", "party-3", Said(session=which, round=number)):
                return None if (which, number) == (session, latest) else message
            case ("party-2", _, Notice(task=number)) if to == SITES:
                return None if number == task else message
            case ("party-1", "party-3", Relay()) if not lost:
                lost.append(message)
                return None
        return message

    ended = run_day(day, limits, meddle=meddle)
    assert len(lost) == 1
    assert ended.excluded == {}
    assert ended.public["status"] == "converged"
