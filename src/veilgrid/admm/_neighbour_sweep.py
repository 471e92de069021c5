"""Neighbours' default form in arrays: wishes are added up the tree, prices come down.

Each site with a choice keeps a *wish*, its net demand plus price over penalty. One iteration finds
the flows nearest to all wishes that the network can carry, with the prices they take; sites answer
near them; wishes move by the difference. Everything that leaves a site is a sum over its subtree,
so that neighbours alone can run it [model 4; docs/protocol/neighbour.md].
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from veilgrid.admm._neighbour_mix import Blend, Blender, Trail
from veilgrid.admm._neighbour_network import (
    Prices,
    PublicNetwork,
    Substation,
    worst_of,
)
from veilgrid.admm._neighbour_tree import Edges, NeighbourState
from veilgrid.admm._neighbour_words import SweepCount
from veilgrid.admm.accelerate import PenaltyBalance
from veilgrid.admm.certify import TURNOVER_MIN
from veilgrid.admm.outcome import Coordination, Interrupted, Progress, ProgressSink, RunStatus
from veilgrid.admm.reference import least_violation, site_findings
from veilgrid.admm.site_step import SiteAnswer, SiteSteps
from veilgrid.errors import InputError
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits, flows
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site

TIGHTENED = (4, 8, 16, 32, 64)
"""Iterations at which the inner distance from limits is set anew."""

SUSPICION = (10, 20, 40, 80)
"""Iterations at which a row at its ceiling makes the run ask whether the day is feasible."""

POSSIBLE_MAX = 1e-5
"""Per-unit; an answer that breaks a rule of its own site by more was not found at all."""

RESIDUAL_FALL = 0.7
"""A failed check is repeated only when the residual has fallen below this part of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourSettings:
    """How neighbours coordinate.

    Attributes
    ----------
    tolerance : > 0
        Largest difference between what the two ends of an edge hold at the end: of flows in
        per-unit and in MW or Mvar, whichever is stricter, of squared voltages in per-unit squared.
    gap_max : > 0
        Largest certified gap at the end, relative to the turnover.
    limit_tolerance : > 0, per-unit
        By how much the balanced plan may exceed a limit at the end.
    iteration_count_max : > 0
    penalty : > 0
        In units of the mean tariff over a site's own range of power.
    evenness : in [0, 1]
        1 = the same penalty for all sites, 0 = inversely to each site's range of power.
    relaxation : in [1, 2)
        Over-relaxation; 1 = none.
    memory : >= 1
        How many past iterations Anderson acceleration mixes; 1 = none.
    mixing_interval : >= 1
        Plain iterations from one mixing to the next.
    inner_share : in [0, 1)
        Part of ``gap_max`` that may be spent on an inner distance from limits.
    change_count_max : >= 0
        How often the penalties may be changed to balance targets and prices.
    strength_max : > 0
        Ceiling of a row's strength in units of the highest tariff.
    """

    tolerance: float = 1e-3
    gap_max: float = 8e-5
    limit_tolerance: float = 9e-7
    iteration_count_max: int = 400
    penalty: float = 2.0
    evenness: float = 0.5
    relaxation: float = 1.7
    memory: int = 20
    mixing_interval: int = 3
    inner_share: float = 0.5
    change_count_max: int = 4
    strength_max: float = 200.0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Public constants of a run, from the tree, the tariff and the register of ranges.

    Attributes
    ----------
    penalty_p, penalty_q : (bus,), currency per per-unit squared and interval
        Zero where the site has no choice; ``penalty_q`` also where no limit exists.
    """

    settings: NeighbourSettings
    edges: Edges
    limits: Limits
    buy: Floats
    sell: Floats
    base_mva: float
    penalty_p: Floats
    penalty_q: Floats

    @classmethod
    def of(cls, day: Day, limits: Limits, settings: NeighbourSettings) -> "Agreement":
        """Draw it up for a day.

        A site with more range moves further for the same price; so no unit or currency matters.
        """
        members = list(day.flexible)
        ranges = np.array(
            [
                float(np.max(np.abs(site.inject_p) @ (site.upper - site.lower), initial=0.0))
                for site in (day.sites[i] for i in members)
            ]
        )
        price = float(np.mean(np.maximum(np.abs(day.buy), np.abs(day.sell)))) or 1.0
        own = np.maximum(ranges, 0.05 * (float(ranges.max(initial=0.0)) or 1.0))
        middle = float(np.median(own)) if len(own) else 1.0
        penalty = np.zeros(len(day.sites))
        penalty[members] = (
            settings.penalty
            * price
            / (own ** (1.0 - settings.evenness) * middle**settings.evenness)
        )
        return cls(
            settings=settings,
            edges=Edges(tree=day.network.tree),
            limits=limits,
            buy=day.buy,
            sell=day.sell,
            base_mva=day.network.base_mva,
            penalty_p=penalty,
            penalty_q=np.zeros_like(penalty) if limits.are_absent else penalty,
        )

    def network(self, scale: float) -> PublicNetwork:
        """Return the public network while penalties are multiplied by ``scale``."""
        return PublicNetwork(
            limits=self.limits,
            give_p=inverse(scale * self.penalty_p),
            give_q=inverse(scale * self.penalty_q),
        )

    @property
    def flow_tolerance(self) -> float:
        """Largest difference of flows at the end, per-unit."""
        return self.settings.tolerance * min(1.0, 1.0 / self.base_mva)

    @property
    def strength_max(self) -> float:
        """Ceiling of a row's strength, currency."""
        return self.settings.strength_max * float(np.max(np.abs(self.buy)))


