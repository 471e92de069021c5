"""The network step against a general solver that has all rows, and its dual against theory."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from strategies import networks, scenarios
from veilgrid.admm.certify import bound_from_prices, certify, cheapest_answer
from veilgrid.admm.network_step import NetworkStep, box_dual
from veilgrid.admm.outcome import RunStatus
from veilgrid.admm.reference import central
from veilgrid.grid.lindistflow import POLYGON_SIDES, Correction, Limits, flows
from veilgrid.grid.network import Network
from veilgrid.grid.scenario import Scenario
from veilgrid.qp.problem import QuadraticProgram, SolveStatus
from veilgrid.qp.solve import SolveSettings, solve

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, count=st.integers(1, 8), rank=st.integers(0, 8), exponent=st.integers(-3, 3))
@settings(max_examples=150)
def test_box_dual_finds_the_minimum_of_any_semidefinite_form(
    seed: int, count: int, rank: int, exponent: int
) -> None:
    """Rows that repeat each other, or do nothing, must neither stall nor mislead the method."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(count, rank)) * 10.0**exponent
    root[rng.random(count) < 0.2] = 0.0
    if count > 1 and rng.random() < 0.5:
        root[0] = root[-1]
    gram = root @ root.T
    # The step's push lies in the rows' span, but for the bounds of the rows.
    push = root @ rng.normal(size=rank) + rng.normal(size=count) * 10.0**exponent
    low = np.zeros(count)
    high = rng.choice([0.0, 0.5, 3.0, 100.0], count)
    start = rng.uniform(low, high)
    found = box_dual(gram, push, low, high, start)
    assert ((low <= found) & (found <= high)).all()
    oracle = solve(
        QuadraticProgram(
            quadratic=sparse.csc_matrix(gram),
            linear=-push,
            matrix=sparse.identity(count, format="csc"),
            lower=low,
            upper=high,
        )
    )

    def value(m: np.ndarray) -> float:
        return float(0.5 * m @ gram @ m - push @ m)

    size = max(1.0, abs(value(oracle.x)), float(np.abs(push) @ high))
    assert value(found) <= value(oracle.x) + 1e-7 * size


def nearest(
    network: Network,
    limits: Limits,
    tariff: tuple[float, float],
    give: np.ndarray,
    wish: np.ndarray,
    interval: int,
) -> tuple[SolveStatus, np.ndarray]:
    """Solve one interval with every row present; rows and columns are (active, reactive) buses."""
    count = len(network.buses)
    wide = 2 * count + 2
    blank = np.zeros((count, 1))
    plain = replace(limits, correction=None)
    known = np.isfinite(plain.excess(flows(limits.tree, blank, blank))[:, 0])
    rows, low, high = [], [], []
    for number in np.flatnonzero(known):
        active, reactive, bound = limits.row(int(number))
        rows.append(np.concatenate([active, reactive, [0.0, 0.0]]))
        low.append(-np.inf)
        kind, bus = divmod(int(number), count)
        if limits.correction is not None:
            shrunk = limits.correction[min(kind, 2)][bus, interval]
            bound -= shrunk * (np.cos(np.pi / POLYGON_SIDES) if kind >= 2 else 1.0)
        high.append(bound)
    for place in np.flatnonzero(give == 0.0):
        rows.append(np.eye(wide)[place])
        low.append(wish[place])
        high.append(wish[place])
    rows.append(np.concatenate([np.ones(count), np.zeros(count), [-1.0, 1.0]]))
    rows += [np.eye(wide)[-2], np.eye(wide)[-1]]
    low += [0.0, 0.0, 0.0]
    high += [0.0, np.inf, np.inf]
    pull = np.divide(1.0, give, out=np.zeros_like(give), where=give > 0.0)
    problem = QuadraticProgram(
        quadratic=sparse.csc_matrix(np.diag([*pull, 0.0, 0.0])),
        linear=np.array([*(-pull * wish), tariff[0], -tariff[1]]),
        matrix=sparse.csc_matrix(np.array(rows)),
        lower=np.array(low),
        upper=np.array(high),
    )
    found = solve(problem, settings=SolveSettings(tolerance=1e-11))
    return found.status, found.x[: 2 * count]


