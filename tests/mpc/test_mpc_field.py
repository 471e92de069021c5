"""Both fields against plain integers, sharing against MPyC, opening against every liar."""

import random
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpyc import finfields, thresha

from veilgrid.errors import InputError
from veilgrid.mpc import _binary, _jit, _prime
from veilgrid.mpc._points import octal_spike, octal_weights, spike, weights
from veilgrid.mpc.field import (
    BINARY_FIELD,
    BOUND_MAX,
    PRIME,
    PRIME_FIELD,
    Field,
    FixedPoint,
    Words,
    decode,
    encode,
    octal_image,
    octal_inverse,
    octal_times,
)
from veilgrid.mpc.shamir import open_shares, share
from veilgrid.secret import SeededRandomness

EDGES = [0, 1, 2, PRIME - 1, PRIME - 2, 2**64 - 1, 2**64, 2**126, 2**63, PRIME // 2]
elements = st.one_of(st.integers(0, PRIME - 1), st.sampled_from(EDGES))
large = st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([0, 1, 2, 2**62, 2**63 - 1]))
SIZES = [(n, degree) for n in range(3, 8) for degree in range(1, n)]


def carryless(a: int, b: int) -> int:
    out = 0
    while b:
        out ^= a if b & 1 else 0
        a, b = a << 1, b >> 1
    return out


def reduced(value: int) -> int:
    for place in range(value.bit_length() - 1, 62, -1):
        if value >> place & 1:
            value ^= (2**63 | 3) << (place - 63)
    return value


def common_divisor(a: int, b: int) -> int:
    while b:
        while a.bit_length() >= b.bit_length():
            a ^= b << (a.bit_length() - b.bit_length())
        a, b = b, a
    return a


@given(pairs=st.lists(st.tuples(elements, elements), min_size=1, max_size=20))
def test_prime_kernels_agree_with_integers(pairs: list[tuple[int, int]]) -> None:
    """A wrong carry would show up as a wrong sum of somebody's money."""
    a, b = PRIME_FIELD.vector(x for x, _ in pairs), PRIME_FIELD.vector(y for _, y in pairs)
    assert PRIME_FIELD.numbers(_prime.add(a, b)) == [(x + y) % PRIME for x, y in pairs]
    assert PRIME_FIELD.numbers(_prime.subtract(a, b)) == [(x - y) % PRIME for x, y in pairs]
    assert PRIME_FIELD.numbers(_prime.multiply(a, b)) == [x * y % PRIME for x, y in pairs]
    total = sum(x * y for x, y in pairs) % PRIME
    assert PRIME_FIELD.numbers(PRIME_FIELD.inner(a, b)) == [total]
    out = a.copy()
    _prime.accumulate(out, PRIME_FIELD.vector([pairs[0][0]]), b)
    assert PRIME_FIELD.numbers(out) == [(x + pairs[0][0] * y) % PRIME for x, y in pairs]


@given(low=st.integers(0, 2**64 - 1), high=st.integers(0, 2**64 - 1))
def test_any_two_words_are_read_as_an_element(low: int, high: int) -> None:
    """A peer may send non-canonical words; they must not reach a kernel unreduced."""
    read = PRIME_FIELD.from_words(np.array([low, high], np.uint64))
    assert PRIME_FIELD.numbers(read) == [(low + (high << 64)) % PRIME]
    assert int(read[0, 1]) < 2**63


@given(a=large, b=large)
def test_binary_product_agrees_with_long_multiplication(a: int, b: int) -> None:
    """The check of all Boolean gates stands on this product."""
    assert BINARY_FIELD.times(a, b) == reduced(carryless(a, b))


@given(a=st.integers(0, 2**64 - 1), b=st.integers(0, 2**64 - 1))
def test_portable_carryless_product_needs_no_special_instruction(a: int, b: int) -> None:
    """Processors without the instruction must compute the same."""
    low, high = _jit.carryless_portable(np.uint64(a), np.uint64(b))
    assert int(low) | int(high) << 64 == carryless(a, b)


def test_binary_modulus_is_irreducible() -> None:
    """In a ring with zero divisors a wrong gate could pass the check."""
    power = 2
    for exponent in range(1, 64):
        power = BINARY_FIELD.times(power, power)
        if exponent in (21, 9):  # 63 over each of its prime factors: Rabin's test
            assert common_divisor(2**63 | 3, power ^ 2) == 1
    assert power == 2


def test_small_field_sits_inside_the_large_one() -> None:
    """Lifting must keep sums and products, else honest parties fail the check."""
    for a in range(8):
        for b in range(8):
            image = BINARY_FIELD.times(octal_image(a), octal_image(b))
            assert octal_image(octal_times(a, b)) == image
            assert octal_image(a ^ b) == octal_image(a) ^ octal_image(b)
        if a:
            assert octal_times(a, octal_inverse(a)) == 1


