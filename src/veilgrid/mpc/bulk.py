"""Inputs of very many clients of one shape: arrays from the mailbox to the check [risk 2].

In short, for a computation over 100,000 clients::

    parts = (Number("kw", 0, upper_of_each), OneHot("bin", 64), Scaled("part", "bin", "kw"))
    layout = Layout(parts)
    mailbox = BulkMailbox(party, n, degree, session, clients, box_key, layout)
    mailbox.accept(submission)                 # while messages arrive; the costly part
    batch = yield from bulk_intake(mpc, mailbox, count_min)
    batch.number("kw")                         # Shares, one a client; zero where not counted
    batch.column_sums("bin", weights)          # Shares, one an element: weighted sum over clients
    batch.rows("part")                         # Shares, client by client

A client calls ``submit(session, name, layout.encode({...})[0], ...)`` of
:mod:`veilgrid.mpc.client`. All inputs are checked by one opened number; only if it is not zero,
one number a client opens and the bad ones are named, left out or replaced by their fallback.
:func:`plain_batch` gives the same batch in the clear.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from veilgrid.errors import RunAborted, invariant
from veilgrid.mpc._bulk import column_sums, project
from veilgrid.mpc._points import key_sets
from veilgrid.mpc._round import Round, Steps
from veilgrid.mpc._rows import Rows, Seeds, with_pad
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.client import Enrolled, Mailbox
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.field import PRIME, PRIME_FIELD, Words, encode_words, octets_of, words_of
from veilgrid.mpc.intake import agree_on_submissions
from veilgrid.mpc.layout import Equal, Integers, Layout, Number, OneHot, Scaled, Spike
from veilgrid.mpc.plain import Plain
from veilgrid.mpc.prss import Keyring, Stream
from veilgrid.secret import Secret

Mask = npt.NDArray[np.bool_]

_SEED: Final = 16
_TOGETHER: Final = 4096


# -- what arrives --------------------------------------------------------------------------------


class BulkMailbox(Mailbox):
    """One party's submissions of many clients, all of one layout.

    Parameters
    ----------
    party, n, degree, session, clients, box_key
        As of :class:`~veilgrid.mpc.client.Mailbox`; the order of ``clients`` is that of the rows
        of all arrays and must be the same at all parties. Their forms are not looked at.
    layout
        What every client sends.
    fallback : (client, element) or None
        Valid inputs that stand in for missing and invalid ones; None leaves those out.
    """

    received: Rows  # type: ignore[assignment]
    signature_octets = 64

    def __init__(
        self,
        party: int,
        n: int,
        degree: int,
        session: bytes,
        clients: Mapping[str, Enrolled],
        box_key: Secret[bytes],
        layout: Layout,
        fallback: Integers | None = None,
    ) -> None:
        super().__init__(party, n, degree, session, clients, box_key)
        invariant(
            fallback is None or bool(layout.is_valid(fallback).all()), "fallbacks are valid inputs"
        )
        self.layout, self.fallback = layout, fallback
        self._size, self._label = layout.size, f"bits {layout.size}"
        self.received = Rows(self)

    def fill(self, shares: Words, pads: Words | None = None) -> None:
        """Put in shares of all inputs at once, as if messages had been read: for measuring."""
        rows = self.received
        if pads is not None:
            rows.pads[:] = pads
        invariant(shares.shape == rows.shares.shape, "one share for each element and client")
        rows.shares[:] = shares
        rows.is_present[:] = True
        rows.mark()

    def size(self, client: str) -> int:  # noqa: ARG002 - the same for all
        """Return how many elements a client sends."""
        return self._size

    def label(self, client: str) -> str:  # noqa: ARG002 - the same for all
        """Return how a client's message names its shape."""
        return self._label

    @property
    def box_octets(self) -> int:
        """Return how long the part of a message is that one party alone can use."""
        return _SEED * sum(1 in members for members in key_sets(self.n, self.degree)) + 48


