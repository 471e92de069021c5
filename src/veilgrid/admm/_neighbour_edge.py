"""Neighbours' published form: copies are averaged edge by edge, by the two ends alone.

Each iteration a site solves its own problem, tells each neighbour its copies of the edge they
share, and both ends take the mean: ``average = (copy_p + copy_c) / 2``, ``multiplier += penalty
(copy - average)``. News travels one hop an iteration. Nothing verifies what a site tells: a caller
may replace what chosen sites say [model 4; docs/protocol/neighbour.md].
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from veilgrid.admm._neighbour_local import Answer, Junctions, Targets
from veilgrid.admm._neighbour_message import edge_traffic
from veilgrid.admm._neighbour_mix import Mixer, Past, Point
from veilgrid.admm._neighbour_site import Scale
from veilgrid.admm._neighbour_solve import Infeasible, LocalProblems, Tariff, Terms
from veilgrid.admm._neighbour_tree import VARIABLES, Edges, NeighbourState
from veilgrid.admm.outcome import Coordination, Interrupted, Progress, ProgressSink, RunStatus
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.network import Floats


class Said(NamedTuple):
    """What a site tells its neighbours in one iteration.

    Attributes
    ----------
    iteration : >= 1
    own : (variable, interval), per-unit
        Copies of the edge to its parent; zero for the substation, which has none.
    below : (child, variable, interval), per-unit
        Copies of the edges to its children, in bus order of the tree.
    """

    iteration: int
    own: Floats
    below: Floats


class Local(Protocol):
    """Solves the local problems of all sites, in bus order."""

    def solve(self, targets: Targets, wished: Floats) -> tuple[list[Floats], Answer]:
        """Return set-points and copies for the targets of all copies."""
        ...


Tamper = Callable[[Said], Said | None]
"""Replaces what a site says, ``None`` = it says nothing. Its neighbours cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """How neighbours coordinate in the published form; the defaults are those released.

    Attributes
    ----------
    penalty_p, penalty_q, penalty_u : > 0, currency per squared unit of the variable
        Of the copies of active flow, reactive flow and squared voltage at the first hop.
    growth : > 0
        Factor of ``penalty_p`` and ``penalty_q`` from hop to hop, and divisor of ``penalty_u``.
    regulariser : >= 0, currency per squared unit of the variable
        Artificial cost of every copy, ``regulariser * copy^2``; the released code has 0.05. It
        damps, and shifts the plan away from the optimum.
    tolerance : > 0, per-unit
        Largest difference of two copies over all edges, and largest change of an average, at the
        end.
    relaxation : in (0, 2)
        Over-relaxation; 1 = none.
    memory : >= 1
        How many past iterates Anderson acceleration mixes; 1 = none.
    iteration_count_max : > 0
    local_tolerance : > 0
        Of local programs.
    """

    penalty_p: float = 10.0
    penalty_q: float = 1.0
    penalty_u: float = 1.0
    growth: float = 1.0
    regulariser: float = 0.0
    tolerance: float = 1e-3
    relaxation: float = 1.0
    memory: int = 1
    iteration_count_max: int = 2000
    local_tolerance: float = 1e-8


def scale_of(day: Day, edges: Edges) -> Scale:
    """Find the natural units of a day: the largest load or range of a site, and the tariff."""
    loads = [np.abs(load).max() for site in day.sites for load in (site.load_p, site.load_q)]
    widths = [
        (site, site.upper - site.lower)
        for site in day.sites
        if site.is_flexible and bool(np.isfinite(site.upper - site.lower).all())
    ]
    gives = [float((abs(site.inject_p) @ width).max()) for site, width in widths]
    power = max(float(max(loads)), max(gives, default=0.0)) or 1.0
    price = float(np.median(np.abs(day.buy))) or float(np.abs(day.buy).max()) or 1.0
    state = flows(edges.tree, *day.demands(day.load_only))
    drop = float(np.abs(state.voltage_squared - edges.tree.slack_voltage_pu**2).max())
    steepest = float(np.max(edges.tree.resistance_pu + edges.tree.reactance_pu))
    return Scale(power, price, drop or 2.0 * steepest * power or 1.0)


