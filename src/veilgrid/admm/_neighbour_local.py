"""Local problems of neighbouring sites: closed forms over many sites, and one program a site.

Between its edges a site is a junction: what flows in from the parent is its own net demand plus
what flows out to the children. All of that is quadratic and is eliminated by hand, so that a
quadratic in the net demand remains, ``(d + outflow - wish)' stiffness (d + outflow - wish) / 2``,
with one constant 2 x 2 stiffness a site [docs/protocol/neighbour.md 2].
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from veilgrid.admm._neighbour_tree import Edges
from veilgrid.errors import invariant
from veilgrid.grid.lindistflow import POLYGON_SIDES, Limits
from veilgrid.grid.network import Floats, Integers


class Targets(NamedTuple):
    """What the edges pull a site's copies towards, for each of several sites.

    Attributes
    ----------
    own : (site, variable, interval)
        Of the edge to the parent; meaningless for the substation.
    outflow : (site, flow=2, interval)
        Sum of the targets of the children's flows P and Q.
    voltage : (site, interval)
        Penalty-weighted mean of the targets of the site's own squared voltage; 0 without children.
    """

    own: Floats
    outflow: Floats
    voltage: Floats


class Answer(NamedTuple):
    """What several sites' local problems yield.

    Attributes
    ----------
    own : (site, variable, interval)
        The sites' copies of the variables of the edge to the parent.
    voltage : (site, interval)
        The sites' own squared voltages, their copies for all edges to children.
    price : (site, flow=2, interval), currency per per-unit
        What one more unit of net demand would cost the site.
    demand : (site, flow=2, interval), per-unit
        Net demand, charging taken off the reactive part.
    """

    own: Floats
    voltage: Floats
    price: Floats
    demand: Floats


@dataclass(frozen=True, kw_only=True)
class Junctions:
    """Constants of several sites' local problems, one entry a site.

    Attributes
    ----------
    bus : (site,)
    penalty : (site, variable)
        Of the edge to the parent.
    slack : (site, flow=2)
        One over the joint penalty of the children's flows: sum of 1 / penalty; 0 without children.
    voltage_penalty : (site,)
        Sum of the children's penalties on the site's own squared voltage.
    resistance, reactance : (site,), per-unit
        Twice those of the branch that feeds the site.
    squared_min, squared_max : per-unit squared
        May be infinite.
    reach : (site,), per-unit
        Distance of the sides of the rating polygon from its centre; may be infinite.
    """

    bus: Integers
    penalty: Floats
    slack: Floats
    voltage_penalty: Floats
    resistance: Floats
    reactance: Floats
    squared_min: float
    squared_max: float
    reach: Floats

    @classmethod
    def of(cls, edges: Edges, limits: Limits, penalty: Floats, bus: Integers) -> "Junctions":
        """Take the constants of the given buses; ``penalty`` is (edge, variable)."""
        tree = edges.tree
        own = np.ones((len(bus), 3))
        fed = edges.of_bus[bus] >= 0
        own[fed] = penalty[edges.of_bus[bus[fed]]]
        low, high = limits.squared_min, limits.squared_max
        return cls(
            bus=bus,
            penalty=own,
            slack=edges.over_children(1.0 / penalty[:, :2])[bus],
            voltage_penalty=edges.over_children(penalty[:, 2])[bus],
            resistance=2.0 * tree.resistance_pu[bus],
            reactance=2.0 * tree.reactance_pu[bus],
            squared_min=-np.inf if low is None else low,
            squared_max=np.inf if high is None else high,
            reach=tree.rating_pu[bus] * np.cos(np.pi / POLYGON_SIDES),
        )

    def one(self, k: int) -> "Junctions":
        """Return the constants of one site."""
        part = slice(k, k + 1)
        return Junctions(
            bus=self.bus[part],
            penalty=self.penalty[part],
            slack=self.slack[part],
            voltage_penalty=self.voltage_penalty[part],
            resistance=self.resistance[part],
            reactance=self.reactance[part],
            squared_min=self.squared_min,
            squared_max=self.squared_max,
            reach=self.reach[part],
        )

    @cached_property
    def impedance(self) -> Floats:
        """Twice resistance and reactance, (site, flow=2)."""
        return np.stack([self.resistance, self.reactance], axis=1)

    @cached_property
    def drop_penalty(self) -> Floats:
        """Joint penalty on the voltage drop of the branch to the parent, (site,)."""
        own = self.penalty[:, 2]
        return np.asarray(own * self.voltage_penalty / (own + self.voltage_penalty))

    @cached_property
    def pull(self) -> Floats:
        """Hessian in the flow from the parent, (site, 2, 2)."""
        outer = self.impedance[:, :, np.newaxis] * self.impedance[:, np.newaxis, :]
        pull = self.drop_penalty[:, np.newaxis, np.newaxis] * outer
        pull[:, 0, 0] += self.penalty[:, 0]
        pull[:, 1, 1] += self.penalty[:, 1]
        return np.asarray(pull)

    @cached_property
    def give(self) -> Floats:
        """Inverse of :attr:`pull`, (site, 2, 2)."""
        return np.asarray(np.linalg.inv(self.pull))

    @cached_property
    def stiffness(self) -> Floats:
        """Hessian in the net demand while no limit binds, (site, 2, 2)."""
        soft = self.give.copy()
        soft[:, 0, 0] += self.slack[:, 0]
        soft[:, 1, 1] += self.slack[:, 1]
        return np.asarray(np.linalg.inv(soft))

    def wish(self, targets: Targets) -> Floats:
        """Flow from the parent that the edges would like best, (site, flow=2, interval)."""
        drop = (targets.own[:, 2] - targets.voltage) * self.drop_penalty[:, np.newaxis]
        push = self.penalty[:, :2, np.newaxis] * targets.own[:, :2]
        push = push + self.impedance[:, :, np.newaxis] * drop[:, np.newaxis]
        return _times(self.give, push)

    def answer(self, targets: Targets, demand: Floats) -> Answer:
        """Best copies for given net demands (site, flow=2, interval) while no limit binds."""
        wish = self.wish(targets)
        price = _times(self.stiffness, demand + targets.outflow - wish)
        flow = wish + _times(self.give, price)
        return self._voltages(targets, flow, price, demand)

    def _voltages(self, targets: Targets, flow: Floats, price: Floats, demand: Floats) -> Answer:
        drop = self.drop(flow)
        own, below = self.penalty[:, 2, np.newaxis], self.voltage_penalty[:, np.newaxis]
        voltage = (own * (targets.own[:, 2] - drop) + below * targets.voltage) / (own + below)
        copies = np.stack([flow[:, 0], flow[:, 1], voltage + drop], axis=1)
        return Answer(copies, voltage, price, demand)

    def drop(self, flow: Floats) -> Floats:
        """Drop of squared voltage that a flow from the parent causes, (site, interval)."""
        return np.asarray(
            self.resistance[:, np.newaxis] * flow[:, 0] + self.reactance[:, np.newaxis] * flow[:, 1]
        )

    def excess(self, answer: Answer) -> Floats:
        """By how much an answer breaks the sites' limits, (site, interval); <= 0 where kept."""
        worst = np.maximum(self.squared_min - answer.voltage, answer.voltage - self.squared_max)
        rated = np.flatnonzero(np.isfinite(self.reach))
        if len(rated):
            towards = polygon() @ answer.own[rated, :2]
            worst[rated] = np.maximum(
                worst[rated], towards.max(axis=1) - self.reach[rated, np.newaxis]
            )
        return np.asarray(worst)

    def held(self, targets: Targets, demand: Floats) -> Answer:
        """Best copies for given net demands inside the limits, limits checked one by one."""
        free = self.answer(targets, demand)
        broken = self.excess(free) > 0.0
        if not bool(broken.any()):
            return free
        own, voltage, price = free.own.copy(), free.voltage.copy(), free.price.copy()
        for site in np.flatnonzero(broken.any(axis=1)):
            where = np.flatnonzero(broken[site])
            part = Targets(
                targets.own[site][:, where],
                targets.outflow[site][:, where],
                targets.voltage[site][where],
            )
            copies, level, cost = self._hold(int(site), part, demand[site][:, where])
            own[site][:, where], voltage[site][where] = copies, level
            price[site][:, where] = cost
        return Answer(own, voltage, price, demand)

    def _hold(self, site: int, targets: Targets, demand: Floats) -> tuple[Floats, Floats, Floats]:
        """Solve one site's limited problem in the intervals where a limit binds.

        ``targets`` and ``demand`` are those of one site, without the site axis.
        """
        penalty, impedance = self.penalty[site], self.impedance[site]
        below, slack = float(self.voltage_penalty[site]), self.slack[site]
        is_leaf = not bool(slack.any())
        # Squared voltage free: eliminated; else it stands at the limit that was broken.
        held = np.full(demand.shape[1], np.nan)
        for _ in range(2):
            free = np.isnan(held)
            weight = np.where(free, self.drop_penalty[site], penalty[2])
            aim = targets.own[2] - np.where(free, targets.voltage, held)
            hessian = weight[:, np.newaxis, np.newaxis] * np.multiply.outer(impedance, impedance)
            linear = penalty[:2, np.newaxis] * targets.own[:2] + np.outer(impedance, weight * aim)
            hessian = hessian + np.diag(penalty[:2])
            if is_leaf:
                flow = demand
            else:
                joint = 1.0 / slack
                hessian = hessian + np.diag(joint)
                linear = linear + joint[:, np.newaxis] * (demand + targets.outflow)
                flow = polygon_minimum(hessian, linear, float(self.reach[site]))
            drop = impedance @ flow
            best = (penalty[2] * (targets.own[2] - drop) + below * targets.voltage) / (
                penalty[2] + below
            )
            level = np.where(free, best, held)
            low, high = level < self.squared_min, level > self.squared_max
            if not bool((low | high).any()):
                break
            held = np.where(low, self.squared_min, np.where(high, self.squared_max, held))
        level = np.clip(level, self.squared_min, self.squared_max)
        copies = np.stack([flow[0], flow[1], level + drop])
        if is_leaf:
            pull = penalty[2] * (copies[2] - targets.own[2])
            price = penalty[:2, np.newaxis] * (flow - targets.own[:2]) + np.outer(impedance, pull)
        else:
            price = (targets.outflow + demand - flow) / slack[:, np.newaxis]
        return copies, level, price


