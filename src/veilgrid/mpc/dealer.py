"""Multiplication at any degree with triples from a dealer, who is not believed [mpc 5.9].

The dealer sends one message like a client: seeds for each set of parties, and a correction that
makes the third vector the product of the first two. One triple is sacrificed to check another.
Without attested hardware the policy refuses a dealer.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc._points import key_sets
from veilgrid.mpc._round import Steps
from veilgrid.mpc.engine import CheckFailed, Engine, Source
from veilgrid.mpc.field import PRIME_FIELD, Field, Words, octets_of, words_of
from veilgrid.mpc.policy import Claims, Policy
from veilgrid.mpc.prss import Members, client_words
from veilgrid.secret import Randomness

DEALER: Final = "dealer"


class Deal(msgspec.Struct, frozen=True, tag=True):
    """What the dealer tells all parties; each gets the seeds of its sets besides, sealed."""

    count: int
    correction: bytes
    digest: bytes


def deal(
    n: int, degree: int, count: int, randomness: Randomness
) -> tuple[Deal, dict[Members, bytes]]:
    """Make ``count`` triples; return what is public and the seed of each set."""
    seeds = {members: randomness.octets(16) for members in key_sets(n, degree)}
    total = PRIME_FIELD.zeros(3 * count)
    for members, seed in seeds.items():
        words = client_words(seed, members, 6 * count)
        total = PRIME_FIELD.add(total, PRIME_FIELD.from_words(words))
    product = PRIME_FIELD.multiply(total[:count], total[count : 2 * count])
    rest = PRIME_FIELD.subtract(product, total[2 * count :])
    correction = bytes(octets_of(PRIME_FIELD.flat(rest)))
    return Deal(count, correction, hashlib.sha256(correction).digest()), seeds


def check_dealer(policy: Policy, claims: Claims | None) -> None:
    """Refuse a dealer that the policy does not allow.

    Parameters
    ----------
    policy
        What the committee agreed on.
    claims
        What a verifier found about the dealer's evidence; None if it showed none.

    Raises
    ------
    InputError
        Dealers are off, or this one runs on no attested hardware, on hardware whose status is
        not accepted, or a program that was not agreed on: all of it at once.
    """
    if not policy.is_dealer_allowed:
        problem = "the policy allows none"
        raise InputError([Finding("dealer", problem, "lower the degree or allow a dealer")])
    if policy.is_software_dealer_allowed and (claims is None or not claims.hardware):
        return
    if claims is None:
        problem = "not hardware: attestation is missing"
        raise InputError([Finding("dealer", problem, "use an attested dealer")])
    findings = []
    if not claims.hardware:
        problem = f"not hardware: attestation of kind {claims.kind} is by software"
        findings.append(Finding("dealer", problem, "use an attested dealer"))
    if claims.status not in policy.dealer_statuses:
        accepted = ", ".join(sorted(policy.dealer_statuses))
        problem = f"its attestation has status {claims.status}; accepted is {accepted}"
        findings.append(Finding("dealer", problem, "update the dealer's platform"))
    if claims.measurement not in policy.dealer_measurements:
        problem = f"its program {claims.measurement.hex()[:16]}... was not agreed on"
        findings.append(Finding("dealer", problem, "add its measurement to the policy"))
    if findings:
        raise InputError(findings)


class DealtEngine(Engine):
    """An engine that multiplies with dealt triples; it compares nothing."""

    def __init__(
        self, source: Source, digest: object, dealt: Deal, seeds: Mapping[Members, bytes]
    ) -> None:
        invariant(callable(digest), "a digest is asked for when it is needed")
        super().__init__(source, digest)  # type: ignore[arg-type]
        source.learn(DEALER, seeds)
        count = dealt.count
        total = PRIME_FIELD.zeros(3 * count)
        total[2 * count :] = source.constant(PRIME_FIELD.from_words(words_of(dealt.correction)))
        for members in source.sets:
            words = PRIME_FIELD.from_words(source.client_words(DEALER, members, 6 * count))
            total = PRIME_FIELD.add(total, source.known(PRIME_FIELD, members, words))
        self._triples = total.reshape(3, count, 2)
        self._used = 0
        self._left = count

    def _take(self, count: int) -> tuple[Words, Words, Words]:
        if self._used + count > self._left:
            problem = f"{self._left} triples were dealt, {self._used + count} are needed"
            raise InputError([Finding("dealer", problem, "let the dealer deal more")])
        part = self._triples[:, self._used : self._used + count]
        self._used += count
        return tuple(np.ascontiguousarray(one) for one in part)  # type: ignore[return-value]

    def product(self, field: Field, a: Words, b: Words, width: int) -> Steps[Words]:
        """Multiply with one checked triple an element."""
        invariant(field is PRIME_FIELD, "triples are dealt for the prime field")
        x, y, z = yield from self._checked(a.shape[0])
        both = np.concatenate([field.subtract(a, x), field.subtract(b, y)])
        opened = yield from self.reveal(both)
        left, right = opened[: a.shape[0]], opened[a.shape[0] :]
        result = field.add(z, field.add(field.multiply(left, y), field.multiply(right, x)))
        public = self.source.constant(field.multiply(left, right))
        products = field.add(result, public)
        self.product_count += a.shape[0] // width
        return products if width == 1 else _row_sums(products, width)

    def _checked(self, count: int) -> Steps[tuple[Words, Words, Words]]:
        """Return triples after sacrificing as many others."""
        field = PRIME_FIELD
        a, b, c = self._take(count)
        f, g, h = self._take(count)
        random = yield from self.coin()
        factor = field.vector([random])
        both = np.concatenate([field.subtract(field.scale(factor, a), f), field.subtract(b, g)])
        opened = yield from self.reveal(both)
        rho, sigma = opened[:count], opened[count:]
        error = field.subtract(field.scale(factor, c), h)
        error = field.subtract(error, field.multiply(sigma, f))
        error = field.subtract(error, field.multiply(rho, g))
        error = field.subtract(error, self.source.constant(field.multiply(rho, sigma)))
        powers = _powers(field, (yield from self.coin()), count)
        opened = yield from self.reveal(field.inner(powers, error))
        if any(field.numbers(opened)):
            raise CheckFailed("the dealer lied about a triple")
        return a, b, c

    def both(self, a: Words, b: Words) -> Steps[Words]:
        """Refuse: comparisons under a dealer are not offered."""
        invariant(a.shape == b.shape, "operands of one shape")
        problem = "comparisons need 2 x degree + 1 <= parties, also with a dealer"
        raise InputError([Finding("degree", problem, f"use degree {(self.n - 1) // 2}")])


def _powers(field: Field, step: int, count: int) -> Words:
    numbers, value = [], 1
    for _ in range(count):
        value = field.times(value, step)
        numbers.append(value)
    return field.vector(numbers)


def _row_sums(products: Words, width: int) -> Words:
    from veilgrid.mpc._prime import row_sums

    return row_sums(products.reshape(-1, width, 2))
