"""Kernels of the prime field with 2**127 - 1 elements.

An element is two 64-bit words, low word first, in an array of shape (element, 2). Results are
canonical up to one exception: the prime itself may stand for zero; :func:`normalise` removes it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from veilgrid.mpc._jit import compiled, multiply_wide

Words = npt.NDArray[np.uint64]

_MASK = np.uint64(0x7FFFFFFFFFFFFFFF)
_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
_ONE = np.uint64(1)
_TOP = np.uint64(63)

_TILE = 512
"""Elements that are worked on at a time."""


@compiled
def _product(a0: Any, a1: Any, b0: Any, b1: Any) -> Any:
    """Multiply two elements below 2**127 and fold the upper 127 bits onto the lower."""
    l0, h0 = multiply_wide(a0, b0)
    l1, h1 = multiply_wide(a0, b1)
    l2, h2 = multiply_wide(a1, b0)
    l3, h3 = multiply_wide(a1, b1)
    middle = h0 + l1
    carry = np.uint64(middle < l1)
    w1 = middle + l2
    carry += np.uint64(w1 < l2)
    upper = h1 + h2 + carry
    w2 = upper + l3
    w3 = h3 + np.uint64(w2 < l3)
    u0 = (w1 >> _TOP) | (w2 << _ONE)
    u1 = (w2 >> _TOP) | (w3 << _ONE)
    return _sum(l0, w1 & _MASK, u0, u1)


@compiled
def _sum(a0: Any, a1: Any, b0: Any, b1: Any) -> Any:
    """Add two elements below 2**127; the carry out of bit 126 comes back in at bit 0."""
    r0 = a0 + b0
    r1 = a1 + b1 + np.uint64(r0 < b0)
    wrap = r1 >> _TOP
    r1 &= _MASK
    r0 += wrap
    r1 += np.uint64(r0 < wrap)
    return r0, r1


@compiled
def add(a: Words, b: Words) -> Words:
    """Add element by element."""
    out = np.empty_like(a)
    for i in range(a.shape[0]):
        out[i, 0], out[i, 1] = _sum(a[i, 0], a[i, 1], b[i, 0], b[i, 1])
    return out


@compiled
def subtract(a: Words, b: Words) -> Words:
    """Subtract element by element; minus x is the bitwise complement of x."""
    out = np.empty_like(a)
    for i in range(a.shape[0]):
        out[i, 0], out[i, 1] = _sum(a[i, 0], a[i, 1], b[i, 0] ^ _FULL, b[i, 1] ^ _MASK)
    return out


@compiled
def multiply(a: Words, b: Words) -> Words:
    """Multiply element by element."""
    out = np.empty_like(a)
    for i in range(a.shape[0]):
        out[i, 0], out[i, 1] = _product(a[i, 0], a[i, 1], b[i, 0], b[i, 1])
    return out


@compiled
def scale(factor: Words, a: Words) -> Words:
    """Multiply all of ``a`` by the one element ``factor`` of shape (1, 2)."""
    out = np.empty_like(a)
    c0, c1 = factor[0, 0], factor[0, 1]
    for i in range(a.shape[0]):
        out[i, 0], out[i, 1] = _product(a[i, 0], a[i, 1], c0, c1)
    return out


@compiled
def combine(factors: Words, blocks: Words) -> Words:
    """Return the sum over blocks of factor times block: (block, 2), (block, element, 2)."""
    count = blocks.shape[1]
    out = np.empty((count, 2), np.uint64)
    for i in range(count):
        s0, s1 = np.uint64(0), np.uint64(0)
        for k in range(blocks.shape[0]):
            p0, p1 = _product(factors[k, 0], factors[k, 1], blocks[k, i, 0], blocks[k, i, 1])
            s0, s1 = _sum(s0, s1, p0, p1)
        out[i, 0], out[i, 1] = s0, s1
    return out


@compiled
def accumulate(out: Words, factor: Words, a: Words) -> None:
    """Add ``factor`` times ``a`` to ``out`` in place; ``factor`` has shape (1, 2)."""
    c0, c1 = factor[0, 0], factor[0, 1]
    for i in range(a.shape[0]):
        p0, p1 = _product(a[i, 0], a[i, 1] & _MASK, c0, c1)
        out[i, 0], out[i, 1] = _sum(out[i, 0], out[i, 1], p0, p1)


@compiled
def rows(a: Words, b: Words) -> Words:
    """Return the inner product of each row: (row, column, 2) twice gives (row, 2)."""
    out = np.empty((a.shape[0], 2), np.uint64)
    for r in range(a.shape[0]):
        s0, s1 = np.uint64(0), np.uint64(0)
        for i in range(a.shape[1]):
            p0, p1 = _product(a[r, i, 0], a[r, i, 1], b[r, i, 0], b[r, i, 1])
            s0, s1 = _sum(s0, s1, p0, p1)
        out[r, 0], out[r, 1] = s0, s1
    return out


@compiled
def curve(a: Words, b: Words, beyond: Words) -> Words:
    """Return the inner product of two vectors of blocks at one point after the other.

    First block by block, without the last; then the blocks that each row of ``beyond`` combines:
    (block, element, 2) twice, (row, block, 2) gives (block - 1 + row, 2). Combinations are not
    written out, and what they combine is read for a few elements at a time, from the cache.
    """
    width, size, row_count = a.shape[0], a.shape[1], beyond.shape[0]
    out = np.zeros((width - 1 + row_count, 2), np.uint64)
    for start in range(0, size, _TILE):
        stop = min(start + _TILE, size)
        for k in range(width - 1):
            s0, s1 = out[k, 0], out[k, 1]
            for i in range(start, stop):
                p0, p1 = _product(a[k, i, 0], a[k, i, 1], b[k, i, 0], b[k, i, 1])
                s0, s1 = _sum(s0, s1, p0, p1)
            out[k, 0], out[k, 1] = s0, s1
        for row in range(row_count):
            at = width - 1 + row
            s0, s1 = out[at, 0], out[at, 1]
            for i in range(start, stop):
                l0, l1, r0, r1 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
                for k in range(width):
                    f0, f1 = beyond[row, k, 0], beyond[row, k, 1]
                    p0, p1 = _product(f0, f1, a[k, i, 0], a[k, i, 1])
                    l0, l1 = _sum(l0, l1, p0, p1)
                    p0, p1 = _product(f0, f1, b[k, i, 0], b[k, i, 1])
                    r0, r1 = _sum(r0, r1, p0, p1)
                p0, p1 = _product(l0, l1, r0, r1)
                s0, s1 = _sum(s0, s1, p0, p1)
            out[at, 0], out[at, 1] = s0, s1
    return out


@compiled
def row_sums(a: Words) -> Words:
    """Return the sum of each row: (row, column, 2) gives (row, 2)."""
    out = np.empty((a.shape[0], 2), np.uint64)
    for r in range(a.shape[0]):
        s0, s1 = np.uint64(0), np.uint64(0)
        for i in range(a.shape[1]):
            s0, s1 = _sum(s0, s1, a[r, i, 0], a[r, i, 1])
        out[r, 0], out[r, 1] = s0, s1
    return out


@compiled
def running_sums(a: Words) -> Words:
    """Return the sum of all elements up to and with each: (element, 2)."""
    out = np.empty_like(a)
    s0, s1 = np.uint64(0), np.uint64(0)
    for i in range(a.shape[0]):
        s0, s1 = _sum(s0, s1, a[i, 0], a[i, 1])
        out[i, 0], out[i, 1] = s0, s1
    return out


@compiled
def sums_by_index(a: Words, index: npt.NDArray[np.int64], count: int) -> Words:
    """Add elements up by index: ``out[index[i]] += a[i]``, (count, 2)."""
    out = np.zeros((count, 2), np.uint64)
    for i in range(a.shape[0]):
        k = index[i]
        out[k, 0], out[k, 1] = _sum(out[k, 0], out[k, 1], a[i, 0], a[i, 1])
    return out


@compiled
def apply_matrix(matrix: Words, a: Words) -> Words:
    """Multiply a matrix of elements (row, column, 2) with a vector (column, 2)."""
    out = np.empty((matrix.shape[0], 2), np.uint64)
    for r in range(matrix.shape[0]):
        s0, s1 = np.uint64(0), np.uint64(0)
        for i in range(matrix.shape[1]):
            p0, p1 = _product(matrix[r, i, 0], matrix[r, i, 1], a[i, 0], a[i, 1])
            s0, s1 = _sum(s0, s1, p0, p1)
        out[r, 0], out[r, 1] = s0, s1
    return out


@compiled
def normalise(a: Words) -> Words:
    """Bring any two words into the range of the field, zero as zero."""
    out = np.empty_like(a)
    for i in range(a.shape[0]):
        wrap = a[i, 1] >> _TOP
        r0 = a[i, 0] + wrap
        r1 = (a[i, 1] & _MASK) + np.uint64(r0 < wrap)
        if (r1 == _MASK and r0 == _FULL) or r1 > _MASK:
            # The prime is zero; 2**127 is one.
            r0, r1 = np.uint64(r1 > _MASK), np.uint64(0)
        out[i, 0], out[i, 1] = r0, r1
    return out
