"""Two finite fields on arrays, and numbers with a fixed point in one of them [mpc 1].

Arithmetic is done in the prime field with 2**127 - 1 elements; Boolean circuits are shared over
GF(8) and checked in its extension GF(2**63). A vector of the prime field has shape (element, 2),
one of the large binary field shape (element,); both are sliced along their first axis.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc import _binary, _prime

Words = npt.NDArray[np.uint64]

PRIME: Final = 2**127 - 1
BOUND_MAX: Final = (PRIME - 1) // 2
"""Largest magnitude that a signed number in the prime field may have."""

_LOW: Final = 2**64 - 1

_SMALL: Final = 2**62
"""Numbers of smaller magnitude are encoded and decoded as 64-bit integers."""

_NEGATIVE_HIGH: Final = np.uint64(2**63 - 1)
"""High word of the elements that stand for small negative numbers."""


@dataclass(frozen=True, slots=True)
class Field:
    """The operations that protocols need, the same names for both fields.

    Attributes
    ----------
    words
        64-bit words an element.
    """

    name: str
    words: int
    add: Callable[[Words, Words], Words]
    subtract: Callable[[Words, Words], Words]
    multiply: Callable[[Words, Words], Words]
    scale: Callable[[Words, Words], Words]
    combine: Callable[[Words, Words], Words]
    accumulate: Callable[[Words, Words, Words], None]
    rows: Callable[[Words, Words], Words]
    curve: Callable[[Words, Words, Words], Words]
    times: Callable[[int, int], int]
    plus: Callable[[int, int], int]
    minus: Callable[[int, int], int]
    inverse: Callable[[int], int]

    def zeros(self, count: int) -> Words:
        """Return a vector of ``count`` zeros."""
        return np.zeros((count, 2) if self.words == 2 else count, np.uint64)

    def empty(self, count: int) -> Words:
        """Return a vector of ``count`` elements that are still to be written."""
        return np.empty((count, 2) if self.words == 2 else count, np.uint64)

    def vector(self, values: Iterable[int]) -> Words:
        """Return a vector of the given canonical numbers."""
        numbers = list(values)
        if self.words == 1:
            return np.array(numbers, np.uint64)
        return np.array([(n & _LOW, n >> 64) for n in numbers], np.uint64).reshape(-1, 2)

    def numbers(self, vector: Words) -> list[int]:
        """Return the canonical numbers in ``vector``."""
        if self.words == 1:
            return [int(value) for value in vector]
        return [low | (high << 64) for low, high in _prime.normalise(vector).tolist()]

    def from_words(self, words: Words) -> Words:
        """Read a vector from a flat array of words, whatever they are; never fails."""
        if self.words == 1:
            return words & np.uint64(2**63 - 1)
        return _prime.normalise(words.reshape(-1, 2))

    def flat(self, vector: Words) -> Words:
        """Return ``vector`` as a flat array of words."""
        return np.ascontiguousarray(vector).reshape(-1)

    def inner(self, a: Words, b: Words) -> Words:
        """Return the inner product of two vectors as a vector of one element."""
        return self.rows(a[np.newaxis], b[np.newaxis])


def _binary_times(a: int, b: int) -> int:
    return int(_binary.product(np.uint64(a), np.uint64(b)))


PRIME_FIELD: Final = Field(
    "prime",
    2,
    _prime.add,
    _prime.subtract,
    _prime.multiply,
    _prime.scale,
    _prime.combine,
    _prime.accumulate,
    _prime.rows,
    _prime.curve,
    lambda a, b: a * b % PRIME,
    lambda a, b: (a + b) % PRIME,
    lambda a, b: (a - b) % PRIME,
    lambda a: pow(a, -1, PRIME),
)
BINARY_FIELD: Final = Field(
    "binary",
    1,
    np.bitwise_xor,
    np.bitwise_xor,
    _binary.multiply,
    _binary.scale,
    _binary.combine,
    _binary.accumulate,
    _binary.rows,
    _binary.curve,
    _binary_times,
    lambda a, b: a ^ b,
    lambda a, b: a ^ b,
    lambda a: int(_binary.power(np.uint64(a), 2**63 - 2)),
)


@cache
def octal_basis() -> tuple[int, int, int]:
    """Return the images of 1, w and w squared of GF(8) in the large binary field."""
    generator = 2
    while True:
        root = int(_binary.power(np.uint64(generator), (2**63 - 1) // 7))
        square = _binary_times(root, root)
        if root not in (0, 1) and _binary_times(square, root) == root ^ 1:
            return 1, root, square
        generator += 1


def octal_image(value: int) -> int:
    """Return the image in the large field of an element 0..7 of GF(8)."""
    image = 0
    for place, basis in enumerate(octal_basis()):
        image ^= basis if value >> place & 1 else 0
    return image


def octal_times(a: int, b: int) -> int:
    """Multiply two elements 0..7 of GF(8)."""
    product = (b if a & 1 else 0) ^ (b << 1 if a & 2 else 0) ^ (b << 2 if a & 4 else 0)
    for place in (4, 3):
        if product >> place & 1:
            product ^= 0b1011 << (place - 3)
    return product


def octal_inverse(a: int) -> int:
    """Return the inverse of an element 1..7 of GF(8)."""
    square = octal_times(a, a)
    return octal_times(square, octal_times(square, square))


def encode(values: Iterable[int]) -> Words:
    """Return signed integers as elements of the prime field.

    Raises
    ------
    InputError
        A number is too large; none is ever wrapped.
    """
    numbers = list(values)
    try:
        small = np.array(numbers, np.int64)
    except OverflowError:
        return _encode_wide([int(number) for number in numbers])
    if small.size and (small.max() >= _SMALL or small.min() <= -_SMALL):
        return PRIME_FIELD.vector(number % PRIME for number in small.tolist())
    return encode_words(small)


def _encode_wide(numbers: list[int]) -> Words:
    findings = [
        Finding(f"element {index}", f"magnitude exceeds {BOUND_MAX}", "use a coarser scale")
        for index, number in enumerate(numbers)
        if abs(number) > BOUND_MAX
    ]
    if findings:
        raise InputError(findings)
    return PRIME_FIELD.vector(number % PRIME for number in numbers)


def encode_words(values: npt.NDArray[np.int64]) -> Words:
    """Return 64-bit signed integers as elements of the prime field."""
    is_negative = values < 0
    size = np.where(is_negative, -values, values).view(np.uint64)
    out = np.zeros((values.size, 2), np.uint64)
    out[:, 0] = np.where(is_negative, ~size, size)
    out[:, 1] = np.where(is_negative, np.uint64(2**63 - 1), np.uint64(0))
    return out


def decode(vector: Words) -> list[int]:
    """Return the signed integers that elements of the prime field stand for."""
    whole = _prime.normalise(vector)
    low, high = whole[:, 0], whole[:, 1]
    is_negative = high == _NEGATIVE_HIGH
    is_small = (is_negative | (high == 0)) & (np.where(is_negative, ~low, low) < _SMALL)
    if is_small.all():
        return list((low + is_negative.astype(np.uint64)).view(np.int64).tolist())
    return [n if n <= BOUND_MAX else n - PRIME for n in PRIME_FIELD.numbers(vector)]


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Real numbers as integers: how many steps make one unit, and how many bits they may take.

    Attributes
    ----------
    scale : steps per unit, > 0
        A value is rounded to the nearest step.
    bits
        The integer's magnitude stays below two to this power.
    """

    scale: int = 1_000_000
    bits: int = 40

    def __post_init__(self) -> None:
        """Refuse a scale or a range that cannot be."""
        if not (self.scale > 0 and 0 < self.bits <= 78):
            raise InputError([Finding("fixed point", "scale must be > 0 and bits in 1..78")])

    @property
    def bound(self) -> int:
        """Largest magnitude of an encoded number."""
        return int(2**self.bits - 1)

    def integers(self, values: Sequence[float] | npt.NDArray[np.float64]) -> list[int]:
        """Return values as integers.

        Raises
        ------
        InputError
            A value is not finite or out of range; all such values are named.
        """
        findings: list[Finding] = []
        numbers: list[int] = []
        for index, value in enumerate(values):
            if not np.isfinite(value) or abs(value) * self.scale >= 2**self.bits - 0.5:
                findings.append(
                    Finding(
                        f"element {index}",
                        f"is not within +-{self.bound / self.scale:g}",
                        "use a smaller scale or other units",
                    )
                )
                continue
            numbers.append(round(float(value) * self.scale))
        if findings:
            raise InputError(findings)
        return numbers

    def reals(self, numbers: Iterable[int]) -> npt.NDArray[np.float64]:
        """Return encoded integers as values."""
        return np.array([number / self.scale for number in numbers], np.float64)


def words_of(octets: bytes | bytearray | memoryview) -> Words:
    """Return octets as little-endian words; a rest that fills no word is dropped."""
    whole = len(octets) // 8 * 8
    return np.frombuffer(octets, "<u8", whole // 8).astype(np.uint64, copy=False)


def octets_of(words: Words) -> Any:
    """Return words as little-endian octets without copying."""
    array = np.ascontiguousarray(words, "<u8").reshape(-1)
    invariant(array.dtype.itemsize == 8, "a word has eight octets")
    return array.data.cast("B") if array.size else b""
