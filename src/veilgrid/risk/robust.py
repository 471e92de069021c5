"""Means, tails, quantiles and Huber's location of weighted inputs, plain or shared [risk 4].

Everything here is a generator over ``mpc``, an :class:`~veilgrid.mpc.Engine` on shares or a
:class:`~veilgrid.mpc.Plain` on numbers: the same lines are the protocol and its oracle. From a
histogram with the values in its bins, no input is ever compared with anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc import Mpc, Shares, Steps, by_rank, clip, concatenate
from veilgrid.mpc.bulk import BulkBatch
from veilgrid.mpc.layout import Equal, Integers, Layout, Number, OneHot, Scaled

BINS: Final = 64
_STEPS: Final = 16
_OUTER: Final = 4
_UNIT: Final = 4 * _STEPS
_AT: Final = (4, 2)  # The middle of the sixteenth in which the change is.
_HALF_BELOW: Final = (2, 1)  # Half way from the lower edge to there.
_HALF_ABOVE: Final = (2, 1 + 2 * _STEPS)  # Half way from there to the upper edge.


# -- what sources send ---------------------------------------------------------------------------


def edges_for(lower: Integers, upper: Integers, bins: int = BINS) -> Integers:
    """Return edges of bins that cover all bounds, fine where most of the bounds are.

    Parameters
    ----------
    lower, upper : (source,)
        Bounds of each source, in steps.
    bins
        How many.

    Returns
    -------
    (bin + 1,)
        Rising. Bins have one width unless a few sources have far wider bounds than the others.
    """
    first, last = int(lower.min()), int(upper.max()) + 1
    low, high = int(np.quantile(lower, 0.1)), int(np.quantile(upper, 0.9)) + 1
    if 4 * (high - low) >= last - first:
        width = max(-(-(last - first) // bins), 1)
        return first + width * np.arange(bins + 1, dtype=np.int64)
    inner = bins - 2 * _OUTER
    width = max(-(-(high - low) // inner), 1)
    core = low + width * np.arange(inner + 1, dtype=np.int64)
    below = core[0] - _reaches(int(core[0]) - first, width)[::-1]
    above = core[-1] + _reaches(last - int(core[-1]), width)
    return np.concatenate([below, core, above])


def _reaches(distance: int, width: int) -> Integers:
    """Return rising distances, each a multiple of the last, that end at or beyond ``distance``."""
    ratio = max(distance / width, 2.0**_OUTER) ** (1 / _OUTER)
    reached: Integers = np.ceil(width * ratio ** np.arange(1, _OUTER + 1)).astype(np.int64)
    reached[-1] = max(int(reached[-1]), distance)
    return reached


def number_layout(lower: Integers, upper: Integers) -> Layout:
    """Return the layout of one value within bounds: for sums, means and variances."""
    return Layout((Number("value", lower, upper),))


def histogram_layout(lower: Integers, upper: Integers, edges: Integers) -> Layout:
    """Return the layout of a value, the bin it is in, and where in the bin it is [risk 4.1]."""
    widths = np.diff(edges)
    largest = int(widths.max()) - 1
    parts = (
        Number("value", lower, upper),
        Number("offset", 0, largest),
        OneHot("bin", len(widths)),
        Scaled("part", "bin", "offset"),
    )
    inside = Equal((("value", 1), ("offset", -1), ("bin", -edges[:-1])))
    if widths.min() == widths.max():
        return Layout(parts, (inside,))
    room = Equal((("offset", 1), ("room", 1), ("bin", 1 - widths)))
    return Layout((*parts, Number("room", 0, largest)), (inside, room))


def encode_values(layout: Layout, values: Integers, edges: Integers | None = None) -> Integers:
    """Return inputs for values: (source, element); out of bounds gives an invalid input."""
    if edges is None:
        return layout.encode({"value": values})
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    offset = values - edges[place]
    room = np.diff(edges)[place] - 1 - offset
    return layout.encode({"value": values, "bin": place, "offset": offset, "room": room})


# -- a histogram on shares -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Weighted sums of all sources' vectors; nothing of it opens.

    Attributes
    ----------
    counts, sums : (bin,)
        Weight in each bin, and weight times (value - centre).
    parts : (bin,)
        Weight times (value - lower edge).
    edges : (bin + 1,)
        Relative to ``centre``.
    mass
        Sum of all weights.
    """

    counts: Shares
    sums: Shares
    parts: Shares
    edges: Integers
    centre: int
    mass: int

    def times(self, factor: int) -> "Histogram":
        """Return the histogram of as many times the weight, so that a cut may go through one."""
        if factor == 1:
            return self
        counts, sums, parts = self.counts * factor, self.sums * factor, self.parts * factor
        return Histogram(counts, sums, parts, self.edges, self.centre, self.mass * factor)


