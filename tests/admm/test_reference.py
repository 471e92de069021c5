"""The two oracles against independent formulations, and against published figures."""

from dataclasses import replace

import numpy as np
import pytest
from admm_oracle import ALONE, OPTIMA, full_solution, in_other_units, scale_of, shuffled, tightened
from admm_oracle import yingkou as read
from hypothesis import given, settings
from scipy import sparse

from strategies import scenarios
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.reference import alone, central, least_violation, stack
from veilgrid.errors import InputError
from veilgrid.grid.device import Battery
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.scenario import Scenario
from veilgrid.qp.problem import QuadraticProgram, SolveStatus
from veilgrid.qp.solve import solve
from veilgrid.report.folders import open_scenario


@given(scenario=scenarios(has_limits=True))
@settings(max_examples=40)
def test_central_is_the_optimum_of_the_explicit_formulation(scenario: Scenario) -> None:
    """Rows in terms of net demands must say what flows and voltages written out say."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    found = central(day, limits)
    oracle, optimum = full_solution(scenario, scenario.network.voltage_margin_pu)
    if oracle.status is SolveStatus.INFEASIBLE:
        assert found.status is RunStatus.INFEASIBLE
        assert found.violations
        return
    assert oracle.status is SolveStatus.OPTIMAL
    assert found.status is RunStatus.CONVERGED
    assert day.cost(found.setpoints) == pytest.approx(optimum, abs=1e-6 * scale_of(scenario))
    if not limits.are_absent:
        assert limits.excess(day.flows(found.setpoints)).max() <= 1e-6
    assert not least_violation(day, limits)


def test_central_of_a_day_where_voltages_and_ratings_bind_is_the_explicit_optimum() -> None:
    scenario = open_scenario("six-bus")
    branches = tuple(
        replace(b, rating_mva=0.8) if b.child in ("farm", "village") else b
        for b in scenario.network.branches
    )
    network = replace(scenario.network, branches=branches, voltage_max_pu=1.02)
    scenario = replace(scenario, network=network)
    day, limits = scenario.day(), Limits.of(scenario.network)
    found = central(day, limits)
    excess = limits.excess(day.flows(found.setpoints))
    kinds = {limits.describe(int(row))[0] for row in np.flatnonzero(excess.max(axis=1) > -1e-6)}
    assert {"voltage_max", "rating"} <= kinds
    _, optimum = full_solution(scenario, scenario.network.voltage_margin_pu)
    assert day.cost(found.setpoints) == pytest.approx(optimum, rel=1e-6)


@given(scenario=scenarios())
@settings(max_examples=30)
def test_alone_is_each_site_by_itself(scenario: Scenario) -> None:
    """A stacked solve that coupled two sites would give one of them the other's flexibility."""
    day = scenario.day()
    found = alone(day)
    assert found.status is RunStatus.CONVERGED
    for index, site in enumerate(day.sites):
        own, count = stack([site]), day.interval_count
        wide = len(site.linear)
        meet = np.hstack([site.inject_p.toarray(), np.eye(count), -np.eye(count)])
        rest = np.hstack([np.zeros((2 * count, wide)), np.eye(2 * count)])
        top = np.hstack([own.matrix.toarray(), np.zeros((len(own.lower), 2 * count))])
        problem = QuadraticProgram(
            quadratic=sparse.diags(np.array([*site.quadratic, *np.zeros(2 * count)]), format="csc"),
            linear=np.concatenate([site.linear, day.buy, -day.sell]),
            matrix=sparse.csc_matrix(np.vstack([top, meet, rest])),
            lower=np.concatenate([own.lower, site.load_p, np.zeros(2 * count)]),
            upper=np.concatenate([own.upper, site.load_p, np.full(2 * count, np.inf)]),
        )
        best = problem.objective(solve(problem, "piqp").x)
        x = found.setpoints[index]
        ours = site.cost(x) + day.exchange_cost(site.demand_p(x))
        assert ours == pytest.approx(best, abs=1e-6 * scale_of(scenario))