# -- what comes out ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class BulkBatch:
    """Inputs of all clients, in their order; rows of those that do not count are zero.

    Attributes
    ----------
    mpc
        Engine or plain numbers.
    data : (client, element, 2)
        Own shares.
    is_counted, is_replaced : (client,)
        Whose own input counts, and for whom the fallback stands in.
    flags
        By client that did not pass: ``missing``, ``unreadable``, ``contradictory``, ``invalid``.
    pads : (client, 2)
        Own shares of a number that only the client knows, used by :mod:`veilgrid.mpc.padded`.
    """

    mpc: Engine | Plain
    names: tuple[str, ...]
    layout: Layout
    data: Words
    is_counted: Mask
    is_replaced: Mask
    flags: dict[str, str] = field(default_factory=dict)
    pads: Words = field(default_factory=lambda: np.zeros((0, 2), np.uint64))

    @property
    def clients(self) -> list[str]:
        """Return the clients whose own input counts."""
        return [self.names[row] for row in np.flatnonzero(self.is_counted)]

    def number(self, name: str) -> Shares:
        """Return a number of each client; zero where nothing counts."""
        part = self.layout.part(name)
        if not isinstance(part, Number):
            return self.rows(name)
        weights = part.weights()
        factors = encode_words(weights.reshape(-1)).reshape(*weights.shape, 2)
        values = project(self.data, self.layout.start(name), factors)
        lower = np.broadcast_to(np.asarray(part.lower, np.int64), self.is_counted.shape)
        offsets = encode_words(np.where(self.is_counted | self.is_replaced, lower, 0))
        constant = _constant(self.mpc, offsets)
        return self.mpc.wrap(PRIME_FIELD.add(values, constant), part.bound)

    def rows(self, name: str) -> Shares:
        """Return the elements of one part, client by client: (client * element)."""
        start = self.layout.start(name)
        size = self.layout.size_of(self.layout.part(name))
        block = np.ascontiguousarray(self.data[:, start : start + size])
        return self.mpc.wrap(block.reshape(-1, 2), self.layout.bound(name))

    def column_sums(self, name: str, weights: Integers | None = None) -> Shares:
        """Return for each element of a part the sum over clients, weighted by public integers."""
        part = self.layout.part(name)
        factors = np.ones(len(self.names), np.int64) if weights is None else weights
        size, start = self.layout.size_of(part), self.layout.start(name)
        total = column_sums(self.data, start, size, encode_words(factors))
        bound = self.layout.bound(name) if not isinstance(part, Number) else 1
        return self.mpc.wrap(total, bound * int(np.abs(factors).sum()))

    def project(self, name: str, factors: Integers) -> Shares:
        """Return for each client the sum of a part's elements times public integers.

        ``factors`` has shape (element,), or (client, element) where they differ.
        """
        table = np.atleast_2d(factors)
        encoded = encode_words(np.ascontiguousarray(table).reshape(-1)).reshape(*table.shape, 2)
        part = self.layout.part(name)
        is_single = isinstance(part, OneHot | Scaled | Spike)  # At most one element is not zero.
        largest = np.abs(table).max(initial=0) if is_single else np.abs(table).sum(axis=1).max()
        bound = (self.layout.bound(name) if is_single else 1) * int(largest)
        return self.mpc.wrap(project(self.data, self.layout.start(name), encoded), bound)


def _constant(mpc: Engine | Plain, vector: Words) -> Words:
    return mpc.source.constant(vector) if isinstance(mpc, Engine) else vector


def plain_batch(
    mpc: Plain,
    layout: Layout,
    inputs: Integers,
    names: Sequence[str] | None = None,
    fallback: Integers | None = None,
) -> BulkBatch:
    """Return the batch of inputs in the clear; invalid ones are left out or replaced."""
    called = tuple(names or (str(row) for row in range(len(inputs))))
    valid = layout.is_valid(inputs)
    kept = np.where(valid[:, np.newaxis], inputs, 0 if fallback is None else fallback)
    replaced = ~valid if fallback is not None else np.zeros(len(valid), bool)
    data = encode_words(np.ascontiguousarray(kept).reshape(-1)).reshape(*kept.shape, 2)
    flags = {called[row]: "invalid" for row in np.flatnonzero(~valid)}
    pads = np.zeros((len(called), 2), np.uint64)
    return BulkBatch(mpc, called, layout, data, valid, replaced, flags, pads)