def inverse(values: Floats) -> Floats:
    """Return one over each value, 0 for 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0.0)


def is_possible(site: Site, setpoints: Floats) -> bool:
    """Whether a site's cheapest answer keeps the site's own rules: else these contradict."""
    activity = site.matrix @ setpoints
    off = np.maximum(site.row_lower - activity, activity - site.row_upper)
    return not bool((off > POSSIBLE_MAX).any())


class Report(NamedTuple):
    """What the substation learns of an answer, summed over all sites.

    Attributes
    ----------
    demand : (interval,), per-unit
        Active net demand of all.
    steps, strides : (past,)
        Inner products for mixing.
    cost, paid : currency
        Of the sites' own devices, and at nodal prices.
    apart : per-unit
        Largest difference of the flows that the two ends of an edge hold.
    price_moved, target_moved
        Squared movements since the last iteration, in the metric.
    """

    demand: Floats
    steps: Floats
    strides: Floats
    cost: float
    paid: float
    apart: float
    price_moved: float
    target_moved: float


class Checked(NamedTuple):
    """What a check finds: largest excess, largest voltage difference, sum of all regrets."""

    excess: float
    apart: float
    regret: float


class Verdict(NamedTuple):
    """How to go on: a blend, and a factor for all penalties (1 = as they are)."""

    blend: Blend
    factor: float = 1.0


class Judge:
    """The substation's decisions after each answer; sums in, decisions out."""

    def __init__(self, agreement: Agreement, turnover_min: float) -> None:
        settings = agreement.settings
        self._agreement, self._turnover_min = agreement, turnover_min
        self._blender = Blender(settings.memory, settings.mixing_interval)
        self._balance = PenaltyBalance(change_count_max=settings.change_count_max)
        self._tried = np.inf
        self._gap = np.inf
        self._is_close = False
        self.size = turnover_min
        """What gaps are measured against, currency."""

    def scale(self, demand: Floats, cost: float) -> float:
        """Return what gaps are measured against, currency."""
        return max(abs(cost + self._exchanged(demand)), self._turnover_min)

    def _exchanged(self, demand: Floats) -> float:
        agreement = self._agreement
        return float(np.maximum(agreement.buy * demand, agreement.sell * demand).sum())

    def is_promising(self, report: Report, rent: float) -> bool:
        """Whether the answer is worth a check."""
        settings = self._agreement.settings
        self.size = self.scale(report.demand, report.cost)
        self._gap = self._exchanged(report.demand) - report.paid + rent
        if self._gap > settings.gap_max * self.size:
            self._is_close = False
            return False
        if self._is_close:
            return report.apart <= self._agreement.flow_tolerance
        return not self._residual(report) > RESIDUAL_FALL * self._tried

    @staticmethod
    def _residual(report: Report) -> float:
        return float(np.sqrt(report.steps[-1]))

    def is_met(self, report: Report, found: Checked) -> bool:
        """Whether a checked answer ends the run."""
        settings = self._agreement.settings
        self._is_close = self._gap + found.regret <= settings.gap_max * self.size
        if not self._is_close:
            self._tried = self._residual(report)
            return False
        if report.apart > self._agreement.flow_tolerance or found.apart > settings.tolerance:
            return False
        return found.excess <= settings.limit_tolerance

    def go_on(self, report: Report) -> Verdict:
        """Decide how the next wishes are made."""
        factor = 1.0
        if not self._blender.is_striding:
            factor = self._balance.judge(
                float(np.sqrt(report.price_moved)), float(np.sqrt(report.target_moved))
            )
        if factor != 1.0:
            self._blender.forget()
            return Verdict(Blend(np.zeros(0)), factor)
        # Near the optimum only residuals are left, which plain steps reduce and mixing may not.
        return Verdict(self._blender.blend(report.steps, report.strides, is_plain=self._is_close))


