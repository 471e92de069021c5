"""One dispatcher over quadratic-programming back-ends, and a solver that is kept warm.

Clarabel (interior point) serves single accurate solves and stands behind the others. PIQP (interior
point, bounds apart) serves the same matrices again and again, as does OSQP (operator splitting),
which factors once and starts from the last solution.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import clarabel
import numpy as np
import osqp
from scipy import sparse

from veilgrid.errors import SolverFailed, invariant
from veilgrid.qp._boxed import BoxedForm
from veilgrid.qp.problem import Floats, QuadraticProgram, Solution, SolveStatus

_CLARABEL_STATUS = {
    "Solved": SolveStatus.OPTIMAL,
    "AlmostSolved": SolveStatus.OPTIMAL,
    "PrimalInfeasible": SolveStatus.INFEASIBLE,
    "AlmostPrimalInfeasible": SolveStatus.INFEASIBLE,
    "DualInfeasible": SolveStatus.UNBOUNDED,
    "AlmostDualInfeasible": SolveStatus.UNBOUNDED,
    "MaxIterations": SolveStatus.ITERATION_LIMIT,
    "InsufficientProgress": SolveStatus.ITERATION_LIMIT,
}

STALLED = ("AlmostSolved", "InsufficientProgress", "MaxIterations")
"""Ends of Clarabel without a verdict; a shorter step often gets past them."""

STEP_FRACTIONS = (0.99, 0.9)
"""Longest step to the boundary, first as Clarabel has it, then more careful."""

_OSQP_STATUS = {
    "solved": SolveStatus.OPTIMAL,
    "solved inaccurate": SolveStatus.OPTIMAL,
    "primal infeasible": SolveStatus.INFEASIBLE,
    "primal infeasible inaccurate": SolveStatus.INFEASIBLE,
    "dual infeasible": SolveStatus.UNBOUNDED,
    "dual infeasible inaccurate": SolveStatus.UNBOUNDED,
    "maximum iterations reached": SolveStatus.ITERATION_LIMIT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveSettings:
    """How exactly to solve.

    Attributes
    ----------
    tolerance : > 0
        Absolute and relative, on residuals and gap.
    iteration_count_max : > 0
        Of the back-end's own iterations; ``None`` = the back-end's default.
    """

    tolerance: float = 1e-9
    iteration_count_max: int | None = None


def solve(
    problem: QuadraticProgram,
    backend: str = "clarabel",
    settings: SolveSettings = SolveSettings(),
) -> Solution:
    """Solve a quadratic program once.

    Parameters
    ----------
    problem
        Data of the problem.
    backend
        A key of :data:`BACKENDS`.
    settings
        How exactly to solve.

    Raises
    ------
    SolverFailed
        The back-end ended without solution and without a verdict on the problem.
    """
    invariant(backend in BACKENDS, f"back-end is one of {sorted(BACKENDS)}, not {backend!r}")
    return BACKENDS[backend](problem, settings)


class _ClarabelForm:
    """A program in Clarabel's form ``Ax + s = b``; bounds and linear cost may change."""

    def __init__(self, problem: QuadraticProgram) -> None:
        self.equal = problem.lower == problem.upper
        self.above = ~self.equal & np.isfinite(problem.upper)
        self.below = ~self.equal & np.isfinite(problem.lower)
        rows = problem.matrix.tocsr()
        self.stacked = sparse.csc_matrix(
            sparse.vstack([rows[self.equal], rows[self.above], -rows[self.below]])
        )
        self.quadratic = sparse.triu(problem.quadratic, format="csc")
        self.counts = (int(self.equal.sum()), int(self.above.sum()), int(self.below.sum()))

    def fits(self, problem: QuadraticProgram) -> bool:
        """Whether each row's bounds are still of the kind that the form was prepared for."""
        equal = problem.lower == problem.upper
        return bool(
            (equal == self.equal).all()
            and ((~equal & np.isfinite(problem.upper)) == self.above).all()
            and ((~equal & np.isfinite(problem.lower)) == self.below).all()
        )

    def solve(self, problem: QuadraticProgram, settings: SolveSettings) -> Solution:
        """Solve with the problem's linear cost and bounds; the matrices are those prepared."""
        right = np.concatenate(
            [problem.upper[self.equal], problem.upper[self.above], -problem.lower[self.below]]
        )
        equalities, above, below = self.counts
        cones = [clarabel.ZeroConeT(equalities), clarabel.NonnegativeConeT(above + below)]
        for step in STEP_FRACTIONS:
            options = clarabel.DefaultSettings()
            options.verbose = False
            options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = settings.tolerance
            options.max_threads = 1
            options.max_step_fraction = step
            if settings.iteration_count_max is not None:
                options.max_iter = settings.iteration_count_max
            solved = clarabel.DefaultSolver(
                self.quadratic, problem.linear, self.stacked, right, cones, options
            ).solve()
            if str(solved.status) not in STALLED or settings.iteration_count_max is not None:
                break
        status = _CLARABEL_STATUS.get(str(solved.status))
        if status is None:
            raise SolverFailed("clarabel", str(solved.status))
        duals = np.asarray(solved.z)
        multipliers = np.zeros(len(problem.lower))
        multipliers[self.equal] = duals[:equalities]
        multipliers[self.above] += duals[equalities : equalities + above]
        multipliers[self.below] -= duals[equalities + above :]
        solution = Solution(
            status=status,
            x=np.asarray(solved.x, dtype=np.float64),
            multipliers=multipliers,
            backend="clarabel",
            iteration_count=int(solved.iterations),
        )
        if str(solved.status) in STALLED:
            return _judged(solution, problem)
        return solution


