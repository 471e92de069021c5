"""What a ledger keeps of a sealed day: digests and verdicts, no number of a site [sealed 6.5].

Digests of the sites' committed messages, as all parties agreed on them; who was left out; the
digest of all that opened, certificate included, which validators accept or not; and one digest of
salted commitments to the payments, which each site can open without showing the others'.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from veilgrid.roles.masked_chain import Chain
from veilgrid.secret import Randomness

VALIDATORS: Final = ("validator-1", "validator-2", "validator-3", "validator-4")


COMMITMENT_LENGTH: Final = 32
"""Octets; commitments are digested one behind the other."""


def digest_of_opened(opened: Mapping[str, Any]) -> bytes:
    """Return the digest of all that opened; anyone who holds it can compute it again."""
    return hashlib.sha256(b"sealed day 1 " + msgspec.json.encode(opened, order="sorted")).digest()


def commitment_of(site: str, amount: int, salt: bytes) -> bytes:
    """Return a site's commitment to what it pays, micro-units."""
    return hashlib.sha256(b"sealed payment 1 %s|%d|" % (site.encode(), amount) + salt).digest()


def digest_of_commitments(commitments: Iterable[bytes]) -> bytes:
    """Return one digest of all commitments to payments, in the order of the sites' names."""
    return hashlib.sha256(b"".join(commitments)).digest()


def verdict_of(opened: Mapping[str, Any]) -> tuple[float, bool]:
    """Return the gap of a certificate, price units, and whether its plan may be accepted."""
    is_accepted = bool(opened.get("is_close")) and not any(opened.get("failed", ()))
    is_accepted = is_accepted and is_sound(opened.get("electrical", {}))
    return float(max(opened.get("gap", 0.0), 0.0)), is_accepted


def is_sound(electrical: Mapping[str, Any]) -> bool:
    """Whether the AC power flow on shares passes a plan [sealed 6.1]; nothing said is no pass."""
    faults = ("low", "high", "over", "moving")
    return bool(electrical) and not any(electrical.get(name) for name in faults)


class SealedChain(Chain):
    """The ledger of a sealed day: like that of others, but payments stay closed.

    Attributes
    ----------
    salts
        By site: with its payment, what opens its commitment; made from its own key.
    """

    def __init__(
        self,
        day: str,
        bids: Mapping[str, bytes],
        salts: Mapping[str, bytes],
        randomness: Randomness,
    ) -> None:
        super().__init__(day, bids, (), {}, VALIDATORS, randomness)
        self.salts = dict(salts)

    def settle(self, payments: Mapping[str, int]) -> None:
        """Record one digest of all commitments to payments, micro-units by site."""
        leaves = [
            commitment_of(site, payments[site], self.salts[site])
            for site in sorted(self.salts)
            if site in payments
        ]
        self.close_step(digest_of_commitments(leaves), 0.0, 0.0, is_last=True)


def recorded(
    day: str,
    bids: Mapping[str, bytes],
    salts: Mapping[str, bytes],
    excluded: Sequence[str],
    opened: Mapping[str, Any],
    randomness: Randomness,
) -> SealedChain:
    """Put a day on a ledger of its own, open until it is settled.

    Parameters
    ----------
    day
        Its name.
    bids
        Digest of each committed message, by site.
    salts
        Of the commitments to payments, by site.
    excluded
        Sites that took their fallback after they had bid.
    opened
        All that opened.
    randomness
        Of the ledger's keys.
    """
    chain = SealedChain(day, bids, salts, randomness)
    for site in excluded:
        chain.exclude(site)
    gap, is_accepted = verdict_of(opened)
    chain.close_step(digest_of_opened(opened), 0.0, gap, is_last=False, is_accepted=is_accepted)
    return chain
