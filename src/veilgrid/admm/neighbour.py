"""Scheme ``neighbour``: consensus ADMM between neighbouring sites, nobody in the middle.

Each edge of the tree has three coupling variables an interval: active and reactive flow and the
parent's squared voltage. Both ends hold a copy; a site minimises its own cost over its copies,
which obey its own balance, voltage drop and limits. Averages are the flows nearest to all copies
that are consistent on the whole tree; neighbours find them with one message up and one down each
edge an iteration [model 4; docs/protocol/neighbour.md].
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from veilgrid.admm._neighbour_average import Pull
from veilgrid.admm._neighbour_edge import EdgeSettings, Said, Tamper, plan_edge
from veilgrid.admm._neighbour_local import Answer, Targets
from veilgrid.admm._neighbour_message import traffic
from veilgrid.admm._neighbour_mix import Mixer, Point
from veilgrid.admm._neighbour_setup import Agreement, NeighbourSettings
from veilgrid.admm._neighbour_solve import Infeasible, LocalProblems
from veilgrid.admm._neighbour_tree import Edges, NeighbourState
from veilgrid.admm.outcome import Coordination, Interrupted, Progress, ProgressSink, RunStatus
from veilgrid.admm.reference import central, site_findings
from veilgrid.errors import InputError, invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Flows, Limits, flows
from veilgrid.grid.network import Floats

__all__ = [
    "EdgeSettings",
    "NeighbourSettings",
    "NeighbourState",
    "Neighbours",
    "Said",
    "Tamper",
    "plan_neighbour",
]


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """What an iteration starts from.

    Attributes
    ----------
    average : (edge, variable, interval)
    multiplier : (edge, end=2, variable, interval)
        Of the child's end, then of the parent's.
    demand : (bus, flow=2, interval)
        Averages of the sites' own net demands, line charging taken off the reactive part.
    demand_multiplier : (bus, flow=2, interval)
    """

    average: Floats
    multiplier: Floats
    demand: Floats
    demand_multiplier: Floats


class Step(NamedTuple):
    """One iteration's result.

    ``copies`` is (edge, end=2, variable, interval), child's end first.
    """

    after: Iterate
    setpoints: list[Floats]
    copies: Floats
    answer: Answer


class Neighbours:
    """All sites of a day in arrays; one :meth:`step` is one iteration of all of them."""

    def __init__(
        self,
        day: Day,
        limits: Limits,
        settings: NeighbourSettings | None = None,
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        self.agreement = Agreement.of(day, limits, settings or NeighbourSettings())
        self.edges: Edges = self.agreement.edges
        self._local = LocalProblems(list(day.sites), self.agreement.terms, pool)
        self._buy = day.buy
        below: list[list[int]] = [[] for _ in day.sites]
        for edge, parent in enumerate(self.edges.parent):
            below[int(parent)].append(edge)
        self._below = [np.array(edges, dtype=np.int64) for edges in below]
        self._base = np.zeros(0)
        self._base_demand = np.zeros(0)
        self._mixer = Mixer(self.agreement.settings.memory)
        self._pasts = [self.agreement.past(bus) for bus in range(len(day.sites))]

    def open(self, start: NeighbourState | None = None) -> Iterate:
        """Let each site answer the tariff, and add up the flows; multipliers of the last day help.

        Sites do not answer the last day's prices: those that such a price leaves indifferent would
        jump from bound to bound.
        """
        agreement, count = self.agreement, len(self._buy)
        price = np.zeros((len(self.edges.tree), 2, count))
        multiplier = np.zeros((len(self.edges), 2, 3, count))
        if start is not None and start.multiplier.shape == multiplier[:, 0].shape:
            multiplier[:, 0] = start.multiplier
            multiplier[:, 0, 0] -= start.buy
        price[:, 0] += self._buy
        multiplier[:, 0, 0] += self._buy
        multiplier[:, 1] = -multiplier[:, 0]
        _, demand = self._local.opening(price)
        self._base = self.edges.start(demand[:, 0], demand[:, 1])
        self._base_demand = demand
        invariant(
            agreement.penalty.shape == self._base.shape[:2],
            "one penalty for each coupling variable",
        )
        return Iterate(
            average=self._base,
            multiplier=multiplier,
            demand=demand,
            demand_multiplier=np.zeros_like(demand),
        )

    def _targets(self, at: Iterate) -> tuple[Targets, Floats]:
        """Targets of all sites, and of the parents' ends of all edges."""
        penalty = self.agreement.penalty[:, :, np.newaxis]
        child = at.average - at.multiplier[:, 0] / penalty
        parent = at.average - at.multiplier[:, 1] / penalty
        own = np.zeros((len(self.edges.tree), *child.shape[1:]))
        own[self.edges.child] = child
        total = self.agreement.terms.junctions.voltage_penalty[:, np.newaxis]
        voltage = self.edges.over_children(penalty[:, 2] * parent[:, 2])
        voltage = voltage / np.where(total > 0.0, total, 1.0)
        return Targets(own, self.edges.over_children(parent[:, :2]), voltage), parent

    def step(self, at: Iterate) -> Step:
        """Solve all local problems, average the copies, move the multipliers."""
        edges, over = self.edges, self.agreement.settings.relaxation
        penalty = self.agreement.penalty[:, :, np.newaxis]
        weight = self.agreement.demand_penalty[:, np.newaxis, np.newaxis]
        targets, parent = self._targets(at)
        setpoints, answer = self._local.solve(targets, at.demand - at.demand_multiplier / weight)
        flow = parent[:, :2] - answer.price[edges.parent] / penalty[:, :2]
        upper = np.concatenate([flow, answer.voltage[edges.parent][:, np.newaxis]], axis=1)
        copies = np.stack([answer.own[edges.child], upper], axis=1)
        relaxed = over * copies + (1.0 - over) * at.average[:, np.newaxis]
        wished = over * answer.demand + (1.0 - over) * at.demand
        average, demand = self.averages(at, relaxed, wished)
        moved = at.multiplier + penalty[:, np.newaxis] * (relaxed - average[:, np.newaxis])
        choice = self.agreement.choice[:, np.newaxis, np.newaxis]
        after = Iterate(
            average=average,
            multiplier=moved,
            demand=demand,
            demand_multiplier=choice * (at.demand_multiplier + weight * (wished - demand)),
        )
        return Step(after, setpoints, copies, answer)

    def advance(self, at: Iterate, done: Step) -> Iterate:
        """Mix the newest iterate with past ones, or take a bad step back; the next to start from.

        Inner products add up the tree in the order in which machines add them.
        """
        if self.agreement.settings.memory == 1:
            return done.after
        buses = range(len(self._pasts))
        rows = np.array(
            [self._pasts[b].push(self._point(at, b), self._point(done.after, b)) for b in buses]
        )
        weights = self._mixer.weights(self.edges.up(rows)[self.edges.tree.root])
        count = len(self._buy)
        points = [
            past.mix(weights, count) if len(weights) else past.retreat(count)
            for past in self._pasts
        ]
        multiplier = np.empty_like(at.multiplier)
        for bus, point in enumerate(points):
            multiplier[self._below[bus], 1] = point.below_multiplier
        multiplier[:, 0] = [points[bus].multiplier for bus in self.edges.child]
        return Iterate(
            average=np.array([points[bus].average for bus in self.edges.child]),
            multiplier=multiplier,
            demand=np.array([point.demand for point in points]),
            demand_multiplier=np.array([point.demand_multiplier for point in points]),
        )

    def _point(self, at: Iterate, bus: int) -> Point:
        edge, below = self.edges.of_bus[bus], self._below[bus]
        blank = np.zeros_like(at.average[0])
        return Point(
            average=at.average[edge] if edge >= 0 else blank,
            multiplier=at.multiplier[edge, 0] if edge >= 0 else blank,
            below=at.average[below],
            below_multiplier=at.multiplier[below, 1],
            demand=at.demand[bus],
            demand_multiplier=at.demand_multiplier[bus],
        )

    def averages(self, at: Iterate, copies: Floats, wished: Floats) -> tuple[Floats, Floats]:
        """Consistent flows and demands nearest to all copies: one pass up the tree, one down.

        Parameters
        ----------
        at
            Its multipliers enter.
        copies : (edge, end=2, variable, interval)
            Child's end first.
        wished : (bus, flow=2, interval)
            The sites' own net demands.

        Returns
        -------
        (edge, variable, interval), (bus, flow=2, interval)
        """
        edges, relay = self.edges, self.agreement.relays
        penalty = self.agreement.penalty[:, np.newaxis, :, np.newaxis]
        weight = self.agreement.demand_penalty[:, np.newaxis, np.newaxis]
        pulls = penalty * (copies - self._base[:, np.newaxis]) + at.multiplier
        demand_pull = weight * (wished - self._base_demand) + at.demand_multiplier
        sums, average = np.zeros_like(self._base), np.zeros_like(self._base)
        demand = self._base_demand.copy()
        inner: dict[int, Floats] = {}
        blank = np.zeros_like(self._base[0])
        for bus in edges.tree.order[::-1]:
            edge, below = edges.of_bus[bus], self._below[bus]
            pull = Pull(pulls[edge, 0] if edge >= 0 else blank, pulls[below, 1], demand_pull[bus])
            total, inner[bus] = relay[bus].up(pull, sums[below])
            if edge >= 0:
                sums[edge] = total
        for bus in edges.tree.order:
            edge = edges.of_bus[bus]
            split = relay[bus].down(average[edge] if edge >= 0 else blank, inner[bus])
            demand[bus] += split.demand
            average[self._below[bus]] = split.below
        return average + self._base, demand

    def settle(self, at: Step) -> NeighbourState:
        """Bring the multipliers into the form where both ends' sum to zero; find nodal prices.

        A site's balance and voltage drop hold in its own copies, so multiples of them may move
        between its multipliers without changing its problem [docs/protocol/neighbour.md 5].
        """
        edges, tree = self.edges, self.edges.tree
        ends = at.after.multiplier.sum(axis=1)
        level = np.zeros((len(tree), ends.shape[2]))
        for edge in range(len(edges) - 1, -1, -1):
            level[edges.parent[edge]] += ends[edge, 2] + level[edges.child[edge]]
        balance = np.zeros((len(tree), 2, ends.shape[2]))
        impedance = 2.0 * np.stack([tree.resistance_pu, tree.reactance_pu], axis=1)
        dropped = impedance[:, :, np.newaxis] * level[:, np.newaxis]
        for edge, (child, parent) in enumerate(zip(edges.child, edges.parent, strict=True)):
            balance[child] = balance[parent] - ends[edge, :2] + dropped[child]
        multiplier = at.after.multiplier[:, 0].copy()
        multiplier[:, :2] += (balance - dropped)[edges.child]
        multiplier[:, 2] += level[edges.child]
        return NeighbourState(
            child=edges.child,
            parent=edges.parent,
            average=at.after.average,
            multiplier=multiplier,
            price=at.answer.price + balance,
            buy=self._buy,
        )