def histogram_of(batch: BulkBatch, edges: Integers, weights: Integers) -> Histogram:
    """Return the histogram of the sources that count; no message is needed."""
    kept = np.where(batch.is_counted | batch.is_replaced, weights, 0)
    centre = int(edges[len(edges) // 2])
    moved = edges - centre
    counts = batch.column_sums("bin", kept)
    parts = batch.column_sums("part", kept)
    sums = counts * [int(edge) for edge in moved[:-1]] + parts
    mass = int(kept.sum())
    largest = int(np.abs(moved).max())
    return Histogram(counts, sums.claim(mass * largest), parts, moved, centre, mass)


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """Where falling numbers at the edges change sign, on shares.

    Attributes
    ----------
    chosen, below : (row * bin)
        One in the bin of the change; one in all bins before it.
    height, depth : (row,)
        The number at the lower edge of that bin, and minus the number at its upper edge.
    fraction : (row,)
        How far into the bin the change is, in sixteenths, rounded down.
    """

    chosen: Shares
    below: Shares
    height: Shares
    depth: Shares
    fraction: Shares


def crossing(mpc: Mpc, levels: Shares, bins: int) -> Steps[Crossing]:
    """Find where each row of falling numbers at the edges changes sign [risk 4.2].

    ``levels`` is (row * (bin + 1)). The first counts as not negative and the last as negative.
    """
    rows = len(levels) // (bins + 1)
    at = np.arange(len(levels)).reshape(rows, bins + 1)
    sign = yield from mpc.is_negative(levels[at[:, 1:-1].reshape(-1)])
    zero, one = mpc.constant([0]), mpc.constant([1])
    signs: list[Shares] = []
    for row in range(rows):
        signs += [zero, sign[row * (bins - 1) : (row + 1) * (bins - 1)], one]
    negative = concatenate(signs)
    upper, lower = negative[at[:, 1:].reshape(-1)], negative[at[:, :-1].reshape(-1)]
    chosen = (upper - lower).claim(1)
    ends = concatenate([levels[at[:, :-1].reshape(-1)], levels[at[:, 1:].reshape(-1)]])
    heights = yield from mpc.inner(concatenate([chosen, chosen]), ends, bins)
    height = heights[:rows].claim(levels.bound)
    depth = (-heights[rows:]).claim(levels.bound)
    gap = height + depth
    ladder = concatenate([height * _STEPS - gap * k for k in range(1, _STEPS)])
    short = yield from mpc.is_negative(ladder)
    order = np.arange((_STEPS - 1) * rows).reshape(_STEPS - 1, rows).T.reshape(-1)
    fraction = (_STEPS - 1) - short[order].sum(_STEPS - 1)
    return Crossing(chosen, (1 - upper).claim(1), height, depth, fraction.claim(_STEPS))


def _at_masses(mpc: Mpc, histogram: Histogram, masses: Sequence[int]) -> Steps[Crossing]:
    """Find the bins in which so much weight has been passed."""
    invariant(
        all(0 <= mass < histogram.mass for mass in masses), "less than the whole weight is passed"
    )
    running = [mpc.constant([0])]
    for k in range(len(histogram.counts)):
        running.append(running[-1] + histogram.counts[k])
    passed = concatenate(running).claim(histogram.mass)
    levels = concatenate([mass - passed for mass in masses]).claim(histogram.mass)
    return (yield from crossing(mpc, levels, len(histogram.counts)))


def _places(mpc: Mpc, histogram: Histogram, found: Crossing, numerators: Integers) -> Steps[Shares]:
    """Return points in the found bins, in 64ths of a step of the inputs.

    The point of each row is a sixteenth times (change times its first numerator plus its second)
    into the bin, in 64ths: (2, 1) is the middle of the sixteenth of the change, doubled.
    """
    bins = len(histogram.counts)
    edges = _table(found.chosen, histogram.edges[:-1], bins)
    widths = _table(found.chosen, np.diff(histogram.edges), bins)
    steps = found.fraction * numerators[:, 0].tolist() + numerators[:, 1].tolist()
    inside = yield from mpc.multiply(widths, steps.claim(_UNIT))
    return edges * _UNIT + inside


def _table(chosen: Shares, table: Integers, bins: int) -> Shares:
    """Return the entry of a public table at the chosen place of each row."""
    rows = len(chosen) // bins
    listed = [int(value) for value in table]
    largest = max(abs(value) for value in listed)
    return (chosen * (listed * rows)).sum(bins).claim(largest)


@dataclass(frozen=True, slots=True)
class Figure:
    """What opens: integers that give a figure and its standard error.

    Attributes
    ----------
    parts
        Shares of the numerator and, where there is one, of the spread.
    divisor, spread_divisor
        Of the two, in steps of the inputs and in steps squared.
    centre
        To be added.
    """

    parts: Shares
    divisor: int
    spread_divisor: int
    centre: int


def mean_between(mpc: Mpc, histogram: Histogram, low: int, high: int) -> Steps[Figure]:
    """Return the mean of the weight that lies between the masses ``low`` and ``high`` [risk 4.3].

    0 and the whole mass give the mean, equal cuts the trimmed mean, one cut the mean of a tail.
    """
    invariant(0 <= low < high <= histogram.mass, "some weight lies between the cuts")
    mass = histogram.mass
    cuts = [cut for cut in (low, high) if 0 < cut < mass]
    total = histogram.sums.sum() * _UNIT
    if not cuts:
        spread = yield from _spread(mpc, histogram, None, None)
        parts = concatenate([total, spread])
        return Figure(parts, _UNIT * mass, mass**2, histogram.centre)
    found = yield from _at_masses(mpc, histogram, cuts)
    # A single cut keeps the tail beyond it; two cuts drop the tails.
    is_below = [low == 0] if len(cuts) == 1 else [True, False]
    tails = yield from _tails(mpc, histogram, found, is_below)
    numerator = tails if len(cuts) == 1 else total - tails.sum()
    first, last = _row(found, 0, histogram), _row(found, len(cuts) - 1, histogram)
    spread = yield from _spread(
        mpc, histogram, first if low > 0 else None, last if high < mass else None
    )
    divisor = _UNIT * (high - low)
    bound = 4 * _UNIT * mass * max(int(np.abs(histogram.edges).max()), 1)
    parts = concatenate([numerator.claim(bound), spread])
    return Figure(parts, divisor, (high - low) ** 2, histogram.centre)


def _row(found: Crossing, row: int, histogram: Histogram) -> tuple[Shares, Shares]:
    bins = len(histogram.counts)
    part = slice(row * bins, (row + 1) * bins)
    return found.chosen[part], found.below[part]


def _tails(
    mpc: Mpc, histogram: Histogram, found: Crossing, is_below: Sequence[bool]
) -> Steps[Shares]:
    """Return for each cut the sum of values below it, or above it, in 64ths."""
    bins = len(histogram.counts)
    kinds = np.array([_HALF_BELOW if below else _HALF_ABOVE for below in is_below])
    points = yield from _places(mpc, histogram, found, kinds)
    rows, weights = [], []
    for place, below in enumerate(is_below):
        chosen, before = _row(found, place, histogram)
        rows.append(before if below else (1 - before - chosen).claim(1))
        weights.append(found.height[place] if below else found.depth[place])
    rest = yield from mpc.multiply(concatenate(weights), points)
    whole = yield from mpc.inner(concatenate(rows), histogram.sums.tile(len(is_below)), bins)
    return whole * _UNIT + rest


def _spread(
    mpc: Mpc,
    histogram: Histogram,
    low: tuple[Shares, Shares] | None,
    high: tuple[Shares, Shares] | None,
) -> Steps[Shares]:
    """Return mass times sum of squares minus square of sum, winsorised at bin edges.

    Squares within a bin are taken at their largest, so the spread is never too small.
    """
    bins, edges = len(histogram.counts), histogram.edges
    one = mpc.constant([1] * bins)
    inside = one if high is None else high[0] + high[1]
    inside = (inside if low is None else inside - low[1]).claim(1)
    lower = [int(edge) for edge in edges[:-1]]
    grown = [2 * int(edge) + int(width) for edge, width in zip(lower, np.diff(edges), strict=True)]
    squares = histogram.counts * [edge**2 for edge in lower] + histogram.parts * grown
    largest = int(np.abs(edges).max())
    left, right = [inside, inside], [histogram.sums, squares]
    points: list[Shares] = []
    for row, table, is_low in ((low, edges[:-1], True), (high, edges[1:], False)):
        if row is not None:
            outside = row[1] if is_low else one - row[0] - row[1]
            left.append(outside.claim(1))
            right.append(histogram.counts)
            points += [_table(row[0], table, bins), _table(row[0], table**2, bins)]
    found = yield from mpc.inner(concatenate(left), concatenate(right), bins)
    first, second = found[0], found[1]
    if points:
        weights = [found[2 + k // 2] for k in range(len(points))]
        moved = yield from mpc.multiply(concatenate(weights), concatenate(points))
        for k in range(0, len(points), 2):
            first, second = first + moved[k], second + moved[k + 1]
    first = first.claim(histogram.mass * largest)
    second = second.claim(histogram.mass * largest**2 * 2)
    square = yield from mpc.inner(first, first)
    return second * histogram.mass - square


def quantiles_of(mpc: Mpc, histogram: Histogram, levels: Sequence[float]) -> Steps[Figure]:
    """Return quantiles, to a sixteenth of a bin."""
    masses = [min(int(level * histogram.mass), histogram.mass - 1) for level in levels]
    found = yield from _at_masses(mpc, histogram, masses)
    points = yield from _places(mpc, histogram, found, np.array([_AT] * len(found.height)))
    return Figure(points, _UNIT, 1, histogram.centre)


def huber(mpc: Mpc, histogram: Histogram, reach: int) -> Steps[Figure]:
    """Return Huber's location: each value pulls, but none more than from ``reach`` away.

    The pull on a point is a public linear function of the histogram, up to bins that ``reach``
    cuts, which pull from their middle [Huber 1964].
    """
    bins, edges = len(histogram.counts), histogram.edges
    pulls = []
    for point in (int(edge) for edge in edges):
        low, high = edges[:-1] - point, edges[1:] - point
        is_near = (low >= -reach) & (high <= reach)
        middle = np.clip((low + high) // 2, -reach, reach)
        fixed = np.where(is_near, -point, middle)
        by_count = histogram.counts * [int(value) for value in fixed]
        by_sum = histogram.sums * [int(value) for value in is_near]
        pulls.append(by_count.sum() + by_sum.sum())
    largest = 2 * histogram.mass * int(np.abs(edges).max())
    levels = concatenate(pulls).claim(max(largest, histogram.mass * reach))
    found = yield from crossing(mpc, levels, bins)
    points = yield from _places(mpc, histogram, found, np.array([_AT] * len(found.height)))
    return Figure(points, _UNIT, 1, histogram.centre)


def conduct(mpc: Mpc, batch: BulkBatch, histogram: Histogram, tolerance: int) -> Steps[Shares]:
    """Return for each source 0, 1 or 2: near the median, off, far off [risk 5.2].

    Off is beyond 2, far off beyond 4 robust standard deviations (from the quartiles, at least
    ``tolerance`` steps). One product a source, and comparisons of bins only.
    """
    bins = len(histogram.counts)
    mass = histogram.mass
    found = yield from _at_masses(mpc, histogram, [mass // 4, mass // 2, 3 * mass // 4])
    points = yield from _places(mpc, histogram, found, np.array([_AT] * 3))
    # Quartiles of a normal distribution are 1.349 standard deviations apart.
    wide = (points[2] - points[0]) * 741
    floor = _UNIT * tolerance * 1000
    is_narrow = yield from mpc.is_negative(wide - floor)
    widened = yield from mpc.multiply(is_narrow, floor - wide)
    deviation = (wide + widened).claim(wide.bound + floor)
    middles = [int(edge) for edge in _UNIT // 2 * (histogram.edges[:-1] + histogram.edges[1:])]
    off = (mpc.constant(middles) - points[1]) * 1000
    sides = []
    for reach in (2, 4):
        sides += [deviation * reach - off, deviation * reach + off]
    beyond = yield from mpc.is_negative(concatenate(sides))
    classes = beyond[:bins]
    for k in range(1, 4):
        classes = classes + beyond[k * bins : (k + 1) * bins]
    rows = batch.rows("bin")
    places = len(batch.names)
    found_level = yield from mpc.inner(rows, classes.claim(2).tile(places), bins)
    return found_level.claim(2)


# -- few inputs: exact ---------------------------------------------------------------------------


def exact_quantiles(
    mpc: Mpc, x: Shares, lower: int, weights: Sequence[int], ranks: Sequence[int]
) -> Steps[Shares]:
    """Return the values at which so much weight is reached, without sorting; x >= ``lower``."""
    shifted = x - lower
    bits = max((x.bound - lower).bit_length(), 1)
    listed = None if all(weight == 1 for weight in weights) else [int(w) for w in weights]
    found = yield from by_rank(mpc, shifted.claim(2**bits - 1), list(ranks), bits, listed)
    return (found + lower).claim(x.bound)


def exact_between(
    mpc: Mpc, x: Shares, lower: int, weights: Sequence[int], low: int, high: int
) -> Steps[Figure]:
    """Return the mean of the weight between two masses, exactly, and its spread.

    The values are clipped to the two quantiles; what was clipped is a public multiple of them.
    """
    mass = sum(int(weight) for weight in weights)
    invariant(0 <= low < high <= mass, "some weight lies between the cuts")
    ranks = [low + 1 if low else 1, high if high < mass else mass]
    kept = x
    ends = None
    if low > 0 or high < mass:
        ends = yield from exact_quantiles(mpc, x, lower, weights, ranks)
        kept = yield from clip(mpc, x, ends[0], ends[1])
    weighed = kept * [int(weight) for weight in weights]
    first = kept.weighted_sum([int(weight) for weight in weights]).claim(mass * x.bound)
    squares = yield from mpc.inner(weighed, kept)
    square = yield from mpc.inner(first, first)
    spread = squares.claim(mass * x.bound**2) * mass - square
    numerator = first
    if ends is not None:
        numerator = first - ends[0] * low - ends[1] * (mass - high)
    parts = concatenate([numerator, spread])
    return Figure(parts, high - low, (high - low) ** 2, 0)
