"""Exchange ADMM: sites answer prices, one network step makes the answers fit together [model 4].

Written as Douglas-Rachford splitting: the state is one array, the *wish* of each flexible site and
interval (net demand plus price over penalty). The network step turns wishes into targets and
prices, the sites answer near their targets, and ``wish += relaxation (answer - target)``. Prices
come out of the network step, so they are always prices that this network can have, and the
Lagrangian at them bounds the optimum from below (:mod:`veilgrid.admm.certify`).

Sites without any choice are rigid: their penalty is infinite, which takes them out of the
iteration; their prices still come from the network step.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from veilgrid.admm.accelerate import (
    GuardedAnderson,
    IntervalBalance,
    Powers,
    stiffness_of,
)
from veilgrid.admm.certify import bound_from_prices, turnover
from veilgrid.admm.exchange_message import traffic
from veilgrid.admm.network_step import NetworkStep, NetworkTarget
from veilgrid.admm.outcome import Coordination, Interrupted, Progress, ProgressSink, RunStatus
from veilgrid.admm.reference import least_violation
from veilgrid.admm.site_step import SiteAnswer, SiteSteps
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.network import Floats

TIGHTENED = (4, 8, 16, 32, 64)
"""Iterations at which the inner distance from limits is set anew."""

DEARER = 1.5
"""Later it is set anew where it has come to cost so many times what it may."""

SCALE_LEAST = 1e-3
"""Part of all payments at the substation that costs count for at least, where they cancel."""

SUSPICION = (10, 20, 40, 80)
"""Iterations at which extreme prices make the run ask whether the day is feasible."""

SUSPICIOUS_PRICE = 10.0
"""A nodal price of so many times the highest tariff is extreme."""


class Balance(StrEnum):
    """Of which penalties the movements of prices and targets are balanced together.

    Masked sites balance the day as a whole: workers would learn more from a factor an interval.
    """

    BY_INTERVAL = "interval"
    BY_DAY = "day"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeSettings:
    """How the exchange scheme runs. The defaults were measured, see docs/protocol/exchange.md.

    Attributes
    ----------
    iteration_count_max : > 0
    gap_max : > 0
        The run stops when the certified gap is below it.
    excess_max : > 0, per-unit
        ... and no network row is exceeded by more.
    penalty : > 0
        In units of the mean tariff over a site's own range of power.
    relaxation : in [1, 2)
    evenness : in [0, 1]
        1 = the same penalty for all sites, 0 = inversely to each site's range of power.
    memory : >= 1
        Past iterations that Anderson acceleration mixes; 1 = none.
    mixing_interval : >= 1
        Plain iterations from one mixing to the next.
    inner_share : in [0, 1)
        Part of ``gap_max`` that may be spent on an inner distance from limits.
    balance
        How penalties change on the way (:class:`IntervalBalance`).
    strength_max : > 0
        Ceiling of a row's strength in units of the highest tariff.
    """

    iteration_count_max: int = 200
    gap_max: float = 8e-5
    excess_max: float = 9e-7
    penalty: float = 1.5
    relaxation: float = 1.7
    evenness: float = 0.5
    memory: int = 20
    mixing_interval: int = 3
    inner_share: float = 0.5
    balance: Balance = Balance.BY_INTERVAL
    strength_max: float = 200.0


@dataclass(frozen=True, kw_only=True)
class ExchangeState:
    """Where a run stopped, to start the next day from.

    Attributes
    ----------
    target_p, target_q, price_p, price_q : (flexible site, interval)
    powers : (interval,), None = all zero
        Of :data:`BALANCE_FACTOR`, by which penalties are multiplied from here on. Another day
        begins without: what is out of balance differs too much (decision 48).
    members
        Names of the sites; empty = in the order of the day that is planned.
    """

    target_p: Floats
    target_q: Floats
    price_p: Floats
    price_q: Floats
    powers: Powers | None = None
    members: tuple[str, ...] = ()

    @property
    def stiffness(self) -> Floats:
        """By which penalties are multiplied from here on, (interval,)."""
        if self.powers is None:
            return np.ones(self.target_p.shape[1])
        return stiffness_of(self.powers)

    def fitted(self, opening: "ExchangeState") -> "ExchangeState | None":
        """Take over what fits another day: ``None`` if nothing does.

        Parameters
        ----------
        opening
            Of the other day: its first answers to the tariff. Sites that are flexible only there
            start from it.
        """
        place = {name: row for row, name in enumerate(self.members)}
        known = [row for row, name in enumerate(opening.members) if name in place]
        if not known or self.target_p.shape[1:] != opening.target_p.shape[1:]:
            return None
        rows = [place[opening.members[row]] for row in known]

        def merged(old: Floats, new: Floats) -> Floats:
            both = new.copy()
            both[known] = old[rows]
            return both

        return ExchangeState(
            target_p=merged(self.target_p, opening.target_p),
            target_q=merged(self.target_q, opening.target_q),
            price_p=merged(self.price_p, opening.price_p),
            price_q=merged(self.price_q, opening.price_q),
            members=opening.members,
        )


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Penalties of the flexible sites.

    Attributes
    ----------
    active, reactive : (flexible site,), currency per per-unit squared and interval
        ``reactive`` is zero where reactive power does not matter.
    """

    active: Floats
    reactive: Floats

    @classmethod
    def of(cls, day: Day, limits: Limits, penalty: float, evenness: float) -> "Metric":
        """Scale penalties by the tariff and by each site's range of power.

        A site with twice the range may move twice as far for the same price; that makes the
        iteration independent of currency and base.
        """
        ranges = np.array(
            [
                float(np.max(np.abs(site.inject_p) @ (site.upper - site.lower), initial=0.0))
                for site in (day.sites[i] for i in day.flexible)
            ]
        )
        price = float(np.mean(np.maximum(np.abs(day.buy), np.abs(day.sell)))) or 1.0
        widest = float(ranges.max(initial=0.0)) or 1.0
        own = np.maximum(ranges, 0.05 * widest)
        middle = float(np.median(own)) if len(own) else 1.0
        active = penalty * price / (own ** (1.0 - evenness) * middle**evenness)
        return cls(active=active, reactive=np.zeros_like(active) if limits.are_absent else active)


