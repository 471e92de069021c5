"""A site that plans with its neighbours: scheme ``neighbour`` as a machine.

Once, net demands go up the tree and voltages come down. Then, each iteration: solve the own local
problem, wait for the children, pass the pull of the own subtree up; the substation turns round and
averages come down; inner products and maxima go up, and the substation sends down how to mix past
iterates, or that the run is over. A site hears from its parent and its children only, and a silent
neighbour stops all: the refusing site of the threat model [docs/protocol/neighbour.md 6].
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from veilgrid.admm._neighbour_average import Pull, Relay
from veilgrid.admm._neighbour_local import Answer, Targets, polygon
from veilgrid.admm._neighbour_message import (
    Average,
    Level,
    Opening,
    Overlap,
    Sum,
    Weights,
    packed,
    unpacked,
)
from veilgrid.admm._neighbour_mix import Mixer, Past, Point
from veilgrid.admm._neighbour_setup import Agreement
from veilgrid.admm._neighbour_solve import Infeasible, LocalProblems, Terms
from veilgrid.admm.neighbour import EdgeSettings, NeighbourSettings, Tamper
from veilgrid.admm.outcome import RunStatus
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import POLYGON_SIDES, Limits
from veilgrid.grid.network import Floats
from veilgrid.machine import Compute, Computed, Decide, Effect, Event, NodeId, Received, Send
from veilgrid.roles._neighbour_edge import Agreed, EdgeSite, edge_sites, solve_site

Worst = tuple[float, float, float, float, float]

STILL: Worst = (0.0, 0.0, 0.0, 0.0, -np.inf)
"""The least of everything that the stop rule looks at."""


class Proposal(NamedTuple):
    """What a site's local problem yields: set-points, and copies of the edges up and down."""

    setpoints: Floats
    copies: Floats
    below: Floats


class SiteTerms(NamedTuple):
    """Public constants that one site needs.

    Attributes
    ----------
    penalty : (variable,), below : (child, variable)
        Of the edge to the parent and of those to the children.
    limits
        The real ones; the terms of the local problem hold the inner ones.
    """

    bus: int
    relay: Relay
    local: Terms
    penalty: Floats
    below: Floats
    limits: Limits
    settings: NeighbourSettings
    tolerances: Floats


@dataclass
class _State:
    """Everything that changes; arrays as in :class:`veilgrid.admm.neighbour.Iterate`."""

    iteration: int = 0
    is_over: bool = False
    opened: dict[NodeId, Floats] = field(default_factory=dict)
    sums: dict[NodeId, tuple[Floats, Floats]] = field(default_factory=dict)
    overlaps: dict[NodeId, Overlap] = field(default_factory=dict)
    level: Floats | None = None
    answer: Answer | None = None
    base: Floats = field(default_factory=lambda: np.zeros(0))
    base_below: Floats = field(default_factory=lambda: np.zeros(0))
    base_demand: Floats = field(default_factory=lambda: np.zeros(0))
    average: Floats = field(default_factory=lambda: np.zeros(0))
    average_below: Floats = field(default_factory=lambda: np.zeros(0))
    demand: Floats = field(default_factory=lambda: np.zeros(0))
    multiplier: Floats = field(default_factory=lambda: np.zeros(0))
    multiplier_below: Floats = field(default_factory=lambda: np.zeros(0))
    demand_multiplier: Floats = field(default_factory=lambda: np.zeros(0))
    relaxed: tuple[Floats, Floats, Floats] | None = None
    inner: Floats = field(default_factory=lambda: np.zeros(0))
    plan: Floats = field(default_factory=lambda: np.zeros(0))
    worst: Worst = STILL
    row: Floats = field(default_factory=lambda: np.zeros(0))
    after: Point | None = None
    proposal: Proposal | None = None
    has_passed: bool = False
    has_reported: bool = False


def open_site(problems: LocalProblems, price: Floats) -> tuple[Floats, Floats] | None:
    """Answer given prices (site=1, flow=2, interval); ``None`` = the site contradicts itself."""
    try:
        setpoints, demand = problems.opening(price)
    except Infeasible:
        return None
    return setpoints[0], demand[0]


