"""A uniform-price double auction on validated bids, shared or plain [market 2].

Every order sends its quantity once, also at the first digit of its price, and one-hot vectors of
the digits. The committee sums the first digits into cumulative curves, finds
the digit of the clearing price by comparisons, and goes on inside it; 16 to the number of digits
is how many price ticks there are, whatever the number of orders. Who bids what is never opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import invariant
from veilgrid.mpc._round import Steps, together
from veilgrid.mpc._shares import Shares, concatenate
from veilgrid.mpc.bulk import BulkBatch
from veilgrid.mpc.field import Words
from veilgrid.mpc.layout import Integers, Layout, Number, OneHot, Scaled
from veilgrid.mpc.order import Mpc

RADIX: Final = 16
PLACE: Final = "place 0"
"""Name of the first digit; ``digit 0`` is the quantity at that place."""

UNIFORM: Final = "uniform-price"
REDUCTION: Final = "trade-reduction"
REDUCTION_BELOW: Final = 30
"""With fewer bidders on either side, prices are set by orders that do not trade."""

Mask = npt.NDArray[np.bool_]


def rule_for(buyer_count: int, seller_count: int) -> str:
    """Return the rule that goes with so many bidders a side."""
    return REDUCTION if min(buyer_count, seller_count) < REDUCTION_BELOW else UNIFORM


def digit_count(tick_count: int) -> int:
    """Return how many digits tell so many price ticks apart."""
    count = 1
    while RADIX**count < tick_count:
        count += 1
    return count


def layout_of(quantity_max: int | Integers, digits: int) -> Layout:
    """Return what every order sends; its quantity stays within 0 and its public cap."""
    further = tuple(OneHot(f"digit {k}", RADIX) for k in range(1, digits))
    return Layout(
        (
            Number("quantity", 0, quantity_max),
            OneHot(PLACE, RADIX),
            Scaled("digit 0", PLACE, "quantity"),
            *further,
        )
    )


def digits_of(layout: Layout) -> int:
    """Return how many digits prices have."""
    return len(layout.parts) - 2


def encode(layout: Layout, ticks: Integers, quantities: Integers) -> Integers:
    """Return the inputs of orders: (order, element)."""
    digits = digits_of(layout)
    places = {
        f"digit {k}" if k else PLACE: (ticks // RADIX ** (digits - 1 - k)) % RADIX
        for k in range(digits)
    }
    return layout.encode({"quantity": quantities, **places})


@dataclass(frozen=True, slots=True)
class Price:
    """What a round opens to everybody.

    Attributes
    ----------
    rule
        :data:`UNIFORM` or :data:`REDUCTION`.
    low, high
        Every price within clears the market, in ticks.
    volume : weighted steps
        Bought, and sold.
    """

    rule: str
    low: int
    high: int
    volume: int

    @property
    def price(self) -> Fraction:
        """The one price of all trades, in ticks."""
        if self.rule == REDUCTION:
            return Fraction(self.high)
        return Fraction(self.low + self.high, 2)


@dataclass(frozen=True, slots=True)
class Cleared(Price):
    """A price with how the marginal tick is rationed.

    Attributes
    ----------
    bought_above, bought_at, sold_below, sold_at
        Demand above and at the pricing tick, supply below and at it. With trade reduction, and
        where ``low`` and ``high`` differ, nobody trades at the tick and those are 0.
    """

    bought_above: int
    bought_at: int
    sold_below: int
    sold_at: int


@dataclass(slots=True)
class _Search:
    """One search for the price at which the merged quantities reach a rank."""

    prefix: tuple[int, ...]
    below: dict[str, Shares]


def clear(mpc: Mpc, batch: BulkBatch, is_buy: Mask, weights: Integers, rule: str) -> Steps[Cleared]:
    """Clear a round; open its price, its volume and how the marginal tick is rationed.

    Parameters
    ----------
    mpc
        Engine or plain numbers.
    batch
        Validated orders.
    is_buy : (order,)
        Public: the side each is on.
    weights : (order,), >= 0
        Public, fixed before the round: what each quantity is multiplied by.
    rule
        :data:`UNIFORM` or :data:`REDUCTION`.

    Notes
    -----
    A price clears the market if demand above it does not exceed supply up to it, and supply below
    it does not exceed demand from it on. So the lowest such price is where quantities of both
    sides, merged by price, reach total demand; the highest is where they exceed it.
    """
    found = yield from search(mpc, batch, is_buy, weights)
    return (yield from _settled(mpc, found, rule))


@dataclass(frozen=True, slots=True)
class Found:
    """Where the market clears: prefixes open, all else on shares.

    Attributes
    ----------
    low, high : (digit,)
        Lowest and highest clearing price.
    below : low and high -> side -> (1,)
        Quantity at lower prices than that.
    at : low and high -> side -> (1,)
        Quantity at that price.
    demand : (1,)
        Of all prices.
    active : prefix -> (order,)
        Each order's weighted quantity if its price begins with those digits, else 0.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    below: tuple[dict[str, Shares], dict[str, Shares]]
    at: tuple[dict[str, Shares], dict[str, Shares]]
    demand: Shares
    active: dict[tuple[int, ...], Shares]


