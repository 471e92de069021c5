"""Neighbours reach the optimum of the whole, keep the limits, and do not mind names or units."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import optimize

from strategies import scenarios
from veilgrid.admm._neighbour_local import polygon, polygon_minimum
from veilgrid.admm._neighbour_message import unpacked
from veilgrid.admm._neighbour_mix import Blender, Trail
from veilgrid.admm._neighbour_network import Substation, worst_of
from veilgrid.admm._neighbour_sweep import Agreement
from veilgrid.admm.accelerate import GuardedAnderson
from veilgrid.admm.neighbour import NeighbourSettings, plan_neighbour
from veilgrid.admm.network_step import NetworkStep
from veilgrid.admm.outcome import Progress, RunStatus
from veilgrid.admm.reference import central
from veilgrid.errors import InputError
from veilgrid.grid.device import Battery
from veilgrid.grid.lindistflow import Flows, Limits, flows
from veilgrid.grid.network import BusId
from veilgrid.grid.scenario import Scenario

YINGKOU = Path(__file__).parents[3] / "shared" / "scenarios"
OPTIMA = {"06": 39593.86, "07": 44202.52, "08": 44781.68, "09": 39014.01}


def yingkou(day: str) -> Scenario:
    folder = YINGKOU / f"yingkou-2023-11-{day}"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: its publisher gave no licence to ship it")
    return Scenario.read(folder)


def bundled(name: str) -> Scenario:
    return Scenario.read(Path(__file__).parents[2] / "scenarios" / name)


def sunny(scenario: Scenario, factor: float) -> Scenario:
    """More sun: the feeder exports, prices lie between the two tariffs."""
    devices = tuple(
        replace(device, available_mw=device.available_mw * factor)
        if hasattr(device, "available_mw")
        else device
        for device in scenario.devices
    )
    return replace(scenario, devices=devices)


def tightened(scenario: Scenario, impedance: float, low: float, high: float) -> Scenario:
    branches = tuple(
        replace(
            branch,
            resistance_pu=branch.resistance_pu * impedance,
            reactance_pu=branch.reactance_pu * impedance,
        )
        for branch in scenario.network.branches
    )
    network = replace(scenario.network, branches=branches, voltage_min_pu=low, voltage_max_pu=high)
    return replace(scenario, network=network)


def gap(scenario: Scenario, **chosen: float) -> tuple[float, int]:
    """Relative cost above the optimum, and iterations; the plan must keep all limits."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    best = central(day, limits)
    outcome = plan_neighbour(day, limits, NeighbourSettings(**chosen))
    assert outcome.status is RunStatus.CONVERGED
    assert limits.excess(day.flows(outcome.setpoints)).max() <= 1e-6
    optimum = day.cost(best.setpoints)
    unit = max(abs(optimum), float(np.abs(day.buy).max()))
    return (day.cost(outcome.setpoints) - optimum) / unit, outcome.iteration_count


@pytest.mark.parametrize("day", sorted(OPTIMA))
def test_published_days_are_planned_at_the_optimum(day: str) -> None:
    scenario = yingkou(day)
    model, limits = scenario.day(), Limits.of(scenario.network)
    outcome = plan_neighbour(model, limits)
    assert outcome.status is RunStatus.CONVERGED
    assert outcome.iteration_count <= 250
    assert outcome.history[-1].primal <= 1e-3
    assert model.cost(outcome.setpoints) == pytest.approx(OPTIMA[day], rel=2e-6)
    np.testing.assert_allclose(outcome.price_p, np.tile(model.buy, (60, 1)), atol=0.05)


def test_binding_voltage_limits_are_met_at_the_optimum() -> None:
    scenario = tightened(yingkou("09"), 3.0, 0.94, 1.05)
    above, iterations = gap(scenario)
    assert abs(above) <= 1e-4
    assert iterations <= 60
    above, iterations = gap(scenario, gap_max=1e-5)
    assert abs(above) <= 2e-5
    assert iterations <= 100


