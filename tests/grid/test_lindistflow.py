"""LinDistFlow against sums written out bus by bus, and its limits against its state."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strategies import networks
from veilgrid.grid.lindistflow import Correction, Limits, charging_injection, flows
from veilgrid.grid.network import Branch, Bus, BusId, Network


def _demands(network: Network, seed: int, interval_count: int = 3):
    rng = np.random.default_rng(seed)
    shape = (len(network.buses), interval_count)
    return rng.uniform(-0.3, 0.4, shape), rng.uniform(-0.1, 0.2, shape)


@given(network=networks(), seed=st.integers(0, 2**32 - 1))
def test_the_substation_exchanges_the_sum_of_all_demands(network: Network, seed: int) -> None:
    demand_p, demand_q = _demands(network, seed)
    state = flows(network.tree, demand_p, demand_q)
    root = network.tree.root
    np.testing.assert_allclose(state.active[root], demand_p.sum(axis=0), atol=1e-12)
    charging = charging_injection(network.tree).sum()
    np.testing.assert_allclose(state.reactive[root], demand_q.sum(axis=0) - charging, atol=1e-12)


@given(network=networks(has_charging=False), seed=st.integers(0, 2**32 - 1))
def test_voltages_are_the_drops_along_the_path(network: Network, seed: int) -> None:
    demand_p, demand_q = _demands(network, seed)
    state, tree = flows(network.tree, demand_p, demand_q), network.tree

    def fed(bus: int) -> list[int]:
        below = [child for child in range(len(tree)) if tree.parent[child] == bus]
        return [bus, *(each for child in below for each in fed(child))]

    for bus in range(len(tree)):
        squared, at = np.full(demand_p.shape[1], network.slack_voltage_pu**2), bus
        while at != tree.root:
            active, reactive = demand_p[fed(at)].sum(axis=0), demand_q[fed(at)].sum(axis=0)
            squared = squared - 2.0 * tree.resistance_pu[at] * active
            squared = squared - 2.0 * tree.reactance_pu[at] * reactive
            at = int(tree.parent[at])
        np.testing.assert_allclose(state.voltage_squared[bus], squared, atol=1e-12)


@given(network=networks(has_limits=True), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_row_says_what_the_state_says(network: Network, seed: int, data: st.DataObject) -> None:
    demand_p, demand_q = _demands(network, seed)
    rng = np.random.default_rng(seed)
    change = Correction(*(rng.uniform(0.0, 0.02, demand_p.shape) for _ in range(3)))
    limits = replace(
        Limits.of(network), correction=data.draw(st.sampled_from([None, change]), label="corrected")
    )
    state = flows(network.tree, demand_p, demand_q)
    excess = limits.excess(state)
    numbers = np.flatnonzero(np.isfinite(excess).all(axis=1))
    number = int(data.draw(st.sampled_from(numbers.tolist())))
    on_p, on_q, bound = limits.row(number)
    bounds = bound - np.array([limits.narrowing(number, t) for t in range(3)])
    by_row = on_p @ demand_p + on_q @ demand_q - bounds
    np.testing.assert_allclose(by_row, excess[number], atol=1e-12)
    # Some intervals on their own are told the same.
    held = np.array([2, 0])
    part = limits.excess(flows(network.tree, demand_p[:, held], demand_q[:, held]), held)
    np.testing.assert_allclose(part, excess[:, held], atol=1e-12)
    assert limits.describe(number)[1] != network.tree.root


def test_the_margin_narrows_both_limits() -> None:
    network = _limited()
    limits, wide = Limits.of(network), Limits.of(network, margin_pu=0.0)
    assert limits.squared_min == (0.95 + 0.002) ** 2
    assert limits.squared_max == (1.05 - 0.002) ** 2
    assert wide.squared_max == 1.05**2


def _limited() -> Network:
    ends = [BusId("a"), BusId("b")]
    branch = Branch(parent=ends[0], child=ends[1], resistance_pu=0.01, reactance_pu=0.01)
    return Network(
        buses=tuple(Bus(name=name) for name in ends),
        branches=(branch,),
        base_mva=1.0,
        base_kv=10.0,
        slack_bus=ends[0],
        voltage_min_pu=0.95,
        voltage_max_pu=1.05,
        voltage_margin_pu=0.002,
    )
