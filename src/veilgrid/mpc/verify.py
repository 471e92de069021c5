"""One check for all multiplications of a phase [mpc 6].

Operands x, y and results z are claimed to satisfy x y = z. A random linear combination turns all
claims into one about an inner product, which is folded until one product is left; that one is
blinded by a random pair, opened and compared.
"""

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from veilgrid.mpc import _binary, _gates
from veilgrid.mpc._points import lagrange
from veilgrid.mpc._round import Round, Steps, together
from veilgrid.mpc.field import BINARY_FIELD, PRIME_FIELD, Field, Words, octal_basis
from veilgrid.mpc.prss import Stream
from veilgrid.mpc.shamir import open_shares

if TYPE_CHECKING:
    from veilgrid.mpc.engine import Engine

Claim = tuple[Words, Words, Words]
_Folded = tuple[Field, Claim]

_LAST: Final = 32
"""Vectors this short are not folded any more but multiplied out."""

_WIDE: Final = 32
_NARROW: Final = 4
_CHEAP: Final = {"prime": 1 << 18, "binary": 1 << 21}
"""So many products, a few milliseconds, cost no more than the two rounds of another fold."""


def verify_all(
    engine: "Engine", products: list[Claim], gates: list[Claim], *last: Steps[None]
) -> Steps[None]:
    """Check prime-field products and Boolean gates side by side; ``last`` goes with the end.

    Both lists are empty afterwards: a check takes memory, and claims are not needed any more once
    they are combined.
    """
    seed = yield from engine.coin()
    stream = Stream(seed.to_bytes(16, "little"), b"weights")
    checks = []
    if products:
        checks.append(_folded(engine, PRIME_FIELD, *_combined(PRIME_FIELD, products, stream)))
    if gates:
        checks.append(_gates_checked(engine, gates, stream))
    folded = yield from together(*checks)
    yield from together(*(_compared(engine, *one) for one in folded), *last)


def _gates_checked(engine: "Engine", gates: list[Claim], stream: Stream) -> Steps[_Folded]:
    """Make the first fold of the gates while they are bits, then go on as for products."""
    field, width = BINARY_FIELD, 8
    x, y, z = (np.concatenate([claim[k] for claim in gates]) for k in range(3))
    gates.clear()
    basis = field.vector(octal_basis())
    alpha = field.from_words(stream.words(x.shape[0]))
    beta = field.from_words(stream.words(8).copy())
    delta = field.from_words(stream.words(8).copy())
    claimed = _by_block(_gates.gather(z, alpha), beta, delta, basis)
    local = _by_block(_gates.gather(_binary.octal_multiply(x, y), alpha), beta, delta, basis)
    points = list(local[: width - 1])
    for row in _beyond(field, width):
        table_x = _gates.tables(field.multiply(row, delta), basis)
        table_y = _gates.tables(row, basis)
        points.append(_gates.inner(x, y, alpha, beta, table_x, table_y))
    values = yield from engine.summed(field, np.array(points, np.uint64))
    first, rest = values[: width - 1], values[width - 1 :]
    last = np.bitwise_xor.reduce(np.concatenate([claimed, first]), keepdims=True)
    at = yield from _challenge(engine, field)
    near = field.vector(lagrange(field, range(width), at))
    far = field.vector(lagrange(field, range(2 * width - 1), at))
    curve = np.concatenate([first, last, rest])
    a = _gates.weighted(x, alpha, beta, _gates.tables(field.multiply(near, delta), basis))
    b = _gates.spread(y, _gates.tables(near, basis))
    c = field.combine(far, curve[:, np.newaxis])
    return (yield from _folded(engine, field, a, b, c))


def _by_block(sums: Words, beta: Words, delta: Words, basis: Words) -> Words:
    """Turn sums by bit and plane into one element a block, with the weights of octet and block."""
    field = BINARY_FIELD
    elements = field.combine(basis, sums)
    blocks = elements.reshape(8, 8)  # octet, block
    return field.multiply(field.combine(beta, blocks), delta)


