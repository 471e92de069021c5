"""Penalties are balanced interval by interval: what is judged, and what it is worth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veilgrid.admm.accelerate import BALANCE_FACTOR, IntervalBalance
from veilgrid.admm.exchange import Balance, ExchangeSettings, plan_exchange
from veilgrid.admm.network_step import NetworkStep
from veilgrid.grid.lindistflow import Limits
from veilgrid.report.folders import open_scenario


@given(seed=st.integers(0, 2**32 - 1))
def test_the_signs_of_sums_over_sites_say_what_the_ratio_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    price, target = np.exp(rng.normal(0.0, 3.0, (2, 5, 8)))  # (site, interval)
    parts = np.array([IntervalBalance.excess(p, t) for p, t in zip(price, target, strict=True)])
    stiffer, softer = parts.sum(axis=0) > 0.0
    ratio = np.sqrt(price.sum(axis=0) / target.sum(axis=0))
    np.testing.assert_array_equal(stiffer, ratio > IntervalBalance.HIGH)
    np.testing.assert_array_equal(softer, ratio < IntervalBalance.LOW)


def test_stiffness_changes_where_asked_and_stays_within_bounds() -> None:
    balance = IntervalBalance(3)
    stiffer, softer = np.array([True, False, False]), np.array([False, True, False])
    for count in range(1, 8):
        assert balance.change(stiffer, softer) == (count <= 2)
    most = BALANCE_FACTOR**IntervalBalance.POWER_MAX
    np.testing.assert_array_equal(balance.stiffness, [most, 1.0 / most, 1.0])


@pytest.mark.parametrize("stiffness", [0.25, 16.0])
def test_a_step_in_stiff_intervals_is_a_step_with_other_penalties(stiffness: float) -> None:
    """The network step knows penalties in two ways; they have to say the same."""
    day = open_scenario("six-bus").day()
    limits, rng = Limits.of(day.network), np.random.default_rng(5)
    give = rng.uniform(0.002, 0.02, (2, len(day.sites)))
    wish = rng.normal(size=(2, len(day.sites), day.interval_count))
    plain = NetworkStep(limits, day.buy, day.sell, *(give / stiffness), 1e4)
    stiff = NetworkStep(limits, day.buy, day.sell, *give, 1e4)
    stiff.stiffen(np.full(day.interval_count, stiffness))
    for found, expected in zip(stiff.project(*wish), plain.project(*wish), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_day_balanced_by_interval_costs_the_same_and_takes_no_longer() -> None:
    day = open_scenario("six-bus").day()
    limits = Limits.of(day.network)
    fixed = plan_exchange(day, limits, ExchangeSettings(balance=Balance.NONE))
    found = plan_exchange(day, limits)
    assert found.status == fixed.status == "converged"
    cost = day.cost(fixed.setpoints)
    assert day.cost(found.setpoints) == pytest.approx(cost, rel=2 * ExchangeSettings().gap_max)
    assert found.iteration_count <= fixed.iteration_count