def search(mpc: Mpc, batch: BulkBatch, is_buy: Mask, weights: Integers) -> Steps[Found]:
    """Find the lowest and the highest clearing price, digit by digit [market 2.2]."""
    sides = {"buy": np.flatnonzero(is_buy), "sell": np.flatnonzero(~is_buy)}
    first = {
        side: batch.column_sums("digit 0", np.where(is_buy == (side == "buy"), weights, 0))
        for side in sides
    }
    nothing = mpc.constant([0])
    demand = first["buy"].sum()
    searches = [_Search((), dict.fromkeys(sides, nothing)) for _ in range(2)]
    active: dict[tuple[int, ...], Shares] = {}
    counts: dict[tuple[int, ...], dict[str, Shares]] = {(): first}
    for level in range(digits_of(batch.layout)):
        if level:
            prefixes = sorted({one.prefix for one in searches})
            active |= yield from _narrowed(mpc, batch, weights, prefixes, active)
            counts = {}
            counted = [_counted(mpc, batch, active[one], sides, level) for one in prefixes]
            counts = dict(zip(prefixes, (yield from together(*counted)), strict=True))
        yield from _descend(mpc, searches, counts, demand)
    low, high = searches
    at = [
        {side: counts[one.prefix[:-1]][side][one.prefix[-1]] for side in sides} for one in searches
    ]
    return Found(low.prefix, high.prefix, (low.below, high.below), (at[0], at[1]), demand, active)


def _narrowed(
    mpc: Mpc,
    batch: BulkBatch,
    weights: Integers,
    prefixes: Sequence[tuple[int, ...]],
    active: dict[tuple[int, ...], Shares],
) -> Steps[dict[tuple[int, ...], Shares]]:
    """Return each order's weighted quantity if its price begins with a prefix, else 0."""
    found: dict[tuple[int, ...], Shares] = {}
    for prefix in prefixes:
        chosen = np.zeros(RADIX, np.int64)
        chosen[prefix[-1]] = 1
        matches = batch.project(f"digit {len(prefix) - 1}", chosen)
        if len(prefix) == 1:
            bound = matches.bound * max(int(weights.max(initial=0)), 1)
            found[prefix] = weighted(matches, weights).claim(bound)
        else:
            former = active[prefix[:-1]]
            product = yield from mpc.multiply(former, matches)
            found[prefix] = product.claim(former.bound)
    return found


def weighted(x: Shares, weights: Integers) -> Shares:
    """Multiply by public weights."""
    return x if (weights == 1).all() else x * weights.tolist()


