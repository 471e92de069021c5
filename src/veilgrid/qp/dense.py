"""Solve dense inequality-constrained programs again and again with a changing linear cost.

Masked problems have no sparsity left, so general sparse solvers are at their worst. Here ``H'`` and
``G'`` are prepared once; a solve first tries the last active set, whose factor is kept, and falls
back to a predictor-corrector interior-point method [Mehrotra 1992] whose only matrices have the
size of the masked variables. Nobody trusts the outcome: :func:`certificate` recomputes it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import linalg, sparse

from veilgrid.qp._active import ActiveSystem
from veilgrid.qp.mask import QUANTUM, MaskedProblem, opposite_unit_rows
from veilgrid.qp.problem import Certificate, Floats, QuadraticProgram
from veilgrid.qp.solve import solve

PRIMAL_MAX = 1e-6
DUAL_MAX = 1e-6
GAP_MAX = 1e-6
"""What validators accept; the last two are relative to the size of the problem's costs."""

ITERATION_COUNT_MAX = 60
CORRECTION_COUNT_MAX = 12
"""Exchanges of active rows that are tried before an interior point is asked [masking 4]."""

GOALS = (1e-8, 1e-11)
"""Residuals at which the interior point's active set is tried."""

STALLED_MAX = 4

WEIGHT_MAX = 1e20
"""Ceiling of a row's weight in the interior point's matrix."""


@dataclass(frozen=True, kw_only=True)
class DenseSolution:
    """A worker's claim: variables and multipliers, whole multiples of 1e-9.

    Attributes
    ----------
    y : (masked,), int64
    multipliers : (row,), int64
    """

    y: "np.ndarray[tuple[int], np.dtype[np.int64]]" = field(repr=False)
    multipliers: "np.ndarray[tuple[int], np.dtype[np.int64]]" = field(repr=False)
    method: str = ""

    @property
    def values(self) -> Floats:
        """The variables as numbers."""
        return np.asarray(self.y * QUANTUM)

    @property
    def octets(self) -> bytes:
        """What is hashed and stored: both arrays, little-endian."""
        return self.y.astype("<i8").tobytes() + self.multipliers.astype("<i8").tobytes()


def quantised(y: Floats, multipliers: Floats, method: str) -> DenseSolution:
    """Round to whole multiples of the quantum."""
    return DenseSolution(
        y=np.rint(y / QUANTUM).astype(np.int64),
        multipliers=np.rint(np.maximum(multipliers, 0.0) / QUANTUM).astype(np.int64),
        method=method,
    )


def certificate(problem: MaskedProblem, claim: DenseSolution) -> Certificate:
    """Recompute from the data how far a claim is from optimal [masking 4].

    Primal violation is measured along each row's unit normal, the other two against the size of
    the costs. Any fault of shape or sign counts as infinitely far.
    """
    rows, width = problem.matrix.shape
    never = Certificate(np.inf, np.inf, np.inf)
    if claim.y.shape != (width,) or claim.multipliers.shape != (rows,):
        return never
    if rows and int(claim.multipliers.min()) < 0:
        return never
    y, force = claim.values, claim.multipliers * QUANTUM
    slack = problem.bound - problem.matrix @ y
    primal = float(np.max(-slack / np.maximum(problem.lengths, 1e-12), initial=0.0))
    curved = problem.quadratic @ y
    pushed = problem.matrix.T @ force
    size = max(
        1.0, *(float(np.max(np.abs(v), initial=0.0)) for v in (problem.linear, curved, pushed))
    )
    costs = max(
        1.0,
        float(np.abs(problem.linear @ y)),
        float(y @ curved),
        float(force @ np.abs(problem.bound)),
    )
    return Certificate(
        primal=primal,
        dual=float(np.max(np.abs(curved + problem.linear + pushed), initial=0.0)) / size,
        gap=float(np.abs(force @ slack)) / costs,
    )


def is_acceptable(found: Certificate) -> bool:
    """Whether validators accept a claim with this certificate."""
    return found.is_accepted(PRIMAL_MAX, DUAL_MAX, GAP_MAX)


