"""The operator of a masked day: opens it, coordinates, settles; validators check it [day 4.4]."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import numpy as np

from veilgrid.admm.exchange import Balance, Coordinator, ExchangeState, Metric, StopRule
from veilgrid.admm.network_step import NetworkTarget
from veilgrid.admm.site_step import SiteAnswer
from veilgrid.errors import invariant
from veilgrid.grid.acflow import ac_flow
from veilgrid.grid.day import Day
from veilgrid.grid.network import Floats
from veilgrid.ledger.operation import (
    CloseBids,
    CloseDay,
    OpenDay,
    ProposeIteration,
    ProposeSettlement,
)
from veilgrid.machine import (
    START,
    Decide,
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    SetTimer,
    TimerFired,
)
from veilgrid.qp.mask import QUANTUM, RecoveryRows, linear_digest
from veilgrid.roles.ledger_message import (
    CHEAPEST,
    NEAR,
    VOID,
    Begun,
    Costs,
    DayResult,
    Declared,
    FetchCosts,
    FetchDeclared,
    FetchProblem,
    FetchReport,
    FetchSolved,
    FetchTask,
    Known,
    Offered,
    ProblemData,
    Report,
    Solved,
    StepEnded,
    Taken,
    Tasked,
    floats_of,
    octets_of,
)
from veilgrid.roles.ledger_seat import AGAIN, Agreement, Seat, bus_of, client_of, send_all
from veilgrid.roles.ledger_site import hashed
from veilgrid.roles.ledger_validator import payments_of
from veilgrid.roles.ledger_worker import Shelf
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.signature import Signs

_RESIDUAL_MAX: Final = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """What the operator's register says of each bus, for sites that do not take part.

    Attributes
    ----------
    demand_p, demand_q : (bus, interval), per-unit
        Forecasts of what happens without coordination.
    voltage_min_pu, voltage_max_pu
        The network's own limits, for the AC check.
    """

    demand_p: Floats
    demand_q: Floats
    voltage_min_pu: float | None = None
    voltage_max_pu: float | None = None


@dataclass(frozen=True)
class _Register:
    """The part of a day that a coordinator reads: no site's own problem is among it."""

    flexible: tuple[int, ...]
    sites: tuple[Any, ...]
    buy: Floats
    sell: Floats

    @property
    def interval_count(self) -> int:
        return len(self.buy)


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(slots=True)
class _Row:
    """What the operator keeps of a flexible site."""

    declared: Declared
    rows: RecoveryRows
    near: Floats
    cheapest: Floats


