"""One shape for the inputs of many clients: numbers, one-hot vectors, multiples of them [risk 2.1].

An input is a vector of integers. What makes it valid are a few equations, most of them products of
two linear functions of its elements; so shares of all clients are checked together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """An integer within public bounds, sent as bits.

    Attributes
    ----------
    name
        Unique in its layout.
    lower, upper : int or (client,)
        Bounds, the same for all or one pair each.
    """

    name: str
    lower: int | Integers
    upper: int | Integers

    def __post_init__(self) -> None:
        """Refuse bounds that cross."""
        low, high = np.broadcast_arrays(np.atleast_1d(self.lower), np.atleast_1d(self.upper))
        crossed = np.flatnonzero(low > high)
        if crossed.size:
            problem = f"lower bound {low[crossed[0]]} is above upper bound {high[crossed[0]]}"
            raise InputError([Finding(f"{self.name}, client {int(crossed[0])}", problem)])

    @property
    def extents(self) -> Integers:
        """Largest value above the lower bound: (1 or client,)."""
        return np.atleast_1d(np.asarray(self.upper, np.int64) - np.asarray(self.lower, np.int64))

    @property
    def size(self) -> int:
        """Bits sent."""
        return max(int(self.extents.max()).bit_length(), 1)

    @property
    def bound(self) -> int:
        """Largest magnitude of a valid value."""
        return int(max(np.abs(self.lower).max(), np.abs(self.upper).max()))

    def weights(self) -> Integers:
        """Return the weights of the bits, with which they reach every value and no other.

        Returns
        -------
        (1 or client, bit)
            1, 2, 4, ... and, last, what is missing to the extent.
        """
        extents = self.extents[:, np.newaxis]
        powers = np.int64(1) << np.arange(self.size, dtype=np.int64)
        # A bit is plain if all bits up to it reach no more than the extent.
        plain = np.where(2 * powers - 1 <= extents, powers, 0)
        rest = extents - plain.sum(axis=1, keepdims=True)
        first_zero = np.argmax(plain == 0, axis=1)
        rows = np.flatnonzero(rest[:, 0] > 0)
        plain[rows, first_zero[rows]] = rest[rows, 0]
        return plain


@dataclass(frozen=True, slots=True)
class OneHot:
    """A vector with a one in exactly one place."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Spike:
    """A vector that is a secret quantity in one place, zero elsewhere.

    Attributes
    ----------
    quantity
        Name of the number that stands in it. A quantity of zero gives a vector of zeros.
    """

    name: str
    size: int
    quantity: str


@dataclass(frozen=True, slots=True)
class Scaled:
    """A quantity times a one-hot vector.

    Attributes
    ----------
    one_hot, quantity
        Names of the two.
    """

    name: str
    one_hot: str
    quantity: str


@dataclass(frozen=True, slots=True, eq=False)
class Equal:
    """A public linear equation between the parts of an input.

    Attributes
    ----------
    terms
        Name of a part, and a factor for a number or (element,) factors for a vector.
    constant : int or (client,)
        What the terms add up to.
    """

    terms: tuple[tuple[str, int | Integers], ...]
    constant: int | Integers = 0


