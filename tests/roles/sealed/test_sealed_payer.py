"""All payments open to the payer as well, and to nobody else [sealed 4.9]."""

from typing import Any

import msgspec
import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId
from veilgrid.mpc.message import Submission
from veilgrid.roles.operator import plan_day
from veilgrid.roles.sealed.heard import PAYER
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES
from veilgrid.roles.sealed.message import (
    Again,
    Collected,
    Collecting,
    DayEnded,
    Notice,
    Over,
    Stopped,
)
from veilgrid.secret import SeededRandomness

from .sealed_days import Ended, run_day, small
from .sealed_world import VICTIM, World

SCENARIO = small(1)
DAY, LIMITS = SCENARIO.day(), Limits.of(SCENARIO.network)
LIAR = NodeId("party-2")


@pytest.fixture(scope="module")
def honest() -> Ended:
    return run_day(DAY, LIMITS)


def paid(ended: Ended) -> dict[int, float]:
    assert ended.payer is not None
    return ended.payer.payments


def test_the_payer_hears_what_each_site_hears_and_it_adds_up(honest: Ended) -> None:
    assert honest.sites is not None
    assert paid(honest) == honest.sites.payments
    assert len(paid(honest)) == len(DAY.sites)
    certificate = honest.public["certificate"]
    owed = certificate["exchange_cost"] + certificate["rent"]
    assert sum(paid(honest).values()) == pytest.approx(owed, abs=2 * abs(certificate["gap"]) + 1e-6)
    assert honest.payer is not None
    assert honest.payer.public == honest.public


def test_what_a_run_settles_is_what_its_sites_are_told() -> None:
    """Prices worked out anew would show, and record, other amounts where limits bind."""
    scenario = small(3, rating=0.6)
    day = scenario.day()
    plan = plan_day(day, "sealed", randomness=SeededRandomness(1))
    told = run_day(day, Limits.of(day.network)).sites
    assert told is not None
    assert plan.settlement is not None
    root = day.network.tree.root
    for bus, account in enumerate(plan.settlement.accounts):
        if bus != root:
            assert account.payment == pytest.approx(1e6 * told.payments[bus], abs=1.0)
    assert plan.settlement.total == 0
    assert plan.settlement.rent_expected == pytest.approx(1e6 * plan.outcome.opened["rent"], abs=1)
    assert plan.settlement.rent_expected > 0


def test_nobody_else_is_told_what_opens_to_the_payer(honest: Ended) -> None:
    """It is behind pads wherever it is, but only the payer has a use for it."""
    told = [to for _, to, one in honest.sent if isinstance(one, Notice | Over) and PAYER in one.own]
    assert set(told) == {PAYER_NODE}
    own = [one.own for _, to, one in honest.sent if isinstance(one, Over) and to == PAYER_NODE]
    assert [set(one) for one in own] == [{PAYER}] * 3
    sites = {
        bus
        for _, to, one in honest.sent
        if to == SITES and isinstance(one, Notice)
        for bus in one.own
    }
    assert PAYER not in sites


def test_one_party_cannot_tell_the_payer_other_amounts(honest: Ended) -> None:
    def meddle(sender: NodeId, to: NodeId, message: Any) -> Any:
        if sender != LIAR or not isinstance(message, Over) or to != PAYER_NODE:
            return message
        bent = {bus: bytes([octets[0] ^ 1, *octets[1:]]) for bus, octets in message.own.items()}
        return msgspec.structs.replace(message, own=bent)

    assert paid(run_day(DAY, LIMITS, meddle=meddle)) == paid(honest)


@pytest.mark.parametrize("kind", ["silent", "unreadable", "late words"])
def test_a_payer_that_sends_nothing_of_use_stops_nobody(kind: str, honest: Ended) -> None:
    """The day is the same; payments open to the sites alone, and nobody is left out."""

    def meddle(sender: NodeId, to: NodeId, message: Any) -> Any:
        if sender != PAYER_NODE or not isinstance(message, Submission):
            return message
        if kind == "unreadable":
            return msgspec.structs.replace(message, signature=bytes(64))
        return None if kind == "silent" or to != LIAR else message

    ended = run_day(DAY, LIMITS, meddle=meddle)
    assert ended.sites is not None
    assert honest.sites is not None
    assert ended.public["status"] == "converged"
    assert ended.excluded == {}
    assert ended.sites.payments == honest.sites.payments
    assert paid(ended) == {}