def _counted(
    mpc: Mpc, batch: BulkBatch, active: Shares, sides: dict[str, npt.NDArray[np.intp]], level: int
) -> Steps[dict[str, Shares]]:
    """Return for each side the active quantities by the next digit: inner products only."""
    name = f"digit {level}"
    start = batch.layout.start(name)
    block = batch.data[:, start : start + RADIX]
    parts = [_of_side(mpc, block[rows], active[rows]) for rows in sides.values()]
    return dict(zip(sides, (yield from together(*parts)), strict=True))


def _of_side(mpc: Mpc, block: Words, own: Shares) -> Steps[Shares]:
    if not len(own):
        return mpc.constant([0] * RADIX)
    # A one-hot vector adds up to one, so the last digit gets what the others leave.
    columns = np.ascontiguousarray(block[:, :-1].transpose(1, 0, 2)).reshape(-1, 2)
    sums = yield from mpc.inner_each(own, mpc.wrap(columns, 1))
    rest = (own.sum() - sums.sum()).claim(sums.bound)
    return concatenate([sums, rest])


def _descend(
    mpc: Mpc,
    searches: list[_Search],
    counts: dict[tuple[int, ...], dict[str, Shares]],
    demand: Shares,
) -> Steps[None]:
    """Find the next digit of both prices with one batch of comparisons."""
    gaps, running = [], []
    for extra, search in enumerate(searches):
        here = counts[search.prefix]
        sums = {side: _cumulative(search.below[side], here[side]) for side in here}
        running.append(sums)
        gaps.append(sums["buy"][1:] + sums["sell"][1:] - demand.repeat(RADIX) - extra)
    bound = max(gap.bound for gap in gaps)
    is_short = yield from mpc.is_negative(concatenate(gaps).claim(bound))
    found = yield from mpc.open(is_short.sum(RADIX))
    for search, sums, digit in zip(searches, running, found, strict=True):
        place = min(digit, RADIX - 1)
        search.prefix = (*search.prefix, place)
        search.below = {side: sums[side][place] for side in sums}


def _cumulative(below: Shares, counts: Shares) -> Shares:
    """Return ``below``, and it with ever more counts added: one more element than counts."""
    parts = [below]
    for k in range(len(counts)):
        parts.append(parts[-1] + counts[k])
    return concatenate(parts)


def _settled(mpc: Mpc, found: Found, rule: str) -> Steps[Cleared]:
    low, high = tick_of(found.low), tick_of(found.high)
    last = 1 if rule == REDUCTION else 0
    at, below = found.at[last], found.below[last]
    above = found.demand - below["buy"] - at["buy"]
    if rule == REDUCTION or low < high:
        supply = below["sell"] if rule == REDUCTION else below["sell"] + at["sell"]
        bought, sold = yield from mpc.open(concatenate([above, supply]))
        return Cleared(rule, low, high, min(bought, sold), bought, 0, sold, 0)
    opened = yield from mpc.open(concatenate([above, at["buy"], below["sell"], at["sell"]]))
    volume = min(opened[0] + opened[1], opened[2] + opened[3])
    return Cleared(rule, low, high, volume, *opened)


def tick_of(prefix: tuple[int, ...]) -> int:
    """Return the number of a tick from its digits."""
    tick = 0
    for digit in prefix:
        tick = tick * RADIX + digit
    return tick


# -- what everybody can work out from that ---------------------------------------------------------


def allocate(cleared: Cleared, ticks: Integers, quantities: Integers, is_buy: Mask) -> Integers:
    """Return what each order trades: (order,), weighted steps.

    Every bidder can do this for its own order. Those better than the pricing tick trade fully;
    only the tick itself is rationed, in proportion. With trade reduction the longer side is
    served in the order of the rows, which is public and fixed before the round, because nobody's
    own price may decide who is left out.
    """
    traded = np.zeros(len(ticks), np.int64)
    if not cleared.volume:
        return traded
    reduced = cleared.rule == REDUCTION
    edges = (cleared.high, cleared.high) if reduced else (cleared.low, cleared.high)
    better = np.where(is_buy, ticks > edges[0], ticks < edges[1])
    if not reduced and cleared.low == cleared.high:
        traded[better] = quantities[better]
        at = ticks == cleared.low
        for side, full in ((is_buy, cleared.bought_above), (~is_buy, cleared.sold_below)):
            rows = np.flatnonzero(at & side)
            traded[rows] = shares_in_proportion(quantities[rows], cleared.volume - full)
        return traded
    for side in (is_buy, ~is_buy):
        rows = np.flatnonzero(better & side)
        room = cleared.volume - (np.cumsum(quantities[rows]) - quantities[rows])
        traded[rows] = np.clip(room, 0, quantities[rows])
    return traded


