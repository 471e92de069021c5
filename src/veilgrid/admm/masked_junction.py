"""A site's part of neighbours' published form as one problem in standard form, ready to be masked.

Variables are the site's own set-points, its copies of the flow from its parent and of the parent's
squared voltage, its own squared voltage, and what flows on to its children, as one sum: how that
sum is shared among the children follows from their targets, and the edge device does it
[masking 3.2; neighbour 2].
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from veilgrid.admm._neighbour_local import Answer, Junctions, Targets, polygon
from veilgrid.admm.masked_site import one_sided, widened
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.qp.mask import StandardForm


@dataclass(frozen=True, kw_only=True)
class JunctionForm:
    """The local problem of one site that is not the substation.

    Attributes
    ----------
    problem
        Its linear cost is that of the devices alone.
    junction
        Public constants, site axis of one.
    charging
        Reactive injection of line charging, per-unit.
    own_count
        Number of the site's own set-points; the copies follow.
    """

    site: Site = field(repr=False)
    problem: StandardForm = field(repr=False)
    junction: Junctions = field(repr=False)
    charging: float
    own_count: int

    @property
    def coupling(self) -> slice:
        """Where the copies lie among the variables: flow P, Q, parent's voltage, own, outflow."""
        return slice(self.own_count, self.problem.equal.shape[1])

    def linear(self, targets: Targets) -> Floats:
        """Return the linear cost, (variable,), for targets with a site axis of one."""
        junction = self.junction
        pulls = [
            junction.penalty[0, :, np.newaxis] * targets.own[0],
            junction.voltage_penalty[0] * targets.voltage,
        ]
        if junction.slack.any():
            pulls.append(targets.outflow[0] / junction.slack[0][:, np.newaxis])
        pulled = np.concatenate([pull.ravel() for pull in pulls])
        return np.concatenate([self.problem.linear[: self.own_count], -pulled])

    def answer(self, x: Floats, targets: Targets) -> tuple[Floats, Answer]:
        """Cut a solution into set-points, inside their bounds, and copies."""
        site, junction, count = self.site, self.junction, self.site.interval_count
        own, copies = x[: self.own_count], x[self.own_count :].reshape(-1, count)
        setpoints = np.clip(own, site.lower, site.upper)
        if junction.slack.any():
            price = (targets.outflow[0] - copies[4:]) / junction.slack[0][:, np.newaxis]
        else:
            off = junction.penalty[0, :, np.newaxis] * (copies[:3] - targets.own[0])
            price = off[:2] + np.outer(junction.impedance[0], off[2])
        demand = np.stack([site.demand_p(own), site.demand_q(own) - self.charging])
        found = (copies[:3], copies[3], price, demand)
        return setpoints, Answer(*(part[np.newaxis] for part in found))


def junction_form(site: Site, junction: Junctions, charging: float) -> JunctionForm:
    """Write a site's local problem in standard form.

    Parameters
    ----------
    site
        Its own data.
    junction
        Public constants, site axis of one; not of the substation.
    charging
        Reactive injection of line charging, per-unit.
    """
    own, count = len(site.linear), site.interval_count
    is_leaf = not bool(junction.slack.any())
    copies = 4 if is_leaf else 6
    wide = own + copies * count
    identity, rows = sparse.identity(count, format="csr"), site.matrix.tocsr()
    is_equal = site.row_lower == site.row_upper
    weights = [*junction.penalty[0], junction.voltage_penalty[0]]
    if not is_leaf:
        weights += list(1.0 / junction.slack[0])
    matrix, bound = one_sided(site, ~is_equal, wide)
    limits, limits_to = _limits(junction, own, copies, identity)
    load = [site.load_p, site.load_q - charging, np.zeros(count)]
    return JunctionForm(
        site=site,
        problem=StandardForm(
            quadratic=sparse.diags(
                np.concatenate([site.quadratic, np.repeat(weights, count)]), format="csr"
            ),
            linear=np.concatenate([site.linear, np.zeros(copies * count)]),
            equal=sparse.csr_matrix(
                sparse.vstack(
                    [widened(rows[is_equal], wide), *_balances(site, junction, copies, identity)]
                )
            ),
            equal_to=np.concatenate([site.row_lower[is_equal], *load]),
            matrix=sparse.csr_matrix(sparse.vstack([matrix, limits])),
            bound=np.concatenate([bound, limits_to]),
        ),
        junction=junction,
        charging=charging,
        own_count=own,
    )


def _balances(
    site: Site, junction: Junctions, copies: int, identity: sparse.csr_matrix
) -> list[sparse.csr_matrix]:
    """Return rows: balance of P and Q, and the voltage drop of the branch from the parent."""
    none = sparse.csr_matrix(identity.shape)
    nothing = sparse.csr_matrix((identity.shape[0], len(site.linear)))
    resistance, reactance = float(junction.resistance[0]), float(junction.reactance[0])
    p, q = [identity, none, none, none], [none, identity, none, none]
    drop = [-resistance * identity, -reactance * identity, identity, -identity]
    if copies == 6:
        p, q, drop = [*p, -identity, none], [*q, none, -identity], [*drop, none, none]
    return [
        sparse.csr_matrix(sparse.hstack([site.inject_p, *p])),
        sparse.csr_matrix(sparse.hstack([site.inject_q, *q])),
        sparse.csr_matrix(sparse.hstack([nothing, *drop])),
    ]


def _limits(
    junction: Junctions, own: int, copies: int, identity: sparse.csr_matrix
) -> tuple[sparse.csr_matrix, Floats]:
    """Return the site's voltage limits and the rating of its branch as rows."""
    count = identity.shape[0]
    parts, bounds = [sparse.csr_matrix((0, own + copies * count))], [np.zeros(0)]

    def add(coefficients: Floats, bound: float) -> None:
        """Add one row an interval over the first four copies."""
        weights = np.concatenate([coefficients, np.zeros(copies - 4)])[np.newaxis]
        row = sparse.kron(sparse.csr_matrix(weights), identity)
        parts.append(sparse.hstack([sparse.csr_matrix((count, own)), row]))
        bounds.append(np.full(count, bound))

    if np.isfinite(junction.squared_min):
        add(np.array([0.0, 0.0, 0.0, -1.0]), -junction.squared_min)
    if np.isfinite(junction.squared_max):
        add(np.array([0.0, 0.0, 0.0, 1.0]), junction.squared_max)
    reach = float(junction.reach[0])
    if np.isfinite(reach):
        for side in polygon():
            add(np.array([*side, 0.0, 0.0]), reach)
    return sparse.csr_matrix(sparse.vstack(parts)), np.concatenate(bounds)
