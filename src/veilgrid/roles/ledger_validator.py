"""A validator of a masked day: a replica that recomputes outside ``apply`` [day 4.3]."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import numpy as np

from veilgrid.admm.network_step import NetworkStep
from veilgrid.grid.lindistflow import flows
from veilgrid.grid.network import Floats
from veilgrid.ledger.application import Coordination
from veilgrid.ledger.message import (
    CaughtUp,
    Confirmed,
    Notary,
    Request,
    keys_of,
)
from veilgrid.ledger.operation import (
    Absent,
    Approve,
    Late,
    ProposeIteration,
    ProposeSettlement,
    RevealBeacon,
    SealBeacon,
    Verdict,
    seal_of,
    subject_of,
)
from veilgrid.ledger.replica import Replica
from veilgrid.ledger.service import Record
from veilgrid.ledger.settings import Settings
from veilgrid.ledger.state import Roles
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
from veilgrid.qp.mask import MaskedProblem
from veilgrid.roles.ledger_message import (
    NEAR,
    Book,
    Closed,
    FetchBook,
    FetchProblem,
    FetchRecords,
    FetchReport,
    FetchSolved,
    FetchTask,
    ProblemData,
    Report,
    Seated,
    Solved,
    Tasked,
    floats_of,
)
from veilgrid.roles.ledger_seat import AGAIN, Agreement, Desk, bus_of, send_all
from veilgrid.roles.ledger_site import hashed
from veilgrid.roles.ledger_view import DayView, TaskView, bulletins
from veilgrid.roles.ledger_worker import Shelf, solution_of
from veilgrid.roles.masked_task import Submission, Task, refusal
from veilgrid.roles.sealed.day import PublicDay
from veilgrid.signature import Signs

GAP_ACCEPTED: Final = 5e-4
EXCESS_ACCEPTED: Final = 1e-6
PRICE_ACCEPTED: Final = 1e-3
"""Of the highest tariff: by so much stated prices may differ from recomputed ones."""
RESIDUAL_UNIT: Final = 1e-9
QUEUE_USUAL: Final = 16
"""So many tasks of one step a worker should do in the usual time."""
COLD_FACTOR: Final = 4
"""So many times longer a worker may take for a problem that it has not solved before."""

_record = msgspec.msgpack.Decoder(Record).decode


def folded(day: str, records: Sequence[bytes]) -> DayView:
    """Return a day as these records tell it."""
    view = DayView(day)
    for octets in records:
        view.fold(_record(octets))
    return view


def judge_kernel(task: Task, problem: MaskedProblem, solved: Solved, key: bytes) -> bool:
    """Recompute a claim's certificate from masked data; return whether it holds."""
    solution = solution_of(solved)
    if solution is None:
        return False
    return refusal(task, problem, Submission(solved.claim, solution), key) is None


