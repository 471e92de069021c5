"""What looks like manipulation, worked out on shares: only who is flagged opens [market 5].

Before clearing, who stands out, offers more than it is able to or trades with itself is named, and
counts up to its cap. After it, who withheld, and who is needed to meet what is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from veilgrid.mpc._prime import running_sums, sums_by_index
from veilgrid.mpc._round import Steps, together
from veilgrid.mpc._shares import Shares, concatenate, place_at, public_matrix
from veilgrid.mpc.bulk import BulkBatch
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.layout import Integers
from veilgrid.mpc.order import Mpc, clip
from veilgrid.risk.auction import PLACE, RADIX, Mask, digits_of
from veilgrid.risk.usual import (
    CLASSES,
    DEVIATIONS,
    SCALE_BITS,
    SIDE_MIN,
    drawn,
    edges,
    influence_of,
    limit_table,
    room_table,
    rounding,
)

CAPS_FROM: Final = 30
"""With fewer bidders on a side nobody is usual; only proved capabilities bind."""

_PART_BITS: Final = 8


@dataclass(frozen=True, eq=False)
class Groups:
    """Public: who owns which order, and what each was proved able to trade.

    Attributes
    ----------
    owners : (order,)
        Number of the participant.
    is_buy : (order,)
    capabilities : (order,), steps
        Below zero where nothing is known.
    """

    owners: Integers
    is_buy: Mask
    capabilities: Integers

    @cached_property
    def _keys(self) -> tuple[Integers, Integers]:
        keys, index = np.unique(2 * self.owners + self.is_buy, return_inverse=True)
        return keys, index.astype(np.int64)

    @property
    def of_order(self) -> Integers:
        """Group of each order: one a participant and side."""
        return self._keys[1]

    @cached_property
    def owner(self) -> Integers:
        """Participant of each group."""
        return self._keys[0] // 2

    def side(self, buys: bool) -> Integers:
        """Return the groups of a side."""
        return np.flatnonzero(self._keys[0] % 2 == buys)

    @cached_property
    def able(self) -> Integers:
        """What each group was proved able to trade; below zero where nothing is known."""
        out = np.full(len(self._keys[0]), -1, np.int64)
        np.maximum.at(out, self.of_order, self.capabilities)
        return out

    @cached_property
    def largest(self) -> int:
        """Orders of the largest group."""
        return int(np.bincount(self.of_order).max(initial=0))

    def sums(self, mpc: Mpc, x: Shares) -> Shares:
        """Add up orders by group."""
        data = sums_by_index(x.data, self.of_order, len(self.owner))
        return mpc.wrap(data, x.bound * self.largest)


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """A side while it is looked at; ``groups`` are those on it."""

    groups: Integers
    total: Shares
    sample: Integers

    @property
    def count(self) -> int:
        return len(self.groups)


@dataclass(frozen=True, slots=True, eq=False)
class Screened:
    """What is known before clearing.

    Attributes
    ----------
    batch
        With the quantities that count.
    totals : (group,)
        As sent, shared.
    kinds
        By participant, what it is flagged as.
    draw
        Public seed of the sample from which follows what is usual.
    """

    batch: BulkBatch
    totals: Shares
    kinds: dict[int, tuple[str, ...]]
    draw: int


def screened(mpc: Mpc, batch: BulkBatch, groups: Groups) -> Steps[Screened]:
    """Flag who stands out, is beyond its proof or trades with itself; bind them to their caps."""
    amounts = batch.number("quantity")
    totals = groups.sums(mpc, amounts)
    draw = (yield from mpc.coin()) if isinstance(mpc, Engine) else 0
    sides = []
    for buys in (True, False):
        chosen = groups.side(buys)
        if len(chosen) >= SIDE_MIN:
            orders = int(np.isin(groups.of_order, chosen).sum())
            total = totals[chosen].sum().claim(amounts.bound * orders)
            sides.append(_Side(chosen, total, chosen[drawn(len(chosen), draw, int(buys))]))
    known = np.flatnonzero(groups.able >= 0)
    (spoofs, over, rooms), (owners, washed) = yield from together(
        _unusual(mpc, totals, groups.able, sides, known), _washes(mpc, batch, amounts, groups)
    )
    listed = np.concatenate([np.zeros(0, np.int64), *(side.groups for side in sides)])
    marks = concatenate([spoofs, over, washed])
    bits = (yield from mpc.open(marks)) if len(marks) else []
    kinds: dict[int, tuple[str, ...]] = {}
    names = ("spoof", "out-of-capability", "wash")
    places = (groups.owner[listed], groups.owner[known], owners)
    for name, group, bit in zip(
        np.repeat(names, [len(one) for one in places]), np.concatenate(places), bits, strict=True
    ):
        if bit:
            kinds[int(group)] = (*kinds.get(int(group), ()), str(name))
    caught = {int(one) for one in known[np.array(bits[len(listed) :][: len(known)]) == 1]}
    out = {int(one) for one in listed[np.array(bits[: len(listed)]) == 1]} - set(known.tolist())
    capped = yield from _capped(mpc, batch, amounts, groups, caught, _loose(sides, rooms, out))
    return Screened(capped, totals, kinds, draw)


def _loose(
    sides: Sequence[_Side], rooms: Sequence[Shares], out: set[int]
) -> list[tuple[_Side, Shares, list[int]]]:
    """Return sides that are large enough for caps, with who of them stands out without proof."""
    found = []
    for side, room in zip(sides, rooms, strict=True):
        mine = [int(group) for group in side.groups if int(group) in out]
        if mine and side.count >= CAPS_FROM:
            found.append((side, room, mine))
    return found


# -- who stands out --------------------------------------------------------------------------------


def _unusual(
    mpc: Mpc, totals: Shares, able: Integers, sides: Sequence[_Side], known: Integers
) -> Steps[tuple[Shares, Shares, list[Shares]]]:
    """Return who stands out, who is beyond its proof, and for each side what follows for caps."""
    asked = [_ladder(totals, side) for side in sides]
    if len(known):
        asked.append(mpc.constant(able[known].tolist()) - totals[known])
    nothing = mpc.constant([])
    if not asked:
        return nothing, nothing, []
    found = _cut((yield from mpc.is_negative(concatenate(asked))), [len(one) for one in asked])
    over = found[-1] if len(known) else nothing
    if not sides:
        return nothing, over, []
    counts = [
        _column_counts(bits, len(side.sample)) for side, bits in zip(sides, found, strict=False)
    ]
    middles = yield from _middles(mpc, sides, counts)
    deviations = yield from _deviations(mpc, sides, counts, middles)
    limits = yield from _limits(mpc, sides, middles, deviations)
    rooms = [
        middle.weighted_sum(room_table(side.count))
        for side, middle in zip(sides, middles, strict=True)
    ]
    excess = [
        limit - totals[side.groups] * (side.count << SCALE_BITS)
        for side, limit in zip(sides, limits, strict=True)
    ]
    spoofs = yield from mpc.is_negative(concatenate(excess))
    listed = np.concatenate([side.groups for side in sides])
    proved = np.flatnonzero(able[listed] >= 0)
    if len(proved):
        # Proof lets it be large, up to what is proved.
        both = yield from mpc.multiply(spoofs[proved], over[np.searchsorted(known, listed[proved])])
        spoofs = place_at(spoofs, proved, both.claim(1))
    return spoofs, over, rooms


def _ladder(totals: Shares, side: _Side) -> Shares:
    """Return how far each of a sample is above each edge: (participant * edge)."""
    sizes = totals[side.sample] * (side.count << SCALE_BITS)
    steps = side.total * list(edges())
    return sizes.repeat(CLASSES) - steps.tile(len(side.sample))


def _cut(x: Shares, sizes: Sequence[int]) -> list[Shares]:
    ends = np.cumsum(sizes)
    return [x[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _column_counts(bits: Shares, rows: int) -> Shares:
    """Return how many of the sample are below each edge."""
    order = np.arange(rows * CLASSES).reshape(rows, CLASSES).T.reshape(-1)
    return bits[order].sum(rows)


def _middles(mpc: Mpc, sides: Sequence[_Side], counts: Sequence[Shares]) -> Steps[list[Shares]]:
    """Return each side's middle class as a one-hot vector."""
    gaps = [one * 2 - len(side.sample) for side, one in zip(sides, counts, strict=True)]
    short = yield from mpc.is_negative(concatenate(gaps))
    return [_one_hot(mpc, one) for one in _cut(short, [CLASSES] * len(sides))]