def test_an_infeasible_day_ends_for_the_payer_too() -> None:
    scenario = small(2, rating=0.05)
    ended = run_day(scenario.day(), Limits.of(scenario.network))
    assert ended.public["status"] == "infeasible"
    assert ended.payer == Collected({}, ended.public)


@pytest.mark.parametrize("at", [0, 3, 60, 900])
def test_a_payer_that_was_killed_hears_all_payments(at: int, honest: Ended) -> None:
    """Before, during and after gate closure. What it sent again is what it had sent."""
    world = World(21, DAY, LIMITS)
    world.run(until=at)
    world.restart(world.kill(PAYER_NODE))
    world.run()
    while not world.outcomes.get(PAYER_NODE) and world.step():
        pass
    found = world.outcomes[PAYER_NODE][0]
    assert found.payments == world.outcomes[SITES][0].payments
    assert found.payments.keys() == paid(honest).keys()
    assert [type(one) for one in world.journals[PAYER_NODE]] == [Collecting, Collected]


def test_a_payer_that_was_away_at_the_end_is_told() -> None:
    world = World(22, DAY, LIMITS)
    world.run(until=900)
    victim = world.kill(PAYER_NODE)
    world.run()
    while not all(world.outcomes.get(one) for one in world.machines):
        world.step()
    world.restart(victim)
    while not world.outcomes.get(PAYER_NODE) and world.step():
        pass
    first = world.outcomes.pop(PAYER_NODE)[0]
    assert first.payments == world.outcomes[SITES][0].payments
    world.restart(world.kill(PAYER_NODE))
    while not world.outcomes.get(PAYER_NODE) and world.step():
        pass
    assert world.outcomes[PAYER_NODE] == [first]


def test_a_party_lost_at_gate_closure_makes_the_payer_commit_again() -> None:
    """Gate closure begins anew: seeds of the attempt before count in none after it."""
    world = World(23, DAY, LIMITS)
    world.run(until=12)
    victim = world.kill(VICTIM)
    while world.queue:
        world.step()
    world.restart(victim)
    world.run()
    while not world.outcomes.get(PAYER_NODE) and world.step():
        pass
    assert world.outcomes[PAYER_NODE][0].payments == world.outcomes[SITES][0].payments
    kept = [one for one in world.journals[PAYER_NODE] if isinstance(one, Collecting)]
    assert [one.attempt for one in kept] == [0, 1]
    assert kept[0].seeds != kept[1].seeds


def test_the_payer_hears_that_a_day_stopped_and_by_whom() -> None:
    world = World(24, DAY, LIMITS)
    world.run(until=600)
    world.kill(VICTIM)
    world.run()
    while not world.outcomes.get(PAYER_NODE) and world.step():
        pass
    found = world.outcomes[PAYER_NODE][0]
    assert isinstance(found, Stopped)
    assert found.culprits == [VICTIM]
    assert not any(isinstance(one, DayEnded) for said in world.outcomes.values() for one in said)


def test_one_word_of_a_party_moves_the_payer_to_nothing(honest: Ended) -> None:
    """Neither another attempt, nor an end with or without a result."""
    world = World(25, DAY, LIMITS)
    payer = world.machines[PAYER_NODE]
    parties = world.cast.group.agreement.parties
    day = world.cast.group.agreement.day
    over = next(one for _, to, one in honest.sent if isinstance(one, Over) and to == PAYER_NODE)
    from veilgrid.machine import Received

    lies = [
        Again(day, 1, is_from_bids=True),
        Stopped(day, 3, "no", ["party-1"]),
        msgspec.structs.replace(over, day=day),
    ]
    for lie in lies:
        for _ in range(3):
            assert payer.handle(Received(parties[1], lie)) == []
        assert payer.handle(Received(SITES, lie)) == []