def _uniform(limits: Limits) -> Limits:
    """Take the narrowest limits of all buses and intervals: local problems know no others."""
    correction, low, high = limits.correction, limits.squared_min, limits.squared_max
    if correction is None:
        return limits
    rating = limits.tree.rating_pu - correction.rating.max(axis=1)
    return Limits(
        tree=replace(limits.tree, rating_pu=rating),
        squared_min=None if low is None else low + float(correction.low.max()),
        squared_max=None if high is None else high - float(correction.high.max()),
    )


@dataclass(frozen=True, kw_only=True)
class EdgeAgreement:
    """Public constants of a run in the published form.

    Attributes
    ----------
    penalty : (edge, variable), currency per squared unit of the variable
    """

    settings: EdgeSettings
    edges: Edges
    scale: Scale
    tariff: Tariff
    limits: Limits
    penalty: Floats

    @classmethod
    def of(cls, day: Day, limits: Limits, settings: EdgeSettings) -> "EdgeAgreement":
        """Draw it up for a day."""
        edges = Edges(tree=day.network.tree)
        grown = settings.growth ** (edges.depth - 1.0)
        penalty = np.stack(
            [settings.penalty_p * grown, settings.penalty_q * grown, settings.penalty_u / grown],
            axis=1,
        )
        return cls(
            settings=settings,
            edges=edges,
            scale=scale_of(day, edges),
            tariff=Tariff(day.buy, day.sell),
            limits=_uniform(limits),
            penalty=penalty,
        )

    @property
    def stiffness(self) -> Floats:
        """Penalty and artificial cost together, (edge, variable)."""
        return np.asarray(self.penalty + 2.0 * self.settings.regulariser)

    @cached_property
    def terms(self) -> Terms:
        """Terms of all sites' local problems, in bus order; net demands have no copies here."""
        edges = self.edges
        buses = np.arange(len(edges.tree), dtype=np.int64)
        return Terms(
            edges.tree,
            Junctions.of(edges, self.limits, self.stiffness, buses),
            np.zeros(len(buses)),
            edges.charging,
            self.tariff,
            self.scale,
            self.settings.local_tolerance,
        )

    def terms_of(self, bus: int) -> Terms:
        """Terms of one site's local problem."""
        return self.terms._replace(
            junctions=self.terms.junctions.one(bus),
            demand_penalty=np.zeros(1),
            charging=self.edges.charging[bus : bus + 1],
        )

    def past(self, bus: int) -> Past:
        """Return an empty memory of one site."""
        edge = int(self.edges.of_bus[bus])
        return Past(
            self.penalty[edge] if edge >= 0 else np.ones(VARIABLES),
            self.penalty[self.edges.parent == bus],
            1.0,
            self.scale.price * self.scale.power,
            self.settings.memory,
        )


@dataclass(frozen=True, kw_only=True)
class EdgeIterate:
    """What an iteration starts from.

    Attributes
    ----------
    average : (edge, variable, interval)
    multiplier : (edge, end=2, variable, interval)
        Of the child's end, then of the parent's; they sum to zero.
    """

    average: Floats
    multiplier: Floats


class EdgeStep(NamedTuple):
    """One iteration's result.

    ``copies`` is (edge, end=2, variable, interval), child's end first, as told to the neighbour;
    ``setpoints`` and ``answer`` are what the sites really do.
    """

    after: EdgeIterate
    setpoints: list[Floats]
    copies: Floats
    answer: Answer


LocalOf = Callable[[EdgeAgreement], Local]
"""Gives the local problems of all sites under an agreement."""