class NeighbourSite:
    """One site as a machine; the substation is the one without parent."""

    def __init__(
        self,
        problems: LocalProblems,
        terms: SiteTerms,
        past: Past,
        parent: NodeId | None,
        children: tuple[NodeId, ...],
    ) -> None:
        self._problems, self._terms, self._past = problems, terms, past
        self._mixer = Mixer(terms.settings.memory)
        self._parent, self._children = parent, children
        self._count = len(terms.local.tariff.buy)
        self._state = _State()

    def start(self) -> list[Effect]:
        """Begin: answer the tariff alone."""
        price = np.zeros((1, 2, self._count))
        price[0, 0] = self._terms.local.tariff.buy
        return [Compute(("open", 0), open_site, (self._problems, price))]

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event; what does not fit is ignored."""
        state = self._state
        if state.is_over:
            return []
        match event:
            case Computed(("open", 0), value):
                return self._opened(value)
            case Computed(("solve", iteration), value) if iteration == state.iteration:
                return self._solved(value)
            case Received(sender, Opening() as message) if sender in self._children:
                demand = unpacked(message.demand, 2, self._count)
                if demand is None or sender in state.opened:
                    return []
                state.opened[sender] = demand
                return self._pass_opening()
            case Received(sender, Level() as message) if sender == self._parent:
                return self._on_level(message)
            case Received(sender, Sum() as message) if sender in self._children:
                return self._on_sum(sender, message)
            case Received(sender, Average() as message) if sender == self._parent:
                return self._on_average(message)
            case Received(sender, Overlap() as message) if sender in self._children:
                return self._on_overlap(sender, message)
            case Received(sender, Weights() as message) if sender == self._parent:
                return self._on_weights(message)
            case _:
                return []  # Late, foreign or malformed: normal between strangers.

    # Opening: demands up, voltages down.

    def _opened(self, value: tuple[Floats, Floats] | None) -> list[Effect]:
        if value is None:
            return self._give_up(RunStatus.INFEASIBLE)
        _, self._state.base_demand = value
        return self._pass_opening()

    def _pass_opening(self) -> list[Effect]:
        state = self._state
        if len(state.opened) < len(self._children) or not state.base_demand.size:
            return []
        total = state.base_demand.copy()
        for child in self._children:
            total += state.opened[child]
        state.plan = total
        if self._parent is not None:
            return [Send(self._parent, Opening(packed(total)))]
        voltage = np.full(self._count, self._terms.local.tree.slack_voltage_pu**2)
        return self._begin(voltage, voltage)

    def _on_level(self, message: Level) -> list[Effect]:
        state = self._state
        upper = unpacked(message.voltage, 1, self._count)
        if upper is None or state.level is not None or not state.plan.size:
            return []
        return self._begin(upper[0], upper[0] - self._drop(state.plan))

    def _drop(self, flow: Floats) -> Floats:
        tree, bus = self._terms.local.tree, self._terms.bus
        return np.asarray(
            2.0 * (tree.resistance_pu[bus] * flow[0] + tree.reactance_pu[bus] * flow[1])
        )

    def _begin(self, upper: Floats, own: Floats) -> list[Effect]:
        state, buy = self._state, self._terms.local.tariff.buy
        state.level = own
        state.base = np.stack([state.plan[0], state.plan[1], upper])
        below = [[*state.opened[child], own] for child in self._children]
        state.base_below = np.array(below).reshape(len(self._children), 3, self._count)
        state.average, state.average_below = state.base, state.base_below
        state.demand = state.base_demand
        state.multiplier = np.zeros((3, self._count))
        state.multiplier[0] = buy
        state.multiplier_below = np.zeros_like(state.base_below)
        state.multiplier_below[:, 0] = -buy
        state.demand_multiplier = np.zeros_like(state.base_demand)
        sent: list[Effect] = [Send(child, Level(packed(own))) for child in self._children]
        return [*sent, *self._next()]

    # Iteration: solve, pull up, average down.

    def _next(self) -> list[Effect]:
        state, terms = self._state, self._terms
        state.iteration += 1
        state.sums.clear()
        state.overlaps.clear()
        state.relaxed, state.after = None, None
        state.has_passed, state.has_reported = False, False
        own = state.average - state.multiplier / terms.penalty[:, np.newaxis]
        if self._parent is None:
            own = np.zeros_like(own)
        parent_end = self._parent_end()
        outflow = np.zeros((2, self._count))
        voltage = np.zeros(self._count)
        for penalty, target in zip(terms.below, parent_end, strict=True):
            outflow = outflow + target[:2]
            voltage = voltage + penalty[2] * target[2]
        total = terms.local.junctions.voltage_penalty[0]
        voltage = voltage / (total if total > 0.0 else 1.0)
        targets = Targets(own[np.newaxis], outflow[np.newaxis], voltage[np.newaxis])
        weight = terms.local.demand_penalty[0]
        wished = (state.demand - state.demand_multiplier / weight)[np.newaxis]
        return [Compute(("solve", state.iteration), solve_site, (self._problems, targets, wished))]

    def _parent_end(self) -> Floats:
        """Targets of the ends that lie here of the edges down, (child, variable, interval)."""
        state = self._state
        return np.asarray(
            state.average_below - state.multiplier_below / self._terms.below[:, :, np.newaxis]
        )

    def _solved(self, value: tuple[Floats, Answer] | None) -> list[Effect]:
        if value is None:
            return self._give_up(RunStatus.INFEASIBLE)
        state = self._state
        setpoints, state.answer = value
        over, answer = self._terms.settings.relaxation, state.answer
        flow = self._parent_end()[:, :2] - answer.price[0] / self._terms.below[:, :2, np.newaxis]
        level = np.broadcast_to(answer.voltage[0], (len(self._children), 1, self._count))
        upper = np.concatenate([flow, level], axis=1)
        state.relaxed = (
            over * answer.own[0] + (1.0 - over) * state.average,
            over * upper + (1.0 - over) * state.average_below,
            over * answer.demand[0] + (1.0 - over) * state.demand,
        )
        state.proposal = Proposal(setpoints, answer.own[0], upper)
        return self._pass_sum()

    def _on_sum(self, sender: NodeId, message: Sum) -> list[Effect]:
        state = self._state
        pull, plan = unpacked(message.pull, 3, self._count), unpacked(message.plan, 2, self._count)
        is_now = message.iteration == state.iteration and sender not in state.sums
        if pull is None or plan is None or not is_now:
            return []
        state.sums[sender] = (pull, plan)
        return self._pass_sum()

    def _pass_sum(self) -> list[Effect]:
        state, terms = self._state, self._terms
        if len(state.sums) < len(self._children) or state.relaxed is None or state.answer is None:
            return []
        own, below, wished = state.relaxed
        weight = terms.local.demand_penalty[0]
        pull = Pull(
            terms.penalty[:, np.newaxis] * (own - state.base) + state.multiplier
            if self._parent is not None
            else np.zeros_like(own),
            terms.below[:, :, np.newaxis] * (below - state.base_below) + state.multiplier_below,
            weight * (wished - state.base_demand) + state.demand_multiplier,
        )
        arrived = [state.sums[child] for child in self._children]
        sums = np.array([part[0] for part in arrived]).reshape(below.shape)
        total, state.inner = terms.relay.up(pull, sums)
        plan = state.answer.demand[0].copy()
        for part in arrived:
            plan += part[1]
        state.plan = plan
        state.has_passed = True
        if self._parent is not None:
            message = Sum(state.iteration, packed(total), packed(plan))
            return [Send(self._parent, message)]
        voltage = np.full(self._count, terms.local.tree.slack_voltage_pu**2)
        return self._averaged(np.zeros((3, self._count)), voltage)

    def _on_average(self, message: Average) -> list[Effect]:
        state = self._state
        if message.iteration != state.iteration or not state.has_passed or state.after is not None:
            return []
        average = unpacked(message.average, 3, self._count)
        upper = unpacked(message.voltage, 1, self._count)
        if average is None or upper is None:
            return []
        return self._averaged(average, upper[0] - self._drop(state.plan))

    def _averaged(self, deviation: Floats, voltage: Floats) -> list[Effect]:
        """Take the averages in, move the multipliers, pass the children theirs."""
        state, terms = self._state, self._terms
        if state.relaxed is None or state.proposal is None:
            return []
        own, below, wished = state.relaxed
        split = terms.relay.down(deviation, state.inner)
        average, average_below = state.base + deviation, state.base_below + split.below
        demand = state.base_demand + split.demand
        weight = terms.local.demand_penalty[0]
        wide = terms.penalty[:, np.newaxis]
        moved = wide * (own - average) if self._parent is not None else np.zeros_like(own)
        moved_below = terms.below[:, :, np.newaxis] * (below - average_below)
        moved_demand = weight * (wished - demand) if terms.relay.has_choice else 0.0 * wished
        state.worst = self._measure(average, average_below, voltage)
        state.after = Point(
            average=average,
            multiplier=state.multiplier + moved,
            below=average_below,
            below_multiplier=state.multiplier_below + moved_below,
            demand=demand,
            demand_multiplier=state.demand_multiplier + moved_demand,
        )
        before = Point(
            average=state.average,
            multiplier=state.multiplier,
            below=state.average_below,
            below_multiplier=state.multiplier_below,
            demand=state.demand,
            demand_multiplier=state.demand_multiplier,
        )
        state.row = self._past.push(before, state.after)
        sent: list[Effect] = [
            Send(child, Average(state.iteration, packed(part), packed(voltage)))
            for child, part in zip(self._children, split.below, strict=True)
        ]
        return [*sent, *self._pass_overlap()]

    # Mixing and stopping: inner products up, weights down.

    def _on_overlap(self, sender: NodeId, message: Overlap) -> list[Effect]:
        state = self._state
        if message.iteration != state.iteration or sender in state.overlaps:
            return []
        is_sound = len(message.row) <= self._terms.settings.memory
        if not is_sound or not np.isfinite(message.row).all() or np.isnan(message.worst).any():
            return []
        state.overlaps[sender] = message
        return self._pass_overlap()

    def _pass_overlap(self) -> list[Effect]:
        state = self._state
        if len(state.overlaps) < len(self._children) or state.after is None:
            return []
        row = state.row.copy()
        arrived = [state.overlaps[child] for child in self._children]
        if any(len(message.row) != len(row) for message in arrived):
            return []
        for message in arrived:
            row += message.row
        each = [state.worst, *(message.worst for message in arrived)]
        found = [max(values) for values in zip(*each, strict=True)]
        worst: Worst = (found[0], found[1], found[2], found[3], found[4])
        state.has_reported = True
        if self._parent is not None:
            return [Send(self._parent, Overlap(state.iteration, tuple(row.tolist()), worst))]
        status = self._verdict(worst)
        if status is not None:
            return self._finish(status)
        if self._terms.settings.memory == 1:
            return self._mixed(np.ones(1))
        return self._mixed(self._mixer.weights(row))

    def _verdict(self, worst: Worst) -> RunStatus | None:
        """Apply the stop rule; ``None`` = go on."""
        settings, (flow, _, voltage) = self._terms.settings, self._terms.tolerances
        is_still = max(worst[0], worst[2]) <= flow and max(worst[1], worst[3]) <= voltage
        if is_still and worst[4] <= settings.limit_tolerance:
            return RunStatus.CONVERGED
        is_late = self._state.iteration >= settings.iteration_count_max
        return RunStatus.ITERATION_LIMIT if is_late else None

    def _on_weights(self, message: Weights) -> list[Effect]:
        state = self._state
        if message.iteration != state.iteration or not state.has_reported:
            return []
        if message.status:
            known = message.status in (RunStatus.CONVERGED, RunStatus.ITERATION_LIMIT)
            return self._finish(RunStatus(message.status)) if known else []
        weights = np.array(message.weights)
        fits = len(weights) == len(self._past) if len(weights) else self._past.can_retreat
        if not fits or not bool(np.isfinite(weights).all()):
            return []
        return self._mixed(weights)

    def _mixed(self, weights: Floats) -> list[Effect]:
        state = self._state
        if state.after is None:
            return []
        point = state.after
        if self._terms.settings.memory > 1:
            count, past = self._count, self._past
            point = past.mix(weights, count) if len(weights) else past.retreat(count)
        state.average, state.average_below = point.average, point.below
        state.multiplier, state.multiplier_below = point.multiplier, point.below_multiplier
        state.demand, state.demand_multiplier = point.demand, point.demand_multiplier
        passed = Weights(state.iteration, tuple(weights.tolist()))
        return [*(Send(child, passed) for child in self._children), *self._next()]

    def _measure(self, average: Floats, below: Floats, voltage: Floats) -> Worst:
        """Residuals, change and excess of this site's ends and limits, for the stop rule."""
        state = self._state
        if state.proposal is None:
            return STILL
        gaps = 2.0 * np.abs(state.proposal.below - below)
        moves = np.abs(below - state.average_below)
        if self._parent is None:
            flow = [gaps[:, :2].max(initial=0.0), moves[:, :2].max(initial=0.0)]
            level = [gaps[:, 2].max(initial=0.0), moves[:, 2].max(initial=0.0)]
            return (float(flow[0]), float(level[0]), float(flow[1]), float(level[1]), -np.inf)
        gap, move = 2.0 * np.abs(state.proposal.copies - average), np.abs(average - state.average)
        return (
            float(max(gap[:2].max(), gaps[:, :2].max(initial=0.0))),
            float(max(gap[2].max(), gaps[:, 2].max(initial=0.0))),
            float(max(move[:2].max(), moves[:, :2].max(initial=0.0))),
            float(max(move[2].max(), moves[:, 2].max(initial=0.0))),
            self._excess(voltage),
        )

    def _excess(self, voltage: Floats) -> float:
        """By how much the balanced plan breaks the limits of this site's bus and branch."""
        limits, bus = self._terms.limits, self._terms.bus
        worst = -np.inf
        if limits.squared_min is not None:
            worst = max(worst, float((limits.squared_min - voltage).max()))
        if limits.squared_max is not None:
            worst = max(worst, float((voltage - limits.squared_max).max()))
        rating = float(limits.tree.rating_pu[bus])
        if np.isfinite(rating):
            reach = rating * np.cos(np.pi / POLYGON_SIDES)
            worst = max(worst, float((polygon() @ self._state.plan).max() - reach))
        return worst

    def _finish(self, status: RunStatus) -> list[Effect]:
        state = self._state
        if state.proposal is None or state.after is None:
            return []
        state.is_over = True
        ended = [Send(child, Weights(state.iteration, (), status)) for child in self._children]
        setpoints, copies, _ = state.proposal
        agreed = Agreed(status, state.iteration, setpoints, copies, state.after.multiplier)
        return [*ended, Decide(agreed)]

    def _give_up(self, status: RunStatus) -> list[Effect]:
        self._state.is_over = True
        none = np.zeros(0)
        return [Decide(Agreed(status, self._state.iteration, none, none, none))]


