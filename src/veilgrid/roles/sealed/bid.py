"""What a site commits to at gate closure, and how it proves its part of a plan [sealed 5].

A bid is the site's own problem (:class:`veilgrid.grid.site.Site`) as integers. Which devices there
are, hence where its matrices have entries, stands in the operator's register; every number in it
is secret. A proof is the plan with multipliers at the agreed prices: feasibility, signs and
complementarity can then be checked without solving anything.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from scipy import sparse

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.grid.device import ElectricVehicleCharger, FlexibleLoad
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.roles.sealed.register import FACTOR_BITS, POWER_BITS, POWER_MAX, Integers

FACTOR_MAX: Final = 2**40
"""Bound of secret coefficients and curvatures in steps of ``2**-30``."""

PRICE_MAX: Final = 2**45
"""Bound of secret linear costs and multipliers in steps: 8,192 price units."""

WINDOWED: Final = (FlexibleLoad.kind, ElectricVehicleCharger.kind)
"""Kinds of devices that take energy within a window of their own."""

SLACK: Final = 4
"""Steps by which a proof's multipliers exceed what rounding might lack."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the register says about a site's problem; public.

    Attributes
    ----------
    name
        Of the bus.
    rows, columns : (entry,)
        Where the matrix of the site's own constraints has entries.
    row_count, variable_count, interval_count
    is_equality : (row,)
    has_lower, has_upper : (row,)
        Which rows are bounded below and above.
    inject_p : (interval, variable)
        Minus one, zero, one: which variables are active power.
    reactive_rows, reactive_columns : (entry,)
        Where variables move reactive power.
    curved : (entry,)
        Variables with a quadratic cost.
    """

    name: str
    rows: Integers
    columns: Integers
    row_count: int
    variable_count: int
    interval_count: int
    is_equality: "np.typing.NDArray[np.bool_]"
    has_lower: "np.typing.NDArray[np.bool_]"
    has_upper: "np.typing.NDArray[np.bool_]"
    inject_p: sparse.csr_matrix
    reactive_rows: Integers
    reactive_columns: Integers
    curved: Integers

    @classmethod
    def of(cls, site: Site) -> "Shape":
        """Read the shape of a site's problem."""
        rows, columns, _ = entries_of(site)
        reactive, active = site.inject_q.tocoo(), site.inject_p.tocsr()
        invariant(bool(np.all(np.abs(active.data) == 1.0)), "active power is plus or minus one")
        return cls(
            name=str(site.name),
            rows=rows,
            columns=columns,
            row_count=site.matrix.shape[0],
            variable_count=len(site.linear),
            interval_count=site.interval_count,
            is_equality=site.row_lower == site.row_upper,
            has_lower=np.isfinite(site.row_lower),
            has_upper=np.isfinite(site.row_upper),
            inject_p=active,
            reactive_rows=np.asarray(reactive.row, dtype=np.int64),
            reactive_columns=np.asarray(reactive.col, dtype=np.int64),
            curved=np.flatnonzero(site.quadratic),
        )

    def still(self) -> "Shape":
        """Return the shape of the same site without any choice: it takes its fallback."""
        nothing = np.zeros(0, dtype=np.int64)
        none = np.zeros(0, dtype=bool)
        return Shape(
            name=self.name,
            rows=nothing,
            columns=nothing,
            row_count=0,
            variable_count=0,
            interval_count=self.interval_count,
            is_equality=none,
            has_lower=none,
            has_upper=none,
            inject_p=sparse.csr_matrix((self.interval_count, 0)),
            reactive_rows=nothing,
            reactive_columns=nothing,
            curved=nothing,
        )

    @cached_property
    def bid_parts(self) -> dict[str, int]:
        """Return the parts of a bid in order, with their lengths."""
        n, m = self.variable_count, self.row_count
        return {
            "load_p": self.interval_count,
            "load_q": self.interval_count,
            "fallback_p": self.interval_count,
            "fallback_q": self.interval_count,
            "alone": 1,
            "fallback_cost": 1,
            "lower": n,
            "upper": n,
            "row_lower": m,
            "row_upper": m,
            "matrix": len(self.rows),
            "inject_q": len(self.reactive_rows),
            "quadratic": len(self.curved),
            "linear": n,
        }

    @property
    def bid_runs(self) -> list[tuple[int, int]]:
        """Return length and bound of each part of a bid."""
        bounds = {"matrix": FACTOR_MAX, "inject_q": FACTOR_MAX, "quadratic": FACTOR_MAX}
        bounds |= dict.fromkeys(("alone", "fallback_cost", "linear"), PRICE_MAX)
        return [(count, bounds.get(name, POWER_MAX)) for name, count in self.bid_parts.items()]

    @property
    def proof_runs(self) -> list[tuple[int, int]]:
        """Return length and bound of each part of a proof."""
        return [
            (count, POWER_MAX if name in ("x", "point") else PRICE_MAX)
            for name, count in self.proof_parts.items()
        ]

    @cached_property
    def proof_parts(self) -> dict[str, int]:
        """Return the parts of a proof in order, with their lengths."""
        n, m = self.variable_count, self.row_count
        return {
            "x": n,
            "point": len(self.curved),
            "above": n,
            "below": n,
            "row_above": m,
            "row_below": m,
        }