def _times(matrix: Floats, vector: Floats) -> Floats:
    """(site, 2, 2) times (site, 2, interval), spelt out so that every site rounds alike."""
    return np.stack(
        [
            matrix[:, row, 0, np.newaxis] * vector[:, 0]
            + matrix[:, row, 1, np.newaxis] * vector[:, 1]
            for row in range(2)
        ],
        axis=1,
    )


def polygon() -> Floats:
    """Outward directions of the sides of the rating polygon, (side, 2)."""
    angle = np.arange(POLYGON_SIDES) * (2.0 * np.pi / POLYGON_SIDES)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def polygon_minimum(hessian: Floats, linear: Floats, reach: float) -> Floats:
    """Minimise ``y'Hy/2 - linear.y`` over the regular rating polygon.

    Parameters
    ----------
    hessian : (interval, 2, 2)
        Positive definite.
    linear : (2, interval)
        Its negative is the gradient at the origin.
    reach : > 0
        Distance of the sides from the centre; infinite = no polygon.

    Returns
    -------
    (2, interval)
        Outside the polygon the minimum lies on its boundary: the best point of the best side.
    """
    solved = np.linalg.solve(hessian, linear.T[:, :, np.newaxis])
    inside: Floats = np.asarray(solved[:, :, 0].T, dtype=np.float64)
    if not np.isfinite(reach):
        return inside
    invariant(reach >= 0.0, "a rating is not negative")
    normal = polygon()
    outside = np.flatnonzero((normal @ inside).max(axis=0) > reach)
    if not len(outside):
        return inside
    along = np.stack([-normal[:, 1], normal[:, 0]], axis=1)
    half = reach * np.tan(np.pi / POLYGON_SIDES)
    part, aim = hessian[outside], linear[:, outside]
    foot = reach * normal
    curvature = np.einsum("si,tij,sj->st", along, part, along)
    slope = along @ aim - np.einsum("si,tij,sj->st", along, part, foot)
    step = np.clip(slope / curvature, -half, half)
    points = foot[:, :, np.newaxis] + along[:, :, np.newaxis] * step[:, np.newaxis]
    value = 0.5 * np.einsum("sit,tij,sjt->st", points, part, points)
    value -= np.einsum("it,sit->st", aim, points)
    best = value.argmin(axis=0)
    result = inside.copy()
    result[:, outside] = points[best, :, np.arange(len(outside))].T
    return result
