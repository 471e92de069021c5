"""Comparisons whose masks were added up in advance: fewer rounds one after the other [mpc 5.3].

The mask of a comparison does not depend on what is compared. Where many comparisons follow each
other, as in a sorting network, the bits of all masks and the products of three neighbouring bits
each are made at once before. What is left is to compare the opened number, which is public, with
the mask: every group of three bits takes public factors only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from veilgrid.errors import invariant
from veilgrid.mpc import _binary, circuit
from veilgrid.mpc._points import key_sets
from veilgrid.mpc._round import Steps, together
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.field import PRIME_FIELD, Words

if TYPE_CHECKING:
    from veilgrid.mpc.engine import Engine

STAGES_MIN: Final = 15
"""Fewer comparisons in a row are not worth the rounds of the preparation."""

_GROUP: Final = 3


@dataclass(frozen=True, slots=True)
class Masks:
    """Masks for comparisons, in whole words of 64.

    Attributes
    ----------
    bits
        Magnitude of what may be compared.
    total : (64 word, 2)
        Shares of the masks in the prime field.
    top : (word, 3)
        Of the masks, the bit that stands above the number and its spare places.
    products : (7, group, word, 3)
        Bits 0, 1, 2 of each group, then their products 01, 02, 12, 012.
    """

    bits: int
    total: Words
    top: Words
    products: Words

    def part(self, first: int, words: int) -> "Masks":
        """Return the masks of some words."""
        last = first + words
        return Masks(
            self.bits,
            self.total[64 * first : 64 * last],
            self.top[first:last],
            np.ascontiguousarray(self.products[:, :, first:last]),
        )


def prepare(engine: "Engine", sizes: Sequence[int], bits: int) -> Steps[list[Masks]]:
    """Make masks for comparisons of ``sizes`` numbers each, of up to ``bits`` bits."""
    words = [(size + 63) // 64 for size in sizes]
    width, top = sum(words), bits + circuit.spare_bits(engine)
    total, terms = _draw(engine, width, top + 1)
    u, v = yield from circuit.save_carry(engine, terms)
    planes = yield from _ripple(engine, u, v)
    low = np.zeros((-(-top // _GROUP) * _GROUP, width, 3), np.uint64)
    low[:top] = planes[:top]
    r0, r1, r2 = (low[k::_GROUP] for k in range(_GROUP))
    pairs = yield from engine.both(np.concatenate([r0, r0, r1]), np.concatenate([r1, r2, r2]))
    groups = r0.shape[0]
    triple = yield from engine.both(pairs[:groups], r2)
    products = np.stack([r0, r1, r2, *np.split(pairs, 3), triple])
    masks = Masks(bits, total, planes[top], products)
    starts = np.cumsum([0, *words])
    return [masks.part(int(start), count) for start, count in zip(starts, words, strict=False)]


def _draw(engine: "Engine", width: int, planes: int) -> tuple[Words, list[Words]]:
    """Draw one summand of each mask for each set; share it in both fields."""
    source, count = engine.source, 64 * width
    total = PRIME_FIELD.zeros(count)
    nothing = np.zeros((planes, width), np.uint64)
    terms = []
    for members in key_sets(engine.n, engine.degree):
        bits = nothing
        if members in source.sets:
            raw = source.raw(members, 2 * count).reshape(count, 2).copy()
            raw[:, 1] &= circuit.WHOLE
            total = PRIME_FIELD.add(total, source.known(PRIME_FIELD, members, raw))
            bits = _binary.slice_bits(raw, 0, planes)
        terms.append(source.known_octal(members, bits))
    return total, terms


def _ripple(engine: "Engine", u: Words, v: Words) -> Steps[Words]:
    """Return the bits of a sum with one gate a bit; all masks wait together."""
    carry = np.zeros_like(u[0])
    out = [u[0] ^ v[0]]
    for place in range(u.shape[0] - 1):
        joined = yield from engine.both(u[place] ^ carry, v[place] ^ carry)
        carry = joined ^ carry
        out.append(u[place + 1] ^ v[place + 1] ^ carry)
    return np.stack(out)


def negative_bits(engine: "Engine", x: Shares, masks: Masks) -> Steps[Words]:
    """Return bit-sliced shares (word, 3) of whether each element is below zero."""
    count, spare = len(x), circuit.spare_bits(engine)
    invariant(
        circuit.magnitude_bits(x) <= masks.bits, "the masks were made for numbers of this size"
    )
    bits = masks.bits + spare
    # How often number and mask went round the field is added to the places that are spare.
    shifted = ((x + 2**masks.bits) * 2**spare).data
    opened = yield from engine.reveal(PRIME_FIELD.add(shifted, masks.total[:count]))
    groups = masks.products.shape[1]
    public = np.zeros((_GROUP * groups, masks.top.shape[0]), np.uint64)
    planes = _binary.slice_bits(PRIME_FIELD.from_words(opened.reshape(-1)), 0, bits + 1)
    public[:bits] = planes[:bits]
    inverted = ~public
    generate, propagate = _groups(engine, masks.products, inverted)
    borrow = yield from circuit.top_carry(engine, generate, propagate)
    # The opened bit, the mask's bit and the borrow make the number's bit; it is one from zero up.
    known = np.zeros_like(masks.top)
    known[:, 0] = ~planes[bits]
    return masks.top ^ borrow ^ engine.source.constant(known)


def _groups(engine: "Engine", products: Words, inverted: Words) -> tuple[Words, Words]:
    """Return where a group of the mask exceeds, and where it equals, that of the opened number."""
    n0, n1, n2 = (inverted[k::_GROUP, :, np.newaxis] for k in range(_GROUP))
    r0, r1, r2, r01, r02, r12, r012 = products
    below = (r1 & n1) ^ (r01 & n0) ^ (r0 & (n0 & n1))
    above = (r12 & n1) ^ (r012 & n0) ^ (r02 & (n0 & n1))
    generate = (r2 & n2) ^ above ^ (below & n2)
    equal = r012 ^ (r12 & n0) ^ (r02 & n1) ^ (r01 & n2)
    equal = equal ^ (r2 & (n1 & n0)) ^ (r1 & (n2 & n0)) ^ (r0 & (n2 & n1))
    always = np.zeros_like(equal)
    always[..., 0] = (n0 & n1 & n2)[..., 0]
    return generate, equal ^ engine.source.constant(always)


def where_negative(engine: "Engine", x: Shares, values: Shares, masks: Masks) -> Steps[Shares]:
    """Return ``values`` where ``x`` is below zero, else 0."""
    comparison = negative_bits(engine, x, masks)
    bits, (twins, signed) = yield from together(comparison, circuit.signed_values(engine, values))
    return (yield from circuit.chosen(engine, bits, values, twins, signed))
