"""The same functions on plain numbers: the oracle of every shared computation [mpc 4.5]."""

import hashlib
from collections.abc import Iterable, Sequence

from veilgrid.errors import invariant
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares, check_bound
from veilgrid.mpc.circuit import magnitude_bits
from veilgrid.mpc.field import Words, decode, encode


class Plain:
    """Runs functions without parties: a number is its own share and nothing is said.

    Parameters
    ----------
    seed
        Of the random bits and draws.
    """

    n, degree, me = 1, 0, 1

    def __init__(self, seed: int = 0) -> None:
        self._seed, self._count = seed, 0

    def constant(self, values: Iterable[int]) -> Shares:
        """Return public integers."""
        numbers = [int(value) for value in values]
        return self._vector(numbers, max((abs(number) for number in numbers), default=0))

    def wrap(self, data: Words, bound: int) -> Shares:
        """Return a vector whose magnitude is below ``bound``."""
        return Shares(data, bound, lambda vector: vector)

    def _vector(self, numbers: Sequence[int], bound: int) -> Shares:
        return self.wrap(encode(numbers), bound)

    def multiply(self, a: Shares, b: Shares) -> Steps[Shares]:
        """Multiply element by element."""
        longest = max(len(a), len(b))
        left = a.repeat(longest) if len(a) == 1 < longest else a
        right = b.repeat(longest) if len(b) == 1 < longest else b
        return (yield from self.inner(left, right, 1))

    def inner(self, a: Shares, b: Shares, columns: int | None = None) -> Steps[Shares]:
        """Return the inner product of all, or of each row."""
        yield from ()
        width = len(a) if columns is None else columns
        bound = check_bound(a.bound * b.bound * width, "product")
        products = [x * y for x, y in zip(decode(a.data), decode(b.data), strict=True)]
        sums = [sum(products[k : k + width]) for k in range(0, len(products), width)]
        return self._vector(sums, bound)

    def inner_each(self, a: Shares, b: Shares) -> Steps[Shares]:
        """Return the inner product of ``a`` with each part of ``b`` that is as long."""
        return (yield from self.inner(a.tile(len(b) // len(a)), b, len(a)))

    def is_negative(self, x: Shares) -> Steps[Shares]:
        """Return 1 where an element is below zero, else 0."""
        yield from ()
        magnitude_bits(x)
        return self._vector([int(value < 0) for value in decode(x.data)], 1)

    def prepare(self, sizes: Sequence[int], like: Shares) -> Steps[list[None]]:
        """Prepare nothing: there is nothing to hide."""
        yield from ()
        magnitude_bits(like)
        return [None] * len(sizes)

    def where_negative(self, x: Shares, values: Shares, masks: object = None) -> Steps[Shares]:  # noqa: ARG002
        """Return ``values`` where ``x`` is below zero, else 0."""
        chosen = yield from self.is_negative(x)
        return (yield from self.multiply(chosen, values))

    def is_zero(self, x: Shares) -> Steps[Shares]:
        """Return 1 where an element is zero, else 0."""
        yield from ()
        magnitude_bits(x)
        return self._vector([int(value == 0) for value in decode(x.data)], 1)

    def truncate_nearly(self, x: Shares, shift: int) -> Steps[Shares]:
        """Divide by two to the ``shift`` and round down."""
        return (yield from self.truncate(x, shift))

    def open_negative(self, x: Shares, dropped: int = 0) -> Steps[list[int]]:  # noqa: ARG002
        """Return which elements are below zero."""
        yield from ()
        magnitude_bits(x)
        return [int(value < 0) for value in decode(x.data)]

    def truncate(self, x: Shares, shift: int) -> Steps[Shares]:
        """Divide by two to the ``shift`` and round down."""
        yield from ()
        return self._vector([value >> shift for value in decode(x.data)], (x.bound >> shift) + 1)

    def decompose(self, x: Shares, bits: int) -> Steps[list[Shares]]:
        """Return the low bits of non-negative elements, lowest first."""
        yield from ()
        values = decode(x.data)
        return [self._vector([value >> k & 1 for value in values], 1) for k in range(bits)]

    def random_bits(self, count: int) -> Steps[Shares]:
        """Return random bits."""
        yield from ()
        return self._vector([draw & 1 for draw in self._draws(count)], 1)

    def below_public(self, thresholds: Sequence[int], bits: int, count: int) -> Steps[Shares]:
        """Draw numbers of ``bits`` bits; return which limits each stays below, by draw."""
        yield from ()
        draws = [draw >> (128 - bits) for draw in self._draws(count)]
        return self._vector([int(draw < limit) for draw in draws for limit in thresholds], 1)

    def _draws(self, count: int) -> list[int]:
        first, self._count = self._count, self._count + count
        seed = b"plain %d " % self._seed
        return [
            int.from_bytes(hashlib.sha256(seed + b"%d" % k).digest()[:16], "big")
            for k in range(first, first + count)
        ]

    def check(self) -> Steps[None]:
        """Do nothing: nobody can deviate."""
        yield from ()

    def open(self, x: Shares) -> Steps[list[int]]:
        """Return the numbers."""
        yield from ()
        return decode(x.data)

    def run(self, steps: Steps[object]) -> object:
        """Return the result of a function."""
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value
        invariant(False, "a plain computation says nothing")
        return None
