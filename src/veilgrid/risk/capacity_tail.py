"""From sums of log-moments to quantiles, a certified bound and tail means [capacity 4].

All numbers here are public: the committee opened the sums. Power is in units of the largest
capacity that a device may have, ``s`` in its inverse.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from veilgrid.errors import invariant
from veilgrid.grid.network import Floats

POINTS: Final = np.array(
    [-9.0, -6.0, -4.5, -3.5, -2.7, -2.0, -1.4, -0.8, -0.3, 0.3, 0.8, 1.5, 2.2, 3.2, 4.5, 7.0]
)
"""Sixteen public points, in standard deviations: where log-moments of a scenario are opened."""

BOUND_FACTORS: Final = np.array([0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 1.7, 4.0])
"""Where the certified bound is tried, as multiples of the point that a normal sum would choose."""

POINT_MAX: Final = 200.0
_SPREAD_MIN: Final = 1e-4
_STEPS: Final = 4000
ATOMS_MAX: Final = 100_000

_Below = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of the sum under each scenario: (scenario,)."""

    mean: Floats
    variance: Floats


@dataclass(frozen=True, slots=True)
class LogMoments:
    """Sums of log-moments and their derivatives at the points of each scenario.

    Attributes
    ----------
    points, value, slope, curvature : (scenario, point)
    """

    points: Floats
    value: Floats
    slope: Floats
    curvature: Floats


@dataclass(frozen=True, slots=True)
class Tail:
    """What the fleet can be relied on for.

    Attributes
    ----------
    quantile, certified, shortfall_mean
        Power that is there with the confidence; a bound proved to lie below; the mean of the
        worst cases outside the confidence.
    levels : (level,)
        Probabilities of further quantiles, for pictures.
    quantiles : (level,)
    """

    quantile: float
    certified: float
    shortfall_mean: float
    levels: Floats
    quantiles: Floats


def points_of(moments: Moments) -> Floats:
    """Return the points of each scenario: (scenario, point)."""
    spread = np.sqrt(np.maximum(moments.variance, 0.0))
    scale = np.maximum(spread, _SPREAD_MIN * np.maximum(moments.mean, 1.0))
    return np.clip(POINTS[None, :] / scale[:, None], -POINT_MAX, POINT_MAX)


def bound_points_of(moments: Moments, weights: Floats, miss: float) -> Floats:
    """Return where the certified bound is tried, the same for all scenarios: (point,)."""
    tried = np.geomspace(1e-6, POINT_MAX, 400)
    exponents = -np.outer(moments.mean, tried) + np.outer(moments.variance, tried**2) / 2
    best = int(np.argmax(_bounds(tried, exponents, weights, miss)))
    return np.asarray(np.minimum(np.unique(tried[best] * BOUND_FACTORS), POINT_MAX))


def certified(points: Floats, values: Floats, weights: Floats, miss: float) -> float:
    """Return a power that the sum falls below with a probability of at most ``miss``.

    ``values`` (scenario, point) are log-moments at minus ``points``, none too small. Markov's
    inequality for ``exp(-s C)`` at any one point proves the bound (Chernoff; the largest of them
    is the entropic value at risk of Ahmadi-Javid 2012).
    """
    best = float(np.max(_bounds(points, values, weights, miss)))
    return max(best - 1e-9 * abs(best), 0.0)


def _bounds(points: Floats, values: Floats, weights: Floats, miss: float) -> Floats:
    with np.errstate(divide="ignore"):
        logs = np.log(weights)[:, None] + values
    top = logs.max(axis=0)
    mixed = top + np.log(np.exp(logs - top).sum(axis=0))
    return np.asarray((np.log(miss) - mixed) / points)


