"""The network's half of exchange ADMM: the nearest net demands that the network can carry.

For each interval on its own: ``min cost(sum z) + sum penalty (w - z)^2 / 2`` subject to the
network's rows. Its dual is a small box-constrained problem: the substation's price lies between
the selling and the buying tariff, the strength of each row between zero and a ceiling. Rows join
only when they are exceeded, and on a fixed active set the step is linear [model 4].
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.network import Floats

Mask = NDArray[np.bool_]

EXCESS_TOLERANCE = 1e-10
"""Per-unit; rows exceeded by less are kept."""

INNER_MAX = 2.0**-7
"""Per-unit; no larger distance is kept from limits, however little rows weigh."""


class NetworkTarget(NamedTuple):
    """Result of a network step.

    Attributes
    ----------
    target_p, target_q : (bus, interval), per-unit
        Net demands that the network can carry.
    price : (interval,), currency per per-unit and interval
        Of active power at the substation.
    price_p, price_q : (bus, interval)
        Nodal prices; at a flexible bus ``penalty (w - target)``.
    rent : (interval,), currency
        What binding rows collect: strength times bound.
    """

    target_p: Floats
    target_q: Floats
    price: Floats
    price_p: Floats
    price_q: Floats
    rent: Floats


@dataclass
class _Rows:
    """Rows found necessary in one interval, with their strengths from the last step."""

    numbers: list[int] = field(default_factory=list)
    active: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    reactive: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    bounds: Floats = field(default_factory=lambda: np.zeros(0))
    strengths: Floats = field(default_factory=lambda: np.zeros(0))


class NetworkStep:
    """Project wishes of the sites onto what the network can carry, with penalties as the metric.

    Parameters
    ----------
    limits
        The network's rows.
    buy, sell : (interval,)
        Tariff, currency per per-unit and interval.
    give_p, give_q : (bus,), >= 0
        Inverse penalties: how far a unit of price moves a bus. 0 = the bus is rigid.
    strength_max : > 0, currency per unit of a row scaled to largest coefficient one
        Ceiling of a row's strength; a row that reaches it cannot be met.
    """

    def __init__(
        self,
        limits: Limits,
        buy: Floats,
        sell: Floats,
        give_p: Floats,
        give_q: Floats,
        strength_max: float,
    ) -> None:
        self.limits, self.buy, self.sell = limits, buy, sell
        self.give_p, self.give_q, self.strength_max = give_p, give_q, strength_max
        self.inner = 0.0
        self.stiffness = np.ones(len(buy))
        self._rows = [_Rows() for _ in buy]
        self._row_cache: dict[int, tuple[Floats, Floats, float, float]] = {}

    def stiffen(self, stiffness: Floats) -> None:
        """Multiply all penalties of an interval by its number, (interval,), > 0.

        Rows and strengths found so far stay as a start.
        """
        self.stiffness = stiffness

    def tighten(self, budget: float) -> None:
        """Keep all limits with an inner distance that costs about ``budget``, currency.

        Answers reach their targets only in the end; what they still lack then stays within the
        true limits. By the strengths of the last step, the first-order cost of a distance is their
        sum times it. Bounds from prices stay valid, because rents count the true limits.
        """
        total = self._strength()
        if total > 0.0:
            self.inner = min(budget / total, INNER_MAX)

    @property
    def inner_cost(self) -> float:
        """What the inner distance costs to first order, by the strengths of the last step."""
        return self.inner * self._strength()

    def _strength(self) -> float:
        return sum(strength for _, _, strength in self.strengths())

    def project(self, wish_p: Floats, wish_q: Floats) -> NetworkTarget:
        """Do one network step.

        Parameters
        ----------
        wish_p, wish_q : (bus, interval), per-unit
            Net demand plus price over penalty; at a rigid bus the net demand itself.
        """
        total, give = wish_p.sum(axis=0), float(self.give_p.sum())
        if give > 0.0:
            price = np.clip(self.stiffness * total / give, self.sell, self.buy)
        else:
            price = np.where(total > 0.0, self.buy, self.sell)
        price_p = np.tile(price, (len(wish_p), 1))
        price_q = np.zeros_like(wish_q)
        rent = np.zeros(len(price))
        if not self.limits.are_absent:
            self._settle(wish_p, wish_q, price, price_p, price_q, rent)
        target_p = wish_p - self.give_p[:, np.newaxis] / self.stiffness * price_p
        target_q = wish_q - self.give_q[:, np.newaxis] / self.stiffness * price_q
        return NetworkTarget(target_p, target_q, price, price_p, price_q, rent)

    def _settle(
        self,
        wish_p: Floats,
        wish_q: Floats,
        price: Floats,
        price_p: Floats,
        price_q: Floats,
        rent: Floats,
    ) -> None:
        """Find the strengths of the rows, interval by interval, adding exceeded rows."""
        for start, rows in enumerate(self._rows):
            if rows.numbers:
                self._resolve(start, wish_p, wish_q, price, price_p, price_q, rent)
        todo = np.arange(len(price), dtype=np.int64)
        while len(todo):
            soft_p = self.give_p[:, np.newaxis] / self.stiffness[todo]
            soft_q = self.give_q[:, np.newaxis] / self.stiffness[todo]
            target_p = wish_p[:, todo] - soft_p * price_p[:, todo]
            target_q = wish_q[:, todo] - soft_q * price_q[:, todo]
            state = flows(self.limits.tree, target_p, target_q)
            excess = self.limits.excess(state, todo) + self.inner
            open_intervals = []
            for place in np.flatnonzero(excess.max(axis=0) > EXCESS_TOLERANCE):
                interval = int(todo[place])
                if self._add_worst(interval, excess[:, place]):
                    self._resolve(interval, wish_p, wish_q, price, price_p, price_q, rent)
                    open_intervals.append(interval)
            todo = np.array(open_intervals, dtype=np.int64)

    def _add_worst(self, interval: int, excess: Floats) -> bool:
        """Add the most exceeded row that is not in play yet; return whether there was one."""
        rows = self._rows[interval]
        excess = excess.copy()
        excess[rows.numbers] = -np.inf
        number = int(np.argmax(excess))
        if excess[number] <= EXCESS_TOLERANCE:
            return False
        active, reactive, bound, scale = self.scaled_row(number)
        bound -= self.limits.narrowing(number, interval) / scale
        rows.numbers.append(number)
        rows.active = np.vstack([rows.active.reshape(-1, len(active)), active])
        rows.reactive = np.vstack([rows.reactive.reshape(-1, len(active)), reactive])
        rows.bounds = np.append(rows.bounds, bound)
        rows.strengths = np.append(rows.strengths, 0.0)
        return True

    def scaled_row(self, number: int) -> tuple[Floats, Floats, float, float]:
        """Return a row with its largest coefficient one, and the factor it was divided by.

        Its bound is that of an interval without correction.
        """
        if number not in self._row_cache:
            active, reactive, bound = self.limits.row(number)
            scale = float(max(np.abs(active).max(), np.abs(reactive).max(), 1e-12))
            self._row_cache[number] = (active / scale, reactive / scale, bound / scale, scale)
        return self._row_cache[number]

    def _resolve(
        self,
        interval: int,
        wish_p: Floats,
        wish_q: Floats,
        price: Floats,
        price_p: Floats,
        price_q: Floats,
        rent: Floats,
    ) -> None:
        """Solve the dual of one interval on the rows in play."""
        rows = self._rows[interval]
        count = len(rows.numbers)
        active = np.vstack([np.ones(len(self.give_p)), rows.active])
        reactive = np.vstack([np.zeros(len(self.give_q)), rows.reactive])
        gram = (active * self.give_p) @ active.T + (reactive * self.give_q) @ reactive.T
        gram /= self.stiffness[interval]
        push = active @ wish_p[:, interval] + reactive @ wish_q[:, interval]
        scales = np.array([self.scaled_row(number)[3] for number in rows.numbers])
        push[1:] -= rows.bounds - self.inner / scales
        low = np.concatenate([[self.sell[interval]], np.zeros(count)])
        high = np.concatenate([[self.buy[interval]], np.full(count, self.strength_max)])
        start = np.clip(np.concatenate([[price[interval]], rows.strengths]), low, high)
        dual = box_dual(gram, push, low, high, start)
        price[interval], rows.strengths = dual[0], dual[1:]
        price_p[:, interval] = dual @ active
        price_q[:, interval] = dual @ reactive
        rent[interval] = float(dual[1:] @ rows.bounds)

    def strengths(self) -> list[tuple[int, int, float]]:
        """Return (row, interval, strength) of each row in force, in the row's own unit."""
        return [
            (number, interval, float(strength / self.scaled_row(number)[3]))
            for interval, rows in enumerate(self._rows)
            for number, strength in zip(rows.numbers, rows.strengths, strict=True)
            if strength > 0.0
        ]

    def unmet(self) -> list[tuple[int, int]]:
        """Return (row, interval) of each row whose strength stands at the ceiling."""
        return [
            (number, interval)
            for interval, rows in enumerate(self._rows)
            for number, strength in zip(rows.numbers, rows.strengths, strict=True)
            if strength >= self.strength_max * (1.0 - 1e-9)
        ]