def strength_ceiling(settings: ExchangeSettings, day: Day) -> float:
    """Return the largest strength of a row, currency.

    Where energy costs nothing to buy, it is measured by what it sells for, or by one: limits have
    to be worth something.
    """
    highest = float(np.max(np.abs(day.buy))) or float(np.max(np.abs(day.sell))) or 1.0
    return settings.strength_max * highest


def is_tightened(iteration: int, inner_cost: float, budget: float) -> bool:
    """Whether the inner distance is set anew: at given iterations, then where it has become dear.

    Strengths of rows swing in between, and each change costs iterations.
    """
    is_dear = iteration > TIGHTENED[-1] and inner_cost > DEARER * budget
    return iteration in TIGHTENED or is_dear


def _inverse(penalty: Floats) -> Floats:
    """One over penalties where there are any."""
    return np.divide(1.0, penalty, out=np.zeros_like(penalty), where=penalty > 0.0)


def _spread(values: Floats, members: list[int], count: int) -> Floats:
    wide = np.zeros((count, *values.shape[1:]))
    wide[members] = values
    return wide


class Coordinator:
    """The coordinator's half: keeps the wishes, asks for answers, certifies.

    Pure arrays; :meth:`offer` and :meth:`take` alternate.
    """

    def __init__(
        self, day: Day, limits: Limits, metric: Metric, settings: ExchangeSettings
    ) -> None:
        self.settings, self.metric = settings, metric
        self._balance = IntervalBalance(day.interval_count)
        self._moved = np.zeros((2, day.interval_count))
        self._members, self._count = list(day.flexible), len(day.sites)
        self._names = tuple(str(day.sites[i].name) for i in day.flexible)
        self._opening: ExchangeState | None = None
        self.network = NetworkStep(
            limits,
            day.buy,
            day.sell,
            _spread(_inverse(metric.active), self._members, self._count),
            _spread(_inverse(metric.reactive), self._members, self._count),
            strength_ceiling(settings, day),
        )
        self._stiffen()
        self._has_reactive = bool((metric.reactive > 0.0).any())
        self._mixer = GuardedAnderson(settings.memory, settings.mixing_interval)
        self._wish_p = np.zeros((self._count, day.interval_count))
        self._wish_q = np.zeros_like(self._wish_p)
        self._target: NetworkTarget | None = None
        self._offers = 0
        self._own_cost = 0.0
        self.primal = self.dual = np.inf

    def _stiffen(self) -> None:
        """Take up the penalties that are due from here on."""
        stiffness = self._balance.stiffness
        own = np.concatenate([self.metric.active, self.metric.reactive])[:, np.newaxis]
        self._weight = np.sqrt(own * stiffness)
        self.network.stiffen(stiffness)

    @property
    def result(self) -> NetworkTarget:
        """The last network step's result."""
        invariant(self._target is not None, "an offer was made before its result is asked for")
        return self._target  # type: ignore[return-value]

    def declare(self, demand_p: Floats, demand_q: Floats) -> None:
        """Take the net demands (bus, interval) of rigid sites; flexible rows are ignored."""
        self._wish_p, self._wish_q = demand_p.copy(), demand_q.copy()

    def start(self, state: ExchangeState) -> None:
        """Begin from targets and prices of the flexible sites."""
        self._opening = replace(state, members=self._names)
        self._wish(state)

    def resume(self, last: ExchangeState) -> ExchangeState | None:
        """Go over from the first answers to where the last day ended, if that fits.

        The first answers to the tariff are certified like any others before: a day that they
        solve needs no start from the last one.

        Parameters
        ----------
        last
            The last day's offer when it ended.

        Returns
        -------
        ExchangeState
            Targets and prices for the flexible sites, or ``None``: the run goes on as begun.
        """
        invariant(self._opening is not None, "a run is begun before it is resumed")
        state = last.fitted(self._opening)  # type: ignore[arg-type]
        if state is None:
            return None
        self._wish(state)
        self._mixer.forget()
        self._target = None
        return self.offer()

    def _wish(self, state: ExchangeState) -> None:
        """Set the wishes that have these targets and prices."""
        members, metric, stiffness = self._members, self.metric, self._balance.stiffness
        penalty = metric.active[:, np.newaxis] * stiffness
        self._wish_p[members] = state.target_p + state.price_p / penalty
        if self._has_reactive:
            penalty = metric.reactive[:, np.newaxis] * stiffness
            self._wish_q[members] = state.target_q + state.price_q / penalty

    def offer(self) -> ExchangeState:
        """Do the network step; return targets and prices for the flexible sites."""
        previous = self._target
        self._offers += 1
        if previous is not None:
            self._tighten(previous)
        self._target = found = self.network.project(self._wish_p, self._wish_q)
        is_changed = previous is not None and self._compare(previous, found)
        members = self._members
        offered = ExchangeState(
            target_p=found.target_p[members],
            target_q=found.target_q[members],
            price_p=found.price_p[members],
            price_q=found.price_q[members],
            powers=self._balance.powers,
            members=self._names,
        )
        if is_changed:
            # The same targets and prices come out of other wishes under other penalties.
            self._stiffen()
            self._wish(offered)
            self._mixer.forget()
        return offered

    def _tighten(self, previous: NetworkTarget) -> None:
        """Set the distance kept from limits where that is due."""
        paid = previous.price * previous.target_p.sum(axis=0)
        bought = float(paid.sum())
        # The gap is relative to the whole cost; a distance that is smaller still takes fewer steps.
        scale = min(abs(bought), abs(self._own_cost + bought))
        scale = max(scale, SCALE_LEAST * float(np.abs(paid).sum()))
        budget = self.settings.inner_share * self.settings.gap_max * scale
        if is_tightened(self._offers, self.network.inner_cost, budget):
            self.network.tighten(budget)

    def _compare(self, previous: NetworkTarget, found: NetworkTarget) -> bool:
        """Measure what a step changed; return whether penalties change by it."""
        members = self._members

        def moved(before: Floats, after: Floats) -> Floats:
            return after[members] - before[members]

        target = np.concatenate(
            [
                moved(previous.target_p, found.target_p),
                moved(previous.target_q, found.target_q),
            ]
        )
        self.dual = float(np.max(np.abs(self._weight**2 * target), initial=0.0))
        if self.settings.balance == Balance.NONE:
            return False
        price = np.concatenate(
            [moved(previous.price_p, found.price_p), moved(previous.price_q, found.price_q)]
        )
        ratio = np.divide(price, self._weight, out=price, where=self._weight > 0.0)
        return self._judge(ratio, self._weight * target)

    def _judge(self, price: Floats, target: Floats) -> bool:
        """Add up what a step changed, in the metric; now and then change penalties by it."""
        if self._offers in IntervalBalance.JUDGED:
            least = IntervalBalance.LEAST * float(np.max(np.abs(self.network.buy)))
            moved = self._moved
            if self.settings.balance == Balance.BY_DAY:
                moved = np.broadcast_to(moved.sum(axis=1, keepdims=True), moved.shape)
            stiffer, softer = IntervalBalance.excess(*moved)
            self._moved = np.zeros_like(self._moved)
            return self._balance.change(stiffer > least, softer > least)
        if not self._mixer.is_striding or self._offers > IntervalBalance.STRIDES_FROM:
            self._moved += [(price**2).sum(axis=0), (target**2).sum(axis=0)]
        return False

    def take(self, answer: SiteAnswer, own_cost: float = 0.0) -> None:
        """Move the wishes by what the sites answered to the last offer.

        ``own_cost`` is what the answers cost at the sites, currency, as far as that is known.
        """
        self._own_cost = own_cost
        target = self.result
        members = self._members
        off_p = answer.demand_p - target.target_p[members]
        off_q = answer.demand_q - target.target_q[members]
        if not self._has_reactive:
            off_q = np.zeros_like(off_q)
        self.primal = float(np.max(np.abs(np.concatenate([off_p, off_q])), initial=0.0))
        count = len(members)
        wish = np.concatenate([self._wish_p[members], self._wish_q[members]])
        moved = self._weight * np.concatenate([off_p, off_q]) * self.settings.relaxation
        mixed = self._mixer.mix((self._weight * wish).ravel(), moved.ravel()).reshape(wish.shape)
        unweighted = np.divide(mixed, self._weight, out=wish.copy(), where=self._weight > 0.0)
        self._wish_p[members], self._wish_q[members] = unweighted[:count], unweighted[count:]


