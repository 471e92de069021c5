"""Sites as machines give what the arrays give, whatever the order of messages."""

import random
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from veilgrid.admm._neighbour_message import packed
from veilgrid.admm._neighbour_words import (
    Announced,
    Candidates,
    Closed,
    Go,
    Level,
    Move,
    Opened,
    Wishes,
)
from veilgrid.admm.neighbour import NeighbourSettings, plan_neighbour
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.site_step import SiteSteps
from veilgrid.grid.day import Day
from veilgrid.grid.device import Battery, Generator, Photovoltaic
from veilgrid.grid.horizon import Horizon
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Branch, Bus, BusId, Network
from veilgrid.grid.scenario import Scenario
from veilgrid.machine import Compute, Computed, Decide, NodeId, Received, Send
from veilgrid.roles.neighbour import Agreed, NeighbourSite, neighbour_sites


def small_day(voltage_min: float | None = None) -> Day:
    """Seven buses, three levels, a battery, a generator, two solar plants."""
    count = 6
    rng = np.random.default_rng(5)
    pairs = [("s", "a"), ("a", "b"), ("a", "c"), ("c", "d"), ("c", "e"), ("s", "f")]
    network = Network(
        buses=tuple(
            Bus(name=BusId(n), kind="slack" if n == "s" else "customer") for n in "sabcdef"
        ),
        branches=tuple(
            Branch(
                parent=BusId(p),
                child=BusId(c),
                resistance_pu=0.02,
                reactance_pu=0.01,
                charging_pu=0.001,
            )
            for p, c in pairs
        ),
        base_mva=1.0,
        base_kv=10.0,
        slack_bus=BusId("s"),
        voltage_min_pu=voltage_min,
    )
    load = rng.uniform(0.05, 0.4, (7, count))
    devices = (
        Battery(
            name="battery",
            bus=BusId("d"),
            charge_max_mw=0.2,
            discharge_max_mw=0.2,
            energy_max_mwh=0.3,
            energy_initial_mwh=0.1,
            charge_efficiency=0.95,
            discharge_efficiency=0.95,
        ),
        Generator(
            name="gen", bus=BusId("e"), p_max_mw=0.3, cost_linear=80, cost_quadratic=60, q_per_p=0.2
        ),
        Photovoltaic(name="pv", bus=BusId("b"), available_mw=rng.uniform(0.0, 2.0, count)),
        Photovoltaic(
            name="pv2", bus=BusId("f"), available_mw=rng.uniform(0.0, 1.5, count), s_max_mva=1.4
        ),
    )
    sell = rng.uniform(20.0, 60.0, count)
    return Scenario(
        name="small",
        horizon=Horizon(
            start="2026-03-01T00:00:00+01:00", interval_minutes=30, interval_count=count
        ),
        currency="EUR",
        network=network,
        devices=devices,
        load_p_mw=load,
        load_q_mvar=0.3 * load,
        buy=sell + 50.0,
        sell=sell,
    ).day()


class Queue:
    """Deliver messages in any order; ``silent`` sites never act."""

    def __init__(
        self,
        machines: dict[NodeId, NeighbourSite],
        seed: int,
        silent: frozenset[NodeId] = frozenset(),
    ) -> None:
        self.machines, self.silent = machines, silent
        self.rng = random.Random(seed)
        self.waiting: list[tuple[NodeId, object]] = []
        self.decided: dict[NodeId, Agreed] = {}
        self.sent: list[tuple[NodeId, NodeId]] = []
        for name, machine in machines.items():
            self.carry_out(name, machine.start())

    def carry_out(self, me: NodeId, effects: list) -> None:
        if me in self.silent:
            return
        for effect in effects:
            match effect:
                case Send(to, message):
                    self.sent.append((me, to))
                    self.waiting.append((to, Received(me, message)))
                case Compute(job, kernel, arguments):
                    self.waiting.append((me, Computed(job, kernel(*arguments))))
                case Decide(outcome):
                    self.decided[me] = outcome

    def run(self, *, twice: bool = False) -> None:
        while self.waiting:
            to, event = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            effects = self.machines[to].handle(event)
            self.carry_out(to, effects)
            if twice and isinstance(event, Received):
                assert self.machines[to].handle(event) == []


