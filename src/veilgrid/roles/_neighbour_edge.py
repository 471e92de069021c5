"""A site that plans with its neighbours in the published form, as a machine.

Each iteration: solve the own problem, tell each neighbour the copies of the shared edge, hear
theirs, average; then residuals go up the tree and the substation sends down that the run goes on,
how past iterates are mixed, or that it is over. A silent neighbour stops all, and a liar is
believed [docs/protocol/neighbour.md].
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from veilgrid.admm._neighbour_edge import EdgeAgreement, EdgeSettings, Said, Tamper
from veilgrid.admm._neighbour_local import Answer, Targets
from veilgrid.admm._neighbour_message import Copies, Judged, Weights, packed, unpacked
from veilgrid.admm._neighbour_mix import Mixer, Past, Point
from veilgrid.admm._neighbour_solve import Infeasible, LocalProblems, Terms
from veilgrid.admm._neighbour_tree import VARIABLES
from veilgrid.admm.outcome import RunStatus
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats
from veilgrid.machine import Compute, Computed, Decide, Effect, Event, NodeId, Received, Send


class Agreed(NamedTuple):
    """What a site decides: how the run ended and what it has to do.

    Attributes
    ----------
    setpoints : (variable,)
        Empty unless the run came to an end.
    copies : (variable, interval)
        The site's copies of the edge to its parent; empty for the substation.
    multiplier : (variable, interval)
        Of that edge's child's end.
    """

    status: RunStatus
    iteration_count: int
    setpoints: Floats
    copies: Floats
    multiplier: Floats


class EdgeTerms(NamedTuple):
    """Public constants that one site needs.

    Attributes
    ----------
    penalty : (variable,), below : (child, variable)
        Of the edge to the parent and of those to the children.
    """

    local: Terms
    penalty: Floats
    below: Floats
    settings: EdgeSettings


def solve_site(
    problems: LocalProblems, targets: Targets, wished: Floats
) -> tuple[Floats, Answer] | None:
    """Solve one site's local problem; ``None`` = its own limits cannot be met."""
    try:
        setpoints, answer = problems.solve(targets, wished)
    except Infeasible:
        return None
    return setpoints[0], answer


def _blank() -> Floats:
    return np.zeros(0)


@dataclass
class _State:
    """Everything that changes.

    ``copies`` and the sites' ends of averages and multipliers have the own edge first, then those
    to the children.
    """

    iteration: int = 0
    is_over: bool = False
    average: Floats = field(default_factory=_blank)
    multiplier: Floats = field(default_factory=_blank)
    setpoints: Floats = field(default_factory=_blank)
    said: Floats | None = None
    heard: dict[tuple[int, NodeId], Floats] = field(default_factory=dict)
    judged: dict[NodeId, Judged] = field(default_factory=dict)
    after: tuple[Floats, Floats] | None = None
    row: Floats = field(default_factory=_blank)
    apart: float = 0.0
    moved: float = 0.0
    has_reported: bool = False


