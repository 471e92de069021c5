"""What each order trades, on shares: opened to its owner only [market 2.5].

The committee opens the price and the volume. How much stands at the price, on which side there is
too much of it, and what anybody trades stays shared.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from veilgrid.mpc import clip
from veilgrid.mpc._prime import running_sums
from veilgrid.mpc._round import Steps, together
from veilgrid.mpc._shares import Shares, concatenate
from veilgrid.mpc.bulk import BulkBatch
from veilgrid.mpc.layout import Integers
from veilgrid.mpc.order import Mpc
from veilgrid.risk.auction import RADIX, REDUCTION, Found, Mask, Price, search, tick_of, weighted

BASE: Final = 1024
DIGITS: Final = 3
UNIT: Final = BASE**DIGITS
"""Awards are in parts of a weighted step, so that a ration needs no rounding on shares."""


def award(
    mpc: Mpc, batch: BulkBatch, is_buy: Mask, weights: Integers, rule: str
) -> Steps[tuple[Price, Shares]]:
    """Clear a round; open price and volume, and return what each order trades, shared.

    Parameters
    ----------
    mpc, batch, is_buy, weights, rule
        As of :func:`~veilgrid.risk.auction.clear`.

    Returns
    -------
    price, awards
        Awards are (order,), in parts of a weighted step: see :data:`UNIT`.
    """
    found = yield from awarding(mpc, batch, is_buy, weights, rule)
    awards = yield from found.rest
    opened = yield from mpc.open(found.volume)
    return found.price(opened[0]), awards


@dataclass(frozen=True, slots=True, eq=False)
class Awarding:
    """A round whose price is open and whose volume is known, on shares.

    Attributes
    ----------
    volume : (1,)
        Bought, and sold.
    willing : (order,)
        Weighted quantity of each order that trades, or would but for a ration.
    rest
        Steps to what each order trades: (order,), in parts of a weighted step.
    """

    rule: str
    low: int
    high: int
    volume: Shares
    willing: Shares
    rest: Steps[Shares]

    def price(self, volume: int) -> Price:
        """Return what is public once the volume is."""
        return Price(self.rule, self.low, self.high, volume)


def awarding(
    mpc: Mpc, batch: BulkBatch, is_buy: Mask, weights: Integers, rule: str
) -> Steps[Awarding]:
    """Find price and volume; what is left to do is in :attr:`Awarding.rest`."""
    found = yield from search(mpc, batch, is_buy, weights)
    low, high = tick_of(found.low), tick_of(found.high)
    edges = (found.high, found.high) if rule == REDUCTION else (found.low, found.high)
    is_split = rule != REDUCTION and low == high
    if is_split:
        better, at = yield from together(
            _better(mpc, batch, weights, found, edges, is_buy), _at(mpc, batch, weights, found)
        )
        volume, rest = yield from _rationed(mpc, better, at, is_buy)
        return Awarding(rule, low, high, volume, better + at, rest)
    better = yield from _better(mpc, batch, weights, found, edges, is_buy)
    volume = yield from _lesser(mpc, *_totals(better, is_buy))
    rest = _in_order(mpc, better, volume, is_buy) if rule == REDUCTION else _in_full(better)
    return Awarding(rule, low, high, volume, better, rest)


def _in_full(better: Shares) -> Steps[Shares]:
    yield from ()
    return better * UNIT


def steps_of(award_parts: int) -> int:
    """Return whole weighted steps from what opened to the owner of an order."""
    return award_parts // UNIT


def _better(
    mpc: Mpc,
    batch: BulkBatch,
    weights: Integers,
    found: Found,
    edges: tuple[tuple[int, ...], tuple[int, ...]],
    is_buy: Mask,
) -> Steps[Shares]:
    """Return each order's quantity if buying above the first, or selling below the second edge.

    A price is above if it agrees up to some digit and is larger there: one product an order.
    """
    places = np.arange(RADIX)
    columns: list[Shares] = []
    for level in range(len(found.low)):
        beyond = [places > edges[0][level], places < edges[1][level]]
        table = np.where(is_buy[:, np.newaxis], beyond[0], beyond[1]).astype(np.int64)
        columns.append(batch.project(f"digit {level}", table))
    largest = int(columns[0].bound) * max(int(weights.max(initial=0)), 1)
    total: Shares = weighted(columns[0], weights).claim(largest)
    if len(columns) == 1:
        return total
    actives = []
    for level in range(1, len(columns)):
        buying, selling = (found.active[edge[:level]] for edge in edges)
        actives.append(_by_side(buying, selling, is_buy))
    count, depth = len(is_buy), len(actives)
    order = np.arange(depth * count).reshape(depth, count).T.reshape(-1)
    left, right = concatenate(actives)[order], concatenate(columns[1:])[order]
    rest: Shares = yield from mpc.inner(left, right, depth)
    return (total + rest).claim(largest)


def _by_side(buying: Shares, selling: Shares, is_buy: Mask) -> Shares:
    count = len(is_buy)
    chosen = np.where(is_buy, np.arange(count), count + np.arange(count))
    return concatenate([buying, selling])[chosen]


def _at(mpc: Mpc, batch: BulkBatch, weights: Integers, found: Found) -> Steps[Shares]:
    """Return each order's quantity if its price is the clearing one."""
    last = len(found.low) - 1
    chosen = np.zeros(RADIX, np.int64)
    chosen[found.low[last]] = 1
    matches: Shares = batch.project(f"digit {last}", chosen)
    if last == 0:
        return weighted(matches, weights)
    active = found.active[found.low[:last]]
    product = yield from mpc.multiply(active, matches)
    found_at: Shares = product.claim(active.bound)
    return found_at


