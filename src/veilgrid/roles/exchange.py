"""The coordinator of scheme ``exchange`` as a machine, and all machines of a day.

Sites (:mod:`veilgrid.roles.exchange_site`) declare or answer; the coordinator does the network step
between answers and offers.
Where the plan promises to pass, it asks each site for its regret - what its cheapest answer to the
same prices would save - and ends the run when the certified gap is small enough
[docs/protocol/exchange.md 9].

A site that stays silent, or whose answer cannot be, is named and from then on counted as rigid at
its last answer, or at what it registered if there is none: it cannot hold up the others.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np

from veilgrid.admm.exchange import (
    Coordinator,
    ExchangeSettings,
    ExchangeState,
    Metric,
    StopRule,
)
from veilgrid.admm.exchange_message import Answer, Check, Close, Offer, Regret
from veilgrid.admm.network_step import NetworkTarget
from veilgrid.admm.outcome import Progress, RunStatus
from veilgrid.admm.site_step import SiteAnswer
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    NodeId,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.roles.exchange_register import Register
from veilgrid.roles.exchange_site import ExchangeSite, packed, unpacked

T = TypeVar("T")

COORDINATOR: Final = NodeId("coordinator")
DELAY_NS: Final = 30_000_000_000
"""How long the coordinator waits for answers unless told otherwise."""

SILENT: Final = "silent"
MALFORMED: Final = "malformed"
TOO_LARGE: Final = "too large"


class Accusation(NamedTuple):
    """A site that did not do its part: who, what (:data:`SILENT`, ...), when, and what it sent."""

    site: NodeId
    kind: str
    iteration: int
    evidence: Any = None


class ExchangeOutcome(NamedTuple):
    """What the coordinator decides.

    Attributes
    ----------
    demand_p, demand_q : (bus, interval), per-unit
        Net demands that the sites answered last; ``demand_q`` is zero where no limit exists.
    target
        The network step whose prices they answered.
    gap
        Certified, in units of the turnover; infinite unless converged.
    unmet
        Rows (row, interval) whose strength stands at the ceiling: suspects of infeasibility.
    warm
        To start the next day from.
    """

    status: RunStatus
    demand_p: Floats
    demand_q: Floats
    target: NetworkTarget
    gap: float
    history: tuple[Progress, ...]
    named: tuple[Accusation, ...]
    unmet: tuple[tuple[int, int], ...]
    warm: ExchangeState


def _known(value: T | None, claim: str) -> T:
    invariant(value is not None, claim)
    return cast("T", value)


class Advanced(NamedTuple):
    """The coordinator after a network step, and the targets and prices it yields."""

    coordinator: Coordinator
    offer: ExchangeState


def open_network(
    coordinator: Coordinator, declared_p: Floats, declared_q: Floats, state: ExchangeState
) -> Advanced:
    """Take declarations (bus, interval) and a start; do the first network step."""
    after = _copied(coordinator)
    after.declare(declared_p, declared_q)
    after.start(state)
    return Advanced(after, after.offer())


def step_network(
    coordinator: Coordinator, demand_p: Floats, demand_q: Floats, own_cost: float
) -> Advanced:
    """Take the flexible sites' answers (flexible site, interval); do the next network step."""
    after = _copied(coordinator)
    after.take(SiteAnswer([], demand_p, demand_q), own_cost)
    return Advanced(after, after.offer())


def resume_network(coordinator: Coordinator, last: ExchangeState, offer: ExchangeState) -> Advanced:
    """Go over to where the last day ended; ``offer`` stays where that does not fit."""
    after = _copied(coordinator)
    return Advanced(after, after.resume(last) or offer)


def _copied(coordinator: Coordinator) -> Coordinator:
    """Copy all that changes, so that the step is pure; the limits never change."""
    limits = coordinator.network.limits
    return deepcopy(coordinator, {id(limits): limits})


