"""Sites as machines give what the arrays give, whatever the order of messages."""

import random
from dataclasses import replace

import numpy as np
import pytest

from veilgrid.admm._neighbour_message import Average, Overlap, Sum, Weights, packed
from veilgrid.admm.neighbour import Neighbours, NeighbourSettings, plan_neighbour
from veilgrid.admm.outcome import RunStatus
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


@pytest.mark.parametrize("voltage_min", [None, 0.955])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_machines_give_the_same_iterates_as_arrays(voltage_min: float | None, seed: int) -> None:
    day = small_day(voltage_min)
    limits = Limits.of(day.network)
    settings = NeighbourSettings(iteration_count_max=25, tolerance=1e-12)
    arrays = Neighbours(day, limits, settings)
    at = arrays.open()
    for _ in range(25):
        done = arrays.step(at)
        at = arrays.advance(at, done)
    queue = Queue(neighbour_sites(day, limits, settings), seed)
    queue.run()
    assert len(queue.decided) == len(day.sites)
    for bus, name in enumerate(bus.name for bus in day.network.buses):
        agreed = queue.decided[NodeId(name)]
        assert agreed.status is RunStatus.ITERATION_LIMIT
        assert agreed.iteration_count == 25
        np.testing.assert_allclose(agreed.setpoints, done.setpoints[bus], atol=1e-9)
        edge = arrays.edges.of_bus[bus]
        if edge >= 0:
            np.testing.assert_allclose(agreed.copies, done.copies[edge, 0], atol=1e-9)
            np.testing.assert_allclose(
                agreed.multiplier, done.after.multiplier[edge, 0], atol=1e-9 * float(day.buy.max())
            )


def test_machines_stop_where_the_array_form_stops() -> None:
    day = small_day(0.955)
    limits = Limits.of(day.network)
    outcome = plan_neighbour(day, limits)
    queue = Queue(neighbour_sites(day, limits), 7)
    queue.run()
    assert {agreed.status for agreed in queue.decided.values()} == {RunStatus.CONVERGED}
    assert {a.iteration_count for a in queue.decided.values()} == {outcome.iteration_count}
    assert len(queue.sent) == outcome.message_count


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
    day = small_day()
    machines = neighbour_sites(day, Limits.of(day.network))
    queue = Queue(machines, 3)
    count = day.interval_count
    blank = packed(np.zeros((3, count)))
    still = (0.0, 0.0, 0.0, 0.0, 0.0)
    two = packed(np.zeros((2, count)))
    forged = [
        Received(NodeId("f"), Sum(1, blank, two)),
        Received(NodeId("d"), Sum(999, blank, two)),
        Received(NodeId("d"), Sum(1, b"short", b"")),
        Received(NodeId("a"), Average(1, packed(np.full((3, count), np.nan)), blank)),
        Received(NodeId("a"), Average(7, blank, blank)),
        Received(NodeId("a"), Weights(1, (), "converged")),
        Received(NodeId("a"), Weights(1, (1.0,), "nonsense")),
        Received(NodeId("d"), Overlap(1, (float("nan"),), still)),
        Received(NodeId("b"), Overlap(1, (1.0,), still)),
        Received(NodeId("a"), "not a message of ours"),
        Computed(("solve", 99), None),
    ]
    for event in forged:
        assert machines[NodeId("c")].handle(event) == []
    queue.run()
    honest = Queue(neighbour_sites(day, Limits.of(day.network)), 3)
    honest.run()
    for name, agreed in honest.decided.items():
        np.testing.assert_array_equal(agreed.setpoints, queue.decided[name].setpoints)


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