class EdgeNeighbours:
    """All sites of a day in arrays; one :meth:`step` is one iteration of all of them.

    ``tamper`` names sites by bus index.
    """

    def __init__(
        self,
        day: Day,
        limits: Limits,
        settings: EdgeSettings,
        pool: ThreadPoolExecutor | None = None,
        tamper: Mapping[int, Tamper] | None = None,
        local_of: LocalOf | None = None,
    ) -> None:
        self.agreement = EdgeAgreement.of(day, limits, settings)
        self.edges = self.agreement.edges
        self._local: Local
        if local_of is None:
            self._local = LocalProblems(list(day.sites), self.agreement.terms, pool)
        else:
            self._local = local_of(self.agreement)
        self._buy = day.buy
        self._below = [np.flatnonzero(self.edges.parent == bus) for bus in range(len(day.sites))]
        self._mixer = Mixer(settings.memory)
        self._pasts = [self.agreement.past(bus) for bus in range(len(day.sites))]
        self._tamper = dict(tamper or {})
        self._iteration = 0
        self.rows: list[tuple[int, int]] = []
        """For each iteration, how many inner products went up and how many weights came down."""

    def open(self) -> EdgeIterate:
        """Begin at no flow and level voltage; the price of active power is the tariff."""
        edges, count = self.edges, len(self._buy)
        average = np.zeros((len(edges), VARIABLES, count))
        average[:, 2] = edges.tree.slack_voltage_pu**2
        multiplier = np.zeros((len(edges), 2, VARIABLES, count))
        multiplier[:, 0, 0] = self._buy
        multiplier[:, 1, 0] = -self._buy
        return EdgeIterate(average=average, multiplier=multiplier)

    def _targets(self, at: EdgeIterate) -> tuple[Targets, Floats]:
        """Targets of all sites, and of the parents' ends of all edges."""
        penalty = self.agreement.stiffness[:, :, np.newaxis]
        wanted = self.agreement.penalty[:, :, np.newaxis] * at.average
        child = (wanted - at.multiplier[:, 0]) / penalty
        parent = (wanted - at.multiplier[:, 1]) / penalty
        own = np.zeros((len(self.edges.tree), *child.shape[1:]))
        own[self.edges.child] = child
        total = self.agreement.terms.junctions.voltage_penalty[:, np.newaxis]
        voltage = self.edges.over_children(penalty[:, 2] * parent[:, 2])
        voltage = voltage / np.where(total > 0.0, total, 1.0)
        return Targets(own, self.edges.over_children(parent[:, :2]), voltage), parent

    def step(self, at: EdgeIterate) -> EdgeStep | None:
        """Solve all local problems, average the copies, move the multipliers.

        ``None`` = a site says nothing, so its neighbours cannot go on.
        """
        edges, over = self.edges, self.agreement.settings.relaxation
        penalty = self.agreement.penalty[:, :, np.newaxis]
        stiff = self.agreement.stiffness[:, :2, np.newaxis]
        targets, parent = self._targets(at)
        setpoints, answer = self._local.solve(targets, np.zeros((len(edges.tree), 2, 1)))
        flow = parent[:, :2] - answer.price[edges.parent] / stiff
        upper = np.concatenate([flow, answer.voltage[edges.parent][:, np.newaxis]], axis=1)
        copies = np.stack([answer.own[edges.child], upper], axis=1)
        self._iteration += 1
        kept = len(self._pasts[0]) + 1 if self.agreement.settings.memory > 1 else 0
        self.rows.append((min(kept, self.agreement.settings.memory), 1))
        for bus, tamper in self._tamper.items():
            if not self._say(bus, tamper, copies):
                return None
        relaxed = over * copies + (1.0 - over) * at.average[:, np.newaxis]
        average = (relaxed[:, 0] + relaxed[:, 1]) / 2.0
        moved = penalty[:, np.newaxis] * (relaxed - average[:, np.newaxis])
        after = EdgeIterate(average=average, multiplier=at.multiplier + moved)
        return EdgeStep(after, setpoints, copies, answer)

    def _say(self, bus: int, tamper: Tamper, copies: Floats) -> bool:
        """Put what a site says in the place of its copies; return whether it says anything."""
        edge, below = self.edges.of_bus[bus], self._below[bus]
        own = copies[edge, 0] if edge >= 0 else np.zeros_like(copies[0, 0])
        said = tamper(Said(self._iteration, own.copy(), copies[below, 1]))
        if said is None:
            return False
        if edge >= 0:
            copies[edge, 0] = said.own
        copies[below, 1] = said.below
        return True

    def advance(self, at: EdgeIterate, done: EdgeStep) -> EdgeIterate:
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
        self.rows[-1] = (rows.shape[1], len(weights))
        count = len(self._buy)
        points = [
            past.mix(weights, count) if len(weights) else past.retreat(count)
            for past in self._pasts
        ]
        multiplier = np.empty_like(at.multiplier)
        for bus, point in enumerate(points):
            multiplier[self._below[bus], 1] = point.below_multiplier
        multiplier[:, 0] = [points[bus].multiplier for bus in self.edges.child]
        average = np.array([points[bus].average for bus in self.edges.child])
        return EdgeIterate(average=average, multiplier=multiplier)

    def _point(self, at: EdgeIterate, bus: int) -> Point:
        edge, below = self.edges.of_bus[bus], self._below[bus]
        blank = np.zeros_like(at.average[0])
        return Point(
            average=at.average[edge] if edge >= 0 else blank,
            multiplier=at.multiplier[edge, 0] if edge >= 0 else blank,
            below=at.average[below],
            below_multiplier=at.multiplier[below, 1],
            demand=blank[:2],
            demand_multiplier=blank[:2],
        )

    def residuals(self, at: EdgeIterate, done: EdgeStep) -> tuple[float, float, float]:
        """Largest difference of two copies, change of an average, and that in units of price."""
        apart = float(np.abs(done.copies[:, 0] - done.copies[:, 1]).max())
        moved = np.abs(done.after.average - at.average)
        penalty = self.agreement.penalty[:, :2, np.newaxis]
        return apart, float(moved.max()), float((penalty * moved[:, :2]).max())


