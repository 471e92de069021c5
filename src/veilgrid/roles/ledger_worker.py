"""A worker of a masked day on the ledger: solves what it is assigned, signs, submits [day 4.2]."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from veilgrid.ledger.operation import Solve
from veilgrid.machine import (
    START,
    Compute,
    Computed,
    Decide,
    Effect,
    Event,
    NodeId,
    Persist,
    Received,
    Send,
    TimerFired,
)
from veilgrid.qp.dense import DenseSolution, DenseSolver
from veilgrid.qp.mask import MaskedProblem, linear_digest
from veilgrid.roles.ledger_message import (
    Closed,
    FetchProblem,
    FetchSolved,
    FetchTask,
    ProblemData,
    Solved,
    Tasked,
    floats_of,
)
from veilgrid.roles.ledger_seat import AGAIN, Agreement, Seat, bus_of, send_all
from veilgrid.roles.ledger_view import TaskView
from veilgrid.roles.masked_task import Task, claimed, with_linear
from veilgrid.signature import Signs

_STEPS_KEPT = 3


def problem_of(data: ProblemData) -> MaskedProblem | None:
    """Read H', G', h', None unless they have the digest that they come under."""
    rows, width = data.rows, data.width
    sizes = (width * width, rows * width, rows)
    if rows < 0 or width < 1 or len(data.octets) != 8 * sum(sizes):
        return None
    flat = floats_of(data.octets, sum(sizes))
    if flat is None:
        return None
    quadratic, matrix, bound = np.split(flat, np.cumsum(sizes)[:-1])
    found = MaskedProblem(
        quadratic=quadratic.reshape(width, width),
        linear=np.zeros(width),
        matrix=matrix.reshape(rows, width),
        bound=bound,
    )
    return found if found.digest == data.digest else None


@dataclass(slots=True)
class Shelf:
    """Problems by digest, and the c' of recent tasks: what workers and validators hold."""

    problems: dict[bytes, MaskedProblem] = field(default_factory=dict)
    tasks: dict[tuple[int, str], Tasked] = field(default_factory=dict)

    def put(self, tasked: Tasked) -> bool:
        """Keep a task's c'; the first one of a step and site stands. Return whether it is new."""
        key = (tasked.step, tasked.site)
        if key in self.tasks:
            return False
        self.tasks[key] = tasked
        oldest = tasked.step - _STEPS_KEPT
        self.tasks = {k: t for k, t in self.tasks.items() if k[0] > oldest}
        return True

    def keep(self, data: ProblemData, wanted: frozenset[bytes]) -> None:
        """Keep a problem that somebody asked for, if it is what its digest says."""
        if data.digest in wanted and data.digest not in self.problems:
            found = problem_of(data)
            if found is not None:
                self.problems[data.digest] = found

    @property
    def missing(self) -> dict[bytes, str]:
        """Digests of problems that tasks name and that are not here, with their sites."""
        named = {tasked.base: tasked.site for tasked in self.tasks.values()}
        return {digest: site for digest, site in named.items() if digest not in self.problems}

    def data_digest(self, step: int, site: str) -> bytes | None:
        """Return the digest that the site must have announced, None if c' is not here."""
        tasked = self.tasks.get((step, site))
        if tasked is None or len(tasked.linear) % 8:
            return None
        return linear_digest(tasked.base, np.frombuffer(tasked.linear, dtype="<f8"))

    def problem(self, step: int, site: str) -> MaskedProblem | None:
        """Return the whole problem of a task, None if a part is not here."""
        tasked = self.tasks.get((step, site))
        base = self.problems.get(tasked.base) if tasked else None
        if tasked is None or base is None:
            return None
        linear = floats_of(tasked.linear, len(base.linear))
        return None if linear is None else with_linear(base, linear)


def solve_kernel(solver: DenseSolver, problem: MaskedProblem) -> DenseSolution:
    """Solve one task."""
    return solver.solve(problem.linear)


def prepared_solver(problem: MaskedProblem) -> DenseSolver:
    """Prepare a solver for many c'."""
    return DenseSolver(problem)


def solution_of(solved: Solved) -> DenseSolution | None:
    """Read a solution as it travelled."""
    if len(solved.variables) % 8 or len(solved.multipliers) % 8:
        return None
    return DenseSolution(
        y=np.frombuffer(solved.variables, dtype="<i8").astype(np.int64),
        multipliers=np.frombuffer(solved.multipliers, dtype="<i8").astype(np.int64),
    )