# -- the rounds ----------------------------------------------------------------------------------


def bulk_intake(mpc: Engine, mailbox: BulkMailbox, count_min: int = 1) -> Steps[BulkBatch]:
    """Return the inputs that all parties agree on and that are valid.

    Nothing else opens before: a batch of fewer than ``count_min`` inputs ends the computation.
    """
    names, rows = tuple(mailbox.clients), mailbox.received
    flags: dict[str, str] = {}
    chosen = yield from _agreed(mpc, mailbox, names, flags)
    mpc.source.learn_all(Seeds(rows, [names[row] for row in np.flatnonzero(chosen)]))
    data, pads = _shares(mpc, mailbox, names, chosen)
    valid = yield from _valid(mpc, mailbox.layout, data, chosen)
    for row in np.flatnonzero(chosen & ~valid):
        flags[names[row]] = "invalid"
    if int(valid.sum()) < count_min:
        raise RunAborted(
            f"only {int(valid.sum())} of {len(names)} inputs are valid, at least {count_min} are "
            "needed before anything opens; wait for more clients or lower the minimum"
        )
    replaced = ~valid if mailbox.fallback is not None else np.zeros(len(names), bool)
    if not valid.all():
        data = data.copy()
        data[~valid] = 0
    if mailbox.fallback is not None and replaced.any():
        stand_ins = np.ascontiguousarray(mailbox.fallback[replaced])
        constant = mpc.source.constant(encode_words(stand_ins.reshape(-1)))
        data[replaced] = constant.reshape(*stand_ins.shape, 2)
    ordered = {name: flags[name] for name in names if name in flags}
    return BulkBatch(mpc, names, mailbox.layout, data, valid, replaced, ordered, pads)


def _agreed(
    mpc: Engine, mailbox: BulkMailbox, names: tuple[str, ...], flags: dict[str, str]
) -> Steps[Mask]:
    """Return whose submissions all parties hold: usually after comparing one digest."""
    table = mailbox.received.roster()
    digest = hashlib.sha256(octets_of(table)).digest()
    heard = yield Round(words_of(digest), label="roster digest")
    entries = table.reshape(-1, 5)
    # A seed that cannot be read shows in its readers' tables, and in those of who says it likewise.
    is_same = all(np.array_equal(one.shared, heard[0].shared) for one in heard)
    if is_same and not entries[:, 4].any():
        is_there: Mask = (entries[:, :4] != 0).any(axis=1)
        flags.update({names[row]: "missing" for row in np.flatnonzero(~is_there)})
        return is_there
    chosen = yield from agree_on_submissions(mpc, mailbox, names, flags)
    return np.array([name in chosen for name in names], bool)


def _shares(
    mpc: Engine, mailbox: BulkMailbox, names: tuple[str, ...], chosen: Mask
) -> tuple[Words, Words]:
    """Return shares of all chosen inputs, valid or not: (client, element, 2), and of pads."""
    rows = mailbox.received
    if isinstance(mpc.source, Keyring):
        stray = rows.is_present & ~chosen
        if not stray.any():
            return rows.shares, rows.pads
        data, pads = rows.shares.copy(), rows.pads.copy()
        data[stray] = pads[stray] = 0
        return data, pads
    # Computed again for the blame protocol: from the seeds that the source has.
    count, size, _ = rows.corrections.shape
    total = np.zeros((count, size + 1, 2), np.uint64)
    for row in np.flatnonzero(chosen):
        words = with_pad(rows.corrections[row])
        total[row] = mpc.source.constant(PRIME_FIELD.from_words(words))
        for members in mpc.source.sets:
            drawn = mpc.source.client_words(names[row], members, 2 * size + 2)
            part = mpc.source.known(PRIME_FIELD, members, PRIME_FIELD.from_words(drawn))
            total[row] = PRIME_FIELD.add(total[row], part)
    return np.ascontiguousarray(total[:, :-1]), np.ascontiguousarray(total[:, -1])


