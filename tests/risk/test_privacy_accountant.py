"""Several releases cost what an independent library says; neighbours are told apart no better."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from veilgrid.errors import InputError
from veilgrid.mpc import noise
from veilgrid.risk.accountant import (
    Charge,
    compose,
    gaussian_loss,
    normal_delta,
    sigma_for,
    skellam_loss,
    spent,
    zcdp_delta,
    zcdp_rho,
)
from veilgrid.risk.privacy_sampler import by_limits, skellam
from veilgrid.secret import SeededRandomness

Outcomes = npt.NDArray[Any]


@pytest.mark.parametrize(
    ("sigma", "sensitivity", "count", "delta"),
    [
        (422.0, 100, 1, 1e-6),
        (828.0, 20, 96, 1e-6),
        (6.0, 1, 10, 1e-5),
        (3.0, 2, 30, 1e-6),
        (40.0, 7, 2, 1e-9),
        (0.8, 1, 1, 1e-4),
    ],
)
def test_epsilon_agrees_with_dp_accounting(
    sigma: float, sensitivity: int, count: int, delta: float
) -> None:
    """Too small an epsilon would be a broken promise, too large one wasted accuracy."""
    pytest.importorskip("dp_accounting", reason="needs the extra veilgrid[privacy]")
    from dp_accounting.pld import privacy_loss_distribution as peer

    theirs = peer.from_discrete_gaussian_mechanism(sigma, sensitivity=sensitivity)
    expected = theirs.self_compose(count).get_epsilon_for_delta(delta)
    ours = spent([Charge("gaussian", sigma, sensitivity, count)]).epsilon(delta)
    assert ours == pytest.approx(expected, rel=0.01)


def test_mixed_releases_agree_with_dp_accounting() -> None:
    pytest.importorskip("dp_accounting", reason="needs the extra veilgrid[privacy]")
    from dp_accounting.pld import privacy_loss_distribution as peer

    parts = [(300.0, 20, 3), (51.0, 1, 30), (900.0, 77, 2)]
    theirs = peer.identity()
    for sigma, sensitivity, count in parts:
        one = peer.from_discrete_gaussian_mechanism(sigma, sensitivity=sensitivity)
        theirs = theirs.compose(one.self_compose(count))
    ours = spent([Charge("gaussian", *part) for part in parts])
    for delta in (1e-4, 1e-6, 1e-8):
        assert ours.epsilon(delta) == pytest.approx(theirs.get_epsilon_for_delta(delta), rel=0.01)


@pytest.mark.parametrize(("variance", "sensitivity"), [(9.0, 1), (400.0, 7), (250_000.0, 118)])
def test_skellam_loss_is_the_hockey_stick_of_its_distribution(
    variance: float, sensitivity: int
) -> None:
    """The definition of delta, summed directly over SciPy's probabilities."""
    reach = int(12 * math.sqrt(variance)) + 60
    values = np.arange(-reach, reach + 1)
    truth = stats.skellam.pmf(values, variance / 2, variance / 2)
    other = stats.skellam.pmf(values + sensitivity, variance / 2, variance / 2)
    for epsilon in (0.1, 0.5, 1.0):
        direct = float(np.maximum(truth - math.exp(epsilon) * other, 0).sum())
        found = skellam_loss(variance, sensitivity).delta(epsilon)
        assert direct <= found + 1e-12
        assert found <= direct * 1.02 + 1e-9


def test_skellam_of_two_releases_is_never_below_the_published_bound_by_much() -> None:
    """The published bound on Renyi divergence is an upper bound; ours is exact, so lower."""
    variance, sensitivity, order = 900.0, 5, 8
    loss = skellam_loss(variance, sensitivity)
    exact = math.log(float(np.dot(np.exp((order - 1) * loss.losses()), loss.masses))) / (order - 1)
    gaussian = order * sensitivity**2 / (2 * variance)
    extra = min(
        ((2 * order - 1) * sensitivity**2 + 6 * sensitivity) / (4 * variance**2),
        3 * sensitivity / (2 * variance),
    )
    assert gaussian * 0.999 <= exact <= (gaussian + extra) * 1.001 + order * 1e-3


