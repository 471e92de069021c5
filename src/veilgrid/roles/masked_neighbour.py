"""Scheme ``masked`` without a coordinator: neighbours agree, others solve [masking 3.1, 3.2].

Two forms, as of the scheme ``neighbour``. In the default one wishes add up the tree and prices come
down; each parent holds the recovery rows of its children's net demands and checks their c'. In the
published one the two ends of each edge average their copies; each site's whole local problem,
copies and all, is masked, and averages and multipliers are moved by the edge devices.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from veilgrid.admm._neighbour_edge import EdgeAgreement, EdgeSettings, plan_edge
from veilgrid.admm._neighbour_local import Answer, Targets
from veilgrid.admm._neighbour_solve import LocalProblems
from veilgrid.admm._neighbour_sweep import Agreement, NeighbourSettings, plan_sweep
from veilgrid.admm._neighbour_tree import NeighbourState
from veilgrid.admm.exchange import ExchangeState
from veilgrid.admm.masked_junction import JunctionForm, junction_form
from veilgrid.admm.outcome import Coordination, Progress, ProgressSink, RunStatus
from veilgrid.admm.reference import central, least_violation
from veilgrid.admm.site_step import SiteAnswer
from veilgrid.errors import invariant
from veilgrid.grid.day import Day
from veilgrid.grid.lindistflow import Limits
from veilgrid.grid.network import Floats
from veilgrid.qp.mask import Mask, MaskedProblem, MaskOptions, draw_mask
from veilgrid.roles.masked_record import HONEST, MaskedOutcome, Misconduct, Record, Watched
from veilgrid.roles.masked_sites import MaskedSites
from veilgrid.roles.masked_task import with_linear
from veilgrid.roles.masked_workshop import Workshop
from veilgrid.secret import Randomness

PUBLISHED = EdgeSettings(growth=1.15, memory=30)
"""The published form with the levers of [neighbour 2] that bring it to its end."""


@dataclass(frozen=True, kw_only=True)
class MaskedNeighbourSettings:
    """How a masked day runs among neighbours.

    Attributes
    ----------
    coordination
        :class:`EdgeSettings` asks for the published form.
    options
        Of the masks; a key is that of a day.
    worker_count : >= 1
    fault_max : >= 0
        f of ``3f + 1`` validators.
    is_recorded
        Whether tasks, claims and verdicts go on a ledger; else votes are only counted.
    """

    coordination: NeighbourSettings | EdgeSettings = field(default_factory=NeighbourSettings)
    options: MaskOptions = field(default_factory=MaskOptions)
    worker_count: int = 2
    fault_max: int = 1
    is_recorded: bool = False


class SiteSilent(Exception):
    """An edge device does not answer; caught where the run goes on without it."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class EdgeWatched(NamedTuple):
    """One iteration of the published form, for tests and audits; lists in order of ``buses``."""

    buses: list[int]
    targets: Targets
    forms: list[JunctionForm]
    problems: list[MaskedProblem]
    records: list[Record]
    solutions: list[Floats]
    answer: Answer


Watch = Callable[[Watched], None]
WatchEdge = Callable[[EdgeWatched], None]


@dataclass
class _Course:
    """Iterations so far, over all starts, and whom they lost."""

    misconduct: Misconduct
    history: list[Progress] = field(default_factory=list)
    excluded: list[int] = field(default_factory=list)
    iteration: int = 0

    def begin(self, members: list[int]) -> None:
        """Count the next iteration; a member that is silent by now ends the start."""
        self.iteration += 1
        for index, since in self.misconduct.refusing.items():
            if self.iteration >= since and index in members and index not in self.excluded:
                raise SiteSilent(index)


class _SweepSites:
    """Masked sites in the default form."""

    def __init__(
        self,
        day: Day,
        limits: Limits,
        settings: NeighbourSettings,
        options: MaskOptions,
        workshop: Workshop,
        randomness: Randomness,
        course: _Course,
        watch: Watch | None,
    ) -> None:
        agreement, members = Agreement.of(day, limits, settings), list(day.flexible)
        self.workshop, self._course, self._watch = workshop, course, watch
        self.sites = MaskedSites(
            day,
            agreement.penalty_p[members],
            agreement.penalty_q[members],
            options,
            workshop,
            randomness,
            course.misconduct,
        )

    def at(self, scale: float) -> "_SweepSteps":
        """Return the sites under penalties multiplied by a number; 0 = without penalty."""
        return _SweepSteps(self, scale)

    def solve(self, scale: float, offer: ExchangeState) -> SiteAnswer:
        """Get accepted answers to prices near targets."""
        kind = "near" if scale > 0.0 else "cheapest"
        if scale > 0.0:
            self._course.begin(self.sites.members)
            if self.sites.options.is_fresh_each_iteration:
                self.sites.remask()
            self.sites.rescale(scale)
        found = self.sites.answers(kind, offer, self._course.iteration)
        if self._watch is not None:
            seen = (found.demand_p, found.demand_q, found.records, found.problems, found.solutions)
            self._watch(Watched(self._course.iteration, offer, *seen, kind))
        return SiteAnswer(list(found.setpoints), found.demand_p, found.demand_q)


