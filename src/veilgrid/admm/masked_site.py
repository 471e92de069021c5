"""A site's part of exchange ADMM as one problem in standard form, ready to be masked.

Variables are the site's own set-points, then its net demand, active and - where limits exist -
reactive; the balance rows tie them together. The net demands are the coupling variables: only
their recovery rows leave the edge device [masking 2].
"""

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.qp.mask import StandardForm


@dataclass(frozen=True, kw_only=True)
class SiteForm:
    """A site's problem near a target, and its cheapest answer to a price alone.

    Attributes
    ----------
    problem
        With the penalty on net demand; its linear cost is that of the devices alone.
    cheapest : (variable, variable)
        The quadratic cost without penalty.
    penalty_p, penalty_q : >= 0
    own_count
        Number of the site's own set-points; net demands follow.
    """

    site: Site = field(repr=False)
    problem: StandardForm = field(repr=False)
    cheapest: sparse.csr_matrix = field(repr=False)
    penalty_p: float
    penalty_q: float
    own_count: int

    def scaled(self, scale: float) -> "SiteForm":
        """Return the same bid with all penalties multiplied by a number > 0."""
        whole = self.problem.quadratic
        quadratic = sparse.csr_matrix(whole + (scale - 1.0) * (whole - self.cheapest))
        return replace(
            self,
            problem=replace(self.problem, quadratic=quadratic),
            penalty_p=scale * self.penalty_p,
            penalty_q=scale * self.penalty_q,
        )

    @property
    def has_reactive(self) -> bool:
        """Whether reactive demand is among the variables."""
        return self.penalty_q > 0.0

    @property
    def active(self) -> slice:
        """Where active net demand lies among the variables."""
        return slice(self.own_count, self.own_count + self.site.interval_count)

    @property
    def coupling(self) -> slice:
        """Where all net demands lie among the variables."""
        return slice(self.own_count, self.problem.equal.shape[1])

    def linear(
        self,
        price_p: Floats,
        price_q: Floats,
        target_p: Floats | float = 0.0,
        target_q: Floats | float = 0.0,
        *,
        is_cheapest: bool = False,
    ) -> Floats:
        """Return the linear cost of one offer, (variable,); prices and targets (interval,)."""
        pull = 0.0 if is_cheapest else 1.0
        parts = [
            self.problem.linear[: self.own_count],
            price_p - pull * self.penalty_p * target_p,
        ]
        if self.has_reactive:
            parts.append(price_q - pull * self.penalty_q * target_q)
        return np.concatenate(parts)

    def demands(self, coupling: Floats) -> tuple[Floats, Floats | None]:
        """Cut recovered coupling variables into active and reactive demand (interval,)."""
        count = self.site.interval_count
        return coupling[:count], coupling[count:] if self.has_reactive else None


def site_form(site: Site, penalty_p: float, penalty_q: float = 0.0) -> SiteForm:
    """Write a site's subproblem in standard form.

    Parameters
    ----------
    site
        Its own data.
    penalty_p, penalty_q : >= 0, currency per per-unit squared and interval
        Without limits ``penalty_q`` is zero and reactive demand is left out.
    """
    own, count = len(site.linear), site.interval_count
    flows = 2 if penalty_q > 0.0 else 1
    wide = own + flows * count
    is_equal = site.row_lower == site.row_upper
    rows = site.matrix.tocsr()
    identity = sparse.identity(flows * count, format="csr")
    injects = [site.inject_p, site.inject_q][:flows]
    balance = sparse.hstack([sparse.vstack(injects), identity])
    loads = [site.load_p, site.load_q][:flows]
    costs = np.concatenate([site.quadratic, np.zeros(flows * count)])
    pulls = [np.full(count, penalty) for penalty in (penalty_p, penalty_q)[:flows]]
    matrix, bound = one_sided(site, ~is_equal, wide)
    return SiteForm(
        site=site,
        problem=StandardForm(
            quadratic=sparse.diags(costs + np.concatenate([np.zeros(own), *pulls]), format="csr"),
            linear=np.concatenate([site.linear, np.zeros(flows * count)]),
            equal=sparse.csr_matrix(sparse.vstack([widened(rows[is_equal], wide), balance])),
            equal_to=np.concatenate([site.row_lower[is_equal], *loads]),
            matrix=matrix,
            bound=bound,
        ),
        cheapest=sparse.diags(costs, format="csr"),
        penalty_p=penalty_p,
        penalty_q=penalty_q,
        own_count=own,
    )


def widened(rows: sparse.csr_matrix, wide: int) -> sparse.csr_matrix:
    """Return rows over more variables, zero in those that are new."""
    return sparse.csr_matrix((rows.data, rows.indices, rows.indptr), shape=(rows.shape[0], wide))


def one_sided(site: Site, is_row: "np.ndarray", wide: int) -> tuple[sparse.csr_matrix, Floats]:
    """Return all bounds and inequality rows as ``G x <= h``: lower bounds, upper bounds, rows."""
    unit = sparse.identity(len(site.linear), format="csr")
    rows = site.matrix.tocsr()[is_row]
    parts, bounds = [], []
    for matrix, bound in (
        (-unit, -site.lower),
        (unit, site.upper),
        (-rows, -site.row_lower[is_row]),
        (rows, site.row_upper[is_row]),
    ):
        is_finite = np.isfinite(bound)
        parts.append(widened(sparse.csr_matrix(matrix)[is_finite], wide))
        bounds.append(bound[is_finite])
    return sparse.csr_matrix(sparse.vstack(parts)), np.concatenate(bounds)