def test_binding_ratings_are_met_at_the_optimum() -> None:
    scenario = yingkou("09")
    branches = tuple(
        replace(branch, rating_mva=3.3 if branch.parent in ("0", "4") else np.inf)
        for branch in scenario.network.branches
    )
    scenario = replace(scenario, network=replace(scenario.network, branches=branches))
    above, iterations = gap(scenario, gap_max=1e-5)
    assert abs(above) <= 2e-5
    assert iterations <= 80


def test_export_and_curtailment_are_found() -> None:
    above, iterations = gap(sunny(yingkou("09"), 5.0))
    assert abs(above) <= 2e-5
    assert iterations <= 60


@pytest.mark.parametrize(("factor", "base"), [(7.3, 1.0), (1.0, 10.0)])
def test_units_do_not_change_the_way(factor: float, base: float) -> None:
    """Penalties and tolerances follow the day's own price and power."""
    plain = tightened(yingkou("09"), 3.0, 0.94, 1.05)
    ratio = base / plain.network.base_mva
    branches = tuple(
        replace(
            branch,
            resistance_pu=branch.resistance_pu * ratio,
            reactance_pu=branch.reactance_pu * ratio,
            charging_pu=branch.charging_pu / ratio,
        )
        for branch in plain.network.branches
    )
    devices = tuple(
        replace(
            device,
            cost_linear=device.cost_linear * factor,
            cost_quadratic=device.cost_quadratic * factor,
        )
        if hasattr(device, "cost_linear")
        else device
        for device in plain.devices
    )
    other = replace(
        plain,
        network=replace(plain.network, branches=branches, base_mva=base),
        devices=devices,
        buy=plain.buy * factor,
        sell=plain.sell * factor,
    )
    one, two = (plan_neighbour(s.day(), Limits.of(s.network)) for s in (plain, other))
    assert one.status is two.status is RunStatus.CONVERGED
    assert abs(one.iteration_count - two.iteration_count) <= 5
    assert two.history[-1].cost == pytest.approx(factor * one.history[-1].cost, rel=1e-4)


def test_order_of_buses_does_not_matter() -> None:
    scenario = bundled("six-bus")
    count = len(scenario.network.buses)
    order = np.random.default_rng(3).permutation(count)
    shuffled = replace(
        scenario,
        network=replace(
            scenario.network,
            buses=tuple(scenario.network.buses[k] for k in order),
            branches=scenario.network.branches[::-1],
        ),
        load_p_mw=scenario.load_p_mw[order],
        load_q_mvar=scenario.load_q_mvar[order],
    )
    one, two = (plan_neighbour(s.day(), Limits.of(s.network)) for s in (scenario, shuffled))
    assert one.status is two.status is RunStatus.CONVERGED
    assert two.history[-1].cost == pytest.approx(one.history[-1].cost, rel=1e-4)


def test_the_network_step_by_sweeps_is_the_network_step() -> None:
    """Row excesses summed up and prices sent down give what one party with all wishes computes."""
    scenario = tightened(bundled("six-bus"), 3.0, 0.985, 1.01)
    day, limits = scenario.day(), Limits.of(scenario.network)
    agreement = Agreement.of(day, limits, NeighbourSettings())
    network = agreement.network(1.0)
    swept = Substation(network, day.buy, day.sell, agreement.strength_max)
    whole = NetworkStep(
        limits, day.buy, day.sell, network.give_p, network.give_q, agreement.strength_max
    )
    rng = np.random.default_rng(4)
    own = np.array(day.demands(day.load_only))
    for budget in (0.0, 1e-3, 1e-2):
        swept.tighten(budget)
        whole.tighten(budget)
        give = np.stack([network.give_p, network.give_q])[:, :, np.newaxis]
        wish = own + give * rng.uniform(-2.0, 2.0, own.shape) * float(day.buy.max())
        wished = limits.excess(flows(limits.tree, wish[0], wish[1]))
        at = swept.at
        at = swept.begin(wish[0].sum(axis=0), wished[at.numbers, at.intervals])
        used = np.flatnonzero(np.isfinite(wished).all(axis=1))
        while True:
            target = wish - give * np.stack(network.nodal(at))
            excess = limits.excess(flows(limits.tree, target[0], target[1]))
            if not swept.add(worst_of(used, excess[used], wished[used], at)):
                break
            at = swept.at
        found = whole.project(wish[0], wish[1])
        assert len(at.numbers)
        np.testing.assert_allclose(target[0], found.target_p, atol=1e-9)
        np.testing.assert_allclose(target[1], found.target_q, atol=1e-9)
        assert swept.rent() == pytest.approx(float(found.rent.sum()), rel=1e-9, abs=1e-9)
        for bus in range(len(day.sites)):
            here = Flows(*(part[bus] for part in flows(limits.tree, wish[0], wish[1])))
            state = network.shifted(bus, here, *network.nodal(at))
            numbers, mine = network.own_excess(bus, state)
            np.testing.assert_allclose(mine, excess[numbers], atol=1e-12)
            assert all(network.is_row(int(number)) for number in numbers)


