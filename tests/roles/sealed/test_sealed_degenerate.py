"""Networks and bids whose numbers are far from all others': they neither stop nor loosen a day."""

from dataclasses import replace

import numpy as np
import pytest

from veilgrid.admm.certify import turnover
from veilgrid.admm.exchange import plan_exchange
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.reference import central
from veilgrid.grid.device import Generator
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.mpc.field import decode
from veilgrid.mpc.plain import Plain
from veilgrid.roles.sealed.day import SETTINGS, PublicDay, plan_sealed
from veilgrid.roles.sealed.step_dual import ENTRY_MAX, Duals
from veilgrid.roles.sealed.step_set import FREE, ActiveSet
from veilgrid.secret import SeededRandomness

from .sealed_days import small


def with_impedances(scenario: Scenario, near_pu: float, far_pu: float) -> Scenario:
    """Give the first two branches one impedance and all others another one."""
    network = scenario.network
    branches = tuple(
        replace(one, resistance_pu=value, reactance_pu=value)
        for one, value in zip(network.branches, (near_pu, near_pu, far_pu, far_pu), strict=True)
    )
    return replace(scenario, network=replace(network, branches=branches))


def behind_a_switch(near_pu: float) -> Scenario:
    """Put all devices behind a switch, and load that exceeds a limit far beyond it."""
    scenario = with_impedances(small(2, low=0.985), near_pu, 0.02)
    bus = scenario.network.buses[1].name
    return replace(scenario, devices=tuple(replace(one, bus=bus) for one in scenario.devices))


def below_the_limit(near_pu: float) -> Scenario:
    """Let the substation itself be below the limit, and the first bus be all but the same place."""
    scenario = with_impedances(small(2, low=0.981), near_pu, 2e-4)
    return replace(scenario, network=replace(scenario.network, slack_voltage_pu=0.98))


@pytest.mark.parametrize(
    "scenario",
    [behind_a_switch(1e-7), behind_a_switch(0.0), below_the_limit(1e-10), below_the_limit(0.0)],
)
def test_a_limit_that_nothing_moves_is_told_and_stops_no_machine(scenario: Scenario) -> None:
    """The factors of its row did not fit, and every party's machine ended with an error."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    settings = replace(SETTINGS, iteration_count_max=20)
    found = plan_sealed(day, limits, randomness=SeededRandomness(1), settings=settings)
    assert central(day, limits).status is RunStatus.INFEASIBLE
    assert found.status is RunStatus.INFEASIBLE
    assert found.violations
    assert found.opened["excluded"] == {}


def test_rows_that_all_but_span_each_other_keep_the_signs_of_their_strengths() -> None:
    """Their inverse is too large to be written down, and only the signs are asked for."""
    scenario = small(2, low=0.97)
    network = scenario.network
    last = replace(network.branches[3], resistance_pu=1e-9, reactance_pu=1e-9)
    network = replace(network, branches=(*network.branches[:3], last))
    register = PublicDay.of(replace(scenario, network=network).day(), Limits.of(network)).register
    # Two ends of one wire, one of them at its lower and the other at its upper limit.
    lower, upper = 3, register.bus_count + 4
    mpc = Plain()
    wishes = mpc.constant([2**31] * (register.bus_count * register.interval_count))
    duals = Duals(mpc, register, wishes, wishes)
    found = duals.rough(ActiveSet([FREE, FREE], [{lower: FREE, upper: FREE}, {}]))
    dual = duals.ready[0].dual
    exact = 0.5 * (dual.map_p.sum(axis=1) + dual.map_q.sum(axis=1)) + dual.offset
    assert np.abs(exact[1:]).min() > ENTRY_MAX * register.unit
    signs = [1 if value > 0 else -1 for value in decode(found)[:3]]
    np.testing.assert_array_equal(signs, np.sign(exact))


@pytest.mark.parametrize("sell", [0.0, -10.0])
def test_limits_count_where_energy_is_free(sell: float) -> None:
    """Without a tariff their strength had a ceiling of zero, and no plan kept them."""
    scenario = small(2, low=0.975)
    scenario = replace(
        scenario,
        load_p_mw=1.2 * scenario.load_p_mw,
        buy=np.zeros(2),
        sell=np.full(2, sell),
    )
    day, limits = scenario.day(), Limits.of(scenario.network)
    best = day.cost(central(day, limits).setpoints)
    plain = plan_exchange(day, limits)
    assert plain.status is RunStatus.CONVERGED
    assert day.cost(plain.setpoints) == pytest.approx(best, rel=2e-4)
    found = plan_sealed(day, limits, randomness=SeededRandomness(1))
    assert found.status is RunStatus.CONVERGED
    if not found.refused:
        assert day.cost(found.setpoints) == pytest.approx(best, rel=2e-4)


def test_a_dear_device_that_has_to_run_does_not_widen_what_others_may_miss() -> None:
    """Without a ceiling of the gap the plan ended 0.055 above the optimum, in iteration 7."""
    scenario = small(4, low=0.97)
    bus = scenario.network.buses[3].name
    dear = Generator(name="dear", bus=bus, p_min_mw=0.01, p_max_mw=0.01, cost_linear=4e5)
    scenario = replace(scenario, devices=(*scenario.devices, dear))
    day, limits = scenario.day(), Limits.of(scenario.network)
    public = PublicDay.of(day, limits, SETTINGS)
    found = plan_sealed(day, limits, randomness=SeededRandomness(1))
    assert found.status is RunStatus.CONVERGED
    above = day.cost(found.setpoints) - day.cost(central(day, limits).setpoints)
    loads = 100.0 * turnover(day, 0.0)
    assert public.tolerances.allowed(1e9) * public.register.unit <= 2.56 * SETTINGS.gap_max * loads
    assert above <= public.tolerances.allowed(1e9) * public.register.unit
