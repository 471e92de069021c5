"""A party's side of a secure computation: what functions are written with [mpc 4].

Functions are plain generators: ``product = yield from mpc.multiply(a, b)``. They run unchanged
with :class:`Engine` on shares and with :class:`~veilgrid.mpc.plain.Plain` on numbers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np

from veilgrid.errors import RunAborted, invariant
from veilgrid.mpc import _binary, circuit, prepared
from veilgrid.mpc._points import octal_parity, octal_weights, weights
from veilgrid.mpc._round import EMPTY, Round, Steps
from veilgrid.mpc._shares import Shares, check_bound
from veilgrid.mpc.field import BINARY_FIELD, PRIME_FIELD, Field, Words, decode, encode
from veilgrid.mpc.shamir import open_shares

KING_WORDS: Final = 1 << 16
"""A vector of at least that many words is opened through kings: fewer octets, one round more."""

PENDING_MAX: Final = 1 << 22
"""Multiplications of one kind that wait for their check before one is forced."""

_STEP: Final = 1 << 14


class CheckFailed(Exception):
    """Somebody deviated; who, is found out by the blame protocol [mpc 8].

    Attributes
    ----------
    cheaters
        Parties proved to have deviated already.
    """

    def __init__(self, what: str, cheaters: tuple[int, ...] = ()) -> None:
        self.what, self.cheaters = what, cheaters
        super().__init__(what)


class Source(Protocol):
    """Shared randomness and how public and commonly known numbers are shared."""

    me: int
    n: int
    degree: int
    sets: list[tuple[int, ...]]

    def known(self, field: Field, members: tuple[int, ...], vector: Words) -> Words: ...
    def known_octal(self, members: tuple[int, ...], planes: Words) -> Words: ...
    def constant(self, vector: Words) -> Words: ...
    def raw(self, members: tuple[int, ...], count: int) -> Words: ...
    def random(self, field: Field, count: int) -> Words: ...
    def zero(self, field: Field, count: int) -> Words: ...
    def octal_random(self, count: int) -> Words: ...
    def octal_zero(self, count: int) -> Words: ...
    def client_words(
        self, client: str, members: tuple[int, ...], count: int, purpose: bytes = b""
    ) -> Words: ...
    def learn(self, client: str, seeds: Mapping[tuple[int, ...], bytes]) -> None: ...
    def learn_all(self, seeds: Mapping[str, Mapping[tuple[int, ...], bytes]]) -> None: ...


class Engine:
    """One party's side of one computation.

    Parameters
    ----------
    source
        The party's keys, which also say who it is and what the degree is.
    digest
        Returns the digest of everything said to all so far; compared before anything opens.
    """

    def __init__(self, source: Source, digest: Callable[[], bytes]) -> None:
        self.source, self.me, self.n = source, source.me, source.n
        self.degree = source.degree
        self.digest = digest
        self.products: list[tuple[Words, Words, Words]] = []
        self.gates: list[tuple[Words, Words, Words]] = []
        self.product_count = self.gate_count = 0
        self.deliveries: list[tuple[str, str, Words]] = []
        self.kept: dict[str, Shares] = {}
        self._pending = {"products": 0, "gates": 0}
        self._running = 0
        self._is_settled = True
        self._agreed = b""
        self._weights = {
            field.name: field.vector([weights(field, self.n)[self.me - 1]])
            for field in (PRIME_FIELD, BINARY_FIELD)
        }
        self._octal_weight = octal_weights(self.n)[self.me - 1]

    # -- without a message ----------------------------------------------------------------------

    def constant(self, values: Iterable[int]) -> Shares:
        """Return shares of public integers."""
        numbers = [int(value) for value in values]
        bound = max((abs(number) for number in numbers), default=0)
        return Shares(self.source.constant(encode(numbers)), bound, self.source.constant)

    def wrap(self, data: Words, bound: int) -> Shares:
        """Return own shares of a vector whose magnitude is below ``bound``, which is vouched."""
        return Shares(data, bound, self.source.constant)

    def uniform(self, count: int) -> Words:
        """Return own shares of uniform field elements that nobody knows."""
        return self.source.random(PRIME_FIELD, count)

    # -- multiplication -------------------------------------------------------------------------

    def multiply(self, a: Shares, b: Shares) -> Steps[Shares]:
        """Multiply element by element; a vector of one element goes with each of the other's."""
        longest = max(len(a), len(b))
        left = a.repeat(longest) if len(a) == 1 < longest else a
        right = b.repeat(longest) if len(b) == 1 < longest else b
        return (yield from self.inner(left, right, 1))

    def inner(self, a: Shares, b: Shares, columns: int | None = None) -> Steps[Shares]:
        """Return the inner product of all, or of each row of ``columns`` elements.

        It costs the messages of one multiplication a row, whatever the number of columns.
        """
        invariant(len(a) == len(b) > 0, "vectors of one length are multiplied")
        width = len(a) if columns is None else columns
        bound = check_bound(a.bound * b.bound * width, "product")
        data = yield from self.product(PRIME_FIELD, a.data, b.data, width)
        return self.wrap(data, bound)

    def inner_each(self, a: Shares, b: Shares) -> Steps[Shares]:
        """Return the inner product of ``a`` with each part of ``b`` that is as long as ``a``.

        Their check is about vectors as long as ``a``, however many there are.
        """
        width = len(a)
        invariant(width > 0 and len(b) % width == 0, "every part is as long as the vector")
        bound = check_bound(a.bound * b.bound * width, "product")
        rows = [PRIME_FIELD.inner(a.data, part) for part in b.data.reshape(-1, width, 2)]
        result = yield from self.summed(PRIME_FIELD, np.concatenate(rows))
        self.products.append((a.data, b.data, result))
        self.product_count += len(rows)
        yield from self._checked_in_time("products", width)
        return self.wrap(result, bound)

    def product(self, field: Field, a: Words, b: Words, width: int) -> Steps[Words]:
        """Multiply shares of a field and remember the operands for the check [mpc 4.3]."""
        result = yield from self.inner_unchecked(field, a, b, width)
        self.products.append((a, b, result))
        self.product_count += result.shape[0]
        yield from self._checked_in_time("products", a.shape[0])
        return result

    def inner_unchecked(self, field: Field, a: Words, b: Words, width: int) -> Steps[Words]:
        """Return shares of the inner product of each ``width`` elements."""
        local = field.empty(a.shape[0] // width)
        shape = (width, 2) if field.words == 2 else (width,)
        for first in range(0, local.shape[0], _STEP):
            part = slice(first, min(first + _STEP, local.shape[0]))
            wide = slice(first * width, part.stop * width)
            if width == 1:
                local[part] = field.multiply(a[wide], b[wide])
            else:
                left, right = a[wide].reshape(-1, *shape), b[wide].reshape(-1, *shape)
                local[part] = field.rows(left, right)
        return (yield from self.summed(field, local))

    def summed(self, field: Field, local: Words) -> Steps[Words]:
        """Turn products of shares into shares of products [mpc 4.3].

        Each party's product, masked, is a summand of the masked result, which is opened.
        """
        invariant(2 * self.degree < self.n, "multiplication needs 2 degree + 1 <= parties")
        weight = self._weights[field.name]
        mask, said = field.empty(local.shape[0]), field.empty(local.shape[0])
        for first in range(0, local.shape[0], _STEP):
            part = slice(first, min(first + _STEP, local.shape[0]))
            size = part.stop - part.start
            mask[part] = self.source.random(field, size)
            masked = self.source.zero(field, size)
            field.accumulate(masked, weight, field.add(local[part], mask[part]))
            said[part] = masked
        opened = yield from self._gather(field, said)
        return field.subtract(self.source.constant(opened), mask)

    def _gather(self, field: Field, said: Words) -> Steps[Words]:
        """Open a vector of which every party holds a summand; small ones to all at once."""
        flat = field.flat(said)
        if not self.by_kings(flat.size):
            heard = yield Round(flat, label="product")
            return self._total(field, [one.shared for one in heard])
        private = self.slices(flat, field.words)
        size = private[0].size
        heard = yield Round(EMPTY, private=private, private_length=size, label="product to kings")
        total = self._total(field, [one.private for one in heard])
        heard = yield Round(field.flat(total), label="product from kings")
        totals = np.concatenate([one.shared for one in heard])[: flat.size]
        return field.from_words(totals)

    @staticmethod
    def by_kings(words: int) -> bool:
        """Return whether a vector of so many words is opened through kings."""
        return words >= KING_WORDS

    def slices(self, flat: Words, width: int) -> tuple[Words, ...]:
        """Cut a vector of elements of ``width`` words into one slice of equal size a king."""
        size = -(-flat.size // (width * self.n)) * width
        padded = np.concatenate([flat, np.zeros(size * self.n - flat.size, np.uint64)])
        return tuple(padded.reshape(self.n, size))

    @staticmethod
    def _total(field: Field, parts: list[Words]) -> Words:
        total = field.from_words(parts[0])
        for part in parts[1:]:
            total = field.add(total, field.from_words(part))
        return total

    def both(self, a: Words, b: Words) -> Steps[Words]:
        """Return the conjunction of bit-sliced shared bits, shape (..., word, 3) [mpc 5.1]."""
        invariant(2 * self.degree < self.n, "multiplication needs 2 degree + 1 <= parties")
        shape = a.shape
        left = np.ascontiguousarray(a).reshape(-1, 3)
        right = np.ascontiguousarray(b).reshape(-1, 3)
        count = left.shape[0]
        mask = self.source.octal_random(count)
        said = self.source.octal_zero(count)
        local = _binary.octal_multiply(left, right)
        _binary.octal_accumulate(said, self._octal_weight, local ^ mask)
        if not self.by_kings(said.size):
            heard = yield Round(said.reshape(-1), label="and")
            opened = self._xor([one.shared for one in heard])
        else:
            opened = yield from self._xor_by_kings(said.reshape(-1))
        result = self.source.constant(opened.reshape(-1, 3)) ^ mask
        self.gates.append((left, right, result))
        self.gate_count += 64 * count
        yield from self._checked_in_time("gates", 64 * count)
        return result.reshape(shape)

    def _xor_by_kings(self, flat: Words) -> Steps[Words]:
        private = self.slices(flat, 3)
        size = private[0].size
        heard = yield Round(EMPTY, private=private, private_length=size, label="and to kings")
        total = self._xor([one.private for one in heard])
        heard = yield Round(total, label="and from kings")
        return np.concatenate([one.shared for one in heard])[: flat.size]

    @staticmethod
    def _xor(parts: list[Words]) -> Words:
        total = parts[0].copy()
        for part in parts[1:]:
            total ^= part
        return total

    def _checked_in_time(self, kind: str, size: int) -> Steps[None]:
        self._pending[kind] += size
        if self._pending[kind] >= (PENDING_MAX if kind == "products" else 2 * PENDING_MAX):
            yield from self.check()

    # -- bits -----------------------------------------------------------------------------------

    def is_negative(self, x: Shares) -> Steps[Shares]:
        """Return 1 where an element is below zero, else 0."""
        return (yield from circuit.is_negative(self, x))

    def where_negative(
        self, x: Shares, values: Shares, masks: "prepared.Masks | None" = None
    ) -> Steps[Shares]:
        """Return ``values`` where ``x`` is below zero, else 0."""
        if masks is not None:
            return (yield from prepared.where_negative(self, x, values, masks))
        return (yield from circuit.where_negative(self, x, values))

    def prepare(
        self, sizes: Sequence[int], like: Shares
    ) -> "Steps[list[prepared.Masks] | list[None]]":
        """Make masks for comparisons of so many numbers like ``like``, one after the other."""
        if len(sizes) < prepared.STAGES_MIN:
            return [None] * len(sizes)
        return (yield from prepared.prepare(self, sizes, circuit.magnitude_bits(like)))

    def is_zero(self, x: Shares) -> Steps[Shares]:
        """Return 1 where an element is zero, else 0."""
        return (yield from circuit.is_zero(self, x))

    def truncate(self, x: Shares, shift: int) -> Steps[Shares]:
        """Divide by two to the ``shift`` and round down."""
        return (yield from circuit.truncate(self, x, shift))

    def truncate_nearly(self, x: Shares, shift: int) -> Steps[Shares]:
        """Divide by two to the ``shift`` in one round, off by a few steps."""
        return (yield from circuit.truncate_nearly(self, x, shift))

    def open_negative(self, x: Shares, dropped: int = 0) -> Steps[list[int]]:
        """Open which elements are below zero; near zero only without ``dropped`` low bits."""
        return (yield from circuit.open_negative(self, x, dropped))

    def decompose(self, x: Shares, bits: int) -> Steps[list[Shares]]:
        """Return the low bits of non-negative elements, lowest first."""
        return (yield from circuit.decompose(self, x, bits))

    def random_bits(self, count: int) -> Steps[Shares]:
        """Return random bits that nobody knows."""
        return (yield from circuit.random_bits(self, count))

    def below_public(self, thresholds: Sequence[int], bits: int, count: int) -> Steps[Shares]:
        """Draw numbers that nobody knows; return which limits each stays below, by draw."""
        return (yield from circuit.below_public(self, thresholds, bits, count))

    # -- opening --------------------------------------------------------------------------------

    def reveal(self, data: Words) -> Steps[Words]:
        """Open prime-field shares that are masked by a secret uniform number [mpc 4.4].

        Nothing is corrected here: shares that contradict each other end the computation.
        """
        was_agreed = self._is_agreed
        heard = yield Round(PRIME_FIELD.flat(data), label="masked")
        shares = [PRIME_FIELD.from_words(one.shared) for one in heard]
        opening = open_shares(PRIME_FIELD, shares, self.degree)
        if not opening.is_consistent or opening.values is None:
            raise CheckFailed("shares of a masked opening contradict each other", opening.cheaters)
        self._stays_agreed(was_agreed)
        return opening.values

    def reveal_octal(self, data: Words) -> Steps[Words]:
        """Open bit-sliced shares (word, 3) that are masked by a secret uniform element."""
        was_agreed = self._is_agreed
        heard = yield Round(np.ascontiguousarray(data).reshape(-1), label="masked bits")
        rows = octal_parity(self.n, self.degree)
        totals = []
        for row in rows:
            total = np.zeros(data.shape, np.uint64)
            for factor, one in zip(row, heard, strict=True):
                if factor:
                    _binary.octal_accumulate(total, factor, one.shared.reshape(data.shape))
            totals.append(total)
        if any(bool(total.any()) for total in totals[1:]):
            raise CheckFailed("shares of a masked opening of bits contradict each other")
        self._stays_agreed(was_agreed)
        return totals[0]

    def coin(self) -> Steps[int]:
        """Return a uniform public number that nobody could foresee."""
        opened = yield from self.reveal(self.uniform(1))
        return PRIME_FIELD.numbers(opened)[0]

    def check(self, *last: Steps[None]) -> Steps[bool]:
        """Verify every multiplication since the last check [mpc 6]; ``last`` goes with its end."""
        from veilgrid.mpc.verify import verify_all

        products = [claim for claim in self.products if len(claim[2])]
        gates = [claim for claim in self.gates if len(claim[2])]
        self.products, self.gates = [], []
        self._pending = {"products": 0, "gates": 0}
        is_due = bool(products or gates)
        if is_due:
            self._running += 1
            self._is_settled = False
            yield from verify_all(self, products, gates, *last)
            self._running -= 1
        return is_due

    def settle(self) -> Steps[None]:
        """Verify all multiplications, if there were any: numbers are then within their bounds.

        What was said has to be the same, too: who hears the coin from one party before it tells
        another its part of a product can make that one's check pass.
        """
        if self.products or self.gates or self._running or not self._is_settled:
            yield from self.agree()

    def _others(self) -> Steps[bool]:
        """Wait for checks that were begun side by side with this: they took what was pending."""
        has_waited = False
        while self._running:
            has_waited = True
            yield Round(EMPTY, label="wait")
        return has_waited

    def agree(self) -> Steps[None]:
        """Verify what is pending, and that all parties heard the same [mpc 6.4].

        What is known to be the same already takes no round.
        """
        has_compared = yield from self.check(self._compare())
        has_waited = yield from self._others()
        if (has_waited or not has_compared) and not self._is_agreed:
            yield from self._compare()

    def _compare(self) -> Steps[None]:
        """Compare digests of all that was said before."""
        own = np.frombuffer(self.digest(), "<u8").astype(np.uint64)
        heard = yield Round(own, label="agree")
        if any(not np.array_equal(one.shared, own) for one in heard):
            raise CheckFailed("the parties did not hear the same")
        self._agreed = self.digest()
        # The check that this ends is one; of another that still runs more is to be compared.
        self._is_settled = self._running <= 1

    @property
    def _is_agreed(self) -> bool:
        """Whether all that was heard is the same for all parties, and verified."""
        return self._agreed == self.digest() and not self.products and not self.gates

    def _stays_agreed(self, was_agreed: bool) -> None:
        """Remember that consistent shares are the same for all parties.

        The honest ones fix the polynomial where they are more than the degree, so nobody can send
        two parties different shares and both find them consistent.
        """
        if was_agreed and 2 * self.degree < self.n:
            self._agreed = self.digest()

    def open(self, x: Shares) -> Steps[list[int]]:
        """Open to all parties, after everything it depends on has been verified."""
        values = yield from self.open_elements(x.data)
        if any(abs(value) > x.bound for value in values):
            # All multiplications were verified, so a share of the result must be wrong.
            raise CheckFailed("an opened result exceeds its bound")
        return values

    def open_elements(self, data: Words) -> Steps[list[int]]:
        """Open field elements as they are, after everything has been verified."""
        return decode((yield from self.open_words(data)))

    def open_words(self, data: Words) -> Steps[Words]:
        """Open field elements, and leave them as they are."""
        yield from self.agree()
        was_agreed = self._is_agreed
        heard = yield Round(PRIME_FIELD.flat(data), label="output")
        shares = [PRIME_FIELD.from_words(one.shared) for one in heard]
        opening = open_shares(PRIME_FIELD, shares, self.degree)
        if opening.cheaters or opening.values is None:
            raise CheckFailed("shares of an output contradict each other", opening.cheaters)
        self._stays_agreed(was_agreed)
        return opening.values

    def deliver(self, client: str, label: str, x: Shares) -> Steps[None]:
        """Let ``x`` open to one client only, after everything it depends on was verified.

        Every party sends its share, sealed, to the client when the function ends.
        """
        yield from self.agree()
        self.deliveries.append((client, label, x.data))

    def keep(self, name: str, x: Shares) -> Steps[None]:
        """Keep ``x`` shared for a later computation, after everything was verified."""
        yield from self.agree()
        self.kept[name] = x

    def abort(self, reason: str) -> RunAborted:
        """Return the error that ends a function which found its input unusable."""
        return RunAborted(reason)