@dataclass
class _Meeting:
    """Everything of the coordinator that changes.

    ``phase`` is ``answers`` or ``regrets`` while sites are waited for, else ``network``, or
    ``resume`` while the last day's end is taken over;
    ``demand_*`` and ``cost`` hold what each site said last.
    """

    demand_p: Floats
    demand_q: Floats
    cost: Floats
    phase: str = "answers"
    iteration: int = 0
    waiting: set[NodeId] = field(default_factory=set)
    accepted: dict[NodeId, int] = field(default_factory=dict)
    regrets: dict[NodeId, float] = field(default_factory=dict)
    named: dict[NodeId, Accusation] = field(default_factory=dict)
    history: list[Progress] = field(default_factory=list)
    target: NetworkTarget | None = None
    offer: ExchangeState | None = None
    is_started: bool = False
    is_over: bool = False


class ExchangeCoordinator:
    """The coordinator: collects answers, does the network step, stops by certificate.

    Parameters
    ----------
    coordinator
        Its arrays and kernels.
    rule
        When to stop.
    register
        What it knows of the sites.
    sites
        In bus order.
    flexible : indices of ``sites`` that have a choice
    start
        Where the last day ended, taken over after the first answers; ``None`` = go on from these.
    delay_ns : > 0
        How long to wait for the sites of one iteration.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        rule: StopRule,
        register: Register,
        sites: tuple[NodeId, ...],
        flexible: tuple[int, ...],
        *,
        start: ExchangeState | None = None,
        delay_ns: int = DELAY_NS,
    ) -> None:
        invariant(len(set(sites)) == len(sites), "no two sites have the same name")
        self._coordinator, self._rule, self._register = coordinator, rule, register
        self._settings = rule.settings
        self._sites, self._start, self._delay_ns = sites, start, delay_ns
        self._members = list(flexible)
        self._flexible = tuple(sites[i] for i in flexible)
        self._place = {name: index for index, name in enumerate(sites)}
        self._needs_reactive = not rule.limits.are_absent
        self._state = _Meeting(
            register.fallback_p.copy(), register.fallback_q.copy(), register.fallback_cost.copy()
        )

    def start(self) -> list[Effect]:
        """Begin: wait for declarations and for first answers."""
        state = self._state
        if state.is_started:
            return []
        state.is_started = True
        state.waiting = set(self._sites)
        return [self._timer(), *self._go_on()]

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event; what does not fit is ignored."""
        state = self._state
        if state.is_over:
            return []
        match event:
            case TimerFired(name) if name == START:
                return self.start()
            case TimerFired(name) if name == self._timer().name:
                return self._on_delay()
            case Received(sender, Answer() as answer) if sender in self._place:
                return self._on_answer(sender, answer)
            case Received(sender, Regret() as regret) if sender in state.waiting:
                return self._on_regret(sender, regret)
            case Computed(("network", iteration), Advanced() as value):
                return self._on_network(value) if iteration == state.iteration else []
            case Computed(("resume", 1), Advanced() as value) if state.phase == "resume":
                return self._on_resumed(value)
            case _:
                return []  # Late, foreign or not for us: normal on an open network.

    # Hearing the sites.

    def _timer(self) -> SetTimer:
        state = self._state
        return SetTimer(f"{state.phase} {state.iteration}", self._delay_ns)

    def _expected(self, sender: NodeId) -> int:
        """Return the iteration that an answer must name: declarations come as iteration 0."""
        is_opening = self._state.iteration == 0
        return int(sender in self._flexible) if is_opening else self._state.iteration

    def _on_answer(self, sender: NodeId, answer: Answer) -> list[Effect]:
        state = self._state
        if not state.is_started:
            # A site may be faster than our own start; its first answer must not be lost.
            return [*self.start(), *self._on_answer(sender, answer)]
        is_due = state.phase == "answers" and sender in state.waiting
        if not is_due or answer.iteration != self._expected(sender):
            return []
        place, count = self._place[sender], len(self._rule.buy)
        demand_p = unpacked(answer.demand_p, count)
        if self._needs_reactive:
            demand_q = unpacked(answer.demand_q, count)
        else:
            demand_q = np.zeros(count) if answer.demand_q == b"" else None
        is_number = isinstance(answer.cost, float) and bool(np.isfinite(answer.cost))
        if demand_p is None or demand_q is None or not is_number:
            return self._name(sender, MALFORMED, answer)
        register = self._register
        if (
            float(np.abs(demand_p).max()) > register.reach_p[place]
            or float(np.abs(demand_q).max()) > register.reach_q[place]
            or abs(answer.cost) > register.cost_max[place]
        ):
            return self._name(sender, TOO_LARGE, answer)
        state.demand_p[place], state.demand_q[place] = demand_p, demand_q
        state.cost[place] = answer.cost
        state.accepted[sender] = answer.iteration
        state.waiting.discard(sender)
        return self._go_on()

    def _on_regret(self, sender: NodeId, regret: Regret) -> list[Effect]:
        state = self._state
        if state.phase != "regrets" or regret.iteration != state.iteration:
            return []
        is_number = isinstance(regret.amount, float) and bool(np.isfinite(regret.amount))
        if not is_number or regret.amount < 0.0:
            return self._name(sender, MALFORMED, regret)
        state.regrets[sender] = regret.amount
        state.waiting.discard(sender)
        return self._go_on()

    def _name(self, site: NodeId, kind: str, evidence: Any = None) -> list[Effect]:
        """Name a site and go on without it."""
        state = self._state
        accusation = Accusation(site, kind, state.iteration, evidence)
        state.named[site] = accusation
        state.waiting.discard(site)
        return [Decide(accusation), *self._go_on()]

    def _on_delay(self) -> list[Effect]:
        state = self._state
        told: list[Effect] = []
        for site in sorted(state.waiting):
            state.named[site] = Accusation(site, SILENT, state.iteration)
            told.append(Decide(state.named[site]))
        state.waiting.clear()
        return [*told, *self._go_on()]

    # Going on when all that can be heard was heard.

    def _go_on(self) -> list[Effect]:
        state = self._state
        if state.waiting or state.phase in ("network", "resume"):
            return []
        if state.phase == "regrets":
            return self._judge()
        state.phase = "network"
        job = ("network", state.iteration)
        if state.iteration > 0:
            chosen = (state.demand_p[self._members], state.demand_q[self._members])
            own = float(state.cost.sum())
            return [Compute(job, step_network, (self._coordinator, *chosen, own))]
        declared = (state.demand_p.copy(), state.demand_q.copy())
        return [Compute(job, open_network, (self._coordinator, *declared, self._beginning()))]

    def _beginning(self) -> ExchangeState:
        demand_p = self._state.demand_p[self._members]
        return ExchangeState(
            target_p=demand_p,
            target_q=self._state.demand_q[self._members],
            price_p=np.zeros_like(demand_p) + self._rule.buy,
            price_q=np.zeros_like(demand_p),
        )

    def _on_network(self, value: Advanced) -> list[Effect]:
        """Take a network step in: note the iteration, then certify, end, or offer again."""
        state = self._state
        if state.phase != "network":
            return []
        answered = state.target
        self._coordinator, state.offer = value
        if state.iteration == 0:
            # First answers are to the tariff; the first step's prices are what they are held to.
            state.iteration, answered = 1, self._coordinator.result
        target = _known(answered, "answers are held to the prices they were given")
        state.target = target
        self._note()
        residual = self._coordinator.primal
        own = float(state.cost.sum())
        if self._rule.is_promising(target, state.demand_p, state.demand_q, own, residual):
            return self._ask_regrets(target)
        return self._next()

    def _note(self) -> None:
        state, coordinator = self._state, self._coordinator
        cost = float(state.cost.sum()) + self._rule.exchange_cost(state.demand_p)
        state.history.append(Progress(state.iteration, coordinator.primal, coordinator.dual, cost))

    def _ask_regrets(self, target: NetworkTarget) -> list[Effect]:
        state = self._state
        state.phase, state.regrets = "regrets", {}
        state.waiting = set(self._flexible) - set(state.named)
        asked: list[Effect] = [
            Send(
                name,
                Check(
                    state.iteration,
                    packed(target.price_p[self._place[name]]),
                    self._pack_q(target.price_q[self._place[name]]),
                ),
            )
            for name in self._flexible
            if name in state.waiting
        ]
        return [*asked, self._timer(), *self._go_on()]

    def _judge(self) -> list[Effect]:
        """Add up the gap; a named site counts as rigid and regrets nothing."""
        state, rule = self._state, self._rule
        target = _known(state.target, "a plan is certified against prices")
        lost = rule.network_gap(target, state.demand_p, state.demand_q)
        lost += sum(state.regrets.values())
        gap = lost / rule.scale(state.demand_p, float(state.cost.sum()))
        if rule.is_met(gap, self._coordinator.primal):
            return self._end(RunStatus.CONVERGED, gap)
        return self._next()

    def _next(self) -> list[Effect]:
        if self._state.iteration >= self._settings.iteration_count_max:
            return self._end(RunStatus.ITERATION_LIMIT, np.inf)
        if self._state.iteration == 1 and self._start is not None:
            self._state.phase = "resume"
            offer = _known(self._state.offer, "a run is begun before it is resumed")
            arguments = (self._coordinator, self._start, offer)
            return [Compute(("resume", 1), resume_network, arguments)]
        self._state.target = self._coordinator.result
        return self._make_offer()

    def _on_resumed(self, value: Advanced) -> list[Effect]:
        self._coordinator, self._state.offer = value
        self._state.target = self._coordinator.result
        return self._make_offer()

    def _make_offer(self) -> list[Effect]:
        state = self._state
        state.iteration += 1
        state.phase = "answers"
        state.waiting = set(self._flexible) - set(state.named)
        offer = _known(state.offer, "a network step comes before an offer")
        powers = _known(offer.powers, "an offer has penalties").tobytes()
        sent: list[Effect] = [
            Send(
                name,
                Offer(
                    state.iteration,
                    packed(offer.price_p[row]),
                    self._pack_q(offer.price_q[row]),
                    packed(offer.target_p[row]),
                    self._pack_q(offer.target_q[row]),
                    powers,
                ),
            )
            for row, name in enumerate(self._flexible)
            if name in state.waiting
        ]
        return [*sent, self._timer(), *self._go_on()]

    def _pack_q(self, values: Floats) -> bytes:
        return packed(values) if self._needs_reactive else b""

    def _end(self, status: RunStatus, gap: float) -> list[Effect]:
        state = self._state
        state.is_over = True
        told: list[Effect] = [
            Send(name, Close(state.accepted.get(name, -1), str(status))) for name in self._sites
        ]
        outcome = ExchangeOutcome(
            status=status,
            demand_p=state.demand_p,
            demand_q=state.demand_q,
            target=_known(state.target, "an end follows a network step"),
            gap=gap,
            history=tuple(state.history),
            named=tuple(state.named.values()),
            unmet=tuple(self._coordinator.network.unmet()),
            warm=_known(state.offer, "an end follows a network step"),
        )
        return [*told, Decide(outcome)]