class Steps(Protocol):
    """Answers of all sites with a choice to prices near targets, arrays (member, interval)."""

    def answer(
        self, price_p: Floats, price_q: Floats, target_p: Floats, target_q: Floats
    ) -> SiteAnswer:
        """Solve all sites."""
        ...


StepsAt = Callable[[float], Steps]
"""Gives the sites' problems with all penalties multiplied by a number; 0 = without penalty."""


class _Run:
    """One run in arrays; flexible sites are rows of (member, flow=2, interval) arrays."""

    def __init__(
        self,
        day: Day,
        limits: Limits,
        settings: NeighbourSettings,
        pool: ThreadPoolExecutor,
        steps_at: StepsAt | None,
    ) -> None:
        self.day, self.limits, self.pool = day, limits, pool
        self._steps_at = steps_at or self._own_steps
        self.agreement = Agreement.of(day, limits, settings)
        self.members = list(day.flexible)
        self.sites = [day.sites[i] for i in self.members]
        self.cheapest = self._steps_at(0.0)
        self.setpoints = list(day.load_only)
        loads = np.sum([np.abs(site.load_p) for site in day.sites], axis=0)
        turnover = max(0.01 * day.exchange_cost(loads), TURNOVER_MIN)
        self.judge = Judge(self.agreement, turnover)
        self.trail = Trail(settings.memory)
        self.count = SweepCount(
            len(self.agreement.edges), day.interval_count, has_limits=not limits.are_absent
        )
        self._near: dict[float, Steps] = {}
        self.scale = 1.0
        network = self.agreement.network(1.0)
        self.substation = Substation(network, day.buy, day.sell, self.agreement.strength_max)
        self.wish = np.zeros((2, len(self.sites), day.interval_count))
        self.rigid = np.array(day.demands(self.setpoints))
        self.demand = self.target = self.price = np.zeros_like(self.wish)
        self.voltage_apart = 0.0
        self.nodal = np.zeros((2, len(day.sites), day.interval_count))
        self.price_moved = self.target_moved = 0.0

    @property
    def penalty(self) -> Floats:
        """(flow=2, member, 1)."""
        both = np.stack([self.agreement.penalty_p, self.agreement.penalty_q])
        return np.asarray(self.scale * both[:, self.members, np.newaxis])

    def near(self) -> Steps:
        """Return the sites' problems under the present penalties, prepared once."""
        if self.scale not in self._near:
            self._near[self.scale] = self._steps_at(self.scale)
        return self._near[self.scale]

    def _own_steps(self, scale: float) -> Steps:
        """Let sites solve their own problems."""
        agreement, members = self.agreement, self.members
        penalties = scale * agreement.penalty_p[members], scale * agreement.penalty_q[members]
        return SiteSteps(self.sites, *penalties, self.pool)

    def open(self, start: NeighbourState | None) -> None:
        """Let sites answer the tariff alone; prices of the last day's limits are added."""
        day, members = self.day, self.members
        price = np.zeros_like(self.wish)
        blank = np.zeros_like(price[0])
        price[0] += day.buy
        answer = self.cheapest.answer(price[0], blank, blank, blank)
        if not all(map(is_possible, self.sites, answer.setpoints)):
            found = site_findings(self.sites)
            if found:
                raise InputError(found)
        self._adopt(answer)
        if start is not None and start.price.shape == (len(day.sites), 2, day.interval_count):
            price = price + start.price[members].transpose(1, 0, 2)
            price[0] -= start.buy
        self.wish = self.demand + inverse(self.penalty) * price

    def _adopt(self, answer: SiteAnswer) -> None:
        for index, x in zip(self.members, answer.setpoints, strict=True):
            self.setpoints[index] = x
        self.demand = np.stack([answer.demand_p, answer.demand_q])

    def project(self) -> None:
        """Find targets and prices: one network step."""
        substation, limits = self.substation, self.limits
        wish = self.rigid.copy()
        wish[:, self.members] = self.wish
        if not limits.are_absent:
            state = flows(limits.tree, wish[0], wish[1])
            wished = limits.excess(state)
            used = np.flatnonzero(np.isfinite(wished).all(axis=1))
            at = substation.at
            at = substation.begin(wish[0].sum(axis=0), wished[at.numbers, at.intervals])
            self.count.level()
            while True:
                target = self._targets(wish, at)
                excess = limits.excess(flows(limits.tree, target[0], target[1]))
                self.count.announce(len(at.numbers))
                if not substation.add(worst_of(used, excess[used], wished[used], at)):
                    break
                at = substation.at
        else:
            at = substation.begin(wish[0].sum(axis=0), np.zeros(0))
            self.count.announce(0)
        target = self._targets(wish, at)
        before, is_first = (self.price, self.target), self.count.iteration == 1
        self.price, self.target = self.nodal[:, self.members], target[:, self.members]
        moved = inverse(self.penalty) * (self.price - before[0]) ** 2
        self.price_moved = 0.0 if is_first else float(moved.sum())
        self.target_moved = float((self.penalty * (self.target - before[1]) ** 2).sum())

    def _targets(self, wish: Floats, at: Prices) -> Floats:
        network = self.substation.network
        self.nodal = np.stack(network.nodal(at))
        give = np.stack([network.give_p, network.give_q])[:, :, np.newaxis]
        return np.asarray(wish - give * self.nodal)

    def answer(self) -> Report:
        """Let all sites answer near their targets."""
        price, target = self.price, self.target
        self._adopt(self.near().answer(price[0], price[1], target[0], target[1]))
        root = np.sqrt(self.penalty)
        step = self.agreement.settings.relaxation * root * (self.demand - target)
        steps, strides = self.trail.push((root * self.wish).ravel(), step.ravel())
        total = np.array(self.day.demands(self.setpoints))
        planned = total.copy()
        planned[:, self.members] = target
        tree = self.limits.tree
        found, wanted = flows(tree, total[0], total[1]), flows(tree, planned[0], planned[1])
        others = self.agreement.edges.child
        apart = np.abs(found.active - wanted.active)[others].max(initial=0.0)
        if not self.limits.are_absent:
            off = np.abs(found.reactive - wanted.reactive)[others].max(initial=0.0)
            apart = max(apart, off)
        self.voltage_apart = float(np.abs(found.voltage_squared - wanted.voltage_squared).max())
        self.count.answer(len(steps))
        sites = zip(self.day.sites, self.setpoints, strict=True)
        return Report(
            demand=total[0].sum(axis=0),
            steps=steps,
            strides=strides,
            cost=sum(site.cost(x) for site, x in sites),
            paid=float((self.nodal * total).sum()),
            apart=float(apart),
            price_moved=self.price_moved,
            target_moved=self.target_moved,
        )

    def check(self) -> Checked:
        """Let all sites say what they still lack."""
        self.count.check()
        blank = np.zeros_like(self.price[0])
        best = self.cheapest.answer(self.price[0], self.price[1], blank, blank)
        paid = [
            (self.price * demand).sum(axis=(0, 2))
            for demand in (self.demand, np.stack([best.demand_p, best.demand_q]))
        ]
        regret = 0.0
        for k, (index, x) in enumerate(zip(self.members, best.setpoints, strict=True)):
            site = self.day.sites[index]
            own = site.cost(self.setpoints[index]) - site.cost(x)
            regret += max(own + float(paid[0][k] - paid[1][k]), 0.0)
        excess = -np.inf
        if not self.limits.are_absent:
            excess = float(self.limits.excess(self.day.flows(self.setpoints)).max())
        return Checked(excess, self.voltage_apart if excess > -np.inf else 0.0, regret)

    def move(self, verdict: Verdict) -> None:
        """Make the next wishes."""
        self.count.move(len(verdict.blend.weights))
        if verdict.factor != 1.0:
            plain = self.target + self.agreement.settings.relaxation * (self.demand - self.target)
            self.scale *= verdict.factor
            self.substation.network = self.agreement.network(self.scale)
            self.wish = plain + inverse(self.penalty) * self.price
            self.trail.forget()
            return
        root = np.sqrt(self.penalty)
        point = self.trail.follow(verdict.blend).reshape(self.wish.shape)
        self.wish = np.divide(point, root, out=self.wish.copy(), where=root > 0.0)

    def state(self) -> NeighbourState:
        """Return what neighbours hold in common at the end."""
        edges, tree, at = self.agreement.edges, self.limits.tree, self.substation.at
        total = self.rigid.copy()
        total[:, self.members] = self.target
        found = flows(tree, total[0], total[1])
        average = (
            found.active[edges.child],
            found.reactive[edges.child],
            found.voltage_squared[edges.parent],
        )
        return NeighbourState(
            child=edges.child,
            parent=edges.parent,
            average=np.stack(average, axis=1),
            multiplier=self.substation.network.multipliers(edges, at),
            price=self.nodal.transpose(1, 0, 2),
            buy=self.day.buy,
        )


