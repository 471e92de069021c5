"""A site's edge device in the scheme ``masked``: it holds the bid and the key [masking 3, 5].

Everything that later iterations need follows from what is registered at gate closure: another
offer changes c', another scale of the penalties changes H' and c', G' and h' stay. Whoever holds
the recovery rows computes both anew and so checks what an edge device hands in.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from veilgrid.admm.masked_site import SiteForm
from veilgrid.grid.network import Floats
from veilgrid.qp.dense import DenseSolution
from veilgrid.qp.mask import (
    Mask,
    MaskedProblem,
    MaskOptions,
    RecoveryRows,
    draw_mask,
    linear_digest,
)
from veilgrid.roles.masked_task import Registration, with_linear
from veilgrid.secret import Randomness

LINEAR_TOLERANCE = 1e-9
"""By so much, relative, a c' may differ from the one that follows from the registered one."""


class Offer(NamedTuple):
    """Prices and targets of one site, (interval,), and the scale of its penalties."""

    price_p: Floats
    price_q: Floats
    target_p: Floats
    target_q: Floats
    scale: float = 1.0


Falsify = Callable[["EdgeDevice", Offer], Offer]
"""What a dishonest edge device makes of an offer before it masks it."""


@dataclass
class EdgeDevice:
    """A site's edge device: holds bid and key, makes tasks' data, recovers.

    Attributes
    ----------
    form
        The bid in standard form.
    near, cheapest
        The masked problems, with and without penalty, as they are registered.
    """

    form: SiteForm
    options: MaskOptions
    randomness: Randomness
    key: Mask = field(init=False, repr=False)
    near: MaskedProblem = field(init=False, repr=False)
    cheapest: MaskedProblem = field(init=False, repr=False)
    _forms: dict[float, SiteForm] = field(init=False, repr=False, default_factory=dict)
    _scaled: dict[float, MaskedProblem] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.remask()

    @property
    def name(self) -> str:
        """Of the site."""
        return str(self.form.site.name)

    def remask(self) -> None:
        """Draw a fresh key and mask the bid with it."""
        self.key = draw_mask(self.form.problem, self.randomness, self.options)
        self.near = self.key.masked()
        self.cheapest = replace(
            self.near,
            quadratic=self.key.quadratic(self.form.cheapest),
            linear=self.key.linear(self.form.problem.linear, self.form.cheapest),
        )
        self._scaled = {1.0: self.near}

    def registration(self) -> Registration:
        """Return what is recorded of the bid: digests only."""
        own = self.rows()
        return Registration(
            site=self.name,
            near=linear_digest(self.near.digest, self.near.linear),
            cheapest=linear_digest(self.cheapest.digest, self.cheapest.linear),
            rows=own.digest,
        )

    def rows(self) -> RecoveryRows:
        """Return the recovery rows of the net demands, for the coordinator."""
        return self.key.rows_for(self.form.coupling)

    def near_at(self, scale: float) -> MaskedProblem:
        """Return the registered problem with all penalties multiplied by a number; kept."""
        if scale not in self._scaled:
            form = self.form_at(scale).problem
            self._scaled[scale] = replace(
                self.near,
                quadratic=self.key.quadratic(form.quadratic),
                linear=self.key.linear(form.linear, form.quadratic),
            )
        return self._scaled[scale]

    def form_at(self, scale: float) -> SiteForm:
        """Return the bid with all penalties multiplied by a number."""
        if scale not in self._forms:
            self._forms[scale] = self.form.scaled(scale)
        return self._forms[scale]

    def problems(self) -> tuple[MaskedProblem, ...]:
        """Return all problems that were made under the present key."""
        return (self.cheapest, *self._scaled.values())

    def near_task(self, offer: Offer) -> MaskedProblem:
        """Mask one offer's linear cost."""
        form = self.form_at(offer.scale)
        linear = form.linear(offer.price_p, offer.price_q, offer.target_p, offer.target_q)
        linear = self.key.linear(linear, form.problem.quadratic)
        return with_linear(self.near_at(offer.scale), linear)

    def cheapest_task(self, price_p: Floats, price_q: Floats) -> MaskedProblem:
        """Mask the linear cost of prices alone."""
        linear = self.form.linear(price_p, price_q, is_cheapest=True)
        return with_linear(self.cheapest, self.key.linear(linear, self.form.cheapest))

    def setpoints(self, solution: DenseSolution) -> Floats:
        """Recover the site's own set-points, (variable,), inside their bounds."""
        site = self.form.site
        own = self.key.recover(solution.values)[: self.form.own_count]
        return np.clip(own, site.lower, site.upper)


class Public(NamedTuple):
    """What a coordinator needs of a site to compute its H' and c' anew.

    Attributes
    ----------
    near, cheapest
        The registered problems; their c' are those of the devices alone.
    rows
        Of the net demands.
    pull : (coupling variable,)
        Penalties on the net demands at scale one.
    """

    near: MaskedProblem
    cheapest: MaskedProblem
    rows: RecoveryRows
    pull: Floats

    @classmethod
    def of(cls, edge: EdgeDevice) -> "Public":
        """Take what an edge device registered."""
        form = edge.form
        flows = [form.penalty_p, form.penalty_q][: 2 if form.has_reactive else 1]
        pull = np.repeat(flows, form.site.interval_count)
        return cls(edge.near, edge.cheapest, edge.rows(), pull)

    def quadratic(self, scale: float) -> Floats:
        """Return the H' that follows for a scale of the penalties."""
        matrix = self.rows.matrix
        return np.asarray(self.near.quadratic + (scale - 1.0) * (matrix.T * self.pull) @ matrix)

    def near_linear(self, offer: Offer) -> Floats:
        """Return the c' that follows from the registered one and an offer."""
        price, target = self._coupled(offer)
        move = (offer.scale - 1.0) * self.pull * self.rows.offset
        move = move + price - offer.scale * self.pull * target
        return np.asarray(self.near.linear + self.rows.matrix.T @ move)

    def cheapest_linear(self, offer: Offer) -> Floats:
        """Return the c' without penalty that follows from the registered one and prices."""
        return np.asarray(self.cheapest.linear + self.rows.matrix.T @ self._coupled(offer)[0])

    def _coupled(self, offer: Offer) -> tuple[Floats, Floats]:
        """Return prices and targets in the order of the coupling variables."""
        if len(self.pull) == len(offer.price_p):
            return offer.price_p, offer.target_p
        return (
            np.concatenate([offer.price_p, offer.price_q]),
            np.concatenate([offer.target_p, offer.target_q]),
        )


def agrees(found: Floats, due: Floats) -> bool:
    """Whether numbers that were handed in are those that follow, but for rounding."""
    size = max(1.0, float(np.max(np.abs(due), initial=0.0)))
    return float(np.max(np.abs(found - due), initial=0.0)) <= LINEAR_TOLERANCE * size