class _SweepSteps:
    """The sites' answers at one scale of the penalties."""

    def __init__(self, sites: _SweepSites, scale: float) -> None:
        self._sites, self._scale = sites, scale

    def answer(
        self, price_p: Floats, price_q: Floats, target_p: Floats, target_q: Floats
    ) -> SiteAnswer:
        """Solve all sites; arrays are (member, interval)."""
        offer = ExchangeState(
            price_p=price_p,
            price_q=price_q,
            target_p=target_p,
            target_q=target_q,
        )
        return self._sites.solve(self._scale, offer)


class _EdgeSites:
    """Masked local problems in the published form.

    The substation solves its own. For an excluded site, whose forecast is known, its parent does.
    """

    def __init__(
        self,
        day: Day,
        agreement: EdgeAgreement,
        options: MaskOptions,
        workshop: Workshop,
        randomness: Randomness,
        course: _Course,
        watch: WatchEdge | None,
    ) -> None:
        root = agreement.edges.tree.root
        self.workshop, self._course, self._watch = workshop, course, watch
        self._plain = {
            bus: LocalProblems([day.sites[bus]], agreement.terms_of(bus))
            for bus in (root, *course.excluded)
        }
        self._buses = [bus for bus in range(len(day.sites)) if bus not in self._plain]
        self._count = day.interval_count
        junctions, charging = agreement.terms.junctions, agreement.edges.charging
        self._forms = {
            bus: junction_form(day.sites[bus], junctions.one(bus), float(charging[bus]))
            for bus in self._buses
        }
        self._keys: dict[int, Mask] = {}
        self._masked: dict[int, MaskedProblem] = {}
        for bus, form in self._forms.items():
            self._keys[bus] = draw_mask(form.problem, randomness, options)
            self._masked[bus] = problem = self._keys[bus].masked()
            workshop.traffic.order(len(problem.digest))
            workshop.traffic.send(len(problem.octets))
            workshop.traffic.send(len(problem.octets), workshop.readers)
        names = {bus: str(day.sites[bus].name) for bus in self._buses}
        workshop.assign(names, self._masked)

    def solve(self, targets: Targets, wished: Floats) -> tuple[list[Floats], Answer]:
        """Get accepted answers to the targets of all copies; (bus, ...)."""
        invariant(not wished.any(), "the published form has no wishes for net demands")
        self._course.begin(self._buses)
        own = {bus: Targets(*(part[bus : bus + 1] for part in targets)) for bus in self._forms}
        problems = {
            bus: with_linear(self._masked[bus], self._keys[bus].linear(form.linear(own[bus])))
            for bus, form in self._forms.items()
        }
        records = self.workshop.settle("near", self._course.iteration, problems)
        sites, count = len(self._buses) + len(self._plain), self._count
        answer = Answer(
            np.zeros((sites, 3, count)),
            np.zeros((sites, count)),
            np.zeros((sites, 2, count)),
            np.zeros((sites, 2, count)),
        )
        setpoints: list[Floats] = [np.zeros(0)] * sites
        solutions = []
        for bus, form in self._forms.items():
            x = self._keys[bus].recover(records[bus].submission.solution.values)
            solutions.append(x)
            setpoints[bus], found = form.answer(x, own[bus])
            _fill(answer, bus, found)
        for bus, local in self._plain.items():
            at_bus = Targets(*(part[bus : bus + 1] for part in targets))
            (setpoints[bus],), found = local.solve(at_bus, np.zeros((1, 2, 1)))
            _fill(answer, bus, found)
        if self._watch is not None:
            self._watch(
                EdgeWatched(
                    self._buses,
                    targets,
                    list(self._forms.values()),
                    list(problems.values()),
                    [records[bus] for bus in self._buses],
                    solutions,
                    answer,
                )
            )
        return setpoints, answer