@dataclass(slots=True)
class Course:
    """The coordination as a function of what was taken so far: replayed after a restart."""

    public: PublicDay
    agreement: Agreement
    rows: dict[str, _Row]
    fallback_p: Floats
    fallback_q: Floats
    excluded: set[str] = field(default_factory=set)
    kind: str = NEAR
    iterations: int = 0
    status: str = ""
    primal: float = np.inf
    dual: float = np.inf
    taken: int = 0
    report: Report | None = None
    last_near: dict[str, Floats] = field(default_factory=dict)
    offer: ExchangeState = field(init=False)
    coordinator: Coordinator = field(init=False)
    rule: StopRule = field(init=False)
    _demand: tuple[Floats, Floats] = field(init=False)

    @property
    def members(self) -> list[str]:
        """Flexible sites that take part, in bus order."""
        return [name for name in self.agreement.members if name not in self.excluded]

    @property
    def indices(self) -> list[int]:
        """Their buses."""
        return [self.agreement.buses.index(bus_of(name)) for name in self.members]

    def begin(self, start: ExchangeState | None = None) -> None:
        """Start, at the tariff or where a site fell out."""
        register, settings = self.public.register, self.public.settings
        members = self.indices
        give_p, give_q = register.give_p[members], register.give_q[members]
        active = 1.0 / give_p
        reactive = np.divide(1.0, give_q, out=np.zeros_like(give_q), where=give_q > 0.0)
        day = _Register(
            tuple(members),
            tuple(_Named(bus) for bus in self.agreement.buses),
            register.buy,
            register.sell,
        )
        metric = Metric(active=active, reactive=reactive)
        # H' registered once would have to be registered anew, entry by entry.
        fixed = replace(settings, balance=Balance.NONE)
        self.coordinator = Coordinator(cast(Day, day), register.limits, metric, fixed)
        self.rule = StopRule(
            limits=register.limits,
            buy=register.buy,
            sell=register.sell,
            settings=settings,
            turnover_min=self.public.turnover_min * register.unit,
        )
        self.coordinator.declare(self.fallback_p, self.fallback_q)
        if start is None:
            blank = np.zeros((len(members), register.interval_count))
            start = ExchangeState(
                target_p=self.fallback_p[members],
                target_q=self.fallback_q[members],
                price_p=blank + register.buy,
                price_q=blank,
            )
        self.coordinator.start(start)
        self.kind, self.offer = NEAR, self.coordinator.offer()

    @property
    def result(self) -> NetworkTarget:
        """Of the last network step."""
        return self.coordinator.result

    def demands(self, demand_p: Floats, demand_q: Floats) -> tuple[Floats, Floats]:
        """Put the members' net demands into those of all buses."""
        total_p, total_q = self.fallback_p.copy(), self.fallback_q.copy()
        total_p[self.indices], total_q[self.indices] = demand_p, demand_q
        return total_p, total_q

    def absorb(self, taken: Taken) -> None:
        """Take what a step came to and decide what the next one is."""
        self.taken = taken.step
        if taken.kind == VOID:
            self._without(taken.excluded)
            self.report = Report(taken.step, VOID, tuple(self.members))
            return
        if taken.kind == CHEAPEST:
            self._certify(taken)
            return
        self._near(taken, *self._recovered(taken))

    def _recovered(self, taken: Taken) -> tuple[Floats, Floats]:
        """Recover the members' net demands with the rows that sites declared."""
        count = self.public.register.interval_count
        demand_p = np.zeros((len(self.members), count))
        demand_q = np.zeros_like(demand_p)
        self.last_near = {}
        for place, site in enumerate(self.members):
            masked = floats_of(taken.variables[site], len(self.rows[site].near))
            invariant(masked is not None, "what was taken was read before")
            self.last_near[site] = np.asarray(masked)
            found = self.rows[site].rows.recover(self.last_near[site])
            demand_p[place] = found[:count]
            still = self.fallback_q[self.indices[place]]
            demand_q[place] = found[count:] if len(found) > count else still
        return demand_p, demand_q

    def _near(self, taken: Taken, demand_p: Floats, demand_q: Floats) -> None:
        target, members = self.result, self.indices
        self.coordinator.take(SiteAnswer([], demand_p, demand_q))
        self.iterations += 1
        self._demand = self.demands(demand_p, demand_q)
        self.dual = self.coordinator.dual
        off_p, off_q = demand_p - target.target_p[members], demand_q - target.target_q[members]
        self.primal = float(np.abs(np.concatenate([off_p, off_q])).max(initial=0.0))
        self.report = Report(
            taken.step,
            NEAR,
            tuple(self.members),
            octets_of(demand_p),
            octets_of(demand_q),
            octets_of(target.target_p[members]),
            octets_of(target.target_q[members]),
        )
        is_promising = self.rule.is_promising(target, *self._demand, 0.0, self.coordinator.primal)
        if is_promising:
            self.kind = CHEAPEST
        else:
            self._next()

    def _next(self) -> None:
        self.kind = NEAR
        self.offer = self.coordinator.offer()
        if self.iterations >= self.public.settings.iteration_count_max:
            self.status = "iteration_limit"

    def _certify(self, taken: Taken) -> None:
        target = self.result
        gap = self.rule.network_gap(target, *self._demand) + taken.regret
        is_met = self.rule.is_met(
            gap / self.rule.scale(self._demand[0], 0.0), self.coordinator.primal
        )
        if not is_met:
            self.report = Report(taken.step, CHEAPEST, tuple(self.members))
            self._next()
            return
        self.status = "converged"
        self.report = Report(
            taken.step,
            CHEAPEST,
            tuple(self.members),
            target_p=octets_of(target.target_p),
            target_q=octets_of(target.target_q),
            price_p=octets_of(target.price_p),
            price_q=octets_of(target.price_q),
            total_p=octets_of(self._demand[0]),
            total_q=octets_of(self._demand[1]),
            rent=float(target.rent.sum()),
            is_last=True,
        )

    def _without(self, excluded: tuple[str, ...]) -> None:
        """Go on without sites: they count at their forecast, the others where they stood."""
        before, offer = self.members, self.offer
        self.excluded |= set(excluded)
        places = [before.index(name) for name in self.members]
        self.status = ""
        if not places:
            self.status = "nobody"
            return
        self.begin(
            ExchangeState(
                target_p=offer.target_p[places],
                target_q=offer.target_q[places],
                price_p=offer.price_p[places],
                price_q=offer.price_q[places],
            )
        )

    def linear(self, name: str) -> Floats:
        """Return the c' of a site that follows from the present offer."""
        place, row = self.members.index(name), self.rows[name]
        register, index = self.public.register, self.indices[place]
        offer, is_near = self.offer, self.kind == NEAR
        pull = 1.0 if is_near else 0.0
        give_p, give_q = register.give_p[index], register.give_q[index]
        move = [offer.price_p[place] - pull * offer.target_p[place] / give_p]
        if give_q > 0.0:
            move.append(offer.price_q[place] - pull * offer.target_q[place] / give_q)
        own = row.near if is_near else row.cheapest
        return np.asarray(own + row.rows.matrix.T @ np.concatenate(move))


