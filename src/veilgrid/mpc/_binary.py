"""Kernels of the field with 2**63 elements, and of bit-sliced vectors over GF(8) inside it.

The large field is GF(2)[x] / (x**63 + x + 1); an element is one word. GF(8) is its subfield: the
element ``b0 + b1 w + b2 w**2`` with ``w**3 = w + 1`` is kept as three bit planes, 64 elements in
three words, in arrays of shape (word, 3).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from veilgrid.mpc._jit import carryless, compiled

Words = npt.NDArray[np.uint64]

_MASK = np.uint64(0x7FFFFFFFFFFFFFFF)
_ONE = np.uint64(1)
_TOP = np.uint64(63)

_TILE = 512
"""Elements that are worked on at a time, where what they become need not be written out."""


@compiled
def reduced(low: Any, high: Any) -> Any:
    """Fold a product of two elements, or a sum of such, with x**63 = x + 1."""
    upper = (high << _ONE) | (low >> _TOP)
    folded = (low & _MASK) ^ upper ^ (upper << _ONE)
    wrap = folded >> _TOP
    return (folded & _MASK) ^ wrap ^ (wrap << _ONE)


@compiled
def product(a: Any, b: Any) -> Any:
    """Multiply two elements below 2**63."""
    low, high = carryless(a, b)
    return reduced(low, high)


@compiled
def power(a: Any, exponent: int) -> Any:
    """Raise one element to a power."""
    result, square = np.uint64(1), np.uint64(a)
    while exponent > 0:
        if exponent & 1:
            result = product(result, square)
        square = product(square, square)
        exponent >>= 1
    return result


@compiled
def multiply(a: Words, b: Words) -> Words:
    """Multiply element by element."""
    out = np.empty_like(a)
    for i in range(a.shape[0]):
        out[i] = product(a[i], b[i])
    return out


@compiled
def scale(factor: Words, a: Words) -> Words:
    """Multiply all of ``a`` by the one element ``factor`` of shape (1,)."""
    out = np.empty_like(a)
    for i in range(a.shape[0]):
        out[i] = product(a[i], factor[0])
    return out


@compiled
def combine(factors: Words, blocks: Words) -> Words:
    """Return the sum over blocks of factor times block: (block,), (block, element)."""
    out = np.empty(blocks.shape[1], np.uint64)
    for i in range(blocks.shape[1]):
        low, high = np.uint64(0), np.uint64(0)
        for k in range(blocks.shape[0]):
            wide = carryless(factors[k], blocks[k, i])
            low ^= wide[0]
            high ^= wide[1]
        out[i] = reduced(low, high)
    return out


@compiled
def accumulate(out: Words, factor: Words, a: Words) -> None:
    """Add ``factor`` times ``a`` to ``out`` in place; ``factor`` has shape (1,)."""
    for i in range(a.shape[0]):
        out[i] ^= product(a[i] & _MASK, factor[0])


@compiled
def rows(a: Words, b: Words) -> Words:
    """Return the inner product of each row: (row, column) twice gives (row,)."""
    out = np.empty(a.shape[0], np.uint64)
    for r in range(a.shape[0]):
        low, high = np.uint64(0), np.uint64(0)
        for i in range(a.shape[1]):
            wide = carryless(a[r, i], b[r, i])
            low ^= wide[0]
            high ^= wide[1]
        out[r] = reduced(low, high)
    return out


@compiled
def curve(a: Words, b: Words, beyond: Words) -> Words:
    """Return the inner product of two vectors of blocks at one point after the other.

    First block by block, without the last; then the blocks that each row of ``beyond`` combines:
    (block, element) twice, (row, block) gives (block - 1 + row,). Combinations exist only for a
    few elements at a time, so that they stay in the cache.
    """
    width, size, row_count = a.shape[0], a.shape[1], beyond.shape[0]
    sums = np.zeros((width - 1 + row_count, 2), np.uint64)
    kept = np.empty((4, _TILE), np.uint64)
    for start in range(0, size, _TILE):
        count = min(_TILE, size - start)
        for k in range(width - 1):
            for i in range(start, start + count):
                wide = carryless(a[k, i], b[k, i])
                sums[k, 0] ^= wide[0]
                sums[k, 1] ^= wide[1]
        for row in range(row_count):
            kept[:] = 0
            for k in range(width):
                factor = beyond[row, k]
                for i in range(count):
                    left = carryless(factor, a[k, start + i])
                    right = carryless(factor, b[k, start + i])
                    kept[0, i] ^= left[0]
                    kept[1, i] ^= left[1]
                    kept[2, i] ^= right[0]
                    kept[3, i] ^= right[1]
            at = width - 1 + row
            for i in range(count):
                wide = carryless(reduced(kept[0, i], kept[1, i]), reduced(kept[2, i], kept[3, i]))
                sums[at, 0] ^= wide[0]
                sums[at, 1] ^= wide[1]
    out = np.empty(sums.shape[0], np.uint64)
    for k in range(sums.shape[0]):
        out[k] = reduced(sums[k, 0], sums[k, 1])
    return out


@compiled
def octal_multiply(a: Words, b: Words) -> Words:
    """Multiply bit-sliced vectors over GF(8): (word, 3) twice."""
    out = np.empty_like(a)
    for i in range(a.shape[0]):
        a0, a1, a2 = a[i, 0], a[i, 1], a[i, 2]
        b0, b1, b2 = b[i, 0], b[i, 1], b[i, 2]
        c3 = (a1 & b2) ^ (a2 & b1)
        c4 = a2 & b2
        out[i, 0] = (a0 & b0) ^ c3
        out[i, 1] = (a0 & b1) ^ (a1 & b0) ^ c3 ^ c4
        out[i, 2] = (a0 & b2) ^ (a1 & b1) ^ (a2 & b0) ^ c4
    return out


@compiled
def octal_accumulate(out: Words, factor: int, a: Words) -> None:
    """Add ``factor`` (0..7) times ``a`` to ``out`` in place, bit-sliced."""
    f0 = np.uint64(0) - np.uint64(factor & 1)
    f1 = np.uint64(0) - np.uint64((factor >> 1) & 1)
    f2 = np.uint64(0) - np.uint64((factor >> 2) & 1)
    for i in range(a.shape[0]):
        a0, a1, a2 = a[i, 0], a[i, 1], a[i, 2]
        c3 = (a1 & f2) ^ (a2 & f1)
        c4 = a2 & f2
        out[i, 0] ^= (a0 & f0) ^ c3
        out[i, 1] ^= (a0 & f1) ^ (a1 & f0) ^ c3 ^ c4
        out[i, 2] ^= (a0 & f2) ^ (a1 & f1) ^ (a2 & f0) ^ c4


@compiled
def lift(a: Words, basis: Words) -> Words:
    """Embed bit-sliced GF(8) elements into the large field: (word, 3) gives (64 word,).

    ``basis`` holds the images of 1, w and w squared.
    """
    out = np.empty(a.shape[0] * 64, np.uint64)
    table = np.empty(8, np.uint64)
    for value in range(8):
        table[value] = (
            (basis[0] * np.uint64(value & 1))
            ^ (basis[1] * np.uint64((value >> 1) & 1))
            ^ (basis[2] * np.uint64((value >> 2) & 1))
        )
    for i in range(a.shape[0]):
        a0, a1, a2 = a[i, 0], a[i, 1], a[i, 2]
        for bit in range(64):
            k = np.uint64(bit)
            index = (
                ((a0 >> k) & _ONE)
                | (((a1 >> k) & _ONE) << _ONE)
                | (((a2 >> k) & _ONE) << np.uint64(2))
            )
            out[64 * i + bit] = table[index]
    return out


@compiled
def slice_bits(values: Words, first: int, count: int) -> Words:
    """Return bit planes first .. first+count-1 of elements of two words: (plane, word).

    The planes are padded with zeros to whole words.
    """
    width = (values.shape[0] + 63) // 64
    out = np.zeros((count, width), np.uint64)
    for i in range(values.shape[0]):
        word, place = i // 64, np.uint64(i % 64)
        for plane in range(count):
            position = first + plane
            bit = (values[i, position // 64] >> np.uint64(position % 64)) & _ONE
            out[plane, word] |= bit << place
    return out


@compiled
def unpack(plane: Words, count: int) -> Words:
    """Return the first ``count`` bits of a packed plane as elements of two words."""
    out = np.zeros((count, 2), np.uint64)
    for i in range(count):
        out[i, 0] = (plane[i // 64] >> np.uint64(i % 64)) & _ONE
    return out


@compiled
def lagrange(points: Words, at: Any) -> Words:
    """Return the factors with which values at ``points`` add up to the value ``at``."""
    count = points.shape[0]
    out = np.empty(count, np.uint64)
    for j in range(count):
        top, bottom = np.uint64(1), np.uint64(1)
        for k in range(count):
            if k != j:
                top = product(top, at ^ points[k])
                bottom = product(bottom, points[j] ^ points[k])
        out[j] = product(top, power(bottom, 2**63 - 2))
    return out