def _fill(answer: Answer, bus: int, own: Answer) -> None:
    for whole, part in zip(answer, own, strict=True):
        whole[bus] = part[0]


def _without(day: Day, index: int) -> Day:
    """Return the day with a silent site fixed at its register's fallback."""
    still = day.sites[index].uncontrolled
    fixed = replace(day.sites[index], lower=still, upper=still)
    return replace(day, sites=tuple(fixed if i == index else s for i, s in enumerate(day.sites)))


def plan_masked_neighbour(
    day: Day,
    limits: Limits,
    randomness: Randomness,
    settings: MaskedNeighbourSettings = MaskedNeighbourSettings(),
    start: object = None,
    progress: ProgressSink | None = None,
    misconduct: Misconduct = HONEST,
    watch: Watch | None = None,
    watch_edge: WatchEdge | None = None,
) -> MaskedOutcome:
    """Plan a day in the scheme ``masked``, coordinated by neighbours.

    Parameters
    ----------
    day, limits
        What to plan and within which limits.
    randomness
        For keys and masks.
    settings
        How, and in which form.
    start
        ``warm`` of the last day's outcome, in the default form.
    progress
        Called once an iteration; an exception from it ends the run.
    misconduct
        Who departs from the protocol. A silent site is excluded and the others begin anew.
    watch, watch_edge
        Called with each iteration's data, in the default and in the published form.
    """
    if len(day.sites) == 1:
        return MaskedOutcome(central(day, limits), (), ())
    course = _Course(misconduct)
    named: list[str] = []

    def noted(entry: Progress) -> None:
        """Note an iteration under its number over all starts."""
        entry = entry._replace(iteration=course.iteration)
        course.history.append(entry)
        workshop.residuals = (entry.primal, entry.dual)
        if progress is not None:
            progress(entry)

    with ThreadPoolExecutor(settings.worker_count) as pool, threadpool_limits(1, user_api="blas"):
        workshop = Workshop(
            settings.worker_count,
            settings.fault_max,
            randomness,
            pool,
            misconduct,
            day if settings.is_recorded else None,
        )
        while True:
            try:
                found = _planned(
                    day, limits, settings, start, noted, course, workshop, randomness,
                    named, watch, watch_edge,
                )  # fmt: skip
                break
            except SiteSilent as silent:
                course.excluded.append(silent.index)
                workshop.exclude(str(day.sites[silent.index].name))
                day, start = _without(day, silent.index), None
    workshop.finish()
    outcome = replace(
        _explained(day, limits, found),
        record=workshop.chain,
        history=tuple(course.history),
        message_count=found.message_count + workshop.traffic.messages,
        byte_count=found.byte_count + workshop.traffic.octets,
    )
    return MaskedOutcome(
        outcome, tuple(workshop.refused), tuple(course.excluded), tuple(dict.fromkeys(named))
    )


def _planned(
    day: Day,
    limits: Limits,
    settings: MaskedNeighbourSettings,
    start: object,
    progress: ProgressSink,
    course: _Course,
    workshop: Workshop,
    randomness: Randomness,
    named: list[str],
    watch: Watch | None,
    watch_edge: WatchEdge | None,
) -> Coordination:
    """Run one start of either form."""
    chosen, options = settings.coordination, settings.options
    if isinstance(chosen, EdgeSettings):

        def local_of(agreement: EdgeAgreement) -> _EdgeSites:
            """Mask all local problems."""
            return _EdgeSites(day, agreement, options, workshop, randomness, course, watch_edge)

        return plan_edge(day, limits, chosen, progress, local_of=local_of)
    sites = _SweepSites(day, limits, chosen, options, workshop, randomness, course, watch)
    state = start if isinstance(start, NeighbourState) else None
    try:
        return plan_sweep(day, limits, chosen, state, progress, sites.at)
    finally:
        named.extend(sites.sites.named)


def _explained(day: Day, limits: Limits, outcome: Coordination) -> Coordination:
    """Ask why there is no plan, where there is none."""
    if outcome.status not in (RunStatus.ITERATION_LIMIT, RunStatus.INFEASIBLE):
        return outcome
    violations = outcome.violations or least_violation(day, limits)
    if not violations:
        return outcome
    none = replace(outcome, status=RunStatus.INFEASIBLE, setpoints=[])
    return replace(none, violations=violations)