class _Scenario:
    """The distribution of the sum under one scenario, from its log-moments."""

    def __init__(self, points: Floats, value: Floats, slope: Floats, curve: Floats, step: float):
        order = np.argsort(slope)
        points, value, slope, curve = (row[order] for row in (points, value, slope, curve))
        root = np.sign(points) * np.sqrt(np.maximum(2.0 * (points * slope - value), 0.0))
        wide = 2.0 / step * np.sinh(np.clip(points * step / 2.0, -300, 300)) if step else points
        saddle = wide * np.sqrt(np.maximum(curve, 0.0))
        good = (np.abs(root) > 1e-6) & (np.abs(saddle) > 1e-12) & (root * saddle > 0)
        scores = root[good] + np.log(saddle[good] / root[good]) / root[good]
        places = slope[good]
        kept = _rising(places, scores)
        self._places, self._scores = places[kept], scores[kept]
        self._centre = float(np.mean(slope))
        if len(self._places) >= 2:
            self._inner = PchipInterpolator(self._places, self._scores)
            ends = np.diff(self._scores[[0, 1, -2, -1]])[[0, 2]]
            gaps = np.diff(self._places[[0, 1, -2, -1]])[[0, 2]]
            self._slopes = ends / gaps

    def score(self, x: Floats) -> Floats:
        """Return the normal score of the probability to stay below each ``x``."""
        if len(self._places) < 2:
            return np.where(x < self._centre, -40.0, 40.0)
        low, high = self._places[0], self._places[-1]
        inner = self._inner(np.clip(x, low, high))
        below = np.minimum(x - low, 0.0) * self._slopes[0]
        above = np.maximum(x - high, 0.0) * self._slopes[1]
        return np.asarray(inner + below + above)


def _rising(places: Floats, scores: Floats) -> list[int]:
    """Return the points at which both grow."""
    kept: list[int] = []
    for index in range(len(places)):
        if not kept or (
            places[index] - places[kept[-1]] > 1e-9 * max(abs(places[index]), 1.0)
            and scores[index] > scores[kept[-1]]
        ):
            kept.append(index)
    return kept


def tail_of(
    logs: LogMoments,
    weights: Floats,
    miss: float,
    *,
    installed: float,
    floor: float,
    step: float = 0.0,
    levels: Sequence[float] = (),
) -> Tail:
    """Return the quantile and the mean below it.

    Parameters
    ----------
    logs
        Of each scenario.
    weights : (scenario,), sum 1
        Probabilities of the scenarios.
    miss : 0..1
        One minus the confidence.
    installed
        Sum of all capacities.
    floor
        The certified bound.
    step
        If not zero: all capacities are multiples of it, and so is the quantile.
    levels
        Probabilities of further quantiles.
    """
    invariant(bool(abs(weights.sum() - 1.0) < 1e-9), "probabilities of scenarios add up to one")
    parts = [
        _Scenario(logs.points[j], logs.value[j], logs.slope[j], logs.curvature[j], step)
        for j in range(len(weights))
    ]

    def below(x: Floats) -> Floats:
        scores = np.stack([part.score(x) for part in parts])
        return np.asarray(weights @ ndtr(scores))

    def quantile(level: float) -> float:
        return _quantile(below, level, installed, step)

    found = max(quantile(miss), floor)
    return Tail(
        quantile=found,
        certified=floor,
        shortfall_mean=min(max(_mean_below(below, found, miss, step), floor), found),
        levels=np.asarray(levels, dtype=np.float64),
        quantiles=np.array([quantile(level) for level in levels], dtype=np.float64),
    )


def _quantile(below: _Below, level: float, installed: float, step: float) -> float:
    """Return the largest power that the sum falls below with at most that probability."""

    def gap(x: float) -> float:
        return float(below(np.array([x]))[0]) - level

    low, high = 0.0, installed + (step or 1e-9 * max(installed, 1.0))
    if gap(low) >= 0.0:
        crossing = low
    elif gap(high) <= 0.0:
        crossing = high
    else:
        crossing = float(brentq(gap, low, high, xtol=1e-10 * max(installed, 1.0)))
    if step:
        # Half a step above a multiple stands the probability to exceed it.
        return float(min(np.floor(crossing / step + 0.5) * step, installed))
    return min(crossing, installed)