def _combined(field: Field, claims: list[Claim], stream: Stream) -> Claim:
    """Weigh the claims with coefficients from the coin; a claim of a row keeps one weight.

    Claims about one vector and many others become one about it and their weighted sum.
    """
    left, right = [], []
    total = field.zeros(1)
    for a, b, c in claims:
        weight = field.from_words(stream.words(c.shape[0] * field.words))
        total = field.add(total, field.inner(weight, c))
        if len(b) > len(a):
            left.append(a)
            right.append(field.combine(weight, b.reshape(len(c), *a.shape)))
            continue
        spread = np.repeat(weight, a.shape[0] // c.shape[0], axis=0) if len(a) > len(c) else weight
        left.append(field.multiply(spread, a))
        right.append(b)
    claims.clear()
    if len(left) == 1:
        return left[0], right[0], total
    return np.concatenate(left), np.concatenate(right), total


def _folded(engine: "Engine", field: Field, a: Words, b: Words, c: Words) -> Steps[_Folded]:
    """Reduce one inner-product claim to one about a blinded product [mpc 6.2]."""
    while a.shape[0] > _LAST:
        width = _width(field, a.shape[0])
        a, b, c = yield from _fold(
            engine, field, _blocks(field, a, width), _blocks(field, b, width), c
        )
    blind_a, blind_b = engine.source.random(field, 1), engine.source.random(field, 1)
    left = np.concatenate([blind_a, a])[:, np.newaxis]
    right = np.concatenate([blind_b, b])[:, np.newaxis]
    return field, (yield from _fold(engine, field, left, right, c, is_blinded=True))


def _compared(engine: "Engine", field: Field, claim: Claim) -> Steps[None]:
    """Open a blinded product and its factors."""
    heard = yield Round(field.flat(np.concatenate(claim)), label=f"check {field.name}")
    opened = open_shares(field, [field.from_words(one.shared) for one in heard], engine.degree)
    if not opened.is_consistent or opened.values is None:
        raise _failed("shares of a check contradict each other", opened.cheaters)
    x, y, z = field.numbers(opened.values)
    if field.times(x, y) != z:
        raise _failed("a multiplication was wrong", ())


def _width(field: Field, length: int) -> int:
    """Return into how many blocks to cut: for the fewest folds that are cheap enough."""
    folds = 1
    while True:
        width = next(
            (one for one in range(2, _WIDE + 1) if _LAST * one**folds >= length), _WIDE + 1
        )
        is_cheap = length * (width - 1) <= _CHEAP[field.name] and width <= _WIDE
        if is_cheap or width <= _NARROW:
            return width
        folds += 1


def _failed(what: str, cheaters: tuple[int, ...]) -> Exception:
    from veilgrid.mpc.engine import CheckFailed

    return CheckFailed(what, cheaters)


def _blocks(field: Field, vector: Words, width: int) -> Words:
    """Cut into ``width`` blocks of one length, padded with zeros."""
    size = -(-vector.shape[0] // width)
    if size * width > vector.shape[0]:
        vector = np.concatenate([vector, field.zeros(size * width - vector.shape[0])])
    return vector.reshape(width, size, *vector.shape[1:])


@cache
def _beyond(field: Field, width: int) -> Words:
    """Return the factors that take blocks at points 0..width-1 to each of the next points."""
    points = list(range(width))
    rows = [field.vector(lagrange(field, points, at)) for at in range(width, 2 * width - 1)]
    return np.array(rows)


def _fold(
    engine: "Engine", field: Field, a: Words, b: Words, c: Words, *, is_blinded: bool = False
) -> Steps[Claim]:
    """Replace a claim about ``width`` blocks by one about a random point between them.

    The inner product of two polynomials through the blocks is a polynomial of twice the degree;
    the parties multiply for all but one of its values, and the claim gives that one.
    """
    width = a.shape[0]
    values = yield from engine.summed(field, field.curve(a, b, _beyond(field, width)))
    first, rest = values[: width - 1], values[width - 1 :]
    last = c
    for k in range(1 if is_blinded else 0, width - 1):
        last = field.subtract(last, first[k : k + 1])
    curve = np.concatenate([first, last, rest])
    at = yield from _challenge(engine, field)
    near = field.vector(lagrange(field, range(width), at))
    far = field.vector(lagrange(field, range(2 * width - 1), at))
    return (
        field.combine(near, a),
        field.combine(near, b),
        field.combine(far, curve[:, np.newaxis]),
    )


def _challenge(engine: "Engine", field: Field) -> Steps[int]:
    """Return a public random point, told only after the products of the fold."""
    value = yield from engine.coin()
    return value if field is PRIME_FIELD else value & (2**63 - 1)
