"""LinDistFlow on a radial network: flows, voltages, and the limits as linear rows.

Branch (p -> c): ``P_c = d_c + sum of children's P``, ``Q`` likewise, and
``u_c = u_p - 2 (r P_c + x Q_c)`` with u = v squared, all per-unit [model 3; Baran and Wu 1989].
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from veilgrid.errors import invariant
from veilgrid.grid.network import Floats, Integers, Network, Tree

POLYGON_SIDES = 32
"""Sides of the polygon inside the circle P^2 + Q^2 = rating^2; it gives up 0.5 % of the rating."""

INNER_RADIUS = float(np.cos(np.pi / POLYGON_SIDES))
"""Distance of the polygon's sides from its centre, of the rating."""


class Flows(NamedTuple):
    """Branch flows (branch, interval) and squared voltages (bus, interval), per-unit."""

    active: Floats
    reactive: Floats
    voltage_squared: Floats


def flows(tree: Tree, demand_p: Floats, demand_q: Floats) -> Flows:
    """Compute lossless branch flows and squared voltages of net demands.

    Parameters
    ----------
    tree
        The network.
    demand_p, demand_q : (bus, interval), per-unit
        Net demand (load minus injection) of each bus.

    Returns
    -------
    Flows
        The substation's row of ``active`` is the exchange with the grid above, import positive.
    """
    invariant(demand_p.shape == demand_q.shape, "one reactive demand for each active demand")
    active = np.asarray(tree.subtree @ demand_p)
    reactive = np.asarray(tree.subtree @ (demand_q - charging_injection(tree)[:, np.newaxis]))
    drop = 2.0 * (
        tree.resistance_pu[:, np.newaxis] * active + tree.reactance_pu[:, np.newaxis] * reactive
    )
    return Flows(active, reactive, tree.slack_voltage_pu**2 - np.asarray(tree.path @ drop))


def charging_injection(tree: Tree) -> Floats:
    """Reactive power that line charging injects at each bus at nominal voltage, (bus,), per-unit.

    Half of a branch's susceptance stands at each of its ends.
    """
    injection = tree.charging_pu / 2.0
    fed = tree.parent >= 0
    np.add.at(injection, tree.parent[fed], tree.charging_pu[fed] / 2.0)
    return np.asarray(injection * tree.slack_voltage_pu**2)