class Validator:
    """A replica, its verdicts, and what it tells followers.

    Parameters
    ----------
    public
        Network and tariff, to recompute the last step.
    tells_all
        Decide what the replica confirms, for checkers and exports.
    """

    def __init__(
        self,
        me: NodeId,
        agreement: Agreement,
        public: PublicDay,
        signer: Signs,
        records: Sequence[Any] = (),
        *,
        tells_all: bool = True,
    ) -> None:
        self.me, self.agreement, self.public, self.tells_all = me, agreement, public, tells_all
        genesis, patience = agreement.genesis, agreement.patience
        roles = Roles(
            agreement.operator, agreement.validators, agreement.workers, agreement.is_attested
        )
        notary = Notary(genesis.digest())
        application = Coordination(roles, notary, keys_of(genesis.replicas))
        settings = Settings(view_timeout_ns=patience.view_ns, status_ns=patience.status_ns)
        own = [record for record in records if not isinstance(record, Seated)]
        self.replica = Replica(me, genesis, signer, application, own, settings)
        self.desk = Desk(agreement, [me], signer, records)
        self.view = DayView(agreement.day)
        self.shelf = Shelf()
        self._position = 0
        self._solved: dict[tuple[int, str, str], Solved] = {}
        self._books: dict[str, Book] = {}
        self._reports: dict[int, Report] = {}
        self._accepted: dict[tuple[int, str], Solved] = {}
        self._warm: set[tuple[bytes, str]] = set()
        self._done: set[tuple[Any, ...]] = set()
        self._judging: set[tuple[Any, ...]] = set()
        value = signer.sign("ledger/1/beacon-value", agreement.day.encode())
        self._value = hashlib.sha256(value).digest()

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        effects = self._take(event)
        effects += self._follow()
        return [*effects, *self._act()]

    # -- events ----------------------------------------------------------------------------------

    def _take(self, event: Event) -> list[Effect]:
        operator = self.agreement.operator
        match event:
            case TimerFired(name) if name == START:
                again = SetTimer(AGAIN, self.agreement.patience.again_ns)
                return [*self._replicated(event), *self.desk.start(), again]
            case TimerFired(name) if name == AGAIN:
                again = SetTimer(AGAIN, self.agreement.patience.again_ns)
                return [*self._fetch(), again]
            case TimerFired(name) if name.startswith(("late ", "absent ", "beacon")):
                return self._on_patience(name)
            case Computed(
                ("judge", int() as step, str() as site, str() as worker, digest), verdict
            ):
                return self._judged(step, site, worker, digest, is_accepted=bool(verdict))
            case Computed(("report", int() as step, bytes() as subject), verdict):
                return self._approved(step, subject, is_accepted=bool(verdict))
            case Received(sender, Tasked() as tasked) if sender == operator:
                return self._on_task(tasked)
            case Received(sender, Report() as report) if sender == operator:
                self._reports[report.step] = report
                self._reports = {s: r for s, r in self._reports.items() if s > report.step - 3}
            case Received(sender, message):
                return self._on_data(sender, message, event)
            case TimerFired():
                found = self.desk.handle(event)
                return self._replicated(event) if found is None else found
        return []

    def _on_data(self, sender: NodeId, message: Any, event: Received) -> list[Effect]:
        match message:
            case FetchRecords(first) if sender in self.agreement.followers:
                records = self.replica.service.records
                return [Send(sender, part) for part in bulletins(records, max(0, first))]
            case ProblemData() as data:
                self.shelf.keep(data, frozenset(self.shelf.missing))
            case Solved() as solved:
                self._on_solved(sender, solved)
            case Book(site=site) as book if sender == self._home(site):
                self._books.setdefault(site, book)
            case FetchSolved(step, site):
                held = self._accepted.get((step, site))
                return [Send(sender, held)] if held and sender != self.me else []
            case Request(client=client) if sender == self._home(client):
                return self._replicated(Received(NodeId(client), message))
            case _:
                found = self.desk.handle(event)
                return self._replicated(event) if found is None else found
        return []

    def _home(self, client: str) -> str:
        known = client.startswith("site:") and bus_of(client) in self.agreement.groups
        return str(self.agreement.home(client)) if known else client

    def _replicated(self, event: Event) -> list[Effect]:
        """Step the replica; replies to sites go to the processes that hold them."""
        kept: list[Effect] = []
        for effect in self.replica.handle(event):
            match effect:
                case Send(to, message) if to.startswith("site:"):
                    kept.append(Send(self.agreement.home(to), message))
                case Decide(Confirmed() | CaughtUp()) if not self.tells_all:
                    pass
                case _:
                    kept.append(effect)
        return kept

    def _follow(self) -> list[Effect]:
        """Fold what the replica has executed, and tell followers."""
        records = self.replica.service.records
        first = self._position
        if first >= len(records):
            return []
        for octets in records[first:]:
            before = self.view.iteration
            self.view.fold(_record(octets))
            if self.view.iteration != before:
                self._turned(before)
            self._keep_accepted()
        self._position = len(records)
        return [
            Send(NodeId(name), part)
            for part in bulletins(records, first, 1)
            for name in self.agreement.followers
        ]

    def _turned(self, step: int) -> None:
        """Forget what concerned an earlier step, but the solutions of the last ones."""
        self._accepted = {k: v for k, v in self._accepted.items() if k[0] >= step - 1}
        self._solved = {k: v for k, v in self._solved.items() if k[0] > step}
        self._done = {key for key in self._done if key[0] == "once" or key[1] > step}
        self._judging = {key for key in self._judging if key[0] > step}

    def _keep_accepted(self) -> None:
        step = self.view.iteration
        for site, task in self.view.tasks.items():
            if task.accepted and (step, site) not in self._accepted:
                held = self._solved.get((step, site, task.accepted))
                if held is not None and held.claim.solution == task.solution:
                    self._accepted[step, site] = held
                    tasked = self.shelf.tasks.get((step, site))
                    if tasked is not None:
                        self._warm.add((tasked.base, task.accepted))

    # -- what arrives beside the ledger ----------------------------------------------------------

    def _on_task(self, tasked: Tasked) -> list[Effect]:
        """Take a task's c'; from now on its site has so long to announce it."""
        if not self.view.iteration <= tasked.step <= self.view.iteration + 1:
            return []
        if not self.shelf.put(tasked):
            return []
        timer = f"absent {tasked.step} {tasked.site}"
        fetch = [
            Send(self.agreement.home(site), FetchProblem(site, digest))
            for digest, site in self.shelf.missing.items()
            if site == tasked.site and self._home(site) != site
        ]
        return [SetTimer(timer, self.agreement.patience.site_ns), *fetch]

    def _on_solved(self, sender: str, solved: Solved) -> None:
        step, key = self.view.iteration, (solved.step, solved.site)
        if sender in self.agreement.workers and step <= solved.step <= step + 1:
            self._solved[*key, sender] = solved
        if solved.step <= step and key not in self._accepted:
            due = self.view.solution(*key)
            if due and hashed(solved) == due == solved.claim.solution:
                self._accepted[key] = solved

    def _fetch(self) -> list[Effect]:
        """Ask for what is missing to judge the present step."""
        view, effects = self.view, list[Effect]()
        step = view.iteration
        for digest, site in self.shelf.missing.items():
            if self._home(site) != site:
                effects.append(Send(self.agreement.home(site), FetchProblem(site, digest)))
        for site, task in view.tasks.items():
            if (step, site) not in self.shelf.tasks:
                effects.append(Send(NodeId(self.agreement.operator), FetchTask(step, site)))
            for worker in task.solutions:
                if (step, site, worker) not in self._solved:
                    effects.append(Send(NodeId(worker), FetchSolved(step, site)))
        for site, digest in view.bids.items():
            if site not in self._books or self._books[site].digest != digest:
                effects.append(Send(self.agreement.home(site), FetchBook(site)))
        if isinstance(view.proposal, ProposeIteration) and step not in self._reports:
            effects.append(Send(NodeId(self.agreement.operator), FetchReport(step)))
        if view.last is not None and view.last.iteration not in self._reports:
            last = view.last.iteration
            effects.append(Send(NodeId(self.agreement.operator), FetchReport(last)))
        others = [name for name in self.agreement.validators if name != self.me]
        for missing in self._missed(step):
            effects += send_all([*others, *self.agreement.workers], FetchSolved(*missing))
        return effects

    def _has_all(self, step: int, report: Report) -> bool:
        """Whether all is here by which a last step is judged."""
        has_problems = all(self.shelf.problem(step, site) is not None for site in report.members)
        return has_problems and not self._missed(step)

    def _missed(self, step: int) -> list[tuple[int, str]]:
        """Return whose accepted solutions of a step and of the one before are not here."""
        return [
            (number, site)
            for number in (step - 1, step)
            for site in self.agreement.members
            if self.view.solution(number, site) and (number, site) not in self._accepted
        ]

    # -- what it does ----------------------------------------------------------------------------

    def _once(self, *key: Any) -> bool:
        """Return whether this is to be done now, for the first time."""
        if key in self._done:
            return False
        self._done.add(key)
        return True

    def _act(self) -> list[Effect]:
        view, effects = self.view, list[Effect]()
        if not view.is_open:
            return effects
        effects += self._beacon()
        self._keep_accepted()
        step = view.iteration
        for site, task in view.tasks.items():
            for worker in task.workers:
                if self._once("late", step, site, worker, task.attempt):
                    patience = self._patience(step, site, worker)
                    effects.append(SetTimer(f"late {step} {site} {worker}", patience))
            if not task.accepted:
                effects += self._judge(step, site, task)
        effects += self._examine()
        if view.is_closed and self._once("once", "closed"):
            effects.append(Decide(Closed(view.iteration, self.agreement.day.encode())))
        return effects

    def _patience(self, step: int, site: str, worker: str) -> int:
        """Return how long to wait: longer for what is new to a worker, or queues there."""
        tasked = self.shelf.tasks.get((step, site))
        is_known = tasked is not None and (tasked.base, worker) in self._warm
        queue = sum(worker in task.workers for task in self.view.tasks.values())
        times = max(1, queue // QUEUE_USUAL) * (1 if is_known else COLD_FACTOR)
        return self.agreement.patience.worker_ns * times

    def _beacon(self) -> list[Effect]:
        view, day, effects = self.view, self.agreement.day, list[Effect]()
        if not view.beacon and self.me not in view.seals and self._once("once", "seal"):
            seal = seal_of(self._value, self.me, day)
            effects += self.desk.submit(self.me, SealBeacon(day, seal))
        quorum = self.replica.configuration.quorum
        is_due = not view.is_bidding and len(view.seals) >= quorum and not view.beacon
        if is_due and self._once("once", "missing"):
            effects.append(SetTimer("beacon", self.agreement.patience.site_ns))
        if is_due and self.me in view.seals - view.reveals and self._once("once", "reveal"):
            effects += self.desk.submit(self.me, RevealBeacon(day, self._value))
        return effects

    def _judge(self, step: int, site: str, task: TaskView) -> list[Effect]:
        """Recompute the certificates of solutions that are here and not judged yet."""
        open_ = {
            worker: digest
            for worker, digest in task.solutions.items()
            if (step, site, worker, digest, task.attempt) not in self._judging
        }
        if not open_:
            return []
        problem = self.shelf.problem(step, site)
        if problem is None or self.shelf.data_digest(step, site) != task.problem:
            return []
        if not self._is_booked(step, site):
            return []
        effects: list[Effect] = []
        for worker, digest in open_.items():
            solved = self._solved.get((step, site, worker))
            key = (step, site, worker, digest, task.attempt)
            if solved is None or solved.claim.solution != digest:
                continue
            self._judging.add(key)
            kind = self.shelf.tasks[step, site].kind
            named = Task(site=site, iteration=step, kind=kind, data=task.problem, worker=worker)
            arguments = (named, problem, solved, self.agreement.keys[worker])
            effects.append(Compute(("judge", *key[:4]), judge_kernel, arguments))
        return effects

    def _is_booked(self, step: int, site: str) -> bool:
        """Whether a task's H', G', h' are those that the site has bid."""
        tasked, book = self.shelf.tasks[step, site], self._books.get(site)
        if book is None or book.digest != self.view.bids.get(site):
            return False
        return tasked.base == (book.near if tasked.kind == NEAR else book.cheapest)

    def _judged(
        self, step: int, site: str, worker: str, digest: Any, *, is_accepted: bool
    ) -> list[Effect]:
        if step != self.view.iteration:
            return []
        day = self.agreement.day
        verdict = Verdict(day, step, site, worker, digest, self._verdict(is_accepted))
        return self.desk.submit(self.me, verdict)

    def _verdict(self, is_accepted: bool) -> bool:
        """Return what it says of a claim; a dishonest validator overrides this."""
        return is_accepted

    def _on_patience(self, name: str) -> list[Effect]:
        """Say what did not come in time."""
        view, day = self.view, self.agreement.day
        if name == "beacon":
            silent = sorted(view.seals - view.reveals - view.given_up) if not view.beacon else []
            return (
                self.desk.submit(self.me, *(Absent(day, who) for who in silent)) if silent else []
            )
        kind, step_text, rest = name.split(" ", 2)
        step = int(step_text)
        if step != view.iteration:
            return []
        if kind == "late":
            site, worker = rest.rsplit(" ", 1)
            return self._on_late(step, site, worker)
        task = view.tasks.get(rest)
        if rest in view.excluded or (task is not None and task.accepted):
            return []
        is_there = (
            task is not None
            and bool(task.workers)
            and self.shelf.problem(step, rest) is not None
            and self.shelf.data_digest(step, rest) == task.problem
            and self._is_booked(step, rest)
        )
        if is_there:
            return [SetTimer(name, self.agreement.patience.site_ns)]
        return self.desk.submit(self.me, Absent(day, rest))

    def _on_late(self, step: int, site: str, worker: str) -> list[Effect]:
        task, day = self.view.tasks.get(site), self.agreement.day
        if task is None or worker not in task.workers or task.accepted:
            return []
        digest = task.solutions.get(worker)
        if (step, site, worker, digest, task.attempt) in self._judging:
            return []
        if digest is not None and self.shelf.problem(step, site) is None:
            return []  # The site withholds what is needed; its own timer runs.
        return self.desk.submit(self.me, Late(day, step, site, worker, task.attempt))

    # -- steps and settlement --------------------------------------------------------------------

    def _examine(self) -> list[Effect]:
        """Check what the operator proposes."""
        proposal, step = self.view.proposal, self.view.iteration
        if isinstance(proposal, ProposeIteration):
            report = self._reports.get(step)
            if report is None or report.digest != proposal.digest:
                return []
            if report.is_last and not self._has_all(step, report):
                return []  # A restart lost it; others have it.
            subject = subject_of(proposal)
            if not self._once("report", step, subject, len(self.view.excluded)):
                return []
            members = [m for m in self.agreement.members if m not in self.view.excluded]
            if list(report.members) != members:
                return self._approved(step, subject, is_accepted=False)
            arguments = (self._public(), report, proposal, self._regret(report))
            return [Compute(("report", step, subject), report_kernel, arguments)]
        if isinstance(proposal, ProposeSettlement):
            report, last = self._reports.get(step - 1), self.view.last
            if report is None or last is None or report.digest != last.digest:
                return []
            subject = subject_of(proposal)
            if not self._once("settle", step, subject):
                return []
            return self._approved(step, subject, is_accepted=self._settles(proposal, report))
        return []

    def _public(self) -> PublicDay:
        """Return the public day with excluded sites as sites without choice."""
        register = self.public.register
        for site in self.view.excluded:
            register = register.without(self.agreement.buses.index(bus_of(site)))
        return replace(self.public, register=register)

    def _approved(self, step: int, subject: bytes, *, is_accepted: bool) -> list[Effect]:
        proposal = self.view.proposal
        if proposal is None or step != self.view.iteration or subject_of(proposal) != subject:
            return []
        approve = Approve(self.agreement.day, subject, is_accepted)
        return self.desk.submit(self.me, approve)

    def _regret(self, report: Report) -> float | None:
        """Return what sites would save at the prices of the last step, from masked data."""
        if not report.is_last:
            return 0.0
        regret = 0.0
        for site in report.members:
            problem = self.shelf.problem(report.step, site)
            pair = [self._accepted.get((step, site)) for step in (report.step - 1, report.step)]
            if pair[0] is None or not self._is_near(report.step - 1, site, pair[0]):
                return None
            solutions = [solution_of(one) for one in pair if one is not None]
            if problem is None or len(solutions) != 2 or None in solutions:
                return None
            mine, best = (problem.objective(s.values) for s in solutions if s is not None)
            regret += max(mine - best, 0.0)
        return regret

    def _is_near(self, step: int, site: str, solved: Solved) -> bool:
        """Whether an accepted solution is of a step near targets, as its claim says."""
        task = self.view.past[step][site]
        named = Task(site=site, iteration=step, kind=NEAR, data=task.problem, worker=task.accepted)
        return solved.claim.task == named.digest

    def _settles(self, proposal: ProposeSettlement, report: Report) -> bool:
        """Whether payments are prices times demands of the last step, the rest at the root."""
        due = payments_of(self.public, report)
        if due is None:
            return False
        named = dict(proposal.payments)
        buses = [f"site:{bus}" for bus in self.agreement.buses]
        return named == dict(zip(buses, due, strict=True))


def payments_of(public: PublicDay, report: Report) -> list[int] | None:
    """Return all payments by bus that follow from a last report, integer micro-units."""
    shape = (public.register.bus_count, public.register.interval_count)
    parts = [
        floats_of(part, *shape)
        for part in (report.price_p, report.price_q, report.total_p, report.total_q)
    ]
    if any(part is None for part in parts):
        return None
    price_p, price_q, demand_p, demand_q = parts
    paid = (price_p * demand_p + price_q * demand_q).sum(axis=1)  # type: ignore[operator]
    payments = [round(float(amount) * 1e6) for amount in paid]
    payments[public.register.limits.tree.root] -= sum(payments)
    return payments


def report_kernel(
    public: PublicDay, report: Report, proposal: ProposeIteration, regret: float | None
) -> bool:
    """Recompute a step's residual and, of the last one, limits, prices, rent and gap."""
    if not report.is_last:
        return proposal.is_last == report.is_last and _residual_holds(public, report, proposal)
    if not proposal.is_last or regret is None:
        return False
    register = public.register
    shape = (register.bus_count, register.interval_count)
    names = ("price_p", "price_q", "total_p", "total_q", "target_p", "target_q")
    parts = [floats_of(getattr(report, name), *shape) for name in names]
    if any(part is None for part in parts):
        return False
    price_p, price_q, demand_p, demand_q, target_p, target_q = (
        part for part in parts if part is not None
    )
    limits = register.limits
    if not limits.are_absent:
        excess = limits.excess(flows(limits.tree, demand_p, demand_q))
        if float(excess.max()) > EXCESS_ACCEPTED:
            return False
    rent = recomputed_rent(public, (price_p, price_q), (target_p, target_q))
    exchange = demand_p.sum(axis=0)
    cost = float(np.maximum(register.buy * exchange, register.sell * exchange).sum())
    paid = float((price_p * demand_p).sum() + (price_q * demand_q).sum())
    scale = max(abs(cost), public.turnover_min * register.unit)
    return rent is not None and cost - paid + rent + regret <= GAP_ACCEPTED * scale


def recomputed_rent(
    public: PublicDay, price: tuple[Floats, Floats], target: tuple[Floats, Floats]
) -> float | None:
    """Return the rent at stated prices, currency; None if this network cannot have them.

    The network step is done anew at the wish that has these targets and prices. Its fixed point
    is what the operator must have stated.
    """
    register = public.register
    step = NetworkStep(
        register.limits,
        register.buy,
        register.sell,
        register.give_p,
        register.give_q,
        register.strength_max,
    )
    wish_p = target[0] + price[0] * register.give_p[:, np.newaxis]
    wish_q = target[1] + price[1] * register.give_q[:, np.newaxis]
    found = step.project(wish_p, wish_q)
    moved = max(
        float(np.abs(found.price_p - price[0]).max(initial=0.0)),
        float(np.abs(found.price_q - price[1]).max(initial=0.0)),
    )
    highest = float(np.max(np.abs(register.buy)))
    return float(found.rent.sum()) if moved <= PRICE_ACCEPTED * highest else None


def _residual_holds(public: PublicDay, report: Report, proposal: ProposeIteration) -> bool:
    if report.kind != NEAR:
        return True
    shape = (len(report.members), public.register.interval_count)
    parts = [
        floats_of(part, *shape)
        for part in (report.demand_p, report.demand_q, report.target_p, report.target_q)
    ]
    if any(part is None for part in parts):
        return False
    demand_p, demand_q, target_p, target_q = (part for part in parts if part is not None)
    off = np.abs(np.concatenate([demand_p - target_p, demand_q - target_q]))
    primal = round(float(off.max(initial=0.0)) / RESIDUAL_UNIT)
    return abs(primal - proposal.primal_residual) <= 1