class Counting(Queue):
    """Counts octets as msgspec encodes them."""

    octets = 0

    def carry_out(self, me: NodeId, effects: list) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                self.octets += len(msgspec.msgpack.encode(effect.message))
        super().carry_out(me, effects)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the array form solve site by site, as machines do, not stacked: the same digits."""
    monkeypatch.setattr(SiteSteps, "GROUP_SIZE", 1)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("voltage_min", [None, 0.955])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_machines_give_the_same_plan_as_arrays(voltage_min: float | None, seed: int) -> None:
    """... in the same iteration, and send the messages and bytes that the arrays only count."""
    day = small_day(voltage_min)
    limits = Limits.of(day.network)
    for settings in (
        NeighbourSettings(iteration_count_max=12, gap_max=1e-12),
        NeighbourSettings(),
    ):
        outcome = plan_neighbour(day, limits, settings)
        queue = Counting(neighbour_sites(day, limits, settings), seed)
        queue.run()
        assert len(queue.decided) == len(day.sites)
        assert {a.status for a in queue.decided.values()} == {outcome.status}
        assert {a.iteration_count for a in queue.decided.values()} == {outcome.iteration_count}
        assert (len(queue.sent), queue.octets) == (outcome.message_count, outcome.byte_count)
        plan = day.flows(outcome.setpoints)
        for bus, name in enumerate(bus.name for bus in day.network.buses):
            agreed = queue.decided[NodeId(name)]
            np.testing.assert_allclose(agreed.setpoints, outcome.setpoints[bus], atol=1e-7)
            edge = np.flatnonzero(outcome.warm.child == bus)
            if len(edge):
                np.testing.assert_allclose(agreed.copies[0], plan.active[bus], atol=1e-7)
                np.testing.assert_allclose(agreed.copies[1], plan.reactive[bus], atol=1e-7)
                unit = float(day.buy.max())
                np.testing.assert_allclose(
                    agreed.multiplier, outcome.warm.multiplier[edge[0]], atol=1e-5 * unit
                )
    assert outcome.status is RunStatus.CONVERGED


def test_messages_travel_between_neighbours_only() -> None:
    day = small_day()
    queue = Queue(neighbour_sites(day, Limits.of(day.network)), 3)
    queue.run()
    edges = {(b.parent, b.child) for b in day.network.branches}
    assert set(queue.sent) == edges | {(child, parent) for parent, child in edges}


def test_repeated_messages_change_nothing() -> None:
    day = small_day()
    once, again = (Queue(neighbour_sites(day, Limits.of(day.network)), 3) for _ in range(2))
    once.run()
    again.run(twice=True)
    for name, agreed in once.decided.items():
        np.testing.assert_array_equal(agreed.setpoints, again.decided[name].setpoints)


def test_foreign_late_and_malformed_messages_are_ignored() -> None:
    day = small_day(0.955)
    limits = Limits.of(day.network)
    machines = neighbour_sites(day, limits)
    queue = Queue(machines, 3)
    count = day.interval_count
    two, one = packed(np.zeros((2, count))), packed(np.zeros((1, count)))
    row = np.full(count, 10_000, dtype="<i8").tobytes()
    forged = [
        Received(NodeId("f"), Opened(two, one)),
        Received(NodeId("d"), Opened(b"short", one)),
        Received(NodeId("d"), Opened(packed(np.full((2, count), np.nan)), one)),
        Received(NodeId("d"), Wishes(1, two)),
        Received(NodeId("d"), Candidates(1, 0, row, one, one)),
        Received(NodeId("a"), Level(1, one)),
        Received(NodeId("a"), Go(1)),
        Received(NodeId("a"), Move(2, (), 1.0, 0.0, False, 1.0)),
        Received(NodeId("a"), Closed(1, "converged")),
        Received(NodeId("a"), "not a message of ours"),
        Computed(("near", 99), None),
    ]
    for event in forged:
        assert machines[NodeId("c")].handle(event) == []
    queue.run()
    honest = Queue(neighbour_sites(day, limits), 3)
    honest.run()
    assert set(queue.decided) == set(machines)
    for name, agreed in honest.decided.items():
        np.testing.assert_array_equal(agreed.setpoints, queue.decided[name].setpoints)


def test_commands_out_of_turn_or_shape_are_ignored() -> None:
    """A site in the middle of a run obeys only a sound command that can come next."""
    day = small_day(0.955)
    count = day.interval_count
    one, none = packed(np.zeros((1, count))), b""
    far = np.array([10_000], dtype="<i8").tobytes()
    late = np.array([count], dtype="<i8").tobytes()
    low = np.array([3], dtype="<i8").tobytes()
    strength = packed(np.zeros(1))
    queue = Queue(neighbour_sites(day, Limits.of(day.network)), 3)
    site = queue.machines[NodeId("b")]
    tried = False
    while queue.waiting:
        to, event = queue.waiting.pop(0)
        is_mine = to == NodeId("b") and isinstance(event, Received)
        if is_mine and isinstance(event.message, Announced):
            tried = True
            at = event.message.iteration
            for forged in (
                Announced(at, 1, one, strength, far, low, 0.0),
                Announced(at, 1, one, strength, low, late, 0.0),
                Announced(at, 1, one, none, low, low, 0.0),
                Announced(at, 1, b"short", none, none, none, 0.0),
                Announced(at, 1, one, none, none, none, float("nan")),
                Level(at, one),
                Move(at + 1, (), 1.0, 0.0, False, 1.0),
                Closed(at, "nonsense"),
            ):
                assert site.handle(Received(NodeId("a"), forged)) == []
        queue.carry_out(to, queue.machines[to].handle(event))
    assert tried
    assert {agreed.status for agreed in queue.decided.values()} == {RunStatus.CONVERGED}


def test_a_silent_neighbour_stalls_everybody() -> None:
    """The published attack (c): consensus between neighbours cannot go on without one of them."""
    day = small_day()
    queue = Queue(neighbour_sites(day, Limits.of(day.network)), 3, frozenset({NodeId("e")}))
    queue.run()
    assert queue.decided == {}


def test_a_site_that_contradicts_itself_says_so() -> None:
    day = small_day()
    site = day.sites[4]
    broken = replace(site, row_lower=site.row_lower + 100.0, row_upper=site.row_upper + 100.0)
    day = replace(day, sites=(*day.sites[:4], broken, *day.sites[5:]))
    queue = Queue(neighbour_sites(day, Limits.of(day.network)), 3)
    queue.run()
    assert queue.decided[NodeId("d")].status is RunStatus.INFEASIBLE
