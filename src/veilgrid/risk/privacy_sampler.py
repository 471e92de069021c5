"""Draw integer noise from random bits; no floating point anywhere [privacy 2].

The discrete Gaussian is drawn exactly by rejection. Poisson numbers, and with them Skellam noise,
come from a table of its distribution function, computed with integers and compared with 128 random
bits: its distance from the exact distribution is below ``2**-110``.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from math import isqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.secret import Randomness

Integers = npt.NDArray[np.int64]

TABLE_BITS: Final = 128
VARIANCE_MAX: Final = 4_000_000
_WORK_BITS: Final = 256
_CHUNK: Final = 1024


class Bits:
    """Random bits and whole numbers out of octets.

    Parameters
    ----------
    randomness
        Where octets come from.
    """

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness
        self._pool, self._left = 0, 0

    def bits(self, count: int) -> int:
        """Return a uniform number of ``count`` bits."""
        while self._left < count:
            fresh = int.from_bytes(self._randomness.octets(_CHUNK), "little")
            self._pool |= fresh << self._left
            self._left += 8 * _CHUNK
        taken = self._pool & ((1 << count) - 1)
        self._pool >>= count
        self._left -= count
        return taken

    def below(self, bound: int) -> int:
        """Return a uniform number 0..bound-1."""
        size = (bound - 1).bit_length()
        while True:
            number = self.bits(size)
            if number < bound:
                return number

    def happens(self, chance: Fraction) -> bool:
        """Return true with a probability that is a fraction."""
        return self.below(chance.denominator) < chance.numerator

    def happens_exp(self, power: Fraction) -> bool:
        """Return true with probability ``exp(-power)`` [Canonne, Kamath and Steinke 2020]."""
        while power > 1:
            if not self._happens_exp_small(Fraction(1)):
                return False
            power -= 1
        return self._happens_exp_small(power)

    def _happens_exp_small(self, power: Fraction) -> bool:
        k = 1
        while self.happens(power / k):
            k += 1
        return k % 2 == 1


def _laplace(bits: Bits, scale: int) -> int:
    """Return a draw whose probabilities are as ``exp(-abs(draw) / scale)``."""
    while True:
        rest = bits.below(scale)
        if not bits.happens_exp(Fraction(rest, scale)):
            continue
        turns = 0
        while bits.happens_exp(Fraction(1)):
            turns += 1
        size, is_negative = rest + scale * turns, bool(bits.bits(1))
        if is_negative and size == 0:
            continue
        return -size if is_negative else size


def discrete_gaussian(randomness: Randomness, variance: Fraction, count: int) -> list[int]:
    """Draw exactly from the discrete Gaussian around zero.

    Parameters
    ----------
    randomness
        Where octets come from.
    variance : > 0, steps squared
        Parameter of the distribution, a fraction; nearly its variance.
    count
        Independent draws.

    Returns
    -------
    (draw,), steps
        Algorithm 3 of [Canonne, Kamath and Steinke 2020].
    """
    if variance <= 0:
        raise InputError([Finding("noise", f"found variance {variance}, expected more than 0")])
    bits = Bits(randomness)
    draws: list[int] = []
    scale = isqrt(variance.numerator // variance.denominator) + 1
    while len(draws) < count:
        draw = _laplace(bits, scale)
        if bits.happens_exp((abs(draw) - variance / scale) ** 2 / (2 * variance)):
            draws.append(draw)
    return draws


@cache
def poisson_limits(mean: Fraction) -> tuple[int, tuple[int, ...]]:
    """Return the least value, and for each value the probability up to it times ``2**128``.

    Parameters
    ----------
    mean : > 0
        Of the Poisson distribution, a fraction.
    """
    if not 0 < mean <= VARIANCE_MAX:
        problem = f"found mean {float(mean):g}, expected 0..{VARIANCE_MAX}"
        raise InputError([Finding("noise", problem, "use a coarser step")])
    mode = mean.numerator // mean.denominator
    above, below = [1 << _WORK_BITS], []
    k = mode
    while above[-1]:
        k += 1
        above.append(above[-1] * mean.numerator // (mean.denominator * k))
    k, mass = mode, above[0]
    while k > 0 and mass:
        mass = mass * k * mean.denominator // mean.numerator
        below.append(mass)
        k -= 1
    masses = below[::-1] + above
    total, running, limits = sum(masses), 0, []
    for mass in masses:
        running += mass
        limits.append((running << TABLE_BITS) // total)
    return mode - len(below), tuple(limits)


def by_limits(
    randomness: Randomness, lowest: int, limits: Sequence[int], bits: int, count: int
) -> Integers:
    """Draw by comparing uniform numbers with the limits of a distribution function.

    Parameters
    ----------
    randomness
        Where octets come from.
    lowest
        Value of draws below the first limit.
    limits : rising, 0..2**bits
        Probability up to each value times ``2**bits``.
    bits : at least 64
        Of the uniform numbers.
    count
        Independent draws.
    """
    invariant(bits >= 64, "a first comparison takes 64 bits")
    tops = [min(limit >> (bits - 64), 2**64 - 1) for limit in limits]
    table = np.array(tops, np.uint64)
    words = np.frombuffer(randomness.octets(8 * count), "<u8")
    first = np.searchsorted(table, words, side="left")
    last = np.searchsorted(table, words, side="right")
    out: Integers = last.astype(np.int64)
    for place in np.flatnonzero(first != last).tolist():
        rest = int.from_bytes(randomness.octets(-(-(bits - 64) // 8)), "little")
        draw = (int(words[place]) << (bits - 64)) | (rest & ((1 << (bits - 64)) - 1))
        out[place] = int(first[place]) + sum(
            limits[k] <= draw for k in range(int(first[place]), int(last[place]))
        )
    return np.asarray(np.minimum(out, len(limits) - 1) + lowest, np.int64)


def skellam(randomness: Randomness, variance: Fraction, count: int) -> Integers:
    """Draw Skellam noise: the difference of two Poisson numbers.

    Sums of independent Skellam draws are Skellam again, with the sum of the variances; that is why
    noise made of shares is of this kind.

    Parameters
    ----------
    randomness
        Where octets come from.
    variance : 0..4e6, steps squared
        A fraction.
    count
        Independent draws.

    Returns
    -------
    (draw,), steps
    """
    lowest, limits = poisson_limits(variance / 2)
    both = by_limits(randomness, lowest, limits, TABLE_BITS, 2 * count)
    return np.asarray(both[:count] - both[count:], np.int64)
