"""What the committee computes in each task of a sealed day, and all that opens [sealed 4].

Every task is one computation of its own: sites send shares afresh, the parties keep nothing but
the messages with the committed bids. So a day resumes where it stopped, and a task runs again with
fewer parties.

==============  ===========================================================  ==================
task            opens to all parties and sites                               opens to one site
==============  ===========================================================  ==================
bids            who sent a readable bid within range
wish            by interval which limits bind and which way the exchange     its prices
                goes, the bits by which that was found, and branches that
                carry much; their rows' rent and strength; a sum of squares;
                now and then: where prices or targets of all move too far
answer          cost and claimed gap of the iterate, what the exchange
                costs; once the gap is small which way it goes, exceeded
                rows, branches that carry much; sums over all sites of
                products of their movements (for the acceleration)
regret          the claimed gap with all sites' regrets
challenge       who failed it
pull, surplus   who relieves too little; whether limits can be met, if not   its part of prices
                coarsely by how much not                                     that rows make
certificate     how many checks each site fails, whose claims differ; cost,  its payment and
                gap, rent, what the exchange costs and which way it goes,    cost; the payer:
                exceeded rows, branches that carry much, how many pay more   all payments
                than alone; whether the AC power flow passes, its extremes;
                of a refused plan how far two models differ there
==============  ===========================================================  ==================
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from veilgrid.admm.accelerate import IntervalBalance
from veilgrid.mpc import Engine, Mailbox, Shares, Steps, concatenate
from veilgrid.mpc.field import PRIME_FIELD, Words, encode, encode_words
from veilgrid.roles.sealed.bid import Shape
from veilgrid.roles.sealed.heard import (
    OUT_OF_RANGE,
    OWN,
    PAYER,
    Pads,
    bus_of,
    heads,
    ranged,
    take_in,
    vector,
)
from veilgrid.roles.sealed.register import (
    FACTOR_BITS,
    POWER_BITS,
    POWER_MAX,
    WISH_MAX,
    Register,
)
from veilgrid.roles.sealed.step import (
    PASSES_MAX,
    below_zero,
    limit_checks,
    network_duals,
    network_step,
)
from veilgrid.roles.sealed.step_dual import StepResult
from veilgrid.roles.sealed.step_rooms import EVERYTHING, Looks
from veilgrid.roles.sealed.step_set import AT_HIGH, AT_LOW, ActiveSet
from veilgrid.roles.sealed.wishes import are_possible, too_far

PRODUCT_BITS: Final = 70
"""Binary places of sums of products."""

BALANCE_BITS: Final = 44
"""Binary places of what tells how penalties are to change, in price units."""

AMOUNT_BITS: Final = 40
"""Binary places of amounts that sites claim, in price units."""

WIDE_BITS: Final = 2 * POWER_BITS + FACTOR_BITS
"""Binary places of products of prices and powers before they open."""

NARROW_PRICE: Final = 2**64
"""What prices in steps of ``2**-62`` are claimed to stay below, so that sums over thousands of
sites that take their fallback are let pass; larger ones are right as well."""

AMOUNT_MAX: Final = 2**60
CLAIM_MAX: Final = 2**56
"""Bound of claimed amounts in steps of ``2**-40``: 65,536 price units, more than the largest load
pays in 288 intervals at three times the highest tariff."""

PRODUCT_MAX: Final = 2**100

TURNOVERS_MAX: Final = 256.0
"""In least turnovers, of at most a hundredth of all loads at the tariff: what gaps are measured by
at most. Costs are secret, so a dear device that has to run must not widen what all others may miss.
"""


class Tolerances(msgspec.Struct, frozen=True):
    """When a day's coordination stops; public.

    Attributes
    ----------
    gap_max
        Relative gap that is small enough.
    excess_max
        Per-unit; how far a network row may be exceeded by answers.
    turnover_min : price units
        Gaps are relative to the plan's cost, but at least to this, and at most to
        :data:`TURNOVERS_MAX` times as much.
    """

    gap_max: float
    excess_max: float
    turnover_min: float

    def allowed(self, cost: float) -> float:
        """Return how large the gap of a plan of this cost may be, price units."""
        size = min(max(abs(cost), self.turnover_min), TURNOVERS_MAX * self.turnover_min)
        return self.gap_max * size


class Binding(msgspec.Struct, frozen=True):
    """An active set as it travels: price statuses, and (interval, row, status)."""

    price: list[int]
    rows: list[tuple[int, int, int]]

    @classmethod
    def of(cls, active: ActiveSet) -> "Binding":
        """Write an active set."""
        rows = [
            (interval, number, status)
            for interval, rows in enumerate(active.rows)
            for number, status in sorted(rows.items())
        ]
        return cls(list(active.price), rows)

    def active(self) -> ActiveSet:
        """Return the active set."""
        out = ActiveSet(list(self.price), [{} for _ in self.price])
        for interval, number, status in self.rows:
            out.rows[interval][number] = status
        return out


def _network(
    mpc: Engine, register: Register, vectors: Mapping[int, Shares]
) -> tuple[Shares, Shares]:
    """Place demands or wishes, active then reactive at the head of each vector, by bus."""
    times, buses = register.interval_count, register.bus_count
    active = np.zeros((buses, times, 2), np.uint64)
    reactive = np.zeros((buses, times, 2), np.uint64)
    for bus, one in vectors.items():
        active[bus], reactive[bus] = one.data[:times], one.data[times : 2 * times]
    flat = (active.reshape(-1, 2), reactive.reshape(-1, 2))
    return mpc.wrap(flat[0], WISH_MAX), mpc.wrap(flat[1], WISH_MAX)


# -- bids -----------------------------------------------------------------------------------------


def bids_program(mpc: Engine, mailbox: Mailbox, shapes: Sequence[Shape]) -> Steps[dict[str, Any]]:
    """Agree on who committed to a bid within range; nothing else of it opens."""
    taken = yield from take_in(mpc, mailbox, POWER_MAX)
    taken.vectors.pop(PAYER, None)  # Nobody computes with it; only its seeds count.
    runs = {bus: shape.bid_runs for bus, shape in enumerate(shapes)}
    taken = yield from ranged(mpc, taken, runs)
    yield from mpc.agree()
    return {"bids": len(taken.vectors), **(taken.refusal if taken.flags else {})}


CHALLENGED_OF: Final = 4
"""One wish of so many has to be proved, in the mean, while a day is watched [sealed 6.4]."""


# -- wish: the network step -----------------------------------------------------------------------


def wish_program(
    mpc: Engine,
    register: Register,
    mailbox: Mailbox,
    still: Mapping[int, Shares],
    binding: Binding,
    pads: Pads,
    *,
    looks: Looks = EVERYTHING,
    is_watched: bool = False,
    is_balanced: bool = False,
) -> Steps[dict[str, Any]]:
    """Do the network step on the sites' wishes; open each site's own prices behind its pads.

    While a day is watched, a coin says afterwards whether the wishes are to be proved. Balanced
    wishes end with numbers whose sums are positive where penalties are to change; signs open.
    """
    taken = yield from take_in(mpc, mailbox, WISH_MAX)
    if taken.flags:
        return taken.refusal
    times = register.interval_count
    wish_p, wish_q = _network(mpc, register, {**taken.vectors, **still})
    step = yield from network_step(mpc, register, wish_p, wish_q, binding.active(), looks=looks)
    if step.passes > PASSES_MAX:
        # Either the step is hard, or a wish is so large that comparisons told nothing.
        outside = yield from too_far(mpc, register, heads(taken.vectors, 2 * times))
        if outside:
            return _refused(outside)
    tails = [one[2 * times :] for one in taken.vectors.values()]
    moved = _total([one[-2 * times :] for one in tails] if is_balanced else [])
    if moved is not None:
        tails = [one[: len(one) - len(moved)] for one in tails]
    squares = _total(tails)
    buses = sorted(taken.vectors)
    names, sums = _sums(mpc, step, squares)
    opened, own = yield from pads.open(mpc, sums, _by_bus(buses, _both(mpc, step, buses)))
    result: dict[str, Any] = {
        "binding": msgspec.to_builtins(Binding.of(step.active)),
        "passes": step.passes,
        **{name: value / 2.0**bits for (name, bits), value in zip(names, opened, strict=True)},
        OWN: own,
    }
    if moved is not None:
        result |= yield from _out_of_balance(mpc, register, moved)
    if is_watched:
        result["challenged"] = (yield from mpc.coin()) % CHALLENGED_OF == 0
    return result


def _out_of_balance(mpc: Engine, register: Register, moved: Shares) -> Steps[dict[str, Any]]:
    """Open in which intervals prices, and in which targets, moved too far."""
    highest = float(np.max(np.abs(register.buy))) / register.unit
    least = round(IntervalBalance.LEAST * highest * 2.0**BALANCE_BITS)
    room = PRIME_FIELD.subtract(mpc.constant([least] * len(moved)).data, moved.data)
    bits = yield from below_zero(mpc, [room])
    times = register.interval_count
    chosen = [place for place, bit in enumerate(bits) if bit]
    return {
        "stiffer": [place for place in chosen if place < times],
        "softer": [place - times for place in chosen if place >= times],
    }


@dataclass(frozen=True)
class Priced:
    """A network step that is done: what repeats its prices without opening anything."""

    register: Register
    wishes: Mailbox
    binding: Binding

    def heard(self, mpc: Engine) -> dict[int, Shares]:
        """Return its wishes, by bus."""
        return {
            bus_of(name): vector(mpc, self.wishes, name, WISH_MAX)
            for name in sorted(self.wishes.received)
        }

    def duals(
        self, mpc: Engine, still: Mapping[int, Shares], *, is_near: bool = False
    ) -> Steps[StepResult]:
        """Return its prices on shares."""
        wish_p, wish_q = _network(mpc, self.register, {**self.heard(mpc), **still})
        active = self.binding.active()
        step = network_duals(mpc, self.register, wish_p, wish_q, active, is_near=is_near)
        return (yield from step)

    def doubted(self, mpc: Engine, still: Mapping[int, Shares]) -> Steps[dict[str, Any] | None]:
        """Return the result of a task that would conclude from impossible prices, else nothing.

        It names who wished for more than its bound [sealed 6.6].
        """
        heard = self.heard(mpc)
        wishes = _network(mpc, self.register, {**heard, **still})
        if (yield from are_possible(mpc, self.register, *wishes, self.binding.active())):
            return None
        own = heads(heard, 2 * self.register.interval_count)
        return _refused((yield from too_far(mpc, self.register, own)))


def _refused(buses: Sequence[int]) -> dict[str, Any]:
    """Return the result of a task whose prices are impossible; these sites' wishes made them so."""
    return {"missing": [[bus, OUT_OF_RANGE] for bus in buses]}