def test_composition_is_the_convolution() -> None:
    """Two releases at once, by hand: every pair of outcomes."""
    loss = gaussian_loss(3.0, 2)
    both = compose([(loss, 2)])
    pairs = np.add.outer(loss.losses(), loss.losses()).ravel()
    masses = np.multiply.outer(loss.masses, loss.masses).ravel()
    for epsilon in (0.2, 1.0, 2.5):
        gaps = np.maximum(1 - np.exp(epsilon - pairs), 0)
        assert both.delta(epsilon) == pytest.approx(float(gaps @ masses), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", ["gaussian", "skellam"])
@pytest.mark.parametrize(("epsilon", "delta", "count"), [(1.0, 1e-6, 1), (0.5, 1e-7, 96)])
def test_the_least_noise_keeps_the_promise_and_a_little_less_breaks_it(
    kind: str, epsilon: float, delta: float, count: int
) -> None:
    sigma = sigma_for(kind, epsilon, delta, 10, count)
    assert spent([Charge(kind, sigma, 10, count)]).delta(epsilon) <= delta
    assert spent([Charge(kind, 0.995 * sigma, 10, count)]).delta(epsilon) > delta


def test_the_least_noise_is_that_of_the_continuous_gaussian() -> None:
    """At 100 steps the lattice is no longer felt."""
    ratio = sigma_for("gaussian", 1.0, 1e-6, 100) / 100
    assert normal_delta(ratio, 1.0) == pytest.approx(1e-6, rel=0.01)


def test_concentrated_loss_is_an_upper_bound() -> None:
    exact = gaussian_loss(100.0, 24).delta(1.0)
    bound = zcdp_delta((24 / 100) ** 2 / 2, 1.0)
    assert exact <= bound <= 20 * exact
    assert zcdp_delta(zcdp_rho(1.0, 1e-6), 1.0) <= 1e-6


def test_slack_counts_as_unlimited_loss() -> None:
    plain = spent([Charge("gaussian", 50.0, 5)]).delta(1.0)
    slack = spent([Charge("gaussian", 50.0, 5, 1, 1e-5)] * 2).delta(1.0)
    assert slack >= 2e-5 > plain


def test_promises_that_cannot_be_kept_are_refused_all_at_once() -> None:
    with pytest.raises(InputError) as found:
        sigma_for("gaussian", 0.0, 0.7, 1)
    assert [one.where for one in found.value.findings] == ["--epsilon", "--delta"]
    with pytest.raises(InputError):
        sigma_for("gaussian", math.nan, 1e-6, 1)


# -- neighbours --------------------------------------------------------------------------------

EPSILON, DELTA, SAMPLES, SENSITIVITY = 1.0, 1e-4, 500_000, 24


def told_apart(truth: Outcomes, other: Outcomes, epsilon: float, delta: float) -> bool:
    """Say whether some event betrays which neighbour it was, with less than 1e-6 of error.

    Half of the outcomes chooses the event, the other half judges it. Outcomes are sorted into
    cells by size and, for floating-point numbers, by the place of their last bit.
    """
    half = truth.size // 2
    cells = [_cells(one) for one in (truth, other)]
    for a, b in (cells, cells[::-1]):
        keys = np.unique(np.concatenate([a[:half], b[:half]]))
        counts = [np.bincount(np.searchsorted(keys, x[:half]), minlength=keys.size) for x in (a, b)]
        event = keys[(counts[0] + 0.5) > math.exp(epsilon) * (counts[1] + 0.5)]
        hits = [int(np.isin(x[half:], event).sum()) for x in (a, b)]
        rest = a.size - half
        low = stats.beta.ppf(5e-7, hits[0], rest - hits[0] + 1) if hits[0] else 0.0
        high = stats.beta.ppf(1 - 5e-7, hits[1] + 1, rest - hits[1])
        if low > math.exp(epsilon) * high + delta:
            return True
    return False


def _cells(outcomes: Outcomes) -> npt.NDArray[np.int64]:
    if outcomes.dtype.kind == "i":
        return np.asarray(outcomes // 40, np.int64)
    mantissa, exponent = np.frexp(outcomes)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    trailing = np.log2((whole & -whole).astype(np.float64) + (whole == 0)).astype(np.int64)
    last_bit = exponent - 53 + trailing
    return np.asarray(last_bit * 1000 + np.clip(outcomes * 4, -400, 400).astype(np.int64), np.int64)


def gaussian_release(sigma: float, value: int, seed: int) -> Outcomes:
    lowest, limits = noise.gaussian_steps(sigma)
    scaled = [limit << 2 for limit in limits] + [2**64]
    return value + by_limits(SeededRandomness(seed), lowest, scaled, 64, SAMPLES)


def skellam_release(sigma: float, value: int, seed: int) -> Outcomes:
    variance = Fraction(sigma).limit_denominator() ** 2
    return value + skellam(SeededRandomness(seed), variance, SAMPLES)


RELEASES = {"gaussian": gaussian_release, "skellam": skellam_release}


@pytest.mark.parametrize("kind", ["gaussian", "skellam"])
def test_neighbours_are_not_told_apart_beyond_epsilon(
    kind: str,
) -> None:
    """Half a million releases of each of two neighbours, and the best event found on them."""
    sigma = sigma_for(kind, EPSILON, DELTA, SENSITIVITY)
    drawn = [RELEASES[kind](sigma, value, seed) for value, seed in ((0, 1), (SENSITIVITY, 2))]
    assert not told_apart(drawn[0], drawn[1], EPSILON, DELTA)


@pytest.mark.parametrize("kind", ["gaussian", "skellam"])
def test_half_of_the_noise_is_found_out(kind: str) -> None:
    """The same test must see what a wrong calibration would give away."""
    sigma = sigma_for(kind, EPSILON, DELTA, SENSITIVITY) / 2
    drawn = [RELEASES[kind](sigma, value, seed) for value, seed in ((0, 3), (SENSITIVITY, 4))]
    assert told_apart(drawn[0], drawn[1], EPSILON, DELTA)


def test_textbook_laplace_noise_is_found_out_by_its_last_bits() -> None:
    """Correct on paper, at epsilon 1; in floating point most results show what they hide."""
    generator = np.random.default_rng(5)

    def release(value: float) -> Outcomes:
        uniform = generator.random(SAMPLES) - 0.5
        return np.asarray(value - np.sign(uniform) * np.log1p(-2 * np.abs(uniform)))

    assert told_apart(release(0.0), release(1.0), EPSILON, 0.0)
