"""How much several noisy releases give away together [privacy 3].

The privacy loss of a release is a random number: the logarithm of how much likelier the result is
with one device's readings than with others. Its distribution adds up over releases, so that many
releases cost less than the sum of their epsilons. Wherever this is rounded, it is towards more
loss. Tests compare with the library dp-accounting.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import ive, log_ndtr

from veilgrid.errors import Finding, InputError, invariant

Floats = npt.NDArray[np.float64]

TAIL: Final = 1e-15
"""Probability that may be cut off a distribution; it counts as unlimited loss."""

_ROUNDING: Final = 1e-13  # what a fast Fourier transform may be wrong by
_STEP: Final = 1e-3
_WHOLE: Final = 1 << 18  # up to that many losses nothing is cut
_SIZE_MAX: Final = 1 << 22
_ORDERS: Final = np.geomspace(0.05, 2000.0, 60)


@dataclass(frozen=True, slots=True)
class Loss:
    """The distribution of a privacy loss, the same whichever of two neighbours is the truth.

    Attributes
    ----------
    start, step : natural logarithm
        Loss ``k`` is ``start + k * step``.
    masses : (k,)
        Probability of each loss.
    unlimited
        Probability of an unlimited loss.
    """

    start: float
    step: float
    masses: Floats
    unlimited: float = 0.0

    def losses(self) -> Floats:
        """Return the finite losses, (k,)."""
        return self.start + self.step * np.arange(self.masses.size, dtype=np.float64)

    def delta(self, epsilon: float) -> float:
        """Return the least delta with which ``epsilon`` holds."""
        gaps = -np.expm1(np.minimum(epsilon - self.losses(), 0.0))
        return min(self.unlimited + float(np.dot(gaps, self.masses)), 1.0)

    def epsilon(self, delta: float) -> float:
        """Return the least epsilon, at least 0, that holds with ``delta``; infinite if none."""
        if self.unlimited >= delta:
            return math.inf
        if self.delta(0.0) <= delta:
            return 0.0
        low, high = 0.0, max(float(self.losses()[-1]), self.step)
        while high - low > 1e-9 * max(high, 1e-3):
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > delta else (low, middle)
        return high

    def regrid(self, step: float) -> "Loss":
        """Return the same on multiples of ``step``, each loss rounded up."""
        places = np.ceil(self.losses() / step - 1e-9).astype(np.int64)
        first = int(places[0])
        masses = np.bincount(places - first, self.masses).astype(np.float64)
        return Loss(first * step, step, masses, self.unlimited)


def gaussian_loss(sigma: float, sensitivity: int) -> Loss:
    """Return the loss of one discrete Gaussian release.

    Parameters
    ----------
    sigma : > 0, steps
        Parameter of the discrete Gaussian.
    sensitivity : > 0, steps
        Largest change of the figure by one device.

    Returns
    -------
    Loss
        Exact but for cut tails: the loss is linear in the noise.
    """
    reach = int(9.0 * sigma + 2)
    values = np.arange(-reach, reach + 1)
    masses = np.exp(-(values.astype(np.float64) ** 2) / (2 * sigma**2))
    slope = sensitivity / sigma**2
    start = slope * -reach + sensitivity**2 / (2 * sigma**2)
    return Loss(start, slope, masses / masses.sum(), TAIL)


def skellam_loss(variance: float, sensitivity: int) -> Loss:
    """Return the loss of one release with Skellam noise of that variance, steps squared."""
    reach = int(9.0 * math.sqrt(variance) + 40 + sensitivity)
    values = np.arange(-reach, reach + 1)
    scaled = ive(np.abs(values).astype(np.float64), variance)
    usable = scaled > 1e-290
    logs = np.log(scaled, where=usable, out=np.full(scaled.size, -np.inf))
    moved = np.full(scaled.size, -np.inf)
    moved[: moved.size - sensitivity] = logs[sensitivity:]
    # The neighbour's noise must also be in the table; what is not counts as unlimited loss.
    known = usable & np.isfinite(moved)
    loss, mass = logs[known] - moved[known], scaled[known]
    step = max(_STEP * sensitivity / math.sqrt(variance), 1e-9)
    places = np.ceil(loss / step).astype(np.int64)
    first = int(places.min())
    total = np.bincount(places - first, mass).astype(np.float64)
    return Loss(first * step, step, total, max(1.0 - float(mass.sum()), 0.0) + TAIL)


def compose(parts: Sequence[tuple[Loss, int]]) -> Loss:
    """Return the loss of independent releases, each part so many times.

    Parts with one step are added exactly; other steps are replaced by a finer one, rounded up.
    """
    chosen = [(loss, count) for loss, count in parts if count > 0]
    if not chosen:
        return Loss(0.0, _STEP, np.ones(1))
    steps = {loss.step for loss, _ in chosen}
    if len(steps) > 1:
        step = _common_step(chosen)
        chosen = [(loss.regrid(step), count) for loss, count in chosen]
    step = chosen[0][0].step
    start = sum(loss.start * count for loss, count in chosen)
    longest = sum((loss.masses.size - 1) * count for loss, count in chosen) + 1
    shift, needed = 0, longest
    if longest > _WHOLE:
        low, high = _window(chosen)
        shift = max(math.floor((low - start) / step), 0)
        needed = min(math.ceil((high - start) / step) - shift + 2, longest - shift)
    if needed > _SIZE_MAX:
        raise InputError([Finding("accountant", "losses spread too far", "use more noise")])
    size = 1 << max(needed - 1, 1).bit_length()
    spectrum = np.ones(size // 2 + 1, np.complex128)
    kept = 1.0
    for loss, count in chosen:
        folded = np.bincount(np.arange(loss.masses.size) % size, loss.masses, size)
        spectrum *= np.fft.rfft(folded) ** count
        kept *= (1.0 - loss.unlimited) ** count
    masses = np.maximum(np.fft.irfft(spectrum, size), 0.0)
    masses = np.roll(masses, -(shift % size))
    cut = 2 * TAIL if longest - shift > size or shift else 0.0
    return Loss(start + shift * step, step, masses, min(1.0 - kept + cut + _ROUNDING, 1.0))


def _common_step(parts: Sequence[tuple[Loss, int]]) -> float:
    """Return a step whose rounding adds less than a thousandth of the spread."""
    spread = math.sqrt(sum(count * _variance(loss) for loss, count in parts))
    total = sum(count for _, count in parts)
    return max(min(2e-3 * spread / total, 1e-4), 20 * spread / _SIZE_MAX)


def _variance(loss: Loss) -> float:
    losses = loss.losses()
    mean = float(np.dot(losses, loss.masses))
    return float(np.dot((losses - mean) ** 2, loss.masses))


def _window(parts: Sequence[tuple[Loss, int]]) -> tuple[float, float]:
    """Return bounds outside which less than ``TAIL`` lies on each side, by Chernoff's bound."""
    spread = math.sqrt(sum(count * _variance(loss) for loss, count in parts))
    bounds = []
    for sign in (1.0, -1.0):
        best = math.inf
        for order in _ORDERS / max(spread, 1e-9) * 0.2:
            growth = sum(count * _log_moment(loss, sign * order) for loss, count in parts)
            best = min(best, (growth - math.log(TAIL)) / order)
        bounds.append(sign * best)
    return bounds[1], bounds[0]