@dataclass
class Retry:
    """When the sites' regrets are worth asking for again, after a certificate that failed.

    Attributes
    ----------
    residual
        Primal residual then.
    regret
        Sum of regrets then, in the unit of gaps.
    """

    residual: float = np.inf
    regret: float = np.inf

    def is_worth_it(self, residual: float, gap: float, allowed: float) -> bool:
        """Whether answers have settled since, or prices alone have closed the gap far enough.

        Regrets of settled answers fall with the square of the residual, so where that has grown
        the last ones stand for no less.
        """
        if not residual > 0.7 * self.residual:
            return True
        growth = max(self.residual, residual) ** 2
        return self.residual > 0.0 and gap + growth / self.residual**2 * self.regret <= allowed


@dataclass(kw_only=True)
class StopRule:
    """When a run may stop: no row exceeded, and the certified gap small enough.

    Attributes
    ----------
    turnover_min : currency
        Gaps are relative to the plan's cost, but at least to this.
    retry
        What the last certificate that failed found.
    """

    limits: Limits
    buy: Floats
    sell: Floats
    settings: ExchangeSettings
    turnover_min: float
    retry: Retry = field(default_factory=Retry)
    _bracket: float = np.inf

    @classmethod
    def of(cls, day: Day, limits: Limits, settings: ExchangeSettings) -> "StopRule":
        """Take the public constants of a day."""
        return cls(
            limits=limits,
            buy=day.buy,
            sell=day.sell,
            settings=settings,
            turnover_min=turnover(day, 0.0),
        )

    def exchange_cost(self, demand_p: Floats) -> float:
        """Cost of the substation's exchange that net demands (bus, interval) make, currency."""
        exchange = demand_p.sum(axis=0)
        return float(np.maximum(self.buy * exchange, self.sell * exchange).sum())

    def network_gap(self, target: NetworkTarget, demand_p: Floats, demand_q: Floats) -> float:
        """Return the network's part of the gap, currency; the rest are the sites' regrets."""
        paid = float((target.price_p * demand_p).sum() + (target.price_q * demand_q).sum())
        return self.exchange_cost(demand_p) - paid + float(target.rent.sum())

    def scale(self, demand_p: Floats, own_cost: float) -> float:
        """Return what gaps are measured against, currency."""
        return max(abs(own_cost + self.exchange_cost(demand_p)), self.turnover_min)

    def is_promising(
        self,
        target: NetworkTarget,
        demand_p: Floats,
        demand_q: Floats,
        own_cost: float,
        residual: float,
    ) -> bool:
        """Whether the sites' cheapest answers are worth asking for."""
        if not self.limits.are_absent:
            excess = self.limits.excess(flows(self.limits.tree, demand_p, demand_q))
            if float(excess.max()) > self.settings.excess_max:
                return False
        gap_max, size = self.settings.gap_max, self.scale(demand_p, own_cost)
        self._bracket = self.network_gap(target, demand_p, demand_q) / size
        is_small = self._bracket <= gap_max
        return is_small and self.retry.is_worth_it(residual, self._bracket, gap_max)

    def is_met(self, gap: float, residual: float) -> bool:
        """Whether a certified gap ends the run; remembers what was found where it did not."""
        if gap > self.settings.gap_max:
            self.retry = Retry(residual, gap - self._bracket)
        return gap <= self.settings.gap_max