def plan_neighbour(
    day: Day,
    limits: Limits,
    settings: NeighbourSettings | EdgeSettings | None = None,
    start: NeighbourState | None = None,
    progress: ProgressSink | None = None,
    tamper: Mapping[int, Tamper] | None = None,
) -> Coordination:
    """Let neighbouring sites agree on a day.

    Parameters
    ----------
    day
        What to plan.
    limits
        Of the network; the plan keeps them to the settings' ``limit_tolerance``.
    settings
        How to coordinate; ``None`` = defaults. :class:`EdgeSettings` asks for the published form.
    start
        ``warm`` of an earlier day's outcome on the same tree.
    progress
        Called after each iteration.
    tamper
        What chosen sites, named by bus index, tell their neighbours instead of the truth; in the
        published form only.

    Returns
    -------
    Coordination
        ``warm`` is a :class:`NeighbourState`. INFEASIBLE only if a limit is exceeded by flows that
        no site can change, or within one site; else a day without a plan ends at the limit.

    Raises
    ------
    InputError
        A site's own constraints contradict each other.
    """
    if len(day.sites) == 1:
        return central(day, limits)
    if isinstance(settings, EdgeSettings):
        return plan_edge(day, limits, settings, progress, tamper)
    invariant(not tamper, "sites tamper in the published form only")
    with ThreadPoolExecutor() as pool:
        neighbours = Neighbours(day, limits, settings, pool)
        try:
            at = neighbours.open(start)
        except Infeasible:
            raise InputError(site_findings([day.sites[bus] for bus in day.flexible])) from None
        forced = _forced(neighbours, limits, at)
        try:
            return _iterate(neighbours, day, limits, at, forced, progress)
        except Infeasible:
            return _ended(day, RunStatus.INFEASIBLE, neighbours, forced)