def _valid(mpc: Engine, layout: Layout, data: Words, chosen: Mask) -> Steps[Mask]:
    """Return which inputs are valid; open one number if all are, one a client if not.

    Every opened number is multiplied by a secret uniform one, so an invalid input shows nothing
    but that it is invalid.
    """
    count = data.shape[0]
    if not chosen.any():
        return chosen
    seed = (yield from mpc.coin()).to_bytes(16, "little")
    stream = Stream(seed, b"bulk validity")
    left, right, rest = _claims(mpc, layout, data, stream)
    weights = PRIME_FIELD.from_words(stream.words(2 * count))
    weights[~chosen] = 0
    width = left.shape[1]
    _weigh(left, weights)
    weighed = left.reshape(-1, 2)
    total = yield from mpc.product(PRIME_FIELD, weighed, right.reshape(-1, 2), weighed.shape[0])
    total = PRIME_FIELD.add(total, PRIME_FIELD.inner(weights, rest))
    if not any((yield from _blinded(mpc, total))):
        return chosen
    rows = np.flatnonzero(chosen)
    left, _, _ = _claims(mpc, layout, data, Stream(seed, b"bulk validity"))
    each = yield from mpc.product(
        PRIME_FIELD, left[rows].reshape(-1, 2), right[rows].reshape(-1, 2), width
    )
    opened = yield from _blinded(mpc, PRIME_FIELD.add(each, rest[rows]))
    valid = np.zeros(count, bool)
    valid[rows] = [value == 0 for value in opened]
    return valid


def _weigh(left: Words, weights: Words) -> None:
    """Multiply each client's factors by its weight in place: a copy would be the largest array."""
    width = left.shape[1]
    for first in range(0, len(left), _TOGETHER):
        block = left[first : first + _TOGETHER]
        spread = np.repeat(weights[first : first + _TOGETHER], width, axis=0)
        block[:] = PRIME_FIELD.multiply(spread, block.reshape(-1, 2)).reshape(block.shape)


def _blinded(mpc: Engine, errors: Words) -> Steps[list[int]]:
    """Open numbers times secret uniform ones: zero stays zero, nothing else can be read off."""
    factors = mpc.uniform(errors.shape[0])
    blinded = yield from mpc.product(PRIME_FIELD, errors, factors, 1)
    return (yield from mpc.open_elements(blinded))


class _Factors:
    """Factors of every client's products, written where they stay: (client, product, 2)."""

    def __init__(self, count: int, layout: Layout) -> None:
        widths = {Number: 0, Scaled: 1, OneHot: 1, Spike: 2}
        width = sum(
            layout.size_of(part) if isinstance(part, Number) else widths[type(part)]
            for part in layout.parts
        )
        self.left = np.empty((count, width, 2), np.uint64)
        self.right = np.empty((count, width, 2), np.uint64)
        self._at = 0

    def put(self, left: Words, right: Words) -> None:
        """Add one product a client."""
        self.left[:, self._at], self.right[:, self._at] = left, right
        self._at += 1

    def put_bits(self, draw: Words, bits: Words) -> None:
        """Add the product of each bit and the same bit times its public factor."""
        end = self._at + bits.shape[1]
        self.right[:, self._at : end] = bits
        for first in range(0, len(bits), _TOGETHER):
            block = np.ascontiguousarray(bits[first : first + _TOGETHER])
            spread = np.tile(draw, (len(block), 1))
            weighed = PRIME_FIELD.multiply(block.reshape(-1, 2), spread)
            self.left[first : first + _TOGETHER, self._at : end] = weighed.reshape(block.shape)
        self._at = end


