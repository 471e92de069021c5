"""What sites sent, on shares, and what opens to one of them alone [sealed 3.4, 4.2]."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from veilgrid.mpc import Engine, Form, Mailbox, Shares, Steps
from veilgrid.mpc.bounded import Part, out_of_range
from veilgrid.mpc.field import PRIME_FIELD, Words, decode, octets_of, words_of
from veilgrid.mpc.intake import agree_on_submissions
from veilgrid.mpc.padded import padded
from veilgrid.roles.sealed.bid import PRICE_MAX, Shape
from veilgrid.roles.sealed.register import POWER_MAX, Register

BID: Final = "bid"
"""What a site's committed message is called."""


@dataclass(frozen=True)
class Taken:
    """Vectors that arrived, by bus, and why others did not."""

    vectors: dict[int, Shares]
    flags: dict[int, str]

    @property
    def refusal(self) -> dict[str, Any]:
        """The result of a task that lacks some sites' messages."""
        return {"missing": [[bus, reason] for bus, reason in sorted(self.flags.items())]}


def vector_form(length: int) -> Form:
    """Return the form of a vector of integers that is not checked when it arrives."""
    return Form(length, (), ())


def take_in(mpc: Engine, mailbox: Mailbox, bound: int) -> Steps[Taken]:
    """Return the vectors that all parties agree on, unchecked [sealed 4.2]."""
    names = sorted(mailbox.clients)
    flags: dict[str, str] = {}
    chosen = yield from agree_on_submissions(mpc, mailbox, names, flags)
    vectors = {bus_of(name): vector(mpc, mailbox, name, bound) for name in names if name in chosen}
    return Taken(vectors, {bus_of(name): reason for name, reason in flags.items()})


def vector(
    mpc: Engine, mailbox: Mailbox, name: str, bound: int, count: int | None = None
) -> Shares:
    """Return shares of a client's vector, or of its first ``count`` elements."""
    received = mailbox.received[name]
    mpc.source.learn(name, received.seeds)
    correction = words_of(received.submission.correction)[: None if count is None else 2 * count]
    total = mpc.source.constant(PRIME_FIELD.from_words(correction))
    for members in mpc.source.sets:
        words = mpc.source.client_words(name, members, correction.size)
        part = mpc.source.known(PRIME_FIELD, members, PRIME_FIELD.from_words(words))
        total = PRIME_FIELD.add(total, part)
    return mpc.wrap(total, bound)


def heads(vectors: Mapping[int, Shares], count: int) -> dict[int, Shares]:
    """Return the first elements of each vector, by bus."""
    return {bus: one[:count] for bus, one in vectors.items()}


OUT_OF_RANGE: Final = "a number out of range"
"""Why a vector with elements beyond their bounds is refused."""


Runs = Sequence[tuple[int, int]]
"""Lengths and bounds of the parts of a vector."""


def ranged(
    mpc: Engine,
    taken: Taken,
    runs: Mapping[int, Runs],
    more: Mapping[str, tuple[Mapping[int, Shares], Runs]] | None = None,
) -> Steps[Taken]:
    """Refuse vectors with an element out of range, by bus [mpc 7.8].

    ``more`` are further vectors of the same sites, by what they are called, to look at as well.
    """
    parts = {client_of(bus, ""): Part(one.data, runs[bus]) for bus, one in taken.vectors.items()}
    for what, (vectors, its) in (more or {}).items():
        parts |= {client_of(bus, what): Part(one.data, its) for bus, one in vectors.items()}
    wrong = yield from out_of_range(mpc, parts)
    refused = {bus_of(name) for name in wrong}
    vectors = {bus: one for bus, one in taken.vectors.items() if bus not in refused}
    return Taken(vectors, {**taken.flags, **dict.fromkeys(sorted(refused), OUT_OF_RANGE)})


def fallbacks(
    mpc: Engine,
    register: Register,
    bids: Mailbox,
    buses: Sequence[int],
    absent: Collection[int] = (),
) -> dict[int, Shares]:
    """Return the committed fallback demands, active then reactive, of some buses.

    A bus without a bid that counts (``absent``) takes none: what it draws is settled as imbalance.
    """
    times = register.interval_count
    nothing = mpc.constant([0] * (2 * times))
    return {
        bus: nothing
        if bus in absent
        else vector(mpc, bids, client_of(bus, BID), POWER_MAX, 4 * times)[2 * times :]
        for bus in buses
    }


def committed(
    mpc: Engine, shapes: Sequence[Shape], bids: Mailbox, absent: Collection[int]
) -> list[Shares]:
    """Return all sites' committed bids by bus; nothing for those without one (``absent``)."""
    return [
        mpc.constant([0] * sum(shape.bid_parts.values()))
        if bus in absent
        else vector(mpc, bids, client_of(bus, BID), PRICE_MAX)
        for bus, shape in enumerate(shapes)
    ]


def client_of(bus: int, task: str) -> str:
    """Return the name under which a bus's site sends for a task."""
    return f"{bus:06d} {task}"


def bus_of(client: str) -> int:
    """Return the bus of a client's name."""
    return int(client.split(" ", 1)[0])


PAYER: Final = -1
"""Stands for the payer where sites are numbered by bus; it commits to seeds of pads alone."""


def digests_that_count(mailbox: Mailbox, without: Collection[int]) -> dict[int, bytes]:
    """Return the digest of each site's committed message that counts, by bus.

    Of others each party may have another one, or none.
    """
    digests = {bus_of(name): one.digest for name, one in mailbox.received.items()}
    return {bus: one for bus, one in digests.items() if bus != PAYER and bus not in without}


OWN: Final = "own"
"""What a task's result calls what opens to one site each, behind its pads: octets by bus."""


@dataclass(frozen=True)
class Pads:
    """What hides a site's own results from everybody else [sealed 3.4].

    The seeds of its bid stand for uniform numbers that only the site knows; each task has numbers
    of its own.

    Attributes
    ----------
    bids
        The committed messages.
    absent
        Buses without a bid that counts: nothing opens to them.
    purpose
        The task's session.
    """

    bids: Mailbox
    absent: Collection[int]
    purpose: bytes

    def buses_of(self, buses: Iterable[int]) -> list[int]:
        """Return those of some buses to whose sites something can open."""
        return [bus for bus in buses if bus not in self.absent]

    def open(
        self, mpc: Engine, public: Words, own: Mapping[int, Words]
    ) -> Steps[tuple[list[int], dict[int, bytes]]]:
        """Open some numbers to all, and in the same round to each bus's site its own.

        ``public`` and, by bus, ``own`` are shares (number, word). Returned are integers, and by
        bus the octets that its site takes its pads off. What is for a :data:`PAYER` that takes no
        part opens to nobody.
        """
        is_paid = client_of(PAYER, BID) in self.bids.clients and PAYER not in self.absent
        buses = [bus for bus in own if bus != PAYER or is_paid]
        clients = [client_of(bus, BID) for bus in buses]
        parts = [own[bus] for bus in buses]
        hidden = padded(mpc, self.bids, clients, parts, self.purpose)
        opened = yield from mpc.open_words(np.concatenate([public, hidden]))
        ends = np.cumsum([len(public), *map(len, parts)]).tolist()
        told = {
            bus: bytes(octets_of(PRIME_FIELD.flat(opened[start:end])))
            for bus, start, end in zip(buses, ends, ends[1:], strict=False)
        }
        return decode(opened[: len(public)]), told
