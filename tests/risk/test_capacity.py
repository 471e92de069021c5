"""Dispatchable capacity against exact convolution, and against devices that would cheat."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from veilgrid.cli._capacity import public_bins
from veilgrid.errors import InputError
from veilgrid.mpc.bulk import plain_batch
from veilgrid.mpc.field import decode
from veilgrid.mpc.plain import Plain
from veilgrid.risk.capacity import (
    FILL_STEPS,
    Bins,
    Capacity,
    History,
    Tally,
    bins_of,
    counted,
    dispatchable,
    tally,
)
from veilgrid.risk.capacity_tail import normal_quantile


def exact_masses(units: np.ndarray, failure: np.ndarray) -> np.ndarray:
    """Probabilities of the sum of capacities that are whole numbers of units."""
    masses = np.zeros(int(units.sum()) + 1)
    masses[0] = 1.0
    for unit, p in zip(units, failure, strict=True):
        moved = np.zeros_like(masses)
        moved[unit:] = masses[: len(masses) - unit]
        masses = p * masses + (1 - p) * moved
    return masses


def exact(units: np.ndarray, history: History, miss: float) -> tuple[int, float]:
    """Return the largest sum that is missed with at most ``miss``, and the mean of the worst."""
    masses = sum(
        weight * exact_masses(units, row)
        for weight, row in zip(history.weights, history.failure, strict=True)
    )
    running = np.cumsum(masses)
    place = int(np.searchsorted(running, miss * (1 + 1e-12), side="right"))
    before = running[place - 1] if place else 0.0
    worst = float(np.arange(place) @ masses[:place]) + (miss - before) * place
    return place, worst / miss


def found(
    capacities: np.ndarray, history: History, confidence: float, step: float = 0.0
) -> Capacity:
    bins = bins_of(float(capacities[capacities > 0].min()), float(capacities.max()), step)
    mpc, classes = Plain(), history.classes()
    batch = plain_batch(mpc, bins.layout(), bins.encode(capacities))
    sums = tally(batch, classes, np.arange(len(capacities)), len(capacities))
    return mpc.run(dispatchable(mpc, sums, bins, history, classes, confidence))


def shocked(rng: np.random.Generator, count: int) -> History:
    base = rng.choice([0.01, 0.02, 0.05, 0.1], count)
    hit = np.where(rng.random(count) < 0.1, 0.9, base)
    return History(np.array([0.95, 0.03, 0.02]), np.stack([base, base + 0.1, hit]))


@pytest.mark.parametrize("confidence", [0.9, 0.99])
@pytest.mark.parametrize("kind", ["equal", "even", "skewed"])
@pytest.mark.parametrize("count", [300, 600])
def test_capacity_is_the_exact_quantile_to_a_thousandth(
    kind: str, count: int, confidence: float
) -> None:
    """An operator would promise what is not there, or leave paid-for power unused."""
    rng = np.random.default_rng([count, ord(kind[0])])
    draws = {
        "equal": np.full(count, 50),
        "even": rng.integers(30, 120, count),
        "skewed": np.rint(10 * np.exp(rng.normal(1, 0.8, count))).astype(int) + 1,
    }
    units, history = draws[kind], shocked(rng, count)
    place, worst = exact(units, history, 1 - confidence)
    ours = found(units / 10, history, confidence, 5.0 if kind == "equal" else 0.0)
    assert ours.capacity_kw == pytest.approx(place / 10, rel=1e-3)
    assert ours.cvar_kw == pytest.approx(worst / 10, rel=1e-3)
    mean = float(history.weights @ ((1 - history.failure) @ units)) / 10
    assert ours.mean_kw == pytest.approx(mean, rel=1e-6)
    assert ours.certified_kw <= place / 10
    assert ours.certified_kw > 0.9 * place / 10


@given(
    units=st.lists(st.integers(1, 30), min_size=1, max_size=14),
    failures=st.lists(st.sampled_from([0.0, 1e-4, 0.01, 0.05, 0.3, 0.9, 1.0]), min_size=14),
    shock=st.floats(0, 0.6),
    confidence=st.sampled_from([0.5, 0.8, 0.95, 0.99, 0.9999]),
)
@settings(max_examples=60, deadline=None)
def test_the_certified_figure_never_exceeds_the_exact_quantile(
    units: list[int], failures: list[float], shock: float, confidence: float
) -> None:
    """What is sold as proved would be an approximation that can break."""
    sizes = np.array(units)
    base = np.array(failures[: len(units)])
    both = np.stack([base, np.minimum(base + shock, 1.0)])
    history = History(np.array([0.9, 0.1]), both)
    place, _ = exact(sizes, history, 1 - confidence)
    ours = found(sizes / 1.0, history, confidence)
    assert ours.certified_kw <= place
    assert ours.certified_kw <= ours.cvar_kw <= ours.capacity_kw <= sizes.sum() * (1 + 1e-9)


def test_certified_stays_below_when_failure_probabilities_are_all_different() -> None:
    """Mixing two public classes must round to the safe side."""
    rng = np.random.default_rng(5)
    units = rng.integers(1, 9, 200)
    history = History(np.ones(1), rng.uniform(0, 0.2, (1, 200)))
    assert history.classes()[0].above_weight.any()
    place, _ = exact(units, history, 0.01)
    ours = found(units / 1.0, history, 0.99)
    assert place * 0.95 < ours.certified_kw <= place
    assert ours.capacity_kw == pytest.approx(place, abs=1.0)


def test_equal_batteries_are_found_to_the_battery() -> None:
    """Three of 10 kW that fail once in ten: worked by hand.

    P(none) = 0.001, P(at most one) = 0.028, P(at most two) = 0.271.
    """
    history = History(np.ones(1), np.full((1, 3), 0.1))
    tens = np.full(3, 10.0)
    assert found(tens, history, 0.99, 10.0).capacity_kw == pytest.approx(10)
    assert found(tens, history, 0.95, 10.0).capacity_kw == pytest.approx(20)
    assert found(tens, history, 0.7, 10.0).capacity_kw == pytest.approx(30)


def test_a_fleet_that_never_fails_is_there() -> None:
    history = History(np.ones(1), np.zeros((1, 4)))
    ours = found(np.array([1.0, 2.0, 3.0, 4.0]), history, 0.99)
    assert ours.capacity_kw == pytest.approx(10, rel=1e-6)
    assert 9.9 < ours.certified_kw <= 10


def test_the_independent_model_promises_too_much_under_a_common_shock() -> None:
    """A 2 % event that hits a tenth of the fleet: why scenarios are required."""
    alone = History(np.ones(1), np.full((1, 1000), 0.02))
    hit = np.where(np.arange(1000) < 100, 1.0, 0.02)
    common = History(np.array([0.98, 0.02]), np.stack([alone.failure[0], hit]))
    fives = np.full(1000, 5.0)
    apart, together = (found(fives, one, 0.99, 5.0) for one in (alone, common))
    assert apart.capacity_kw / together.capacity_kw > 1.08
    place, _ = exact(np.ones(1000, int), common, 0.01)
    assert together.capacity_kw == pytest.approx(place * 5)
    assert normal_quantile(together.moments, common.weights, 0.01) * together.unit_kw > (
        together.capacity_kw
    )


def test_coverage_with_common_shocks_passes_kupiec() -> None:
    """Thirty days of quarter-hours: shortfalls come as often as promised, no more, no less."""
    rng = np.random.default_rng(2026)
    count, intervals, confidence = 400, 2880, 0.99
    units, history = rng.integers(30, 120, count), shocked(rng, count)
    promised = found(units / 10, history, confidence).capacity_kw * 10
    scenario = rng.choice(3, intervals, p=history.weights)
    there = rng.random((intervals, count)) >= history.failure[scenario]
    missed = int((there @ units < promised).sum())
    rate, miss = missed / intervals, 1 - confidence

    def likelihood(p: float) -> float:
        return missed * np.log(p) + (intervals - missed) * np.log(1 - p)

    assert 2 * (likelihood(rate) - likelihood(miss)) < chi2.ppf(0.99, 1), f"{missed=}"


def test_changed_devices_replace_their_old_inputs_only() -> None:
    """A refresh each second must give what a full round would give."""
    rng = np.random.default_rng(3)
    before = rng.uniform(3, 12, 60)
    changed = np.array([4, 17, 59])
    after = before.copy()
    after[changed] = [3.5, 11.0, 7.25]
    bins = Bins(np.linspace(0, 12, 20))
    history = shocked(rng, 60)
    mpc, classes = Plain(), history.classes()

    def sums_of(values: np.ndarray, rows: np.ndarray) -> Tally:
        batch = plain_batch(mpc, bins.layout(), bins.encode(values[rows]))
        return tally(batch, classes, rows, 60)

    every = np.arange(60)
    kept = sums_of(before, every)
    refreshed = kept.plus(sums_of(before, changed), -1).plus(sums_of(after, changed))
    fresh = sums_of(after, every)
    for a, b in zip(refreshed.counts + refreshed.fills, fresh.counts + fresh.fills, strict=True):
        assert decode(a.data) == decode(b.data)


def test_a_device_cannot_send_moments_that_contradict_each_other() -> None:
    """Two bins at once, a part beyond its bin, a fill in another bin: all are refused."""
    bins = bins_of(1.0, 10.0)
    layout = bins.layout()
    honest = bins.encode(np.array([4.0, 4.0, 4.0, 4.0]))
    hot, fill = layout.start("bin"), layout.start("fill")
    honest[1, hot] = 1
    honest[2, hot + int(np.argmax(honest[2, hot:fill]))] = 2
    honest[3, fill] = FILL_STEPS
    batch = plain_batch(Plain(), layout, honest)
    assert batch.is_counted.tolist() == [True, False, False, False]


def test_a_capacity_that_does_not_fit_is_a_finding() -> None:
    with pytest.raises(InputError, match="device 1"):
        bins_of(1.0, 10.0).encode(np.array([4.0, 11.0, np.nan]))


@given(
    units=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    failures=st.lists(st.sampled_from([0.0, 0.02, 0.1, 0.3, 1.0]), min_size=9, max_size=9),
    confidence=st.sampled_from([0.9, 0.95, 0.99]),
)
@settings(max_examples=40, deadline=None)
def test_small_fleets_are_counted_and_exact(
    units: list[int], failures: list[float], confidence: float
) -> None:
    """A handful of large units is far from any smooth distribution."""
    sizes = np.array(units)
    base = np.array(failures[: len(units)])
    history = History(np.array([0.9, 0.1]), np.stack([base, np.maximum(base, 0.25)]))
    place, worst = exact(sizes, history, 1 - confidence)
    bins = public_bins(sizes / 1.0, None)
    mpc, classes = Plain(), history.classes()
    batch = plain_batch(mpc, bins.layout(), bins.encode(sizes / 1.0))
    sums = tally(batch, classes, np.arange(len(sizes)), len(sizes))
    ours = mpc.run(counted(mpc, sums, bins, history, classes, confidence))
    assert ours.capacity_kw == pytest.approx(place, abs=1e-6)
    assert ours.cvar_kw == pytest.approx(worst, abs=1e-6)
    assert ours.certified_kw <= place + 1e-9
    assert ours.mean_kw == pytest.approx(float(history.weights @ ((1 - history.failure) @ sizes)))