@pytest.mark.parametrize("field", [PRIME_FIELD, BINARY_FIELD], ids=lambda field: field.name)
@pytest.mark.parametrize(("width", "size"), [(2, 1), (4, 513), (5, 1024)])
def test_points_of_a_fold_agree_with_single_products(field: Field, width: int, size: int) -> None:
    """Work goes tile by tile; an element left out at an edge would leave its product unchecked."""
    words = SeededRandomness(1)

    def drawn(count: int) -> Words:
        return field.from_words(np.frombuffer(words.octets(8 * field.words * count), "<u8"))

    a, b, rows = (drawn(count * width) for count in (size, size, width - 1))
    shape = (2,) if field.words == 2 else ()
    left, right = (each.reshape(width, size, *shape) for each in (a, b))
    found = field.curve(left, right, rows.reshape(width - 1, width, *shape))
    x, y, factors = (np.array(field.numbers(one), object) for one in (a, b, rows))
    x, y, factors = x.reshape(width, size), y.reshape(width, size), factors.reshape(-1, width)

    def combined(row: list[int], blocks: Any) -> list[int]:
        scaled = [
            [field.times(f, one) for one in block] for f, block in zip(row, blocks, strict=True)
        ]
        return [reduce(field.plus, column) for column in zip(*scaled, strict=True)]

    pairs = [
        *zip(x[:-1], y[:-1], strict=True),
        *((combined(row, x), combined(row, y)) for row in factors),
    ]
    expected = [reduce(field.plus, map(field.times, p, q)) for p, q in pairs]
    assert field.numbers(found) == expected


def test_bit_sliced_products_agree_with_the_table() -> None:
    rng = np.random.Generator(np.random.PCG64(3))
    a, b = rng.integers(0, 2**63, (2, 5, 3), dtype=np.uint64)
    product = _binary.octal_multiply(a, b)

    def element(planes: np.ndarray, word: int, bit: int) -> int:
        return sum((int(planes[word, k]) >> bit & 1) << k for k in range(3))

    for word in range(5):
        for bit in (0, 17, 62):
            left, right = element(a, word, bit), element(b, word, bit)
            assert element(product, word, bit) == octal_times(left, right)


@pytest.mark.parametrize("n", range(3, 8))
def test_constants_of_both_fields_fit_their_polynomials(n: int) -> None:
    assert sum(weights(PRIME_FIELD, n)) % PRIME == 1
    total = 0
    for value in octal_weights(n):
        total ^= value
    assert total == 1
    for degree in range(1, n):
        for members in combinations(range(1, n + 1), n - degree):
            for party in range(1, n + 1):
                is_member = party in members
                assert (spike(PRIME_FIELD, n, members, party) != 0) == is_member
                assert (octal_spike(n, members, party) != 0) == is_member
                lifted = octal_image(octal_spike(n, members, party))
                assert spike(BINARY_FIELD, n, members, party) == lifted


EDGES = [
    sign * (edge + off) for edge in (2**62, 2**63, 2**64) for off in (-1, 0) for sign in (1, -1)
]
"""Where numbers stop being encoded and decoded as 64-bit integers."""


@pytest.mark.parametrize("edges", [[], EDGES])
@given(data=st.data())
def test_signed_numbers_survive_encoding(edges: list[int], data: st.DataObject) -> None:
    """All small, all large or mixed: each way takes another path."""
    size = data.draw(st.sampled_from([2**8, 2**40, BOUND_MAX]))
    drawn = st.one_of(st.integers(-size, size), *[st.sampled_from(edges)] * bool(edges))
    values = data.draw(st.lists(drawn, max_size=8))
    encoded = encode(values)
    assert PRIME_FIELD.numbers(encoded) == [value % PRIME for value in values]
    assert decode(encoded) == values


def test_too_large_a_number_is_an_error_and_never_wraps() -> None:
    with pytest.raises(InputError, match="element 1"):
        encode([0, BOUND_MAX + 1])
    scale = FixedPoint(scale=1000, bits=20)
    with pytest.raises(InputError, match="element 2"):
        scale.integers([0.0, -1.5, 2000.0])
    with pytest.raises(InputError, match="element 0"):
        scale.integers([float("nan")])
    assert scale.reals(scale.integers([1.5, -0.25])).tolist() == [1.5, -0.25]


@pytest.mark.parametrize(("n", "degree"), SIZES)
def test_mpyc_opens_our_shares_and_we_open_its(n: int, degree: int) -> None:
    """An independent implementation agrees on what a Shamir share is."""
    rng = random.Random(n * 10 + degree)
    field = finfields.GF(PRIME)
    secrets = [rng.randrange(-(2**90), 2**90) for _ in range(5)]
    ours = share(encode(secrets), n, degree, SeededRandomness(1))
    points = [(i + 1, PRIME_FIELD.numbers(one)) for i, one in enumerate(ours[: degree + 1])]
    assert [int(v) % PRIME for v in thresha.recombine(field, points)] == [
        s % PRIME for s in secrets
    ]
    theirs = thresha.random_split(field, [field(s) for s in secrets], degree, n)
    vectors = [PRIME_FIELD.vector(int(v) % PRIME for v in row) for row in theirs]
    opening = open_shares(PRIME_FIELD, vectors, degree)
    assert opening.is_consistent
    assert opening.values is not None
    assert decode(opening.values) == secrets


@pytest.mark.parametrize(("n", "degree"), SIZES)
def test_opening_detects_all_and_names_only_liars(n: int, degree: int) -> None:
    """Up to n - degree - 1 wrong shares never pass; nobody honest is named."""
    rng = random.Random(n * 10 + degree)
    secrets = [5, -7, 2**80]
    for trial in range(20):
        shares = share(encode(secrets), n, degree, SeededRandomness(trial))
        liars = rng.sample(range(n), rng.randint(0, min(degree, n - degree - 1)))
        for liar in liars:
            shares[liar] = PRIME_FIELD.add(shares[liar], encode([0, rng.randrange(1, 9), 0]))
        opening = open_shares(PRIME_FIELD, shares, degree)
        assert opening.is_consistent == (not liars)
        assert set(opening.cheaters) <= {liar + 1 for liar in liars}
        if opening.values is not None:
            assert decode(opening.values) == secrets
        if n >= 3 * degree + 1:
            assert set(opening.cheaters) == {liar + 1 for liar in liars}