@given(seed=st.integers(0, 2**32 - 1), memory=st.integers(1, 6), interval=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_mixing_from_inner_products_is_mixing_of_vectors(
    seed: int, memory: int, interval: int
) -> None:
    """What sites do with the substation's weights is what one party with all vectors would do."""
    rng = np.random.default_rng(seed)
    turn = 0.9 * np.linalg.qr(rng.normal(size=(6, 6)))[0]
    aim = rng.normal(size=6)
    whole = GuardedAnderson(memory, interval)
    blender, trails = Blender(memory, interval), [Trail(memory), Trail(memory)]
    one = rng.normal(size=6)
    parts = [one[:2].copy(), one[2:].copy()]
    for k in range(20):
        shift = 3.0 if k == 11 else 0.0  # a jump, which takes a mixture back
        step = turn @ one + aim + shift - one
        other = np.concatenate(parts)
        pieces = turn @ other + aim + shift - other
        rows = [
            t.push(p, s) for t, p, s in zip(trails, parts, (pieces[:2], pieces[2:]), strict=True)
        ]
        blend = blender.blend(rows[0][0] + rows[1][0], rows[0][1] + rows[1][1])
        assert all(trail.fits(blend) for trail in trails)
        parts = [trail.follow(blend) for trail in trails]
        one = whole.mix(one, step)
        np.testing.assert_allclose(
            np.concatenate(parts), one, atol=1e-6 * (1.0 + np.abs(one).max())
        )
        parts = [one[:2].copy(), one[2:].copy()]


def test_settled_multipliers_pay_each_other_and_price_each_site() -> None:
    """With one multiplier an edge, what one end pays the other gets; prices are the oracle's."""
    scenario = tightened(yingkou("09"), 3.0, 0.94, 1.05)
    day, limits = scenario.day(), Limits.of(scenario.network)
    outcome = plan_neighbour(day, limits, NeighbourSettings(gap_max=1e-7))
    best = central(day, limits)
    np.testing.assert_allclose(outcome.price_p, best.price_p, atol=0.01 * float(day.buy.max()))
    np.testing.assert_allclose(outcome.price_q, best.price_q, atol=0.01 * float(day.buy.max()))
    state = outcome.warm
    # Where no limit acts on the flow itself, the parent's nodal price is the flow's multiplier.
    for row, parent in enumerate(state.parent):
        np.testing.assert_allclose(
            state.multiplier[row, :2], state.price[parent], atol=0.02 * float(day.buy.max())
        )


def test_start_from_the_last_day_does_no_harm() -> None:
    scenario = tightened(yingkou("09"), 3.0, 0.94, 1.05)
    day, limits = scenario.day(), Limits.of(scenario.network)
    first = plan_neighbour(day, limits)
    second = plan_neighbour(day, limits, start=first.warm)
    assert second.status is RunStatus.CONVERGED
    assert second.iteration_count <= first.iteration_count + 5


@given(scenario=scenarios(has_limits=True))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_said_to_have_converged_is_at_the_optimum(scenario: Scenario) -> None:
    """Every kind of device, limits, charging, any base: cost of the central optimum.

    Neighbours do not converge on every day within their limit of iterations; then they say so.
    """
    day, limits = scenario.day(), Limits.of(scenario.network)
    best = central(day, limits)
    if best.status is not RunStatus.CONVERGED:
        return
    settings = NeighbourSettings(tolerance=1e-4, iteration_count_max=300)
    outcome = plan_neighbour(day, limits, settings)
    if outcome.status is RunStatus.ITERATION_LIMIT:
        assert outcome.iteration_count == 300
        return
    assert outcome.status is RunStatus.CONVERGED
    optimum = day.cost(best.setpoints)
    size = float(np.abs(day.buy).sum() * max(s.load_p.max() for s in day.sites))
    assert abs(day.cost(outcome.setpoints) - optimum) <= 1e-3 * max(abs(optimum), size, 1e-6)
    if not limits.are_absent:
        assert limits.excess(day.flows(outcome.setpoints)).max() <= 1e-6


def test_a_load_behind_too_small_a_branch_is_infeasible() -> None:
    scenario = bundled("six-bus")
    names = [bus.name for bus in scenario.network.buses]
    bus = names.index(BusId("depot"))
    branches = tuple(
        replace(branch, rating_mva=1e-3) if branch.child == "depot" else branch
        for branch in scenario.network.branches
    )
    load = scenario.load_p_mw.copy()
    load[bus] = 0.1
    scenario = replace(
        scenario,
        devices=tuple(device for device in scenario.devices if device.bus != "depot"),
        network=replace(scenario.network, branches=branches),
        load_p_mw=load,
    )
    limits = Limits.of(scenario.network)
    outcome = plan_neighbour(scenario.day(), limits)
    assert outcome.status is RunStatus.INFEASIBLE
    assert {limits.describe(row) for row, _, _ in outcome.violations} == {("rating", bus)}


def test_a_day_without_a_plan_ends_at_the_limit_and_says_so() -> None:
    scenario = tightened(yingkou("09"), 3.0, 0.96, 1.05)
    outcome = plan_neighbour(
        scenario.day(), Limits.of(scenario.network), NeighbourSettings(iteration_count_max=30)
    )
    assert outcome.status is RunStatus.ITERATION_LIMIT
    assert outcome.iteration_count == 30


def test_a_site_that_contradicts_itself_is_named() -> None:
    scenario = bundled("six-bus")
    bus = scenario.network.buses[1].name
    broken = Battery(
        name="broken",
        bus=bus,
        charge_max_mw=0.01,
        discharge_max_mw=0.01,
        energy_max_mwh=10.0,
        energy_final_min_mwh=9.0,
    )
    scenario = replace(scenario, devices=(*scenario.devices, broken))
    with pytest.raises(InputError, match="broken"):
        plan_neighbour(scenario.day(), Limits.of(scenario.network))


def test_progress_is_told_each_iteration() -> None:
    scenario = bundled("six-bus")
    seen: list[Progress] = []
    outcome = plan_neighbour(scenario.day(), Limits.of(scenario.network), progress=seen.append)
    assert tuple(seen) == outcome.history
    assert [entry.iteration for entry in seen] == list(range(1, len(seen) + 1))
    assert outcome.byte_count > 0


@given(
    seed=st.integers(0, 2**32 - 1),
    reach=st.floats(0.1, 2.0),
)
@settings(max_examples=30, deadline=None)
def test_polygon_minimum_is_the_minimum(seed: int, reach: float) -> None:
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(2, 2))
    hessian = root @ root.T + 0.1 * np.eye(2)
    linear = 3.0 * rng.normal(size=2)
    found = polygon_minimum(hessian[np.newaxis], linear[:, np.newaxis], reach)[:, 0]
    sides = polygon()
    assert (sides @ found).max() <= reach + 1e-9

    def value(y: np.ndarray) -> float:
        return float(0.5 * y @ hessian @ y - linear @ y)

    oracle = optimize.minimize(
        value,
        np.zeros(2),
        jac=lambda y: hessian @ y - linear,
        constraints={"type": "ineq", "fun": lambda y: reach - sides @ y, "jac": lambda _: -sides},
        method="SLSQP",
    )
    assert value(found) <= oracle.fun + 1e-6 * max(1.0, abs(oracle.fun))


@pytest.mark.parametrize("content", [b"", b"1234567", bytes(8 * 5), np.full(6, np.nan).tobytes()])
def test_arrays_of_the_wrong_size_or_value_are_refused(content: bytes) -> None:
    assert unpacked(content, 2, 3) is None