def entries_of(site: Site) -> tuple[Integers, Integers, Floats]:
    """Return rows, columns and values of a site's matrix where it may have entries.

    They follow from the kinds of its devices alone: a row about the energy of a window has one for
    every interval, though those outside are zero. When a car comes and goes is nobody's business.
    """
    own = site.matrix.tocoo()
    places = zip(own.col.tolist(), own.row.tolist(), strict=True)
    found = dict(zip(places, own.data.tolist(), strict=True))
    windowed = {span.device: span.start for span in site.spans if span.kind in WINDOWED}
    first = 0
    for device, _, count in site.row_names:
        if device in windowed:
            for row in range(first, first + count):
                for interval in range(site.interval_count):
                    found.setdefault((windowed[device] + interval, row), 0.0)
        first += count
    order = sorted(found)
    pairs = np.array(order, dtype=np.int64).reshape(-1, 2)
    rows, columns = np.ascontiguousarray(pairs[:, 1]), np.ascontiguousarray(pairs[:, 0])
    return rows, columns, np.array([found[place] for place in order], dtype=np.float64)


def fallback_of(site: Site) -> tuple[Floats, Floats]:
    """Return the net demands (interval,) of a site that nobody coordinates, per-unit."""
    return site.demand_p(site.uncontrolled), site.demand_q(site.uncontrolled)


def bid_of(site: Site, unit: float, cost_alone: float) -> Integers:
    """Return a site's bid as one vector of integers, in the order of :attr:`Shape.bid_parts`.

    Parameters
    ----------
    site
        Its problem.
    unit
        Price unit of the register.
    cost_alone
        What the site would pay alone, currency; it only serves to count who gains.

    Raises
    ------
    InputError
        A number is beyond the range of the scales; the device's site is named.
    """
    _, _, entries = entries_of(site)
    reactive = site.inject_q.tocoo()
    bounds = [
        np.where(np.isfinite(part), part, 0.0)
        for part in (site.lower, site.upper, site.row_lower, site.row_upper)
    ]
    powers = [site.load_p, site.load_q, *fallback_of(site)]
    amounts = (cost_alone, site.cost(site.uncontrolled))
    curved = site.quadratic[np.flatnonzero(site.quadratic)] / unit
    secret = [entries, reactive.data, curved]
    parts = [
        *(_steps(site, part, POWER_BITS, POWER_MAX) for part in powers),
        *(_steps(site, np.array([part / unit]), POWER_BITS, PRICE_MAX) for part in amounts),
        *(_steps(site, part, POWER_BITS, POWER_MAX) for part in bounds),
        *(_steps(site, part, FACTOR_BITS, FACTOR_MAX) for part in secret),
        _steps(site, site.linear / unit, POWER_BITS, PRICE_MAX),
    ]
    return np.concatenate(parts)


def _steps(site: Site, values: Floats, bits: int, bound: int) -> Integers:
    out = np.rint(np.asarray(values) * 2.0**bits)
    if not np.all(np.abs(out) <= bound):
        worst = float(np.max(np.abs(values)))
        problem = f"a coefficient of {worst:g} per-unit does not fit the fixed-point range"
        raise InputError([Finding(f"site {site.name}", problem, "use another base_mva")])
    return np.asarray(out, dtype=np.int64)


def proof_of(
    site: Site,
    x: Floats,
    point: Floats,
    row_multipliers: Floats,
    price_p: Floats,
    price_q: Floats,
    unit: float,
) -> Integers:
    """Return a site's proof as one vector of integers, in the order of :attr:`Shape.proof_parts`.

    Parameters
    ----------
    site
        Its problem.
    x : (variable,), per-unit
        The plan.
    point : (variable,), per-unit
        The site's cheapest answer to the prices, where its cost is made linear.
    row_multipliers : (row,), currency
        Of the site's own rows at ``point``; positive pushes up.
    price_p, price_q : (interval,), currency per per-unit
        The agreed prices.
    unit
        Price unit of the register.

    Notes
    -----
    Any point and any multipliers prove a lower bound of the site's cost. ``above - below`` is the
    reduced cost at them, split with a few steps to spare, so that rounding makes neither negative.
    """
    own = _grid(row_multipliers / unit, POWER_BITS)
    up = np.where(np.isfinite(site.row_lower), np.maximum(own, 0.0), 0.0)
    down = np.where(np.isfinite(site.row_upper), np.maximum(-own, 0.0), 0.0)
    is_equality = site.row_lower == site.row_upper
    up, down = np.where(is_equality, own, up), np.where(is_equality, 0.0, down)
    curved = np.flatnonzero(site.quadratic)
    bend = _grid(site.quadratic / unit, FACTOR_BITS) * _grid(point, POWER_BITS)
    matrix, reactive = site.matrix.copy(), site.inject_q.copy()
    matrix.data = _grid(matrix.data, FACTOR_BITS)
    reactive.data = _grid(reactive.data, FACTOR_BITS)
    reduced = (
        bend
        + _grid(site.linear / unit, POWER_BITS)
        - site.inject_p.T @ _grid(price_p / unit, POWER_BITS)
        - reactive.T @ _grid(price_q / unit, POWER_BITS)
        - matrix.T @ (up - down)
    )
    scale = 2.0**POWER_BITS
    rounded = np.rint(reduced * scale).astype(np.int64)
    above = np.maximum(rounded, 0) + SLACK
    rows = [np.rint(part * scale).astype(np.int64) for part in (up, down)]
    return np.concatenate(
        [
            _steps(site, x, POWER_BITS, POWER_MAX),
            _steps(site, point[curved], POWER_BITS, POWER_MAX),
            above,
            above - rounded,
            *rows,
        ]
    )


def _grid(values: Floats, bits: int) -> Floats:
    """Round to the integers that stand for the values on shares."""
    return np.asarray(np.rint(np.asarray(values) * 2.0**bits) / 2.0**bits)


def parts_of(vector: Integers, parts: dict[str, int]) -> dict[str, Integers]:
    """Cut a vector into its named parts."""
    ends = np.cumsum(list(parts.values()))
    invariant(len(vector) == int(ends[-1]), "a vector has the length of its parts")
    return dict(zip(parts, np.split(vector, ends[:-1]), strict=True))
