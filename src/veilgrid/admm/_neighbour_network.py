"""The network step among neighbours: rows are watched at their own bus, weighed at the substation.

Sums of wishes go up the tree, voltages come down, so each bus knows by how much wishes exceed its
own limits. The substation finds price and strengths of the few rows in play, and tells everybody;
with the public network each bus then knows its price, its target, and whether a row of its own is
still exceeded; the worst of each interval joins. The result is that of
:class:`veilgrid.admm.network_step.NetworkStep` [docs/protocol/neighbour.md].
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import sparse

from veilgrid.admm._neighbour_tree import Edges
from veilgrid.admm.network_step import EXCESS_TOLERANCE, NetworkStep, box_dual
from veilgrid.errors import invariant
from veilgrid.grid.lindistflow import INNER_RADIUS, POLYGON_SIDES, Flows, Limits
from veilgrid.grid.network import Floats, Integers

NO_ROW = -1


class Prices(NamedTuple):
    """What the substation announces after a network step.

    Attributes
    ----------
    price : (interval,), currency per per-unit and interval
        Of active power at the substation.
    numbers, intervals : (row in play,)
        Rows of :class:`Limits`; in the order in which they joined.
    strengths : (row in play,), currency per unit of the row scaled to largest coefficient one
    inner : >= 0, in the rows' own units
        Distance that is kept from all limits.
    """

    price: Floats
    numbers: Integers
    intervals: Integers
    strengths: Floats
    inner: float


class Worst(NamedTuple):
    """The most exceeded row of each interval that is not in play; arrays (interval,).

    ``number`` is :data:`NO_ROW` where none is exceeded, ``excess`` counts the inner distance in,
    ``wished`` is the excess of the wishes without it.
    """

    number: Integers
    excess: Floats
    wished: Floats

    def joined(self, other: "Worst") -> "Worst":
        """Take the worse of two in each interval; at a draw the row with the lower number."""
        is_worse = (other.excess > self.excess) | (
            (other.excess == self.excess) & (other.number < self.number) & (other.number != NO_ROW)
        )
        return Worst(
            np.where(is_worse, other.number, self.number),
            np.where(is_worse, other.excess, self.excess),
            np.where(is_worse, other.wished, self.wished),
        )


@dataclass(kw_only=True)
class PublicNetwork:
    """What everybody knows: tree, limits, and how far a unit of price moves each bus.

    Attributes
    ----------
    give_p, give_q : (bus,), >= 0
        Inverse penalties; 0 = the bus is rigid.
    """

    limits: Limits
    give_p: Floats
    give_q: Floats
    _rows: NetworkStep = field(init=False, repr=False)

    def __post_init__(self) -> None:
        none = np.zeros(0)
        self._rows = NetworkStep(self.limits, none, none, self.give_p, self.give_q, 1.0)

    def scaled_row(self, number: int) -> tuple[Floats, Floats, float, float]:
        """Return a row with its largest coefficient one, its bound, and the divisor."""
        return self._rows.scaled_row(number)

    def is_row(self, number: int) -> bool:
        """Whether a limit with this number exists."""
        limits = self.limits
        kind, bus = divmod(number, len(self.give_p))
        if number < 0 or kind >= 2 + POLYGON_SIDES:
            return False
        if kind < 2:
            level = limits.squared_min if kind == 0 else limits.squared_max
            return level is not None and bus != limits.tree.root
        return bool(np.isfinite(limits.tree.rating_pu[bus]))

    def nodal(self, at: Prices) -> tuple[Floats, Floats]:
        """Compute prices of all buses, two arrays (bus, interval)."""
        count = len(self.give_p)
        price_p = np.tile(at.price, (count, 1))
        price_q = np.zeros_like(price_p)
        for number, interval, strength in zip(at.numbers, at.intervals, at.strengths, strict=True):
            if strength > 0.0:
                active, reactive, _, _ = self.scaled_row(int(number))
                price_p[:, interval] += strength * active
                price_q[:, interval] += strength * reactive
        return price_p, price_q

    def multipliers(self, edges: Edges, at: Prices) -> Floats:
        """Multipliers of the children's ends, (edge, variable, interval).

        Of the flows they are the parent's nodal prices, of the squared voltage the strengths of
        the subtree's voltage limits.
        """
        price = np.stack(self.nodal(at), axis=1)
        lift = np.zeros((len(self.give_p), len(at.price)))
        for number, interval, strength in zip(at.numbers, at.intervals, at.strengths, strict=True):
            kind, bus = self.limits.describe(int(number))
            if kind != "rating":
                sign = 1.0 if kind == "voltage_min" else -1.0
                lift[bus, interval] += sign * strength / self.scaled_row(int(number))[3]
        raised = edges.up(lift)[edges.child][:, np.newaxis]
        return np.concatenate([price[edges.parent], raised], axis=1)

    def shifted(self, bus: int, wished: Flows, price_p: Floats, price_q: Floats) -> Flows:
        """Compute flows at one bus, (interval,), after all moved from wishes to targets."""
        limits, give_p, give_q = self.limits, self.give_p, self.give_q
        below: sparse.csr_matrix = limits.tree.subtree[[bus]]
        active = np.asarray(below @ (give_p[:, np.newaxis] * price_p))[0]
        reactive = np.asarray(below @ (give_q[:, np.newaxis] * price_q))[0]
        rise = (limits.shared_resistance[bus] * give_p) @ price_p
        rise = rise + (limits.shared_reactance[bus] * give_q) @ price_q
        return Flows(
            wished.active - active, wished.reactive - reactive, wished.voltage_squared + rise
        )

    def own_excess(self, bus: int, state: Flows) -> tuple[Integers, Floats]:
        """Return numbers of one bus's rows, and by how much flows (interval,) there exceed them."""
        limits, count = self.limits, len(self.give_p)
        correction = limits.correction
        low, high, less = (0.0, 0.0, 0.0) if correction is None else (c[bus] for c in correction)
        numbers, found = [], []
        if bus != limits.tree.root:
            if limits.squared_min is not None:
                numbers.append(bus)
                found.append(limits.squared_min - state.voltage_squared + low)
            if limits.squared_max is not None:
                numbers.append(count + bus)
                found.append(state.voltage_squared - limits.squared_max + high)
        rating = float(limits.tree.rating_pu[bus])
        if np.isfinite(rating):
            for side in range(POLYGON_SIDES):
                towards = np.cos(limits.angles[side]) * state.active
                towards = towards + np.sin(limits.angles[side]) * state.reactive
                numbers.append((2 + side) * count + bus)
                found.append(towards - (rating - less) * INNER_RADIUS)
        wide = len(state.active)
        return np.array(numbers, dtype=np.int64), np.array(found).reshape(len(numbers), wide)


