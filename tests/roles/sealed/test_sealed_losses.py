"""A party that is lost in the middle of a day and comes back: the day goes on from its bids."""

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
from veilgrid.roles.sealed.day import SITES
from veilgrid.roles.sealed.message import Began, Committed, Stopped
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.sites import SiteOutcome
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
                    self.journals.setdefault(name, []).append(record)
                case Decide(outcome):
                    self.outcomes.setdefault(name, []).append(outcome)
        return True

    def _note(self, name: NodeId, message: Any) -> None:
        """Remember what was said to all in each round: nobody may say two things."""
        if type(message).__name__ == "Said":
            key = (name, message.session, message.round)
            self.said.setdefault(key, set()).add(message.shared)

    def kill(self, name: NodeId) -> SealedParty:
        victim = self.machines.pop(name)
        assert isinstance(victim, SealedParty)
        self.timers = {key: at for key, at in self.timers.items() if key[0] != name}
        return victim

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
