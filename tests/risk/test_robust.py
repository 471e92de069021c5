"""Robust figures on shares equal themselves in the clear, and the clear equals NumPy and SciPy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from veilgrid.mpc import Engine, Plain
from veilgrid.mpc.bulk import BulkBatch, plain_batch
from veilgrid.mpc.field import encode_words
from veilgrid.mpc.prss import derive_keys, keyring_of
from veilgrid.mpc.shamir import share
from veilgrid.mpc.workload import lockstep
from veilgrid.risk import robust
from veilgrid.secret import SeededRandomness

LOW, HIGH = 0, 6399
WIDTH = 100


def batch_of(values: Any, mpc: Any = None, low: Any = LOW, high: Any = HIGH) -> tuple[Any, Any]:
    """A plain batch of a histogram layout, and its edges."""
    lower = np.broadcast_to(np.asarray(low, np.int64), (len(values),))
    upper = np.broadcast_to(np.asarray(high, np.int64), (len(values),))
    edges = robust.edges_for(lower, upper)
    layout = robust.histogram_layout(lower, upper, edges)
    inputs = robust.encode_values(layout, np.asarray(values, np.int64), edges)
    return plain_batch(mpc or Plain(), layout, inputs), edges


def opened(mpc: Any, steps: Any) -> list[int]:
    figure = mpc.run(steps)
    return mpc.run(mpc.open(figure.parts if hasattr(figure, "parts") else figure))


def value_of(steps: Any) -> float:
    mpc = Plain()
    figure = mpc.run(steps)
    return mpc.run(mpc.open(figure.parts))[0] / figure.divisor + figure.centre


def mean_of(values: Any, low: float, high: float, weights: Any = None) -> float:
    batch, edges = batch_of(values)
    factors = np.ones(len(values), np.int64) * 1000 if weights is None else np.asarray(weights)
    histogram = robust.histogram_of(batch, edges, factors)
    mass = histogram.mass
    return value_of(robust.mean_between(Plain(), histogram, int(low * mass), round(high * mass)))


def tail_mean(values: Any, weights: Any, low: float, high: float) -> float:
    """Exact mean between two cuts of weighted values, by sorting: the oracle."""
    order = np.argsort(values, kind="stable")
    x, w = np.asarray(values, float)[order], np.asarray(weights, float)[order]
    ends = np.cumsum(w)
    mass = ends[-1]
    kept = np.clip(ends, low * mass, high * mass) - np.clip(ends - w, low * mass, high * mass)
    return float(x @ kept / kept.sum())


samples = st.lists(st.integers(LOW, HIGH), min_size=5, max_size=60)


@settings(max_examples=60, deadline=None)
@given(values=samples)
def test_uncut_mean_is_exact(values: list[int]) -> None:
    assert mean_of(values, 0, 1) == pytest.approx(np.mean(values), abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(values=samples, cut=st.sampled_from([0.05, 0.1, 0.2, 0.3]), seed=st.integers(0, 99))
def test_trimmed_mean_is_within_the_bins_at_the_cuts(
    values: list[int], cut: float, seed: int
) -> None:
    """Only the two bins that a cut goes through are approximate, each by its own weight."""
    weights = np.random.default_rng(seed).integers(1, 4096, len(values))
    found = mean_of(values, cut, 1 - cut, weights)
    right = tail_mean(values, weights, cut, 1 - cut)
    assert abs(found - right) <= WIDTH
    upper = mean_of(values, 1 - cut, 1, weights)
    assert abs(upper - tail_mean(values, weights, 1 - cut, 1)) <= WIDTH


def test_trimmed_mean_of_many_is_close_to_scipy() -> None:
    """With many values the bins at the cuts hardly matter."""
    values = np.random.default_rng(1).gamma(4, 500, 5000).clip(LOW, HIGH).astype(int)
    found = mean_of(values, 0.1, 0.9)
    assert found == pytest.approx(stats.trim_mean(values, 0.1), abs=0.001 * HIGH)
    assert mean_of(values, 0.95, 1) == pytest.approx(np.sort(values)[-250:].mean(), rel=0.005)


@pytest.mark.parametrize(("low", "high"), [(0.9, 1), (0, 0.1), (0.3, 0.7), (0.05, 0.8)])
def test_the_cut_part_of_a_bin_is_taken_on_its_side_of_the_cut(low: float, high: float) -> None:
    """Values spread over four bins only, so what is cut through is most of the figure."""
    values = np.arange(1000, 1400).repeat(3)
    right = tail_mean(values, np.ones(1200), low, high)
    assert mean_of(values, low, high) == pytest.approx(right, abs=5)


@settings(max_examples=60, deadline=None)
@given(values=samples, level=st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.95]))
def test_quantile_is_in_the_bin_of_the_quantile(values: list[int], level: float) -> None:
    batch, edges = batch_of(values)
    histogram = robust.histogram_of(batch, edges, np.full(len(values), 1000))
    found = value_of(robust.quantiles_of(Plain(), histogram, [level]))
    low = np.quantile(values, level, method="inverted_cdf")
    high = np.quantile(values, min(level + 1 / len(values), 1), method="inverted_cdf")
    assert low - WIDTH <= found <= high + WIDTH


def test_quantiles_of_many_are_interpolated_in_the_bin() -> None:
    values = np.random.default_rng(2).gamma(4, 500, 5000).clip(LOW, HIGH).astype(int)
    batch, edges = batch_of(values)
    histogram = robust.histogram_of(batch, edges, np.ones(len(values), np.int64))
    for level in (0.1, 0.5, 0.9):
        found = value_of(robust.quantiles_of(Plain(), histogram, [level]))
        assert found == pytest.approx(np.quantile(values, level), abs=WIDTH / 8)


def test_huber_location_solves_its_equation() -> None:
    generator = np.random.default_rng(3)
    values = np.r_[generator.normal(3000, 200, 900), np.full(100, 6000)].clip(LOW, HIGH).astype(int)
    batch, edges = batch_of(values)
    histogram = robust.histogram_of(batch, edges, np.ones(len(values), np.int64))
    found = value_of(robust.huber(Plain(), histogram, 5 * WIDTH))

    def pull(point: float) -> float:
        return float(np.clip(values - point, -5 * WIDTH, 5 * WIDTH).sum())

    right = optimize.brentq(pull, LOW, HIGH)
    assert found == pytest.approx(right, abs=WIDTH / 8)
    assert abs(found - 3000) < 0.25 * abs(values.mean() - 3000)


def test_bins_are_fine_where_most_bounds_are() -> None:
    """One source with absurd bounds must not blur the others."""
    lower = np.zeros(100, np.int64)
    upper = np.full(100, 1000, np.int64)
    upper[7] = 1_000_000
    edges = robust.edges_for(lower, upper)
    assert len(edges) == 65
    assert (np.diff(edges) > 0).all()
    assert edges[0] <= 0
    assert edges[-1] > 1_000_000
    assert ((np.diff(edges) <= 20) & (edges[:-1] < 1000)).sum() >= 50
    values = np.arange(100) * 10
    values[7] = 900_000
    batch, found = batch_of(values, low=lower, high=upper)
    assert batch.is_counted.all()
    histogram = robust.histogram_of(batch, found, np.ones(100, np.int64))
    mean = value_of(robust.mean_between(Plain(), histogram, 0, 100))
    assert mean == pytest.approx(values.mean())


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.integers(-500, 500), min_size=4, max_size=25), data=st.data())
def test_exact_figures_equal_sorting(values: list[int], data: Any) -> None:
    cut = data.draw(st.sampled_from([0.1, 0.2, 0.25]))
    size = len(values)
    weights = data.draw(st.lists(st.integers(1, 50), min_size=size, max_size=size))
    mpc = Plain()
    x = mpc.wrap(encode_words(np.array(values)), 500)
    mass = sum(weights)
    low, high = int(cut * mass), mass - int(cut * mass)
    figure = mpc.run(robust.exact_between(mpc, x, -500, weights, low, high))
    numerator, spread = mpc.run(mpc.open(figure.parts))
    right = tail_mean(values, weights, low / mass, high / mass)
    assert numerator / figure.divisor == pytest.approx(right, abs=1e-9)
    rank = data.draw(st.integers(1, mass))
    found = mpc.run(mpc.open(mpc.run(robust.exact_quantiles(mpc, x, -500, weights, [rank]))))
    assert found == [int(np.sort(np.repeat(values, weights))[rank - 1])]
    order = np.sort(np.repeat(values, weights))
    winsorised = np.clip(values, order[low], order[high - 1])
    variance = np.average(
        (winsorised - np.average(winsorised, weights=weights)) ** 2, weights=weights
    )
    assert spread / mass**2 == pytest.approx(variance, abs=1e-6)


def test_unweighted_exact_trimmed_mean_equals_scipy() -> None:
    values = np.random.default_rng(5).integers(0, 1000, 37)
    mpc = Plain()
    x = mpc.wrap(encode_words(values), 1000)
    cut = int(0.1 * 37)
    figure = mpc.run(robust.exact_between(mpc, x, 0, [1] * 37, cut, 37 - cut))
    numerator = mpc.run(mpc.open(figure.parts))[0]
    assert numerator / figure.divisor == pytest.approx(stats.trim_mean(values, 0.1))


def shared(values: Any, function: Any, n: int = 3) -> list[list[int]]:
    """Run a function of (mpc, batch, edges) on shares of all parties and in the clear."""
    plain, edges = batch_of(values)
    degree = (n - 1) // 2
    keys = derive_keys(n, degree, b"risk")
    flat = plain.data.reshape(-1, 2)
    parts = share(flat, n, degree, SeededRandomness(4))
    runs = []
    for number in range(1, n + 1):
        engine = Engine(keyring_of(number, n, degree, keys, b"risk"), lambda: bytes(32))
        data = parts[number - 1].reshape(plain.data.shape)
        batch = BulkBatch(
            engine, plain.names, plain.layout, data, plain.is_counted, plain.is_replaced
        )

        def steps(engine: Any = engine, batch: Any = batch) -> Any:
            figure = yield from function(engine, batch, edges)
            return (yield from engine.open(getattr(figure, "parts", figure)))

        runs.append(steps())
    results = lockstep(runs)
    assert all(one == results[0] for one in results)
    clear = Plain()
    return [results[0], opened(clear, function(clear, plain, edges))]


WEIGHTS = np.array([5, 3, 8, 1, 2, 9, 4, 4, 6, 7, 3, 2])
VALUES = np.array([100, 3000, 3050, 3100, 3140, 3210, 2950, 2800, 3333, 3500, 6399, 0])


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize(
    "name", ["mean", "trimmed", "cvar", "quantile", "huber", "conduct", "exact", "exact quantile"]
)
def test_each_function_on_shares_equals_itself_in_the_clear(n: int, name: str) -> None:
    def function(mpc: Any, batch: Any, edges: Any) -> Any:
        histogram = robust.histogram_of(batch, edges, WEIGHTS)
        mass = histogram.mass
        match name:
            case "mean":
                return (yield from robust.mean_between(mpc, histogram, 0, mass))
            case "trimmed":
                cut = mass // 5
                return (yield from robust.mean_between(mpc, histogram, cut, mass - cut))
            case "cvar":
                return (yield from robust.mean_between(mpc, histogram, 9 * mass // 10, mass))
            case "quantile":
                return (yield from robust.quantiles_of(mpc, histogram, [0.25, 0.5, 0.9]))
            case "huber":
                return (yield from robust.huber(mpc, histogram, 300))
            case "conduct":
                return (yield from robust.conduct(mpc, batch, histogram, 10))
            case "exact":
                x = batch.number("value")
                return (yield from robust.exact_between(mpc, x, LOW, WEIGHTS.tolist(), 9, mass - 9))
        x = batch.number("value")
        return (yield from robust.exact_quantiles(mpc, x, LOW, WEIGHTS.tolist(), [1, 20, mass]))

    on_shares, clear = shared(VALUES, function, n)
    assert on_shares == clear


def test_conduct_tells_the_near_from_the_far() -> None:
    batch, edges = batch_of(VALUES)
    histogram = robust.histogram_of(batch, edges, np.ones(12, np.int64))
    mpc = Plain()
    levels = mpc.run(mpc.open(mpc.run(robust.conduct(mpc, batch, histogram, 10))))
    assert [k for k, level in enumerate(levels) if level == 2] == [0, 10, 11]
    assert all(levels[k] == 0 for k in (1, 2, 3, 4, 5))
