"""A convex quadratic program, its solution, and the certificate that checks one against the other.

``min x'Hx/2 + c.x`` subject to ``lower <= A x <= upper``; a row with equal bounds is an equality.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from veilgrid.errors import invariant

Floats = NDArray[np.float64]


class SolveStatus(StrEnum):
    """How a solve ended."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    UNBOUNDED = "unbounded"
    ITERATION_LIMIT = "iteration_limit"


@dataclass(frozen=True, kw_only=True)
class QuadraticProgram:
    """Data of a quadratic program.

    Attributes
    ----------
    quadratic : (variable, variable)
        H, symmetric and positive semidefinite, both triangles stored.
    linear : (variable,)
    matrix : (row, variable)
    lower, upper : (row,)
        May be infinite.
    """

    quadratic: sparse.csc_matrix
    linear: Floats
    matrix: sparse.csc_matrix
    lower: Floats
    upper: Floats

    def __post_init__(self) -> None:
        rows, columns = self.matrix.shape
        invariant(self.quadratic.shape == (columns, columns), "H is square over the variables")
        invariant(self.linear.shape == (columns,), "one linear cost for each variable")
        invariant(self.lower.shape == self.upper.shape == (rows,), "two bounds for each row")
        invariant(bool((self.lower <= self.upper).all()), "no lower bound exceeds its upper bound")

    def objective(self, x: Floats) -> float:
        """Return the cost of x."""
        return float(0.5 * x @ (self.quadratic @ x) + self.linear @ x)


class Certificate(NamedTuple):
    """How far a claimed solution is from optimal, recomputed from the data [model 5].

    Attributes
    ----------
    primal
        Largest violation of a row.
    dual
        Largest component of ``Hx + c + A'y``.
    gap
        (objective - lower bound) / max(1, |objective|).
    """

    primal: float
    dual: float
    gap: float

    def is_accepted(
        self, primal_max: float = 1e-6, dual_max: float = 1e-4, gap_max: float = 5e-4
    ) -> bool:
        """Whether all three stay within tolerance; a NaN never does."""
        return self.primal <= primal_max and self.dual <= dual_max and abs(self.gap) <= gap_max


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a back-end returned; never trusted, see :meth:`certificate`.

    Attributes
    ----------
    x : (variable,)
    multipliers : (row,)
        y with ``Hx + c + A'y = 0``; positive at the upper bound, negative at the lower.
    """

    status: SolveStatus
    x: Floats
    multipliers: Floats
    backend: str
    iteration_count: int

    def certificate(self, problem: QuadraticProgram) -> Certificate:
        """Recompute primal residual, dual residual and gap from the data alone."""
        x, y = self.x, self.multipliers
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return Certificate(np.inf, np.inf, np.inf)
        activity = problem.matrix @ x
        primal = max(
            float(np.max(problem.lower - activity, initial=0.0)),
            float(np.max(activity - problem.upper, initial=0.0)),
        )
        stationary = problem.quadratic @ x + problem.linear + problem.matrix.T @ y
        # A multiplier at an infinite bound proves nothing: it counts as a dual violation.
        up, down = np.maximum(y, 0.0), np.minimum(y, 0.0)
        no_upper, no_lower = np.isinf(problem.upper), np.isinf(problem.lower)
        misplaced = max(
            float(np.max(up[no_upper], initial=0.0)), float(np.max(-down[no_lower], initial=0.0))
        )
        support = up[~no_upper] @ problem.upper[~no_upper]
        support += down[~no_lower] @ problem.lower[~no_lower]
        objective = problem.objective(x)
        bound = float(-0.5 * x @ (problem.quadratic @ x) - support)
        return Certificate(
            primal=primal,
            dual=max(float(np.max(np.abs(stationary), initial=0.0)), misplaced),
            gap=(objective - bound) / max(1.0, abs(objective)),
        )