def _one_hot(mpc: Mpc, falling: Shares) -> Shares:
    """Turn ones followed by zeros into the one-hot vector of how many ones there are."""
    ends = concatenate([mpc.constant([1]), falling, mpc.constant([0])])
    return (ends[:-1] - ends[1:]).claim(1)


def _deviations(
    mpc: Mpc, sides: Sequence[_Side], counts: Sequence[Shares], middles: Sequence[Shares]
) -> Steps[list[Shares]]:
    """Return within how many classes of the middle half of each side lies, as one-hot vectors."""
    within = []
    for side, count, middle in zip(sides, counts, middles, strict=True):
        ladder = concatenate([mpc.constant([0]), count, mpc.constant([len(side.sample)])])
        places = np.arange(CLASSES + 1)
        parts = []
        for away in range(DEVIATIONS):
            upper = np.clip(places + away, 0, CLASSES) + 1
            lower = np.clip(places - away - 1, -1, CLASSES) + 1
            parts.append((ladder[upper] - ladder[lower]).claim(len(side.sample)))
        within.append(mpc.inner_each(middle, concatenate(parts)))
    found = yield from together(*within)
    sizes = np.repeat([len(side.sample) for side in sides], DEVIATIONS)
    inside = concatenate(found).claim(int(sizes.max()))
    short = yield from mpc.is_negative(inside * 2 - sizes.tolist())
    return [_one_hot(mpc, one) for one in _cut(short, [DEVIATIONS] * len(sides))]