def rations_of(price: Price, ticks: Integers, quantities: Integers, is_buy: Mask) -> Cleared:
    """Return what stands above, at and below the price, for who holds all orders."""
    edges = (price.high, price.high) if price.rule == REDUCTION else (price.low, price.high)
    bought = int(quantities[is_buy & (ticks > edges[0])].sum())
    sold = int(quantities[~is_buy & (ticks < edges[1])].sum())
    at = [0, 0]
    if price.rule != REDUCTION and price.low == price.high:
        at = [int(quantities[side & (ticks == price.low)].sum()) for side in (is_buy, ~is_buy)]
    found = Cleared(price.rule, price.low, price.high, price.volume, bought, at[0], sold, at[1])
    invariant(
        price.volume == min(bought + at[0], sold + at[1]), "the volume is what the orders give"
    )
    return found


def best_welfare(ticks: Integers, quantities: Integers, is_buy: Mask) -> int:
    """Return the most that could be gained by trading, in ticks times steps: the plain optimum."""
    buys, sells = np.flatnonzero(is_buy), np.flatnonzero(~is_buy)
    orders = [buys[np.argsort(-ticks[buys])].tolist(), sells[np.argsort(ticks[sells])].tolist()]
    left, total = quantities.tolist(), 0
    at = [0, 0]
    while at[0] < len(orders[0]) and at[1] < len(orders[1]):
        buy, sell = orders[0][at[0]], orders[1][at[1]]
        if ticks[buy] < ticks[sell]:
            break
        traded = min(left[buy], left[sell])
        total += traded * (int(ticks[buy]) - int(ticks[sell]))
        left[buy] -= traded
        left[sell] -= traded
        at = [at[0] + (not left[buy]), at[1] + (not left[sell])]
    return total


def shares_in_proportion(sizes: Integers, total: int) -> Integers:
    """Split a total in proportion to sizes, exactly, none above its size; largest rest first."""
    whole = sum(int(size) for size in sizes)
    invariant(0 <= total <= whole, "no more is split than there is")
    if not whole:
        return np.zeros(len(sizes), np.int64)
    exact = [divmod(int(size) * total, whole) for size in sizes]
    parts = np.array([quotient for quotient, _ in exact], np.int64)
    missing = total - int(parts.sum())
    order = sorted(range(len(exact)), key=lambda k: (-exact[k][1], k))
    parts[order[:missing]] += 1
    return parts


def payments(traded: Integers, is_buy: Mask, money_per_step: Fraction) -> list[int]:
    """Return what each order pays (above zero) or is paid, in micro-units; they add up to 0.

    Parameters
    ----------
    traded : (order,), steps
        Of each order.
    is_buy : (order,)
        The side each is on.
    money_per_step : micro-units
        The one price.
    """
    owed = [int(quantity) * money_per_step for quantity in traded]
    total = int(sum(owed[k] for k in np.flatnonzero(is_buy)))
    out = [0] * len(owed)
    for side, sign in ((is_buy, 1), (~is_buy, -1)):
        rows = [int(k) for k in np.flatnonzero(side)]
        floors = {k: owed[k].__floor__() for k in rows}
        missing = total - sum(floors.values())
        for k in sorted(rows, key=lambda k: (floors[k] - owed[k], k))[:missing]:
            floors[k] += 1
        for k in rows:
            out[k] = sign * floors[k]
    invariant(sum(out) == 0, "payments add up to zero")
    return out