class _Run:
    """One run of the array form."""

    def __init__(
        self, day: Day, limits: Limits, settings: ExchangeSettings, pool: ThreadPoolExecutor
    ) -> None:
        self.day, self.limits = day, limits
        metric = Metric.of(day, limits, settings.penalty, settings.evenness)
        self.coordinator = Coordinator(day, limits, metric, settings)
        sites = [day.sites[i] for i in day.flexible]
        self._near: SiteSteps | None = None
        self._near_to = b""
        self._metric, self._sites, self._pool = metric, sites, pool
        nothing = np.zeros(len(sites))
        self.cheapest = SiteSteps(sites, nothing, nothing, pool)
        self.setpoints = list(day.load_only)
        self.history: list[Progress] = []
        self.progress: ProgressSink | None = None
        self._blank = np.zeros((len(sites), day.interval_count))
        self.rule = StopRule.of(day, limits, settings)
        self.checked: list[int] = []

    def open(self) -> ExchangeState:
        """Ask for the cheapest answers to the tariff."""
        blank = self._blank
        self.coordinator.declare(*self.day.demands(self.setpoints))
        price = blank + self.day.buy
        answer = self.cheapest.answer(price, blank, blank, blank)
        self._adopt(answer)
        self.coordinator.start(
            ExchangeState(
                target_p=answer.demand_p,
                target_q=answer.demand_q,
                price_p=price,
                price_q=blank,
            )
        )
        return self.coordinator.offer()

    def iterate(self, offer: ExchangeState) -> ExchangeState:
        """Let all sites answer an offer; return the next offer."""
        near = self._near_at(offer.stiffness)
        answer = near.answer(offer.price_p, offer.price_q, offer.target_p, offer.target_q)
        self._adopt(answer)
        self.coordinator.take(answer, self._own_cost())
        return self.coordinator.offer()

    def _own_cost(self) -> float:
        pairs = zip(self.day.sites, self.setpoints, strict=True)
        return float(sum(site.cost(x) for site, x in pairs))

    def _near_at(self, stiffness: Floats) -> SiteSteps:
        """Prepare the sites' problems anew where penalties changed."""
        if self._near is None or self._near_to != stiffness.tobytes():
            active = self._metric.active[:, np.newaxis] * stiffness
            reactive = self._metric.reactive[:, np.newaxis] * stiffness
            self._near = SiteSteps(self._sites, active, reactive, self._pool)
            self._near_to = stiffness.tobytes()
        return self._near

    def _adopt(self, answer: SiteAnswer) -> None:
        for index, x in zip(self.day.flexible, answer.setpoints, strict=True):
            self.setpoints[index] = x

    def is_done(self, target: NetworkTarget) -> bool:
        """Certify the present plan against prices, if it promises to pass."""
        day = self.day
        demand_p, demand_q = day.demands(self.setpoints)
        residual = self.coordinator.primal
        if not self.rule.is_promising(target, demand_p, demand_q, self._own_cost(), residual):
            return False
        self.checked.append(len(self.history))
        members, blank = list(day.flexible), self._blank
        answer = self.cheapest.answer(
            target.price_p[members], target.price_q[members], blank, blank
        )
        found = bound_from_prices(day, self.limits, self.setpoints, answer, target)
        return self.rule.is_met(found.gap, residual)

    def note(self) -> None:
        """Record and show the present iteration."""
        coordinator = self.coordinator
        cost = self.day.cost(self.setpoints)
        entry = Progress(len(self.history) + 1, coordinator.primal, coordinator.dual, cost)
        self.history.append(entry)
        if self.progress is not None:
            self.progress(entry)


