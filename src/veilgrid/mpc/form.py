"""What clients may send: numbers in a range, one-hot vectors, rising curves [mpc 7.4].

An input is a vector of bits; its values are public linear combinations of them. So a valid vector
of bits cannot stand for anything out of range, and one check on shares covers every kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from veilgrid.errors import Finding, InputError, invariant


@dataclass(frozen=True, slots=True)
class Form:
    """The shape of an input and what is checked about it.

    Attributes
    ----------
    bit_count
        Bits sent.
    weights : (value, bit)
        Value ``v`` is ``offsets[v]`` plus the weights of its bits that are one.
    offsets : (value,)
    equalities
        Pairs of bit weights and the sum that they must add up to.
    """

    bit_count: int
    weights: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    equalities: tuple[tuple[tuple[int, ...], int], ...] = ()

    @property
    def bound(self) -> int:
        """Largest magnitude of any value of a valid input."""
        return max(
            abs(offset) + sum(abs(weight) for weight in row)
            for row, offset in zip(self.weights, self.offsets, strict=True)
        )

    def values(self, bits: Sequence[int]) -> list[int]:
        """Return the values that bits stand for."""
        return [
            offset + sum(weight * bit for weight, bit in zip(row, bits, strict=True))
            for row, offset in zip(self.weights, self.offsets, strict=True)
        ]


NOTHING = Form(0, (), ())
"""The form of a client that sends nothing."""


def range_weights(extent: int, bit_count: int) -> list[int]:
    """Return weights with which ``bit_count`` bits reach every number 0..extent and no other."""
    needed = extent.bit_length()
    invariant(extent >= 0 and needed <= bit_count, "the extent fits the bits")
    if needed == 0:
        return [0] * bit_count
    head = [2**k for k in range(needed - 1)]
    return [*head, extent - sum(head), *[0] * (bit_count - needed)]


def range_bits(number: int, weights: Sequence[int]) -> list[int]:
    """Return bits for a number 0..extent; what does not fit ends up in the first bit.

    The first bit is then not a bit, which the parties' check finds.
    """
    bits = [0] * len(weights)
    rest = number
    for k in sorted(range(len(weights)), key=lambda k: -weights[k]):
        if 0 < weights[k] <= rest:
            bits[k] = 1
            rest -= weights[k]
    if rest and bits:
        bits[0] += rest
    return bits


def number(lower: int, upper: int, bit_count: int | None = None) -> Form:
    """Return the form of one integer within ``lower..upper``.

    Raises
    ------
    InputError
        The bounds cross.
    """
    if lower > upper:
        raise InputError([Finding("form", f"lower bound {lower} is above upper bound {upper}")])
    size = max((upper - lower).bit_length(), 1) if bit_count is None else bit_count
    return Form(size, (tuple(range_weights(upper - lower, size)),), (lower,))


def one_hot(bin_count: int) -> Form:
    """Return the form of a vector with a one in exactly one of ``bin_count`` places."""
    rows = tuple(tuple(int(j == k) for j in range(bin_count)) for k in range(bin_count))
    return Form(bin_count, rows, (0,) * bin_count, (((1,) * bin_count, 1),))


def monotone(tick_count: int, step_max: int, start: int = 0) -> Form:
    """Return the form of a curve that rises by 0..step_max from each tick to the next."""
    size = max(step_max.bit_length(), 1)
    step = range_weights(step_max, size)
    rows = []
    for tick in range(tick_count):
        row: list[int] = []
        for k in range(tick_count):
            row += step if k <= tick else [0] * size
        rows.append(tuple(row))
    return Form(size * tick_count, tuple(rows), (start,) * tick_count)


def number_bits(form: Form, value: int) -> list[int]:
    """Return the bits of one number in its form (see :func:`range_bits` for one out of range)."""
    return range_bits(value - form.offsets[0], form.weights[0])


def monotone_bits(form: Form, curve: Sequence[int]) -> list[int]:
    """Return the bits of a curve in its form."""
    size = form.bit_count // len(curve)
    bits: list[int] = []
    former = form.offsets[0]
    for value in curve:
        bits += range_bits(value - former, form.weights[-1][:size])
        former = value
    return bits