def _claims(mpc: Engine, layout: Layout, data: Words, stream: Stream) -> tuple[Words, Words, Words]:
    """Return, for each client, factors whose products and a rest add up to its error.

    The error is a random combination of all that has to be zero; if anything is not, it is zero
    with probability below 2**-119 [risk 2.2].

    Returns
    -------
    left, right : (client, product, 2); rest : (client, 2)
    """
    count = data.shape[0]
    factors = _Factors(count, layout)
    rest = PRIME_FIELD.zeros(count)
    for part in layout.parts:
        start, size = layout.start(part.name), layout.size_of(part)
        draw = PRIME_FIELD.from_words(stream.words(2 * size))
        if isinstance(part, Number):
            factors.put_bits(draw, data[:, start : start + size])
            rest = PRIME_FIELD.subtract(rest, project(data, start, draw[np.newaxis]))
            continue
        scale = PRIME_FIELD.from_words(stream.words(2))
        once = project(data, start, draw[np.newaxis])
        if isinstance(part, Scaled):
            unit = project(data, layout.start(part.one_hot), draw[np.newaxis])
            value = _value(mpc, layout, data, part.quantity)
            factors.put(PRIME_FIELD.scale(scale, unit), value)
            rest = PRIME_FIELD.subtract(rest, PRIME_FIELD.scale(scale, once))
            continue
        squares = PRIME_FIELD.multiply(draw, draw)
        twice = project(data, start, squares[np.newaxis])
        factors.put(PRIME_FIELD.scale(scale, once), once)
        ones = encode_words(np.ones(size, np.int64))
        total = project(data, start, ones[np.newaxis])
        if isinstance(part, Spike):
            quantity = _value(mpc, layout, data, part.quantity)
            minus = PRIME_FIELD.vector([-PRIME_FIELD.numbers(scale)[0] % PRIME])
            factors.put(PRIME_FIELD.scale(minus, quantity), twice)
        else:
            quantity = mpc.source.constant(encode_words(np.ones(count, np.int64)))
            rest = PRIME_FIELD.subtract(rest, PRIME_FIELD.scale(scale, twice))
        factor = PRIME_FIELD.from_words(stream.words(2))
        off = PRIME_FIELD.subtract(total, quantity)
        rest = PRIME_FIELD.add(rest, PRIME_FIELD.scale(factor, off))
    for equation in layout.equations:
        factor = PRIME_FIELD.from_words(stream.words(2))
        off = _difference(mpc, layout, data, equation)
        rest = PRIME_FIELD.add(rest, PRIME_FIELD.scale(factor, off))
    return factors.left, factors.right, rest


def _value(mpc: Engine, layout: Layout, data: Words, name: str) -> Words:
    """Return shares of a number of every client, whether it counts or not."""
    part = layout.part(name)
    invariant(isinstance(part, Number), "a quantity is a number")
    weights = part.weights()  # type: ignore[union-attr]
    factors = encode_words(weights.reshape(-1)).reshape(*weights.shape, 2)
    lower = np.broadcast_to(np.asarray(part.lower, np.int64), (data.shape[0],))  # type: ignore[union-attr]
    offsets = mpc.source.constant(encode_words(np.ascontiguousarray(lower)))
    return PRIME_FIELD.add(project(data, layout.start(name), factors), offsets)


def _difference(mpc: Engine, layout: Layout, data: Words, equation: Equal) -> Words:
    """Return, for each client, by how much an equation is off."""
    count = data.shape[0]
    constant = np.broadcast_to(np.asarray(equation.constant, np.int64), (count,))
    shared = mpc.source.constant(encode_words(np.ascontiguousarray(constant)))
    off = PRIME_FIELD.subtract(PRIME_FIELD.zeros(count), shared)
    for name, factor in equation.terms:
        if isinstance(layout.part(name), Number):
            value = _value(mpc, layout, data, name)
            one = encode_words(np.atleast_1d(np.asarray(factor, np.int64)))
            off = PRIME_FIELD.add(off, PRIME_FIELD.scale(one, value))
        else:
            table = encode_words(np.asarray(factor, np.int64))
            off = PRIME_FIELD.add(off, project(data, layout.start(name), table[np.newaxis]))
    return off
