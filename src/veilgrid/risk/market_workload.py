"""Measured rounds: markets and fleets of any size on a committee of processes [market 7].

Inputs are drawn from a public seed and arrive at the parties as shares; agreement on them, the
check of every input and the computation are those of a real round. Receiving clients' messages,
which happens before, is not part of it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from veilgrid.machine import NodeId
from veilgrid.mpc._round import Steps
from veilgrid.mpc.bulk import BulkBatch, BulkMailbox, bulk_intake, plain_batch
from veilgrid.mpc.client import Enrolled
from veilgrid.mpc.engine import Engine
from veilgrid.mpc.field import PRIME_FIELD, Words, octets_of, words_of
from veilgrid.mpc.layout import Integers, Layout
from veilgrid.mpc.order import Mpc
from veilgrid.mpc.party import Party, Program
from veilgrid.mpc.plain import Plain
from veilgrid.mpc.prss import derive_keys, keyring_of
from veilgrid.mpc.workload import lockstep, shares_of, shares_of_words, warm_up
from veilgrid.risk.auction import RADIX, UNIFORM, Cleared, allocate, clear, encode, layout_of
from veilgrid.risk.capacity import Bins, Classes, History, Tally, bins_of, dispatchable, tally
from veilgrid.risk.conduct import Groups
from veilgrid.risk.trading import trade
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signs

KINDS: Final = ("market", "prices", "capacity", "refresh")
QUANTITY_BITS: Final = 30
TICK_DIGITS: Final = 5
CONFIDENCE: Final = 0.99
SCENARIOS: Final = 16


class Workload(msgspec.Struct, frozen=True):
    """What to run.

    Attributes
    ----------
    kind
        One of :data:`KINDS`; ``market`` is a whole round with flags, caps and what each order
        trades; ``prices`` opens price and volume only; a refresh replaces a hundredth of a fleet.
    count
        Orders, or devices.
    degree
        Of the sharings.
    """

    kind: str
    count: int
    degree: int = 1


# -- inputs ----------------------------------------------------------------------------------------


def orders_of(count: int) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """Return ticks, quantities and sides of orders: (order,) each."""
    generator = np.random.Generator(np.random.PCG64(20261122))
    is_buy = generator.random(count) < 0.5
    centre = np.where(is_buy, 0.55, 0.45)
    ticks = np.clip(generator.normal(centre, 0.15), 0, 1) * (RADIX**TICK_DIGITS - 1)
    quantities = generator.integers(1, 2**QUANTITY_BITS, count, dtype=np.int64)
    return ticks.astype(np.int64), quantities, is_buy


def fleet_of(count: int) -> tuple[Bins, Integers, History]:
    """Return bins, devices' inputs and their history under sixteen scenarios."""
    generator = np.random.Generator(np.random.PCG64(7))
    bins = bins_of(2.0, 12.0)
    usual = generator.choice([0.005, 0.01, 0.02, 0.03, 0.05, 0.08], count)
    rows = [usual]
    rows += [np.where(generator.random(count) < 0.1, 0.5, usual) for _ in range(SCENARIOS - 1)]
    weights = np.array([0.925] + [0.005] * (SCENARIOS - 1))
    return bins, bins.encode(generator.uniform(2, 12, count)), History(weights, np.stack(rows))


