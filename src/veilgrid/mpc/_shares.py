"""What a party holds of a vector, with the arithmetic that needs no message [mpc 4.1]."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc._prime import apply_matrix, row_sums
from veilgrid.mpc.field import BOUND_MAX, PRIME_FIELD, Words, encode, encode_words

Constant = Callable[[Words], Words]


def check_bound(bound: int, what: str) -> int:
    """Return ``bound`` if numbers of that size fit the field.

    Raises
    ------
    InputError
        They might wrap; nothing was computed yet.
    """
    if bound > BOUND_MAX:
        where, problem = what, f"numbers of up to {bound.bit_length()} bits do not fit 126 bits"
        raise InputError([Finding(where, problem, "truncate first, or use a coarser scale")])
    return bound


class Shares:
    """One party's shares of a vector of signed integers.

    Attributes
    ----------
    data : (element, 2)
        Shares, or the numbers themselves when run in the plain.
    bound
        No element's magnitude exceeds it; public. What could exceed the field is refused before
        it is computed, so nothing ever wraps.
    constant
        How this party shares something public.
    """

    __slots__ = ("bound", "constant", "data")

    def __init__(self, data: Words, bound: int, constant: Constant) -> None:
        self.data, self.bound, self.constant = data, check_bound(bound, "value"), constant

    def __len__(self) -> int:
        return int(self.data.shape[0])

    def __repr__(self) -> str:
        return f"Shares({len(self)} elements, bound {self.bound})"

    def _like(self, data: Words, bound: int) -> "Shares":
        return Shares(data, bound, self.constant)

    def _spread(self, other: "Shares | int | Sequence[int]") -> "Shares":
        """Return ``other`` as shares as long as this vector."""
        if isinstance(other, Shares):
            if len(other) == 1 < len(self):
                return other.repeat(len(self))
            return other
        if isinstance(other, int):
            data = np.repeat(encode([other]), len(self), axis=0)
            return self._like(self.constant(data), abs(other))
        numbers = [int(v) for v in other]
        bound = max((abs(v) for v in numbers), default=0)
        return self._like(self.constant(encode(numbers)), bound)

    def __add__(self, other: "Shares | int | Sequence[int]") -> "Shares":
        right = self._spread(other)
        left = self.repeat(len(right)) if len(self) == 1 < len(right) else self
        invariant(len(left) == len(right), "vectors of one length are added")
        bound = check_bound(left.bound + right.bound, "sum")
        return self._like(PRIME_FIELD.add(left.data, right.data), bound)

    __radd__ = __add__

    def __sub__(self, other: "Shares | int | Sequence[int]") -> "Shares":
        right = self._spread(other)
        left = self.repeat(len(right)) if len(self) == 1 < len(right) else self
        invariant(len(left) == len(right), "vectors of one length are subtracted")
        bound = check_bound(left.bound + right.bound, "difference")
        return self._like(PRIME_FIELD.subtract(left.data, right.data), bound)

    def __rsub__(self, other: "int | Sequence[int]") -> "Shares":
        return self._spread(other) - self

    def __neg__(self) -> "Shares":
        return self._like(PRIME_FIELD.subtract(PRIME_FIELD.zeros(len(self)), self.data), self.bound)

    def __mul__(self, factor: "int | Sequence[int]") -> "Shares":
        """Multiply by public integers."""
        if isinstance(factor, int):
            bound = check_bound(self.bound * abs(factor), "multiple")
            return self._like(PRIME_FIELD.scale(encode([factor]), self.data), bound)
        numbers = [int(value) for value in factor]
        left = self.repeat(len(numbers)) if len(self) == 1 < len(numbers) else self
        invariant(len(left) == len(numbers), "one public factor an element")
        bound = check_bound(self.bound * max((abs(v) for v in numbers), default=0), "multiple")
        return self._like(PRIME_FIELD.multiply(left.data, encode(numbers)), bound)

    __rmul__ = __mul__

    def __getitem__(self, index: Any) -> "Shares":
        if isinstance(index, int | np.integer):
            index = [int(index)]
        return self._like(np.ascontiguousarray(self.data[index]), self.bound)

    def repeat(self, count: int) -> "Shares":
        """Return each element ``count`` times in place."""
        return self._like(np.repeat(self.data, count, axis=0), self.bound)

    def tile(self, count: int) -> "Shares":
        """Return the whole vector ``count`` times."""
        return self._like(np.tile(self.data, (count, 1)), self.bound)

    def sum(self, columns: int | None = None) -> "Shares":
        """Return the sum of all, or of each row of ``columns`` elements."""
        width = len(self) if columns is None else columns
        bound = check_bound(self.bound * width, "sum")
        if width == 0:
            return self._like(PRIME_FIELD.zeros(1), 0)
        return self._like(row_sums(self.data.reshape(-1, width, 2)), bound)

    def weighted_sum(self, weights: "Sequence[int] | npt.NDArray[np.int64]") -> "Shares":
        """Return the sum of elements times public integers; an array of them is faster."""
        if isinstance(weights, np.ndarray):
            invariant(weights.dtype == np.int64, "weights are 64-bit integers")
            total = int(np.abs(weights).max(initial=0)) * len(weights)
            encoded = encode_words(weights)
        else:
            total = sum(abs(int(weight)) for weight in weights)
            encoded = encode(weights)
        bound = check_bound(self.bound * total, "weighted sum")
        return self._like(PRIME_FIELD.inner(self.data, encoded), bound)

    def claim(self, bound: int) -> "Shares":
        """Return the same, with a bound that the caller vouches for (and says why)."""
        return self._like(self.data, bound)


def concatenate(parts: Iterable[Shares]) -> Shares:
    """Return one vector of several."""
    listed = list(parts)
    invariant(len(listed) > 0, "at least one vector")
    bound = max(part.bound for part in listed)
    return Shares(np.concatenate([part.data for part in listed]), bound, listed[0].constant)


def place_at(target: Shares, index: Any, values: Shares) -> Shares:
    """Return ``target`` with the elements at ``index`` replaced by ``values``."""
    out = target.data.copy()
    out[index] = values.data
    return Shares(out, max(target.bound, values.bound), target.constant)


def public_matrix(
    matrix: "Sequence[Sequence[int]] | npt.NDArray[np.int64]", vector: Shares
) -> Shares:
    """Multiply a public integer matrix (row, column) with a shared vector (column).

    An array of 64-bit integers is faster than lists.
    """
    if isinstance(matrix, np.ndarray):
        invariant(matrix.dtype == np.int64, "a matrix holds 64-bit integers")
        largest = int(np.abs(matrix).max(initial=0)) * matrix.shape[1]
        encoded = encode_words(np.ascontiguousarray(matrix).reshape(-1))
        bound = check_bound(vector.bound * largest, "matrix product")
        shape = (*matrix.shape, 2)
        return Shares(apply_matrix(encoded.reshape(shape), vector.data), bound, vector.constant)
    listed = [[int(value) for value in row] for row in matrix]
    rows = max((sum(abs(value) for value in row) for row in listed), default=0)
    bound = check_bound(vector.bound * rows, "matrix product")
    flat = encode(value for row in listed for value in row)
    shape = (len(listed), len(vector), 2)
    return Shares(apply_matrix(flat.reshape(shape), vector.data), bound, vector.constant)
