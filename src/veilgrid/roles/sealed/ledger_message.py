"""What is said about the record of a sealed day, and what is believed of it [sealed 6.5].

A word of ``degree + 1`` parties counts, because one of them is honest; a pledge counts under the
key of its site's process.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from veilgrid.ledger.journalled import RECORDS as LEDGER_RECORDS
from veilgrid.ledger.operation import ProposeIteration
from veilgrid.machine import Effect, NodeId, Persist
from veilgrid.roles.ledger_message import MESSAGES, Seated
from veilgrid.roles.ledger_seat import Agreement, bus_of
from veilgrid.roles.ledger_view import DayView
from veilgrid.roles.masked_chain import residual_of
from veilgrid.roles.sealed.message import DayEnded, Message
from veilgrid.roles.sealed.party import SealedParty
from veilgrid.roles.sealed.payer import PayerRecord
from veilgrid.roles.sealed.record import (
    COMMITMENT_LENGTH,
    commitment_of,
    digest_of_commitments,
    digest_of_opened,
    verdict_of,
)
from veilgrid.roles.sealed.sites_kept import SiteRecord
from veilgrid.signature import Signs, verify

PLEDGE_DOMAIN: Final = "sealed/1/pledge"


class Word(msgspec.Struct, frozen=True, tag=True):
    """A party's word on how a day ended; ``degree + 1`` equal ones are believed.

    Attributes
    ----------
    bids
        Digest of each committed message, by bus name.
    excluded
        Buses that took their fallback after they had bid.
    opened
        Digest of all that opened; empty if the day ended without a result.
    gap
        Of the certificate, price units.
    is_accepted
        Whether the certificate says that the plan may be accepted.
    """

    day: str
    bids: dict[str, bytes]
    excluded: list[str]
    opened: bytes
    gap: float
    is_accepted: bool

    @classmethod
    def of(cls, day: str, names: Sequence[str], party: SealedParty, ended: DayEnded) -> "Word":
        """Say what a party knows of an ended day; ``names`` are those of the buses."""
        public = ended.public
        bids = {names[bus]: digest for bus, digest in party.bid_digests().items()}
        left_out = sorted(names[int(bus)] for bus in public["excluded"])
        opened = {**public["certificate"], "excluded": public["excluded"]}
        return cls(
            day,
            dict(sorted(bids.items())),
            [name for name in left_out if name in bids],
            digest_of_opened(opened),
            *verdict_of(opened),
        )

    @classmethod
    def without_result(cls, day: str) -> "Word":
        """Say that a day ended without a result."""
        return cls(day, {}, [], b"", 0.0, is_accepted=False)


class Pledge(msgspec.Struct, frozen=True, tag=True):
    """A site's commitment to what it pays, under the key of its process."""

    day: str
    site: str
    commitment: bytes
    signature: bytes


class Pledges(msgspec.Struct, frozen=True, tag=True):
    """All pledges by which the operator proposes to end a day."""

    day: str
    pledges: list[Pledge]


class Openings(msgspec.Struct, frozen=True, tag=True):
    """The salts of a process's pledges, for the payer: it knows the amounts and opens them."""

    day: str
    salts: dict[str, bytes]


class FetchWord(msgspec.Struct, frozen=True, tag=True):
    """Somebody asks again for a party's word, a process's pledges, or the operator's collection."""

    day: str


class Recorded(msgspec.Struct, frozen=True, tag=True):
    """How the record of a day ended for a participant.

    Attributes
    ----------
    public
        Of a process of sites: what opened, whether it is recorded, and ``unrecorded``, which own
        sites the record has as absent or not at all. Else ``status`` alone.
    export
        Of a validator: the file that ``veilgrid verify`` checks.
    """

    public: dict[str, Any]
    export: bytes = b""


WIRE = Message | MESSAGES | Word | Pledge | Pledges | Openings | FetchWord
"""The union that crosses the links of a sealed day with a ledger."""

SEATED_RECORDS = SiteRecord | Seated
"""The union that journals of its sites hold."""

KEPT = Word | Pledges | Openings
"""What operator and validators keep of what is said beside the ledger: nobody may say it again."""

LEDGER_JOURNAL = LEDGER_RECORDS | Seated | PayerRecord | KEPT
"""The union that journals of its operator and its validators hold."""


def _payload(pledge: Pledge) -> bytes:
    return msgspec.msgpack.encode((pledge.day, pledge.site, pledge.commitment))


def pledged(day: str, site: str, amount: int, salt: bytes, signer: Signs) -> Pledge:
    """Return a site's pledge to pay an amount, micro-units."""
    plain = Pledge(day, site, commitment_of(site, amount, salt), b"")
    return msgspec.structs.replace(plain, signature=signer.sign(PLEDGE_DOMAIN, _payload(plain)))


def is_genuine(pledge: Pledge, agreement: Agreement) -> bool:
    """Whether a site of the day made this pledge."""
    if pledge.day != agreement.day or pledge.site not in agreement.groups:
        return False
    if len(pledge.commitment) != COMMITMENT_LENGTH:
        return False
    key = agreement.keys[agreement.groups[pledge.site]]
    return verify(key, PLEDGE_DOMAIN, _payload(pledge), pledge.signature)


def digest_of_pledges(pledges: Iterable[Pledge]) -> bytes:
    """Return one digest of all commitments, by site."""
    ordered = sorted(pledges, key=lambda one: one.site)
    return digest_of_commitments(one.commitment for one in ordered)


class Words:
    """What parties say of a day, and what is believed of it.

    Parameters
    ----------
    parties
        Who counts.
    degree
        So many of them may be corrupt.
    records
        What an earlier life kept; a word among them is believed.
    """

    def __init__(
        self, day: str, parties: Sequence[NodeId], degree: int, records: Sequence[Any] = ()
    ) -> None:
        self.day, self.parties, self._degree = day, tuple(parties), degree
        self._said: dict[NodeId, Word] = {}
        self.agreed = next((one for one in records if isinstance(one, Word)), None)

    def take(self, sender: NodeId, word: Word) -> list[Effect]:
        """Count a word, the first one of each party; keep what is believed."""
        if sender not in self.parties or word.day != self.day:
            return []
        self._said.setdefault(sender, word)
        equal = [one for one in self._said.values() if one == word]
        if self.agreed is not None or len(equal) <= self._degree:
            return []
        self.agreed = word
        return [Persist(word)]


def unfit(view: DayView, word: Word) -> list[str]:
    """Return the clients whose entry is not what the parties say, and who are not out yet."""
    return [
        client
        for client, digest in sorted(view.bids.items())
        if client not in view.excluded
        and (word.bids.get(bus_of(client)) != digest or bus_of(client) in word.excluded)
    ]


def outcome_proposal(day: str, word: Word) -> ProposeIteration:
    """Return the step that holds what opened."""
    return ProposeIteration(day, 1, word.opened, 0, residual_of(word.gap), is_last=False)


def payments_proposal(day: str, pledges: Iterable[Pledge]) -> ProposeIteration:
    """Return the last step, which holds the digest of all pledges."""
    return ProposeIteration(day, 2, digest_of_pledges(pledges), 0, 0, is_last=True)