def inputs_of(work: Workload) -> tuple[Layout, Integers]:
    """Return the layout and the inputs that arrive in the measured round."""
    if work.kind in ("market", "prices"):
        ticks, quantities, _ = orders_of(work.count)
        layout = layout_of(np.full(work.count, 2**QUANTITY_BITS - 1), TICK_DIGITS)
        return layout, encode(layout, ticks, quantities)
    bins, inputs, _ = fleet_of(work.count)
    return bins.layout(), inputs[: work.count // 100] if work.kind == "refresh" else inputs


# -- programs --------------------------------------------------------------------------------------


def answer(mpc: Mpc, work: Workload, batch: BulkBatch, kept: Tally | None) -> Steps[list[Any]]:
    """Return what a round opens: the same from shares as from plain numbers."""
    if work.kind == "market":
        weights = np.ones(work.count, np.int64)
        done = yield from trade(mpc, batch, groups_of(work.count), weights, UNIFORM)
        own = hashlib.sha256(_without_pads(mpc, work, done.padded)).hexdigest()
        flags = [f"{owner} {' '.join(kinds)}" for owner, kinds in sorted(done.kinds.items())]
        return [done.price.low, done.price.high, done.price.volume, flags, own]
    if work.kind == "prices":
        _, _, is_buy = orders_of(work.count)
        cleared = yield from clear(mpc, batch, is_buy, np.ones(work.count, np.int64), UNIFORM)
        return [cleared.low, cleared.high, cleared.volume]
    bins, _, history = _fleet(work.count)
    classes = _classes(work.count)
    sums = tally(batch, classes, np.arange(len(batch.names)), work.count)
    if kept is not None:
        # The same devices send again: minus what they had sent, plus what they send now.
        sums = kept.plus(sums, -1).plus(sums)
    found = yield from dispatchable(mpc, sums, bins, history, classes, CONFIDENCE)
    return [found.mean_kw, found.capacity_kw, found.certified_kw, found.cvar_kw]


def groups_of(count: int) -> Groups:
    """Return who owns the orders: nine in ten have one, the others buy and sell."""
    _, _, is_buy = orders_of(count)
    owners = np.arange(count)
    pairs = min(int(is_buy.sum()), int((~is_buy).sum()), count // 20)
    owners[np.flatnonzero(~is_buy)[:pairs]] = np.flatnonzero(is_buy)[:pairs]
    able = np.where(owners % 4 == 0, 2**QUANTITY_BITS - 1, -1)
    return Groups(owners, is_buy, able)


def pads_of(count: int) -> Words:
    """Return what the owners of orders add to what opens to them: (order, 2)."""
    words = np.random.Generator(np.random.PCG64(3)).integers(0, 2**63, 2 * count, dtype=np.uint64)
    return PRIME_FIELD.from_words(words)


def _without_pads(mpc: Mpc, work: Workload, padded: bytes) -> bytes:
    if isinstance(mpc, Plain):
        return padded
    opened = PRIME_FIELD.from_words(words_of(padded))
    own = PRIME_FIELD.subtract(opened, pads_of(work.count))
    return bytes(octets_of(PRIME_FIELD.from_words(PRIME_FIELD.flat(own))))


_KNOWN: dict[int, tuple[Bins, Integers, History, list[Classes]]] = {}


def _fleet(count: int) -> tuple[Bins, Integers, History]:
    if count not in _KNOWN:
        bins, inputs, history = fleet_of(count)
        _KNOWN[count] = (bins, inputs, history, history.classes())
    return _KNOWN[count][:3]


def _classes(count: int) -> list[Classes]:
    _fleet(count)
    return _KNOWN[count][3]


def expected(work: Workload) -> list[Any]:
    """Return what the plain computation gives."""
    layout, inputs = inputs_of(work)
    mpc = Plain()
    found = mpc.run(answer(mpc, work, plain_batch(mpc, layout, inputs), _whole(mpc, work, None)))
    return list(found)  # type: ignore[call-overload, no-any-return]


def cleared_plain(count: int) -> tuple[Cleared, Integers]:
    """Return the plain clearing of the measured market and what each order trades."""
    ticks, quantities, is_buy = orders_of(count)
    layout, inputs = inputs_of(Workload("market", count))
    mpc = Plain()
    batch = plain_batch(mpc, layout, inputs)
    found = mpc.run(clear(mpc, batch, is_buy, np.ones(count, np.int64), UNIFORM))
    cleared: Cleared = found  # type: ignore[assignment]
    return cleared, allocate(cleared, ticks, quantities, is_buy)


def _whole(mpc: Mpc, work: Workload, party: int | None) -> Tally | None:
    """Return the tally of the whole fleet that a refresh starts from."""
    if work.kind != "refresh":
        return None
    bins, inputs, _ = _fleet(work.count)
    if isinstance(mpc, Plain):
        batch = plain_batch(mpc, bins.layout(), inputs)
    else:
        batch = _shared(mpc, bins.layout(), inputs, party or mpc.me, work.degree)
    return tally(batch, _classes(work.count), np.arange(work.count), work.count)


def _shared(mpc: Engine, layout: Layout, inputs: Integers, party: int, degree: int) -> BulkBatch:
    data = shares_of(inputs.reshape(-1), party, degree).reshape(*inputs.shape, 2)
    names = tuple(str(row) for row in range(len(inputs)))
    there = np.ones(len(inputs), bool)
    return BulkBatch(mpc, names, layout, data, there, ~there)


def program_of(work: Workload, mailbox: BulkMailbox) -> Program:
    """Return one party's computation on inputs that lie in its mailbox."""
    kept: list[Tally | None] = []
    if work.kind == "refresh":
        keys = derive_keys(mailbox.n, mailbox.degree, b"kept")
        holder = Engine(
            keyring_of(mailbox.party, mailbox.n, mailbox.degree, keys, b""), lambda: bytes(32)
        )
        kept.append(_whole(holder, work, mailbox.party))

    def program(mpc: Engine) -> Steps[list[Any]]:
        batch = yield from bulk_intake(mpc, mailbox)
        return (yield from answer(mpc, work, batch, kept[0] if kept else None))

    return program


def mailbox_of(work: Workload, party: int, n: int) -> BulkMailbox:
    """Return a mailbox in which the shares of all inputs lie, as if they had arrived."""
    layout, inputs = inputs_of(work)
    clients = {str(row): Enrolled(bytes(32)) for row in range(len(inputs))}
    mailbox = BulkMailbox(party, n, work.degree, b"workload", clients, Secret(bytes(32)), layout)
    shares = shares_of(inputs.reshape(-1), party, work.degree)
    pads = None
    if work.kind == "market":
        pads = shares_of_words(pads_of(work.count), party, work.degree)
    mailbox.fill(shares.reshape(*inputs.shape, 2), pads)
    return mailbox


def warm_up_rounds() -> None:
    """Load every compiled kernel with small rounds of three parties in this process."""
    warm_up()
    keys = derive_keys(3, 1, b"warm")
    for kind in ("market", "capacity"):
        work = Workload(kind, 64)
        programs = [program_of(work, mailbox_of(work, i, 3)) for i in (1, 2, 3)]
        engines = [Engine(keyring_of(i, 3, 1, keys, b""), lambda: bytes(32)) for i in (1, 2, 3)]
        lockstep([program(engine) for program, engine in zip(programs, engines, strict=True)])


def build_party(
    me: NodeId,
    arguments: Workload,
    randomness: Randomness,
    peers: list[NodeId],
    signer: Signs,
    verify_keys: Mapping[NodeId, bytes],
) -> Party:
    """Make a party for a workload; a factory for :mod:`veilgrid.node.local`."""
    warm_up_rounds()
    names = tuple(sorted(peers))
    mailbox = mailbox_of(arguments, names.index(me) + 1, len(names))
    _classes(arguments.count if arguments.kind in ("capacity", "refresh") else 64)
    return Party(
        me,
        names,
        arguments.degree,
        program_of(arguments, mailbox),
        signer=signer,
        verify_keys=verify_keys,
        randomness=randomness,
        session=b"workload",
        patience_ns=120_000_000_000,
    )
