"""Money adds up to the last micro-unit, and what is certified is true."""

from dataclasses import replace

import numpy as np
import pytest
from admm_oracle import tightened
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from strategies import scenarios
from veilgrid.admm.certify import DayCertificate, certify, certify_alone, turnover
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.reference import alone, central
from veilgrid.admm.settlement import MICRO, micro, settle, settle_alone
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.report.folders import open_scenario


def settled(scenario: Scenario):
    day, limits = scenario.day(), Limits.of(scenario.network)
    best, others = central(day, limits), alone(day)
    if best.status is not RunStatus.CONVERGED:
        reject()
    found = certify(day, limits, best.setpoints, best.price_p, best.price_q)
    rent = float(found.target.rent.sum())
    target = found.target
    return (
        day,
        best,
        settle(day, best.setpoints, others.setpoints, target.price_p, target.price_q, rent),
    )


@given(scenario=scenarios(has_limits=True))
@settings(max_examples=30)
def test_payments_sum_to_exactly_nothing_and_costs_to_the_cost_of_the_plan(
    scenario: Scenario,
) -> None:
    """A micro-unit lost each day is an account that nobody can audit."""
    day, best, found = settled(scenario)
    assert found.total == 0
    assert all(isinstance(account.payment, int) for account in found.accounts)
    plan = micro(day.cost(best.setpoints))
    assert abs(sum(account.cost for account in found.accounts) - plan) <= len(day.sites)
    apart = sum(account.cost_alone for account in found.accounts)
    own = sum(
        site.cost(x) + day.exchange_cost(site.demand_p(x))
        for site, x in zip(day.sites, alone(day).setpoints, strict=True)
    )
    assert abs(apart - micro(own)) <= len(day.sites)


@given(scenario=scenarios(has_limits=True))
@settings(max_examples=30)
def test_at_the_optimum_the_rent_is_what_binding_rows_collect(scenario: Scenario) -> None:
    """Computed in two ways that share nothing but the prices."""
    day, best, found = settled(scenario)
    optimum = day.cost(best.setpoints)
    rounding = len(day.sites) / MICRO
    apart = abs(found.rent - found.rent_expected) / MICRO
    assert apart <= 1e-4 * turnover(day, optimum) + rounding


def test_binding_limits_make_a_rent_that_the_accounts_show() -> None:
    """On the six-bus day a rating binds: what it collects must not vanish in the sum."""
    day, _, found = settled(open_scenario("six-bus"))
    assert found.rent > MICRO
    assert found.rent == pytest.approx(found.rent_expected, rel=2e-3)
    assert found.total == 0
    substation = found.accounts[day.network.tree.root]
    assert substation.cost == pytest.approx(-found.rent, abs=1)


@given(scenario=scenarios())
@settings(max_examples=25)
def test_without_limits_nobody_is_worse_off_than_alone(scenario: Scenario) -> None:
    """At prices between the tariffs a site's own plan costs at most what it costs alone."""
    day, best, found = settled(scenario)
    optimum = day.cost(best.setpoints)
    worst = max(account.cost - account.cost_alone for account in found.accounts)
    assert worst / MICRO <= 1e-5 * turnover(day, optimum) + 0.01


@given(scenario=scenarios())
@settings(max_examples=20)
def test_contracts_of_those_alone_balance_too(scenario: Scenario) -> None:
    day = scenario.day()
    outcome = alone(day)
    found = settle_alone(day, outcome.setpoints)
    assert found.total == 0
    assert found.rent == pytest.approx(0, abs=len(day.sites))
    root = day.network.tree.root
    for index, account in enumerate(found.accounts):
        if index != root:
            assert abs(account.cost - account.cost_alone) <= 1
    certificate = certify_alone(day, outcome.setpoints, outcome.price_p)
    assert certificate.is_accepted, certificate


@given(amount=st.floats(-1e9, 1e9))
def test_micro_units_are_nearest(amount: float) -> None:
    assert abs(micro(amount) - amount * MICRO) <= 0.5


@given(scenario=scenarios(has_limits=True), data=st.data())
@settings(max_examples=30)
def test_a_plan_shifted_by_one_per_cent_is_refused_or_no_better(
    scenario: Scenario, data: st.DataObject
) -> None:
    """Whatever was changed shows in feasibility or in the gap; nothing hides in both."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    best = central(day, limits)
    assume(best.status is RunStatus.CONVERGED and day.flexible)
    site = data.draw(st.sampled_from(day.flexible))
    wide = day.sites[site].upper - day.sites[site].lower
    place = data.draw(st.integers(0, len(wide) - 1))
    shift = 0.01 * data.draw(st.sampled_from([-1.0, 1.0])) * float(wide[place])
    assume(abs(shift) > 1e-5)
    setpoints = [x.copy() for x in best.setpoints]
    setpoints[site][place] += shift
    found = certify(day, limits, setpoints, best.price_p, best.price_q).certificate
    optimum = day.cost(best.setpoints)
    assert found.cost == pytest.approx(day.cost(setpoints))
    assert found.bound <= optimum + 1e-6 * max(1.0, abs(optimum))
    if found.is_accepted:
        assert abs(found.cost - optimum) <= 1e-3 * turnover(day, optimum)
        assert found.primal <= 1e-6


def test_a_plan_that_wastes_one_per_cent_is_refused() -> None:
    """One per cent of all schedules, on a real feeder, must not pass as optimal."""
    scenario = open_scenario("six-bus")
    day, limits = scenario.day(), Limits.of(scenario.network)
    best = central(day, limits)
    assert certify(day, limits, best.setpoints, best.price_p, best.price_q).certificate.is_accepted
    shifted = [1.01 * x for x in best.setpoints]
    found = certify(day, limits, shifted, best.price_p, best.price_q).certificate
    assert not found.is_accepted


@pytest.mark.parametrize("field", ["primal", "dual", "gap"])
def test_a_certificate_with_a_nan_is_never_accepted(field: str) -> None:
    good = DayCertificate(primal=0.0, dual=0.0, gap=0.0, cost=1.0, bound=1.0)
    assert good.is_accepted
    assert not replace(good, **{field: float("nan")}).is_accepted
    assert not replace(good, **{field: 1.0}).is_accepted


@pytest.mark.parametrize("claimed", [0.0, 1e3, -1e3])
def test_prices_of_a_liar_never_certify_more_than_the_optimum(claimed: float) -> None:
    """The prices of a scheme are only a start: the bound holds for any."""
    scenario = tightened(open_scenario("six-bus"), 1.5, 0.97, 1.03)
    day, limits = scenario.day(), Limits.of(scenario.network)
    best = central(day, limits)
    optimum = day.cost(best.setpoints)
    price = np.full_like(best.price_p, claimed)
    found = certify(day, limits, best.setpoints, price, -price).certificate
    assert found.bound <= optimum + 1e-6 * abs(optimum)
    assert found.dual <= 1e-12
