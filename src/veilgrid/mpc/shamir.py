"""Shamir sharings of any degree, and an opening that corrects and names wrong shares [mpc 2].

A sharing of degree t is opened by t + 1 shares. Of n shares, n - t - 1 wrong ones are detected
and the integer part of (n - t - 1) / 2 are corrected and named.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc._points import lagrange, parity, place
from veilgrid.mpc.field import PRIME_FIELD, Field, Words
from veilgrid.secret import Randomness

PARTY_COUNT_MIN, PARTY_COUNT_MAX = 3, 7


@dataclass(frozen=True, slots=True)
class Opening:
    """What came out of opening a vector.

    Attributes
    ----------
    values
        The secrets, or None where the shares contradict each other beyond correction.
    cheaters
        Parties (1-based) whose shares are provably wrong, if no more than the correctable number
        of parties lie.
    is_consistent
        Whether all shares lie on polynomials of the degree.
    """

    values: Words | None
    cheaters: tuple[int, ...]
    is_consistent: bool


def check_degree(n: int, degree: int) -> None:
    """Refuse numbers of parties and degrees that cannot be.

    Raises
    ------
    InputError
        All findings at once.
    """
    findings = []
    if not PARTY_COUNT_MIN <= n <= PARTY_COUNT_MAX:
        where = f"{PARTY_COUNT_MIN}..{PARTY_COUNT_MAX}"
        findings.append(Finding("parties", f"found {n}, expected {where}"))
    elif not 1 <= degree < n:
        findings.append(Finding("degree", f"found {degree}, expected 1..{n - 1} for {n} parties"))
    if findings:
        raise InputError(findings)


def share(secrets: Words, n: int, degree: int, randomness: Randomness) -> list[Words]:
    """Share each element of a prime-field vector with a fresh polynomial of the given degree.

    Returns
    -------
    n vectors (element, 2)
        Share of party 1 first.
    """
    check_degree(n, degree)
    count = secrets.shape[0]
    coefficients = [
        PRIME_FIELD.from_words(
            np.frombuffer(randomness.octets(16 * count), np.uint64) & _top(count)
        )
        for _ in range(degree)
    ]
    blocks = np.stack([secrets, *coefficients])
    powers = [[pow(party, k) for k in range(degree + 1)] for party in range(1, n + 1)]
    return [PRIME_FIELD.combine(PRIME_FIELD.vector(row), blocks) for row in powers]


def _top(count: int) -> Words:
    return np.tile(np.array([2**64 - 1, 2**63 - 1], np.uint64), count)


def open_shares(field: Field, shares: Sequence[Words], degree: int) -> Opening:
    """Open a vector from the shares of all parties, in order, and find out who lied.

    Values are corrected and liars named only if ``degree`` liars cannot pass for honest, which
    is so for ``3 degree + 1`` parties or more. Beyond that, contradictions are only detected.
    """
    n = len(shares)
    blocks = np.stack([np.ascontiguousarray(one) for one in shares])
    rows = parity(field, n, degree)
    suspects = np.zeros(blocks.shape[1], bool)
    for row in rows[1:]:
        rest = field.combine(field.vector(row), blocks)
        if field.words == 2:
            suspects |= field.from_words(rest.reshape(-1)).any(axis=1)
        else:
            suspects |= rest != 0
    values = field.combine(field.vector(rows[0]), blocks)
    if not suspects.any():
        return Opening(values, (), True)
    return _correct(field, blocks, values, suspects, degree)


def _correct(field: Field, blocks: Words, values: Words, suspects: Words, degree: int) -> Opening:
    """Find the one small set of parties without whom everything is consistent."""
    n = blocks.shape[0]
    if n < 3 * degree + 1:
        return Opening(None, (), False)
    chosen = np.flatnonzero(suspects)
    columns = [field.numbers(block[chosen]) for block in blocks]
    for size in range(1, (n - degree - 1) // 2 + 1):
        for liars in combinations(range(1, n + 1), size):
            honest = [i for i in range(1, n + 1) if i not in liars]
            if _agree(field, columns, honest, degree):
                factors = lagrange(field, [place(field, i) for i in honest[: degree + 1]], 0)
                kept = np.stack([blocks[i - 1] for i in honest[: degree + 1]])
                return Opening(field.combine(field.vector(factors), kept), liars, False)
    invariant(values.shape[0] == blocks.shape[1], "one value a column")
    return Opening(None, (), False)


def _agree(
    field: Field, columns: Sequence[Sequence[int]], parties: Sequence[int], degree: int
) -> bool:
    """Return whether the shares of ``parties`` lie on polynomials of the degree."""
    first, rest = parties[: degree + 1], parties[degree + 1 :]
    points = [place(field, i) for i in first]
    for party in rest:
        factors = lagrange(field, points, place(field, party))
        for index, claimed in enumerate(columns[party - 1]):
            value = 0
            for factor, i in zip(factors, first, strict=True):
                value = field.plus(value, field.times(factor, columns[i - 1][index]))
            if value != claimed:
                return False
    return True


def open_some(field: Field, shares: Mapping[int, Words], degree: int) -> Words:
    """Open a vector from the shares of exactly ``degree + 1`` or more parties, unchecked."""
    invariant(len(shares) > degree, "degree + 1 shares open a sharing")
    parties = sorted(shares)[: degree + 1]
    factors = lagrange(field, [place(field, i) for i in parties], 0)
    return field.combine(field.vector(factors), np.stack([shares[i] for i in parties]))
