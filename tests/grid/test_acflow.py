"""The AC sweep against power-grid-model, against Kirchhoff's laws, and against LinDistFlow."""

import dataclasses

import numpy as np
import power_grid_model as pgm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import networks
from veilgrid.grid.acflow import ac_flow, electrical_check
from veilgrid.grid.lindistflow import flows
from veilgrid.grid.network import Network


def _demands(network: Network, seed: int, interval_count: int = 3):
    rng = np.random.default_rng(seed)
    shape = (len(network.buses), interval_count)
    return rng.uniform(-0.4, 0.5, shape), rng.uniform(-0.2, 0.3, shape)


def _oracle(network: Network, demand_p, demand_q, interval: int):
    """Voltages (bus,) and the substation's exchange by power-grid-model, per-unit."""
    count, base = len(network.buses), network.base_mva * 1e6
    volt = network.base_kv * 1e3
    ohm = volt**2 / base
    at = {bus.name: k for k, bus in enumerate(network.buses)}
    node = pgm.initialize_array("input", "node", count)
    node["id"], node["u_rated"] = np.arange(count), volt
    line = pgm.initialize_array("input", "line", len(network.branches))
    line["id"] = 1000 + np.arange(len(line))
    line["from_node"] = [at[branch.parent] for branch in network.branches]
    line["to_node"] = [at[branch.child] for branch in network.branches]
    line["from_status"] = line["to_status"] = 1
    # The oracle cannot hold a branch without impedance: 1e-12 per-unit stands for none.
    line["r1"] = [max(branch.resistance_pu, 1e-12) * ohm for branch in network.branches]
    line["x1"] = [branch.reactance_pu * ohm for branch in network.branches]
    line["c1"] = [b.charging_pu / ohm / (2.0 * np.pi * 50.0) for b in network.branches]
    line["tan1"] = 0.0
    load = pgm.initialize_array("input", "sym_load", count)
    load["id"], load["node"], load["status"] = 2000 + np.arange(count), np.arange(count), 1
    load["type"] = pgm.LoadGenType.const_power
    load["p_specified"] = demand_p[:, interval] * base
    load["q_specified"] = demand_q[:, interval] * base
    source = pgm.initialize_array("input", "source", 1)
    source["id"], source["node"], source["status"] = 3000, at[network.slack_bus], 1
    source["u_ref"], source["sk"] = network.slack_voltage_pu, 1e30
    model = pgm.PowerGridModel(
        {"node": node, "line": line, "sym_load": load, "source": source}, system_frequency=50.0
    )
    result = model.calculate_power_flow(error_tolerance=1e-13, max_iterations=50)
    voltage = result["node"]["u_pu"] * np.exp(1j * result["node"]["u_angle"])
    exchange = (result["source"]["p"] + 1j * result["source"]["q"])[0] / base
    return voltage, exchange


@settings(max_examples=60)
@given(network=networks(bus_count_max=12), seed=st.integers(0, 2**32 - 1))
def test_voltages_and_exchange_equal_power_grid_model(network: Network, seed: int) -> None:
    network = dataclasses.replace(
        network,
        branches=tuple(
            dataclasses.replace(b, resistance_pu=max(b.resistance_pu, 1e-4))
            for b in network.branches
        ),
    )
    demand_p, demand_q = _demands(network, seed)
    state = ac_flow(network.tree, demand_p, demand_q)
    assert state.is_converged.all()
    for interval in range(demand_p.shape[1]):
        voltage, exchange = _oracle(network, demand_p, demand_q, interval)
        assert np.abs(state.voltage[:, interval] - voltage).max() < 1e-11
        assert abs(state.power[network.tree.root, interval] - exchange) < 1e-9


@given(network=networks(), seed=st.integers(0, 2**32 - 1))
def test_kirchhoff_holds_at_every_bus(network: Network, seed: int) -> None:
    demand_p, demand_q = _demands(network, seed)
    state, tree = ac_flow(network.tree, demand_p, demand_q), network.tree
    half = 0.5j * tree.charging_pu
    for bus in range(len(tree)):
        above = int(tree.parent[bus])
        if above < 0:
            continue
        drop = (tree.resistance_pu[bus] + 1j * tree.reactance_pu[bus]) * state.current[bus]
        gap = state.voltage[above] - state.voltage[bus] - drop
        assert np.abs(gap).max() < 1e-12
        below = [child for child in range(len(tree)) if tree.parent[child] == bus]
        leaving = sum((state.current[c] + half[c] * state.voltage[bus] for c in below), 0j)
        left = state.current[bus] - half[bus] * state.voltage[bus] - leaving
        drawn = state.voltage[bus] * np.conj(left)
        assert np.abs(drawn - demand_p[bus] - 1j * demand_q[bus]).max() < 1e-11
    assert state.mismatch_pu < 1e-11