def _limits(
    mpc: Mpc, sides: Sequence[_Side], middles: Sequence[Shares], deviations: Sequence[Shares]
) -> Steps[list[Shares]]:
    """Return above what a participant of each side stands out, in its own scale."""
    rows = [
        public_matrix(np.array(limit_table(side.count), np.int64), away)
        for side, away in zip(sides, deviations, strict=True)
    ]
    tables = [max(max(row) for row in limit_table(side.count)) for side in sides]
    chosen = yield from mpc.inner(
        concatenate(middles),
        concatenate([row.claim(most) for row, most in zip(rows, tables, strict=True)]),
        CLASSES + 1,
    )
    factors = chosen.claim(max(tables))
    totals = concatenate([side.total for side in sides])
    product = yield from mpc.multiply(totals, factors)
    return [product[k] for k in range(len(sides))]


# -- caps ------------------------------------------------------------------------------------------


def _capped(
    mpc: Mpc,
    batch: BulkBatch,
    amounts: Shares,
    groups: Groups,
    proved: set[int],
    loose: Sequence[tuple[_Side, Shares, list[int]]],
) -> Steps[BulkBatch]:
    """Let those who are flagged count up to their caps, in the order of their rows."""
    if not proved and not loose:
        return batch
    rooms: dict[int, Shares] = {group: mpc.constant([int(groups.able[group])]) for group in proved}
    for side, factor, mine in loose:
        shift, part = rounding(side.count)
        room = yield from mpc.multiply(side.total, factor)
        room = yield from mpc.truncate(room, SCALE_BITS + shift)
        room = yield from mpc.truncate(room * part, _PART_BITS)
        rooms |= dict.fromkeys(mine, room)
    rows, limits, before = [], [], []
    for group in sorted(rooms):
        own = np.flatnonzero(groups.of_order == group)
        sizes = amounts[own]
        sums = mpc.wrap(running_sums(sizes.data), amounts.bound * len(own))
        rows.append(own)
        limits.append(rooms[group].repeat(len(own)))
        before.append(sums - sizes)
    chosen = np.concatenate(rows)
    counted = yield from clip(
        mpc,
        concatenate(limits) - concatenate(before),
        mpc.constant([0] * len(chosen)),
        amounts[chosen],
    )
    counted = counted.claim(amounts.bound)
    start, first = batch.layout.start(PLACE), batch.layout.start("digit 0")
    place = np.ascontiguousarray(batch.data[chosen, start : start + RADIX]).reshape(-1, 2)
    spikes = yield from mpc.multiply(counted.repeat(RADIX), mpc.wrap(place, 1))
    data = batch.data.copy()
    data[chosen, first : first + RADIX] = spikes.data.reshape(-1, RADIX, 2)
    return replace(batch, data=data)