def plan_sweep(
    day: Day,
    limits: Limits,
    settings: NeighbourSettings,
    start: NeighbourState | None,
    progress: ProgressSink | None,
    steps_at: StepsAt | None = None,
) -> Coordination:
    """Let neighbours agree on a day; see :func:`veilgrid.admm.neighbour.plan_neighbour`.

    ``steps_at`` lets others than the sites themselves solve the sites' problems.
    """
    history: list[Progress] = []
    status = RunStatus.ITERATION_LIMIT
    violations: tuple[tuple[int, int, float], ...] = ()
    with ThreadPoolExecutor() as pool:
        run = _Run(day, limits, settings, pool, steps_at)
        run.open(start)
        try:
            while len(history) < settings.iteration_count_max:
                iteration = len(history) + 1
                run.project()
                report = run.answer()
                primal = max(report.apart, run.voltage_apart)
                dual = float(np.sqrt(report.target_moved))
                history.append(Progress(iteration, primal, dual, day.cost(run.setpoints)))
                if progress is not None:
                    progress(history[-1])
                rent = run.substation.rent()
                if run.judge.is_promising(report, rent) and run.judge.is_met(report, run.check()):
                    status = RunStatus.CONVERGED
                    break
                if iteration in SUSPICION and run.substation.has_unmet:
                    violations = least_violation(day, limits)
                    if violations:
                        status = RunStatus.INFEASIBLE
                        break
                if iteration == settings.iteration_count_max:
                    break
                if iteration + 1 in TIGHTENED:
                    budget = settings.inner_share * settings.gap_max * run.judge.size
                    run.substation.tighten(budget)
                run.move(run.judge.go_on(report))
        except Interrupted:
            status = RunStatus.ABORTED
    state = run.state()
    messages, size = run.count.total(status)
    return Coordination(
        status=status,
        setpoints=[] if violations else run.setpoints,
        price_p=run.nodal[0],
        price_q=run.nodal[1],
        rent=run.substation.rent(),
        history=tuple(history),
        message_count=messages,
        byte_count=size,
        violations=violations,
        warm=state,
    )