def neighbour_sites(
    day: Day,
    limits: Limits,
    settings: NeighbourSettings | EdgeSettings | None = None,
    tamper: Mapping[int, Tamper] | None = None,
) -> Mapping[NodeId, NeighbourSite | EdgeSite]:
    """Make the machines of all sites of a day, named after their buses.

    Each gets the public constants and its own site; the day as a whole serves to draw up the
    agreement only. ``tamper`` as in :func:`veilgrid.admm.neighbour.plan_neighbour`.
    """
    if isinstance(settings, EdgeSettings):
        return edge_sites(day, limits, settings, dict(tamper or {}))
    invariant(not tamper, "sites tamper in the published form only")
    agreement = Agreement.of(day, limits, settings or NeighbourSettings())
    edges = agreement.edges
    names = [NodeId(bus.name) for bus in day.network.buses]
    machines = {}
    for bus, name in enumerate(names):
        below = np.flatnonzero(edges.parent == bus)
        edge, local = int(edges.of_bus[bus]), agreement.terms_of(bus)
        terms = SiteTerms(
            bus=bus,
            relay=agreement.relays[bus],
            local=local,
            penalty=agreement.penalty[edge] if edge >= 0 else np.ones(3),
            below=agreement.penalty[below],
            limits=limits,
            settings=agreement.settings,
            tolerances=agreement.tolerances,
        )
        machines[name] = NeighbourSite(
            LocalProblems([day.sites[bus]], local),
            terms,
            agreement.past(bus),
            names[edges.parent[edge]] if edge >= 0 else None,
            tuple(names[child] for child in edges.child[below]),
        )
    return machines