Part = Number | OneHot | Spike | Scaled


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What every client of a round sends: parts one after another, and equations between them.

    Attributes
    ----------
    parts
        A part may refer to others by name, in any order.
    equations
        Beyond what the parts themselves demand.
    """

    parts: tuple[Part, ...]
    equations: tuple[Equal, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        names = [part.name for part in self.parts]
        invariant(len(set(names)) == len(names), "parts have names of their own")
        for part in self.parts:
            if isinstance(part, Spike | Scaled):
                invariant(isinstance(self.part(part.quantity), Number), "a quantity is a number")
            if isinstance(part, Scaled):
                invariant(isinstance(self.part(part.one_hot), OneHot), "a one-hot part is scaled")

    def part(self, name: str) -> Part:
        """Return the part of that name."""
        found = [part for part in self.parts if part.name == name]
        invariant(len(found) == 1, "a part that is asked for exists")
        return found[0]

    def size_of(self, part: Part) -> int:
        """Return how many elements a part has."""
        return self.size_of(self.part(part.one_hot)) if isinstance(part, Scaled) else part.size

    @property
    def size(self) -> int:
        """Elements of an input."""
        return sum(self.size_of(part) for part in self.parts)

    def start(self, name: str) -> int:
        """Return where a part begins."""
        at = 0
        for part in self.parts:
            if part.name == name:
                return at
            at += self.size_of(part)
        invariant(False, "a part that is asked for exists")
        return at

    def bound(self, name: str) -> int:
        """Return the largest magnitude of a part's values in a valid input."""
        part = self.part(name)
        if isinstance(part, Number):
            return part.bound
        return 1 if isinstance(part, OneHot) else self.bound(part.quantity)

    def encode(
        self, values: Mapping[str, Sequence[int] | Integers], rows: Integers | None = None
    ) -> Integers:
        """Return inputs for values; what is out of range becomes an input that is not valid.

        Parameters
        ----------
        values : name -> (client,)
            Of each number its value, of each one-hot part and spike its place. Scaled parts
            follow from theirs.
        rows : (client,)
            Which clients these are, where bounds differ; None: all in order.

        Returns
        -------
        (client, element)
        """
        count = len(next(iter(values.values())))
        chosen = np.arange(count) if rows is None else rows
        out = np.zeros((count, self.size), np.int64)
        for part in self.parts:
            start = self.start(part.name)
            place = out[:, start : start + self.size_of(part)]
            match part:
                case Number():
                    place[:] = _bits(part, np.asarray(values[part.name], np.int64), chosen)
                case OneHot():
                    place[np.arange(count), np.asarray(values[part.name])] = 1
                case Spike():
                    quantity = np.asarray(values[part.quantity], np.int64)
                    place[np.arange(count), np.asarray(values[part.name])] = quantity
                case Scaled():
                    quantity = np.asarray(values[part.quantity], np.int64)
                    place[np.arange(count), np.asarray(values[part.one_hot])] = quantity
        return out

    def is_valid(self, inputs: Integers) -> npt.NDArray[np.bool_]:
        """Return which inputs in the clear are valid: the oracle of the check on shares."""
        valid = np.ones(len(inputs), bool)
        for part in self.parts:
            block = self.block(inputs, part.name)
            if isinstance(part, Number):
                valid &= ((block == 0) | (block == 1)).all(axis=1)
                continue
            if isinstance(part, OneHot):
                valid &= ((block == 0) | (block == 1)).all(axis=1) & (block.sum(axis=1) == 1)
                continue
            quantity = self.numbers(inputs, part.quantity)
            if isinstance(part, Spike):
                is_zero_or_all = (block == 0) | (block == quantity[:, np.newaxis])
                valid &= is_zero_or_all.all(axis=1) & (block.sum(axis=1) == quantity)
            else:
                one_hot = self.block(inputs, part.one_hot)
                valid &= (block == one_hot * quantity[:, np.newaxis]).all(axis=1)
        for equation in self.equations:
            total = np.zeros(len(inputs), np.int64) - np.asarray(equation.constant)
            for name, factor in equation.terms:
                if isinstance(self.part(name), Number):
                    total += self.numbers(inputs, name) * np.asarray(factor)
                else:
                    total += self.block(inputs, name) @ np.asarray(factor)
            valid &= total == 0
        return valid

    def block(self, inputs: Integers, name: str) -> Integers:
        """Return the elements of one part: (client, element)."""
        start = self.start(name)
        found: Integers = inputs[:, start : start + self.size_of(self.part(name))]
        return found

    def numbers(self, inputs: Integers, name: str) -> Integers:
        """Return the values of a number from inputs in the clear: (client,)."""
        part = self.part(name)
        if not isinstance(part, Number):
            raise InputError([Finding(name, "is not a number")])
        total: Integers = (self.block(inputs, name) * part.weights()).sum(axis=1) + part.lower
        return total


def _bits(part: Number, values: Integers, rows: Integers) -> Integers:
    """Return bits for values; what does not fit ends up in the first bit, which is then none."""
    weights, lower = part.weights(), np.atleast_1d(np.asarray(part.lower, np.int64))
    weights = weights[rows] if len(weights) > 1 else np.repeat(weights, len(rows), axis=0)
    rest = values - (lower[rows] if len(lower) > 1 else lower)
    bits = np.zeros(weights.shape, np.int64)
    every = np.arange(len(rows))
    order = np.argsort(-weights, axis=1, kind="stable")
    for k in range(weights.shape[1]):
        column = order[:, k]
        weight = weights[every, column]
        fits = (weight > 0) & (weight <= rest)
        bits[every, column] = fits
        rest = rest - np.where(fits, weight, 0)
    bits[:, 0] += 2 * rest  # Never a bit, whatever the rest.
    return bits
