"""The network step on integers equals the one in floating point, whatever binds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from strategies import networks
from veilgrid.admm.network_step import NetworkStep, NetworkTarget
from veilgrid.grid.lindistflow import Correction, Limits, flows
from veilgrid.grid.network import Network
from veilgrid.mpc.field import decode
from veilgrid.mpc.plain import Plain
from veilgrid.roles.sealed import step
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, Register, power_steps
from veilgrid.roles.sealed.step import PASSES_MAX, limit_checks, network_step
from veilgrid.roles.sealed.step_dual import StepResult
from veilgrid.roles.sealed.step_set import ActiveSet

SCALE = 2.0 ** (POWER_BITS + FACTOR_BITS)
STRENGTH_MAX = 2e4


def register_of(
    limits: Limits, buy: np.ndarray, sell: np.ndarray, give: np.ndarray, inner: float = 0.0
) -> Register:
    count = len(give) // 2
    return Register(
        limits=limits,
        buy=buy,
        sell=sell,
        give_p=give[:count],
        give_q=give[count:],
        strength_max=STRENGTH_MAX,
        inner=inner,
    )


def projected(register: Register, wish: np.ndarray, active: ActiveSet | None = None) -> StepResult:
    """Run the step on plain integers; ``wish`` is (active then reactive bus, interval)."""
    mpc, count = Plain(), register.bus_count
    shared = [mpc.constant(power_steps(part).ravel()) for part in (wish[:count], wish[count:])]
    start = ActiveSet.start(register) if active is None else active
    return mpc.run(network_step(mpc, register, shared[0], shared[1], start))  # type: ignore[return-value]


def prices_of(result: StepResult) -> np.ndarray:
    """Prices of all buses, (active then reactive bus, interval), currency per per-unit."""
    register = result.register
    buses, zero = np.arange(register.bus_count), Plain().constant([0])
    own = [result.prices(zero, buses, is_reactive=kind) for kind in (False, True)]
    numbers = np.array([float(v) for part in own for v in decode(part.data)])
    return numbers.reshape(2 * register.bus_count, -1) / SCALE * register.unit


def oracle(register: Register, wish: np.ndarray) -> tuple[NetworkStep, NetworkTarget]:
    count = register.bus_count
    network = NetworkStep(
        register.limits,
        register.buy,
        register.sell,
        register.give_p,
        register.give_q,
        STRENGTH_MAX,
    )
    network.inner = register.inner
    return network, network.project(wish[:count], wish[count:])


def check(register: Register, wish: np.ndarray, start: ActiveSet | None = None) -> StepResult:
    """Compare with floating point: targets, prices where they are unique, and what is kept."""
    network, target = oracle(register, wish)
    assume(not network.unmet())
    result = projected(register, wish, start)
    assume(result.passes <= PASSES_MAX)  # What comes of the others, a test below shows.
    give = np.concatenate([register.give_p, register.give_q])
    prices = prices_of(result)
    best = np.concatenate([target.target_p, target.target_q])
    mine = wish - give[:, np.newaxis] * prices
    np.testing.assert_allclose(mine, best, rtol=0.0, atol=1e-8 * max(1.0, np.abs(wish).max()))
    count = register.bus_count
    exchange = mine[:count].sum(axis=0)
    paid = np.array([float(decode(dual[:1])[0]) for dual in result.duals]) / 2.0**POWER_BITS
    paid = paid * register.unit
    assert (paid <= register.buy + 1e-6).all()
    assert (paid >= register.sell - 1e-6).all()
    assert (exchange[paid > register.sell + 1e-6] >= -3e-8).all()
    assert (exchange[paid < register.buy - 1e-6] <= 3e-8).all()
    if not register.limits.are_absent:
        excess = register.limits.excess(flows(register.limits.tree, mine[:count], mine[count:]))
        assert excess.max() <= 3e-8
    return result


def drawn(
    network: Network, seed: int, scale: float, *, is_corrected: bool = False
) -> tuple[Register, np.ndarray]:
    rng = np.random.default_rng(seed)
    limits, count, intervals = Limits.of(network), len(network.buses), 3
    if is_corrected:
        shape = (count, intervals)
        change = Correction(*(rng.uniform(0.0, most, shape) for most in (0.03, 0.03, 0.2)))
        limits = replace(limits, correction=change)
    give = rng.uniform(0.5, 2.0, 2 * count) * (rng.random(2 * count) < 0.7) * 0.01
    sell = rng.uniform(0.0, 50.0, intervals)
    buy = sell + rng.uniform(0.0, 50.0, intervals) * (rng.random(intervals) < 0.8)
    wish = scale * rng.normal(size=(2 * count, intervals))
    return register_of(limits, buy, sell, give), wish


@given(
    network=networks(has_limits=True),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.1, 0.3, 1.0]),
    is_corrected=st.booleans(),
)
@settings(max_examples=60)
def test_targets_equal_those_in_floating_point_when_limits_bind(
    network: Network, seed: int, scale: float, is_corrected: bool
) -> None:
    """A row that is missed, or kept too long, would move every site's price."""
    register, wish = drawn(network, seed, scale, is_corrected=is_corrected)
    result = check(register, wish)
    # From the set that it ended with, the step is done at once; from there to other wishes, too.
    again = check(register, wish, result.active)
    assert again.passes == 1
    check(register, 0.9 * wish, result.active)