@given(scenario=scenarios())
@settings(max_examples=25)
def test_planning_together_never_costs_more_than_alone(scenario: Scenario) -> None:
    """Without limits everybody's own plan is one of the plans that the operator may choose."""
    day = scenario.day()
    own = alone(day)
    apart = sum(
        site.cost(x) + day.exchange_cost(site.demand_p(x))
        for site, x in zip(day.sites, own.setpoints, strict=True)
    )
    together = day.cost(central(day, Limits.of(scenario.network)).setpoints)
    assert together <= apart + 1e-6 * scale_of(scenario)


@pytest.mark.parametrize("day", sorted(OPTIMA))
def test_published_days_cost_what_an_independent_solver_found(day: str) -> None:
    """Figures of model.md 8, to one part in a million."""
    scenario = read(day)
    model = scenario.day()
    together = central(model, Limits.of(scenario.network))
    assert model.cost(together.setpoints) == pytest.approx(OPTIMA[day], rel=1e-6)
    apart = sum(
        site.cost(x) + model.exchange_cost(site.demand_p(x))
        for site, x in zip(model.sites, alone(model).setpoints, strict=True)
    )
    assert apart == pytest.approx(ALONE[day], rel=1e-6)


def test_a_published_day_with_binding_limits_costs_what_an_independent_solver_found() -> None:
    scenario = tightened(read("09"), 3.0, 0.94, 1.05)
    day = scenario.day()
    found = central(day, Limits.of(scenario.network))
    assert day.cost(found.setpoints) == pytest.approx(39016.65, rel=1e-6)


def test_an_infeasible_day_names_bus_and_interval() -> None:
    """A person must learn which limit to relax, and by how much."""
    scenario = tightened(read("09"), 3.0, 0.96, 1.05)
    day, limits = scenario.day(), Limits.of(scenario.network)
    found = central(day, limits)
    assert found.status is RunStatus.INFEASIBLE
    assert found.setpoints == []
    assert found.violations
    for row, interval, amount in found.violations:
        kind, bus = limits.describe(row)
        assert kind == "voltage_min"
        assert scenario.network.buses[bus].kind != "slack"
        assert 0 <= interval < day.interval_count
        assert amount > 0.0
    # Relaxing the limit by what was named makes the day feasible.
    deepest = max(amount for *_, amount in found.violations)
    assert limits.squared_min is not None
    wider = replace(limits, squared_min=limits.squared_min - deepest - 1e-6)
    assert central(day, wider).status is RunStatus.CONVERGED


def test_a_site_that_contradicts_itself_is_named_with_its_device() -> None:
    scenario = open_scenario("six-bus")
    broken = Battery(
        name="broken",
        bus=scenario.network.buses[1].name,
        charge_max_mw=0.01,
        discharge_max_mw=0.01,
        energy_max_mwh=10.0,
        energy_final_min_mwh=9.0,
    )
    day = replace(scenario, devices=(*scenario.devices, broken)).day()
    with pytest.raises(InputError) as caught:
        central(day, Limits.of(scenario.network))
    assert [f.where for f in caught.value.findings] == ["site mill, device broken"]


@pytest.mark.parametrize(("currency", "base"), [(7.3, 1.0), (1.0, 10.0), (0.01, 0.1)])
def test_units_do_not_change_the_optimum(currency: float, base: float) -> None:
    """A figure left in the wrong unit would show as another cost."""
    plain = open_scenario("six-bus")
    other = in_other_units(plain, currency, base)
    costs = [s.day().cost(central(s.day(), Limits.of(s.network)).setpoints) for s in (plain, other)]
    assert costs[1] == pytest.approx(currency * costs[0], rel=1e-6)


def test_the_order_of_the_tables_does_not_change_the_optimum() -> None:
    plain = open_scenario("six-bus")
    other = shuffled(plain, 3)
    costs = [s.day().cost(central(s.day(), Limits.of(s.network)).setpoints) for s in (plain, other)]
    assert costs[1] == pytest.approx(costs[0], rel=1e-6)