class EdgeSite:
    """One site as a machine; the substation is the one without parent."""

    def __init__(
        self,
        problems: LocalProblems,
        terms: EdgeTerms,
        past: Past,
        parent: NodeId | None,
        children: tuple[NodeId, ...],
        tamper: Tamper | None = None,
    ) -> None:
        self._problems, self._terms, self._past, self._tamper = problems, terms, past, tamper
        self._mixer = Mixer(terms.settings.memory)
        self._parent, self._children = parent, children
        self._neighbours = children if parent is None else (parent, *children)
        self._penalty = np.concatenate([terms.penalty[np.newaxis], terms.below])[:, :, np.newaxis]
        self._stiffness = self._penalty + 2.0 * terms.settings.regulariser
        self._count = len(terms.local.tariff.buy)
        self._state = _State()

    def start(self) -> list[Effect]:
        """Begin at no flow and level voltage; the price of active power is the tariff."""
        state, terms = self._state, self._terms.local
        state.average = np.zeros((len(self._children) + 1, VARIABLES, self._count))
        state.average[:, 2] = terms.tree.slack_voltage_pu**2
        state.multiplier = np.zeros_like(state.average)
        state.multiplier[0, 0] = terms.tariff.buy
        state.multiplier[1:, 0] = -terms.tariff.buy
        if self._parent is None:
            state.average[0], state.multiplier[0] = 0.0, 0.0
        return self._next()

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event; what does not fit is ignored."""
        state = self._state
        if state.is_over:
            return []
        match event:
            case Computed(("solve", iteration), value) if iteration == state.iteration:
                return self._solved(value)
            case Received(sender, Copies() as message) if sender in self._neighbours:
                return self._on_copies(sender, message)
            case Received(sender, Judged() as message) if sender in self._children:
                return self._on_judged(sender, message)
            case Received(sender, Weights() as message) if sender == self._parent:
                return self._on_weights(message)
            case _:
                return []  # Late, foreign or malformed: normal between strangers.

    def _next(self) -> list[Effect]:
        state, terms = self._state, self._terms
        state.iteration += 1
        state.heard = {at: said for at, said in state.heard.items() if at[0] >= state.iteration}
        state.judged.clear()
        state.said, state.after, state.has_reported = None, None, False
        pulled = self._pulled()
        outflow = np.zeros((2, self._count))
        voltage = np.zeros(self._count)
        for penalty, target in zip(self._stiffness[1:, :, 0], pulled[1:], strict=True):
            outflow = outflow + target[:2]
            voltage = voltage + penalty[2] * target[2]
        total = terms.local.junctions.voltage_penalty[0]
        voltage = voltage / (total if total > 0.0 else 1.0)
        targets = Targets(pulled[:1], outflow[np.newaxis], voltage[np.newaxis])
        still = np.zeros((1, 2, 1))
        return [Compute(("solve", state.iteration), solve_site, (self._problems, targets, still))]

    def _pulled(self) -> Floats:
        """Find what the edges pull this site's copies towards, (edge, variable, interval)."""
        state = self._state
        return np.asarray((self._penalty * state.average - state.multiplier) / self._stiffness)

    def _solved(self, value: tuple[Floats, Answer] | None) -> list[Effect]:
        state = self._state
        if value is None:
            state.is_over = True
            none = _blank()
            return [Decide(Agreed(RunStatus.INFEASIBLE, state.iteration, none, none, none))]
        state.setpoints, answer = value
        flow = self._pulled()[1:, :2] - answer.price[0] / self._stiffness[1:, :2]
        level = np.broadcast_to(answer.voltage[0], (len(self._children), 1, self._count))
        below = np.concatenate([flow, level], axis=1)
        said: Said | None = Said(state.iteration, answer.own[0], below)
        if self._tamper is not None and said is not None:
            said = self._tamper(said)
        if said is None:
            return []
        state.said = np.concatenate([said.own[np.newaxis], said.below])
        own = state.said if self._parent is not None else state.said[1:]
        sent: list[Effect] = [
            Send(to, Copies(state.iteration, packed(copies)))
            for to, copies in zip(self._neighbours, own, strict=True)
        ]
        return [*sent, *self._average()]

    def _on_copies(self, sender: NodeId, message: Copies) -> list[Effect]:
        state, at = self._state, (message.iteration, sender)
        copies = unpacked(message.copies, VARIABLES, self._count)
        # A parent may be one iteration ahead: its verdict on this one is still on the way.
        is_now = message.iteration in (state.iteration, state.iteration + 1)
        if copies is None or not is_now or at in state.heard:
            return []
        state.heard[at] = copies
        return self._average()

    def _average(self) -> list[Effect]:
        """Average as soon as all copies are there."""
        state = self._state
        wanted = [(state.iteration, name) for name in self._neighbours]
        if state.said is None or state.after is not None:
            return []
        if any(at not in state.heard for at in wanted):
            return []
        over, mine = self._terms.settings.relaxation, state.said
        theirs = np.array([state.heard[at] for at in wanted]).reshape(-1, VARIABLES, self._count)
        if self._parent is None:
            theirs = np.concatenate([mine[:1], theirs])
        relaxed = [over * copies + (1.0 - over) * state.average for copies in (mine, theirs)]
        average = (relaxed[0] + relaxed[1]) / 2.0
        multiplier = state.multiplier + self._penalty * (relaxed[0] - average)
        if self._parent is None:
            average[0], multiplier[0] = 0.0, 0.0
        state.apart = float(np.abs(mine - theirs).max())
        state.moved = float(np.abs(average - state.average).max())
        state.after = (average, multiplier)
        if self._terms.settings.memory > 1:
            before = self._point(state.average, state.multiplier)
            state.row = self._past.push(before, self._point(average, multiplier))
        return self._report()

    def _point(self, average: Floats, multiplier: Floats) -> Point:
        still = np.zeros((2, self._count))
        return Point(
            average=average[0],
            multiplier=multiplier[0],
            below=average[1:],
            below_multiplier=multiplier[1:],
            demand=still,
            demand_multiplier=still,
        )

    def _on_judged(self, sender: NodeId, message: Judged) -> list[Effect]:
        state = self._state
        is_sound = len(message.row) <= self._terms.settings.memory
        is_sound = is_sound and bool(
            np.isfinite([*message.row, message.apart, message.moved]).all()
        )
        if not is_sound or message.iteration != state.iteration or sender in state.judged:
            return []
        state.judged[sender] = message
        return self._report()

    def _report(self) -> list[Effect]:
        """Pass residuals up when the whole subtree's are known; the substation decides."""
        state = self._state
        if state.after is None or len(state.judged) < len(self._children):
            return []
        row, arrived = state.row.copy(), [state.judged[child] for child in self._children]
        if any(len(message.row) != len(row) for message in arrived):
            return []
        for message in arrived:
            row += message.row
        apart = max([state.apart, *(message.apart for message in arrived)])
        moved = max([state.moved, *(message.moved for message in arrived)])
        state.has_reported = True
        if self._parent is not None:
            report = Judged(state.iteration, tuple(row.tolist()), apart, moved)
            return [Send(self._parent, report)]
        settings = self._terms.settings
        if max(apart, moved) <= settings.tolerance:
            return self._finish(RunStatus.CONVERGED)
        if state.iteration >= settings.iteration_count_max:
            return self._finish(RunStatus.ITERATION_LIMIT)
        return self._mixed(np.ones(1) if settings.memory == 1 else self._mixer.weights(row))

    def _on_weights(self, message: Weights) -> list[Effect]:
        state = self._state
        if message.iteration != state.iteration or not state.has_reported:
            return []
        if message.status:
            known = message.status in (RunStatus.CONVERGED, RunStatus.ITERATION_LIMIT)
            return self._finish(RunStatus(message.status)) if known else []
        weights = np.array(message.weights)
        fits = len(weights) == 1
        if self._terms.settings.memory > 1:
            fits = len(weights) == len(self._past) if len(weights) else self._past.can_retreat
        if not fits or not bool(np.isfinite(weights).all()):
            return []
        return self._mixed(weights)

    def _mixed(self, weights: Floats) -> list[Effect]:
        state = self._state
        if state.after is None:
            return []
        state.average, state.multiplier = state.after
        if self._terms.settings.memory > 1:
            count, past = self._count, self._past
            point = past.mix(weights, count) if len(weights) else past.retreat(count)
            state.average = np.concatenate([point.average[np.newaxis], point.below])
            multiplier = (point.multiplier[np.newaxis], point.below_multiplier)
            state.multiplier = np.concatenate(multiplier)
        passed = Weights(state.iteration, tuple(weights.tolist()))
        return [*(Send(child, passed) for child in self._children), *self._next()]

    def _finish(self, status: RunStatus) -> list[Effect]:
        state = self._state
        if state.said is None or state.after is None:
            return []
        state.is_over = True
        ended = [Send(child, Weights(state.iteration, (), status)) for child in self._children]
        own = state.said[0] if self._parent is not None else _blank()
        return [
            *ended,
            Decide(Agreed(status, state.iteration, state.setpoints, own, state.after[1][0])),
        ]


def edge_sites(
    day: Day, limits: Limits, settings: EdgeSettings, tamper: dict[int, Tamper]
) -> dict[NodeId, EdgeSite]:
    """Make the machines of all sites of a day, named after their buses."""
    agreement = EdgeAgreement.of(day, limits, settings)
    edges = agreement.edges
    names = [NodeId(bus.name) for bus in day.network.buses]
    machines = {}
    for bus, name in enumerate(names):
        below = np.flatnonzero(edges.parent == bus)
        edge, local = int(edges.of_bus[bus]), agreement.terms_of(bus)
        machines[name] = EdgeSite(
            LocalProblems([day.sites[bus]], local),
            EdgeTerms(
                local=local,
                penalty=agreement.penalty[edge] if edge >= 0 else np.ones(VARIABLES),
                below=agreement.penalty[below],
                settings=settings,
            ),
            agreement.past(bus),
            names[edges.parent[edge]] if edge >= 0 else None,
            tuple(names[child] for child in edges.child[below]),
            tamper.get(bus),
        )
    return machines