@given(
    network=networks(has_limits=True),
    seed=seeds,
    scale=st.sampled_from([0.3, 1.0, 3.0]),
    is_corrected=st.booleans(),
)
@settings(max_examples=80)
def test_the_projection_is_the_nearest_point_that_the_network_can_carry(
    network: Network, seed: int, scale: float, is_corrected: bool
) -> None:
    """Rows join only when exceeded; one that never joined would leave a limit broken."""
    rng = np.random.default_rng(seed)
    limits, count, intervals = Limits.of(network), len(network.buses), 3
    if is_corrected:
        shape = (count, intervals)
        change = Correction(*(rng.uniform(0.0, most, shape) for most in (0.03, 0.03, 0.2)))
        limits = replace(limits, correction=change)
    give = rng.uniform(0.5, 2.0, 2 * count) * (rng.random(2 * count) < 0.7) * 0.01
    sell = rng.uniform(0.0, 50.0, intervals)
    buy = sell + rng.uniform(0.0, 50.0, intervals)
    wish = scale * rng.normal(size=(2 * count, intervals))
    step = NetworkStep(limits, buy, sell, give[:count], give[count:], strength_max=1e7)
    for _ in range(2):  # The second time starts from the rows of the first.
        target = step.project(wish[:count], wish[count:])
        unmet = {interval for _, interval in step.unmet()}
        for t in range(intervals):
            status, best = nearest(network, limits, (buy[t], sell[t]), give, wish[:, t], t)
            if status is not SolveStatus.OPTIMAL:
                assert t in unmet
                continue
            if t in unmet:
                continue  # Feasible by a hair: the ceiling is what stops it.
            found = np.concatenate([target.target_p[:, t], target.target_q[:, t]])
            np.testing.assert_allclose(found, best, atol=2e-5 * max(scale, 1.0))
        fine = [t for t in range(intervals) if t not in unmet]
        excess = limits.excess(flows(limits.tree, target.target_p, target.target_q))
        assert excess[:, fine].max(initial=-np.inf) <= 1e-8
        assert ((sell - 1e-12 <= target.price) & (target.price <= buy + 1e-12)).all()
        wish = wish * 0.9


@given(network=networks(has_limits=False), seed=seeds)
@settings(max_examples=30)
def test_without_limits_one_price_clears_each_interval(network: Network, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, intervals = len(network.buses), 4
    give = rng.uniform(0.01, 0.1, count)
    sell = rng.uniform(0.0, 50.0, intervals)
    buy = sell + rng.uniform(0.1, 50.0, intervals)
    wish = 2.0 * rng.normal(size=(count, intervals))
    step = NetworkStep(Limits.of(network), buy, sell, give, np.zeros(count), strength_max=1.0)
    target = step.project(wish, np.zeros_like(wish))
    exchange = target.target_p.sum(axis=0)
    between = (target.price > sell + 1e-9) & (target.price < buy - 1e-9)
    np.testing.assert_allclose(exchange[between], 0.0, atol=1e-9)
    assert (exchange[target.price >= buy - 1e-9] >= -1e-9).all()
    assert (exchange[target.price <= sell + 1e-9] <= 1e-9).all()
    assert not step.unmet()
    assert not step.strengths()


@given(scenario=scenarios(has_limits=True), seed=seeds, size=st.sampled_from([0.1, 1.0, 10.0]))
@settings(max_examples=40)
def test_no_prices_whatever_prove_more_than_the_optimum(
    scenario: Scenario, seed: int, size: float
) -> None:
    """The certificate's bound must hold for prices that a liar chose, not only for good ones."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    best = central(day, limits)
    assume(best.status is RunStatus.CONVERGED)
    optimum = day.cost(best.setpoints)
    rng = np.random.default_rng(seed)
    count = len(day.sites)
    step = NetworkStep(
        limits,
        day.buy,
        day.sell,
        rng.uniform(0.0, 0.1, count),
        rng.uniform(0.0, 0.1, count),
        strength_max=1e4 * float(day.buy.max() + 1.0),
    )
    shape = (count, day.interval_count)
    target = step.project(size * rng.normal(size=shape), size * rng.normal(size=shape))
    answer = cheapest_answer(day, target.price_p, target.price_q)
    found = bound_from_prices(day, limits, best.setpoints, answer, target)
    paid = float(np.abs(target.price_p).max() + np.abs(target.price_q).max())
    assert found.bound <= optimum + 1e-6 * max(abs(optimum), paid, 1.0)
    assert found.dual <= 1e-12
    assert found.cost == pytest.approx(optimum)


@given(scenario=scenarios(has_limits=True))
@settings(max_examples=25)
def test_the_prices_of_the_optimum_prove_it(scenario: Scenario) -> None:
    """Strong duality: at the right prices the bound meets the cost."""
    day, limits = scenario.day(), Limits.of(scenario.network)
    best = central(day, limits)
    assume(best.status is RunStatus.CONVERGED)
    found = certify(day, limits, best.setpoints, best.price_p, best.price_q).certificate
    assert found.is_accepted, found