class DenseSolver:
    """Solve one masked problem for many c'.

    Parameters
    ----------
    problem
        Its H', G' and h' are prepared; its c' is only the first.
    """

    def __init__(self, problem: MaskedProblem) -> None:
        self._problem = problem
        self._length = np.where(problem.lengths > 0.0, problem.lengths, 1.0)
        self._rows = problem.matrix / self._length[:, np.newaxis]
        self._bound = problem.bound / self._length
        self._folded = _Folded(self._rows)
        self._is_curved = bool(np.any(problem.quadratic))
        self._active: ActiveSystem | None = None

    @property
    def active(self) -> "np.ndarray[tuple[int], np.dtype[np.int64]] | None":
        """Rows that the last solution touches, where a factor of them is kept."""
        return None if self._active is None else self._active.rows

    def has_rows_of(self, problem: MaskedProblem) -> bool:
        """Whether another problem has the same G' and h'; its costs may differ."""
        own = self._problem
        return bool(
            own.matrix.shape == problem.matrix.shape
            and np.array_equal(own.matrix, problem.matrix)
            and np.array_equal(own.bound, problem.bound)
        )

    def begin(self, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
        """Try these active rows first: those of a problem with the same rows, other costs."""
        self._prepare(rows)

    def solve(self, linear: Floats) -> DenseSolution:
        """Return the best point found for a new c', warm where possible."""
        if self._active is not None:
            found = self._correct(linear)
            if found is not None:
                return found
        inner = self._interior(linear)
        y, force = next(inner)
        for better in inner:
            y, force = better
            self._prepare(np.flatnonzero(force > self._bound - self._rows @ y))
            found = self._correct(linear)
            if found is not None:
                return found
        found = self._quantised(y, force, "interior point")
        if is_acceptable(certificate(replace(self._problem, linear=linear), found)):
            return found
        return self._general(linear)

    def _general(self, linear: Floats) -> DenseSolution:
        """Ask the general back-end where the own method does not get there."""
        rows = len(self._bound)
        solved = solve(
            QuadraticProgram(
                quadratic=sparse.csc_matrix(self._problem.quadratic),
                linear=linear,
                matrix=sparse.csc_matrix(self._rows),
                lower=np.full(rows, -np.inf),
                upper=self._bound,
            )
        )
        if len(solved.x) != len(linear):
            return self._quantised(np.zeros(len(linear)), np.zeros(rows), "none")
        return self._quantised(solved.x, solved.multipliers, solved.backend)

    def _quantised(self, y: Floats, force: Floats, method: str) -> DenseSolution:
        return quantised(y, force / self._length, method)

    def _is_good(self, linear: Floats, y: Floats, force: Floats) -> bool:
        size = max(1.0, float(np.max(np.abs(linear), initial=0.0)))
        residual = self._problem.quadratic @ y + linear + self._rows.T @ force
        slack = self._bound - self._rows @ y
        return bool(
            slack.min(initial=0.0) >= -1e-9
            and force.min(initial=0.0) >= -1e-9 * size
            and float(np.max(np.abs(residual), initial=0.0)) <= 1e-9 * size
        )

    def _prepare(self, rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> None:
        """Factor the conditions of optimality on an active set."""
        width, count = len(self._problem.linear), len(rows)
        is_regular = count <= 2 * width if self._is_curved else count == width
        if not is_regular:  # a linear program with many optima has no active set to solve on
            self._active = None
            return
        try:
            if self._active is not None and self._active.reaches(rows):
                self._active.move(rows)
            else:
                self._active = ActiveSystem(self._problem.quadratic, self._rows, rows)
        except linalg.LinAlgError:  # rows repeat each other: the interior point goes on
            self._active = None

    def _correct(
        self, linear: Floats, attempts: int = CORRECTION_COUNT_MAX
    ) -> DenseSolution | None:
        """Solve on the active set; exchange rows a few times where signs are wrong."""
        for _ in range(attempts):
            active = self._active
            if active is None:
                return None
            y, force = active.solve(linear, self._bound)
            if self._is_good(linear, y, force):
                return self._quantised(y, force, "active set")
            slack = self._bound - self._rows @ y
            is_in = np.zeros(len(force), dtype=bool)
            is_in[active.rows] = force[active.rows] > 0.0
            is_in |= slack < -1e-10
            rows = np.flatnonzero(is_in)
            if np.array_equal(rows, active.rows):
                return None
            self._prepare(rows)
        return None

    def _interior(self, linear: Floats) -> Iterator[tuple[Floats, Floats]]:
        """Take predictor-corrector steps; yield the start, then each point that reached a goal."""
        quadratic, rows, bound = self._problem.quadratic, self._folded, self._bound
        cost = max(1.0, float(np.max(np.abs(linear), initial=0.0)))
        y = _cholesky(quadratic / cost + rows.gram(np.ones(len(bound)))).solve(
            rows.pull(bound - 1.0) - linear / cost
        )
        slack = bound - rows.values(y)
        slack = np.maximum(slack, 1e-2 * max(1e-3, float(np.max(np.abs(slack), initial=0.0))))
        force = np.full(len(bound), 0.1 * cost)
        best: tuple[float, Floats, Floats] = (np.inf, y, force)
        shown, goals, stalled = np.inf, list(GOALS), 0
        yield y, force
        for _ in range(ITERATION_COUNT_MAX):
            off = quadratic @ y + linear + rows.pull(force)
            gone = rows.values(y) + slack - bound
            worst = max(
                float(np.max(np.abs(off), initial=0.0)) / cost,
                float(np.max(np.abs(gone), initial=0.0)),
                float(slack @ force) / cost,
            )
            stalled = 0 if worst < 0.9 * best[0] or best[0] > 1e-7 else stalled + 1
            if worst < best[0]:
                best = (worst, y, force)
            if worst <= goals[0]:
                shown = worst
                yield y, force
                goals = [goal for goal in goals if goal < worst]
            if not goals or stalled == STALLED_MAX:
                break
            weight = np.minimum(force / np.maximum(slack, 1e-200), WEIGHT_MAX)
            factor = _cholesky(quadratic + rows.gram(weight))
            mean = float(slack @ force) / max(1, len(bound))
            step = _step(factor, rows, off, gone, slack, force, slack * force)
            reach = min(_reach(slack, step[1], 1.0), _reach(force, step[2], 1.0))
            after = float((slack + reach * step[1]) @ (force + reach * step[2])) / len(bound)
            centre = (after / mean) ** 3 * mean
            wish = slack * force + step[1] * step[2] - centre
            step = _step(factor, rows, off, gone, slack, force, wish)
            reach = min(_reach(slack, step[1], 0.995), _reach(force, step[2], 0.995))
            y = y + reach * step[0]
            slack, force = slack + reach * step[1], force + reach * step[2]
        if best[0] < shown:
            yield best[1], best[2]


class _Folded:
    """Products with unit rows of which many are each other's negative, as bounds' rows are.

    Opposite rows share one direction, which halves every product; the weighted Gram matrix takes
    the symmetric product of that.
    """

    def __init__(self, rows: Floats) -> None:
        first, second = opposite_unit_rows(rows)
        keep = np.ones(len(rows), dtype=bool)
        keep[second] = False
        place = np.cumsum(keep) - 1
        place[second] = place[first]
        self._place, self._sign = place, np.where(keep, 1.0, -1.0)
        self._base = np.ascontiguousarray(rows[keep])
        self._across = np.ascontiguousarray(self._base.T)

    def values(self, y: Floats) -> Floats:
        """Return ``rows @ y``, (row,)."""
        return np.asarray(self._sign * (self._base @ y)[self._place])

    def pull(self, force: Floats) -> Floats:
        """Return ``rows.T @ force``, (masked,)."""
        return np.asarray(self._across @ self._gathered(self._sign * force))

    def gram(self, weight: Floats) -> Floats:
        """Return ``rows.T @ diag(weight) @ rows`` for weights >= 0."""
        scaled = self._across * np.sqrt(self._gathered(weight))
        return np.asarray(scaled @ scaled.T)

    def _gathered(self, values: Floats) -> Floats:
        return np.asarray(
            np.bincount(self._place, weights=values, minlength=len(self._base)), dtype=np.float64
        )


class _Factor:
    def __init__(self, matrix: Floats) -> None:
        self._factor = linalg.cho_factor(matrix, lower=True, check_finite=False)

    def solve(self, right: Floats) -> Floats:
        return np.asarray(linalg.cho_solve(self._factor, right, check_finite=False))


def _cholesky(matrix: Floats) -> _Factor:
    """Factor a positive definite matrix, lifted a little where it is not."""
    lift = 1e-14 * float(np.trace(matrix)) / max(1, len(matrix))
    for _ in range(8):
        try:
            return _Factor(matrix + lift * np.eye(len(matrix)))
        except linalg.LinAlgError:
            lift *= 100.0
    return _Factor(np.diag(np.diag(matrix)) + lift * np.eye(len(matrix)))


def _step(
    factor: _Factor,
    rows: _Folded,
    off: Floats,
    gone: Floats,
    slack: Floats,
    force: Floats,
    wish: Floats,
) -> tuple[Floats, Floats, Floats]:
    move = factor.solve(-off - rows.pull((force * gone - wish) / slack))
    change = -gone - rows.values(move)
    return move, change, -(wish + force * change) / slack


def _reach(values: Floats, step: Floats, share: float) -> float:
    is_down = step < 0.0
    if not is_down.any():
        return 1.0
    return min(1.0, share * float(np.min(-values[is_down] / step[is_down])))
