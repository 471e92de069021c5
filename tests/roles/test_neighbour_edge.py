"""Sites of the published form as machines give what the arrays give, message by message."""

import numpy as np
import pytest

from roles.test_neighbour import Counting, Queue, small_day
from veilgrid.admm._neighbour_edge import EdgeNeighbours
from veilgrid.admm._neighbour_message import Copies, Judged, Weights, packed
from veilgrid.admm.neighbour import EdgeSettings, Said, plan_neighbour
from veilgrid.admm.outcome import RunStatus
from veilgrid.grid.lindistflow import Limits
from veilgrid.machine import NodeId, Received
from veilgrid.roles.neighbour import neighbour_sites


@pytest.mark.parametrize(
    "settings",
    [
        EdgeSettings(iteration_count_max=25, tolerance=1e-12),
        EdgeSettings(iteration_count_max=25, tolerance=1e-12, memory=8, growth=1.15),
        EdgeSettings(iteration_count_max=25, tolerance=1e-12, regulariser=0.05, relaxation=1.5),
    ],
)
@pytest.mark.parametrize("voltage_min", [None, 0.955])
def test_machines_give_the_same_iterates_as_arrays(
    voltage_min: float | None, settings: EdgeSettings
) -> None:
    """... and the messages and bytes that the arrays only count."""
    day = small_day(voltage_min)
    limits = Limits.of(day.network)
    arrays = EdgeNeighbours(day, limits, settings)
    at = arrays.open()
    for _ in range(25):
        done = arrays.step(at)
        assert done is not None
        last = at
        at = arrays.advance(at, done)
    queue = Counting(neighbour_sites(day, limits, settings), 2)
    queue.run()
    assert last is not at
    for bus, name in enumerate(bus.name for bus in day.network.buses):
        agreed = queue.decided[NodeId(name)]
        assert (agreed.status, agreed.iteration_count) == (RunStatus.ITERATION_LIMIT, 25)
        np.testing.assert_allclose(agreed.setpoints, done.setpoints[bus], atol=1e-9)
        edge = arrays.edges.of_bus[bus]
        if edge >= 0:
            np.testing.assert_allclose(agreed.copies, done.copies[edge, 0], atol=1e-9)
            np.testing.assert_allclose(
                agreed.multiplier, done.after.multiplier[edge, 0], atol=1e-9 * float(day.buy.max())
            )
    outcome = plan_neighbour(day, limits, settings)
    assert (len(queue.sent), queue.octets) == (outcome.message_count, outcome.byte_count)


def test_liars_and_the_silent_act_alike_in_machines_and_arrays() -> None:
    day = small_day()
    limits = Limits.of(day.network)
    settings = EdgeSettings(memory=10, iteration_count_max=60)

    def shift(said: Said) -> Said:
        return said._replace(own=said.own + 0.05)

    outcome = plan_neighbour(day, limits, settings, tamper={4: shift})
    queue = Counting(neighbour_sites(day, limits, settings, tamper={4: shift}), 5)
    queue.run()
    for bus, name in enumerate(bus.name for bus in day.network.buses):
        agreed = queue.decided[NodeId(name)]
        assert agreed.status is outcome.status
        np.testing.assert_allclose(agreed.setpoints, outcome.setpoints[bus], atol=1e-7)
    assert (len(queue.sent), queue.octets) == (outcome.message_count, outcome.byte_count)

    silent = Counting(neighbour_sites(day, limits, settings, tamper={4: lambda _: None}), 5)
    silent.run()
    assert silent.decided == {}


def test_foreign_late_repeated_and_malformed_messages_are_ignored() -> None:
    day = small_day()
    limits = Limits.of(day.network)
    settings = EdgeSettings(memory=5, iteration_count_max=20)
    machines = neighbour_sites(day, limits, settings)
    queue = Queue(machines, 3)
    count = day.interval_count
    blank = packed(np.zeros((3, count)))
    forged = [
        Received(NodeId("f"), Copies(1, blank)),
        Received(NodeId("d"), Copies(3, blank)),
        Received(NodeId("d"), Copies(0, blank)),
        Received(NodeId("d"), Copies(1, b"short")),
        Received(NodeId("a"), Copies(1, packed(np.full((3, count), np.nan)))),
        Received(NodeId("d"), Judged(1, (float("nan"),), 0.0, 0.0)),
        Received(NodeId("d"), Judged(2, (1.0,), 0.0, 0.0)),
        Received(NodeId("b"), Judged(1, (1.0,), 0.0, 0.0)),
        Received(NodeId("a"), Weights(1, (), "converged")),
        Received(NodeId("d"), Weights(1, (1.0,))),
        Received(NodeId("a"), "not a message of ours"),
    ]
    for event in forged:
        assert machines[NodeId("c")].handle(event) == []
    queue.run(twice=True)
    honest = Queue(neighbour_sites(day, limits, settings), 3)
    honest.run()
    assert set(honest.decided) == set(queue.decided) == set(machines)
    for name, agreed in honest.decided.items():
        np.testing.assert_array_equal(agreed.setpoints, queue.decided[name].setpoints)