def _judged(solution: Solution, problem: QuadraticProgram) -> Solution:
    """Let the certificate say whether a solve that stalled near its tolerance is a solution."""
    size = 1.0 + float(np.max(np.abs(problem.linear), initial=0.0))
    is_good = solution.certificate(problem).is_accepted(1e-7, 1e-6 * size, 1e-6)
    status = SolveStatus.OPTIMAL if is_good else SolveStatus.ITERATION_LIMIT
    return replace(solution, status=status)


def _solve_clarabel(problem: QuadraticProgram, settings: SolveSettings) -> Solution:
    return _ClarabelForm(problem).solve(problem, settings)


def _solve_osqp(problem: QuadraticProgram, settings: SolveSettings) -> Solution:
    return RepeatedSolver(problem, "osqp", settings).solve()


def _solve_piqp(problem: QuadraticProgram, settings: SolveSettings) -> Solution:
    return RepeatedSolver(problem, "piqp", settings).solve()


BACKENDS: dict[str, Callable[[QuadraticProgram, SolveSettings], Solution]] = {
    "clarabel": _solve_clarabel,
    "osqp": _solve_osqp,
    "piqp": _solve_piqp,
}


class RepeatedSolver:
    """Solve one problem many times with changing linear cost and bounds, matrices prepared once.

    PIQP starts afresh, with its form prepared; it is the fastest where storage couples the
    intervals. OSQP factors once and starts each solve from the last solution. What either does not
    bring to the tolerance is solved by Clarabel, so a result is always accurate.
    """

    def __init__(
        self,
        problem: QuadraticProgram,
        backend: str = "osqp",
        settings: SolveSettings = SolveSettings(),
    ) -> None:
        invariant(backend in BACKENDS, f"back-end is one of {sorted(BACKENDS)}, not {backend!r}")
        self._problem, self._settings, self._backend = problem, settings, backend
        self._form: _ClarabelForm | None = None
        self._boxed: BoxedForm | None = None
        self._splitting: Any = None
        if backend == "osqp":
            self._splitting = osqp.OSQP()
            self._splitting.setup(
                P=sparse.triu(problem.quadratic, format="csc"),
                q=problem.linear,
                A=problem.matrix,
                l=problem.lower,
                u=problem.upper,
                verbose=False,
                eps_abs=settings.tolerance,
                eps_rel=settings.tolerance,
                max_iter=settings.iteration_count_max or 4_000,
                check_termination=10,
                polishing=False,
            )

    def solve(
        self, linear: Floats | None = None, lower: Floats | None = None, upper: Floats | None = None
    ) -> Solution:
        """Solve again with what changed; everything else stays as it was."""
        changes = {"linear": linear, "lower": lower, "upper": upper}
        self._problem = replace(
            self._problem, **{name: new for name, new in changes.items() if new is not None}
        )
        if self._splitting is not None:
            solution = self._solve_splitting(linear, lower, upper)
            if solution is not None:
                return solution
        if self._backend == "piqp":
            solution = self._solve_boxed()
            if solution is not None:
                return solution
        if self._form is None or not self._form.fits(self._problem):
            self._form = _ClarabelForm(self._problem)
        return self._form.solve(self._problem, self._settings)

    def _solve_boxed(self) -> Solution | None:
        if self._boxed is None or not self._boxed.fits(self._problem):
            settings = self._settings
            self._boxed = BoxedForm(self._problem, settings.tolerance, settings.iteration_count_max)
        return self._boxed.solve(self._problem)

    def _solve_splitting(
        self, linear: Floats | None, lower: Floats | None, upper: Floats | None
    ) -> Solution | None:
        changes = {"q": linear, "l": lower, "u": upper}
        self._splitting.update(**{name: new for name, new in changes.items() if new is not None})
        solved = self._splitting.solve(raise_error=False)
        status = _OSQP_STATUS.get(str(solved.info.status).strip())
        if status is None or status is SolveStatus.ITERATION_LIMIT:
            return None
        return Solution(
            status=status,
            x=np.asarray(solved.x, dtype=np.float64),
            multipliers=np.asarray(solved.y, dtype=np.float64),
            backend="osqp",
            iteration_count=int(solved.info.iter),
        )