def _mean_below(below: _Below, quantile: float, miss: float, step: float) -> float:
    """Return the mean of the worst cases: the quantile minus the expected gap to it."""
    if quantile <= 0.0:
        return 0.0
    if step and quantile / step <= 10 * _STEPS:
        places = ((np.arange(round(quantile / step)) + 0.5) * step).astype(np.float64)
        return quantile - float(below(places).sum()) * step / miss
    places = np.linspace(0.0, quantile, 10 * _STEPS + 1)
    return quantile - float(np.trapezoid(below(places), places)) / miss


def exact_tail(
    places: Floats,
    levels: Sequence[Floats],
    counts: Sequence[Floats],
    weights: Floats,
    miss: float,
    wanted: Sequence[float] = (),
) -> Tail:
    """Return the tail of a small fleet by convolution.

    Parameters
    ----------
    places : (bin,)
        Capacities.
    levels : one a scenario, (class,)
        Probabilities of failure.
    counts : one a scenario, (class, bin)
        How many devices there are of each.
    weights : (scenario,), sum 1
        Probabilities of the scenarios.
    miss : 0..1
        One minus the confidence.
    wanted
        Probabilities of further quantiles.
    """
    sums, masses = [], []
    tried = np.geomspace(1e-6, POINT_MAX, 400)
    values = np.zeros((len(counts), len(tried)))
    for j, table in enumerate(counts):
        at, mass = np.zeros(1), np.ones(1)
        for row, column in zip(*np.nonzero(table), strict=True):
            p, size, count = levels[j][row], places[column], int(table[row, column])
            there = np.arange(count + 1)
            at, mass = _merged(
                np.add.outer(at, there * size), np.outer(mass, binom.pmf(there, count, 1 - p))
            )
            with np.errstate(divide="ignore"):
                values[j] += count * np.logaddexp(np.log(p), np.log1p(-p) - tried * size)
        sums.append(at)
        masses.append(weights[j] * mass)
    at, mass = _merged(np.concatenate(sums), np.concatenate(masses))
    running = np.cumsum(mass)

    def place(level: float) -> int:
        return min(int(np.searchsorted(running, level + 1e-12, side="right")), len(at) - 1)

    last = place(miss)
    before = float(running[last - 1]) if last else 0.0
    worst = float(at[:last] @ mass[:last]) + max(miss - before, 0.0) * float(at[last])
    floor = min(certified(tried, values, weights, miss), float(at[last]))
    return Tail(
        quantile=float(at[last]),
        certified=floor,
        shortfall_mean=min(max(worst / miss, floor), float(at[last])),
        levels=np.asarray(wanted, dtype=np.float64),
        quantiles=np.array([at[place(level)] for level in wanted], dtype=np.float64),
    )


def _merged(at: Floats, mass: Floats) -> tuple[Floats, Floats]:
    """Add up the probabilities of equal sums; if there are very many, of nearly equal ones."""
    flat = at.reshape(-1)
    grain = 1e-12 if flat.size <= ATOMS_MAX else 1.0 / ATOMS_MAX
    scale = max(float(flat.max()), 1.0) * grain
    units, where = np.unique(np.rint(flat / scale), return_inverse=True)
    added = np.bincount(where.reshape(-1), mass.reshape(-1), len(units))
    return units * scale, np.asarray(added, np.float64)


def normal_quantile(moments: Moments, weights: Floats, miss: float) -> float:
    """Return what a normal approximation would promise; it errs on the unsafe side."""
    mean = float(weights @ moments.mean)
    variance = float(weights @ (moments.variance + moments.mean**2)) - mean**2
    return mean + float(ndtri(miss)) * float(np.sqrt(max(variance, 0.0)))