# -- who trades with itself ------------------------------------------------------------------------


def _washes(
    mpc: Mpc, batch: BulkBatch, amounts: Shares, groups: Groups
) -> Steps[tuple[Integers, Shares]]:
    """Return who buys and sells, and whether its prices meet."""
    owners = np.intersect1d(groups.owner[groups.side(True)], groups.owner[groups.side(False)])
    if not len(owners):
        return owners, mpc.constant([])
    rows = np.flatnonzero(np.isin(groups.owners, owners))
    own = replace(
        batch,
        data=np.ascontiguousarray(batch.data[rows]),
        is_counted=batch.is_counted[rows],
        is_replaced=batch.is_replaced[rows],
    )
    top = RADIX ** digits_of(batch.layout)
    tick = mpc.constant([0] * len(rows))
    for level in range(digits_of(batch.layout)):
        name = PLACE if level == 0 else f"digit {level}"
        tick = tick * RADIX + own.project(name, np.arange(RADIX))
    buys = groups.is_buy[rows]
    signs = np.where(buys, 1, -1).tolist()
    keen = (tick * signs + np.where(buys, 1, top).tolist()).claim(top)
    is_positive = yield from mpc.is_negative(-amounts[rows])
    keen = (yield from mpc.multiply(is_positive, keen)).claim(top)
    best = yield from _largest(mpc, keen, groups.of_order[rows])
    pairs = best.sum(2)
    apart = yield from mpc.is_negative(pairs - (top + 1))
    return owners, (1 - apart).claim(1)


def _largest(mpc: Mpc, x: Shares, index: Integers) -> Steps[Shares]:
    """Return the largest element of each index, in the order of indices."""
    places = [np.flatnonzero(index == one) for one in np.unique(index)]
    width = 1 << (max(len(one) for one in places) - 1).bit_length()
    table = np.array([np.resize(one, width) for one in places])
    values = x[table.T.reshape(-1)]
    while width > 1:
        half = len(values) // 2
        first, second = values[:half], values[half:]
        moved = yield from mpc.where_negative(first - second, second - first)
        values, width = (first + moved).claim(x.bound), width // 2
    return values


# -- after clearing --------------------------------------------------------------------------------


def afterwards(
    mpc: Mpc, groups: Groups, totals: Shares, volume: Shares, willing: Shares, unit: int
) -> Steps[Shares]:
    """Return marks of who withheld and who is needed: see :func:`kinds_of`.

    ``willing`` (order,) is what each has at the price or better; ``unit`` are the weighted steps
    a step.
    """
    sellers = groups.side(False)
    able = _able_sellers(groups)
    if not len(sellers):
        return mpc.constant([])
    total = totals[sellers].sum()
    above, below = influence_of(len(sellers))
    # Needed, and more than its share: larger than the larger of the two limits.
    limits = [total * (above * unit), (total * unit - volume) * below]
    more = yield from mpc.where_negative(limits[0] - limits[1], limits[1] - limits[0])
    limit = (limits[0] + more).claim(max(one.bound for one in limits))
    asked = [limit - totals[sellers] * (below * unit)]
    if len(able):
        asked += [
            totals[able] * 2 - groups.able[able].tolist(),
            -groups.sums(mpc, willing)[able],
        ]
    found = _cut((yield from mpc.is_negative(concatenate(asked))), [len(one) for one in asked])
    if not len(able):
        return found[0]
    both = yield from mpc.multiply(found[1], found[2])
    return concatenate([found[0], both]).claim(1)


def _able_sellers(groups: Groups) -> Integers:
    sellers = groups.side(False)
    return sellers[groups.able[sellers] > 0]


def kinds_of(groups: Groups, marks: Sequence[int]) -> Mapping[int, tuple[str, ...]]:
    """Return who is flagged as what, from opened marks of :func:`afterwards`."""
    sellers, able = groups.side(False), _able_sellers(groups)
    out: dict[int, tuple[str, ...]] = {}
    names = ["pivotal"] * len(sellers) + ["withholding"] * len(able)
    places = np.concatenate([sellers, able])
    for name, group, mark in zip(names, places, marks, strict=True):
        if mark:
            owner = int(groups.owner[group])
            out[owner] = (*out.get(owner, ()), name)
    return out