def _iterate(
    neighbours: Neighbours,
    day: Day,
    limits: Limits,
    at: Iterate,
    forced: tuple[tuple[int, int, float], ...],
    progress: ProgressSink | None,
) -> Coordination:
    agreement = neighbours.agreement
    settings, allowed = agreement.settings, agreement.tolerances
    if forced:
        return _ended(day, RunStatus.INFEASIBLE, neighbours, forced)
    history: list[Progress] = []
    status = RunStatus.ITERATION_LIMIT
    while True:
        done = neighbours.step(at)
        apart = 2.0 * np.abs(done.copies - done.after.average[:, np.newaxis]).max(axis=(0, 1, 3))
        moved = np.abs(done.after.average - at.average)
        dual = float((agreement.penalty[:, :2, np.newaxis] * moved[:, :2]).max())
        plan = _plan(day, done.setpoints)
        cost = sum(site.cost(x) for site, x in zip(day.sites, done.setpoints, strict=True))
        cost += day.exchange_cost(plan.active[neighbours.edges.tree.root])
        history.append(Progress(len(history) + 1, float(apart.max()), dual, cost))
        try:
            if progress is not None:
                progress(history[-1])
        except Interrupted:
            status = RunStatus.ABORTED
            break
        is_still = bool((np.maximum(apart, moved.max(axis=(0, 2))) <= allowed).all())
        if is_still and _worst(limits, plan) <= settings.limit_tolerance:
            status = RunStatus.CONVERGED
        if status is RunStatus.CONVERGED or len(history) >= settings.iteration_count_max:
            break
        at = neighbours.advance(at, done)
    state = neighbours.settle(done)
    messages, size = traffic(
        len(neighbours.edges), day.interval_count, len(history), settings.memory
    )
    return Coordination(
        status=status,
        setpoints=done.setpoints,
        price_p=state.price[:, 0],
        price_q=state.price[:, 1],
        history=tuple(history),
        message_count=messages,
        byte_count=size,
        warm=state,
    )