def _both(mpc: Engine, step: StepResult, buses: Sequence[int], *, is_pull: bool = False) -> Words:
    """Return prices of buses, (bus, active then reactive, word); reactive only under limits."""
    zero, own = mpc.constant([0]), np.array(buses, dtype=np.int64)
    if not buses:
        return np.zeros((0, 0, 2), np.uint64)
    parts = [step.prices(zero, own, is_pull=is_pull)]
    if not step.register.limits.are_absent:
        parts.append(step.prices(zero, own, is_reactive=True))
    return np.concatenate([part.data.reshape(len(own), -1, 2) for part in parts], axis=1)


def _by_bus(buses: Sequence[int], own: Words) -> dict[int, Words]:
    return dict(zip(buses, own, strict=True))


def _sums(
    mpc: Engine, step: StepResult, squares: Shares | None
) -> tuple[list[tuple[str, int]], Words]:
    """Return the sum of squares where one was sent, and what binding rows collect and weigh.

    The latter two are for the inner distance. Each comes with its name and its binary places.
    """
    names: list[tuple[str, int]] = []
    parts: list[Words] = [PRIME_FIELD.zeros(0)]
    if squares is not None and len(squares):
        names, parts = [("square", PRODUCT_BITS)], [squares.data]
    if step.active.binding():
        names += [("rent", POWER_BITS + FACTOR_BITS), ("strength", POWER_BITS + FACTOR_BITS)]
        zero = mpc.constant([0])
        parts += [step.rent(zero).data, step.strength(zero).data]
    return names, np.concatenate(parts)


