"""A program with its bounds apart and without what is decided, as PIQP takes it.

PIQP [Schwan, Jiang, Kuhn and Jones 2023] keeps bounds of single variables out of the systems that
it factors: with a battery's ranges as rows these systems are several times as large.
"""

from dataclasses import dataclass

import numpy as np
import piqp
from numpy.typing import NDArray
from scipy import sparse

from veilgrid.qp.problem import Floats, QuadraticProgram, Solution, SolveStatus

Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which bounds there are; a form serves a problem as long as these stay.

    Attributes
    ----------
    equal, has_lower, has_upper : (row,)
    """

    equal: Flags
    has_lower: Flags
    has_upper: Flags

    @classmethod
    def of(cls, problem: QuadraticProgram) -> "Kinds":
        """Read them off a problem."""
        lower, upper = problem.lower, problem.upper
        return cls(lower == upper, np.isfinite(lower), np.isfinite(upper))

    def are_those_of(self, problem: QuadraticProgram) -> bool:
        """Whether a problem's bounds are of the same kinds."""
        other = Kinds.of(problem)
        return bool(
            np.array_equal(self.equal, other.equal)
            and np.array_equal(self.has_lower, other.has_lower)
            and np.array_equal(self.has_upper, other.has_upper)
        )


class BoxedForm:
    """One problem prepared for PIQP; linear cost and bounds may change.

    Variables with equal bounds are put in as numbers. Rows that hold one variable are its bounds,
    rows without variables are checked, rows without bounds are left out.
    """

    def __init__(self, problem: QuadraticProgram, tolerance: float, count_max: int | None) -> None:
        self._kinds = kinds = Kinds.of(problem)
        self._matrix = matrix = sparse.csr_matrix(problem.matrix)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        box, factor = _boxes(matrix, kinds)
        has_box = box >= 0
        is_fixed = np.zeros(len(box), dtype=bool)
        is_fixed[has_box] = kinds.equal[box[has_box]]
        self._fixed, self._free = np.flatnonzero(is_fixed), np.flatnonzero(~is_fixed)
        self._fixed_box, self._fixed_factor = box[is_fixed], factor[is_fixed]
        self._is_boxed = has_box[self._free]
        self._box, self._factor = (part[self._free][self._is_boxed] for part in (box, factor))
        is_row = kinds.has_lower | kinds.has_upper
        is_row[box[has_box]] = False
        inner = matrix[:, self._free]
        has_entry = np.diff(inner.indptr) > 0
        self._constant = np.flatnonzero(is_row & ~has_entry)
        self._equal = np.flatnonzero(is_row & has_entry & kinds.equal)
        self._between = np.flatnonzero(is_row & has_entry & ~kinds.equal)
        quadratic = sparse.csr_matrix(problem.quadratic)
        self._tolerance = tolerance
        self._moving = quadratic[:, self._fixed]
        self._fixed_matrix = matrix[:, self._fixed]
        self._slopes = quadratic[self._fixed], sparse.csr_matrix(self._fixed_matrix.T)
        self._bounded = problem
        bounds = self._bounds(problem)
        self._solver = _solver(tolerance, count_max)
        if not len(self._free):
            return
        if len(self._between):
            bounds["G"] = sparse.csc_matrix(inner[self._between])
        self._solver.setup(
            sparse.csc_matrix(quadratic[self._free][:, self._free]),
            (problem.linear + self._moved)[self._free],
            sparse.csc_matrix(inner[self._equal]),
            **bounds,
        )

    def _bounds(self, problem: QuadraticProgram) -> dict[str, object]:
        """Put fixed variables in; return right sides as PIQP names them."""
        self._values = problem.lower[self._fixed_box] / self._fixed_factor
        self._moved = self._moving @ self._values
        shift = self._fixed_matrix @ self._values
        lower, upper = problem.lower - shift, problem.upper - shift
        self._is_contradicted = bool(
            (lower[self._constant] > self._tolerance).any()
            or (upper[self._constant] < -self._tolerance).any()
        )
        ends = np.full((2, len(self._free)), [[-np.inf], [np.inf]])
        ends[0, self._is_boxed] = problem.lower[self._box] / self._factor
        ends[1, self._is_boxed] = problem.upper[self._box] / self._factor
        found: dict[str, object] = {
            "b": lower[self._equal],
            "x_l": ends.min(axis=0),
            "x_u": ends.max(axis=0),
        }
        if len(self._between):
            found |= {"h_l": lower[self._between], "h_u": upper[self._between]}
        return found

    def fits(self, problem: QuadraticProgram) -> bool:
        """Whether each row's bounds are still of the kind that the form was prepared for."""
        former = self._bounded
        is_same = problem.lower is former.lower and problem.upper is former.upper
        return is_same or self._kinds.are_those_of(problem)

    def solve(self, problem: QuadraticProgram) -> Solution | None:
        """Solve; ``None`` where PIQP comes to no solution, whatever the reason."""
        changes: dict[str, object] = {}
        former = self._bounded
        if problem.lower is not former.lower or problem.upper is not former.upper:
            changes, self._bounded = self._bounds(problem), problem
        if self._is_contradicted:
            return None
        x, multipliers, steps = np.zeros(len(problem.linear)), np.zeros(len(problem.lower)), 0
        x[self._fixed] = self._values
        if len(self._free):
            self._solver.update(c=(problem.linear + self._moved)[self._free], **changes)
            if self._solver.solve() != piqp.PIQP_SOLVED:
                return None
            found = self._solver.result
            steps = int(found.info.iter)
            x[self._free] = found.x
            multipliers[self._equal] = found.y
            multipliers[self._between] = found.z_u - found.z_l
            pushes = (found.z_bu - found.z_bl)[self._is_boxed]
            multipliers[self._box] = pushes / self._factor
        if len(self._fixed):
            costs, rows = self._slopes
            slope = costs @ x + problem.linear[self._fixed] + rows @ multipliers
            multipliers[self._fixed_box] = -slope / self._fixed_factor
        return Solution(
            status=SolveStatus.OPTIMAL,
            x=x,
            multipliers=multipliers,
            backend="piqp",
            iteration_count=steps,
        )


def _boxes(matrix: sparse.csr_matrix, kinds: Kinds) -> tuple[Integers, Floats]:
    """Return for each variable the last row that holds it alone, -1 without, and its factor."""
    count = np.diff(matrix.indptr)
    rows = np.flatnonzero((count == 1) & (kinds.has_lower | kinds.has_upper))
    places = matrix.indptr[rows]
    box = np.full(matrix.shape[1], -1, dtype=np.int64)
    factor = np.ones(matrix.shape[1])
    box[matrix.indices[places]] = rows
    factor[matrix.indices[places]] = matrix.data[places]
    return box, factor


def _solver(tolerance: float, count_max: int | None) -> "piqp.SparseSolver":
    solver = piqp.SparseSolver()
    settings = solver.settings
    settings.eps_abs = settings.eps_rel = tolerance
    settings.eps_duality_gap_abs = settings.eps_duality_gap_rel = tolerance
    settings.preconditioner_reuse_on_update = True
    if count_max is not None:
        settings.max_iter = count_max
    return solver
