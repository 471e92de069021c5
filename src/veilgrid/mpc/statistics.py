"""Sums, means, variances and quantiles of shared numbers [mpc 5.7]."""

from collections.abc import Sequence

from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.order import Mpc, by_rank, rank_of


def weighted_sum(mpc: Mpc, x: Shares, weights: Sequence[int]) -> Steps[list[int]]:
    """Open the sum of numbers times public integers; it needs no multiplication."""
    return (yield from mpc.open(x.weighted_sum(weights)))


def total(mpc: Mpc, x: Shares) -> Steps[list[int]]:
    """Open the sum."""
    return (yield from mpc.open(x.sum()))


def spread(mpc: Mpc, x: Shares) -> Steps[list[int]]:
    """Open ``count * sum of squares - square of sum``: the variance times ``count`` squared.

    Neither of the two terms is opened by itself.
    """
    squares = yield from mpc.inner(x, x)
    sums = x.sum()
    square = yield from mpc.inner(sums, sums)
    return (yield from mpc.open(squares * len(x) - square))


def quantiles(mpc: Mpc, x: Shares, levels: Sequence[float], lower: int) -> Steps[list[int]]:
    """Open lower empirical quantiles of numbers that are at least ``lower``."""
    shifted = x - lower
    bits = max((x.bound - lower).bit_length(), 1)
    ranks = [rank_of(len(x), level) for level in levels]
    chosen = yield from by_rank(mpc, shifted.claim(2**bits - 1), ranks, bits)
    return (yield from mpc.open(chosen + lower))
