"""Boolean circuits on bit-sliced shares, and the ways between bits and numbers [mpc 5].

A number is split, after one masked opening, into summands that are each known to one set of
parties, so that their bits are shared without a message. Adding the summands in a Boolean
circuit gives the bits of the number.

Bit planes have shape (plane, word, 3): 64 numbers a word, three bits of GF(8) a share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc import _binary
from veilgrid.mpc._round import Steps, together
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.field import PRIME, PRIME_FIELD, Words, encode

if TYPE_CHECKING:
    from veilgrid.mpc.engine import Engine

MASK_BITS: Final = 119
"""Bits of each summand of a short mask: 35 of them and the number stay below 2**126."""

HIDING_BITS: Final = 40
"""A number opened behind a short mask tells its secret with probability at most 2**-40."""

WHOLE: Final = np.uint64(2**63 - 1)
"""High word of the largest summand of a mask that is uniform in the field."""

COMPARABLE_BITS: Final = MASK_BITS - HIDING_BITS - 1

_HALF: Final = pow(2, -1, PRIME)


@dataclass(frozen=True, slots=True)
class _Split:
    """A number as a sum: which set knows which summand (two words an element, low bits count).

    The masks are the integers that were added before the opening.
    """

    summands: dict[tuple[int, ...], Words]
    count: int
    opened: Words
    masks: dict[tuple[int, ...], Words]


def magnitude_bits(x: Shares) -> int:
    """Return how many bits the magnitude of ``x`` takes.

    Raises
    ------
    InputError
        Too many to be hidden by a mask.
    """
    bits = max(x.bound.bit_length(), 1)
    if bits > COMPARABLE_BITS:
        problem = f"numbers of up to {bits} bits cannot be compared, at most {COMPARABLE_BITS}"
        raise InputError([Finding("comparison", problem, "truncate first")])
    return bits


def spare_bits(engine: "Engine") -> int:
    """Return how many places below a number take up how often its mask went round the field."""
    return len(_all_sets(engine)).bit_length()


def _split(engine: "Engine", x: Shares, offset: int) -> Steps[_Split]:
    """Open ``x + offset``, which is 0 or more, behind a mask that is uniform in the field.

    The summands add up to ``(x + offset) * 2**spare`` and a rest below ``2**spare``, modulo
    ``2**127``: what they add up to in the field and as integers differs by multiples of the prime,
    fewer than there are summands, and each takes one away from the low bits.
    """
    spare = spare_bits(engine)
    lifted = (x + offset) * 2**spare + (2**spare - 1)
    return (yield from _opened(engine, lifted, 0, WHOLE))


def _split_short(engine: "Engine", x: Shares, offset: int, shift: int) -> Steps[_Split]:
    """Open ``x + offset`` behind a short mask; the summands add up to it and ``shift`` exactly.

    Such a mask hides numbers within their bounds only. With one false product a party could make
    another as large as the field, and see what it was multiplied with: so all are verified now.
    """
    yield from engine.settle()
    top = np.uint64(2 ** (MASK_BITS - 64) - 1)
    return (yield from _opened(engine, x + offset, len(_all_sets(engine)) - 1 + shift, top))


def _opened(engine: "Engine", x: Shares, extra: int, top: np.uint64) -> Steps[_Split]:
    """Open ``x`` masked; return summands of ``x + extra`` minus one for each but the first.

    The high words of masks stay within ``top``.
    """
    source, count = engine.source, len(x)
    masks: dict[tuple[int, ...], Words] = {}
    total = x.data
    for members in source.sets:
        raw = source.raw(members, 2 * count).reshape(count, 2).copy()
        raw[:, 1] &= top
        masks[members] = raw
        total = PRIME_FIELD.add(total, source.known(PRIME_FIELD, members, raw))
    revealed = yield from engine.reveal(total)
    everyone = _all_sets(engine)
    more = np.repeat(encode([extra]), count, axis=0)
    opened = PRIME_FIELD.from_words(PRIME_FIELD.add(revealed, more))
    summands: dict[tuple[int, ...], Words] = {}
    for members in source.sets:
        if members == everyone[0]:
            rest = PRIME_FIELD.subtract(opened, masks[members])
            summands[members] = PRIME_FIELD.from_words(rest)
        else:
            summands[members] = ~masks[members]
    return _Split(summands, count, revealed, masks)


def _all_sets(engine: "Engine") -> list[tuple[int, ...]]:
    from veilgrid.mpc._points import key_sets

    return list(key_sets(engine.n, engine.degree))


def _planes(engine: "Engine", split: _Split, count: int, padding: int = 0) -> list[Words]:
    """Return shares of the low bits of each summand, for all sets: (plane, word, 3) each."""
    width = (split.count + 63) // 64
    nothing = np.zeros((count + padding, width), np.uint64)
    out = []
    for members in _all_sets(engine):
        planes = nothing
        if members in split.summands:
            planes = nothing.copy()
            planes[:count] = _binary.slice_bits(split.summands[members], 0, count)
        out.append(engine.source.known_octal(members, planes))
    return out


def save_carry(engine: "Engine", terms: list[Words]) -> Steps[tuple[Words, Words]]:
    """Replace three numbers by two of the same sum, until two are left."""
    while len(terms) > 2:
        groups = len(terms) // 3
        a, b, c = (np.stack(terms[k : 3 * groups : 3]) for k in range(3))
        left, right = a ^ b, a ^ c
        carry = yield from engine.both(left[:, :-1], right[:, :-1])
        majority = carry ^ a[:, :-1]
        shifted = np.zeros_like(a)
        shifted[:, 1:] = majority
        sums = left ^ c
        terms = [*terms[3 * groups :], *sums, *shifted]
    return terms[0], terms[1]


def top_carry(engine: "Engine", generate: Words, propagate: Words) -> Steps[Words]:
    """Return the carry out of all planes: (plane, word, 3) twice gives (word, 3)."""
    while generate.shape[0] > 1:
        pairs = generate.shape[0] // 2
        g_low, g_high = generate[0 : 2 * pairs : 2], generate[1 : 2 * pairs : 2]
        p_low, p_high = propagate[0 : 2 * pairs : 2], propagate[1 : 2 * pairs : 2]
        # Nobody asks what the lowest segment propagates.
        factors = np.concatenate([p_high, p_high[1:]])
        joined = yield from engine.both(factors, np.concatenate([g_low, p_low[1:]]))
        g_rest, p_rest = generate[2 * pairs :], propagate[2 * pairs :]
        generate = np.concatenate([g_high ^ joined[:pairs], g_rest])
        propagate = np.concatenate([p_low[:1], joined[pairs:], p_rest])
    carry: Words = generate[0]
    return carry


def _add_all(engine: "Engine", terms: list[Words]) -> Steps[Words]:
    """Return all bits of the sum modulo two to the number of planes."""
    u, v = yield from save_carry(engine, terms)
    half = u ^ v
    carry = yield from engine.both(u[:-1], v[:-1])
    propagate = half[:-1].copy()
    distance = 1
    while distance < carry.shape[0]:
        low_g, low_p = carry[:-distance], propagate[:-distance]
        high = propagate[distance:]
        joined = yield from engine.both(
            np.concatenate([high, high]), np.concatenate([low_g, low_p])
        )
        size = high.shape[0]
        carry = np.concatenate([carry[:distance], carry[distance:] ^ joined[:size]])
        propagate = np.concatenate([propagate[:distance], joined[size:]])
        distance *= 2
    total = half.copy()
    total[1:] ^= carry
    return total


def _ones(engine: "Engine", like: Words) -> Words:
    """Return shares of ones in the shape of ``like``."""
    ones = np.zeros(like.shape, np.uint64)
    ones[..., 0] = np.uint64(2**64 - 1)
    return engine.source.constant(ones)


def negative_bits(engine: "Engine", x: Shares) -> Steps[Words]:
    """Return bit-sliced shares (word, 3) of whether each element is below zero [mpc 5.3]."""
    bits = magnitude_bits(x)
    split = yield from _split(engine, x, 2**bits)
    return (yield from _top_bits(engine, split, bits + spare_bits(engine)))


def _top_bits(engine: "Engine", split: _Split, bits: int, dropped: int = 0) -> Steps[Words]:
    """Return the complement of a sum's bit ``bits``, bit-sliced (word, 3).

    The lowest ``dropped`` bits of the summands are left out, and what they would carry.
    """
    terms = [planes[dropped:] for planes in _planes(engine, split, bits + 1)]
    u, v = yield from save_carry(engine, terms)
    generate = yield from engine.both(u[:-1], v[:-1])
    half = u ^ v
    carry = yield from top_carry(engine, generate, half[:-1])
    top: Words = half[-1] ^ carry
    return top ^ _ones(engine, top)


def open_negative(engine: "Engine", x: Shares, dropped: int) -> Steps[list[int]]:
    """Open which elements are below zero, after everything was verified [mpc 5.3].

    The bits open as they are, in GF(8). Without the lowest ``dropped`` bits of its summands an
    element comes out right unless it is that close to zero, times half the number of summands.
    """
    # Dropping bits rounds every summand down: what is lost on average is given back.
    half = len(_all_sets(engine)) * 2**dropped // 2 if dropped else 0
    bits = magnitude_bits(engine.wrap(x.data, x.bound + half))
    invariant(0 <= dropped < bits, "some bits are left to compare")
    split = yield from _split(engine, x, 2**bits + half)
    spare = spare_bits(engine)
    top = yield from _top_bits(engine, split, bits + spare, dropped + spare if dropped else 0)
    yield from engine.agree()
    opened = yield from engine.reveal_octal(top)
    return [int(bit) for bit in _binary.unpack(opened[:, 0].copy(), len(x))[:, 0]]


def truncate_nearly(engine: "Engine", x: Shares, shift: int) -> Steps[Shares]:
    """Divide by two to the ``shift``, off by at most the number of summands of a mask [mpc 5.5].

    One masked opening: every set drops the low bits of its own mask, and what these carry is lost.
    """
    invariant(0 < shift <= COMPARABLE_BITS, "the number of dropped bits is in range")
    size = max(magnitude_bits(x), shift)
    split = yield from _split_short(engine, x, 2**size, 0)
    sets = len(_all_sets(engine))
    total = [number >> shift for number in PRIME_FIELD.numbers(split.opened)]
    quotient = (engine.constant(total) - (2 ** (size - shift) + sets // 2)).data
    for members, mask in split.masks.items():
        low, high = mask[:, 0], mask[:, 1]
        kept = _shifted(low, high, shift)
        known = engine.source.known(PRIME_FIELD, members, kept)
        quotient = PRIME_FIELD.subtract(quotient, known)
    return engine.wrap(quotient, (x.bound >> shift) + 1 + sets)


def _shifted(low: Words, high: Words, shift: int) -> Words:
    """Return numbers of two words divided by two to the ``shift``, in two words."""
    if shift >= 64:
        return np.stack([high >> np.uint64(shift - 64), np.zeros_like(high)], axis=1)
    rest = high << np.uint64(64 - shift)
    return np.stack([(low >> np.uint64(shift)) | rest, high >> np.uint64(shift)], axis=1)


def is_negative_anyhow(
    engine: "Engine", x: Shares, honest_max: int
) -> Steps[tuple[list[bool], Shares]]:
    """Return whether elements that may be anything are within a window, and 1 where below zero.

    Parameters
    ----------
    engine, x
        Elements of the field whose size nobody vouches for.
    honest_max : <= 2**78
        Magnitude of those that need to be hidden; their masked opening tells them with
        probability at most ``honest_max / 2**118``.

    Returns
    -------
    inside, negative
        Public: whether the masked number is one that an honest element could give. Where it is,
        the element is below ``2**125`` in magnitude and the shared bit is right.
    """
    invariant(honest_max.bit_length() <= COMPARABLE_BITS, "honest elements can be hidden")
    sets = len(_all_sets(engine))
    bits = MASK_BITS + sets.bit_length()
    (split, twins) = yield from together(
        _split_short(engine, x.claim(honest_max), 2**bits, 0), twin_bits(engine, 1, len(x))
    )
    low, high = 2**bits - honest_max, 2**bits + sets * 2**MASK_BITS + honest_max
    inside = [low <= value < high for value in PRIME_FIELD.numbers(split.opened)]
    top = yield from _top_bits(engine, split, bits)
    return inside, (yield from numbers_of(engine, top[np.newaxis], len(x), twins))


def zero_bits(engine: "Engine", x: Shares) -> Steps[Words]:
    """Return bit-sliced shares (word, 3) of whether each element is zero [mpc 5.4]."""
    bits = magnitude_bits(x)
    split = yield from _split_short(engine, x, 2**bits, 2**bits - 1)
    terms = _planes(engine, split, bits + 1)
    u, v = yield from save_carry(engine, terms)
    return (yield from all_ones(engine, u ^ v))


def all_ones(engine: "Engine", planes: Words) -> Steps[Words]:
    """Return the conjunction of all planes: (plane, word, 3) gives (word, 3)."""
    while planes.shape[0] > 1:
        pairs = planes.shape[0] // 2
        joined = yield from engine.both(planes[:pairs], planes[pairs : 2 * pairs])
        planes = np.concatenate([joined, planes[2 * pairs :]])
    first: Words = planes[0]
    return first


@dataclass(frozen=True, slots=True)
class TwinBits:
    """Random bits shared in both fields, hidden in uniform elements of GF(8) [mpc 5.2].

    Attributes
    ----------
    octal : (plane, word, 3)
        Uniform elements; their first bit is the random bit.
    sign : (plane count, 2)
        1 for a random bit 0, minus 1 for 1, in the prime field; plane by plane.
    """

    octal: Words
    sign: Words


def twin_bits(engine: "Engine", planes: int, count: int) -> Steps[TwinBits]:
    """Make random bits in both fields; the only messages are those of multiplications."""
    source = engine.source
    width = (count + 63) // 64
    octal = np.zeros((planes, width, 3), np.uint64)
    signs = []
    for members in _all_sets(engine):
        bits = np.zeros((planes * count, 2), np.uint64)
        if members in source.sets:
            raw = source.raw(members, planes * width * 3).reshape(planes, width, 3)
            for place in range(3):
                # Multiplying by w moves a plane up; w**3 is w + 1.
                shared = source.known_octal(members, raw[..., place].copy())
                octal ^= _times_w(shared, place)
            bits = np.concatenate([_binary.unpack(row, count) for row in raw[..., 0].copy()])
        signs.append(_sign(engine, members, bits))
    while len(signs) > 1:
        pairs = len(signs) // 2
        left, right = np.concatenate(signs[:pairs]), np.concatenate(signs[pairs : 2 * pairs])
        joined = yield from engine.product(PRIME_FIELD, left, right, 1)
        signs = [*np.split(joined, pairs), *signs[2 * pairs :]]
    return TwinBits(octal, signs[0])


def _times_w(planes: Words, power: int) -> Words:
    for _ in range(power):
        a0, a1, a2 = planes[..., 0], planes[..., 1], planes[..., 2]
        planes = np.stack([a2, a0 ^ a2, a1], axis=-1)
    return planes


def _sign(engine: "Engine", members: tuple[int, ...], bits: Words) -> Words:
    """Return shares of 1 - 2 b for bits that ``members`` know."""
    shared = engine.source.known(PRIME_FIELD, members, bits)
    one = engine.source.constant(_repeated(1, bits.shape[0]))
    return PRIME_FIELD.subtract(one, PRIME_FIELD.add(shared, shared))


def _repeated(value: int, count: int) -> Words:
    return np.repeat(encode([value]), count, axis=0)


def numbers_of(engine: "Engine", planes: Words, count: int, twins: TwinBits) -> Steps[Shares]:
    """Turn bit-sliced bits (plane, word, 3) into numbers 0 and 1, plane by plane [mpc 5.2]."""
    sign = yield from _opened_signs(engine, planes, count, twins)
    product = PRIME_FIELD.multiply(sign, twins.sign)
    one = engine.source.constant(_repeated(1, sign.shape[0]))
    half = PRIME_FIELD.vector([_HALF])
    return engine.wrap(PRIME_FIELD.scale(half, PRIME_FIELD.subtract(one, product)), 1)


def _opened_signs(engine: "Engine", planes: Words, count: int, twins: TwinBits) -> Steps[Words]:
    """Open the bits hidden by the random ones: 1 for equal, minus 1 for different."""
    invariant(planes.shape == twins.octal.shape, "one random bit hides one bit")
    flat = (planes ^ twins.octal).reshape(-1, 3)
    opened = yield from engine.reveal_octal(flat)
    low = np.ascontiguousarray(opened[:, 0]).reshape(planes.shape[0], -1)
    bits = np.concatenate([_binary.unpack(row, count) for row in low])
    return PRIME_FIELD.subtract(_repeated(1, bits.shape[0]), PRIME_FIELD.add(bits, bits))


def is_negative(engine: "Engine", x: Shares) -> Steps[Shares]:
    """Return 1 where an element is below zero, else 0."""
    bits, twins = yield from together(negative_bits(engine, x), twin_bits(engine, 1, len(x)))
    return (yield from numbers_of(engine, bits[np.newaxis], len(x), twins))


def where_negative(engine: "Engine", x: Shares, values: Shares) -> Steps[Shares]:
    """Return ``values`` where ``x`` is below zero, else 0, without a round for the choice.

    The random bit that hides the result of the comparison is multiplied with ``values`` while
    the comparison is still under way.
    """
    bits, (twins, signed) = yield from together(
        negative_bits(engine, x), signed_values(engine, values)
    )
    return (yield from chosen(engine, bits, values, twins, signed))


def chosen(
    engine: "Engine", bits: Words, values: Shares, twins: TwinBits, signed: Words
) -> Steps[Shares]:
    """Return ``values`` where a bit is one, given their products with the hiding signs."""
    sign = yield from _opened_signs(engine, bits[np.newaxis], len(values), twins)
    rest = PRIME_FIELD.subtract(values.data, PRIME_FIELD.multiply(sign, signed))
    half = PRIME_FIELD.vector([_HALF])
    return engine.wrap(PRIME_FIELD.scale(half, rest), values.bound)


def signed_values(engine: "Engine", values: Shares) -> Steps[tuple[TwinBits, Words]]:
    """Return random bits and the products of their signs with ``values``."""
    twins = yield from twin_bits(engine, 1, len(values))
    signed = yield from engine.product(PRIME_FIELD, twins.sign, values.data, 1)
    return twins, signed


def is_zero(engine: "Engine", x: Shares) -> Steps[Shares]:
    """Return 1 where an element is zero, else 0."""
    bits, twins = yield from together(zero_bits(engine, x), twin_bits(engine, 1, len(x)))
    return (yield from numbers_of(engine, bits[np.newaxis], len(x), twins))


def decompose_planes(engine: "Engine", x: Shares, bits: int) -> Steps[Words]:
    """Return the low ``bits`` bits of non-negative elements, bit-sliced (plane, word, 3)."""
    size, spare = max(magnitude_bits(x), bits), spare_bits(engine)
    split = yield from _split(engine, x, 2**size)
    total = yield from _add_all(engine, _planes(engine, split, spare + bits))
    return total[spare:]


def decompose(engine: "Engine", x: Shares, bits: int) -> Steps[list[Shares]]:
    """Return the low ``bits`` bits of non-negative elements as numbers, lowest first."""
    planes, twins = yield from together(
        decompose_planes(engine, x, bits), twin_bits(engine, bits, len(x))
    )
    flat = yield from numbers_of(engine, planes, len(x), twins)
    return [flat[k * len(x) : (k + 1) * len(x)] for k in range(bits)]


def truncate(engine: "Engine", x: Shares, shift: int) -> Steps[Shares]:
    """Divide by two to the ``shift`` and round down, exactly [mpc 5.5].

    Only the carries out of the low bits go through a circuit: the low bits of each summand are
    known to the set that knows the summand.
    """
    invariant(0 < shift <= COMPARABLE_BITS, "the number of dropped bits is in range")
    size, spare = max(magnitude_bits(x), shift), spare_bits(engine)
    split = yield from _split(engine, x, 2**size)
    everyone, places = _all_sets(engine), shift + spare
    extra = (len(everyone) - 1).bit_length()
    total, twins = yield from together(
        _add_all(engine, _planes(engine, split, places, extra)),
        twin_bits(engine, spare + extra, len(x)),
    )
    chosen = np.concatenate([total[:spare], total[places:]])
    numbers = yield from numbers_of(engine, chosen, len(x), twins)
    low = PRIME_FIELD.zeros(len(x))
    keep = np.array([(2**places - 1) & (2**64 - 1), (2**places - 1) >> 64], np.uint64)
    for members, summand in split.summands.items():
        low = PRIME_FIELD.add(low, engine.source.known(PRIME_FIELD, members, summand & keep))
    for k, place in enumerate([*range(spare), *range(places, places + extra)]):
        part = numbers[k * len(x) : (k + 1) * len(x)]
        low = PRIME_FIELD.subtract(low, (part * 2**place).data)
    shifted = PRIME_FIELD.subtract(((x + 2**size) * 2**spare).data, low)
    inverse = PRIME_FIELD.vector([pow(2**places, -1, PRIME)])
    quotient = engine.wrap(PRIME_FIELD.scale(inverse, shifted), 2 ** (size - shift + 1))
    moved: Shares = quotient - 2 ** (size - shift)
    return moved.claim((x.bound >> shift) + 1)


def random_bits(engine: "Engine", count: int) -> Steps[Shares]:
    """Return random bits that nobody knows, as numbers."""
    twins = yield from twin_bits(engine, 1, count)
    one = engine.source.constant(_repeated(1, count))
    half = PRIME_FIELD.vector([_HALF])
    return engine.wrap(PRIME_FIELD.scale(half, PRIME_FIELD.subtract(one, twins.sign)), 1)


def below_public(
    engine: "Engine", thresholds: Sequence[int], bits: int, count: int
) -> Steps[Shares]:
    """Draw uniform numbers of ``bits`` bits that nobody knows; compare them with public limits.

    Returns
    -------
    (draw, limit) flattened
        1 where the secret draw is below the limit, else 0.
    """
    width = (len(thresholds) + 63) // 64
    limits = np.zeros((bits, width), np.uint64)
    for place, limit in enumerate(thresholds):
        for bit in range(bits):
            if limit >> bit & 1:
                limits[bit, place // 64] |= np.uint64(1 << (place % 64))
    drawn = _spread_bits(engine, bits * count, width).reshape(bits, count * width, 3)
    public = np.zeros_like(drawn)
    public[..., 0] = np.tile(limits, count)
    inverted = drawn ^ _ones(engine, drawn)
    propagate = inverted ^ engine.source.constant(public)
    generate = inverted & public[..., :1]
    below, twins = yield from together(
        top_carry(engine, generate, propagate), twin_bits(engine, count, len(thresholds))
    )
    return (yield from numbers_of(engine, below.reshape(count, width, 3), len(thresholds), twins))


def _spread_bits(engine: "Engine", count: int, width: int) -> Words:
    """Return shares of random bits, each repeated over ``width`` words: (bit, word, 3)."""
    source = engine.source
    total = np.zeros((count, width, 3), np.uint64)
    for members in source.sets:
        raw = source.raw(members, (count + 63) // 64)
        chosen = (raw[np.arange(count) // 64] >> (np.arange(count) % 64).astype(np.uint64)) & 1
        words = np.repeat((np.uint64(0) - chosen.astype(np.uint64))[:, np.newaxis], width, axis=1)
        total ^= source.known_octal(members, words)
    return total