class Operator:
    """Open a day, coordinate its sites, settle it.

    Parameters
    ----------
    public
        Network, tariff, penalties.
    fallback
        The register's forecasts.
    """

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        public: PublicDay,
        fallback: Fallback,
        signer: Signs,
        records: Sequence[Any] = (),
    ) -> None:
        self.me, self.agreement, self.public, self.fallback = me, agreement, public, fallback
        self.seat = Seat(me, agreement, [me], signer, records)
        self._known: dict[str, Declared] = {}
        self._solved: dict[tuple[int, str, bytes], Solved] = {}
        self._costs: dict[str, Costs] = {}
        self._done: set[tuple[Any, ...]] = set()
        self._sent: dict[str, tuple[Offered, Tasked]] = {}
        self._sent_step = 0
        self.shelf = Shelf()
        self.course: Course | None = None
        self._is_late = False
        self._is_over = False
        for record in records:
            self._recover(record)

    def _recover(self, record: Any) -> None:
        match record:
            case Known(declared):
                self._known[declared.book.site] = declared
            case Begun(excluded):
                self._begin(excluded)
            case Taken() if self.course is not None:
                self.course.absorb(record)

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        effects = self._take(event)
        return [*effects, *self._act()] if not self._is_over else effects

    # -- events ----------------------------------------------------------------------------------

    def _take(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired(name) if name == START:
                bids = SetTimer("bids", self.agreement.patience.bids_ns)
                return [*self.seat.start(), bids]
            case TimerFired(name) if name == AGAIN:
                return [*self.seat.again(), *self._fetch()]
            case TimerFired("bids"):
                self._is_late = self._is_late or self.course is None
            case TimerFired("costs"):
                self._is_late = True
            case Received(sender, Declared() as declared):
                return self._on_declared(sender, declared)
            case Received(sender, Solved() as solved) if hashed(solved) == solved.claim.solution:
                self._solved[solved.step, solved.site, solved.claim.solution] = solved
            case Received(_, ProblemData() as data) if self.course is not None:
                self.shelf.keep(data, frozenset(self._missing()))
            case Received(sender, FetchTask(step, site)):
                return self._tell_task(sender, step, site)
            case Received(sender, FetchReport(step)):
                report = self.course.report if self.course else None
                return [Send(sender, report)] if report and report.step == step else []
            case Received(sender, Costs(site=site) as costs) if sender == self._home(site):
                if np.isfinite(costs.own) and np.isfinite(costs.alone):
                    self._costs[site] = costs
            case Received() | TimerFired():
                return self.seat.handle(event) or []
        return []

    def _home(self, site: str) -> str:
        return self.agreement.groups.get(bus_of(site), "")

    def _on_declared(self, sender: str, declared: Declared) -> list[Effect]:
        site = declared.book.site
        if sender != self._home(site) or site in self._known or self._row(declared) is None:
            return []
        self._known[site] = declared
        return [Persist(Known(declared))]

    def _row(self, declared: Declared) -> _Row | None:
        """Read what a site declares, None if it is malformed or not what its book says."""
        count = self.public.register.interval_count
        demands = floats_of(declared.demand_p, count), floats_of(declared.demand_q, count)
        if demands[0] is None or demands[1] is None:
            return None
        blank = np.zeros((0, 0))
        if declared.book.site not in self.agreement.members:
            return _Row(declared, RecoveryRows(matrix=blank, offset=np.zeros(0)), blank, blank)
        near, cheapest = floats_of(declared.near, -1), floats_of(declared.cheapest, -1)
        offset = floats_of(declared.offset, -1)
        if near is None or cheapest is None or offset is None or len(near) != len(cheapest):
            return None
        matrix = floats_of(declared.rows, len(offset), len(near))
        if matrix is None:
            return None
        rows, book = RecoveryRows(matrix=matrix, offset=offset), declared.book
        is_booked = rows.digest == book.rows and linear_digest(book.near, near) == book.linear
        return _Row(declared, rows, near, cheapest) if is_booked else None

    def _fetch(self) -> list[Effect]:
        """Ask for, and tell again, what has not arrived."""
        view, effects = self.seat.view, list[Effect]()
        if view.is_bidding or self.course is None:
            for site in view.bids:
                if site not in self._known:
                    effects.append(Send(self.agreement.home(site), FetchDeclared(site)))
            return effects
        step = view.iteration
        effects += self._fetch_problems()
        for site, (offered, tasked) in self._sent.items():
            task = view.tasks.get(site)
            if offered.step == step and task is None:
                effects.append(Send(self.agreement.home(site), offered))
            if offered.step == step and (task is None or not task.accepted):
                readers = [*self.agreement.validators, *self.agreement.workers]
                effects += send_all(readers, tasked)
        for site, task in view.tasks.items():
            if task.accepted and (step, site, task.solution) not in self._solved:
                ask = FetchSolved(step, site)
                effects += send_all([*self.agreement.validators, task.accepted], ask)
        report = self.course.report
        if report is not None and report.step == step:
            effects += send_all(self.agreement.validators, report)
        if view.settlement is not None:
            for bus in self.agreement.buses:
                if client_of(bus) not in self._costs:
                    home = self.agreement.home(client_of(bus))
                    effects.append(Send(home, FetchCosts(client_of(bus))))
        return effects

    # -- what it does ----------------------------------------------------------------------------

    def _once(self, *key: Any) -> bool:
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def _act(self) -> list[Effect]:
        view, day = self.seat.view, self.agreement.day
        if not view.is_open:
            names = tuple(client_of(bus) for bus in self.agreement.buses)
            rigid = tuple(sorted(set(names) - set(self.agreement.members)))
            if self._once("open"):
                return self.seat.desk.submit(self.me, OpenDay(day, names, 1, rigid))
            return []
        if view.is_bidding:
            everybody = {client_of(bus) for bus in self.agreement.buses}
            is_asked = self.agreement.is_attested
            workers = set(self.agreement.workers) if is_asked else set()
            is_complete = everybody <= {*view.bids, *view.excluded} and workers <= {
                *view.admitted,
                *view.refused,
            }
            is_due = bool(view.bids) and (is_complete or self._is_late)
            if is_due and self._once("close bids"):
                return self.seat.desk.submit(self.me, CloseBids(day))
            return []
        if not view.beacon:
            return []
        effects: list[Effect] = []
        if self.course is None:
            missing = set(view.bids) - set(self._known)
            if missing and not self._is_late:
                return []
            excluded = tuple(sorted({*view.excluded, *missing, *self._unbooked(view.bids)}))
            effects.append(Persist(Begun(excluded)))
            self._begin(excluded)
            effects += self._fetch_problems()
        if view.settlement is not None:
            return [*effects, *self._close()]
        if view.last is not None:
            return [*effects, *self._settle()]
        return [*effects, *self._coordinate()]

    def _unbooked(self, bids: dict[str, bytes]) -> set[str]:
        """Sites whose declaration is not what they bid on the ledger."""
        return {s for s, d in self._known.items() if bids.get(s) != d.book.digest}

    def _begin(self, excluded: tuple[str, ...]) -> None:
        rows = {}
        demand_p, demand_q = self.fallback.demand_p.copy(), self.fallback.demand_q.copy()
        for site, declared in self._known.items():
            row = self._row(declared)
            if row is None or site in excluded:
                continue
            rows[site] = row
            index = self.agreement.buses.index(bus_of(site))
            count = self.public.register.interval_count
            for held, octets in ((demand_p, declared.demand_p), (demand_q, declared.demand_q)):
                values = floats_of(octets, count)
                invariant(values is not None, "declarations were read before")
                held[index] = values
        self.course = Course(self.public, self.agreement, rows, demand_p, demand_q, set(excluded))
        self.course.begin()

    def _coordinate(self) -> list[Effect]:
        course, view = self._running(), self.seat.view
        step = view.iteration
        if course.taken >= step:  # Taken, not approved yet.
            return self._propose()
        effects: list[Effect] = []
        if course.taken == step - 1 and step > 1 and self._once("ended", step - 1):
            report = course.report
            kind = report.kind if report else NEAR
            effects.append(Decide(StepEnded(step - 1, kind, course.primal, course.dual)))
        if course.status or view.refusals:
            return [*effects, *self._give_up(course.status or "refused")]
        if self._sent_step != step:
            effects += self._send_step(step)
        members = [m for m in course.members if m not in view.excluded]
        if not members:
            return [*effects, *self._give_up("nobody")]
        if all(self._answer(step, site) is not None for site in members):
            effects += self._take_step(step)
        return effects

    def _running(self) -> Course:
        invariant(self.course is not None, "the day has begun")
        return self.course  # type: ignore[return-value]

    def _send_step(self, step: int) -> list[Effect]:
        """Offer to all members; workers and validators get the c' that follow."""
        course, effects = self._running(), list[Effect]()
        self._sent_step, self._sent = step, {}
        self._solved = {k: s for k, s in self._solved.items() if k[0] >= step}
        for place, site in enumerate(course.members):
            offer, linear = course.offer, octets_of(course.linear(site))
            book = course.rows[site].declared.book
            base = book.near if course.kind == NEAR else book.cheapest
            offered = Offered(
                step,
                course.kind,
                site,
                octets_of(offer.price_p[place]),
                octets_of(offer.price_q[place]),
                octets_of(offer.target_p[place]),
                octets_of(offer.target_q[place]),
                linear,
            )
            tasked = Tasked(step, course.kind, site, base, linear)
            self._sent[site] = (offered, tasked)
            effects.append(Send(self.agreement.home(site), offered))
            effects += send_all([*self.agreement.validators, *self.agreement.workers], tasked)
        absent = [s for s in self.agreement.members if s in course.excluded]
        for site in absent:  # Excluded by the operator alone: validators miss it, too.
            if site not in self.seat.view.excluded:
                tasked = Tasked(step, NEAR, site, b"", b"")
                effects += send_all(self.agreement.validators, tasked)
        return effects

    def _tell_task(self, to: NodeId, step: int, site: str) -> list[Effect]:
        """Tell the c' of a task again, also of a last step that was taken in an earlier life."""
        if site in self._sent:
            tasked = self._sent[site][1]
            return [Send(to, tasked)] if tasked.step == step else []
        course = self.course
        if course is None or step != course.taken or course.status != "converged":
            return []
        if site not in course.members:
            return []
        base = course.rows[site].declared.book.cheapest
        return [Send(to, Tasked(step, CHEAPEST, site, base, octets_of(course.linear(site))))]

    def _answer(self, step: int, site: str) -> Floats | None:
        """Return the accepted masked solution of a site, None before it is here."""
        task = self.seat.view.tasks.get(site)
        if task is None or not task.accepted:
            return None
        solved = self._solved.get((step, site, task.solution))
        row = self._running().rows[site]
        if solved is None or len(solved.variables) != 8 * len(row.near):
            return None
        return np.asarray(np.frombuffer(solved.variables, dtype="<i8") * QUANTUM)

    def _take_step(self, step: int) -> list[Effect]:
        course, view = self._running(), self.seat.view
        fallen = tuple(sorted(set(view.excluded) & set(course.members)))
        if fallen:
            taken = Taken(step, VOID, excluded=fallen)
        else:
            values = {site: self._answer(step, site) for site in course.members}
            known = {site: y for site, y in values.items() if y is not None}
            if course.kind == NEAR:
                octets = {site: octets_of(known[site]) for site in course.members}
                taken = Taken(step, NEAR, octets)
            elif self._missing():
                return self._fetch_problems()
            else:
                taken = self._cheapest_taken(step, known)
        course.absorb(taken)
        return [Persist(taken), *self._propose()]

    def _cheapest_taken(self, step: int, values: dict[str, Floats]) -> Taken:
        """Sum up what sites would save at the prices alone, from masked costs."""
        course, regret = self._running(), 0.0
        for site in course.members:
            base = self.shelf.problems[course.rows[site].declared.book.cheapest]
            problem = replace(base, linear=course.linear(site))
            mine = problem.objective(course.last_near[site])
            regret += max(mine - problem.objective(values[site]), 0.0)
        return Taken(step, CHEAPEST, regret=regret)

    def _missing(self) -> dict[bytes, str]:
        """Problems without penalty that are not here yet, with their sites."""
        course = self._running()
        named = {course.rows[site].declared.book.cheapest: site for site in course.members}
        return {d: site for d, site in named.items() if d not in self.shelf.problems}

    def _fetch_problems(self) -> list[Effect]:
        return [
            Send(self.agreement.home(site), FetchProblem(site, digest))
            for digest, site in self._missing().items()
        ]

    def _propose(self) -> list[Effect]:
        """Put the last step to the vote; again after an exclusion."""
        course, view = self._running(), self.seat.view
        report, step = course.report, view.iteration
        if report is None or report.step != step or view.proposal is not None:
            return []
        fallen = set(view.excluded) & set(course.members)
        effects: list[Effect] = []
        if fallen:
            taken = Taken(step, VOID, excluded=tuple(sorted(fallen)))
            course.absorb(taken)
            effects.append(Persist(taken))
            report = course.report
            invariant(report is not None, "a void step has its report")
        if not self._once("propose", step, len(view.excluded)):
            return effects
        primal = 0.0 if report.kind != NEAR else course.primal  # type: ignore[union-attr]
        proposal = ProposeIteration(
            self.agreement.day,
            step,
            report.digest,  # type: ignore[union-attr]
            min(round(primal / 1e-9), _RESIDUAL_MAX),
            0,
            report.is_last,  # type: ignore[union-attr]
        )
        effects += send_all(self.agreement.validators, report)
        return [*effects, *self.seat.desk.submit(self.me, proposal)]

    # -- the end ---------------------------------------------------------------------------------

    def _settle(self) -> list[Effect]:
        view, report = self.seat.view, self._running().report
        if view.refusals or report is None:
            return self._give_up("refused")
        if view.proposal is not None or not self._once("settle", len(view.excluded)):
            return []
        due = payments_of(self.public, report)
        invariant(due is not None, "the last report is sound")
        names = (client_of(bus) for bus in self.agreement.buses)
        payments = tuple(zip(names, due or (), strict=True))
        return self.seat.desk.submit(self.me, ProposeSettlement(self.agreement.day, payments))

    def _close(self) -> list[Effect]:
        view, effects = self.seat.view, list[Effect]()
        if self._once("close"):
            self._is_late = False
            effects.append(SetTimer("costs", self.agreement.patience.bids_ns))
            effects += self.seat.desk.submit(self.me, CloseDay(self.agreement.day))
        everybody = {client_of(bus) for bus in self.agreement.buses}
        if view.is_closed and (everybody <= set(self._costs) or self._is_late):
            effects += self._give_up("converged")
        return effects

    def _give_up(self, status: str) -> list[Effect]:
        """Decide how the day ended; it goes on answering nobody needs more of it."""
        if not self._once("over"):
            return []
        course, view = self._running(), self.seat.view
        report = course.report
        shape = (len(self.agreement.buses), self.public.register.interval_count)
        demand_p = floats_of(report.total_p, *shape) if report and report.is_last else None
        demand_q = floats_of(report.total_q, *shape) if report and report.is_last else None
        if status == "converged" and (demand_p is None or demand_q is None):
            status = "refused"
        low = high = 0.0
        loading, is_sound = None, False
        if demand_p is not None and demand_q is not None:
            low, high, loading, is_sound = self._ac_check(demand_p, demand_q)
        names = {client_of(bus) for bus in self.agreement.buses}
        is_known = names <= set(self._costs) and demand_p is not None
        cost = None
        if is_known and demand_p is not None:
            own = sum(costs.own for costs in self._costs.values())
            cost = own + self.course_cost(demand_p)
        settled = view.settlement
        payments = settled.payments if settled is not None else ()
        return [
            Decide(
                DayResult(
                    status=status,
                    cost=cost,
                    steps=view.iteration - 1,
                    iterations=course.iterations,
                    excluded=tuple(bus_of(site) for site in sorted(view.excluded)),
                    payments=tuple((bus_of(name), amount) for name, amount in payments),
                    costs=tuple(costs for _, costs in sorted(self._costs.items())),
                    demand_p=b"" if demand_p is None else octets_of(demand_p),
                    demand_q=b"" if demand_q is None else octets_of(demand_q),
                    is_ac_passed=is_sound,
                    vm_min_pu=low,
                    vm_max_pu=high,
                    loading_max=loading,
                    dropped_workers=tuple(f"{worker} {why}" for worker, why in view.dropped),
                )
            )
        ]

    def course_cost(self, demand_p: Floats) -> float:
        """Cost of the substation's exchange, currency."""
        register, exchange = self.public.register, demand_p.sum(axis=0)
        return float(np.maximum(register.buy * exchange, register.sell * exchange).sum())

    def _ac_check(
        self, demand_p: Floats, demand_q: Floats
    ) -> tuple[float, float, float | None, bool]:
        tree = self.public.register.limits.tree
        state = ac_flow(tree, demand_p, demand_q)
        magnitude = state.magnitude[:, state.is_converged]
        if not magnitude.size:
            return 0.0, 0.0, None, False
        low, high = float(magnitude.min()), float(magnitude.max())
        is_rated = bool(np.isfinite(tree.rating_pu).any())
        loading = float(state.loading[:, state.is_converged].max()) if is_rated else None
        bounds = self.fallback.voltage_min_pu, self.fallback.voltage_max_pu
        is_sound = (
            bool(state.is_converged.all())
            and (bounds[0] is None or low >= bounds[0] - 1e-6)
            and (bounds[1] is None or high <= bounds[1] + 1e-6)
            and (loading is None or loading <= 1.0 + 1e-6)
        )
        return low, high, loading, is_sound
