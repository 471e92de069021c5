"""Conditions of optimality on an active set, factored once and changed row by row.

On an active set the conditions are one symmetric system. A change of few rows borders the factored
system instead of factoring anew [Gill, Murray, Saunders and Wright 1990]: a row that joins is one
more equation, a row that leaves one more unknown, its slack.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from veilgrid.qp.problem import Floats

Integers = NDArray[np.int64]

CHANGED_MAX = 60
"""Rows that may join or leave before the system is factored anew."""

SOFT_PRIMAL = 1e-7
SOFT_DUAL = 1e-9
"""Added to the factored diagonal only; refinement against the true system takes them out."""

REFINEMENT_COUNT = 8

REFINED = 1e-14
"""Residual, relative to the right side, at which refinement ends."""


class ActiveSystem:
    """Solve ``H y + A' f = -c, A y = b`` for changing active rows and costs.

    Parameters
    ----------
    quadratic : (masked, masked)
    rows : (row, masked)
        All rows; active ones are chosen by index.
    active : (active row,)
        Those that are factored.

    Raises
    ------
    scipy.linalg.LinAlgError
        Rows depend on each other too closely for a factor; so does `move`.
    """

    def __init__(self, quadratic: Floats, rows: Floats, active: Integers) -> None:
        self._quadratic, self._all, self._base = quadratic, rows, active
        self._width = width = len(quadratic)
        size = width + len(active)
        soft = np.zeros((size, size), order="F")
        soft[:width, :width] = quadratic
        soft[width:, :width] = rows[active]
        soft[:width, width:] = rows[active].T
        diagonal = np.arange(size)
        soft[diagonal, diagonal] += np.where(diagonal < width, SOFT_PRIMAL, -SOFT_DUAL)
        self._factor = _factored(soft)
        self._place = {int(row): width + k for k, row in enumerate(active)}
        self._border: dict[tuple[str, int], tuple[Floats, Floats]] = {}
        self.rows = active
        self._change(active)

    def reaches(self, rows: Integers) -> bool:
        """Whether another active set is near enough to border the factored system."""
        return len(np.setxor1d(rows, self._base, assume_unique=True)) <= CHANGED_MAX

    def move(self, rows: Integers) -> None:
        """Go over to another active set."""
        self.rows = rows
        self._change(rows)

    def _change(self, rows: Integers) -> None:
        joined = np.setdiff1d(rows, self._base, assume_unique=True)
        left = np.setdiff1d(self._base, rows, assume_unique=True)
        self._joined, self._kept = joined, np.isin(self._base, rows)
        keys = [("join", int(row)) for row in joined] + [("leave", int(row)) for row in left]
        missing = [key for key in keys if key not in self._border]
        if missing:
            columns = np.stack([self._column(key) for key in missing], axis=1)
            solved = linalg.lu_solve(self._factor, columns, check_finite=False)
            for k, key in enumerate(missing):
                self._border[key] = columns[:, k], solved[:, k]
        if not keys:
            self._columns = self._solved = None
            return
        self._columns = np.stack([self._border[key][0] for key in keys], axis=1)
        self._solved = np.stack([self._border[key][1] for key in keys], axis=1)
        corner = -(self._columns.T @ self._solved)
        corner[np.arange(len(joined)), np.arange(len(joined))] -= SOFT_DUAL
        self._corner = _factored(corner)

    def _column(self, key: tuple[str, int]) -> Floats:
        column = np.zeros(self._width + len(self._base))
        kind, row = key
        if kind == "join":
            column[: self._width] = self._all[row]
        else:
            column[self._place[row]] = 1.0
        return column

    def solve(self, linear: Floats, bound: Floats) -> tuple[Floats, Floats]:
        """Return y (masked,) and multipliers of all rows (row,), zero where not active."""
        width, rows = self._width, self.rows
        y, force = np.zeros(width), np.zeros(len(self._all))
        size = max(1.0, float(np.max(np.abs(linear), initial=0.0)))
        active = self._all[rows]
        before = np.inf
        for _ in range(REFINEMENT_COUNT):
            off = -linear - self._quadratic @ y - active.T @ force[rows]
            gone = bound[rows] - active @ y
            worst = max(
                float(np.max(np.abs(off), initial=0.0)) / size,
                float(np.max(np.abs(gone), initial=0.0)),
            )
            if worst <= REFINED or worst > 0.5 * before:
                break
            before = worst
            step, push = self._step(off, gone)
            y = y + step
            force[rows] += push
        return y, force

    def _step(self, off: Floats, gone: Floats) -> tuple[Floats, Floats]:
        """Solve the bordered, softened system for residuals of costs and of active rows."""
        width, rows, joined = self._width, self.rows, self._joined
        kept = self._base[self._kept]
        push = np.zeros(len(self._all))
        push[rows] = gone
        right = np.zeros(width + len(self._base))
        right[:width] = off
        right[width:][self._kept] = push[kept]
        found = linalg.lu_solve(self._factor, right, check_finite=False)
        if self._columns is not None and self._solved is not None:
            wanted = np.zeros(self._columns.shape[1])
            wanted[: len(joined)] = push[joined]
            extra = linalg.lu_solve(
                self._corner, wanted - self._columns.T @ found, check_finite=False
            )
            found = found - self._solved @ extra
            push[joined] = extra[: len(joined)]
        push[kept] = found[width:][self._kept]
        return found[:width], push[rows]


def _factored(matrix: Floats) -> tuple[Floats, Integers]:
    """Return what `lu_solve` takes; rows that repeat each other leave no pivot."""
    factor, pivots, info = linalg.lapack.dgetrf(matrix, overwrite_a=True)
    if info != 0:
        raise linalg.LinAlgError(f"no pivot in row {info}")
    return factor, pivots