def worst_of(numbers: Integers, excess: Floats, wished: Floats, at: Prices) -> Worst:
    """Pick the most exceeded row of each interval that is not in play.

    Parameters
    ----------
    numbers : (row,)
        Ascending.
    excess, wished : (row, interval)
        Of targets and of wishes, without the inner distance.
    at
        Rows in play and inner distance.
    """
    count = excess.shape[1]
    if not len(numbers):
        return Worst(
            np.full(count, NO_ROW, dtype=np.int64), np.full(count, -np.inf), np.zeros(count)
        )
    open_rows = excess + at.inner
    place = np.searchsorted(numbers, at.numbers)
    mine = np.flatnonzero(place < len(numbers))
    mine = mine[numbers[place[mine]] == at.numbers[mine]]
    open_rows[place[mine], at.intervals[mine]] = -np.inf
    row = open_rows.argmax(axis=0)
    every = np.arange(count)
    worst = open_rows[row, every]
    is_broken = worst > EXCESS_TOLERANCE
    return Worst(
        np.where(is_broken, numbers[row], NO_ROW),
        np.where(is_broken, worst, -np.inf),
        np.where(is_broken, wished[row, every], 0.0),
    )


class Substation:
    """The substation's half of the network step: prices and strengths from sums and excesses.

    Parameters
    ----------
    network
        What everybody knows.
    buy, sell : (interval,)
        Tariff.
    strength_max : > 0
        Ceiling of a row's strength.
    """

    def __init__(
        self, network: PublicNetwork, buy: Floats, sell: Floats, strength_max: float
    ) -> None:
        self.network, self.buy, self.sell = network, buy, sell
        self.strength_max = strength_max
        self.inner = 0.0
        self._members: list[list[int]] = [[] for _ in buy]
        none = np.zeros(0, dtype=np.int64)
        self.at = Prices(buy.copy(), none, none, np.zeros(0), 0.0)
        self._wished = np.zeros(0)
        self._total = np.zeros(len(buy))

    def begin(self, total: Floats, wished: Floats) -> Prices:
        """Find prices for new wishes on the rows in play.

        ``total`` (interval,) is the sum of the wishes, ``wished`` (row in play,) by how much they
        exceed these rows.
        """
        invariant(len(wished) == len(self.at.numbers), "one excess for each row in play")
        self._total, self._wished = total, wished
        give = float(self.network.give_p.sum())
        if give > 0.0:
            price = np.clip(total / give, self.sell, self.buy)
        else:
            price = np.where(total > 0.0, self.buy, self.sell)
        self.at = self.at._replace(
            price=price, strengths=self.at.strengths.copy(), inner=self.inner
        )
        for interval, members in enumerate(self._members):
            if members:
                self._resolve(interval)
        return self.at

    def add(self, worst: Worst) -> bool:
        """Let the worst rows join and find prices anew; return whether there were any."""
        chosen = np.flatnonzero(worst.number != NO_ROW)
        if not len(chosen):
            return False
        first = len(self.at.numbers)
        self._wished = np.concatenate([self._wished, worst.wished[chosen]])
        self.at = self.at._replace(
            price=self.at.price.copy(),
            numbers=np.concatenate([self.at.numbers, worst.number[chosen]]),
            intervals=np.concatenate([self.at.intervals, chosen]),
            strengths=np.concatenate([self.at.strengths, np.zeros(len(chosen))]),
        )
        for place, interval in enumerate(chosen.tolist()):
            self._members[interval].append(first + place)
            self._resolve(interval)
        return True

    def _resolve(self, interval: int) -> None:
        members, network = self._members[interval], self.network
        rows = [network.scaled_row(int(self.at.numbers[member])) for member in members]
        active = np.array([np.ones(len(network.give_p)), *(row[0] for row in rows)])
        reactive = np.array([np.zeros(len(network.give_q)), *(row[1] for row in rows)])
        gram = (active * network.give_p) @ active.T + (reactive * network.give_q) @ reactive.T
        scales = np.array([row[3] for row in rows])
        push = np.concatenate(
            [[self._total[interval]], (self._wished[members] + self.inner) / scales]
        )
        low = np.concatenate([[self.sell[interval]], np.zeros(len(rows))])
        high = np.concatenate([[self.buy[interval]], np.full(len(rows), self.strength_max)])
        start = np.concatenate([[self.at.price[interval]], self.at.strengths[members]])
        dual = box_dual(gram, push, low, high, np.clip(start, low, high))
        self.at.price[interval], self.at.strengths[members] = dual[0], dual[1:]

    def tighten(self, budget: float) -> None:
        """Keep all limits with an inner distance that costs about ``budget``, currency."""
        scales = [self.network.scaled_row(int(number))[3] for number in self.at.numbers]
        total = float((self.at.strengths / np.array(scales)).sum()) if scales else 0.0
        if total > 0.0:
            self.inner = budget / total

    def rent(self) -> float:
        """Add up what binding rows collect: strengths times the true bounds, currency."""
        total, limits = 0.0, self.network.limits
        rows = zip(self.at.numbers, self.at.intervals, self.at.strengths, strict=True)
        for number, interval, strength in rows:
            _, _, bound, scale = self.network.scaled_row(int(number))
            total += strength * (bound - limits.narrowing(int(number), int(interval)) / scale)
        return float(total)

    @property
    def has_unmet(self) -> bool:
        """Whether a row stands at the ceiling of its strength: prices alone cannot keep it."""
        return bool((self.at.strengths >= self.strength_max * (1.0 - 1e-9)).any())
