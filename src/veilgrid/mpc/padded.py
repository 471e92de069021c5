"""Open numbers to one client each, without public keys [mpc 7.9].

A client's seeds expand to more than its input needs: to uniform numbers, pads, which the client
knows and the parties share. They open value plus pad to everybody; only the client can take the
pad off. Any ``degree`` parties lack one of its seeds, so to them a pad is uniform. What opens is
verified like any output, and who bends it is named.
"""

from collections.abc import Sequence

import numpy as np

from veilgrid.errors import Finding, InputError, invariant
from veilgrid.mpc._round import Steps
from veilgrid.mpc._shares import Shares
from veilgrid.mpc.bulk import BulkBatch
from veilgrid.mpc.client import Mailbox
from veilgrid.mpc.engine import CheckFailed, Engine
from veilgrid.mpc.field import PRIME, PRIME_FIELD, Words, decode, octets_of, words_of
from veilgrid.mpc.order import Mpc
from veilgrid.secret import Secret

_WIDTH = 16
WITH_PAD = frozenset({"invalid"})
"""Flags of clients whose seeds the parties have nevertheless."""


def open_padded(
    mpc: Mpc, batch: BulkBatch, own: Shares, public: Shares
) -> Steps[tuple[list[int], bytes]]:
    """Open ``public`` to all, and to each client its element of ``own``, in one message.

    Everything they depend on is verified before. Who sent no readable input has no pad: for such
    a client zero is told, whatever ``own`` holds.

    Returns
    -------
    public, padded
        The numbers, and 16 octets a client: see :func:`read_padded`.
    """
    invariant(len(own) == len(batch.names), "one number a client")
    data = own.data
    without = {name for name, why in batch.flags.items() if why not in WITH_PAD}
    lacking = [row for row, name in enumerate(batch.names) if name in without] if without else []
    if lacking:
        data = data.copy()
        data[lacking] = 0
    if not isinstance(mpc, Engine):
        told = yield from mpc.open(public)
        return told, _octets(data)
    padded = PRIME_FIELD.add(data, batch.pads)
    opened = yield from mpc.open_words(np.concatenate([public.data, padded]))
    values = decode(opened[: len(public)])
    if any(abs(value) > public.bound for value in values):
        raise CheckFailed("an opened result exceeds its bound")
    return values, _octets(opened[len(public) :])


def padded(
    mpc: Engine, mailbox: Mailbox, clients: Sequence[str], own: Sequence[Words], purpose: bytes
) -> Words:
    """Return shares of all clients' numbers behind pads of their own, (number, word).

    ``own`` are shares (number, word) of what opens to each client, whose message is in
    ``mailbox``, of this computation or an earlier one. Pads for one ``purpose`` must hide one
    thing only.
    """
    out = []
    for client, data in zip(clients, own, strict=True):
        mpc.source.learn(client, mailbox.received[client].seeds)
        total = np.ascontiguousarray(data)
        for members in mpc.source.sets:
            words = mpc.source.client_words(client, members, 2 * len(data), purpose)
            part = mpc.source.known(PRIME_FIELD, members, PRIME_FIELD.from_words(words))
            total = PRIME_FIELD.add(total, part)
        out.append(total)
    return np.concatenate(out) if out else PRIME_FIELD.zeros(0)


def _octets(elements: Words) -> bytes:
    return bytes(octets_of(PRIME_FIELD.from_words(PRIME_FIELD.flat(elements))))


def read_padded(told: Sequence[bytes], row: int, pad: Secret[int], degree: int) -> int:
    """Return what opened to the client of a row, from what each party says was opened.

    More than ``degree`` parties have to say the same, so one of them is honest.

    Raises
    ------
    InputError
        No value was said by enough parties.
    """
    said = [octets[_WIDTH * row : _WIDTH * (row + 1)] for octets in told]
    for one in said:
        if len(one) == _WIDTH and said.count(one) > degree:
            opened = PRIME_FIELD.numbers(PRIME_FIELD.from_words(words_of(one)))[0]
            own = (opened - pad.reveal_to("taking a pad off")) % PRIME
            return own if own <= PRIME // 2 else own - PRIME
    raise InputError([Finding("result", "the parties tell different things", "ask the others")])