@njit(cache=True)  # type: ignore[untyped-decorator]
def box_dual(gram: Floats, push: Floats, low: Floats, high: Floats, start: Floats) -> Floats:
    """Minimise ``m'Gm/2 - push.m`` over ``low <= m <= high`` by an active-set method.

    Bounded-variable least squares on the normal equations [Stark and Parker 1995]: free the
    variable with the worst gradient, solve on the free ones, fix the first that meets its bound.

    Parameters
    ----------
    gram : (row, row)
        Positive semidefinite; a small ridge makes it definite.
    push, low, high, start : (row,)
        ``start`` lies within the bounds.

    Returns
    -------
    (row,)
    """
    count = len(push)
    scale = 1e-80
    for i in range(count):
        scale = max(scale, gram[i, i])
    value = start.copy()
    is_free = (value > low) & (value < high)
    for _ in range(50 * count + 50):
        while is_free.any() and _advance(gram, push, low, high, value, is_free, 1e-13 * scale):
            pass
        chosen = _worst_fixed(gram, push, low, high, value, is_free)
        if chosen < 0:
            break
        is_free[chosen] = True
    return value


@njit(cache=True)  # type: ignore[untyped-decorator]
def _advance(
    gram: Floats,
    push: Floats,
    low: Floats,
    high: Floats,
    value: Floats,
    is_free: Mask,
    ridge: float,
) -> bool:
    """Go towards the minimum on the free variables; return whether one met its bound."""
    members = np.flatnonzero(is_free)
    reduced = np.empty((len(members), len(members)))
    right = np.empty(len(members))
    for a, i in enumerate(members):
        right[a] = push[i]
        for j in range(len(push)):
            if not is_free[j]:
                right[a] -= gram[i, j] * value[j]
        for b in range(len(members)):
            reduced[a, b] = gram[i, members[b]]
        reduced[a, a] += ridge
    goal = np.linalg.solve(reduced, right)
    step, blocking, bound = 1.0, -1, 0.0
    for a, i in enumerate(members):
        end = min(max(goal[a], low[i]), high[i])
        if end != goal[a]:
            room = (end - value[i]) / (goal[a] - value[i])
            if room < step:
                step, blocking, bound = room, int(i), end
    for a, i in enumerate(members):
        moved = value[i] + step * (goal[a] - value[i])
        value[i] = min(max(moved, low[i]), high[i])
    if blocking < 0:
        return False
    value[blocking] = bound
    is_free[blocking] = False
    return True


@njit(cache=True)  # type: ignore[untyped-decorator]
def _worst_fixed(
    gram: Floats, push: Floats, low: Floats, high: Floats, value: Floats, is_free: Mask
) -> int:
    """Return the variable at a bound that gains most by leaving it, -1 if none gains."""
    worst, chosen = 0.0, -1
    for i in range(len(push)):
        if is_free[i] or low[i] == high[i]:
            continue
        slope, size = push[i], abs(push[i])
        for j in range(len(push)):
            slope -= gram[i, j] * value[j]
            size += abs(gram[i, j] * value[j])
        gain = slope if value[i] <= low[i] else -slope
        if gain > 1e-12 * size and gain > worst:
            worst, chosen = gain, i
    return chosen
