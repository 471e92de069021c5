"""One dispatcher over quadratic-programming back-ends, and a solver that is kept warm.

Clarabel (interior point) serves single accurate solves, OSQP (operator splitting) serves the same
matrices again and again: it factors once and starts from the last solution.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import clarabel
import numpy as np
import osqp
from scipy import sparse

from veilgrid.errors import SolverFailed, invariant
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


def _solve_clarabel(problem: QuadraticProgram, settings: SolveSettings) -> Solution:
    equal = problem.lower == problem.upper
    above, below = ~equal & np.isfinite(problem.upper), ~equal & np.isfinite(problem.lower)
    rows = problem.matrix.tocsr()
    stacked = sparse.csc_matrix(sparse.vstack([rows[equal], rows[above], -rows[below]]))
    right = np.concatenate([problem.upper[equal], problem.upper[above], -problem.lower[below]])
    options = clarabel.DefaultSettings()
    options.verbose = False
    options.tol_gap_abs = options.tol_gap_rel = options.tol_feas = settings.tolerance
    options.max_threads = 1
    if settings.iteration_count_max is not None:
        options.max_iter = settings.iteration_count_max
    inequalities = int(above.sum() + below.sum())
    cones = [clarabel.ZeroConeT(int(equal.sum())), clarabel.NonnegativeConeT(inequalities)]
    upper = sparse.triu(problem.quadratic, format="csc")
    solved = clarabel.DefaultSolver(upper, problem.linear, stacked, right, cones, options).solve()
    status = _CLARABEL_STATUS.get(str(solved.status))
    if status is None:
        raise SolverFailed("clarabel", str(solved.status))
    duals = np.asarray(solved.z)
    multipliers = np.zeros(len(problem.lower))
    first, second = int(equal.sum()), int(equal.sum() + above.sum())
    multipliers[equal] = duals[:first]
    multipliers[above] += duals[first:second]
    multipliers[below] -= duals[second:]
    return Solution(
        status=status,
        x=np.asarray(solved.x, dtype=np.float64),
        multipliers=multipliers,
        backend="clarabel",
        iteration_count=int(solved.iterations),
    )


def _solve_osqp(problem: QuadraticProgram, settings: SolveSettings) -> Solution:
    return WarmSolver(problem, settings).solve()


BACKENDS: dict[str, Callable[[QuadraticProgram, SolveSettings], Solution]] = {
    "clarabel": _solve_clarabel,
    "osqp": _solve_osqp,
}


class WarmSolver:
    """Solve one problem many times with changing linear cost and bounds.

    The matrices are factored once; each solve starts from the last solution. If OSQP does not
    reach the tolerance, the problem is solved by Clarabel, so a result is always accurate.
    """

    def __init__(
        self,
        problem: QuadraticProgram,
        settings: SolveSettings = SolveSettings(),
    ) -> None:
        self._problem, self._settings = problem, settings
        self._solver: Any = osqp.OSQP()
        self._solver.setup(
            P=sparse.triu(problem.quadratic, format="csc"),
            q=problem.linear,
            A=problem.matrix,
            l=problem.lower,
            u=problem.upper,
            verbose=False,
            eps_abs=settings.tolerance,
            eps_rel=settings.tolerance,
            max_iter=settings.iteration_count_max or 20_000,
            check_termination=10,
            polishing=False,
        )

    def solve(
        self, linear: Floats | None = None, lower: Floats | None = None, upper: Floats | None = None
    ) -> Solution:
        """Solve again with what changed; everything else stays as it was."""
        old = self._problem
        self._problem = QuadraticProgram(
            quadratic=old.quadratic,
            linear=old.linear if linear is None else linear,
            matrix=old.matrix,
            lower=old.lower if lower is None else lower,
            upper=old.upper if upper is None else upper,
        )
        changes = {"q": linear, "l": lower, "u": upper}
        self._solver.update(**{k: v for k, v in changes.items() if v is not None})
        solved = self._solver.solve(raise_error=False)
        status = _OSQP_STATUS.get(str(solved.info.status).strip())
        if status is None or status is SolveStatus.ITERATION_LIMIT:
            return solve(self._problem, "clarabel", self._settings)
        return Solution(
            status=status,
            x=np.asarray(solved.x, dtype=np.float64),
            multipliers=np.asarray(solved.y, dtype=np.float64),
            backend="osqp",
            iteration_count=int(solved.info.iter),
        )