# -- answer: does it fit together? ----------------------------------------------------------------


def answer_program(
    mpc: Engine,
    register: Register,
    mailbox: Mailbox,
    priced: Priced,
    still: Mapping[int, Shares],
    limits: Tolerances,
) -> Steps[dict[str, Any]]:
    """Open cost and claimed gap of the sites' answers, and sums of products over all sites.

    Each vector holds demands, own cost, payment at the last prices, and products. Where the gap
    is small enough, exceeded network rows open too.
    """
    taken = yield from take_in(mpc, mailbox, AMOUNT_MAX)
    if taken.flags:
        return taken.refusal
    times = register.interval_count
    claims = _total([one[2 * times :] for one in taken.vectors.values()]) or mpc.constant([0, 0])
    everyone = {**taken.vectors, **still}
    step = yield from priced.duals(mpc, still, is_near=True)
    total = _total([one[:times] for one in everyone.values()]) or mpc.constant([0] * times)
    exchange = _exchange_cost(register, total, priced.binding.price)
    owed = yield from _owed_by_still(mpc, step, still)
    amounts = _amounts(mpc, step, owed, claims, exchange)
    opened = yield from mpc.open_elements(np.concatenate([amounts, claims.data[2:]]))
    cost, gap = (value / 2.0**WIDE_BITS for value in opened[:2])
    result: dict[str, Any] = {
        "products": [value / 2.0**PRODUCT_BITS for value in opened[2:]],
        "cost": cost,
        "gap": gap,
        "fits": False,
    }
    allowed = limits.allowed(cost)
    if gap <= allowed:
        # The directions of the exchange were guessed from the prices; now they are looked at.
        exports = yield from below_zero(mpc, [total.data])
        exact = _exchange_cost(register, total, [AT_LOW if bit else AT_HIGH for bit in exports])
        surplus = PRIME_FIELD.scale(encode([2**POWER_BITS]), PRIME_FIELD.subtract(exact, exchange))
        missed = (yield from mpc.open_elements(surplus))[0] / 2.0**WIDE_BITS
        result |= {"cost": cost + missed, "gap": gap + missed}
    if result["gap"] <= allowed:
        demand_p, demand_q = _network(mpc, register, everyone)
        exceeded = yield from limit_checks(mpc, register, demand_p, demand_q, limits.excess_max)
        result["fits"] = not exceeded
        result["exceeded"] = [list(one) for one in exceeded]
    return result


