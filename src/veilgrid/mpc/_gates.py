"""Kernels for the first fold of the check of Boolean gates [mpc 6.3].

Gate number ``64 i + 8 s + l`` is bit ``8 s + l`` of word ``i``. It belongs to block ``l``; its
weight is a product of one factor each for word, octet and block. The eight bits of an octet then
meet eight public factors, which is one look-up in a table of 256 sums for each of the three
planes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from veilgrid.mpc._binary import product, reduced
from veilgrid.mpc._jit import carryless, compiled

Words = npt.NDArray[np.uint64]

_OCTET = np.uint64(255)
_ONE = np.uint64(1)


@compiled
def tables(factors: Words, basis: Words) -> Words:
    """Return for each plane and octet the sum of factors of set bits: (plane=3, 256)."""
    out = np.zeros((3, 256), np.uint64)
    for plane in range(3):
        for bit in range(8):
            value = product(factors[bit], basis[plane])
            for octet in range(256):
                if (octet >> bit) & 1:
                    out[plane, octet] ^= value
    return out


@compiled
def gather(planes: Words, alpha: Words) -> Words:
    """Return, for each bit and plane, the sum of the weights of words with that bit: (64, 3)."""
    out = np.zeros((3, 64), np.uint64)
    for i in range(planes.shape[0]):
        weight = alpha[i]
        for plane in range(3):
            word = planes[i, plane]
            for bit in range(64):
                out[plane, bit] ^= weight * ((word >> np.uint64(bit)) & _ONE)
    return out


@compiled
def _look(planes: Words, i: int, shift: Any, table: Words) -> Any:
    return (
        table[0, (planes[i, 0] >> shift) & _OCTET]
        ^ table[1, (planes[i, 1] >> shift) & _OCTET]
        ^ table[2, (planes[i, 2] >> shift) & _OCTET]
    )


@compiled
def inner(x: Words, y: Words, alpha: Words, beta: Words, table_x: Words, table_y: Words) -> Any:
    """Return the weighted inner product of both blocks' combinations, one element."""
    # With the weight of each octet in its own table, products are added up before they are folded.
    weighed = np.empty((8, 3, 256), np.uint64)
    for s in range(8):
        for plane in range(3):
            for octet in range(256):
                weighed[s, plane, octet] = product(table_x[plane, octet], beta[s])
    total = np.uint64(0)
    for i in range(x.shape[0]):
        low, high = np.uint64(0), np.uint64(0)
        for s in range(8):
            shift = np.uint64(8 * s)
            left = _look(x, i, shift, weighed[s])
            right = _look(y, i, shift, table_y)
            wide = carryless(left, right)
            low ^= wide[0]
            high ^= wide[1]
        total ^= product(reduced(low, high), alpha[i])
    return total


@compiled
def weighted(x: Words, alpha: Words, beta: Words, table: Words) -> Words:
    """Return the combination of blocks times the weights of word and octet: (8 word,)."""
    out = np.empty(8 * x.shape[0], np.uint64)
    for i in range(x.shape[0]):
        for s in range(8):
            weight = product(alpha[i], beta[s])
            out[8 * i + s] = product(_look(x, i, np.uint64(8 * s), table), weight)
    return out


@compiled
def spread(y: Words, table: Words) -> Words:
    """Return the combination of blocks: (8 word,)."""
    out = np.empty(8 * y.shape[0], np.uint64)
    for i in range(y.shape[0]):
        for s in range(8):
            out[8 * i + s] = _look(y, i, np.uint64(8 * s), table)
    return out
