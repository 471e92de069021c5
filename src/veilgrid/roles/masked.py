"""Scheme ``masked``: exchange coordination whose site problems are solved masked, by third parties.

The flow of a day [masking 3]: bids are masked and registered by digest; each iteration the
coordinator's offer becomes one c' a site, its worker solves and signs, validators verify from the
masked data, the accepted solution is recorded, and the coordinator recovers net demands - with the
recovery rows that it holds - and moves prices. At the end each edge device recovers its own
set-points. Everything is a plain function or method on arrays; who runs where is the drivers' part.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from veilgrid.admm.accelerate import PenaltyBalance
from veilgrid.admm.exchange import Coordinator, ExchangeSettings, ExchangeState, Metric, StopRule
from veilgrid.admm.masked_site import site_form
from veilgrid.admm.outcome import Coordination, Interrupted, Progress, ProgressSink, RunStatus
from veilgrid.admm.reference import least_violation
from veilgrid.admm.site_step import SiteAnswer
from veilgrid.errors import RunAborted, invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.qp.mask import MaskedProblem, MaskOptions
from veilgrid.roles.masked_edge import EdgeDevice, Offer, Public, agrees
from veilgrid.roles.masked_record import HONEST, MaskedOutcome, Misconduct, Record, Watched
from veilgrid.roles.masked_task import (
    Council,
    Task,
    Worker,
    assign,
    with_linear,
)
from veilgrid.roles.masked_traffic import Traffic
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signer

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
    """

    exchange: ExchangeSettings = field(default_factory=ExchangeSettings)
    options: MaskOptions = field(default_factory=MaskOptions)
    worker_count: int = 2
    fault_max: int = 1


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
        self.misconduct, self._pool, self._randomness = misconduct, pool, randomness
        self.council = Council(fault_max=settings.fault_max)
        self.workers = {
            name: Worker(name, Signer(Secret(randomness.octets(32))))
            for name in (f"worker-{k}" for k in range(settings.worker_count))
        }
        self.traffic = Traffic(len(self.council.names))
        self.refused: list[tuple[Task, str, str]] = []
        self.excluded: list[int] = []
        self.named: list[str] = []
        self.barred: set[str] = set()
        self.history: list[Progress] = []
        self.checked: list[int] = []
        self.scale = 1.0
        self._gather()

    # Bids and registration.

    def _gather(self) -> None:
        """Take the bids of all flexible sites, mask and register them."""
        day, exchange = self.day, self.settings.exchange
        self.metric = Metric.of(day, self.limits, exchange.penalty, exchange.evenness)
        self.members = list(day.flexible)
        self.edges: dict[int, EdgeDevice] = {}
        self.public: dict[int, Public] = {}
        for place, index in enumerate(self.members):
            penalties = float(self.metric.active[place]), float(self.metric.reactive[place])
            form = site_form(day.sites[index], *penalties)
            self.edges[index] = EdgeDevice(form, self.settings.options, self._randomness)
            self._register(self.edges[index])
            self.public[index] = Public.of(self.edges[index])
        self.assigned = self._assign()
        self._coordinate()

    def _coordinate(self) -> None:
        """Set up the coordination of the present members."""
        day, exchange = self.day, self.settings.exchange
        balance = PenaltyBalance(change_count_max=exchange.change_count_max)
        self.coordinator = Coordinator(day, self.limits, self.metric, exchange, balance)
        self.rule = StopRule.of(day, self.limits, exchange)
        self.setpoints = list(day.load_only)
        self.coordinator.declare(*day.demands(self.setpoints))

    def _register(self, edge: EdgeDevice) -> None:
        traffic, near = self.traffic, edge.near
        traffic.order(len(msgspec.msgpack.encode(edge.registration())))
        readers = 1 + len(self.council.names)
        both = len(near.octets) + 8 * edge.cheapest.quadratic.size
        traffic.send(both)  # to the store
        traffic.send(both, readers)  # to its worker and the validators
        traffic.send(8 * (edge.rows().matrix.size + edge.rows().offset.size))

    def _assign(self) -> dict[int, str]:
        """Give each site a worker for the day, by work to do; ties by a beacon of all bids."""
        names = [name for name in self.workers if name not in self.barred]
        if not names:
            raise RunAborted("no worker is left that delivers acceptable solutions")
        beacon = hashlib.sha256(b"".join(edge.near.digest for edge in self.edges.values()))
        first = int.from_bytes(beacon.digest()[:8], "big") % len(names)
        load = dict.fromkeys(names[first:] + names[:first], 0.0)
        heavy = sorted(self.edges, key=lambda i: -self.edges[i].near.matrix.size)
        chosen = {}
        for index in heavy:
            name = min(load, key=lambda worker: load[worker])
            chosen[index] = name
            load[name] += float(self.edges[index].near.matrix.size) * self.edges[index].key.width
        return chosen

    # One set of tasks: solve by workers, verify by validators, record.

    def settle(self, kind: str, problems: Mapping[int, MaskedProblem]) -> dict[int, Record]:
        """Get an accepted solution for each site's problem; replace workers that fail."""
        iteration = len(self.history) + 1
        done: dict[int, Record] = {}
        open_tasks = dict(problems)
        while open_tasks:
            mine: dict[str, list[int]] = {}
            for index in open_tasks:
                mine.setdefault(self.assigned[index], []).append(index)
            jobs = [
                self._pool.submit(self._work, kind, iteration, name, sites, open_tasks)
                for name, sites in mine.items()
            ]
            for job in jobs:
                for index, record in job.result():
                    self._count(open_tasks[index], record)
                    if self.council.outcome(record.verdicts):
                        done[index] = record
                    else:
                        self._refuse(index, record)
            for _ in range(3):  # tasks, claims, verdicts
                self.traffic.batch()
            open_tasks = {i: p for i, p in open_tasks.items() if i not in done}
        return done

    def _work(
        self,
        kind: str,
        iteration: int,
        worker: str,
        sites: list[int],
        problems: Mapping[int, MaskedProblem],
    ) -> list[tuple[int, Record]]:
        """Let one worker solve its tasks, and the validators judge them."""
        found, own = [], self.workers[worker]
        tamper = self.misconduct.workers.get(worker)
        for index in sites:
            problem = problems[index]
            task = assign(problem, self.edges[index].name, iteration, kind, worker)
            submission = own.solve(task, problem)
            if tamper is not None:
                submission = tamper(task, problem, submission)
            verdicts = self.council.verdicts(task, problem, submission, own.signer.verify_key)
            found.append((index, Record(task, submission, tuple(verdicts))))
        return found

    def _refuse(self, index: int, record: Record) -> None:
        """Bar a worker whose claim was refused and give its sites to others."""
        reason = record.verdicts[0].reason
        self.refused.append((record.task, record.task.worker, reason))
        self.barred.add(record.task.worker)
        self.assigned = {**self.assigned, **self._assign()}
        invariant(self.assigned[index] not in self.barred, "a barred worker gets no task")

    def _count(self, problem: MaskedProblem, record: Record) -> None:
        traffic, claim = self.traffic, len(msgspec.msgpack.encode(record.submission.claim))
        readers = 1 + len(self.council.names)
        linear = 8 * len(problem.linear)
        traffic.send(linear)
        traffic.send(linear, readers)
        traffic.order(len(msgspec.msgpack.encode(record.task)))
        solution = len(record.submission.solution.octets)
        traffic.send(solution)
        traffic.send(solution, len(self.council.names))
        traffic.send(8 * len(problem.linear))  # y, to the coordinator
        traffic.order(claim)
        for verdict in record.verdicts:
            traffic.order(len(msgspec.msgpack.encode(verdict)))

    # Iterations.

    def open(self) -> tuple[Watched, ExchangeState]:
        """Ask for the cheapest answers to the tariff; return them and the first offer."""
        day, members = self.day, self.members
        blank = np.zeros((len(members), day.interval_count))
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
            self._remask()
        self._rescale(offer.scale)
        return self._answers("near", offer)

    def _answers(self, kind: str, offer: ExchangeState) -> Watched:
        """Get accepted solutions of one kind of task, and recover net demands."""
        problems = self._problems(kind, self._favoured(offer))
        records = self.settle(kind, problems)
        demand_p = np.zeros_like(offer.price_p)
        demand_q = np.zeros_like(offer.price_q)
        for place, index in enumerate(self.members):
            edge, solution = self.edges[index], records[index].submission.solution
            coupling = self.public[index].rows.recover(solution.values)
            active, reactive = edge.form.demands(coupling)
            demand_p[place] = active
            self.setpoints[index] = edge.setpoints(solution)
            site = self.day.sites[index]
            demand_q[place] = site.demand_q(self.setpoints[index]) if reactive is None else reactive
        self.last = {index: record.submission.solution for index, record in records.items()}
        return Watched(
            len(self.history) + 1,
            offer,
            demand_p,
            demand_q,
            tuple(records[index] for index in self.members),
            tuple(problems[index] for index in self.members),
            tuple(
                self.edges[index].key.recover(records[index].submission.solution.values)
                for index in self.members
            ),
            kind,
        )

    def _favoured(self, offer: ExchangeState) -> ExchangeState:
        """Return what a coordinator offers: the same, unless it favours somebody."""
        premium = np.array([self.misconduct.favouring.get(i, 0.0) for i in self.members])
        return replace(offer, price_p=offer.price_p + premium[:, np.newaxis])

    def _problems(self, kind: str, offer: ExchangeState) -> dict[int, MaskedProblem]:
        """Let edge devices mask an offer; a c' that does not follow is replaced [masking 5]."""
        made = {}
        for place, index in enumerate(self.members):
            edge, public = self.edges[index], self.public[index]
            own = Offer(
                offer.price_p[place],
                offer.price_q[place],
                offer.target_p[place],
                offer.target_q[place],
                offer.scale,
            )
            falsify = self.misconduct.falsifying.get(index)
            said = own if falsify is None else falsify(edge, own)
            if kind == "near":
                problem, due = edge.near_task(said), public.near_linear(own)
            else:
                problem = edge.cheapest_task(said.price_p, said.price_q)
                due = public.cheapest_linear(own)
            if not agrees(problem.linear, due):
                self.named.append(edge.name)
                problem = with_linear(problem, due)
            made[index] = problem
        return made

    def _rescale(self, scale: float) -> None:
        """Register new H' where penalties were changed; G' and h' stay, and so do the keys."""
        if scale == self.scale:
            return
        self.scale = scale
        readers = 1 + len(self.council.names)
        for index, edge in self.edges.items():
            found = edge.near_at(scale)
            is_due = agrees(found.quadratic, self.public[index].quadratic(scale))
            invariant(is_due, "a rescaled H' follows from the registered one")
            size = 8 * found.quadratic.size
            self.traffic.send(size)  # to the store
            self.traffic.send(size, readers)
            self.traffic.order(len(found.digest))

    def _remask(self) -> None:
        for index, edge in self.edges.items():
            for problem in edge.problems():
                for worker in self.workers.values():
                    worker.forget(problem.digest)
            edge.remask()
            self._register(edge)
            self.public[index] = Public.of(edge)

    def note(self) -> Progress:
        """Record the present iteration."""
        coordinator = self.coordinator
        cost = self.day.cost(self.setpoints)
        entry = Progress(len(self.history) + 1, coordinator.primal, coordinator.dual, cost)
        self.history.append(entry)
        return entry

    def is_done(self, watched: Watched) -> bool:
        """Certify the present plan: regrets are differences of accepted masked costs."""
        target, residual = self.result, self.coordinator.primal
        demand_p, demand_q = self.day.demands(self.setpoints)
        own = sum(site.cost(x) for site, x in zip(self.day.sites, self.setpoints, strict=True))
        if not self.rule.is_promising(target, demand_p, demand_q, own, residual):
            return False
        self.checked.append(len(self.history))
        problems = self._problems("cheapest", watched.offer)
        cheapest = self.settle("cheapest", problems)
        gap = self.rule.network_gap(target, demand_p, demand_q)
        for index, problem in problems.items():
            mine = problem.objective(self.last[index].values)
            best = problem.objective(cheapest[index].submission.solution.values)
            gap += max(mine - best, 0.0)
        return self.rule.is_met(gap / self.rule.scale(demand_p, own), residual)

    def exclude(self, index: int) -> None:
        """Go on without a silent site: it counts as rigid at its register's fallback."""
        day = self.day
        places = [place for place, member in enumerate(self.members) if member != index]
        still = day.sites[index].uncontrolled
        fixed = replace(day.sites[index], lower=still, upper=still)
        sites = tuple(fixed if i == index else site for i, site in enumerate(day.sites))
        self.day = replace(day, sites=sites)
        self.excluded.append(index)
        self.members.remove(index)
        del self.edges[index], self.public[index]
        self.metric = Metric(
            active=self.metric.active[places], reactive=self.metric.reactive[places]
        )
        self._coordinate()

    def _exclude_silent(self, iteration: int) -> bool:
        """Exclude whoever is silent by now; whether anybody is."""
        silent = [
            index
            for index, since in self.misconduct.refusing.items()
            if iteration >= since and index in self.members
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
                self.coordinator.take(SiteAnswer([], watched.demand_p, watched.demand_q))
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
        return MaskedOutcome(
            Coordination(
                status=status,
                setpoints=[] if violations else self.setpoints,
                price_p=target.price_p,
                price_q=target.price_q,
                rent=float(target.rent.sum()),
                history=tuple(self.history),
                message_count=self.traffic.messages,
                byte_count=self.traffic.octets,
                violations=violations,
                warm=self.offered,
            ),
            tuple(self.refused),
            tuple(self.excluded),
            tuple(dict.fromkeys(self.named)),
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
        For keys and masks; the plan does not depend on it beyond rounding.
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
