"""A device as linear constraints and costs, and how the kinds of devices build it."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from veilgrid.grid.horizon import Horizon
from veilgrid.grid.network import Floats

CAPABILITY_SIDES = 16
"""Sides of the polygon inside p^2 + q^2 = s^2 of an inverter; it gives up 1.9 % of the rating."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Constraints ``row_lower <= matrix x <= row_upper``, ``lower <= x <= upper`` and costs.

    Variables come in groups of one per interval (``groups``), group after group.

    Attributes
    ----------
    quadratic, linear : (variable,), currency
        Cost ``sum(quadratic x^2) / 2 + linear . x`` of the horizon, x in per-unit.
    lower, upper : (variable,), per-unit
    matrix : (row, variable)
    row_lower, row_upper : (row,), per-unit
    rows : names of the row groups with their lengths
    inject_p, inject_q : (interval, variable)
        Injection of active and reactive power per-unit of each variable.
    """

    groups: tuple[str, ...]
    quadratic: Floats
    linear: Floats
    lower: Floats
    upper: Floats
    matrix: sparse.csc_matrix
    row_lower: Floats
    row_upper: Floats
    rows: tuple[tuple[str, int], ...]
    inject_p: sparse.csr_matrix
    inject_q: sparse.csr_matrix


class Builder:
    """Collects groups of variables and rows of one device; powers and energies in MW and MWh."""

    def __init__(self, horizon: Horizon, base_mva: float) -> None:
        self.count = horizon.interval_count
        self.hours, self.base = horizon.hours, base_mva
        self.groups: list[str] = []
        self.parts: dict[str, list[Floats]] = {"quadratic": [], "linear": [], "low": [], "high": []}
        self.signs: list[tuple[float, float]] = []
        self.rows: list[tuple[str, dict[str, sparse.spmatrix], Floats, Floats]] = []

    def variable(
        self,
        group: str,
        lower_mw: float | Floats,
        upper_mw: float | Floats,
        *,
        cost: tuple[float, float] = (0.0, 0.0),
        inject: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Add one variable an interval; ``cost`` is (linear, quadratic) on MW."""
        linear, quadratic = cost
        full = np.ones(self.count)
        self.groups.append(group)
        self.parts["linear"].append(full * (linear * self.hours * self.base))
        self.parts["quadratic"].append(full * (quadratic * self.hours * self.base**2))
        self.parts["low"].append(full * (np.asarray(lower_mw) / self.base))
        self.parts["high"].append(full * (np.asarray(upper_mw) / self.base))
        self.signs.append(inject)

    def row(
        self,
        name: str,
        terms: dict[str, sparse.spmatrix],
        lower_mw: float | Floats,
        upper_mw: float | Floats,
    ) -> None:
        """Add rows ``lower <= sum of matrix @ group <= upper``."""
        length = next(iter(terms.values())).shape[0]
        full = np.ones(length)
        low = full * (np.asarray(lower_mw) / self.base)
        self.rows.append((name, terms, low, full * (np.asarray(upper_mw) / self.base)))

    def capability(self, active: dict[str, float], rating_mva: float) -> None:
        """Let reactive power ``q`` be free inside the polygon of an inverter's rating."""
        self.variable("q", -rating_mva, rating_mva, inject=(0.0, 1.0))
        identity = sparse.identity(self.count, format="csc")
        reach = rating_mva * math.cos(math.pi / CAPABILITY_SIDES)
        for side in range(CAPABILITY_SIDES):
            angle = 2.0 * math.pi * side / CAPABILITY_SIDES
            terms = {"q": identity * math.sin(angle)}
            terms |= {g: identity * (math.cos(angle) * sign) for g, sign in active.items()}
            self.row("apparent power", terms, -np.inf, reach)

    def build(self) -> Block:
        """Return all that was added as one block."""
        width = self.count * len(self.groups)
        start_of = {group: self.count * k for k, group in enumerate(self.groups)}
        placed, height = [], 0
        for _, terms, low, _ in self.rows:
            placed += [(height, start_of[group], term) for group, term in terms.items()]
            height += len(low)
        empty = np.zeros(0)
        return Block(
            groups=tuple(self.groups),
            quadratic=np.concatenate(self.parts["quadratic"]),
            linear=np.concatenate(self.parts["linear"]),
            lower=np.concatenate(self.parts["low"]),
            upper=np.concatenate(self.parts["high"]),
            matrix=assembled(placed, (height, width)).tocsc(),
            row_lower=np.concatenate([low for _, _, low, _ in self.rows] or [empty]),
            row_upper=np.concatenate([high for *_, high in self.rows] or [empty]),
            rows=tuple((name, len(low)) for name, _, low, _ in self.rows),
            inject_p=self._injection([p for p, _ in self.signs]),
            inject_q=self._injection([q for _, q in self.signs]),
        )

    def _injection(self, signs: list[float]) -> sparse.csr_matrix:
        """Return (interval, variable): each group of variables times its sign."""
        chosen = np.flatnonzero(signs)
        interval = np.arange(self.count)
        columns = (chosen[:, np.newaxis] * self.count + interval).ravel()
        data = np.repeat(np.asarray(signs, dtype=np.float64)[chosen], self.count)
        shape = (self.count, self.count * len(signs))
        return sparse.csr_matrix((data, (np.tile(interval, len(chosen)), columns)), shape=shape)


def assembled(
    parts: list[tuple[int, int, sparse.spmatrix]], shape: tuple[int, int]
) -> sparse.coo_matrix:
    """Put matrices, each with the row and column of its corner, into one of ``shape``.

    Zeros that a part stores are left out.
    """
    if not parts:
        return sparse.coo_matrix(shape)
    entries = [(part.tocoo(), row, column) for row, column, part in parts]
    data = np.concatenate([part.data for part, _, _ in entries])
    rows = np.concatenate([part.row + row for part, row, _ in entries])
    columns = np.concatenate([part.col + column for part, _, column in entries])
    is_set = data != 0.0
    return sparse.coo_matrix((data[is_set], (rows[is_set], columns[is_set])), shape=shape)