class Worker:
    """Solve what the ledger assigns.

    Parameters
    ----------
    me, agreement, signer
        Who it is, among whom, and its key.
    records
        What its journal holds: only what it submitted. It learns its tasks from the ledger.
    """

    def __init__(
        self, me: NodeId, agreement: Agreement, signer: Signs, records: Sequence[Any] = ()
    ) -> None:
        self.me, self.agreement, self._signer = me, agreement, signer
        self.seat = Seat(me, agreement, [me], signer, records)
        self.shelf = Shelf()
        self._solvers: dict[bytes, DenseSolver] = {}
        self._busy: set[bytes] = set()
        self._solved: dict[tuple[int, str], Solved] = {}
        self._submitted: dict[tuple[int, str], int] = {}
        self._is_closed = False
        for record in records:
            if isinstance(record, Solved):
                self._keep(record)

    def handle(self, event: Event) -> list[Effect]:
        """Advance by one event."""
        effects = self._take(event)
        return [*effects, *self._act()]

    def _take(self, event: Event) -> list[Effect]:
        match event:
            case TimerFired(name) if name == START:
                return self.seat.start()
            case TimerFired(name) if name == AGAIN:
                return [*self.seat.again(), *self._fetch()]
            case Received(sender, Tasked() as tasked) if sender == self.agreement.operator:
                return self._fetch_problems(tasked.site) if self.shelf.put(tasked) else []
            case Received(_, ProblemData() as data):
                self.shelf.keep(data, frozenset(self.shelf.missing))
            case Received(sender, FetchSolved(step, site)):
                held = self._solved.get((step, site))
                return [Send(sender, held)] if held else []
            case Computed(("solve", int() as step, str() as site), solution):
                return self._on_solution(step, site, solution)
            case Received() | TimerFired():
                return self.seat.handle(event) or []
        return []

    def _fetch(self) -> list[Effect]:
        """Ask sites for problems, and the operator for tasks, that are missing."""
        view, shelf = self.seat.view, self.shelf
        return [
            *self._fetch_problems(),
            *(
                Send(NodeId(self.agreement.operator), FetchTask(view.iteration, site))
                for site, task in view.tasks.items()
                if self.me in task.workers and (view.iteration, site) not in shelf.tasks
            ),
        ]

    def _fetch_problems(self, only: str = "") -> list[Effect]:
        """Ask for the problems that are missing, or for those of one site."""
        return [
            Send(self.agreement.home(site), FetchProblem(site, digest))
            for digest, site in self.shelf.missing.items()
            if site in self.seat.view.sites and only in ("", site)
        ]

    def _act(self) -> list[Effect]:
        """Start what is assigned and here."""
        view = self.seat.view
        effects: list[Effect] = []
        if view.is_closed and not self._is_closed and view.settlement is not None:
            self._is_closed = True
            effects.append(Decide(Closed(view.iteration, self.agreement.day.encode())))
        for site, task in view.tasks.items():
            step = view.iteration
            is_mine = self.me in task.workers and self.me not in task.solutions
            if not is_mine:
                continue
            if (step, site) in self._solved:
                effects += self._submit(step, site, task)
                continue
            problem = self.shelf.problem(step, site)
            if problem is None or self.shelf.data_digest(step, site) != task.problem:
                continue
            if problem.digest in self._busy:
                continue
            self._busy.add(problem.digest)
            solver = self._solvers.get(problem.digest)
            if solver is None:
                solver = self._solvers[problem.digest] = prepared_solver(problem)
            effects.append(Compute(("solve", step, site), solve_kernel, (solver, problem)))
        return effects

    def _on_solution(self, step: int, site: str, solution: DenseSolution) -> list[Effect]:
        tasked = self.shelf.tasks.get((step, site))
        data = self.shelf.data_digest(step, site)
        if tasked is None or data is None:
            return []
        self._busy.discard(tasked.base)
        task = Task(site=site, iteration=step, kind=tasked.kind, data=data, worker=self.me)
        submission = claimed(task, solution, self.me, self._signer)
        solved = self._told(
            Solved(
                site=site,
                step=step,
                claim=submission.claim,
                variables=solution.y.astype("<i8").tobytes(),
                multipliers=solution.multipliers.astype("<i8").tobytes(),
            )
        )
        self._keep(solved)
        readers = [*self.agreement.validators, self.agreement.operator]
        return [
            Persist(solved),  # Only the digest is on the ledger: whoever promises it, keeps it.
            *send_all([*readers, self.agreement.groups[bus_of(site)]], solved),
        ]

    def _keep(self, solved: Solved) -> None:
        oldest = solved.step - _STEPS_KEPT
        self._solved = {k: s for k, s in self._solved.items() if k[0] > oldest}
        self._submitted = {k: a for k, a in self._submitted.items() if k[0] > oldest}
        self._solved[solved.step, solved.site] = solved

    def _submit(self, step: int, site: str, task: TaskView) -> list[Effect]:
        """Submit what is solved, once for each draw: before it was this worker's it is refused."""
        if self._submitted.get((step, site)) == task.attempt:
            return []
        self._submitted[step, site] = task.attempt
        solved = self._solved[step, site]
        own = (self.agreement.day, step, site, task.problem, solved.claim.solution)
        return self.seat.desk.submit(self.me, Solve(*own))

    def _told(self, solved: Solved) -> Solved:
        """Return what it says; a dishonest worker overrides this."""
        return solved