def exchange_machines(
    day: Day,
    limits: Limits,
    settings: ExchangeSettings | None = None,
    *,
    start: ExchangeState | None = None,
    delay_ns: int = DELAY_NS,
    coordinator: NodeId = COORDINATOR,
) -> tuple[ExchangeCoordinator, dict[NodeId, ExchangeSite]]:
    """Make the machines of a day: the coordinator, and its sites named after their buses.

    Each site gets its own data and public constants; the day as a whole serves to draw up the
    coordinator's register only.
    """
    names = tuple(NodeId(bus.name) for bus in day.network.buses)
    invariant(coordinator not in names, "the coordinator is named like no bus")
    chosen = settings or ExchangeSettings()
    metric = Metric.of(day, limits, chosen.penalty, chosen.evenness)
    penalties = {
        bus: (float(p), float(q))
        for bus, p, q in zip(day.flexible, metric.active, metric.reactive, strict=True)
    }
    sites = {
        name: ExchangeSite(
            day.sites[bus],
            coordinator,
            day.buy,
            *penalties.get(bus, (0.0, 0.0)),
            needs_reactive=not limits.are_absent,
        )
        for bus, name in enumerate(names)
    }
    machine = ExchangeCoordinator(
        Coordinator(day, limits, metric, chosen),
        StopRule.of(day, limits, chosen),
        Register.of(day),
        names,
        day.flexible,
        start=start,
        delay_ns=delay_ns,
    )
    return machine, sites