def _plan(day: Day, setpoints: list[Floats]) -> Flows:
    return flows(day.network.tree, *day.demands(setpoints))


def _worst(limits: Limits, plan: Flows) -> float:
    return -np.inf if limits.are_absent else float(limits.excess(plan).max())


def _forced(
    neighbours: Neighbours, limits: Limits, at: Iterate
) -> tuple[tuple[int, int, float], ...]:
    """Rows of limits that flows exceed which no site can change: (row, interval, amount)."""
    tree, agreement = neighbours.edges.tree, neighbours.agreement
    if limits.are_absent:
        return ()
    demand_q = at.demand[:, 1] + neighbours.edges.charging[:, np.newaxis]
    excess = limits.excess(flows(tree, at.demand[:, 0], demand_q))
    movable = neighbours.edges.up(agreement.choice) > 0.0
    nobody = not bool(movable.any())
    kind, bus = np.divmod(np.arange(len(excess)), len(tree))
    fixed = np.where(kind < 2, nobody, ~movable[bus])
    # The substation trades without limit, but its own rows do not exist.
    rows, intervals = np.nonzero((excess > agreement.settings.limit_tolerance) & fixed[:, None])
    return tuple(
        (int(row), int(interval), float(excess[row, interval]))
        for row, interval in zip(rows, intervals, strict=True)
    )


def _ended(
    day: Day,
    status: RunStatus,
    neighbours: Neighbours,
    violations: tuple[tuple[int, int, float], ...],
) -> Coordination:
    """Outcome of a run that ended before its first iteration was complete."""
    setpoints = day.load_only
    price = np.tile(day.buy, (len(day.sites), 1))
    messages, size = traffic(len(neighbours.edges), day.interval_count, 0, 1)
    return Coordination(
        status=status,
        setpoints=setpoints,
        price_p=price,
        price_q=np.zeros_like(price),
        history=(Progress(1, np.inf, np.inf, day.cost(setpoints)),),
        message_count=messages,
        byte_count=size,
        violations=violations,
    )
