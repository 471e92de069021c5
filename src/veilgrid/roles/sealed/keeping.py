"""What a program that plays a whole sealed day keeps, so that another can go on [sealed 4.6].

Machines persist their own records; a program that plays them all has everybody's keys as well.
All of it is as secret as the sites' data and belongs into an encrypted journal.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from nacl.public import PrivateKey

from veilgrid.machine import NodeId
from veilgrid.roles.sealed.attempts import ATTEMPTS_MAX
from veilgrid.roles.sealed.day import Life
from veilgrid.roles.sealed.heard import BID, PAYER, client_of
from veilgrid.roles.sealed.keys import SITES, Keys, SiteKeys
from veilgrid.roles.sealed.message import (
    Began,
    Collected,
    Collecting,
    Committed,
    DayEnded,
    Wished,
)
from veilgrid.roles.sealed.sites_kept import Proved, SiteOutcome
from veilgrid.secret import Randomness, Secret
from veilgrid.signature import Signer

_KEEPER: Final = "own encrypted journal"


class Opened(msgspec.Struct, frozen=True, tag=True):
    """First record: what is planned, the day's name and everybody's keys. Secret.

    Attributes
    ----------
    digest
        Of the scenario: another one cannot be gone on with.
    sites, salts : by bus
        Seeds of signature keys; keys of salts.
    payer
        Seed of its signature key.
    """

    digest: bytes
    day: bytes
    boxes: list[bytes]
    signers: list[bytes]
    sites: dict[int, bytes]
    salts: dict[int, bytes]
    payer: bytes

    @classmethod
    def drawn(
        cls, digest: bytes, site_count: int, randomness: Randomness, party_count: int = 3
    ) -> "Opened":
        """Draw everything for a new day."""
        keys = Keys.drawn(party_count, site_count, randomness)
        return cls(
            digest,
            Life.name(randomness),
            [bytes(box) for box in keys.boxes],
            [one.seed.reveal_to(_KEEPER) for one in keys.signers],
            {bus: seed.reveal_to(_KEEPER) for bus, seed in keys.site_seeds.items()},
            {bus: one.salt_key.reveal_to(_KEEPER) for bus, one in keys.sites.items()},
            keys.payer.seed.reveal_to(_KEEPER),
        )

    def life(self, records: Sequence["Told"], keep: Callable[[NodeId, Any], None]) -> Life:
        """Return how the day goes on from here."""
        seeds = {bus: Secret(seed) for bus, seed in self.sites.items()}
        keys = Keys(
            tuple(PrivateKey(box) for box in self.boxes),
            tuple(Signer(Secret(seed)) for seed in self.signers),
            {bus: SiteKeys(Signer(seed), Secret(self.salts[bus])) for bus, seed in seeds.items()},
            seeds,
            Signer(Secret(self.payer)),
        )
        by_name: dict[NodeId, list[Any]] = {}
        for told in records:
            by_name.setdefault(NodeId(told.node), []).append(told.record)
        return Life(keys, self.day, by_name, keep)


class Told(msgspec.Struct, frozen=True, tag=True):
    """A record of one machine."""

    node: str
    record: Began | Committed | DayEnded | Wished | Proved | SiteOutcome | Collecting | Collected


Kept = Opened | Told
"""What the journal of a run holds."""


def bid_count(record: Committed) -> int:
    """Return how many sites' bids a party keeps; the payer's message is none."""
    return sum(sent.client != client_of(PAYER, BID) for sent in record.submissions)


def bids_kept(records: Sequence[Kept]) -> int:
    """Return how many sites' committed bids all parties have; 0 = there is nothing to go on with.

    So it is, too, where the day was begun as often as it may be [sealed 4.6].
    """
    opened = [one for one in records if isinstance(one, Opened)]
    told = [one for one in records if isinstance(one, Told)]
    sites = [one for one in told if one.node == SITES and isinstance(one.record, Began)]
    committed: dict[str, int] = {}
    for one in told:
        if isinstance(one.record, Committed):
            committed[one.node] = bid_count(one.record)
        elif isinstance(one.record, Began) and one.record.is_from_bids:
            committed.pop(one.node, None)
    bids = list(committed.values())
    if not opened or not sites or len(bids) < len(opened[0].boxes):
        return 0
    attempts = [one.record.attempt for one in told if isinstance(one.record, Began)]
    is_over = any(isinstance(one.record, DayEnded) for one in told)
    return min(bids) if is_over or max(attempts) + 1 < ATTEMPTS_MAX else 0
