"""Scheme ``masked``: exchange coordination whose site problems are solved masked, by third parties.

The flow of a day [masking 3]: bids are masked and registered by digest; each iteration the
coordinator's offer becomes one c' a site, its worker solves and signs, validators verify from the
masked data, the accepted solution is recorded, and the coordinator recovers net demands - with the
recovery rows that it holds - and moves prices. At the end each edge device recovers its own
set-points. Everything is a plain function or method on arrays; who runs where is the drivers' part.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from threadpoolctl import threadpool_limits

from veilgrid.admm.exchange import (
    Balance,
    Coordinator,
    ExchangeSettings,
    ExchangeState,
    Metric,
    StopRule,
)
from veilgrid.admm.outcome import Coordination, Interrupted, Progress, ProgressSink, RunStatus
from veilgrid.admm.reference import least_violation
from veilgrid.admm.site_step import SiteAnswer
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.qp.mask import MaskOptions
from veilgrid.roles.masked_record import HONEST, MaskedOutcome, Misconduct, Watched
from veilgrid.roles.masked_sites import MaskedSites
from veilgrid.roles.masked_workshop import Workshop
from veilgrid.secret import Randomness

SUSPICION = (10, 20, 40, 80)
"""Iterations at which extreme prices make the run ask whether the day is feasible."""

SUSPICIOUS_PRICE = 10.0


@dataclass(frozen=True, kw_only=True)
class MaskedSettings:
    """How a masked day runs.

    Attributes
    ----------
    exchange
        Of the coordination.
    options
        Of the masks.
    worker_count : >= 1
    fault_max : >= 0
        f of ``3f + 1`` validators.
    is_recorded
        Whether tasks, claims and verdicts go on a ledger; else votes are only counted.
    """

    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)
    options: MaskOptions = field(default_factory=MaskOptions)
    worker_count: int = 2
    fault_max: int = 1
    is_recorded: bool = False


class MaskedRun:
    """One day in the scheme ``masked``.

    Parameters
    ----------
    day, limits
        What to plan and within which limits.
    settings
        How.
    randomness
        For keys and masks.
    pool
        Workers run in it, side by side.
    misconduct
        Who departs from the protocol.
    """

    def __init__(
        self,
        day: Day,
        limits: Limits,
        settings: MaskedSettings,
        randomness: Randomness,
        pool: ThreadPoolExecutor,
        misconduct: Misconduct = HONEST,
    ) -> None:
        self.day, self.limits, self.settings = day, limits, settings
        self.misconduct = misconduct
        self.workshop = Workshop(
            settings.worker_count,
            settings.fault_max,
            randomness,
            pool,
            misconduct,
            day if settings.is_recorded else None,
        )
        exchange = settings.exchange
        self.metric = Metric.of(day, limits, exchange.penalty, exchange.evenness)
        self.sites = MaskedSites(
            day,
            self.metric.active,
            self.metric.reactive,
            settings.options,
            self.workshop,
            randomness,
            misconduct,
        )
        self.excluded: list[int] = []
        self.history: list[Progress] = []
        self.checked: list[int] = []
        self._coordinate()

    def _coordinate(self) -> None:
        """Set up the coordination of the present members."""
        day, exchange = self.day, self.settings.exchange
        by_day = replace(exchange, balance=Balance.BY_DAY)
        self.coordinator = Coordinator(day, self.limits, self.metric, by_day)
        self.rule = StopRule.of(day, self.limits, exchange)
        self.setpoints = list(day.load_only)
        self.coordinator.declare(*day.demands(self.setpoints))

    # Iterations.

    def open(self) -> tuple[Watched, ExchangeState]:
        """Ask for the cheapest answers to the tariff; return them and the first offer."""
        day = self.day
        blank = np.zeros((len(self.sites.members), day.interval_count))
        tariff = ExchangeState(
            target_p=blank, target_q=blank, price_p=blank + day.buy, price_q=blank
        )
        watched = self._answers("cheapest", tariff)
        self.coordinator.start(
            replace(tariff, target_p=watched.demand_p, target_q=watched.demand_q)
        )
        offer = self.coordinator.offer()
        return watched._replace(offer=offer), offer

    def iterate(self, offer: ExchangeState) -> Watched:
        """Turn an offer into accepted solutions and their net demands."""
        if self.settings.options.is_fresh_each_iteration:
            self.sites.remask()
        self.sites.rescale(float(offer.stiffness[0]))
        return self._answers("near", offer)

    def _answers(self, kind: str, offer: ExchangeState) -> Watched:
        """Get accepted solutions of one kind of task, and recover net demands."""
        iteration = len(self.history) + 1
        found = self.sites.answers(kind, offer, iteration)
        for index, own in zip(self.sites.members, found.setpoints, strict=True):
            self.setpoints[index] = own
        self.last = found
        return Watched(
            iteration,
            offer,
            found.demand_p,
            found.demand_q,
            found.records,
            found.problems,
            found.solutions,
            kind,
        )

    def note(self) -> Progress:
        """Record the present iteration."""
        coordinator = self.coordinator
        cost = self.day.cost(self.setpoints)
        entry = Progress(len(self.history) + 1, coordinator.primal, coordinator.dual, cost)
        self.history.append(entry)
        self.workshop.residuals = (entry.primal, entry.dual)
        return entry

    def is_done(self, watched: Watched) -> bool:
        """Certify the plan: regrets are differences of accepted masked costs [masking 3.3]."""
        target, residual = self.result, self.coordinator.primal
        demand_p, demand_q = self.day.demands(self.setpoints)
        own = self._own_cost()
        if not self.rule.is_promising(target, demand_p, demand_q, own, residual):
            return False
        self.checked.append(len(self.history))
        problems = self.sites.problems("cheapest", watched.offer)
        cheapest = self.workshop.settle("cheapest", len(self.history) + 1, problems)
        gap = self.rule.network_gap(target, demand_p, demand_q)
        for mine, (index, problem) in zip(self.last.records, problems.items(), strict=True):
            best = problem.objective(cheapest[index].submission.solution.values)
            gap += max(problem.objective(mine.submission.solution.values) - best, 0.0)
        return self.rule.is_met(gap / self.rule.scale(demand_p, own), residual)

    def _own_cost(self) -> float:
        pairs = zip(self.day.sites, self.setpoints, strict=True)
        return float(sum(site.cost(x) for site, x in pairs))

    def exclude(self, index: int) -> None:
        """Go on without a silent site: it counts as rigid at its register's fallback."""
        day = self.day
        members = self.sites.members
        places = [place for place, member in enumerate(members) if member != index]
        still = day.sites[index].uncontrolled
        fixed = replace(day.sites[index], lower=still, upper=still)
        sites = tuple(fixed if i == index else site for i, site in enumerate(day.sites))
        self.day = replace(day, sites=sites)
        self.excluded.append(index)
        self.sites.exclude(index)
        self.metric = Metric(
            active=self.metric.active[places], reactive=self.metric.reactive[places]
        )
        self._coordinate()

    def _exclude_silent(self, iteration: int) -> bool:
        """Exclude whoever is silent by now; whether anybody is."""
        silent = [
            index
            for index, since in self.misconduct.refusing.items()
            if iteration >= since and index in self.sites.members
        ]
        for index in silent:
            self.exclude(index)
        return bool(silent)

    def steps(self, start: object) -> Iterator[Watched]:
        """Yield each iteration's answers; the first ones are to the tariff [masking 3]."""
        self._exclude_silent(1)
        watched, offer = self.open()
        for iteration in range(1, self.settings.exchange.iteration_count_max + 1):
            if iteration > 1:
                if self._exclude_silent(iteration):
                    start = offer
                    watched, offer = self.open()
                else:
                    watched = self.iterate(offer)
            self.result, self.offered = self.coordinator.result, offer
            if watched.kind == "near":
                answer = SiteAnswer([], watched.demand_p, watched.demand_q)
                self.coordinator.take(answer, self._own_cost())
            yield watched
            if watched.kind == "near":
                offer = self.coordinator.offer()
            elif isinstance(start, ExchangeState):
                offer = self.coordinator.resume(start) or offer

    def run(
        self,
        start: object = None,
        progress: ProgressSink | None = None,
        watch: Callable[[Watched], None] | None = None,
    ) -> MaskedOutcome:
        """Iterate to the end."""
        status = RunStatus.ITERATION_LIMIT
        violations: tuple[tuple[int, int, float], ...] = ()
        last = self.settings.exchange.iteration_count_max
        try:
            for watched in self.steps(start):
                if watch is not None:
                    watch(watched)
                entry = self.note()
                if progress is not None:
                    progress(entry)
                if self.is_done(watched):
                    status = RunStatus.CONVERGED
                    break
                if entry.iteration in SUSPICION or entry.iteration == last:
                    violations = self._obstacles(entry.iteration == last)
                    if violations:
                        status = RunStatus.INFEASIBLE
                        break
        except Interrupted:
            status = RunStatus.ABORTED
        target = self.result
        self.workshop.finish()
        return MaskedOutcome(
            Coordination(
                status=status,
                setpoints=[] if violations else self.setpoints,
                price_p=target.price_p,
                price_q=target.price_q,
                rent=float(target.rent.sum()),
                history=tuple(self.history),
                message_count=self.workshop.traffic.messages,
                byte_count=self.workshop.traffic.octets,
                violations=violations,
                warm=self.offered,
                record=self.workshop.chain,
            ),
            tuple(self.workshop.refused),
            tuple(self.excluded),
            tuple(dict.fromkeys(self.sites.named)),
        )

    def _obstacles(self, is_last: bool) -> tuple[tuple[int, int, float], ...]:
        """Ask whether the day is feasible at all, where prices say that it may not be."""
        highest = SUSPICIOUS_PRICE * float(np.max(np.abs(self.day.buy)))
        is_high = float(np.abs(self.result.price_p).max()) > highest
        if not (is_last or is_high or self.coordinator.network.unmet()):
            return ()
        return least_violation(self.day, self.limits)


def plan_masked(
    day: Day,
    limits: Limits,
    randomness: Randomness,
    settings: MaskedSettings = MaskedSettings(),
    start: object = None,
    progress: ProgressSink | None = None,
    misconduct: Misconduct = HONEST,
    watch: Callable[[Watched], None] | None = None,
) -> MaskedOutcome:
    """Plan a day in the scheme ``masked``.

    Parameters
    ----------
    day, limits
        What to plan and within which limits.
    randomness
        For keys and masks; the plan depends on it within the tolerance only.
    settings
        How.
    start
        ``warm`` of the last day's outcome; anything else starts from the tariff.
    progress
        Called once an iteration; an exception from it ends the run.
    misconduct
        Who departs from the protocol.
    watch
        Called with each iteration's data.
    """
    # Workers share the cores already; threads inside their small products would only fight.
    with ThreadPoolExecutor(settings.worker_count) as pool, threadpool_limits(1, user_api="blas"):
        run = MaskedRun(day, limits, settings, randomness, pool, misconduct)
        return run.run(start, progress, watch)
