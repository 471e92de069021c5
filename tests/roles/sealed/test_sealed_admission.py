"""Evidence on a sealed day: who shows none, or another program's, is silent to the others."""

from collections import deque
from pathlib import Path
from typing import Any

import pytest

from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Event,
    Machine,
    NodeId,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.node.attest.admission import PolicyAssessor, quote_by
from veilgrid.node.attest.day import software_files
from veilgrid.node.attest.software import SoftwareProvider
from veilgrid.roles.ledger_message import Challenge, Shown
from veilgrid.roles.sealed.admission import HELD_MAX, Admitting, asked_of
from veilgrid.roles.sealed.keys import PAYER_NODE, SITES
from veilgrid.roles.sealed.message import DayEnded, Stopped
from veilgrid.roles.sealed.sites_kept import SiteOutcome
from veilgrid.secret import SystemRandomness

from .sealed_days import cast_for, small

DAY = small(1).day()
LIMITS = Limits.of(DAY.network)
OTHER = b"another program".ljust(32, b".")


class World:
    """A day whose processes ask for evidence; ``programs`` are what some run instead."""

    def __init__(self, folder: Path, programs: dict[str, bytes]) -> None:
        files = software_files(folder)
        machines = cast_for(DAY, LIMITS).machines
        others = (SITES, PAYER_NODE)
        parties = {name: name.encode().ljust(32) for name in machines if name not in others}
        sites = {SITES: b"sites".ljust(32)}
        self.now_ns = 0
        self.machines: dict[NodeId, Machine] = dict(machines)
        for name, machine in machines.items():
            if name == PAYER_NODE:
                continue  # As of an operator, nobody asks for its evidence.
            program = programs.get(name, files.measurement)
            provider = SoftwareProvider.load(files.root, program)
            self.machines[name] = Admitting(
                machine,
                name,
                asked_of(name, parties, sites),
                quote=quote_by(provider, self.clock),
                assessor=PolicyAssessor(files.policy, SystemRandomness(), self.clock),
                patience_ns=5_000_000_000,
            )
        self.outcomes: dict[NodeId, list[Any]] = {name: [] for name in machines}
        self.dropped = 0

    def clock(self) -> float:
        return 1.7e9 + self.now_ns / 1e9

    def run(self, silent: frozenset[str] = frozenset()) -> None:
        queue: deque[tuple[NodeId, Event]] = deque((n, TimerFired(START)) for n in self.machines)
        timers: dict[tuple[NodeId, str], int] = {}
        while not self.outcomes[SITES]:
            if not queue:
                self.now_ns = min(timers.values())
                for key in [key for key, at in timers.items() if at == self.now_ns]:
                    del timers[key]
                    queue.append((key[0], TimerFired(key[1])))
            name, event = queue.popleft()
            for effect in self.machines[name].handle(event):
                match effect:
                    case Send(_, Shown()) if name in silent:
                        self.dropped += 1
                    case Send(to, message):
                        queue.append((to, Received(name, message)))
                    case SetTimer(timer, delay_ns):
                        timers[name, timer] = self.now_ns + delay_ns
                    case Compute(job, kernel, arguments):
                        queue.append((name, Computed(job, kernel(*arguments))))
                    case Decide(outcome):
                        self.outcomes[name].append(outcome)


def test_all_who_show_what_the_policy_asks_for_take_part(tmp_path: Path) -> None:
    world = World(tmp_path, {})
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, SiteOutcome)
    assert (found.public["status"], found.public["excluded"]) == ("converged", {})
    assert all(not one.refused for one in world.machines.values() if isinstance(one, Admitting))


def test_sites_with_another_program_are_silent_to_the_parties(tmp_path: Path) -> None:
    """A changed edge device must not take part; the others' day goes on without it."""
    world = World(tmp_path, {SITES: OTHER})
    world.run()
    found = world.outcomes[SITES][0]
    assert isinstance(found, SiteOutcome)
    assert found.setpoints == {}
    party = world.machines[NodeId("party-1")]
    assert SITES in party.refused
    assert set(party.machine.course.absent) == set(range(len(DAY.sites)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_silent", [False, True])
def test_a_party_that_shows_nothing_good_ends_the_day_by_name(
    tmp_path: Path, *, is_silent: bool
) -> None:
    """Its program may store shares: nobody may compute with it."""
    name = NodeId("party-2")
    world = World(tmp_path, {} if is_silent else {name: OTHER})
    world.run(frozenset({name}) if is_silent else frozenset())
    found = world.outcomes[SITES][0]
    assert isinstance(found, Stopped)
    assert found.culprits == ["party-2"]
    assert not any(isinstance(one, DayEnded) for each in world.outcomes.values() for one in each)
    assert bool(world.dropped) == is_silent


def test_nobody_fills_the_room_for_words_that_come_before_the_day(tmp_path: Path) -> None:
    """Admitted or not asked at all: who sends without end is cut off, the others are heard."""
    world = World(tmp_path, {})
    machine: Any = world.machines[NodeId("party-1")]
    for _ in range(HELD_MAX + 7):
        machine.handle(Received(PAYER_NODE, Stopped(b"", 0, "", [])))
    machine.handle(Received(NodeId("validator-1"), Stopped(b"", 0, "", [])))
    senders = [event.sender for event in machine._early]
    assert senders.count(PAYER_NODE) == HELD_MAX
    assert senders.count(NodeId("validator-1")) == 1


def test_evidence_is_shown_to_those_of_the_day_alone(tmp_path: Path) -> None:
    """Else anybody could have a process make evidence for a nonce of his own."""
    world = World(tmp_path, {})
    party = world.machines[NodeId("party-1")]
    challenge = Challenge("party-1", b"n" * 32)
    assert party.handle(Received(NodeId("stranger"), challenge)) == []
    (shown,) = party.handle(Received(NodeId("party-2"), challenge))
    assert isinstance(shown, Send)
    other = Challenge("party-3", b"n" * 32)
    assert party.handle(Received(NodeId("party-2"), other)) == []