def _totals(quantities: Shares, is_buy: Mask) -> tuple[Shares, Shares]:
    listed = is_buy.astype(np.int64)
    return quantities.weighted_sum(listed), quantities.weighted_sum(1 - listed)


def _lesser(mpc: Mpc, bought: Shares, sold: Shares) -> Steps[Shares]:
    gap = bought - sold
    lack = yield from mpc.where_negative(gap, gap)
    return (sold + lack).claim(max(bought.bound, sold.bound))


def _in_order(mpc: Mpc, better: Shares, volume: Shares, is_buy: Mask) -> Steps[Shares]:
    """Serve each side in the order of its rows up to what the shorter one has."""
    rows = [np.flatnonzero(is_buy), np.flatnonzero(~is_buy)]
    served = concatenate([better[each] for each in rows if each.size])
    before = concatenate(
        [
            mpc.wrap(running_sums(better[each].data), better.bound * len(each)) - better[each]
            for each in rows
            if each.size
        ]
    )
    room = volume.repeat(len(served)) - before
    nothing = mpc.constant([0] * len(served))
    kept = yield from clip(mpc, room, nothing, served)
    back = np.argsort(np.concatenate(rows), kind="stable")
    served_back: Shares = kept.claim(better.bound)[back] * UNIT
    return served_back


def _rationed(
    mpc: Mpc, better: Shares, at: Shares, is_buy: Mask
) -> Steps[tuple[Shares, Steps[Shares]]]:
    """Return the volume, and steps that serve who is better in full, and at the price in part."""
    full, edge = _totals(better, is_buy), _totals(at, is_buy)
    bought, sold = full[0] + edge[0], full[1] + edge[1]
    most = max(bought.bound, sold.bound)
    is_short = yield from mpc.is_negative(bought - sold)
    swing = concatenate([bought - sold, full[1] - full[0], edge[1] - edge[0]])
    chosen = yield from mpc.multiply(is_short, swing)
    volume = (sold + chosen[0]).claim(most)
    # The longer side: sellers if less is bought than sold.
    fixed = (full[0] + chosen[1]).claim(most)
    size = (edge[0] + chosen[2]).claim(most)
    left = (volume - fixed).claim(most)
    return volume, _in_proportion(mpc, better, at, is_buy, is_short, left, size)


def _in_proportion(
    mpc: Mpc,
    better: Shares,
    at: Shares,
    is_buy: Mask,
    is_short: Shares,
    left: Shares,
    size: Shares,
) -> Steps[Shares]:
    """Serve who is at the price on the longer side in proportion, all others in full."""
    part = yield from _ratio(mpc, left, size)
    missing = yield from mpc.multiply(is_short, UNIT - part)
    selling = (UNIT - missing).claim(UNIT)
    buying = (part + missing).claim(UNIT)
    count = len(is_buy)
    parts = _by_side(buying.repeat(count), selling.repeat(count), is_buy)
    rationed = yield from mpc.multiply(at, parts)
    total: Shares = better * UNIT + rationed
    return total


def _ratio(mpc: Mpc, part: Shares, whole: Shares) -> Steps[Shares]:
    """Return ``part`` over ``whole`` in :data:`UNIT`, rounded down; just below it if both agree."""
    total, rest = mpc.constant([0]), part
    for _ in range(DIGITS):
        rest = rest * BASE
        ladder = rest.repeat(BASE - 1) - whole * list(range(1, BASE))
        short = yield from mpc.is_negative(ladder)
        digit = ((BASE - 1) - short.sum(BASE - 1)).claim(BASE)
        taken = yield from mpc.multiply(digit, whole)
        rest = (rest - taken).claim(whole.bound)
        total = total * BASE + digit
    return total.claim(UNIT)