def plan_exchange(
    day: Day,
    limits: Limits,
    settings: ExchangeSettings = ExchangeSettings(),
    start: object = None,
    progress: ProgressSink | None = None,
) -> Coordination:
    """Plan a day by exchange ADMM.

    Parameters
    ----------
    day, limits
        What to plan and within which limits.
    settings
        How.
    start
        ``warm`` of the last day's outcome, used from the second iteration on; anything else goes
        on from the first answers, which are to the tariff.
    progress
        Called once an iteration; an exception from it ends the run.
    """
    with ThreadPoolExecutor() as pool:
        run = _Run(day, limits, settings, pool)
        run.progress = progress
        offer = run.open()
        status = RunStatus.ITERATION_LIMIT
        violations: tuple[tuple[int, int, float], ...] = ()
        try:
            for iteration in range(1, settings.iteration_count_max + 1):
                target = run.coordinator.result
                if iteration > 1:
                    offer = run.iterate(offer)
                run.note()
                if run.is_done(target):
                    status = RunStatus.CONVERGED
                    break
                highest = SUSPICIOUS_PRICE * float(np.max(np.abs(day.buy)))
                is_suspect = iteration in SUSPICION and bool(
                    run.coordinator.network.unmet() or np.abs(target.price_p).max() > highest
                )
                if is_suspect or iteration == settings.iteration_count_max:
                    violations = least_violation(day, limits)
                    if violations:
                        status = RunStatus.INFEASIBLE
                        break
                if iteration == 1 and isinstance(start, ExchangeState):
                    offer = run.coordinator.resume(start) or offer
        except Interrupted:
            status = RunStatus.ABORTED
    messages, octets = traffic(
        day,
        status,
        len(run.history),
        run.checked,
        are_limits_absent=limits.are_absent,
    )
    return Coordination(
        status=status,
        setpoints=[] if violations else run.setpoints,
        price_p=target.price_p,
        price_q=target.price_q,
        rent=float(target.rent.sum()),
        history=tuple(run.history),
        message_count=messages,
        byte_count=octets,
        violations=violations,
        warm=offer,
    )
