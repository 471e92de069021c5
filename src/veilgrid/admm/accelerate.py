"""Anderson acceleration of a fixed-point map, from inner products alone.

Only the Gram matrix of past residuals is needed to find the mixing weights, so sites can keep their
parts of the state to themselves and add up inner products [Walker and Ni 2011].
"""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from veilgrid.errors import invariant
from veilgrid.grid.network import Floats

Flags = NDArray[np.bool_]
Powers = NDArray[np.int8]

BALANCE_FACTOR = 4.0
"""By which a balance changes penalties at a time."""

RATIO_MAX = 3.0
"""Logarithm beyond which a single step's ratio tells nothing more."""

STRETCH_MAX = 1024.0
"""Longest stride through a drift, in plain steps."""


def mixing_weights(gram: Floats, regularisation: float = 1e-10) -> Floats:
    """Return weights that sum to one and make the mixed residual small.

    Parameters
    ----------
    gram : (past, past)
        Inner products of the residuals ``image - point``, newest last.
    regularisation : > 0
        Relative to the mean squared residual; larger is more cautious.

    Returns
    -------
    (past,)
    """
    count = len(gram)
    invariant(gram.shape == (count, count) and count > 0, "a Gram matrix is square")
    scale = float(np.trace(gram)) / count
    if not np.isfinite(scale) or scale <= 0.0:
        return np.asarray(np.eye(count)[-1])
    ridge = gram / scale + regularisation * np.eye(count)
    raw = np.linalg.lstsq(ridge, np.ones(count), rcond=None)[0]
    total = float(raw.sum())
    if not np.isfinite(total) or abs(total) < 1e-12:
        return np.asarray(np.eye(count)[-1])
    return np.asarray(raw / total)


class Anderson:
    """Accelerate ``point -> image``; the caller guards the step and calls :meth:`forget`.

    Parameters
    ----------
    memory : >= 1
        How many past pairs to mix; 1 = no acceleration.
    """

    def __init__(self, memory: int, regularisation: float = 1e-10) -> None:
        invariant(memory >= 1, "acceleration remembers at least the present pair")
        self._images: deque[Floats] = deque(maxlen=memory)
        self._residuals: deque[Floats] = deque(maxlen=memory)
        self._regularisation = regularisation

    def forget(self) -> None:
        """Drop the past, after a jump or a failed step."""
        self._images.clear()
        self._residuals.clear()

    def mix(self, point: Floats, image: Floats) -> tuple[Floats, Floats]:
        """Return the mixture of this pair's and the past images, and that of the residuals.

        Arrays are flat. The mixed residual is nearly the shortest one that the past allows.
        """
        self._images.append(image)
        self._residuals.append(image - point)
        residuals = np.array(self._residuals)
        weights = mixing_weights(residuals @ residuals.T, self._regularisation)
        return np.asarray(weights @ np.array(self._images)), np.asarray(weights @ residuals)


class PenaltyBalance:
    """Change all penalties by a common factor while prices and targets move out of proportion.

    Residual balancing [Boyd 2011, section 3.4.1] for the splitting in one state: with a penalty
    that suits the problem, prices and targets move about equally far, both measured in the metric.
    Prices that run ahead call for larger penalties, targets that run ahead for smaller ones. One
    change is a power of :data:`BALANCE_FACTOR`; it needs a whole window of plain steps on the same
    side, each change makes the next window twice as long, and there are few of them, so that the
    iteration ends as one with a fixed metric.

    Parameters
    ----------
    window : >= 1
        Steps that are judged together.
    low, high : 0 < low < 1 < high
        Geometric mean of price movement over target movement outside of which penalties change.
    change_count_max : >= 0
        0 = penalties stay.
    """

    def __init__(
        self,
        window: int = 6,
        low: float = 0.25,
        high: float = 2.0,
        change_count_max: int = 4,
    ) -> None:
        invariant(0.0 < low < 1.0 < high, "balance lies between the two thresholds")
        self._window, self._low, self._high = window, low, high
        self._changes_left = change_count_max
        self._ratios: list[float] = []

    def judge(self, price_moved: float, target_moved: float) -> float:
        """Take one plain step's movements, >= 0; return the factor for the penalties, often 1."""
        if not self._changes_left or price_moved <= 0.0 or target_moved <= 0.0:
            return 1.0
        ratio = float(np.log(price_moved) - np.log(target_moved))
        self._ratios.append(min(max(ratio, -RATIO_MAX), RATIO_MAX))
        if len(self._ratios) < self._window:
            return 1.0
        mean = float(np.exp(np.mean(self._ratios[-self._window :])))
        if self._low <= mean <= self._high:
            return 1.0
        self._changes_left -= 1
        self._window *= 2
        self._ratios.clear()
        return BALANCE_FACTOR if mean > self._high else 1.0 / BALANCE_FACTOR


