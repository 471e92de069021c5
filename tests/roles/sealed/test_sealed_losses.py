"""Parties and sites that are lost in the middle of a day: it goes on from its bids."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.mpc.message import Said
from veilgrid.roles.sealed.attempts import RETURNS_MAX
from veilgrid.roles.sealed.day import SITES
from veilgrid.roles.sealed.message import (
    Began,
    Committed,
    DayEnded,
    Notice,
    Rejoined,
    Stopped,
    Wished,
)
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.sites import SiteGroup
from veilgrid.roles.sealed.sites_kept import SiteOutcome
from veilgrid.secret import SeededRandomness

from .sealed_days import Ended, cast_for, run_day, small

DAY = small(2).day()
LIMITS = Limits.of(DAY.network)
VICTIM = NodeId("party-2")


@dataclass
class World:
    """A day whose machines keep journals, so that one can be killed and built anew."""

    seed: int
    queue: "deque[tuple[NodeId, Event]]" = field(default_factory=deque)
    timers: dict[tuple[NodeId, str], int] = field(default_factory=dict)
    journals: dict[NodeId, list[Any]] = field(default_factory=dict)
    outcomes: dict[NodeId, list[Any]] = field(default_factory=dict)
    said: dict[tuple[NodeId, bytes, int], set[bytes]] = field(default_factory=dict)
    now_ns: int = 0
    handled: int = 0

    def __post_init__(self) -> None:
        self.cast = cast_for(DAY, LIMITS, seed=self.seed)
        self.machines = dict(self.cast.machines)
        self.queue.extend((name, TimerFired(START)) for name in self.machines)

    def step(self) -> bool:
        if not self.queue:
            if not self.timers:
                return False
            self.now_ns = min(self.timers.values())
            due = [key for key, at_ns in self.timers.items() if at_ns == self.now_ns]
            for key in due:
                del self.timers[key]
            self.queue.extend((name, TimerFired(timer)) for name, timer in due)
        name, event = self.queue.popleft()
        if name not in self.machines:
            return True
        self.handled += 1
        for effect in self.machines[name].handle(event):
            match effect:
                case Send(to, message):
                    self._note(name, message)
                    self.queue.append((to, Received(name, message)))
                case SetTimer(timer, delay_ns):
                    self.timers[name, timer] = self.now_ns + delay_ns
                case Compute(job, kernel, arguments):
                    self.queue.append((name, Computed(job, kernel(*arguments))))
                case Persist(record):
                    assert not isinstance(record, Wished) or name == SITES
                    self.journals.setdefault(name, []).append(record)
                case Decide(outcome):
                    self.outcomes.setdefault(name, []).append(outcome)
        return True

    def _note(self, name: NodeId, message: Any) -> None:
        """Remember what was said to all in each round: nobody may say two things."""
        if type(message).__name__ == "Said":
            key = (name, message.session, message.round)
            self.said.setdefault(key, set()).add(message.shared)

    def kill(self, name: NodeId) -> Any:
        victim = self.machines.pop(name)
        self.timers = {key: at for key, at in self.timers.items() if key[0] != name}
        return victim

    def restart_sites(self, victim: SiteGroup) -> None:
        fresh = cast_for(DAY, LIMITS, seed=self.seed).group
        self.machines[SITES] = SiteGroup(
            SITES,
            fresh.agreement,
            fresh.course,
            victim._sites,
            victim._alone,
            keys=victim._keys,
            randomness=SeededRandomness(98),
            executor=victim._executor,
            records=self.journals.get(SITES, []),
        )
        self.queue.append((SITES, TimerFired(START)))

    def restart(self, victim: SealedParty) -> None:
        again = SealedParty(
            victim.me,
            cast_for(DAY, LIMITS, seed=self.seed).machines[victim.me].agreement,  # type: ignore[attr-defined]
            cast_for(DAY, LIMITS, seed=self.seed).machines[victim.me].course,  # type: ignore[attr-defined]
            victim._shapes,
            victim._limits,
            box_key=victim._box_key,
            signer=victim._signer,
            verify_keys=victim._keys,
            randomness=SeededRandomness(99),
            records=self.journals.get(victim.me, []),
        )
        self.machines[victim.me] = again
        self.queue.append((victim.me, TimerFired(START)))

    def run(self, *, until: int = 1 << 40) -> None:
        while self.handled < until and not self.outcomes.get(SITES) and self.step():
            pass


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
    assert began[-1] == Began(1, ["sites"])
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