def plan_edge(
    day: Day,
    limits: Limits,
    settings: EdgeSettings,
    progress: ProgressSink | None = None,
    tamper: Mapping[int, Tamper] | None = None,
    local_of: LocalOf | None = None,
) -> Coordination:
    """Let neighbours agree on a day in the published form.

    Parameters
    ----------
    day, limits
        What to plan and within which limits; the stop rule does not look at limits, as published.
    settings
        How.
    progress
        Called after each iteration.
    tamper
        What chosen sites, named by bus index, say instead of their copies.
    local_of
        Lets others than the sites themselves solve the local problems.

    Returns
    -------
    Coordination
        ``setpoints`` is what the sites really do; ``warm`` is a :class:`NeighbourState` with the
        averages and multipliers that were agreed on. ABORTED if a site fell silent; the history
        then ends with the iteration before.
    """
    with ThreadPoolExecutor() as pool:
        neighbours = EdgeNeighbours(day, limits, settings, pool, tamper, local_of)
        at, done = neighbours.open(), None
        history: list[Progress] = []
        status = RunStatus.ITERATION_LIMIT
        try:
            while len(history) < settings.iteration_count_max:
                found = neighbours.step(at)
                if found is None:
                    status = RunStatus.ABORTED
                    break
                done = found
                apart, moved, dual = neighbours.residuals(at, done)
                cost = day.cost(done.setpoints)
                history.append(Progress(len(history) + 1, apart, dual, cost))
                if progress is not None:
                    progress(history[-1])
                if max(apart, moved) <= settings.tolerance:
                    status = RunStatus.CONVERGED
                    break
                at = neighbours.advance(at, done)
        except Interrupted:
            status = RunStatus.ABORTED
        except Infeasible:
            status = RunStatus.INFEASIBLE
    return _edge_outcome(day, neighbours, status, done, tuple(history))


def _edge_outcome(
    day: Day,
    neighbours: EdgeNeighbours,
    status: RunStatus,
    done: EdgeStep | None,
    history: tuple[Progress, ...],
) -> Coordination:
    edges, said = neighbours.edges, neighbours.rows[: len(history)]
    is_told = status in (RunStatus.CONVERGED, RunStatus.ITERATION_LIMIT)
    messages, size = edge_traffic(len(edges), day.interval_count, said, status if is_told else "")
    if done is None or status is RunStatus.INFEASIBLE:
        price = np.tile(day.buy, (len(day.sites), 1))
        return Coordination(
            status=status,
            setpoints=[] if status is RunStatus.INFEASIBLE else day.load_only,
            price_p=price,
            price_q=np.zeros_like(price),
            history=history,
            message_count=messages,
            byte_count=size,
        )
    state = NeighbourState(
        child=edges.child,
        parent=edges.parent,
        average=done.after.average,
        multiplier=done.after.multiplier[:, 0],
        price=done.answer.price,
        buy=day.buy,
    )
    return Coordination(
        status=status,
        setpoints=done.setpoints,
        price_p=done.answer.price[:, 0],
        price_q=done.answer.price[:, 1],
        history=history,
        message_count=messages,
        byte_count=size,
        warm=state,
    )
