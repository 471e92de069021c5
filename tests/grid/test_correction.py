"""What LinDistFlow leaves out comes back as narrower limits, no wider and where it is needed."""

from dataclasses import replace

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from strategies import networks
from veilgrid.grid.acflow import ac_flow
from veilgrid.grid.correction import corrected, margin_pu, rating_share
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.network import Network

seeds = st.integers(0, 2**32 - 1)


def drawn(network: Network, seed: int, scale: float):
    rng = np.random.default_rng(seed)
    shape = (len(network.buses), 3)
    demand_p, demand_q = scale * rng.uniform(-0.2, 0.4, shape), scale * rng.uniform(0.0, 0.2, shape)
    exact = ac_flow(network.tree, demand_p, demand_q)
    assume(bool(exact.is_converged.all()))
    return demand_p, demand_q, exact


@given(network=networks(has_limits=True), seed=seeds, scale=st.sampled_from([0.3, 1.0, 3.0]))
def test_a_plan_that_ac_refuses_is_outside_the_corrected_limits(
    network: Network, seed: int, scale: float
) -> None:
    """Were it inside, planning again would come back with the same plan for ever."""
    network = replace(network, voltage_margin_pu=0.0)
    demand_p, demand_q, exact = drawn(network, seed, scale)
    limits = corrected(network, Limits.of(network), demand_p, demand_q)
    excess = limits.excess(flows(network.tree, demand_p, demand_q))
    count = len(network.buses)
    others = np.arange(count) != network.tree.root
    low, high = network.voltage_min_pu, network.voltage_max_pu
    assert low is not None
    assert high is not None
    short = (exact.magnitude < low) & others[:, np.newaxis]
    over = (exact.magnitude > high) & others[:, np.newaxis]
    assert (excess[:count][short] > 0.0).all()
    assert (excess[count : 2 * count][over] > 0.0).all()


@given(network=networks(has_limits=True), seed=seeds, scale=st.sampled_from([0.3, 1.0, 3.0]))
def test_limits_only_become_narrower(network: Network, seed: int, scale: float) -> None:
    """A network's own margin is a promise; AC being kinder than LinDistFlow must not undo it."""
    demand_p, demand_q, _ = drawn(network, seed, scale)
    first = corrected(network, Limits.of(network), demand_p, demand_q)
    second = corrected(network, first, 0.5 * demand_p, 0.5 * demand_q)
    assert first.correction is not None
    assert second.correction is not None
    for part, later in zip(first.correction, second.correction, strict=True):
        assert (part >= 0.0).all()
        assert (later >= part).all()
    assert margin_pu(network, first) >= network.voltage_margin_pu - 1e-9
    assert 0.0 < rating_share(network, Limits.of(network)) == 1.0
    assert rating_share(network, second) <= rating_share(network, first) <= 1.0


@given(network=networks(has_limits=True), seed=seeds)
def test_a_plan_on_its_limit_by_ac_is_on_the_corrected_limit(network: Network, seed: int) -> None:
    """The correction gives nothing away: what AC calls exactly at its limit stays allowed."""
    demand_p, demand_q, exact = drawn(network, seed, 1.0)
    bus, interval = np.unravel_index(int(exact.magnitude.argmin()), exact.magnitude.shape)
    assume(bus != network.tree.root)
    touched = replace(
        network, voltage_min_pu=float(exact.magnitude[bus, interval]), voltage_margin_pu=0.0
    )
    limits = corrected(touched, Limits.of(touched), demand_p, demand_q)
    excess = limits.excess(flows(touched.tree, demand_p, demand_q))
    linear = flows(touched.tree, demand_p, demand_q).voltage_squared[bus, interval]
    assume(linear > exact.magnitude[bus, interval] ** 2)  # Else LinDistFlow is the stricter one.
    assert 0.0 < excess[bus, interval] <= 1e-5
