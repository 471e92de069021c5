"""What the sites of one process keep to themselves on a sealed day, and what they share of it.

Each site signs and shares its own messages; keeping their numbers in one array only saves doing
the same arithmetic site by site.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from veilgrid.admm.accelerate import IntervalBalance
from veilgrid.admm.site_step import SiteSteps
from veilgrid.grid.network import Floats
from veilgrid.grid.site import Site
from veilgrid.roles.sealed.bid import proof_of
from veilgrid.roles.sealed.challenge import moved_price_steps, plan_steps
from veilgrid.roles.sealed.mixing import MixingMemory, Mixture
from veilgrid.roles.sealed.program import AMOUNT_BITS, BALANCE_BITS, PRODUCT_BITS
from veilgrid.roles.sealed.register import (
    POWER_BITS,
    PRICE_HEARD,
    Integers,
    Register,
    power_steps,
)
from veilgrid.roles.sealed.sites_solve import Cheapest, free_of_cost

Vectors = dict[int, Integers | list[int]]
"""What each site shares, by bus."""

BALANCE_MAX: Final = 2.0**60
"""Larger sums of squares, in steps, count as this: only the sign of all sites' sum matters."""


class OwnSites:
    """Prices, wishes, answers and past of the sites of a group that still take part.

    Parameters
    ----------
    sites : by bus
        The sites' own problems.
    own
        Buses that take part, in the order of all arrays.
    register
        The public model.
    memory
        How many past steps are kept for mixing.
    executor
        Where sites are solved side by side.

    Attributes
    ----------
    price_p, price_q, pull_p, pull_q : (site, interval), currency per per-unit
    wish, step, demand : (active then reactive, site, interval), per-unit
    solved
        The problems that wishes are made from; honest sites' are ``members``.
    is_stepped
        Whether ``step`` follows from the present wishes.
    """

    def __init__(
        self,
        sites: Mapping[int, Site],
        own: Sequence[int],
        register: Register,
        memory: int,
        executor: ThreadPoolExecutor,
    ) -> None:
        self.own, self._executor = list(own), executor
        self.members = [sites[bus] for bus in self.own]
        self.solved = self.members
        self._weigh(register)
        nothing = np.zeros(len(self.own))
        self.alone_steps = SiteSteps(self.members, nothing, nothing, executor)
        self._memory, self._memory_size = MixingMemory(memory), memory
        shape = (len(self.own), register.interval_count)
        self.price_p, self.price_q = np.tile(register.buy, (len(self.own), 1)), np.zeros(shape)
        self.pull_p, self.pull_q = np.zeros(shape), np.zeros(shape)
        self.wish = self._former_wish = np.zeros((2, *shape))
        self._former_price = np.zeros((2, *shape))
        self.demand = np.zeros((2, *shape))
        self.step = np.zeros((2, *shape))
        self._moved = np.zeros((2, *shape))
        self._last: tuple[Floats, Floats] | None = None
        self.setpoints: list[Floats] = []
        self.is_stepped = False

    def _weigh(self, register: Register) -> None:
        """Take the penalties of the public model; arrays are (part, site, interval)."""
        self.register = register
        give = np.stack([register.give_p[self.own], register.give_q[self.own]])
        self._give = give[:, :, np.newaxis] * register.softness
        penalty = np.divide(1.0, self._give, out=np.zeros_like(self._give), where=self._give > 0.0)
        self._weight = np.sqrt(penalty / register.unit)
        self.steps = SiteSteps(self.solved, penalty[0], penalty[1], self._executor)

    def reweigh(self, register: Register) -> None:
        """Go on from the same targets and prices under other penalties, without a past."""
        targets = self.targets
        self._weigh(register)
        self.wish = targets + self._give * np.stack([self.price_p, self.price_q])
        self._memory = MixingMemory(self._memory_size)

    def count_moves(self, *, is_counted: bool) -> None:
        """Add up, in the metric, by how much the prices just heard and their targets moved."""
        price, targets = np.stack([self.price_p, self.price_q]), self.targets
        if is_counted and self._last is not None:
            moved = np.zeros_like(price)
            scaled = (price - self._last[0]) / self.register.unit
            np.divide(scaled, self._weight, out=moved, where=self._weight > 0.0)
            self._moved[0] += (moved**2).sum(axis=0)
            self._moved[1] += ((self._weight * (targets - self._last[1])) ** 2).sum(axis=0)
        self._last = price, targets

    def _imbalances(self) -> Integers:
        """Return each site's part of what tells how penalties change, (site, 2 intervals)."""
        found = np.concatenate(IntervalBalance.excess(*self._moved), axis=1)
        self._moved[:] = 0.0
        steps = np.clip(np.rint(found * 2.0**BALANCE_BITS), -BALANCE_MAX, BALANCE_MAX)
        return np.asarray(steps, dtype=np.int64)

    # -- hearing --------------------------------------------------------------------------------

    def hear(self, bus: int, prices: Floats, *, is_pull: bool) -> None:
        """Take a site's prices, active then reactive where there are any.

        Impossible ones, which only a wish out of range brings about, are cut off.
        """
        most = PRICE_HEARD * self.register.unit
        prices = np.clip(prices, -most, most)
        place, times = self.own.index(bus), self.register.interval_count
        active, reactive = (self.pull_p, self.pull_q) if is_pull else (self.price_p, self.price_q)
        active[place] = prices[:times]
        if len(prices) > times:
            reactive[place] = prices[times:]

    def resume(self, former: "OwnSites") -> None:
        """Go on from the targets and prices of an attempt that broke off."""
        self._go_on(former.targets, former.price_p, former.price_q)

    def _go_on(self, targets: Floats, price_p: Floats, price_q: Floats) -> None:
        self.price_p, self.price_q = price_p, price_q
        self.wish = targets + self._give * np.stack([price_p, price_q])

    def state(self) -> bytes:
        """Return targets and prices as octets of float64: no penalty is in them."""
        values = np.concatenate([self.targets, np.stack([self.price_p, self.price_q])])
        return np.ascontiguousarray(values, dtype="<f8").tobytes()

    def restore(self, octets: bytes) -> bool:
        """Go on from what :meth:`state` returned; return whether it is of these sites."""
        values, shape = np.frombuffer(octets, "<f8"), (4, *self.price_p.shape)
        if values.size != np.prod(shape):
            return False
        targets, (price_p, price_q) = np.split(values.reshape(shape).copy(), 2)
        self._go_on(targets, price_p, price_q)
        return True

    # -- answering ------------------------------------------------------------------------------

    @property
    def targets(self) -> Floats:
        """What answers are to be near: (active then reactive, site, interval), per-unit."""
        return np.asarray(self.wish - self._give * np.stack([self.price_p, self.price_q]))

    def take(self, setpoints: list[Floats]) -> None:
        """Take the answers to the present prices."""
        self.setpoints, self.demand = setpoints, self._demands(setpoints)

    def _demands(self, setpoints: list[Floats]) -> Floats:
        pairs = list(zip(self.members, setpoints, strict=True))
        return np.array(
            [[site.demand_p(x) for site, x in pairs], [site.demand_q(x) for site, x in pairs]]
        )

    def wish_first(self) -> None:
        """Wish for the demands that answered the prices alone."""
        self.wish = self.demand + np.stack([self.price_p, self.price_q]) * self._give

    def wish_plainly(self) -> None:
        """Move the wishes by the present step, unmixed."""
        self.wish, self.is_stepped = self.wish + self.step, False

    def measure(self, relaxation: float) -> None:
        """Take the step from the present wishes that the answers ask for."""
        off = self.demand - self.targets
        self.step = relaxation * np.where(self._give > 0.0, off, 0.0)
        self.is_stepped = True

    # -- what is shared -------------------------------------------------------------------------

    def products(self, *, is_due: bool) -> list[list[int]]:
        """Return each site's products of its steps, in steps of the scale."""
        found = self._memory.products(self._flat(self.wish), self._flat(self.step), is_due=is_due)
        return [[round(value * 2.0**PRODUCT_BITS) for value in row] for row in found.tolist()]

    def next_wishes(
        self, products: list[list[int]], mixture: Mixture | None, *, is_balanced: bool = False
    ) -> Vectors:
        """Move the wishes, by ``None`` not at all, and return them with the products.

        If ``is_balanced``, what tells how penalties are to change follows.
        """
        self._former_wish = self.wish
        self._former_price = np.stack([self.price_p, self.price_q])
        if mixture is not None:
            point, step = self._flat(self.wish), self._flat(self.step)
            self.wish = self._unflat(self._memory.next_point(point, step, mixture))
        # Whatever prices others' wishes led to, an honest wish stays within the range of shares.
        most = self.register.wish_max[:, self.own] / 2.0**POWER_BITS
        self.wish = np.clip(self.wish, -most, most)
        self.is_stepped = False
        pairs = self._pairs(self.wish)
        more = self._imbalances().tolist() if is_balanced else [[] for _ in self.own]
        return {
            bus: [*pairs[bus].tolist(), *products[place], *more[place]]
            for place, bus in enumerate(self.own)
        }

    def _flat(self, values: Floats) -> Floats:
        """Return (part, site, interval) as weighted (site, element)."""
        weighted = np.swapaxes(values * self._weight, 0, 1)
        return np.ascontiguousarray(weighted.reshape(len(self.own), -1))

    def _unflat(self, values: Floats) -> Floats:
        wide = np.swapaxes(values.reshape(len(self.own), 2, -1), 0, 1)
        out = self.wish.copy()
        np.divide(wide, self._weight, out=out, where=self._weight > 0.0)
        return out

    def _pairs(self, values: Floats) -> dict[int, Integers]:
        """Return one vector a bus, active then reactive, in steps."""
        steps = power_steps(values)
        return {
            bus: np.concatenate([steps[0, place], steps[1, place]])
            for place, bus in enumerate(self.own)
        }

    def answers(self, products: list[list[int]]) -> Vectors:
        """Return demands, own cost, payment and products."""
        unit, pairs = self.register.unit, self._pairs(self.demand)
        vectors: Vectors = {}
        for place, bus in enumerate(self.own):
            own = self.members[place].cost(self.setpoints[place])
            paid = self._paid(place, self.demand[:, place])
            amounts = [round(value / unit * 2.0**AMOUNT_BITS) for value in (own, paid)]
            vectors[bus] = [*pairs[bus].tolist(), *amounts, *products[place]]
        return vectors

    def _paid(self, place: int, demand: Floats) -> float:
        return float(self.price_p[place] @ demand[0] + self.price_q[place] @ demand[1])

    def regrets(self, found: Cheapest) -> Vectors:
        """Return what each site would save by its cheapest answer to the prices alone."""
        unit, vectors = self.register.unit, Vectors()
        for place, (bus, x) in enumerate(zip(self.own, found.setpoints, strict=True)):
            site = self.members[place]
            now = site.cost(self.setpoints[place]) + self._paid(place, self.demand[:, place])
            least = site.cost(x) + self._paid(place, np.stack([site.demand_p(x), site.demand_q(x)]))
            vectors[bus] = [round((now - least) / unit * 2.0**AMOUNT_BITS)]
        return vectors

    def reliefs(self, found: Cheapest) -> Vectors:
        """Return what proves each site's demands that relieve network rows most."""
        vectors: Vectors = {}
        for place, bus in enumerate(self.own):
            site, x = self.members[place], found.setpoints[place]
            pull = (self.pull_p[place], self.pull_q[place])
            rows = found.row_multipliers[place]
            proof = proof_of(free_of_cost(site), x, x, rows, *pull, self.register.unit)
            # Where no device costs anything, the point that the shape asks for does not count.
            nothing = np.zeros(np.count_nonzero(site.quadratic), dtype=np.int64)
            vectors[bus] = np.concatenate([proof[: len(x)], nothing, proof[len(x) :]])
        return vectors

    def moved_prices(self, register: Register) -> tuple[Floats, Floats]:
        """Return the prices at which the last answers are the cheapest: moved by the penalty.

        ``register`` is the one of the iteration that was answered.
        """
        wish = power_steps(self._former_wish)
        price = power_steps(self._former_price / self.register.unit)
        out = np.zeros((2, len(self.own), register.interval_count))
        for place, bus in enumerate(self.own):
            demand = np.array(plan_steps(self.members[place], self.setpoints[place]))
            steps = moved_price_steps(register, bus, price[:, place], wish[:, place], demand)
            out[:, place] = steps / 2.0**POWER_BITS * register.unit
        return out[0], out[1]

    def proofs(self, found: Cheapest, price_p: Floats, price_q: Floats) -> Vectors:
        """Return each site's plan with the multipliers that prove it at prices (site, interval)."""
        return {
            bus: proof_of(
                self.members[place],
                self.setpoints[place],
                found.setpoints[place],
                found.row_multipliers[place],
                price_p[place],
                price_q[place],
                self.register.unit,
            )
            for place, bus in enumerate(self.own)
        }