@given(network=networks(), seed=st.integers(0, 2**32 - 1))
def test_what_comes_in_is_consumed_or_lost(network: Network, seed: int) -> None:
    demand_p, demand_q = _demands(network, seed)
    state = ac_flow(network.tree, demand_p, demand_q)
    exchange = state.power[network.tree.root].real
    np.testing.assert_allclose(exchange, demand_p.sum(axis=0) + state.losses, atol=1e-11)


@given(network=networks(bus_count_max=5), seed=st.integers(0, 2**32 - 1))
def test_small_demands_agree_with_lindistflow(network: Network, seed: int) -> None:
    demand_p, demand_q = (1e-4 * demand for demand in _demands(network, seed))
    network = dataclasses.replace(
        network, branches=tuple(dataclasses.replace(b, charging_pu=0) for b in network.branches)
    )
    exact = ac_flow(network.tree, demand_p, demand_q).magnitude
    linear = np.sqrt(flows(network.tree, demand_p, demand_q).voltage_squared)
    assert np.abs(exact - linear).max() < 1e-8


def _feeder(**limits) -> Network:
    from test_network import _network

    return dataclasses.replace(_network(("a", "b"), ("b", "c")), **limits)


def test_a_collapse_is_an_outcome_that_names_the_interval() -> None:
    network = _feeder()
    demand = np.zeros((3, 3))
    demand[2, 1] = 60.0
    state = ac_flow(network.tree, demand, 0.0 * demand)
    assert state.is_converged.tolist() == [True, False, True]
    check = electrical_check(network, demand, 0.0 * demand)
    assert not check.passed
    assert "interval 1" in check.findings[0].where
    assert check.vm_max_pu == pytest.approx(1.0)


def test_if_nothing_converges_the_check_still_says_so() -> None:
    network = _feeder()
    demand = np.full((3, 2), 60.0)
    check = electrical_check(network, demand, demand)
    assert not check.passed
    assert check.loading_max is None


def test_limits_and_ratings_are_checked_without_the_margin() -> None:
    demand = np.array([[0.0, 0.0], [0.1, 0.0], [1.0, -1.0]])
    magnitude = ac_flow(_feeder().tree, demand, 0.0 * demand).magnitude
    low, high = float(magnitude.min()), float(magnitude.max())
    exact = _feeder(voltage_min_pu=low, voltage_max_pu=high, voltage_margin_pu=0.01)
    check = electrical_check(exact, demand, 0.0 * demand)
    assert check.passed
    assert (check.vm_min_pu, check.vm_max_pu) == (low, high)
    tight = _feeder(voltage_min_pu=low + 1e-5, voltage_max_pu=high - 1e-5)
    wheres = [finding.where for finding in electrical_check(tight, demand, 0.0 * demand).findings]
    assert wheres == ["bus c, interval 0", "bus c, interval 1"]
    rated = dataclasses.replace(tight.branches[1], rating_mva=0.9)
    network = _feeder(branches=(tight.branches[0], rated))
    check = electrical_check(network, demand, 0.0 * demand)
    assert [finding.where for finding in check.findings] == ["branch b->c, interval 0"]
    assert check.loading_max == pytest.approx(1.0 / 0.9, rel=0.05)


@given(network=networks(bus_count_max=5), seed=st.integers(0, 2**32 - 1), share=st.data())
def test_a_limit_passed_by_a_hair_is_found_and_one_just_kept_is_not(network, seed, share) -> None:
    demand_p, demand_q = _demands(network, seed)
    tree = network.tree
    state = ac_flow(tree, demand_p, demand_q)
    child = share.draw(st.sampled_from([bus for bus in range(len(tree)) if bus != tree.root]))
    # Loading is relative to the rating: with an enormous one it gives the power that flows.
    names = [bus.name for bus in network.buses]
    at = [branch.child for branch in network.branches].index(names[child])

    def rated(rating_mva: float) -> Network:
        branches = list(network.branches)
        branches[at] = dataclasses.replace(branches[at], rating_mva=rating_mva)
        return dataclasses.replace(network, branches=tuple(branches))

    huge = 1e6 * network.base_mva
    flow = ac_flow(rated(huge).tree, demand_p, demand_q).loading[child].max() * huge
    magnitude = state.magnitude[child].max()
    for factor, is_kept in ((1.0 + 1e-5, True), (1.0 - 1e-5, False)):
        assert electrical_check(rated(flow * factor), demand_p, demand_q).passed == is_kept
        limited = dataclasses.replace(network, voltage_max_pu=magnitude * factor)
        found = electrical_check(limited, demand_p, demand_q).findings
        here = f"bus {names[child]}, "
        assert any(finding.where.startswith(here) for finding in found) != is_kept