class IntervalBalance:
    """Change the penalties of single intervals while prices and targets move out of proportion.

    Residual balancing [Boyd 2011, section 3.4.1], interval by interval, because they differ: where
    storage can serve any of several intervals, targets move far and prices little, and where it
    serves none, only the price moves. One penalty for both makes either crawl. What is judged are
    sums of squares over all sites, in the metric, since it was judged last. Both questions are
    whether a weighted difference of two such sums is positive: where the sums are shared among
    parties, opening two signs an interval answers them.

    Attributes
    ----------
    powers : (interval,), -:data:`POWER_MAX` to :data:`POWER_MAX`
        Of :data:`BALANCE_FACTOR`, by which the penalties of all sites are multiplied.
    """

    JUDGED = (7, 13, 19, 25, 31, 37, 43, 61, 85, 109)
    """Network steps after which it is judged."""

    STRIDES_FROM = 37
    """Network step from which on movements during strides count: without an end, they are all."""

    LOW, HIGH = 0.25, 4.0
    """Price movement over target movement outside of which an interval's penalties change."""

    POWER_MAX = 2

    LEAST = 2.0**-40
    """Times the highest tariff: less movement than this, in currency, does not count."""

    def __init__(self, interval_count: int) -> None:
        self.powers: Powers = np.zeros(interval_count, np.int8)

    @property
    def stiffness(self) -> Floats:
        """By which the penalties of all sites are multiplied, (interval,)."""
        return stiffness_of(self.powers)

    @classmethod
    def excess(cls, price_moved: Floats, target_moved: Floats) -> tuple[Floats, Floats]:
        """Return by how much prices, and targets, moved too far: positive where they did.

        Parameters
        ----------
        price_moved, target_moved : (..., interval), >= 0
            Sums of squares in the metric.
        """
        return (
            price_moved - cls.HIGH**2 * target_moved,
            cls.LOW**2 * target_moved - price_moved,
        )

    def change(self, is_stiffer: Flags, is_softer: Flags) -> bool:
        """Change the penalties of some intervals; return whether any changed.

        Parameters
        ----------
        is_stiffer, is_softer : (interval,)
            Where prices, and where targets, moved too far.
        """
        moved = self.powers + is_stiffer - (is_softer & ~is_stiffer)
        before, self.powers = self.powers, bounded_powers(moved)
        return bool((self.powers != before).any())


def stiffness_of(powers: Powers) -> Floats:
    """By which penalties are multiplied, (interval,), > 0."""
    return np.asarray(BALANCE_FACTOR ** powers.astype(np.float64))


def bounded_powers(powers: NDArray[np.integer]) -> Powers:
    """Return powers, (interval,), within what a balance may reach."""
    most = IntervalBalance.POWER_MAX
    return np.asarray(np.clip(powers, -most, most), np.int8)


class GuardedAnderson:
    """Anderson acceleration with a guard, and long strides where the map only drifts.

    On problems with flat pieces (batteries without cost) splitting methods drift: part of the
    residual stays the same vector while prices climb towards the next kink. Mixing cancels what
    oscillates, and what it leaves is that drift: while the mixed residual is not much shorter
    than the plain one, the step along it is doubled from mixing to mixing. A step that made the
    residual grow is taken back to the plain step before it.

    Parameters
    ----------
    memory : >= 1
        Past pairs to mix; 1 = plain iteration.
    interval : >= 1
        Steps from one mixing to the next.
    growth_max : >= 1
        Growth of the residual that takes a step back.
    drift_min : in (0, 1]
        Mixed over plain residual from which the map drifts.
    reach_max : > 0
        Longest way of a mixture from the plain step, in plain steps; in a drift the mixture is
        nearly undetermined and would jump anywhere.
    """

    def __init__(
        self,
        memory: int,
        interval: int = 1,
        growth_max: float = 2.0,
        drift_min: float = 0.8,
        reach_max: float = 20.0,
    ) -> None:
        self._mixer, self._memory, self._interval = Anderson(memory), memory, interval
        self._growth_max, self._drift_min, self._reach_max = growth_max, drift_min, reach_max
        self._plain: Floats | None = None
        self._residual = np.inf
        self._stretch = 1.0
        self._step = 0

    @property
    def is_striding(self) -> bool:
        """Whether the map drifts and steps along it are stretched."""
        return self._stretch > 1.0

    def forget(self) -> None:
        """Drop the past: the map has changed."""
        self._mixer.forget()
        self._plain, self._residual = None, np.inf
        self._stretch, self._step = 1.0, 0

    def mix(self, point: Floats, step: Floats) -> Floats:
        """Return the next point after the plain step ``point -> point + step``; flat arrays."""
        if self._memory == 1:
            return point + step
        residual = float(np.linalg.norm(step))
        plain, self._plain = self._plain, None
        if plain is not None and residual > self._growth_max * self._residual:
            self._mixer.forget()
            self._stretch = 1.0
            return plain
        image = point + step
        mixed, drift = self._mixer.mix(point, image)
        self._step += 1
        if self._step % self._interval:
            return image
        self._plain, self._residual = image, residual
        length = float(np.linalg.norm(mixed - image))
        if length > self._reach_max * residual:
            mixed = image + (self._reach_max * residual / length) * (mixed - image)
        if np.linalg.norm(drift) <= self._drift_min * residual:
            self._stretch = 1.0
            return mixed
        self._stretch = min(2.0 * self._stretch, STRETCH_MAX)
        return mixed + self._stretch * drift