class Correction(NamedTuple):
    """What LinDistFlow leaves out, as narrower limits: arrays (bus, interval), >= 0.

    Attributes
    ----------
    low, high : per-unit squared
        Added to the lower and taken off the upper limit of a bus.
    rating : per-unit
        Taken off the rating of the branch that feeds a bus.
    """

    low: Floats
    high: Floats
    rating: Floats


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Voltage limits and ratings of a network as rows ``a_p . d + a_q . q <= bound``.

    Rows are numbered: ``[0, N)`` lower voltage limit of a bus, ``[N, 2N)`` upper limit,
    ``2N + k N + c`` side ``k`` of the rating polygon of the branch that feeds bus ``c``.

    Attributes
    ----------
    squared_min, squared_max : per-unit squared, None = unbounded
        Limits on u, the planning margin already taken off.
    correction
        Narrows limits further bus by bus and interval by interval; ``None`` = nowhere.
    """

    tree: Tree
    squared_min: float | None
    squared_max: float | None
    correction: Correction | None = None

    @classmethod
    def of(cls, network: Network, margin_pu: float | None = None) -> "Limits":
        """Take the limits of a network; ``margin_pu`` replaces the network's own margin."""
        margin = network.voltage_margin_pu if margin_pu is None else margin_pu
        low, high = network.voltage_min_pu, network.voltage_max_pu
        return cls(
            tree=network.tree,
            squared_min=None if low is None else (low + margin) ** 2,
            squared_max=None if high is None else (high - margin) ** 2,
        )

    @cached_property
    def rated(self) -> Integers:
        """Indices of branches with a finite rating."""
        return np.flatnonzero(np.isfinite(self.tree.rating_pu))

    @property
    def are_absent(self) -> bool:
        """No limit of any kind exists."""
        return self.squared_min is None and self.squared_max is None and not len(self.rated)

    @cached_property
    def angles(self) -> Floats:
        """Directions of the polygon's sides, (side,), radians."""
        return np.asarray(np.arange(POLYGON_SIDES) * (2.0 * np.pi / POLYGON_SIDES))

    @cached_property
    def shared_resistance(self) -> Floats:
        """(bus, bus), per-unit: twice the resistance that two buses' paths share."""
        return self._shared(self.tree.resistance_pu)

    @cached_property
    def shared_reactance(self) -> Floats:
        """(bus, bus), per-unit: twice the reactance that two buses' paths share."""
        return self._shared(self.tree.reactance_pu)

    def _shared(self, impedance: Floats) -> Floats:
        weighted = self.tree.path.multiply(2.0 * impedance[np.newaxis, :]).tocsr()
        return np.asarray((weighted @ self.tree.subtree).toarray())

    def excess(self, state: Flows, held: Integers | None = None) -> Floats:
        """Compute by how much each row is exceeded, (row, interval); <= 0 where it is kept.

        Voltage rows are in per-unit squared, rating rows in per-unit of apparent power; rows
        without a limit are -inf. ``held`` lists the intervals in ``state`` if these are not all.
        """
        count, intervals = state.active.shape
        sides = POLYGON_SIDES if len(self.rated) else 0
        excess = np.full(((2 + sides) * count, intervals), -np.inf)
        others = np.arange(count) != self.tree.root
        if self.squared_min is not None:
            excess[:count][others] = self.squared_min - state.voltage_squared[others]
        if self.squared_max is not None:
            excess[count : 2 * count][others] = state.voltage_squared[others] - self.squared_max
        reach = self.tree.rating_pu[self.rated] * INNER_RADIUS
        for side in range(sides):
            towards = (
                np.cos(self.angles[side]) * state.active[self.rated]
                + np.sin(self.angles[side]) * state.reactive[self.rated]
            )
            excess[(2 + side) * count + self.rated] = towards - reach[:, np.newaxis]
        if self.correction is not None:
            low, high, rating = (
                part if held is None else part[:, held] for part in self.correction
            )
            invariant(low.shape == state.active.shape, "each state has its own correction")
            excess[:count] += low
            excess[count : 2 * count] += high
            if sides:
                excess[2 * count :] += np.tile(INNER_RADIUS * rating, (sides, 1))
        return excess

    def narrowing(self, number: int, interval: int) -> float:
        """Return by how much the correction lowers a row's bound in one interval."""
        if self.correction is None:
            return 0.0
        kind, bus = divmod(number, len(self.tree))
        part = float(self.correction[min(kind, 2)][bus, interval])
        return part if kind < 2 else INNER_RADIUS * part

    def row(self, number: int) -> tuple[Floats, Floats, float]:
        """Return ``a_p``, ``a_q`` (bus,) and the bound of one row, per-unit.

        The constant effect of line charging is already in the bound, :meth:`narrowing` is not.
        """
        count = len(self.tree)
        kind, bus = divmod(number, count)
        if kind < 2:
            limit = self.squared_min if kind == 0 else self.squared_max
            invariant(limit is not None, "a row exists only where its limit does")
            sign = 1.0 if kind == 0 else -1.0
            active, reactive = sign * self.shared_resistance[bus], sign * self.shared_reactance[bus]
            bound = sign * (self.tree.slack_voltage_pu**2 - float(limit or 0.0))
        else:
            member = np.asarray(self.tree.subtree[[bus]].toarray())[0]
            angle = self.angles[kind - 2]
            active, reactive = np.cos(angle) * member, np.sin(angle) * member
            bound = float(self.tree.rating_pu[bus] * INNER_RADIUS)
        return active, reactive, bound + float(reactive @ charging_injection(self.tree))

    def describe(self, number: int) -> tuple[str, int]:
        """Return what a row limits (``voltage_min``, ``voltage_max``, ``rating``) and its bus."""
        kind, bus = divmod(number, len(self.tree))
        return ("voltage_min", "voltage_max", "rating")[min(kind, 2)], bus
