"""Comparisons, choices, sorting and quantiles on top of the engine [mpc 5.6].

Every function runs with :class:`~veilgrid.mpc.engine.Engine` on shares and with
:class:`~veilgrid.mpc.plain.Plain` on numbers; ``mpc`` stands for either.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares, concatenate, place_at
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.plain import Plain

Mpc = Engine | Plain
Indices = npt.NDArray[np.int64]


def less(mpc: Mpc, a: Shares, b: Shares) -> Steps[Shares]:
    """Return 1 where ``a`` is below ``b``, else 0."""
    return (yield from mpc.is_negative(a - b))


def equal(mpc: Mpc, a: Shares, b: Shares) -> Steps[Shares]:
    """Return 1 where ``a`` equals ``b``, else 0."""
    return (yield from mpc.is_zero(a - b))


def select(mpc: Mpc, chosen: Shares, if_one: Shares, if_zero: Shares) -> Steps[Shares]:
    """Return ``if_one`` where ``chosen`` is 1 and ``if_zero`` where it is 0."""
    difference = yield from mpc.multiply(chosen, if_one - if_zero)
    return (if_zero + difference).claim(max(if_one.bound, if_zero.bound))


def clip(mpc: Mpc, x: Shares, lower: Shares, upper: Shares) -> Steps[Shares]:
    """Return ``x`` kept between ``lower`` and ``upper``, which may not cross."""
    count = len(x)
    low, high = lower + [0] * count, upper + [0] * count
    moves = yield from mpc.where_negative(
        concatenate([x - low, high - x]), concatenate([low - x, high - x])
    )
    bound = max(x.bound, lower.bound, upper.bound)
    return (x + moves[:count] + moves[count:]).claim(bound)


def minimum_maximum(mpc: Mpc, x: Shares) -> Steps[tuple[Shares, Shares]]:
    """Return the smallest and the largest element, in a tournament."""
    small, large = x, x
    while len(small) > 1:
        pairs = len(small) // 2
        size = 2 * pairs
        first = concatenate([small[0:size:2], large[1:size:2]])
        second = concatenate([small[1:size:2], large[0:size:2]])
        moved = yield from mpc.where_negative(second - first, second - first)
        chosen = (first + moved).claim(x.bound)
        # The first half keeps the smaller of two; the second half the larger one by symmetry.
        larger = (second - moved).claim(x.bound)
        small = concatenate([chosen[:pairs], small[size:]])
        large = concatenate([larger[pairs:], large[size:]])
    return small, large


@cache
def merge_network(count: int) -> tuple[tuple[Indices, Indices], ...]:
    """Return the stages of Batcher's odd-even merge sort: who is compared with whom."""
    stages: list[tuple[Indices, Indices]] = []
    size = 1
    while size < count:
        step = size
        while step > 0:
            low: list[int] = []
            for start in range(step % size, count - step, 2 * step):
                low += [
                    start + k
                    for k in range(min(step, count - start - step))
                    if (start + k) // (2 * size) == (start + k + step) // (2 * size)
                ]
            first = np.array(low, np.int64)
            if first.size:
                stages.append((first, first + step))
            step //= 2
        size *= 2
    return tuple(stages)


def sort(mpc: Mpc, x: Shares) -> Steps[Shares]:
    """Return the elements in rising order; who was where stays secret."""
    stages = merge_network(len(x))
    masks = yield from mpc.prepare([len(first) for first, _ in stages], x - x)
    for (first, second), mask in zip(stages, masks, strict=True):
        a, b = x[first], x[second]
        moved = yield from mpc.where_negative(b - a, b - a, mask)
        x = place_at(x, first, (a + moved).claim(x.bound))
        x = place_at(x, second, (b - moved).claim(x.bound))
    return x


def rank_of(count: int, quantile: float) -> int:
    """Return the rank, from 1, of the lower empirical quantile.

    Raises
    ------
    InputError
        The quantile is not within 0..1.
    """
    if not 0 <= quantile <= 1:
        problem = f"found {quantile}, expected 0..1"
        raise InputError([Finding("quantile", problem)])
    return min(max(int(np.ceil(quantile * count - 1e-12)), 1), count)


def by_rank(
    mpc: Mpc, x: Shares, ranks: list[int], bits: int, weights: list[int] | None = None
) -> Steps[Shares]:
    """Return the elements of the given ranks (from 1) without sorting.

    With ``weights``, public and at least 0, an element stands for as many as its weight.

    The elements, non-negative and below two to the ``bits``, are decomposed once; then the bits
    of each answer are found from the top down. Nothing is opened on the way.
    """
    count = len(x)
    whole = count if weights is None else sum(weights)
    invariant(all(1 <= rank <= whole for rank in ranks), "a rank exists")
    planes = yield from mpc.decompose(x, bits)
    active = mpc.constant([1] * (count * len(ranks)))
    wanted = mpc.constant(ranks)
    answer = mpc.constant([0] * len(ranks))
    for place in range(bits - 1, -1, -1):
        bit = planes[place].tile(len(ranks))
        ones = yield from mpc.multiply(active, bit)
        zeros = (active - ones).claim(1)
        counted = zeros if weights is None else zeros * (weights * len(ranks))
        below = counted.sum(count).claim(whole)
        # The answer's bit is one if fewer elements than the rank have a zero here.
        chosen = yield from mpc.is_negative(below - wanted)
        spread = chosen.repeat(count)
        both = yield from mpc.multiply(
            concatenate([spread, chosen]), concatenate([ones - zeros, below])
        )
        active = (zeros + both[: len(spread)]).claim(1)
        wanted = (wanted - both[len(spread) :]).claim(whole)
        answer = answer + chosen * 2**place
    return answer.claim(2**bits - 1)


def quantile_of_counts(mpc: Mpc, counts: Shares, ranks: list[int]) -> Steps[Shares]:
    """Return the bin, from 0, in which each rank (from 1) falls, from a histogram.

    ``counts`` are the summed one-hot vectors of the inputs.
    """
    bins = len(counts)
    running = [counts[0]]
    for k in range(1, bins):
        running.append(running[-1] + counts[k])
    cumulative = concatenate(running).claim(sum(c.bound for c in [counts[0]] * bins))
    short = concatenate([cumulative - rank for rank in ranks])
    is_short = yield from mpc.is_negative(short)
    return is_short.sum(bins)