def _owed_by_still(
    mpc: Engine, step: StepResult, still: Mapping[int, Shares], *, is_pull: bool = False
) -> Steps[Shares]:
    """Return what sites that take their fallback pay together, scale 2**94 price units."""
    if not still:
        return mpc.constant([0])
    price = mpc.wrap(_both(mpc, step, list(still), is_pull=is_pull).reshape(-1, 2), NARROW_PRICE)
    width = len(price) // len(still)
    demand = concatenate([one[:width] for one in still.values()]).claim(POWER_MAX)
    return (yield from mpc.inner(price, demand))


def _amounts(mpc: Engine, step: StepResult, owed: Shares, claims: Shares, exchange: Words) -> Words:
    """Return cost and claimed gap, scale 2**94 price units."""
    add, subtract, scale = PRIME_FIELD.add, PRIME_FIELD.subtract, PRIME_FIELD.scale
    own = scale(encode([2 ** (WIDE_BITS - AMOUNT_BITS)]), claims.data[:2])
    up = encode([2**POWER_BITS])
    paid = scale(up, exchange)
    gap = subtract(add(paid, scale(up, step.rent(mpc.constant([0])).data)), own[1:2])
    return np.concatenate([add(paid, own[:1]), subtract(gap, owed.data)])


def _total(parts: Sequence[Shares]) -> Shares | None:
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = (total + part).claim(PRODUCT_MAX)
    return total


def _exchange_cost(register: Register, total: Shares, directions: Sequence[int]) -> Words:
    """Return what the exchange with the grid above costs if it goes these ways, scale 2**62.

    The true cost is the largest over all ways, so a wrong guess only makes it smaller.
    """
    is_export = np.array(directions) == AT_LOW
    tariff = np.where(is_export, register.sell, register.buy) / register.unit
    weights = encode_words(np.rint(tariff * 2.0**FACTOR_BITS).astype(np.int64))
    return PRIME_FIELD.inner(np.ascontiguousarray(total.data), weights)


# -- regret: is it cheap enough? ------------------------------------------------------------------


def regret_program(mpc: Engine, mailbox: Mailbox) -> Steps[dict[str, Any]]:
    """Open what all sites together would save by their cheapest answers."""
    taken = yield from take_in(mpc, mailbox, AMOUNT_MAX)
    if taken.flags:
        return taken.refusal
    total = _total(list(taken.vectors.values())) or mpc.constant([0])
    opened = yield from mpc.open_elements(total.data)
    return {"regret": opened[0] / 2.0**AMOUNT_BITS}


# -- pull: can the limits be met at all? Continued in relief.py ------------------------------------


def pull_program(
    mpc: Engine, priced: Priced, still: Mapping[int, Shares], pads: Pads
) -> Steps[dict[str, Any]]:
    """Open to each site the part of its prices that comes from network rows."""
    step = yield from priced.duals(mpc, still)
    buses = sorted(bus_of(name) for name in priced.wishes.received)
    pulls = _both(mpc, step, buses, is_pull=True)
    _, own = yield from pads.open(mpc, PRIME_FIELD.zeros(0), _by_bus(buses, pulls))
    return {OWN: own}
