"""Noise has the distribution that the guarantee was computed for."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from veilgrid.errors import InputError
from veilgrid.mpc import noise
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.plain import Plain
from veilgrid.risk.privacy import tail_bound
from veilgrid.risk.privacy_sampler import (
    Bits,
    by_limits,
    discrete_gaussian,
    poisson_limits,
    skellam,
)
from veilgrid.secret import SeededRandomness

MILLION = 1_000_000
Draws = npt.NDArray[np.int64]


def gaussian_pmf(sigma: float, values: Draws) -> npt.NDArray[np.float64]:
    every = np.arange(-int(12 * sigma) - 2, int(12 * sigma) + 3)
    masses = np.exp(-(values**2) / (2 * sigma**2))
    return np.asarray(masses / np.exp(-(every**2) / (2 * sigma**2)).sum())


def p_value(draws: Draws, pmf: Callable[[Draws], npt.NDArray[np.float64]]) -> float:
    """Chi-square over single values, tails put together until at least 20 are expected."""
    low, high = int(draws.min()), int(draws.max())
    values = np.arange(low, high + 1)
    expected = pmf(values) * draws.size
    found = np.bincount(draws - low, minlength=values.size)
    enough = np.flatnonzero(expected >= 20)
    first, last = int(enough[0]), int(enough[-1])
    rest = draws.size - found[first : last + 1].sum()
    rest_expected = draws.size - expected[first : last + 1].sum()
    observed = np.append(found[first : last + 1], rest)
    wanted = np.append(expected[first : last + 1], max(rest_expected, 1e-9))
    if rest_expected < 20:
        observed[-2] += observed[-1]
        wanted[-2] += wanted[-1]
        observed, wanted = observed[:-1], wanted[:-1]
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    return float(stats.chi2.sf(statistic, observed.size - 1))


@pytest.mark.parametrize("sigma", [0.7, 4.2, 90.0])
def test_a_million_table_draws_are_discrete_gaussian(sigma: float) -> None:
    """The committee's table, 62 bits: a wrong limit anywhere would show in one of the cells."""
    lowest, limits = noise.gaussian_steps(sigma)
    scaled = [limit << 2 for limit in limits] + [2**64]
    draws = by_limits(SeededRandomness(1), lowest, scaled, 64, MILLION)
    assert p_value(draws, lambda values: gaussian_pmf(sigma, values)) > 1e-4


@pytest.mark.parametrize("variance", [Fraction(1, 3), Fraction(9), Fraction(250_001, 10)])
def test_a_million_skellam_draws_pass_chi_square(variance: Fraction) -> None:
    draws = skellam(SeededRandomness(2), variance, MILLION)
    half = float(variance) / 2
    assert p_value(draws, lambda values: stats.skellam.pmf(values, half, half)) > 1e-4


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(18, 1), Fraction(10**9, 7)])
def test_rejection_draws_the_same_distribution_as_the_table(variance: Fraction) -> None:
    """Two derivations that share no line: exact rejection, and a table of sums."""
    draws = np.array(discrete_gaussian(SeededRandomness(3), variance, 20_000))
    sigma = float(variance) ** 0.5
    if sigma < 100:
        assert p_value(draws, lambda values: gaussian_pmf(sigma, values)) > 1e-4
    else:
        assert stats.kstest(draws / sigma, "norm").pvalue > 1e-4


def test_the_chi_square_finds_a_slightly_wrong_scale() -> None:
    """The test must be able to fail: three per cent too little variance is seen."""
    draws = skellam(SeededRandomness(4), Fraction(99, 10) * Fraction(97, 100), MILLION)
    assert p_value(draws, lambda values: stats.skellam.pmf(values, 4.95, 4.95)) < 1e-6


def test_poisson_limits_agree_with_scipy_to_the_last_bit_it_has() -> None:
    for mean in (Fraction(1, 7), Fraction(3), Fraction(4001, 2)):
        lowest, limits = poisson_limits(mean)
        values = lowest + np.arange(len(limits))
        ours = np.array([limit / 2**128 for limit in limits])
        assert np.abs(ours - stats.poisson.cdf(values, float(mean))).max() < 1e-12
        assert list(limits) == sorted(limits)
        assert limits[-1] == 2**128


def test_a_draw_on_a_limit_is_decided_by_further_bits() -> None:
    """64 bits alone would round the distribution; ties read on."""

    class Fixed:
        is_deterministic = True

        def __init__(self, *parts: bytes) -> None:
            self.parts = list(parts)

        def octets(self, count: int) -> bytes:
            part = self.parts.pop(0)
            assert len(part) == count
            return part

    limit = (5 << 64) + 1000
    below = Fixed((5).to_bytes(8, "little"), (999).to_bytes(8, "little"))
    above = Fixed((5).to_bytes(8, "little"), (1000).to_bytes(8, "little"))
    assert by_limits(below, 0, [limit, 2**128], 128, 1).tolist() == [0]
    assert by_limits(above, 0, [limit, 2**128], 128, 1).tolist() == [1]


def test_whole_numbers_are_uniform() -> None:
    bits = Bits(SeededRandomness(5))
    found = np.bincount([bits.below(6) for _ in range(30_000)], minlength=6)
    assert stats.chisquare(found).pvalue > 1e-4


def test_no_sampler_computes_with_floating_point() -> None:
    """Float noise gave itself away by its last bits; integer samplers have none."""
    import ast
    import inspect

    from veilgrid.risk import privacy_sampler

    tree = ast.parse(inspect.getsource(privacy_sampler))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            assert not isinstance(node.value, float)
        if isinstance(node, ast.Name):
            assert node.id != "exp"
    messages = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "float"
    ]
    assert len(messages) == 1  # in the text of a finding


def test_noise_beyond_its_bound_is_practically_never_drawn() -> None:
    """The bound of a share of noise is generous, so an honest one always passes the check."""
    for variance in (0.5, 30.0, 40_000.0):
        bound = tail_bound(variance)
        log_tail = stats.norm.logsf(bound / variance**0.5)
        assert log_tail < -40 or variance < 1
        assert stats.skellam.sf(bound - 1, variance / 2, variance / 2) < 1e-16


def test_rounding_on_shares_keeps_the_bound_of_the_change() -> None:
    """Two figures 700 apart stay within the coarse sensitivity whatever their last digits."""
    plain = Plain(1)
    for low in range(0, 5000, 7):
        both = [low, low + 700]
        steps = noise.coarsened(plain, plain.constant(both), 5, 6)
        try:
            next(steps)
        except StopIteration as stop:
            coarse: Shares = stop.value
        numbers = [int(value) for value in _opened(plain, coarse)]
        assert numbers == [value * 5 >> 6 for value in both]
        assert numbers[1] - numbers[0] <= -(-5 * 700 // 64)


def _opened(plain: Plain, x: Shares) -> list[int]:
    steps = plain.open(x)
    try:
        next(steps)
    except StopIteration as stop:
        return list(stop.value)
    raise AssertionError("plain numbers need no round")


def test_variances_that_no_table_holds_are_refused() -> None:
    with pytest.raises(InputError, match="coarser step"):
        poisson_limits(Fraction(10**9))
    with pytest.raises(InputError, match="variance"):
        discrete_gaussian(SeededRandomness(1), Fraction(0), 1)