@given(network=networks(has_limits=False), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_without_limits_one_price_clears_each_interval(network: Network, seed: int) -> None:
    register, wish = drawn(network, seed, 1.0)
    register = replace(register, give_q=np.zeros(register.bus_count))
    result = check(register, wish)
    assert not result.active.binding()


@given(network=networks(has_limits=False), load=st.sampled_from([1.0, -1.0]))
@settings(max_examples=10)
def test_without_any_flexible_bus_the_tariff_follows_the_exchange(
    network: Network, load: float
) -> None:
    """Nothing can move: prices are the buying tariff for import, the selling one for export."""
    count = len(network.buses)
    register = register_of(
        Limits.of(network), np.array([50.0]), np.array([20.0]), np.zeros(2 * count)
    )
    wish = np.zeros((2 * count, 1))
    wish[-count - 1] = load
    prices = prices_of(projected(register, wish))
    np.testing.assert_allclose(prices[:count], 50.0 if load > 0 else 20.0, rtol=1e-9)


@given(network=networks(has_limits=True), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_exceeded_rows_are_those_that_floating_point_finds(network: Network, seed: int) -> None:
    """The last check before a plan is accepted must see every row, ratings included."""
    register, demand = drawn(network, seed, 0.6, is_corrected=seed % 2 == 0)
    count, tolerance = register.bus_count, 1e-6
    state = flows(register.limits.tree, demand[:count], demand[count:])
    excess = register.limits.excess(state, np.arange(3))
    assume(not (np.abs(excess - tolerance) < 1e-7).any())
    mpc = Plain()
    shared = [mpc.constant(power_steps(part).ravel()) for part in (demand[:count], demand[count:])]
    found = mpc.run(limit_checks(mpc, register, shared[0], shared[1], tolerance))
    truth = {(int(row), int(t)) for row, t in np.argwhere(excess > tolerance)}
    assert set(found) == truth  # type: ignore[call-overload]


@given(
    network=networks(has_limits=True),
    seed=st.integers(0, 2**32 - 1),
    passes=st.sampled_from([1, 2, PASSES_MAX]),
)
@settings(max_examples=25)
def test_wishes_far_beyond_the_network_still_give_possible_prices(
    network: Network, seed: int, passes: int
) -> None:
    """Where the set does not settle, bounds from the prices must hold all the same."""
    register, wish = drawn(network, seed, 3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "PASSES_MAX", passes)
        result = projected(register, wish)
    for interval, dual in enumerate(result.duals):
        price, *strengths = (value / 2.0**POWER_BITS * register.unit for value in decode(dual))
        assert register.sell[interval] - 1e-6 <= price <= register.buy[interval] + 1e-6
        assert all(-1e-6 <= one <= STRENGTH_MAX + 1e-6 for one in strengths)
