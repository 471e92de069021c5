"""Where parties stand on polynomials, and the constants that follow from it [mpc 2]."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc import _binary
from veilgrid.mpc.field import (
    BINARY_FIELD,
    PRIME_FIELD,
    Field,
    octal_image,
    octal_inverse,
    octal_times,
)


def lagrange(field: Field, points: Sequence[int], at: int) -> list[int]:
    """Return the factors with which values at ``points`` add up to the value ``at``."""
    if field is BINARY_FIELD:
        return field.numbers(_binary.lagrange(field.vector(points), np.uint64(at)))
    below, factors = [1], []
    for other in points:
        below.append(field.times(below[-1], field.minus(at, other)))
    above = 1
    for j, bottom in reversed(list(enumerate(_bottoms(field, tuple(points))))):
        factors.append(field.times(field.times(below[j], above), bottom))
        above = field.times(above, field.minus(at, points[j]))
    return factors[::-1]


@cache
def _bottoms(field: Field, points: tuple[int, ...]) -> tuple[int, ...]:
    """Return for each point the inverse product of its distances from the others."""
    out = []
    for own in points:
        bottom = 1
        for other in points:
            if other != own:
                bottom = field.times(bottom, field.minus(own, other))
        out.append(field.inverse(bottom))
    return tuple(out)


def place(field: Field, party: int) -> int:
    """Return the point of a party: its number, in GF(8) for the binary field."""
    return party if field is PRIME_FIELD else octal_image(party)


@cache
def weights(field: Field, n: int) -> tuple[int, ...]:
    """Return the factors with which the shares of all ``n`` parties add up to the secret."""
    return tuple(lagrange(field, [place(field, i) for i in range(1, n + 1)], 0))


@cache
def key_sets(n: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Return all sets of ``n - degree`` parties; each holds one key in common."""
    return tuple(combinations(range(1, n + 1), n - degree))


def _spike(
    zero_at: Sequence[int], at: int, times: Callable[[int, int], int], ratio: Any, minus: Any
) -> int:
    value = 1
    for other in zero_at:
        value = times(value, ratio(minus(other, at), other))
    return value


@cache
def spike(field: Field, n: int, members: tuple[int, ...], party: int) -> int:
    """Return the value at ``party`` of the polynomial that is one at 0, zero outside ``members``.

    Its degree is the number of parties outside ``members``.
    """
    outside = [place(field, i) for i in range(1, n + 1) if i not in members]
    return _spike(
        outside,
        place(field, party),
        field.times,
        lambda top, bottom: field.times(top, field.inverse(bottom)),
        field.minus,
    )


@cache
def octal_spike(n: int, members: tuple[int, ...], party: int) -> int:
    """Return the same as :func:`spike` in GF(8)."""
    outside = [i for i in range(1, n + 1) if i not in members]
    return _spike(
        outside,
        party,
        octal_times,
        lambda top, bottom: octal_times(top, octal_inverse(bottom)),
        lambda a, b: a ^ b,
    )


@cache
def octal_weights(n: int) -> tuple[int, ...]:
    """Return the same as :func:`weights` in GF(8)."""
    factors = []
    for own in range(1, n + 1):
        value = 1
        for other in range(1, n + 1):
            if other != own:
                value = octal_times(value, octal_times(other, octal_inverse(other ^ own)))
        factors.append(value)
    return tuple(factors)


@cache
def octal_parity(n: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Return rows that vanish on every sharing of that degree, and its opening row, in GF(8).

    The first row gives the secret from the first ``degree + 1`` shares.
    """
    first = list(range(1, degree + 2))
    out = []
    for at in [0, *range(degree + 2, n + 1)]:
        row = [0] * n
        for own in first:
            value = 1
            for other in first:
                if other != own:
                    value = octal_times(value, octal_times(other ^ at, octal_inverse(other ^ own)))
            row[own - 1] = value
        if at:
            row[at - 1] = 1
        out.append(tuple(row))
    return tuple(out)


@cache
def parity(field: Field, n: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Return the opening row and the rows that vanish on every sharing of that degree."""
    invariant(0 <= degree < n, "a sharing needs more parties than its degree")
    points = [place(field, i) for i in range(1, n + 1)]
    first = points[: degree + 1]
    out = [tuple(lagrange(field, first, 0)) + (0,) * (n - degree - 1)]
    for j in range(degree + 1, n):
        row = lagrange(field, first, points[j]) + [0] * (n - degree - 1)
        row[j] = field.minus(0, 1)
        out.append(tuple(row))
    return tuple(out)
