"""Kernels over the inputs of many clients: (client, element, 2) [risk 2]."""

import numpy as np

from veilgrid.mpc._jit import compiled
from veilgrid.mpc._prime import Words, _product, _sum


@compiled
def project(data: Words, start: int, factors: Words) -> Words:
    """Return for each client the sum of its elements from ``start`` times public factors.

    ``factors`` has shape (1 or client, element, 2); one row goes with every client.
    """
    count = data.shape[0]
    out = np.empty((count, 2), np.uint64)
    single = factors.shape[0] == 1
    for i in range(count):
        row = 0 if single else i
        s0, s1 = np.uint64(0), np.uint64(0)
        for k in range(factors.shape[1]):
            p0, p1 = _product(
                data[i, start + k, 0],
                data[i, start + k, 1],
                factors[row, k, 0],
                factors[row, k, 1],
            )
            s0, s1 = _sum(s0, s1, p0, p1)
        out[i, 0], out[i, 1] = s0, s1
    return out


@compiled
def column_sums(data: Words, start: int, size: int, weights: Words) -> Words:
    """Return for each of ``size`` elements the sum over clients, weighted: (element, 2)."""
    out = np.zeros((size, 2), np.uint64)
    for i in range(data.shape[0]):
        w0, w1 = weights[i, 0], weights[i, 1]
        if w0 == 0 and w1 == 0:
            continue
        for k in range(size):
            p0, p1 = _product(data[i, start + k, 0], data[i, start + k, 1], w0, w1)
            out[k, 0], out[k, 1] = _sum(out[k, 0], out[k, 1], p0, p1)
    return out