def _log_moment(loss: Loss, order: float) -> float:
    powers = order * loss.losses()
    top = float(powers.max())
    return top + math.log(float(np.dot(np.exp(powers - top), loss.masses)) + 1e-300)


class Charge(msgspec.Struct, frozen=True, tag=True):
    """What one release costs.

    Attributes
    ----------
    kind
        ``gaussian`` (discrete), or ``skellam``.
    sigma : > 0, steps
        Parameter of the Gaussian; square root of the Skellam variance.
    sensitivity : > 0, steps
        Largest change by one device.
    count
        Numbers released so; two for a histogram, where one device moves one bin down, one up.
    slack
        Added to delta: what sampler and cut tails are away from the exact distribution.
    """

    kind: str
    sigma: float
    sensitivity: int
    count: int = 1
    slack: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no release can be."""
        claims = self.kind in ("gaussian", "skellam") and self.sigma > 0 and self.sensitivity > 0
        invariant(claims and self.count > 0, "a charge is positive and of a known kind")
        invariant(0.0 <= self.slack < 1.0, "slack is a probability")

    def loss(self) -> Loss:
        """Return the loss of one of its numbers."""
        return _loss(self.kind, self.sigma, self.sensitivity)


@cache
def _loss(kind: str, sigma: float, sensitivity: int) -> Loss:
    if kind == "gaussian":
        return gaussian_loss(sigma, sensitivity)
    return skellam_loss(sigma**2, sensitivity)


def spent(charges: Iterable[Charge]) -> Loss:
    """Return the loss of all charges together; slack counts as unlimited loss.

    The loss with which neighbours differ at a delta follows by :meth:`Loss.epsilon`.
    """
    listed = list(charges)
    counts: dict[tuple[str, float, int], int] = {}
    for one in listed:
        key = (one.kind, one.sigma, one.sensitivity)
        counts[key] = counts.get(key, 0) + one.count
    total = compose([(_loss(*key), count) for key, count in counts.items()])
    slack = sum(one.slack for one in listed)
    return Loss(total.start, total.step, total.masses, min(total.unlimited + slack, 1.0))


def zcdp_delta(rho: float, epsilon: float) -> float:
    """Return the delta of a release whose concentrated loss is ``rho``.

    Corollary 13 of [Canonne, Kamath and Steinke 2020], the best order found by search.
    """
    best = 0.0
    low, high = -12.0, 12.0
    for _ in range(4):
        grid = np.linspace(low, high, 200)
        excess = np.exp(grid)  # order minus one
        order = 1 + excess
        logs = excess * (order * rho - epsilon) - np.log(excess) + order * np.log1p(-1 / order)
        at = int(np.argmin(logs))
        best = min(best, float(logs[at]))
        low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, grid.size - 1)])
    return math.exp(best)


def zcdp_rho(epsilon: float, delta: float) -> float:
    """Return the largest concentrated loss within ``epsilon`` and ``delta``."""
    return _least(lambda noise: zcdp_delta(1 / (2 * noise**2), epsilon) <= delta, 1.0) ** -2 / 2


def normal_delta(noise: float, epsilon: float) -> float:
    """Return the delta of continuous Gaussian noise, in units of the sensitivity.

    [Balle and Wang 2018]; only where the search for integer noise begins.
    """
    half, ratio = 0.5 / noise, epsilon * noise
    first, second = log_ndtr(half - ratio), epsilon + log_ndtr(-half - ratio)
    return float(np.exp(first) - np.exp(second))


def _least(is_enough: Callable[[float], bool], guess: float) -> float:
    """Return the least positive number that is enough, to a ten-thousandth, from above."""
    factor, high = 1.02, guess
    while not is_enough(high):
        high, factor = high * factor, factor**2
        invariant(high < 1e9, "some noise is enough")
    factor, low = 1.02, high / 1.02
    while low > 1e-6 and is_enough(low):
        low, high, factor = low / factor, low, factor**2
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def sigma_for(
    kind: str, epsilon: float, delta: float, sensitivity: int, count: int = 1, slack: float = 0.0
) -> float:
    """Return the least noise with which ``count`` numbers keep ``epsilon`` and ``delta``.

    Parameters
    ----------
    kind
        ``gaussian`` or ``skellam``.
    epsilon : 0.001..10
        Of all numbers together.
    delta : 1e-11..0.1
        Of all numbers together.
    sensitivity : > 0, steps
        Largest change of each number by one device.
    count
        Numbers that one device changes.
    slack
        Of each, see :class:`Charge`.

    Returns
    -------
    > 0, steps
    """
    check_guarantee(epsilon, delta)

    def is_enough(ratio: float) -> bool:
        if ratio * sensitivity < 0.3:
            return False
        charge = Charge(kind, ratio * sensitivity, sensitivity, count, slack)
        part = compose([(charge.loss(), count)])
        return part.delta(epsilon) + count * slack <= delta

    guess = _least(lambda noise: normal_delta(noise, epsilon) <= delta, 1.0) * math.sqrt(count)
    return _least(is_enough, guess) * sensitivity


def check_guarantee(epsilon: float, delta: float) -> None:
    """Refuse parameters that promise nothing or cannot be kept.

    Raises
    ------
    InputError
        All findings at once.
    """
    findings = []
    if not 1e-3 <= epsilon <= 10:
        advice = "1 a day is usual; more than 10 would protect hardly anything"
        findings.append(Finding("--epsilon", f"found {epsilon:g}, expected 0.001..10", advice))
    if not 1e-11 <= delta <= 0.1:
        advice = "less than one over ten times the number of devices"
        findings.append(Finding("--delta", f"found {delta:g}, expected 1e-11..0.1", advice))
    if findings:
        raise InputError(findings)
